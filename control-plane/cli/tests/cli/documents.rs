//! Documents through the CLI: applied, listed, described, deleted, rolled back; and runs.

use super::{Exit, Hub, User, document, page};
use serde_json::{Value, json};

pub(crate) const PROMPT: &str =
    "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: style}\nspec: {text: Be short.}\n";
const AGENT: &str =
    "---\nkind: Agent\nmetadata:\n  name: helper\nspec:\n  model: fast\n  instructions: Help.\n";

fn applied(kind: &str, name: &str, action: &str, before: &Value, after: &Value) -> Value {
    json!({"action": action, "object": document(kind, name, 2), "before": before, "after": after, "clusters": []})
}

#[tokio::test]
async fn apply_sends_all_documents_at_once_and_says_what_became_of_them() {
    let hub = Hub::start().await;
    let results = json!([
        applied("PROMPT", "style", "CREATED", &Value::Null, &json!({})),
        applied("AGENT", "helper", "UPDATED", &json!({}), &json!({})),
    ]);
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": results, "errors": []}}),
    );
    let mut user = User::of(&hub);
    let file = user.file("a.yaml", &format!("{PROMPT}{AGENT}"));
    let left = user.runs(&format!("apply -f {file}")).await;
    insta::assert_snapshot!(left.out, @r"
    DOCUMENT              ACTION   REVISION
    Prompt support/style  created  2
    Agent support/helper  updated  2
    ");
    insta::assert_snapshot!(left.err, @"note: Agent support/helper is placed on no cluster and runs nowhere (spec.placement)");
    assert_eq!(left.exit, Exit::Done);
    let (operation, variables) = hub.asked().remove(0);
    let input = &variables["input"];
    assert_eq!(
        (operation.as_str(), &input["project"], &input["dryRun"]),
        ("ApplyDocuments", &json!("support"), &json!(false))
    );
    assert_eq!(
        input["documents"][1]["json"]["apiVersion"],
        "roadstead.dev/v1alpha1"
    );
    assert_eq!(
        input["documents"][1]["json"]["spec"].to_string(),
        r#"{"model":"fast","instructions":"Help."}"#
    );
    assert_eq!(input["idempotencyKey"].as_str().unwrap().len(), 36);

    let left = user.runs(&format!("apply -f {file} --dry-run -o json")).await;
    let value: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!(
        (&value[0]["action"], &value[0]["dryRun"]),
        (&json!("CREATED"), &json!(true))
    );
    let keys: Vec<Value> = hub
        .asked()
        .iter()
        .map(|(_, v)| v["input"]["idempotencyKey"].clone())
        .collect();
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn apply_reads_folders_and_standard_input() {
    let hub = Hub::start().await;
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": [], "errors": []}}),
    );
    let mut user = User::of(&hub).pipes(PROMPT);
    let folder = user.folder.path().join("docs");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    std::fs::write(
        folder.join("b.yml"),
        AGENT
            .trim_start_matches("---\n")
            .replacen("kind", "apiVersion: roadstead.dev/v1alpha1\nkind", 1),
    )
    .unwrap();
    std::fs::write(folder.join("notes.txt"), "no document").unwrap();
    std::fs::write(folder.join("deep").join("c.json"), "{").unwrap();
    let words = ["apply", "-f", "-", "-f", folder.to_str().unwrap()];
    let left = user.runs_words(&words).await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    let documents = &hub.asked()[0].1["input"]["documents"];
    let sources: Vec<&str> = documents
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|d| d["source"].as_str())
        .collect();
    assert!(sources[0] == "-" && sources[1].ends_with("b.yml"), "{sources:?}");

    user.input = roadstead_cli::Input::Piped(PROMPT.to_owned());
    let left = user.runs_words(&[&words[..], &["-R"]].concat()).await;
    assert_eq!(left.exit, Exit::Invalid);
    assert!(left.err.contains("c.json:2:"), "{}", left.err);
}

#[tokio::test]
async fn apply_refuses_bad_documents_before_anything_is_sent() {
    let hub = Hub::start().await;
    let mut user = User::of(&hub);
    let file = user.file("a.yaml", &PROMPT.replace("text:", "txet:"));
    let left = user.runs(&format!("apply -f {file}")).await;
    assert_eq!(left.exit, Exit::Invalid);
    insta::assert_snapshot!(left.err, @r#"
    ~/a.yaml:4:7: spec.text: expected a text, found no such field
    ~/a.yaml:4:8: spec.txet: expected text, found the unknown field "txet" (did you mean text?)
    error: 2 problems; nothing was written
      next: correct the documents; `roadstead explain KIND.FIELD` says what a field expects
    "#);
    assert!(hub.asked().is_empty());
    assert_eq!(user.runs("apply -f nowhere.yaml").await.exit, Exit::Usage);
    assert_eq!(user.runs("apply").await.exit, Exit::Usage);
    let empty = user.file("empty.yaml", "---\n");
    assert_eq!(user.runs(&format!("apply -f {empty}")).await.exit, Exit::Invalid);
}

#[tokio::test]
async fn s31_a_file_too_large_is_not_read_whole() {
    let hub = Hub::start().await;
    let mut user = User::of(&hub);
    let file = user.file("big.yaml", &"a".repeat(2 * 1024 * 1024));
    let left = user.runs(&format!("apply -f {file}")).await;
    assert_eq!(left.exit, Exit::Invalid);
    assert!(
        left.err.contains("expected at most 1048576 bytes in one file"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn the_hubs_errors_name_file_and_line() {
    let hub = Hub::start().await;
    let error = |code: &str, path: &str| {
        json!({"applyDocuments": {"results": [], "errors": [{"code": code, "path": path,
            "message": "expected the name of a Model in the project, found \"fast\"", "expected": "x", "found": "y"}]}})
    };
    hub.graphql("ApplyDocuments", error("INVALID", "documents[1].spec.model"));
    hub.graphql("ApplyDocuments", error("CONFLICT", "input.documents[0].json"));
    let mut user = User::of(&hub);
    let file = user.file("a.yaml", &format!("{PROMPT}{AGENT}"));
    let left = user.runs(&format!("apply -f {file}")).await;
    assert_eq!(left.exit, Exit::Invalid);
    insta::assert_snapshot!(left.err, @r#"
    ~/a.yaml:10:10: spec.model: expected the name of a Model in the project, found "fast"
    error: 1 of 2 documents refused; nothing was written
      next: correct what is named above and try again; `roadstead explain KIND.FIELD` says what a field of a document expects
    "#);
    let left = user.runs(&format!("apply -f {file}")).await;
    assert_eq!(left.exit, Exit::Conflict);
    assert!(left.err.starts_with("~/a.yaml:1:1: "), "{}", left.err);
}

#[tokio::test]
async fn apply_shows_what_changes() {
    let hub = Hub::start().await;
    let (before, after) = (
        json!({"kind": "Prompt", "spec": {"text": "Be long."}}),
        json!({"kind": "Prompt", "spec": {"text": "Be short."}}),
    );
    let results = json!([applied("PROMPT", "style", "UPDATED", &before, &after)]);
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": results, "errors": []}}),
    );
    let mut user = User::of(&hub);
    let file = user.file("a.yaml", PROMPT);
    let left = user.runs(&format!("apply -f {file} --diff --dry-run")).await;
    insta::assert_snapshot!(left.out, @r"
    --- Prompt support/style (now)
    +++ Prompt support/style (applied)
    @@ -1,3 +1,3 @@
     kind: Prompt
     spec:
    -  text: Be long.
    +  text: Be short.
    DOCUMENT              ACTION             REVISION
    Prompt support/style  updated (dry run)  2
    ");
    let left = user.runs(&format!("apply -f {file} --diff --color always")).await;
    assert_eq!(
        left.err,
        "note: nothing was written; apply without --diff to write\n"
    );
    assert!(hub.asked().iter().all(|(_, v)| v["input"]["dryRun"] == true));
    let value: Value =
        serde_json::from_str(&user.runs(&format!("apply -f {file} --diff -o json")).await.out).unwrap();
    assert_eq!((&value[0]["before"], &value[0]["after"]), (&before, &after));
    assert!(
        left.out.contains("\u{1b}[31m-  text: Be long.\u{1b}[0m"),
        "{}",
        left.out
    );
}

fn agent(name: &str, placements: &Value) -> Value {
    json!({"id": "agt_1", "project": "support", "name": name, "description": "", "revision": 3,
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-02T11:30:00Z", "placements": placements})
}

fn placed(cluster: &str, phase: &str, revision: u64) -> Value {
    json!({"cluster": cluster, "wanted": {"revision": 3}, "running": {"revision": revision, "phase": phase,
        "reason": "", "since": "2026-01-02T11:58:00Z", "reportAgeSeconds": 4}})
}

#[tokio::test]
async fn lists_go_page_by_page() {
    let hub = Hub::start().await;
    let nodes = [
        agent("a", &json!([placed("edge-1", "READY", 3)])),
        agent(
            "b",
            &json!([placed("edge-1", "READY", 3), placed("edge-2", "FAILED", 2)]),
        ),
    ];
    hub.graphql(
        "Agents",
        json!({"agents": {"nodes": nodes, "pageInfo": {"hasNextPage": true, "endCursor": "c1"}}}),
    );
    let rest = [
        agent("c", &json!([])),
        agent(
            "d",
            &json!([{"cluster": "edge-1", "wanted": {"revision": 3}, "running": null}]),
        ),
        agent("e", &json!([placed("edge-1", "READY", 2)])),
    ];
    hub.graphql("Agents", json!({"agents": page(&rest)}));
    let left = User::of(&hub).runs("get agents").await;
    insta::assert_snapshot!(left.out, @r"
    PROJECT  NAME  REVISION  STATUS      CLUSTERS       CHANGED
    support  a     3         ready       edge-1         30m0s
    support  b     3         failed 1/2  edge-1,edge-2  30m0s
    support  c     3         not placed  none           30m0s
    support  d     3         pending     edge-1         30m0s
    support  e     3         updating    edge-1         30m0s
    ");
    let asked = hub.asked();
    assert_eq!(
        asked[0].1,
        json!({"project": "support", "first": 100, "after": null})
    );
    assert_eq!(asked[1].1["after"], "c1");
}

#[tokio::test]
async fn a_page_that_is_too_large_for_the_hub_is_asked_for_in_halves() {
    let hub = Hub::start().await;
    let limit = json!({"errors": [{"message": "too large together", "extensions": {"code": "LIMIT"}}]});
    hub.graphql("Documents", limit.clone());
    hub.graphql("Documents", limit);
    let prompt = |name: &str| {
        let mut prompt = document("PROMPT", name, 1);
        prompt["json"] = json!({"metadata": {"name": name}});
        prompt
    };
    let first = json!({"nodes": [prompt("a")], "pageInfo": {"hasNextPage": true, "endCursor": "c1"}});
    hub.graphql("Documents", json!({"documents": first}));
    hub.graphql("Documents", json!({"documents": page(&[prompt("b")])}));
    let left = User::of(&hub).runs("get prompts -o json").await;
    assert_eq!(
        left.out.matches("\"name\"").count(),
        2,
        "{}{}",
        left.out,
        left.err
    );
    let asked: Vec<Value> = hub.asked().iter().map(|(_, v)| v["first"].clone()).collect();
    assert_eq!(asked, [100, 50, 25, 25]);
    let json: Vec<Value> = hub.asked().iter().map(|(_, v)| v["json"].clone()).collect();
    assert!(json.iter().all(|asked| *asked == true), "{json:?}");
}

#[tokio::test]
async fn get_writes_documents_that_can_be_applied_again() {
    let hub = Hub::start().await;
    let mut prompt = document("PROMPT", "style", 1);
    prompt["json"] = json!({"kind": "Prompt", "apiVersion": "roadstead.dev/v1alpha1", "metadata": {"name": "style", "annotations": {"n": "1.0"}}, "spec": {"text": "a: b\nc"}});
    hub.graphql("Document", json!({"document": prompt}));
    hub.graphql(
        "Documents",
        json!({"documents": page(&[prompt.clone(), prompt.clone()])}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("get prompt other/style -o yaml").await;
    assert_eq!(
        hub.asked()[0].1,
        json!({"kind": "PROMPT", "project": "other", "name": "style"})
    );
    insta::assert_snapshot!(left.out);
    let name = "support".parse().unwrap();
    let source = roadstead_contract::documents::Source {
        name: "x",
        text: &left.out,
    };
    let parsed = roadstead_contract::documents::parse_files(&[source], &name).unwrap();
    assert_eq!(parsed[0].json.to_string(), prompt["json"].to_string());
    let left = user.runs("get prompts -A -o yaml").await;
    assert_eq!(left.out.matches("---\n").count(), 1);
    let left = user.runs("get prompts -o json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&left.out)
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let hub = Hub::start().await;
    hub.graphql("Document", json!({"document": null}));
    hub.graphql("Documents", json!({"documents": page(&[])}));
    hub.graphql("Run", json!({"run": null}));
    let mut user = User::of(&hub);
    let left = user.runs("get model slow -o yaml").await;
    assert_eq!(left.exit, Exit::NotFound);
    insta::assert_snapshot!(left.err, @r"
    error: there is no Model support/slow that you may see
      next: roadstead get models --project support
    ");
    let left = user.runs("get models").await;
    assert_eq!(
        (left.exit, left.out.as_str(), left.err.as_str()),
        (Exit::Done, "", "no models in project support\n")
    );
    assert_eq!(user.runs("runs get run_1").await.exit, Exit::NotFound);
}

#[tokio::test]
async fn describe_tells_all_of_an_agent() {
    let hub = Hub::start().await;
    let mut whole = document("AGENT", "a", 3);
    whole["json"] = json!({"kind": "Agent", "spec": {"model": "fast"}});
    whole["actions"] =
        json!([{"name": "write", "allowed": true}, {"name": "delete", "allowed": false, "reason": "role"}]);
    hub.graphql("Document", json!({"document": whole}));
    let mut failed = placed("edge-2", "FAILED", 2);
    failed["running"]["reason"] = json!("tool server git: \u{1b}[31mnot found");
    hub.graphql(
        "AgentByName",
        json!({"agentByName": agent("a", &json!([placed("edge-1", "READY", 3), failed]))}),
    );
    let mut user = User::of(&hub);
    insta::assert_snapshot!(user.runs("describe agent a").await.out);
    let left = user.runs("describe agent a -o json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&left.out).unwrap()["placements"][0]["cluster"],
        "edge-1"
    );
}

#[tokio::test]
async fn delete_by_files_begins_with_the_agents() {
    let hub = Hub::start().await;
    hub.graphql(
        "DeleteDocument",
        json!({"deleteDocument": {"object": document("AGENT", "helper", 1), "errors": []}}),
    );
    let mut user = User::of(&hub);
    let file = user.file("a.yaml", &format!("{PROMPT}{AGENT}"));
    let left = user.runs(&format!("delete -f {file}")).await;
    assert_eq!(
        left.out,
        "Agent support/helper deleted\nPrompt support/style deleted\n"
    );
    let left = user.runs("delete agent other/x --expected-revision 4").await;
    assert_eq!(left.out, "Agent other/x deleted\n");
    let input = hub.asked()[2].1["input"].clone();
    assert_eq!(
        (&input["project"], &input["expectedRevision"]),
        (&json!("other"), &json!(4))
    );
    assert_eq!(user.runs("delete agent").await.exit, Exit::Usage);

    let refused = Hub::start().await;
    let error = json!({"code": "INVALID", "message": "Agent support/helper refers to it", "path": "name"});
    refused.graphql(
        "DeleteDocument",
        json!({"deleteDocument": {"object": null, "errors": [error]}}),
    );
    let left = User::of(&refused).runs("delete prompt style").await;
    assert_eq!(left.exit, Exit::Invalid);
    assert!(
        left.err.starts_with(
            "name: Agent support/helper refers to it\nerror: Prompt support/style was not deleted\n  next: "
        ),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn rollback_goes_to_the_revision_before() {
    let hub = Hub::start().await;
    hub.graphql("Document", json!({"document": document("AGENT", "a", 3)}));
    hub.graphql(
        "RollBackAgent",
        json!({"rollBackAgent": {"object": document("AGENT", "a", 4), "errors": []}}),
    );
    let left = User::of(&hub).runs("rollback a").await;
    assert_eq!(
        left.out,
        "Agent support/a is at revision 4, with the content of revision 2\n"
    );
    let input = hub.asked()[1].1["input"].clone();
    assert_eq!(
        (&input["toRevision"], &input["expectedRevision"]),
        (&json!(2), &json!(3))
    );
}

#[tokio::test]
async fn every_kind_is_rolled_back() {
    let hub = Hub::start().await;
    hub.graphql("Document", json!({"document": document("PROMPT", "style", 3)}));
    let old = json!({"kind": "Prompt", "spec": {"text": "Be long."}});
    let revisions = [
        json!({"revision": 3, "digest": "c", "createdAt": "2026-01-02T11:00:00Z", "createdBy": "user:ann", "json": {}}),
        json!({"revision": 1, "digest": "a", "createdAt": "2026-01-01T11:00:00Z", "createdBy": "user:ann", "json": old}),
    ];
    hub.graphql("Revisions", json!({"revisions": page(&revisions)}));
    let mut done = applied("PROMPT", "style", "UPDATED", &Value::Null, &Value::Null);
    done["object"]["revision"] = json!(4);
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": [done], "errors": []}}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("rollback prompt style --to 1").await;
    assert_eq!(
        left.out, "Prompt support/style is at revision 4, with the content of revision 1\n",
        "{}",
        left.err
    );
    let input = hub.asked()[2].1["input"].clone();
    assert_eq!(
        (
            &input["documents"][0]["json"],
            &input["documents"][0]["expectedRevision"]
        ),
        (&old, &json!(3))
    );
    assert!(input["idempotencyKey"].is_string());
    let left = user.runs("rollback prompt style").await;
    assert_eq!(left.exit, Exit::NotFound, "there is no revision 2: {}", left.out);
    assert_eq!(user.runs("rollback pod style").await.exit, Exit::Usage);
}

#[tokio::test]
async fn revisions_and_clusters_are_listed() {
    let hub = Hub::start().await;
    let revisions = [
        json!({"revision": 2, "digest": "abcdef0123456789", "createdAt": "2026-01-02T11:00:00Z", "createdBy": "user:ann", "json": {}}),
        json!({"revision": 1, "digest": "0", "createdAt": "2026-01-01T11:00:00Z", "createdBy": null, "json": {}}),
    ];
    hub.graphql("Revisions", json!({"revisions": page(&revisions)}));
    let clusters = [
        json!({"id": "cls_1", "name": "edge-1", "labels": {"region": "eu"}, "state": "CONNECTED", "since": "2026-01-02T11:59:30Z",
        "lastSeenAt": "2026-01-02T11:59:30Z", "wantedRevision": 7, "persistedRevision": 7, "appliedRevision": 6,
        "heldDeletes": 3, "version": "0.1.0", "agentCount": 2, "certificateExpiresAt": "2026-01-05T00:00:00Z"}),
    ];
    hub.graphql("Clusters", json!({"clusters": page(&clusters)}));
    let mut user = User::of(&hub);
    insta::assert_snapshot!(user.runs("revisions agent a").await.out, @r"
    REVISION  CREATED               BY        DIGEST
    2         2026-01-02T11:00:00Z  user:ann  abcdef012345
    1         2026-01-01T11:00:00Z  -         0
    ");
    let left = user.runs("clusters").await;
    insta::assert_snapshot!(left.out, @r"
    NAME    STATE      LAST SEEN  AGENTS  REVISION  HELD       VERSION  LABELS
    edge-1  connected  30s ago    2       6 of 7    3 deletes  0.1.0    region=eu
    ");
    assert!(
        left.err
            .contains("roadstead clusters approve-deletes edge-1 --deletes 3"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn runs_are_listed_and_shown() {
    let hub = Hub::start().await;
    let run = json!({"id": "run_1", "project": "support", "agent": "a", "revision": 3, "cluster": "edge-1", "taskId": "t1", "sessionId": "s1",
        "subject": "user:ann", "startedAt": "2026-01-02T11:50:00Z", "endedAt": "2026-01-02T11:50:02.500Z", "outcome": "FAILED",
        "reason": "limit.steps", "model": "fast", "modelCalls": 2, "inputTokens": 100, "outputTokens": 20, "cachedInputTokens": 10,
        "estimated": true, "cost": {"micros": 1_230, "currency": "USD"}, "tools": [{"name": "git/log", "calls": 2, "errors": 1}], "traceId": "abc"});
    hub.graphql("Runs", json!({"runs": page(std::slice::from_ref(&run))}));
    hub.graphql("Run", json!({"run": run}));
    let mut user = User::of(&hub);
    insta::assert_snapshot!(user.runs("runs --agent a --limit 3").await.out, @r"
    RUN    AGENT      REVISION  OUTCOME               STARTED    TOOK    TOKENS  COST         BY
    run_1  support/a  3         failed (limit.steps)  10m0s ago  2500ms  ~120    0.00123 USD  user:ann
    ");
    assert_eq!(
        hub.asked()[0].1,
        json!({"project": "support", "agent": "a", "first": 3, "after": null})
    );
    let left = user.runs("runs -A --since 2h --until 30m").await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    assert_eq!(
        hub.asked()[1].1["filter"],
        json!({"startedAt": {"gte": "2026-01-02T10:00:00.000Z", "lt": "2026-01-02T11:30:00.000Z"}})
    );
    insta::assert_snapshot!(user.runs("runs get run_1").await.out);
    let left = user.runs("runs list -A -o json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&left.out).unwrap()[0]["cost"]["micros"],
        1_230
    );
}

//! Documents: apply, read, delete, roll back.

use crate::support::{APPLY, NOTES, World, key};
use roadstead_authz::{Role, Scope};
use serde_json::{Value, json};

#[tokio::test]
async fn what_is_applied_is_read_back() {
    let world = World::new().await;
    let applied = world.apply(NOTES).await;
    assert_eq!(applied["errors"], json!([]));
    let [model, agent] = applied["results"].as_array().unwrap().as_slice() else {
        panic!("{applied}")
    };
    assert_eq!(
        (&model["action"], &model["object"]["kind"]),
        (&json!("CREATED"), &json!("MODEL"))
    );
    assert_eq!(agent["clusters"], json!(["edge"]));
    assert_eq!(agent["before"], Value::Null);

    let data = world
        .ask(
            r#"{ agents(first: 10) { nodes { id name project description revision labels
                 placements { cluster wanted { revision persisted } running { phase } }
                 actions { name allowed } document { kind } runs { nodes { id } } }
                 pageInfo { hasNextPage endCursor } }
               document(kind: AGENT, project: "support", name: "notes") { id json revisions { nodes { revision createdBy } } } }"#,
        )
        .await;
    let found = &data["agents"]["nodes"][0];
    assert_eq!(found["id"], agent["object"]["id"]);
    assert_eq!(found["description"], "Writes notes.");
    assert_eq!(found["labels"], json!({"team": "docs"}));
    assert_eq!(
        found["placements"],
        json!([{"cluster": "edge", "wanted": {"revision": 1, "persisted": false}, "running": null}])
    );
    assert!(
        found["actions"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "invoke", "allowed": true}))
    );
    assert_eq!(
        data["agents"]["pageInfo"],
        json!({"hasNextPage": false, "endCursor": null})
    );
    // The author's key order survives.
    let annotations = data["document"]["json"]["metadata"]["annotations"]
        .as_object()
        .unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["zeta", "alpha"]);
    assert_eq!(
        data["document"]["revisions"]["nodes"],
        json!([{"revision": 1, "createdBy": "owner"}])
    );

    let again = world.apply(NOTES).await;
    let actions: Vec<_> = again["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["action"].clone())
        .collect();
    assert_eq!(actions, ["UNCHANGED", "UNCHANGED"]);
    assert_eq!(again["results"][1]["object"]["digest"], agent["object"]["digest"]);
}

#[tokio::test]
async fn every_problem_names_file_line_and_path_and_nothing_is_written() {
    let world = World::new().await;
    let broken = NOTES.replace("  model: fast\n", "  model: slow\n");
    let errors = world.apply(&broken).await["errors"].clone();
    assert_eq!(errors[0]["path"], "documents[1].spec.model");
    assert_eq!(
        (&errors[0]["file"], &errors[0]["line"]),
        (&json!("all.yaml"), &json!(11))
    );
    let unknown = NOTES.replace("  description:", "  descripton:");
    let errors = world.apply(&unknown).await["errors"].clone();
    assert_eq!(
        (&errors[0]["code"], &errors[0]["line"]),
        (&json!("INVALID"), &json!(9))
    );
    assert!(
        errors[0]["expected"].is_string() && errors[0]["found"].is_string(),
        "{errors}"
    );
    let syntax = world.apply("kind: [").await["errors"].clone();
    assert_eq!(syntax[0]["file"], "all.yaml");
    assert_eq!(
        world.ask("{ documents { nodes { id } } }").await["documents"]["nodes"],
        json!([])
    );
}

#[tokio::test]
async fn a_dry_run_tells_and_keeps_nothing() {
    let world = World::new().await;
    let input = json!({"project": "support", "idempotencyKey": key(), "dryRun": true,
        "sources": [{"name": "-", "text": NOTES}]});
    let data = world
        .data(&world.acme.owner, APPLY, json!({"input": input}))
        .await;
    let result = &data["applyDocuments"]["results"][1];
    assert_eq!(
        (&result["action"], &result["object"]["revision"]),
        (&json!("CREATED"), &json!(1))
    );
    assert_eq!(result["object"]["id"], "agt_00000000000000000000000000000000");
    assert_eq!(result["object"]["json"], result["after"]);
    assert_eq!(
        world.ask("{ documents { nodes { id } } }").await["documents"]["nodes"],
        json!([])
    );
}

fn prompt(text: &str) -> Value {
    json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Prompt", "metadata": {"name": "style"},
        "spec": {"text": text}})
}

async fn apply_value(world: &World, key: &str, text: &str, expected: Option<u64>) -> Value {
    let input = json!({"project": "support", "idempotencyKey": key,
        "documents": [{"json": prompt(text), "source": "style.json", "expectedRevision": expected}]});
    let data = world
        .data(&world.acme.owner, APPLY, json!({"input": input}))
        .await;
    data["applyDocuments"].clone()
}

#[tokio::test]
async fn a_repeated_key_changes_state_once_and_other_input_is_a_conflict() {
    let world = World::new().await;
    let key = key();
    let first = apply_value(&world, &key, "one", None).await;
    for _ in 0..2 {
        assert_eq!(apply_value(&world, &key, "one", None).await, first);
    }
    let other = apply_value(&world, &key, "two", None).await;
    assert_eq!(
        (&other["errors"][0]["code"], &other["results"]),
        (&json!("CONFLICT"), &json!([]))
    );
    let data = world
        .ask(r#"{ revisions(kind: PROMPT, project: "support", name: "style") { nodes { revision } } }"#)
        .await;
    assert_eq!(data["revisions"]["nodes"], json!([{"revision": 1}]));
}

#[tokio::test]
async fn an_expected_revision_that_is_not_there_is_a_conflict() {
    let world = World::new().await;
    apply_value(&world, &key(), "one", Some(0)).await;
    let again = apply_value(&world, &key(), "two", Some(0)).await;
    assert_eq!(again["errors"][0]["code"], "CONFLICT");
    let right = apply_value(&world, &key(), "two", Some(1)).await;
    assert_eq!(right["results"][0]["action"], "UPDATED");
    assert_eq!(right["results"][0]["before"]["spec"]["text"], "one");
}

#[tokio::test]
async fn an_agent_is_rolled_back_and_deleted() {
    let world = World::new().await;
    world.apply(NOTES).await;
    world
        .apply(&NOTES.replace("Write notes.", "Write more notes."))
        .await;
    let back = "mutation($input: RollBackAgentInput!) { rollBackAgent(input: $input) {
        object { revision digest json } errors { code message } } }";
    let input = |to: u64| {
        json!({"input": {"project": "support", "name": "notes", "toRevision": to,
        "idempotencyKey": key()}})
    };
    let owner = &world.acme.owner;
    let data = world.data(owner, back, input(1)).await;
    assert_eq!(data["rollBackAgent"]["object"]["revision"], 3);
    assert_eq!(
        data["rollBackAgent"]["object"]["json"]["spec"]["instructions"],
        "Write notes."
    );
    let current = world
        .ask(r#"{ document(kind: AGENT, project: "support", name: "notes") { revision digest } }"#)
        .await;
    assert_eq!(
        current["document"]["digest"],
        data["rollBackAgent"]["object"]["digest"]
    );
    let data = world.data(owner, back, input(9)).await;
    assert_eq!(data["rollBackAgent"]["errors"][0]["code"], "NOT_FOUND");

    let delete = "mutation($input: DeleteDocumentInput!) { deleteDocument(input: $input) {
        object { name revision } errors { code message } } }";
    let input = |kind: &str, name: &str| {
        json!({"input": {"kind": kind, "project": "support", "name": name,
        "idempotencyKey": key()}})
    };
    let data = world.data(owner, delete, input("MODEL", "fast")).await;
    assert_eq!(data["deleteDocument"]["errors"][0]["code"], "CONFLICT", "{data}");
    let data = world.data(owner, delete, input("AGENT", "notes")).await;
    assert_eq!(
        data["deleteDocument"]["object"],
        json!({"name": "notes", "revision": 3})
    );
    let gone = world
        .ask(r#"{ agentByName(project: "support", name: "notes") { id } }"#)
        .await;
    assert_eq!(gone["agentByName"], Value::Null);
}

#[tokio::test]
async fn pages_are_walked_and_a_cursor_dies_with_its_filter() {
    let world = World::new().await;
    let many: Vec<String> = (0..30)
        .map(|n| format!("apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: p{n:02}}}\nspec: {{text: x}}\n"))
        .collect();
    assert_eq!(world.apply(&many.join("---\n")).await["errors"], json!([]));
    let query = "query($first: Int, $after: String, $kind: DocumentKind) {
        documents(kind: $kind, first: $first, after: $after) { nodes { name } pageInfo { hasNextPage endCursor } } }";
    let (mut names, mut after) = (Vec::new(), Value::Null);
    loop {
        let variables = json!({"first": 12, "after": after, "kind": "PROMPT"});
        let page = world.data(&world.acme.owner, query, variables).await["documents"].clone();
        names.extend(
            page["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n["name"].clone()),
        );
        after = page["pageInfo"]["endCursor"].clone();
        if page["pageInfo"]["hasNextPage"] == false {
            break;
        }
    }
    assert_eq!(names.len(), 30);
    let page = world.data(&world.acme.owner, query, json!({"first": 12})).await;
    let cursor = &page["documents"]["pageInfo"]["endCursor"];
    for (caller, variables) in [
        (
            &world.acme.owner,
            json!({"first": 12, "after": cursor, "kind": "AGENT"}),
        ),
        (&world.globex.owner, json!({"first": 12, "after": cursor})),
        (&world.acme.owner, json!({"first": 12, "after": "nonsense"})),
        (&world.acme.owner, json!({"first": 101})),
        (&world.acme.owner, json!({"first": 0})),
    ] {
        let answer = world.answer(caller, query, variables.clone()).await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "INVALID",
            "{variables}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_viewer_reads_and_is_told_what_it_may_not_do() {
    let world = World::new().await;
    world.apply(NOTES).await;
    let viewer = world.holder(Role::Viewer, Scope::Read).await;
    let data = world
        .data(
            &viewer,
            r#"{ viewer { tenant role scopes } agents { nodes { actions { name allowed reason } } } }"#,
            Value::Null,
        )
        .await;
    assert_eq!(
        data["viewer"],
        json!({"tenant": "acme", "role": "VIEWER", "scopes": ["READ"]})
    );
    let actions = data["agents"]["nodes"][0]["actions"].as_array().unwrap();
    let write = actions.iter().find(|a| a["name"] == "write").unwrap();
    assert_eq!(write["allowed"], false);
    assert!(write["reason"].as_str().unwrap().contains("editor"));
    let input =
        json!({"project": "support", "idempotencyKey": key(), "sources": [{"name": "-", "text": NOTES}]});
    let data = world.data(&viewer, APPLY, json!({"input": input})).await;
    assert_eq!(data["applyDocuments"]["errors"][0]["code"], "FORBIDDEN");
    let audit = world
        .ask("{ auditRecords(first: 1) { nodes { action decision actor } } }")
        .await;
    assert_eq!(audit["auditRecords"]["nodes"][0]["decision"], "deny", "{audit}");
}

/// The operations that the CLI sends are operations of this schema.
#[tokio::test]
async fn the_clis_operations_are_served() {
    let world = World::new().await;
    world.apply(NOTES).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-operations.graphql");
    let operations = std::fs::read_to_string(path).unwrap();
    for (name, variables) in [
        ("Clusters", json!({"first": 10})),
        ("Agents", json!({"first": 10})),
        ("AgentByName", json!({"project": "support", "name": "notes"})),
        ("Documents", json!({"kind": "AGENT", "json": true, "first": 10})),
        (
            "Document",
            json!({"kind": "AGENT", "project": "support", "name": "notes"}),
        ),
        (
            "Revisions",
            json!({"kind": "AGENT", "project": "support", "name": "notes", "json": true, "first": 5}),
        ),
        ("ClusterByName", json!({"name": "edge-1"})),
        ("Projects", json!({"first": 5})),
        ("ApiTokens", json!({"first": 5})),
        ("AuditRecords", json!({"first": 5})),
        ("Runs", json!({"first": 5})),
        ("Run", json!({"id": "run_00000000000000000000000000000000"})),
        ("Node", json!({"id": "pmt_00000000000000000000000000000000"})),
    ] {
        let text = operation(&operations, name);
        let answer = world.answer(&world.acme.owner, &text, variables).await;
        assert!(answer.get("errors").is_none(), "{name}: {answer}");
    }
    for name in [
        "ApplyDocuments",
        "DeleteDocument",
        "RollBackAgent",
        "CreateCluster",
        "CreateJoinToken",
        "RevokeClusterCertificate",
        "DeleteCluster",
        "ApproveDeletes",
        "AcceptTimeline",
        "AdmitClusterCertificate",
        "CreateProject",
        "CreateApiToken",
        "RevokeApiToken",
        "AgentLogs",
    ] {
        let text = operation(&operations, name);
        let answer = world.answer(&world.acme.owner, &text, json!({})).await;
        // Every field is known: what is missing is the variables, or the WebSocket.
        let message = answer["errors"][0]["message"].as_str().unwrap();
        assert!(
            message.contains("is not defined") || message.contains("WebSocket"),
            "{name}: {answer}"
        );
    }
}

/// The text of one operation with the fragments it uses, as the CLI sends it.
fn operation(document: &str, name: &str) -> String {
    let lines = document.lines().map(|line| line.split('#').next().unwrap());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let mut definitions = Vec::new();
    let (mut depth, mut start) = (0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => {
                definitions.push(text[start..=at].trim());
                (depth, start) = (0, at + 1);
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    let named = |d: &&&str| d.split(|c: char| !c.is_alphanumeric()).nth(1) == Some(name);
    let mut wanted = vec![*definitions.iter().find(named).unwrap()];
    for fragment in definitions.iter().filter(|d| d.starts_with("fragment ")) {
        let name = fragment.split_whitespace().nth(1).unwrap();
        if wanted[0].contains(&format!("...{name}")) {
            wanted.push(fragment);
        }
    }
    wanted.join("\n")
}

#[tokio::test]
async fn s20_an_answer_has_a_limit_in_bytes() {
    let world = World::new().await;
    for n in 0..3 {
        let text = format!("{n}{}", "x".repeat(900_000));
        assert_eq!(
            apply_value(&world, &key(), &text, None).await["errors"],
            json!([])
        );
    }
    let aliases: String = (0..15).map(|n| format!("a{n}: json ")).collect();
    let query = format!(
        r#"{{ revisions(kind: PROMPT, project: "support", name: "style") {{ nodes {{ revision {aliases} }} }} }}"#
    );
    let answer = world.answer(&world.acme.owner, &query, Value::Null).await;
    assert_eq!(
        answer["errors"][0]["extensions"]["code"], "LIMIT",
        "{}",
        answer["errors"]
    );
    let plain = query.replace(&aliases, "json");
    let data = world.ask(&plain).await;
    assert_eq!(data["revisions"]["nodes"].as_array().map(Vec::len), Some(3));
    // A batch shares the limit as well.
    let third = r#"{ documents(first: 1) { nodes { revisions(first: 3) { nodes { a: json b: json c: json d: json e: json } } } } }"#;
    let answer = world.batch(&world.acme.owner, &[third; 3]).await;
    assert!(answer[0]["data"].is_object() && answer[1]["data"].is_object());
    assert_eq!(
        answer[2]["errors"][0]["extensions"]["code"], "LIMIT",
        "{}",
        answer[2]["errors"]
    );
}

#[tokio::test]
async fn s20_the_results_of_a_large_set_are_counted_for_each_document() {
    let world = World::new().await;
    let many: Vec<Value> = (0..60)
        .map(|n| {
            let mut prompt = prompt("x");
            prompt["metadata"]["name"] = json!(format!("p{n}"));
            json!({"json": prompt})
        })
        .collect();
    let input = json!({"project": "support", "idempotencyKey": key(), "documents": many});
    let greedy = "mutation($input: ApplyDocumentsInput!) { applyDocuments(input: $input) {
        results { object { revisions(first: 100) { nodes { json } } } } errors { code message } } }";
    let data = world
        .data(&world.acme.owner, greedy, json!({"input": input}))
        .await;
    assert_eq!(data["applyDocuments"]["errors"][0]["code"], "LIMIT", "{data}");
    let none = world.ask("{ documents { nodes { id } } }").await;
    assert_eq!(none["documents"]["nodes"], json!([]));
    let data = world
        .data(&world.acme.owner, APPLY, json!({"input": input}))
        .await;
    assert_eq!(
        data["applyDocuments"]["results"].as_array().map(Vec::len),
        Some(60)
    );
}

#[tokio::test]
async fn s31_a_json_value_may_be_as_large_as_a_file() {
    let world = World::new().await;
    let refused = apply_value(&world, &key(), &"x".repeat(1 << 20), None).await;
    assert_eq!(refused["errors"][0]["code"], "LIMIT", "{refused}");
}

#[tokio::test]
async fn s31_nothing_is_parsed_for_who_may_not_write() {
    let world = World::new().await;
    let viewer = world.holder(Role::Viewer, Scope::Read).await;
    let input =
        json!({"project": "support", "idempotencyKey": key(), "sources": [{"name": "-", "text": "kind: ["}]});
    let data = world.data(&viewer, APPLY, json!({"input": input})).await;
    assert_eq!(data["applyDocuments"]["errors"][0]["code"], "FORBIDDEN", "{data}");
    let records = world.ask("{ auditRecords { nodes { action decision } } }").await;
    assert_eq!(
        records["auditRecords"]["nodes"][0],
        json!({"action": "write", "decision": "deny"})
    );
}

#[tokio::test]
async fn s20_large_answers_that_nobody_takes_hold_a_tenants_own_share() {
    let world = World::new().await;
    let text = "x".repeat(900_000);
    assert_eq!(
        apply_value(&world, &key(), &text, None).await["errors"],
        json!([])
    );
    let aliases: String = (0..15).map(|n| format!("a{n}: json ")).collect();
    let query = format!(
        r#"{{ revisions(kind: PROMPT, project: "support", name: "style") {{ nodes {{ {aliases} }} }} }}"#
    );
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(world.respond(&world.acme.owner, json!({"query": query})).await);
    }
    let answer = world.answer(&world.acme.owner, &query, Value::Null).await;
    assert_eq!(
        answer["errors"][0]["extensions"]["code"], "LIMIT",
        "{}",
        answer["errors"]
    );
    drop(waiting);
    world.ask(&query).await;
}

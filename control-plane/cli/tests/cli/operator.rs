//! What an operator types: clusters, projects, tokens, the audit log.

use super::{Exit, Hub, User, page};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;

const JOIN: &str = "rsj_join-secret";
const API: &str = "rst_api-secret";

fn cluster(name: &str) -> Value {
    json!({"id": "cls_1", "name": name, "labels": {}, "state": "NEVER_SEEN", "since": "2026-01-02T11:00:00Z",
        "agentCount": 0})
}

pub(super) fn token() -> Value {
    json!({"id": "tok_1", "name": "ci", "role": "EDITOR", "scopes": ["READ", "WRITE"], "createdAt": "2026-01-02T11:00:00Z",
        "createdBy": "user:ann", "expiresAt": "2026-04-02T12:00:00Z", "lastUsedAt": null, "revokedAt": null})
}

/// The input of a request without its key, which is there.
fn keyed(hub: &Hub, n: usize) -> Value {
    let mut input = hub.asked()[n].1["input"].clone();
    let key = input.as_object_mut().unwrap().remove("idempotencyKey");
    assert!(key.is_some_and(|key| key.is_string()));
    input
}

fn joined(operation: &str) -> Value {
    json!({operation: {"object": cluster("edge-1"), "errors": [],
        "joinToken": {"token": JOIN, "expiresAt": "2026-01-02T13:00:00Z"}}})
}

#[tokio::test]
async fn a_cluster_is_registered_and_its_token_goes_into_a_file() {
    let hub = Hub::start().await;
    hub.graphql("CreateCluster", joined("createCluster"));
    let mut user = User::of(&hub);
    let file = user.folder.path().join("edge-1.token");
    let words = [
        "clusters",
        "create",
        "edge-1",
        "--label",
        "region=eu",
        "--label",
        "a=b=c",
        "--token-file",
    ];
    let words = [&words[..], &[file.to_str().unwrap()]].concat();
    let left = user.runs_words(&words).await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    insta::assert_snapshot!(format!("{}{}", left.out, left.err), @r#"
    token in ~/edge-1.token
    cluster edge-1: its join token works once, until 2026-01-02T13:00:00Z
    next, where the agents are to run: roadstead-agent run --hub 127.0.0.1:8443 --state DIR --join-token-file ~/edge-1.token
    (127.0.0.1:8443 is a guess: --hub of the hub's fleet port, if it listens elsewhere)
    "#);
    assert!(!format!("{}{}", left.out, left.err).contains(JOIN));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), JOIN);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let input = json!({"name": "edge-1", "labels": {"region": "eu", "a": "b=c"}});
    assert_eq!(keyed(&hub, 0), input);

    // Where the token has no place, none is made.
    let left = user.runs_words(&words).await;
    assert_eq!((left.exit, hub.asked().len()), (Exit::Failed, 1), "{}", left.err);
    assert!(left.err.contains("is there already"), "{}", left.err);
}

#[tokio::test]
async fn a_token_without_a_file_is_alone_on_the_output_and_warned_of() {
    let hub = Hub::start().await;
    hub.graphql("ClusterByName", json!({"clusterByName": cluster("edge-1")}));
    hub.graphql("CreateJoinToken", joined("createJoinToken"));
    let mut user = User::of(&hub);
    let left = user.runs("clusters join edge-1 --hub hub.example.com:9443").await;
    assert_eq!(left.out, format!("{JOIN}\n"));
    assert!(left.err.starts_with("warning: this is a secret"), "{}", left.err);
    assert!(
        left.err
            .contains("roadstead-agent run --hub hub.example.com:9443 --state DIR --join-token-file FILE"),
        "{}",
        left.err
    );
    assert!(!left.err.contains(JOIN), "{}", left.err);
    assert_eq!(keyed(&hub, 1), json!({"cluster": "cls_1"}));
    let value: Value = serde_json::from_str(&user.runs("clusters join edge-1 -o json").await.out).unwrap();
    assert_eq!(
        (&value["joinToken"], &value["cluster"]["name"]),
        (&json!(JOIN), &json!("edge-1"))
    );
}

#[tokio::test]
async fn a_refused_cluster_leaves_no_file() {
    let hub = Hub::start().await;
    let error = json!({"code": "CONFLICT", "message": "there is a cluster edge-1", "path": "name"});
    hub.graphql(
        "CreateCluster",
        json!({"createCluster": {"object": null, "joinToken": null, "errors": [error]}}),
    );
    hub.graphql("ClusterByName", json!({"clusterByName": null}));
    let mut user = User::of(&hub);
    let file = user.folder.path().join("token");
    let words = [
        "clusters",
        "create",
        "edge-1",
        "--token-file",
        file.to_str().unwrap(),
    ];
    let left = user.runs_words(&words).await;
    assert_eq!(
        (left.exit, file.exists()),
        (Exit::Conflict, false),
        "{}",
        left.err
    );
    for verb in ["join", "revoke", "delete", "approve-deletes --deletes 1"] {
        let left = user.runs(&format!("clusters {verb} edge-1")).await;
        assert_eq!(left.exit, Exit::NotFound, "{verb}: {}", left.err);
        assert!(left.err.contains("next: roadstead clusters"), "{}", left.err);
    }
}

#[tokio::test]
async fn a_secret_that_was_lost_says_how_to_get_another() {
    let hub = Hub::start().await;
    let lost = json!({"object": cluster("edge-1"), "joinToken": null, "errors": []});
    hub.graphql("CreateCluster", json!({ "createCluster": lost }));
    hub.graphql(
        "CreateApiToken",
        json!({"createApiToken": {"object": token(), "secret": null, "errors": []}}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("clusters create edge-1").await;
    assert_eq!(left.exit, Exit::Failed);
    assert!(
        left.err
            .contains("next: get another: roadstead clusters join edge-1"),
        "{}",
        left.err
    );
    let left = user.runs("tokens create ci --role editor --scope read").await;
    assert_eq!(left.exit, Exit::Failed);
    assert!(
        left.err.contains("next: roadstead tokens revoke tok_1"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn clusters_are_revoked_deleted_and_their_held_deletes_approved() {
    let hub = Hub::start().await;
    hub.graphql("ClusterByName", json!({"clusterByName": cluster("edge-1")}));
    hub.graphql(
        "RevokeClusterCertificate",
        json!({"revokeClusterCertificate": {"revoked": 2, "errors": []}}),
    );
    hub.graphql(
        "DeleteCluster",
        json!({"deleteCluster": {"object": cluster("edge-1"), "errors": []}}),
    );
    hub.graphql("ApproveDeletes", json!({"approveDeletes": {"errors": []}}));
    let mut user = User::of(&hub);
    let left = user.runs("clusters revoke edge-1 --serial 0a").await;
    assert_eq!(left.out, "2 certificates of edge-1 revoked\n", "{}", left.err);
    let left = user.runs("clusters approve-deletes edge-1 --deletes 14").await;
    assert_eq!(
        left.out, "cluster edge-1: 14 deletions approved\n",
        "{}",
        left.err
    );
    let left = user.runs("clusters delete edge-1").await;
    assert_eq!(left.out, "cluster edge-1: deleted\n", "{}", left.err);
    let asked = hub.asked();
    let revoked = &asked[1].1["input"];
    assert_eq!(
        (&revoked["cluster"], &revoked["serial"]),
        (&json!("cls_1"), &json!("0a"))
    );
    assert!(revoked["idempotencyKey"].is_string());
    assert_eq!(
        (&asked[3].1["input"]["cluster"], &asked[3].1["input"]["deletes"]),
        (&json!("cls_1"), &json!(14))
    );
    assert!(asked[3].1["input"]["idempotencyKey"].is_string());
    // How many were seen is not guessed.
    assert_eq!(
        user.runs("clusters approve-deletes edge-1").await.exit,
        Exit::Usage
    );
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let hub = Hub::start().await;
    hub.graphql(
        "CreateApiToken",
        json!({"createApiToken": {"object": token(), "secret": API, "errors": []}}),
    );
    let mut revoked = token();
    revoked["revokedAt"] = json!("2026-01-02T11:30:00Z");
    hub.graphql(
        "ApiTokens",
        json!({"apiTokens": page(&[token(), revoked.clone()])}),
    );
    hub.graphql(
        "RevokeApiToken",
        json!({"revokeApiToken": {"object": revoked, "errors": []}}),
    );
    let mut user = User::of(&hub);
    let left = user
        .runs("tokens create ci --role editor --scope read --scope write --days 30")
        .await;
    assert_eq!(left.out, format!("{API}\n"), "{}", left.err);
    assert!(
        left.err.contains("roadstead tokens revoke tok_1") && !left.err.contains(API),
        "{}",
        left.err
    );
    let input =
        json!({"name": "ci", "role": "EDITOR", "scopes": ["READ", "WRITE"], "lifetimeSeconds": 2_592_000});
    assert_eq!(keyed(&hub, 0), input);
    insta::assert_snapshot!(user.runs("tokens").await.out, @r#"
    ID     NAME  ROLE    SCOPES      STATE    EXPIRES               LAST USED  BY
    tok_1  ci    editor  read,write  good     2026-04-02T12:00:00Z  never      user:ann
    tok_1  ci    editor  read,write  revoked  2026-04-02T12:00:00Z  never      user:ann
    "#);
    assert_eq!(
        user.runs("tokens revoke tok_1").await.out,
        "token tok_1 (ci) revoked\n"
    );
    for wrong in [
        "tokens create ci --role editor",
        "tokens create ci --role king --scope read",
        "tokens create ci --role editor --scope read --days 367",
    ] {
        assert_eq!(user.runs(wrong).await.exit, Exit::Usage, "{wrong}");
    }
}

#[tokio::test]
async fn a_revoked_token_says_what_ends_with_it() {
    let hub = Hub::start().await;
    let answer =
        |also: u64| json!({"revokeApiToken": {"object": token(), "alsoRevoked": also, "errors": []}});
    hub.graphql("RevokeApiToken", answer(1));
    hub.graphql("RevokeApiToken", answer(3));
    hub.graphql("RevokeApiToken", answer(3));
    let own = json!({"code": "CONFLICT", "message": "the token tok_1 issued the one that you use"});
    hub.graphql(
        "RevokeApiToken",
        json!({"revokeApiToken": {"object": null, "alsoRevoked": 0, "errors": [own]}}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("tokens revoke tok_1").await;
    assert_eq!(left.out, "token tok_1 (ci) revoked, and 1 token that it issued\n");
    assert!(left.err.contains("roadstead audit names each"), "{}", left.err);
    let left = user.runs("tokens revoke tok_1 --keep-issued").await;
    assert!(
        left.out.contains("3 tokens that it issued, or that these did"),
        "{}",
        left.out
    );
    let left = user.runs("tokens revoke tok_1 -o json").await;
    let value: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!(
        (&value["alsoRevoked"], &value["token"]["id"]),
        (&json!(3), &json!("tok_1"))
    );
    let asked = hub.asked();
    assert_eq!(asked[0].1["input"]["keepIssued"], false);
    assert_eq!(asked[1].1["input"]["keepIssued"], true);
    let left = user.runs("tokens revoke tok_1").await;
    assert_eq!(left.exit, Exit::Conflict);
    assert!(
        left.err
            .contains("next: roadstead tokens revoke tok_1 --keep-issued ends it alone"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn a_revoked_token_names_the_clusters_that_it_let_in() {
    let hub = Hub::start().await;
    let cluster = json!({"id": "clu_1", "name": "edge\u{1b}[2J"});
    let answer = json!({"revokeApiToken": {"object": token(), "alsoRevoked": 0, "joinTokensEnded": 2,
        "enrolledClusters": [cluster], "enrolledClusterCount": 3, "errors": []}});
    hub.graphql("RevokeApiToken", answer.clone());
    hub.graphql("RevokeApiToken", answer);
    let mut user = User::of(&hub);
    let left = user.runs("tokens revoke tok_1").await;
    assert_eq!(left.out, "token tok_1 (ci) revoked\n");
    for said in [
        "2 join tokens that nobody had used ended with it",
        "joined by it and stays; to shut it out: roadstead clusters revoke edge",
        "2 more clusters joined by it and stay",
    ] {
        assert!(left.err.contains(said), "{said}: {}", left.err);
    }
    assert!(!left.err.contains('\u{1b}'), "{}", left.err);
    let left = user.runs("tokens revoke tok_1 -o json").await;
    let value: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!(value["joinTokensEnded"], 2);
    assert_eq!(value["enrolledClusters"][0]["id"], "clu_1");
}

#[tokio::test]
async fn projects_and_the_audit_log_are_shown() {
    let hub = Hub::start().await;
    let project = json!({"id": "prj_1", "name": "web", "createdAt": "2026-01-02T11:00:00Z"});
    hub.graphql(
        "Projects",
        json!({"projects": page(std::slice::from_ref(&project))}),
    );
    hub.graphql(
        "CreateProject",
        json!({"createProject": {"object": project, "errors": []}}),
    );
    let record = json!({"sequence": 7, "time": "2026-01-02T11:59:00Z", "actor": "user:ann", "onBehalfOf": "",
        "action": "apply", "object": "Agent support/a", "revision": 3, "decision": "allowed", "grant": "owner",
        "detail": {"digest": "abc", "fields": ["spec"]}, "sourceIp": "127.0.0.1", "sourceClient": "graphql",
        "requestId": "r", "traceId": null, "hash": "00"});
    hub.graphql("AuditRecords", json!({"auditRecords": page(&[record])}));
    let mut user = User::of(&hub);
    assert_eq!(user.runs("projects create web").await.out, "project web made\n");
    let mut said = user.runs("projects").await.out;
    said.push_str(&user.runs("audit --limit 5").await.out);
    insta::assert_snapshot!(said, @r#"
    NAME  CREATED
    web   1h0m ago
    SEQUENCE  TIME                  ACTOR     ACTION  OBJECT           DECISION  FROM               DETAIL
    7         2026-01-02T11:59:00Z  user:ann  apply   Agent support/a  allowed   127.0.0.1 graphql  digest=abc fields=["spec"]
    "#);
    assert_eq!(hub.asked()[2].1["first"], 5);
    assert_eq!(hub.asked()[2].1["filter"], json!(null));
    let narrowed = [
        "audit",
        "--actor",
        "token:tok_1",
        "--action",
        "revoke token",
        "--object",
        "tok_2",
        "--decision",
        "deny",
        "--since",
        "1h",
        "--until",
        "2026-01-02T11:59:00Z",
    ];
    assert_eq!(user.runs_words(&narrowed).await.exit, Exit::Done);
    assert_eq!(
        hub.asked()[3].1["filter"],
        json!({"actor": {"eq": "token:tok_1"}, "action": {"eq": "revoke token"}, "object": {"eq": "tok_2"},
            "decision": {"eq": "deny"},
            "time": {"gte": "2026-01-02T11:00:00.000Z", "lt": "2026-01-02T11:59:00.000Z"}})
    );
    assert_eq!(user.runs("audit --decision maybe").await.exit, Exit::Usage);
    let value: Value = serde_json::from_str(&user.runs("audit -o json").await.out).unwrap();
    assert_eq!(value[0]["hash"], "00");
}

fn command(cluster: &str, result: &Value) -> Value {
    let state = if result.is_null() { "SENT" } else { "DONE" };
    json!({"id": format!("cmd_{cluster}"), "kind": "RESTART_ENGINE", "cluster": cluster, "project": "support", "agent": "a",
        "createdBy": "token:tok_1", "createdAt": "2026-01-02T11:00:00Z", "expiresAt": "2026-01-02T11:05:00Z",
        "state": state, "result": result})
}

fn came(code: &str, detail: &str) -> Value {
    json!({"code": code, "detail": detail, "time": "2026-01-02T11:00:01Z"})
}

#[tokio::test]
async fn an_agent_is_restarted_and_the_results_decide_the_exit_code() {
    let hub = Hub::start().await;
    let made = [command("edge", &Value::Null), command("west", &Value::Null)];
    hub.graphql(
        "RestartAgent",
        json!({"restartAgent": {"objects": made, "errors": []}}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("restart a").await;
    insta::assert_snapshot!(format!("{}{}", left.out, left.err), @r"
    agent support/a, cluster edge: command cmd_edge
    agent support/a, cluster west: command cmd_west
    what comes of it: roadstead commands --agent support/a
    ");
    assert_eq!(left.exit, Exit::Done);
    assert_eq!(
        keyed(&hub, 0),
        json!({"project": "support", "name": "a", "cluster": null})
    );

    let hub = Hub::start().await;
    let error =
        json!({"code": "CONFLICT", "message": "the cluster agent of edge does not know this command"});
    hub.graphql(
        "RestartAgent",
        json!({"restartAgent": {"objects": [], "errors": [error]}}),
    );
    let left = User::of(&hub).runs("restart a").await;
    assert_eq!(
        (left.exit, left.out.as_str()),
        (Exit::Conflict, ""),
        "{}",
        left.err
    );
    assert!(left.err.contains("does not know this command"), "{}", left.err);
}

#[tokio::test]
async fn whoever_waits_for_a_restart_is_told_by_the_exit_code_what_came_of_it() {
    for (code, wanted) in [
        ("SUCCEEDED", Exit::Done),
        ("FAILED", Exit::Failed),
        ("UNKNOWN", Exit::Failed),
        ("EXPIRED", Exit::Unavailable),
    ] {
        let hub = Hub::start().await;
        let open = command("edge", &Value::Null);
        hub.graphql(
            "RestartAgent",
            json!({"restartAgent": {"objects": [open.clone()], "errors": []}}),
        );
        hub.graphql("Command", json!({"command": open}));
        let ended = command("edge", &came(code, "so it was"));
        hub.graphql("Command", json!({"command": ended}));
        let mut user = User::of(&hub);
        let left = user.runs("restart other/a --cluster edge --wait").await;
        assert_eq!(left.exit, wanted, "{code}: {}", left.err);
        let said = format!(
            "agent support/a, cluster edge: {}: so it was\n",
            code.to_lowercase()
        );
        assert_eq!(left.out, said);
        assert_eq!(
            keyed(&hub, 0),
            json!({"project": "other", "name": "a", "cluster": "edge"})
        );
        assert_eq!(hub.asked()[2].1["id"], "cmd_edge");
    }
}

#[tokio::test]
async fn commands_are_listed_with_what_came_of_them() {
    let hub = Hub::start().await;
    let ended = command("west", &came("UNKNOWN", "the cluster agent ended while it ran"));
    let commands = [command("edge", &Value::Null), ended];
    hub.graphql("Commands", json!({"commands": page(&commands)}));
    let left = User::of(&hub).runs("commands --agent a --cluster edge").await;
    insta::assert_snapshot!(left.out, @r"
    COMMAND   KIND            AGENT      CLUSTER  STATE    MADE      BY           DETAIL
    cmd_edge  restart engine  support/a  edge     sent     1h0m ago  token:tok_1
    cmd_west  restart engine  support/a  west     unknown  1h0m ago  token:tok_1  the cluster agent ended while it ran
    ");
    let asked = &hub.asked()[0].1;
    assert_eq!(
        (&asked["project"], &asked["agent"], &asked["cluster"]),
        (&json!("support"), &json!("a"), &json!("edge"))
    );
}

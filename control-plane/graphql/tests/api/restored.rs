//! After the hub's database was restored from a backup: what waits for a person, and what a person may decide.

use crate::support::World;
use roadstead_authz::{Role, Scope, TenantContext};
use roadstead_domain::{ClusterId, FakeClock, SeededRandom};
use serde_json::{Value, json};

const AHEAD: &str = r#"UPDATE cluster SET timeline_cursor = 40,
    timeline = '{"sent":3,"deleted":["agt_gone"],"deletes":1,"replaced":[["agt_newer",5]]}'"#;
const NOT_LISTED: &str = "UPDATE cluster SET timeline_cursor = 40, timeline = NULL";
const UNKNOWN: &str =
    "INSERT INTO cluster_certificate (tenant_id, cluster_id, serial, issued_ms, not_after_ms, revoked_ms,
    unknown_ms) SELECT tenant_id, id, '0a', 1, 1800000100000, 1800000000000, 1800000000000 FROM cluster";

/// Both mutations, with the input that takes effect.
const BOTH: [(&str, &str, &str); 2] = [
    ("acceptTimeline", "cursor: 40", "accept timeline"),
    ("admitClusterCertificate", r#"serial: "0a""#, "admit certificate"),
];

async fn edge(world: &World) -> String {
    let found = world.ask(r#"{ clusterByName(name: "edge") { id } }"#).await;
    found["clusterByName"]["id"].as_str().unwrap().to_owned()
}

/// Sends the mutation; answers with its payload.
async fn send(world: &World, caller: &TenantContext, field: &str, cluster: &str, rest: &str) -> Value {
    let query = format!(
        "mutation {{ {field}(input: {{cluster: {cluster:?}, {rest}}}) {{ object {{ id timeline {{ cursor }}
         unknownCertificates {{ serial }} }} errors {{ code message path }} }} }}"
    );
    world.data(caller, &query, Value::Null).await[field].clone()
}

async fn records(world: &World, action: &str) -> Vec<Value> {
    let log = world
        .ask("{ auditRecords(first: 100) { nodes { action object decision detail } } }")
        .await;
    let nodes = log["auditRecords"]["nodes"].as_array().unwrap().clone();
    nodes
        .into_iter()
        .filter(|record| record["action"] == action)
        .collect()
}

#[tokio::test]
async fn what_waits_is_shown_and_an_owner_lets_it_go_on() {
    let world = World::new().await;
    let id = edge(&world).await;
    world.database.tamper(AHEAD).await;
    world.database.tamper(UNKNOWN).await;
    let shown = world
        .ask(
            r#"{ clusterByName(name: "edge") {
                timeline { cursor known sent deletes deleted replaced { document revision } }
                unknownCertificates { serial seenAt expiresAt } certificateExpiresAt } }"#,
        )
        .await;
    assert_eq!(
        shown["clusterByName"],
        json!({"timeline": {"cursor": 40, "known": true, "sent": 3, "deletes": 1, "deleted": ["agt_gone"],
            "replaced": [{"document": "agt_newer", "revision": 5}]},
            "unknownCertificates": [{"serial": "0a", "seenAt": "2027-01-15T08:00:00+00:00",
            "expiresAt": "2027-01-15T08:01:40+00:00"}], "certificateExpiresAt": null})
    );
    let owner = &world.acme.owner;
    let accepted = send(&world, owner, "acceptTimeline", &id, "cursor: 40").await;
    assert_eq!(
        accepted,
        json!({"object": {"id": id, "timeline": null, "unknownCertificates": [{"serial": "0a"}]}, "errors": []})
    );
    let admitted = send(&world, owner, "admitClusterCertificate", &id, r#"serial: "0a""#).await;
    assert_eq!(
        admitted,
        json!({"object": {"id": id, "timeline": null, "unknownCertificates": []}, "errors": []})
    );
    let accepted = records(&world, "accept timeline").await;
    let detail = json!({"cursor": 40, "sent": 3, "deletes": 1, "replaced": 1});
    assert_eq!(
        accepted,
        [json!({"action": "accept timeline", "object": id, "decision": "allow", "detail": detail})]
    );
    let admitted = records(&world, "admit certificate").await;
    assert_eq!(
        (admitted.len(), &admitted[0]["detail"]),
        (1, &json!({"serial": "0a"}))
    );
    // The hub counts on from where the cluster is.
    let after = world
        .ask(r#"{ clusterByName(name: "edge") { wantedRevision certificateExpiresAt } }"#)
        .await;
    assert_eq!(
        after["clusterByName"],
        json!({"wantedRevision": 41, "certificateExpiresAt": "2027-01-15T08:01:40+00:00"})
    );
}

#[tokio::test]
async fn one_request_that_admits_shows_what_is_left_after_it() {
    let world = World::new().await;
    let id = edge(&world).await;
    world.database.tamper(UNKNOWN).await;
    world.database.tamper(&UNKNOWN.replace("'0a'", "'0b'")).await;
    let admit = |alias: &str, serial: &str| {
        format!(
            "{alias}: admitClusterCertificate(input: {{cluster: {id:?}, serial: {serial:?}}}) {{
             object {{ unknownCertificates {{ serial }} }} }}"
        )
    };
    let both = world
        .ask(&format!(
            "mutation {{ {} {} }}",
            admit("a", "0a"),
            admit("b", "0b")
        ))
        .await;
    assert_eq!(
        both["a"]["object"]["unknownCertificates"],
        json!([{"serial": "0b"}])
    );
    assert_eq!(both["b"]["object"]["unknownCertificates"], json!([]));
}

#[tokio::test]
async fn nothing_is_accepted_where_nothing_waits_or_something_else_does() {
    let world = World::new().await;
    let id = edge(&world).await;
    let owner = &world.acme.owner;
    let accept = async |cursor: &str| send(&world, owner, "acceptTimeline", &id, cursor).await;
    let refused = accept("cursor: 40").await;
    assert_eq!(refused["errors"][0]["code"], "CONFLICT", "{refused}");
    assert!(
        refused["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("is not ahead"),
        "{refused}"
    );
    let refused = send(&world, owner, "admitClusterCertificate", &id, r#"serial: "0a""#).await;
    assert_eq!(refused["errors"][0]["code"], "NOT_FOUND", "{refused}");

    world.database.tamper(NOT_LISTED).await;
    let refused = accept("cursor: 40").await;
    assert!(
        refused["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("not known yet"),
        "{refused}"
    );
    world.database.tamper(AHEAD).await;
    let refused = accept("cursor: 39").await;
    assert_eq!(refused["errors"][0]["code"], "CONFLICT", "{refused}");
    assert!(
        refused["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("at revision 40"),
        "{refused}"
    );

    // A certificate that was revoked does not wait any more: nobody brings it back.
    world.database.tamper(UNKNOWN).await;
    let revoke = format!(
        r#"mutation {{ revokeClusterCertificate(input: {{cluster: {id:?}, serial: "0a"}}) {{ revoked }} }}"#
    );
    assert_eq!(world.ask(&revoke).await["revokeClusterCertificate"]["revoked"], 1);
    let refused = send(&world, owner, "admitClusterCertificate", &id, r#"serial: "0a""#).await;
    assert_eq!(refused["errors"][0]["code"], "NOT_FOUND", "{refused}");
    for (_, _, action) in BOTH {
        assert_eq!(records(&world, action).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn only_an_owner_decides_and_each_denial_is_recorded() {
    let world = World::new().await;
    let id = edge(&world).await;
    world.database.tamper(AHEAD).await;
    world.database.tamper(UNKNOWN).await;
    for (role, scope) in [
        (Role::Viewer, Scope::Read),
        (Role::Operator, Scope::Invoke),
        (Role::Editor, Scope::Write),
        (Role::Admin, Scope::Admin),
        // The scope is a ceiling: an owner who holds a token for writing decides nothing here.
        (Role::Owner, Scope::Write),
    ] {
        let holder = world.holder(role, scope).await;
        for (field, rest, _) in BOTH {
            let refused = send(&world, &holder, field, &id, rest).await;
            assert_eq!(
                refused["errors"][0]["code"], "FORBIDDEN",
                "{role} {field}: {refused}"
            );
            assert_eq!(refused["object"], Value::Null);
        }
    }
    let after = world
        .ask(r#"{ clusterByName(name: "edge") { timeline { cursor } unknownCertificates { serial } } }"#);
    assert_eq!(
        after.await["clusterByName"],
        json!({"timeline": {"cursor": 40}, "unknownCertificates": [{"serial": "0a"}]})
    );
    let log = world
        .ask("{ auditRecords(first: 100) { nodes { decision } } }")
        .await;
    let denials = log["auditRecords"]["nodes"].as_array().unwrap().iter();
    assert_eq!(denials.filter(|record| record["decision"] == "deny").count(), 5);
}

/// A cluster of another tenant on which something does wait.
#[tokio::test]
async fn s33_what_waits_on_a_foreign_cluster_cannot_be_told_from_nothing() {
    let world = World::new().await;
    let id = edge(&world).await;
    world.database.tamper(AHEAD).await;
    world.database.tamper(UNKNOWN).await;
    let random = ClusterId::generate(&FakeClock::at(1_800_000_000_123), &SeededRandom::new(78)).to_string();
    for (field, rest, action) in BOTH {
        let mut answers = Vec::new();
        for cluster in [&id, &random] {
            let answer = send(&world, &world.globex.owner, field, cluster, rest).await;
            answers.push(answer.to_string().replace(cluster.as_str(), "ID"));
        }
        assert_eq!(answers[0], answers[1], "{field}");
        assert!(answers[0].contains("NOT_FOUND"), "{}", answers[0]);
        assert_eq!(records(&world, action).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn a_repeated_decision_changes_state_once() {
    let world = World::new().await;
    let id = edge(&world).await;
    world.database.tamper(AHEAD).await;
    world.database.tamper(UNKNOWN).await;
    for (field, rest, action) in BOTH {
        let rest = format!("{rest}, idempotencyKey: {field:?}");
        let first = send(&world, &world.acme.owner, field, &id, &rest).await;
        assert_eq!(first["errors"], json!([]));
        let revision = r#"{ clusterByName(name: "edge") { wantedRevision } }"#;
        let before = world.ask(revision).await;
        for _ in 0..3 {
            assert_eq!(send(&world, &world.acme.owner, field, &id, &rest).await, first);
        }
        assert_eq!(world.ask(revision).await, before);
        assert_eq!(records(&world, action).await.len(), 1);
    }
}

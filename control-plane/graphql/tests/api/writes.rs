//! Every mutation, in one table: what it leaves in the audit log, and what its idempotency key does.

use crate::support::{NOTES, World, key};
use roadstead_authz::{Role, Scope};
use roadstead_domain::PageRequest;
use roadstead_service::audit;
use serde_json::{Value, json};

/// A mutation of the schema.
struct Row {
    field: &'static str,
    input: &'static str,
    /// What is asked of its payload beside `errors { code }`.
    payload: &'static str,
    /// The records of one accepted write.
    records: &'static [&'static str],
    /// What the input is changed to for the same key with other input.
    other: (&'static str, &'static str),
    /// The field that is shown once.
    secret: Option<&'static str>,
}

/// `CLUSTER`, `SPARE` and `TOKEN` stand for ids, `KEY` for the idempotency key.
const ROWS: &[Row] = &[
    Row {
        field: "applyDocuments",
        input: r#"{project: "support", idempotencyKey: "KEY", documents: [{json: {apiVersion: "roadstead.dev/v1alpha1",
            kind: "Prompt", metadata: {name: "tone"}, spec: {text: "Be kind."}}}]}"#,
        payload: "results { action object { name revision } before }",
        records: &["create document"],
        other: ("Be kind.", "Be brief."),
        secret: None,
    },
    Row {
        field: "rollBackAgent",
        input: r#"{project: "support", name: "notes", toRevision: 1, idempotencyKey: "KEY"}"#,
        payload: "object { name revision }",
        records: &["roll back document"],
        other: ("toRevision: 1", "toRevision: 2"),
        secret: None,
    },
    Row {
        field: "deleteDocument",
        input: r#"{kind: AGENT, project: "support", name: "notes", idempotencyKey: "KEY"}"#,
        payload: "object { name revision json }",
        records: &["delete document"],
        other: ("notes", "others"),
        secret: None,
    },
    Row {
        field: "restartAgent",
        input: r#"{project: "support", name: "notes", cluster: "edge", expiresInSeconds: 60, idempotencyKey: "KEY"}"#,
        payload: "objects { id kind cluster agent state createdBy expiresAt result { code } }",
        records: &["restart agent"],
        other: ("60", "61"),
        secret: None,
    },
    Row {
        field: "createProject",
        input: r#"{name: "billing", idempotencyKey: "KEY"}"#,
        payload: "object { id name }",
        records: &["create project"],
        other: ("billing", "selling"),
        secret: None,
    },
    Row {
        field: "createCluster",
        input: r#"{name: "west", labels: {region: "eu"}, idempotencyKey: "KEY"}"#,
        payload: "object { id name labels } joinToken { token }",
        records: &["create cluster", "make join token"],
        other: ("eu", "us"),
        secret: Some("joinToken"),
    },
    Row {
        field: "createJoinToken",
        input: r#"{cluster: "CLUSTER", idempotencyKey: "KEY"}"#,
        payload: "object { id } joinToken { token }",
        records: &["make join token"],
        other: ("CLUSTER", "SPARE"),
        secret: Some("joinToken"),
    },
    Row {
        field: "revokeClusterCertificate",
        input: r#"{cluster: "CLUSTER", idempotencyKey: "KEY"}"#,
        payload: "revoked",
        records: &["revoke certificate"],
        other: ("CLUSTER", "SPARE"),
        secret: None,
    },
    Row {
        field: "approveDeletes",
        input: r#"{cluster: "CLUSTER", deletes: 12, idempotencyKey: "KEY"}"#,
        payload: "object { id }",
        records: &["approve deletes"],
        other: ("12", "13"),
        secret: None,
    },
    Row {
        field: "acceptTimeline",
        input: r#"{cluster: "CLUSTER", cursor: 40, idempotencyKey: "KEY"}"#,
        payload: "object { id }",
        records: &["accept timeline"],
        other: ("40", "41"),
        secret: None,
    },
    Row {
        field: "admitClusterCertificate",
        input: r#"{cluster: "CLUSTER", serial: "0a", idempotencyKey: "KEY"}"#,
        payload: "object { id }",
        records: &["admit certificate"],
        other: ("0a", "0b"),
        secret: None,
    },
    Row {
        field: "deleteCluster",
        input: r#"{cluster: "CLUSTER", idempotencyKey: "KEY"}"#,
        payload: "object { id name }",
        records: &["delete cluster"],
        other: ("CLUSTER", "SPARE"),
        secret: None,
    },
    Row {
        field: "createApiToken",
        input: r#"{name: "ci", role: VIEWER, scopes: [READ], lifetimeSeconds: 60, idempotencyKey: "KEY"}"#,
        payload: "object { id name } secret",
        records: &["issue token"],
        other: ("60", "61"),
        secret: Some("secret"),
    },
    Row {
        field: "revokeApiToken",
        input: r#"{id: "TOKEN", idempotencyKey: "KEY"}"#,
        payload: "object { id revokedAt } alsoRevoked",
        records: &["revoke token"],
        other: ("TOKEN", "SPAREKEN"),
        secret: None,
    },
];

/// The newest records first: action and decision.
async fn records(world: &World) -> Vec<(String, String)> {
    let page = PageRequest {
        first: Some(100),
        after: None,
    };
    let listed = audit::list(&world.acme.owner, &world.store, &page).await.unwrap();
    listed.items.into_iter().map(|r| (r.action, r.decision)).collect()
}

/// What a write needs to find, as the fleet would have noted it.
const NOTED: [(&str, &str); 4] = [
    (
        "restartAgent",
        "UPDATE cluster SET epoch = 1, capabilities = 'command.restartEngine'",
    ),
    (
        "approveDeletes",
        "UPDATE cluster SET held_revision = 3, held_deletes = 12",
    ),
    (
        "acceptTimeline",
        r#"UPDATE cluster SET timeline_cursor = 40,
           timeline = '{"sent":0,"deleted":[],"deletes":0,"replaced":[]}'"#,
    ),
    (
        "admitClusterCertificate",
        "INSERT INTO cluster_certificate (tenant_id, cluster_id, serial, issued_ms, not_after_ms, revoked_ms,
         unknown_ms) SELECT tenant_id, id, '0a', 1, 9999999999999, 1, 1 FROM cluster",
    ),
];

struct Ids {
    cluster: String,
    spare: String,
    token: String,
    spare_token: String,
}

async fn ids(world: &World) -> Ids {
    world.apply(NOTES).await;
    world
        .apply(&NOTES.replace("Write notes.", "Write longer notes."))
        .await;
    let made = world
        .ask(
            r#"mutation { a: createApiToken(input: {name: "a", role: VIEWER, scopes: [READ], lifetimeSeconds: 60}) { object { id } }
            b: createApiToken(input: {name: "b", role: VIEWER, scopes: [READ], lifetimeSeconds: 60}) { object { id } }
            c: createCluster(input: {name: "spare"}) { object { id } } }"#,
        )
        .await;
    let edge = world.ask(r#"{ clusterByName(name: "edge") { id } }"#).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Ids {
        cluster: text(&edge["clusterByName"]["id"]),
        spare: text(&made["c"]["object"]["id"]),
        token: text(&made["a"]["object"]["id"]),
        spare_token: text(&made["b"]["object"]["id"]),
    }
}

impl Row {
    fn query(&self, ids: &Ids, key: &str, other: bool) -> String {
        let mut input = self.input.to_owned();
        if other {
            input = input.replace(self.other.0, self.other.1);
        }
        let input = input
            .replace("SPAREKEN", &ids.spare_token)
            .replace("CLUSTER", &ids.cluster)
            .replace("SPARE", &ids.spare)
            .replace("TOKEN", &ids.token)
            .replace("KEY", key);
        format!(
            "mutation {{ {}(input: {input}) {{ {} errors {{ code }} }} }}",
            self.field, self.payload
        )
    }
}

#[test]
fn every_mutation_is_in_the_table() {
    let sdl = roadstead_graphql::sdl();
    let mutations = sdl
        .split("type Mutation {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let mut fields: Vec<&str> = mutations
        .lines()
        .filter_map(|line| line.trim().split_once("(input:").map(|(field, _)| field))
        .collect();
    fields.sort_unstable();
    let mut rows: Vec<&str> = ROWS.iter().map(|row| row.field).collect();
    rows.sort_unstable();
    assert_eq!(fields, rows);
}

#[tokio::test]
async fn s89_each_accepted_write_is_recorded_once_and_its_repetition_changes_nothing() {
    for row in ROWS {
        let world = World::new().await;
        let (ids, key) = (ids(&world).await, key());
        for (_, noted) in NOTED.iter().filter(|(field, _)| *field == row.field) {
            world.database.tamper(noted).await;
        }
        let before = records(&world).await.len();
        let query = row.query(&ids, &key, false);
        let first = world.ask(&query).await[row.field].clone();
        assert_eq!(first["errors"], json!([]), "{}: {first}", row.field);
        let after = records(&world).await;
        let mut new: Vec<_> = after[..after.len() - before].to_vec();
        new.reverse();
        let wanted: Vec<_> = row
            .records
            .iter()
            .map(|a| ((*a).to_owned(), "allow".to_owned()))
            .collect();
        assert_eq!(new, wanted, "{}", row.field);

        let again = world.ask(&query).await[row.field].clone();
        let mut expected = first.clone();
        if let Some(secret) = row.secret {
            assert!(!first[secret].is_null(), "{}", row.field);
            expected[secret] = Value::Null;
        }
        assert_eq!(
            again, expected,
            "{}: the same answer, without the secret",
            row.field
        );
        assert_eq!(
            records(&world).await.len(),
            after.len(),
            "{}: no record",
            row.field
        );

        let other = world.ask(&row.query(&ids, &key, true)).await[row.field].clone();
        assert_eq!(
            other["errors"],
            json!([{"code": "CONFLICT"}]),
            "{}: other input",
            row.field
        );
        assert_eq!(
            records(&world).await.len(),
            after.len(),
            "{}: no record",
            row.field
        );
    }
}

#[tokio::test]
async fn s89_each_denial_is_recorded_once() {
    for row in ROWS {
        let world = World::new().await;
        let ids = ids(&world).await;
        let viewer = world.holder(Role::Viewer, Scope::Read).await;
        let before = records(&world).await.len();
        let query = row.query(&ids, &key(), false);
        let answer = world.data(&viewer, &query, Value::Null).await;
        assert_eq!(
            answer[row.field]["errors"],
            json!([{"code": "FORBIDDEN"}]),
            "{}",
            row.field
        );
        let after = records(&world).await;
        assert_eq!(after.len(), before + 1, "{}", row.field);
        assert_eq!(after[0].1, "deny", "{}", row.field);
    }
}

#[tokio::test]
async fn s62_no_secret_is_kept_with_a_remembered_answer() {
    let world = World::new().await;
    let ids = ids(&world).await;
    let mut secrets = Vec::new();
    for row in ROWS.iter().filter(|row| row.secret.is_some()) {
        let made = world.ask(&row.query(&ids, &key(), false)).await[row.field].clone();
        let secret = match &made[row.secret.unwrap()] {
            Value::String(secret) => secret.clone(),
            shown => shown["token"]
                .as_str()
                .unwrap()
                .trim_end_matches(".pin")
                .to_owned(),
        };
        secrets.push(secret);
    }
    let kept = world.kept("SELECT answer FROM idempotency_key").await.join("\n");
    assert!(kept.contains("west"), "{kept}");
    for secret in secrets {
        assert!(!kept.contains(&secret));
    }
}

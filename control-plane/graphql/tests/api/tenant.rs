//! What hangs on the tenant: clusters, tokens, projects, the audit log.

use crate::support::World;
use roadstead_authz::{Role, Scope};
use serde_json::{Value, json};

#[tokio::test]
async fn a_new_cluster_comes_with_a_join_token_that_is_shown_once() {
    let world = World::new().await;
    let create = r#"mutation { createCluster(input: {name: "edge-2", labels: {region: "eu"}}) {
        object { id name labels state version certificateExpiresAt agentCount } joinToken { token expiresAt }
        errors { code path } } }"#;
    let made = world.ask(create).await["createCluster"].clone();
    assert_eq!(
        (&made["object"]["name"], &made["object"]["state"]),
        (&json!("edge-2"), &json!("NEVER_SEEN"))
    );
    let token = made["joinToken"]["token"].as_str().unwrap().to_owned();
    let secret = token.strip_suffix(".pin").unwrap();
    let again = world.ask(create).await["createCluster"].clone();
    assert_eq!(
        (&again["errors"][0]["code"], &again["joinToken"]),
        (&json!("CONFLICT"), &Value::Null)
    );
    let everything = world
        .ask("{ clusters { nodes { id name labels state since } } auditRecords { nodes { action object detail } } }")
        .await
        .to_string();
    assert!(!everything.contains(secret), "{everything}");
    let id = &made["object"]["id"];
    let revoke = format!(
        "mutation {{ revokeClusterCertificate(input: {{cluster: {id}}}) {{ revoked errors {{ code }} }} }}"
    );
    assert_eq!(
        world.ask(&revoke).await["revokeClusterCertificate"],
        json!({"revoked": 0, "errors": []})
    );
    let looked = world.fleet.looked.lock().unwrap();
    assert_eq!(
        looked.iter().map(|cluster| json!(cluster)).collect::<Vec<_>>(),
        std::slice::from_ref(id)
    );
}

#[tokio::test]
async fn deletions_that_wait_are_allowed_by_an_owner_for_the_number_they_saw() {
    let world = World::new().await;
    let cluster = "{ clusters(first: 1) { nodes { id heldDeletes } } }";
    let id = world.ask(cluster).await["clusters"]["nodes"][0]["id"].clone();
    let approve = |deletes: u64, key: &str| {
        format!(
            "mutation {{ approveDeletes(input: {{cluster: {id}, deletes: {deletes}, idempotencyKey: {key:?}}})
            {{ object {{ heldDeletes }} errors {{ code message }} }} }}"
        )
    };
    let refused = world.ask(&approve(12, "a")).await["approveDeletes"].clone();
    assert_eq!(
        refused["errors"][0]["code"], "CONFLICT",
        "nothing waits: {refused}"
    );
    let hold = "UPDATE cluster SET held_revision = 3, held_deletes = 12";
    world.database.tamper(hold).await;
    assert_eq!(
        world.ask(cluster).await["clusters"]["nodes"][0]["heldDeletes"],
        12
    );
    let editor = world.holder(Role::Editor, Scope::Write).await;
    let refused = world.data(&editor, &approve(12, "b"), Value::Null).await["approveDeletes"].clone();
    assert_eq!(refused["errors"][0]["code"], "FORBIDDEN", "{refused}");
    let other = world.ask(&approve(11, "c")).await["approveDeletes"].clone();
    assert_eq!(other["errors"][0]["code"], "CONFLICT", "{other}");
    for _ in 0..2 {
        let approved = world.ask(&approve(12, "d")).await["approveDeletes"].clone();
        assert_eq!(approved, json!({"object": {"heldDeletes": 12}, "errors": []}));
    }
    let log = world
        .ask("{ auditRecords { nodes { action decision } } }")
        .await
        .to_string();
    assert_eq!(log.matches("approve deletes").count(), 1, "{log}");
}

#[tokio::test]
async fn s62_a_tokens_secret_is_shown_once_and_ends_with_its_revocation() {
    let world = World::new().await;
    let create = r#"mutation { createApiToken(input: {name: "ci", role: EDITOR, scopes: [WRITE], lifetimeSeconds: 3600}) {
        object { id name role scopes expiresAt revokedAt } secret errors { code path } } }"#;
    let made = world.ask(create).await["createApiToken"].clone();
    assert!(made["secret"].as_str().unwrap().starts_with("rst_"));
    let list = "{ apiTokens { nodes { id name revokedAt } } auditRecords { nodes { detail object } } }";
    assert!(!world.ask(list).await.to_string().contains("rst_"));
    let id = &made["object"]["id"];
    let revoke = format!(
        "mutation {{ revokeApiToken(input: {{id: {id}}}) {{ object {{ revokedAt }} errors {{ code }} }} }}"
    );
    assert!(world.ask(&revoke).await["revokeApiToken"]["object"]["revokedAt"].is_string());

    let beyond = create.replace("3600", "99999999");
    let refused = world.ask(&beyond).await["createApiToken"].clone();
    assert_eq!(refused["errors"][0]["code"], "INVALID");
    let editor = world.holder(Role::Editor, Scope::Write).await;
    let refused = world.data(&editor, create, Value::Null).await["createApiToken"].clone();
    assert_eq!(
        (&refused["errors"][0]["code"], &refused["secret"]),
        (&json!("FORBIDDEN"), &Value::Null)
    );
}

#[tokio::test]
async fn s14_a_revoked_token_says_how_many_it_takes_with_it() {
    let world = World::new().await;
    let create = r#"mutation { createApiToken(input: {name: "ci", role: ADMIN, scopes: [ADMIN], lifetimeSeconds: 3600}) {
        object { id createdBy } secret } }"#;
    let first = world.ask(create).await["createApiToken"].clone();
    let holder = world.present(first["secret"].as_str().unwrap()).await;
    let second = world.data(&holder, create, Value::Null).await["createApiToken"].clone();
    let (id, made_by) = (&first["object"]["id"], &second["object"]["createdBy"]);
    assert_eq!(
        made_by.as_str().unwrap(),
        format!("token:{}", id.as_str().unwrap())
    );
    let revoke = |rest: &str| {
        format!(
            "mutation {{ revokeApiToken(input: {{id: {id}{rest}}}) {{ object {{ id }} alsoRevoked errors {{ code }} }} }}"
        )
    };
    // Its own issuer: not without saying that it stays.
    let second = world.present(second["secret"].as_str().unwrap()).await;
    let refused = world.data(&second, &revoke(""), Value::Null).await["revokeApiToken"].clone();
    assert_eq!(
        refused,
        json!({"object": null, "alsoRevoked": 0, "errors": [{"code": "CONFLICT"}]})
    );
    let kept = world
        .data(&second, &revoke(", keepIssued: true"), Value::Null)
        .await["revokeApiToken"]
        .clone();
    assert_eq!(
        kept,
        json!({"object": {"id": id}, "alsoRevoked": 0, "errors": []})
    );
    let ended = world.ask(&revoke("")).await["revokeApiToken"].clone();
    assert_eq!(
        ended,
        json!({"object": {"id": id}, "alsoRevoked": 1, "errors": []})
    );
}

#[tokio::test]
async fn s28_the_lowest_role_sees_no_tokens_and_no_audit_log() {
    let world = World::new().await;
    let viewer = world.holder(Role::Viewer, Scope::Read).await;
    for query in [
        "{ apiTokens { nodes { id } } }",
        "{ auditRecords { nodes { id } } }",
    ] {
        let answer = world.answer(&viewer, query, Value::Null).await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "FORBIDDEN",
            "{query}: {answer}"
        );
        assert_eq!(answer["data"], Value::Null);
    }
}

#[tokio::test]
async fn the_audit_log_is_searched() {
    let world = World::new().await;
    world
        .ask(r#"mutation { createProject(input: {name: "billing"}) { object { name } } }"#)
        .await;
    let viewer = world.holder(Role::Viewer, Scope::Read).await;
    world
        .data(
            &viewer,
            r#"mutation { createProject(input: {name: "mine"}) { object { name } } }"#,
            Value::Null,
        )
        .await;
    let search = async |filter: &str| {
        let query = format!(
            "{{ auditRecords(first: 100, filter: {filter}) {{ nodes {{ action actor decision }} }} }}"
        );
        world.ask(&query).await["auditRecords"]["nodes"]
            .as_array()
            .unwrap()
            .clone()
    };
    let all = search("{}").await.len();
    let denied = search(r#"{decision: {eq: "deny"}}"#).await;
    assert_eq!(
        (denied.len(), &denied[0]["actor"]),
        (1, &json!(viewer.actor().label()))
    );
    let by_viewer = format!(r#"{{actor: {{eq: "{}"}}}}"#, viewer.actor().label());
    assert_eq!(search(&by_viewer).await, denied);
    // The other one was made before anybody was there.
    let made = search(r#"{action: {eq: "create project"}, decision: {eq: "allow"}}"#).await;
    let actors: Vec<_> = made.iter().map(|r| r["actor"].as_str().unwrap()).collect();
    assert_eq!(
        actors,
        [world.acme.owner.actor().label().as_str(), "system:bootstrap"]
    );
    // The world's clock stands still at 2027-01-15T08:00:00Z.
    assert_eq!(
        search(r#"{time: {gte: "2027-01-15T08:00:00Z"}}"#).await.len(),
        all
    );
    assert_eq!(search(r#"{time: {lt: "2027-01-15T08:00:00Z"}}"#).await.len(), 0);
    // Nothing of another tenant, whatever is searched.
    let foreign = format!(
        r#"{{ auditRecords(filter: {{actor: {{eq: "{}"}}}}) {{ nodes {{ id }} }} }}"#,
        world.acme.owner.actor().label()
    );
    let found = world.data(&world.globex.owner, &foreign, Value::Null).await;
    assert_eq!(found["auditRecords"]["nodes"], json!([]));
    // A cursor dies with its filter.
    let page = world
        .ask("{ auditRecords(first: 1) { pageInfo { endCursor } } }")
        .await;
    let after = page["auditRecords"]["pageInfo"]["endCursor"].as_str().unwrap();
    let other = format!(
        r#"{{ auditRecords(first: 1, after: "{after}", filter: {{decision: {{eq: "deny"}}}}) {{ nodes {{ id }} }} }}"#
    );
    let refused = world.answer(&world.acme.owner, &other, Value::Null).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "INVALID", "{refused}");
}

#[tokio::test]
async fn a_project_is_made_and_its_name_is_taken_then() {
    let world = World::new().await;
    let create =
        r#"mutation { createProject(input: {name: "billing"}) { object { name } errors { code path } } }"#;
    assert_eq!(
        world.ask(create).await["createProject"]["object"]["name"],
        "billing"
    );
    assert_eq!(
        world.ask(create).await["createProject"]["errors"][0]["code"],
        "CONFLICT"
    );
    let bad = create.replace("billing", "No Name");
    let refused = world.ask(&bad).await["createProject"].clone();
    assert_eq!(refused["errors"][0], json!({"code": "INVALID", "path": "name"}));
    let projects = world.ask("{ projects { nodes { name } } }").await;
    assert_eq!(
        projects["projects"]["nodes"],
        json!([{"name": "billing"}, {"name": "support"}])
    );
}

//! Another tenant's things do not exist (S33), and hostile texts are texts (S32).

use crate::support::{NOTES, World, key};
use roadstead_domain::{AgentId, ClusterId, CommandId, FakeClock, ModelId, RunId, SeededRandom, TokenId};
use serde_json::{Value, json};

/// Ids of acme's things, each with a random one of the same kind.
async fn ids(world: &World) -> Vec<(String, String)> {
    world.apply(NOTES).await;
    let data = world
        .ask("{ documents { nodes { id } } clusters { nodes { id } } apiTokens { nodes { id } } }")
        .await;
    let (clock, random) = (FakeClock::at(1_800_000_000_123), SeededRandom::new(77));
    let mut ids = vec![(
        RunId::generate(&clock, &random).to_string(),
        RunId::generate(&clock, &random).to_string(),
    )];
    world
        .database
        .tamper("UPDATE cluster SET epoch = 1, capabilities = 'command.restartEngine'")
        .await;
    let restart = r#"mutation { restartAgent(input: {project: "support", name: "notes", idempotencyKey: "k"})
        { objects { id } errors { code } } }"#;
    let made = world.ask(restart).await["restartAgent"]["objects"][0]["id"].clone();
    ids.push((
        made.as_str().unwrap().to_owned(),
        CommandId::generate(&clock, &random).to_string(),
    ));
    for list in ["documents", "clusters", "apiTokens"] {
        for node in data[list]["nodes"].as_array().unwrap() {
            let id = node["id"].as_str().unwrap().to_owned();
            let other = match &id[..3] {
                "agt" => AgentId::generate(&clock, &random).to_string(),
                "mdl" => ModelId::generate(&clock, &random).to_string(),
                "cls" => ClusterId::generate(&clock, &random).to_string(),
                "tok" => TokenId::generate(&clock, &random).to_string(),
                other => panic!("{other}"),
            };
            ids.push((id, other));
        }
    }
    assert!(ids.len() >= 6, "{ids:?}");
    ids
}

/// Every field and mutation that takes an id. A test below compares this list with the schema.
const BY_ID: &[(&str, &str)] = &[
    ("Query.node", "query($id: ID!) { node(id: $id) { id } }"),
    ("Query.agent", "query($id: ID!) { agent(id: $id) { id name } }"),
    (
        "Query.cluster",
        "query($id: ID!) { cluster(id: $id) { id name } }",
    ),
    ("Query.run", "query($id: ID!) { run(id: $id) { id } }"),
    (
        "Query.command",
        "query($id: ID!) { command(id: $id) { id cluster agent } }",
    ),
    (
        "CreateJoinTokenInput.cluster",
        "mutation($id: ID!) { createJoinToken(input: {cluster: $id}) { object { id } errors { code message path } } }",
    ),
    (
        "RevokeClusterCertificateInput.cluster",
        "mutation($id: ID!) { revokeClusterCertificate(input: {cluster: $id}) { revoked errors { code message path } } }",
    ),
    (
        "AcceptTimelineInput.cluster",
        "mutation($id: ID!) { acceptTimeline(input: {cluster: $id, cursor: 1, idempotencyKey: \"k\"}) { object { id } errors { code message path } } }",
    ),
    (
        "AdmitClusterCertificateInput.cluster",
        "mutation($id: ID!) { admitClusterCertificate(input: {cluster: $id, serial: \"1\"}) { object { id } errors { code message path } } }",
    ),
    (
        "ApproveDeletesInput.cluster",
        "mutation($id: ID!) { approveDeletes(input: {cluster: $id, deletes: 1, idempotencyKey: \"k\"}) { object { id } errors { code message path } } }",
    ),
    (
        "DeleteClusterInput.cluster",
        "mutation($id: ID!) { deleteCluster(input: {cluster: $id}) { object { id } errors { code message path } } }",
    ),
    (
        "RevokeApiTokenInput.id",
        "mutation($id: ID!) { revokeApiToken(input: {id: $id}) { object { id } errors { code message path } } }",
    ),
];

#[tokio::test]
async fn s33_a_foreign_id_and_a_random_id_answer_alike() {
    let world = World::new().await;
    for (foreign, random) in ids(&world).await {
        for (field, query) in BY_ID {
            let mut answers = Vec::new();
            for id in [&foreign, &random] {
                let mut answer = world.answer(&world.globex.owner, query, json!({"id": id})).await;
                for error in answer["errors"].as_array_mut().into_iter().flatten() {
                    error["extensions"]["requestId"] = Value::Null;
                }
                answers.push(answer.to_string().replace(id.as_str(), "ID"));
            }
            assert_eq!(answers[0], answers[1], "{field} {foreign}");
            assert!(
                !answers[0].contains("notes") && !answers[0].contains("edge"),
                "{}",
                answers[0]
            );
        }
    }
    // Nothing of acme's was touched.
    let data = world
        .ask("{ clusters { nodes { name } } apiTokens { nodes { revokedAt } } }")
        .await;
    assert_eq!(data["clusters"]["nodes"], json!([{"name": "edge"}]));
    assert!(
        data["apiTokens"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|t| t["revokedAt"].is_null())
    );
}

#[test]
fn s33_every_argument_that_takes_an_id_is_tried() {
    let sdl = roadstead_graphql::sdl();
    let mut found = Vec::new();
    let mut owner = String::new();
    for line in sdl.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["type" | "input", name, ..] = words.as_slice() {
            owner = (*name).to_owned();
        }
        let line = line.trim();
        if owner.ends_with("Input") && line.contains(": ID") {
            found.push(format!("{owner}.{}", line.split(':').next().unwrap()));
        } else if let Some((field, rest)) = line.split_once('(')
            && rest.contains(": ID")
        {
            found.push(format!("{owner}.{field}"));
        }
    }
    found.sort();
    let mut tried: Vec<&str> = BY_ID.iter().map(|(field, _)| *field).collect();
    tried.sort_unstable();
    assert_eq!(found, tried);
}

#[tokio::test]
async fn s33_names_of_another_tenant_find_nothing() {
    let world = World::new().await;
    world.apply(NOTES).await;
    let query = r#"query($name: String!) {
        agentByName(project: "support", name: $name) { id }
        document(kind: AGENT, project: "support", name: $name) { id }
        revisions(kind: AGENT, project: "support", name: $name) { nodes { revision } }
        runs(project: "support", agent: $name) { nodes { id } }
        commands(project: "support", agent: $name) { nodes { id } }
        documents(filter: {name: {eq: $name}}) { nodes { id } } }"#;
    let globex = &world.globex.owner;
    let foreign = world.data(globex, query, json!({"name": "notes"})).await;
    let random = world.data(globex, query, json!({"name": "nothing"})).await;
    assert_eq!(foreign, random);
    let delete =
        "mutation($name: String!, $key: String!) { deleteDocument(input: {kind: AGENT, project: \"support\",
        name: $name, idempotencyKey: $key}) { object { id } errors { code message } } }";
    let mut answers = Vec::new();
    for name in ["notes", "nothing"] {
        let answer = world
            .answer(globex, delete, json!({"name": name, "key": key()}))
            .await;
        answers.push(answer.to_string().replace(name, "NAME"));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn a_wrong_kind_of_id_is_an_error_before_any_query() {
    let world = World::new().await;
    for id in [
        "cls_00000000000000000000000000000000",
        "agt_0",
        "",
        "notes",
        "agt_0000000000000000000000000000000G",
    ] {
        let answer = world
            .answer(
                &world.acme.owner,
                "query($id: ID!) { agent(id: $id) { id } }",
                json!({"id": id}),
            )
            .await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "INVALID",
            "{id}: {answer}"
        );
    }
}

#[tokio::test]
async fn s32_injection_strings_are_only_strings() {
    let world = World::new().await;
    world.apply(NOTES).await;
    for hostile in [
        "' OR '1'='1",
        "notes'; DROP TABLE object; --",
        "\" OR 1=1 --",
        "notes\u{0}",
        "%",
        "notes%' UNION SELECT hash FROM api_token --",
    ] {
        for query in [
            "query($x: String!) { document(kind: AGENT, project: \"support\", name: $x) { id } }",
            "query($x: String!) { documents(project: $x) { nodes { id } } }",
            "query($x: String!) { documents(filter: {name: {eq: $x}}) { nodes { id } } }",
            "query($x: String!) { documents(after: $x) { nodes { id } } }",
            "query($x: String!) { runs(project: $x, agent: $x) { nodes { id } } }",
            "query($x: String!) { documents: commands(project: $x, agent: $x, cluster: $x) { nodes { id } } }",
            "query($x: String!) { documents: commands(cluster: $x) { nodes { id } } }",
            "query($x: String!) { clusterByName(name: $x) { id } }",
            "query($x: String!) { documents: auditRecords(filter: {actor: {eq: $x}, action: {eq: $x}, object: {eq: $x},
                decision: {eq: $x}}) { nodes { id } } }",
        ] {
            let answer = world
                .answer(&world.acme.owner, query, json!({"x": hostile}))
                .await;
            let code = &answer["errors"][0]["extensions"]["code"];
            let empty = answer["data"]["documents"]["nodes"] == json!([]);
            assert!(code == "INVALID" || empty, "{hostile} {query}: {answer}");
        }
    }
    let left = world.ask("{ documents { nodes { name } } }").await;
    assert_eq!(left["documents"]["nodes"].as_array().unwrap().len(), 2);
}

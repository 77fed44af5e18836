//! Whole commands, against a small hub in the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chat;
mod documents;
mod inert;
mod operator;
mod proxy;
mod restored;
mod server;

use chrono::{DateTime, Utc};
use roadstead_cli::{Exit, Input, Interrupt, Shell, run};
use serde_json::json;
use server::{Hub, TOKEN};
use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// A user at a terminal or in a script, with a configuration for one hub.
struct User {
    folder: tempfile::TempDir,
    input: Input,
    terminal: bool,
    interrupt: Arc<Notify>,
    /// What the command that runs now has written.
    out: Buffer,
}

/// What a command left behind.
struct Left {
    exit: Exit,
    out: String,
    err: String,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn noon() -> DateTime<Utc> {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

impl User {
    fn of(hub: &Hub) -> Self {
        Self::with(&format!(
            "current = \"dev\"\n[[contexts]]\nname = \"dev\"\nserver = \"{}\"\ntenant = \"local\"\nproject = \"support\"\ntoken = \"{TOKEN}\"\n",
            hub.url
        ))
    }

    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            folder,
            input: Input::Piped(String::new()),
            terminal: false,
            interrupt: Arc::default(),
            out: Buffer::default(),
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn types(mut self, lines: &[&str]) -> Self {
        self.input = Input::Typed(lines.iter().map(|l| (*l).to_owned()).collect::<VecDeque<_>>());
        self.terminal = true;
        self
    }

    fn pipes(mut self, text: &str) -> Self {
        self.input = Input::Piped(text.to_owned());
        self
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    async fn runs(&mut self, command: &str) -> Left {
        self.runs_words(&command.split_whitespace().collect::<Vec<_>>())
            .await
    }

    /// The output has the user's folder as `~`. The token is nowhere in it.
    async fn runs_words(&mut self, words: &[&str]) -> Left {
        let (out, err) = (self.out.clone(), Buffer::default());
        out.0.lock().unwrap().clear();
        let config = self.config().display().to_string();
        let mut shell = Shell {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            input: std::mem::replace(&mut self.input, Input::Piped(String::new())),
            out_is_terminal: self.terminal,
            err_is_terminal: self.terminal,
            env: BTreeMap::from([
                ("ROADSTEAD_CONFIG".to_owned(), config),
                ("NO_COLOR".to_owned(), "1".to_owned()),
            ]),
            now: noon,
            interrupt: Interrupt::Notified(Arc::clone(&self.interrupt)),
            colour: false,
        };
        let words = std::iter::once("roadstead")
            .chain(words.iter().copied())
            .map(Into::into)
            .collect();
        let exit = run(words, &mut shell).await;
        self.input = shell.input;
        let folder = self.folder.path().display().to_string();
        let clean = |buffer: Buffer| buffer.text().replace(&folder, "~");
        let left = Left {
            exit,
            out: clean(out),
            err: clean(err),
        };
        assert!(
            !left.out.contains(TOKEN) && !left.err.contains(TOKEN),
            "{}{}",
            left.out,
            left.err
        );
        left
    }
}

fn document(kind: &str, name: &str, revision: u64) -> serde_json::Value {
    json!({"id": format!("{}_1", kind.to_lowercase()), "kind": kind, "project": "support", "name": name,
        "revision": revision, "digest": "d1", "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-02T11:00:00Z"})
}

fn page(nodes: &[serde_json::Value]) -> serde_json::Value {
    json!({"nodes": nodes, "pageInfo": {"hasNextPage": false, "endCursor": null}})
}

#[tokio::test]
async fn without_a_configuration_the_way_to_one_is_said() {
    let mut user = User::with("");
    let left = user.runs("get agents").await;
    assert_eq!(left.exit, Exit::Usage);
    insta::assert_snapshot!(left.err, @r"
    error: no hub is known: ~/config.toml does not exist or is empty
      next: start one with `roadstead-hub dev`, which writes a context, or `roadstead context add NAME --server URL --tenant TENANT`
    ");
}

#[tokio::test]
async fn a_hub_that_is_away_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut user = User::with(&format!(
        "[[contexts]]\nname = \"x\"\nserver = \"http://{address}\"\ntenant = \"t\"\nproject = \"p\"\ntoken = \"{TOKEN}\"\n"
    ));
    let left = user.runs("get agents").await;
    assert_eq!(left.exit, Exit::Unavailable);
    assert!(
        left.err.contains("cannot be reached") && left.err.contains("next: check that the hub runs"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn refusals_become_exit_codes() {
    let hub = Hub::start().await;
    for (status, headers, body, exit, words) in [
        (
            401,
            vec![],
            json!({"detail": "unknown token"}),
            Exit::Forbidden,
            "context add dev",
        ),
        (403, vec![], json!({}), Exit::Forbidden, "ask an administrator"),
        (
            429,
            vec![("retry-after", "7")],
            json!({"title": "too many"}),
            Exit::Limit,
            "try again in 7 s",
        ),
        (
            503,
            vec![("retry-after", "2")],
            json!({}),
            Exit::Unavailable,
            "503 Service Unavailable",
        ),
        (
            500,
            vec![],
            json!({"detail": "oops", "request_id": "r1"}),
            Exit::Failed,
            "(request r1)",
        ),
        (
            302,
            vec![("location", "http://evil.example")],
            json!({}),
            Exit::Failed,
            "302",
        ),
    ] {
        hub.refuse(status, headers, body);
        let left = User::of(&hub).runs("clusters").await;
        assert_eq!(left.exit, exit, "{status}");
        assert!(left.err.contains(words), "{}", left.err);
    }
}

#[tokio::test]
async fn faults_of_graphql_become_exit_codes() {
    let hub = Hub::start().await;
    let fault = |code: &str| json!({"errors": [{"message": "the database is away", "extensions": {"code": code, "requestId": "r2"}}]});
    // A limit stays: the list is asked for in smaller and smaller pages first.
    for code in ["UNAVAILABLE", "INTERNAL", "NOT_FOUND", "UNAUTHENTICATED", "LIMIT"] {
        hub.graphql("Clusters", fault(code));
    }
    let mut said = String::new();
    for exit in [
        Exit::Unavailable,
        Exit::Failed,
        Exit::NotFound,
        Exit::Forbidden,
        Exit::Limit,
    ] {
        let left = User::of(&hub).runs("clusters").await;
        assert_eq!(left.exit, exit, "{}", left.err);
        said.push_str(&left.err);
    }
    insta::assert_snapshot!(said, @r#"
    error: the database is away
      next: try again in a few seconds; roadstead clusters says which clusters are connected
    error: the database is away (request r2)
      next: try again; where it stays, it is the hub's fault: its log has more under the request's id, if one is named
    error: the database is away
      next: look for the name: roadstead get agents -A (models, toolservers, prompts), roadstead clusters, roadstead projects
    error: the database is away
      next: the token of the context "dev" is not valid (any more): roadstead context add dev with a new one; for `roadstead-hub dev`, start it again
    error: the database is away
      next: wait a little and try again; where it stays, delete what is not needed or ask for a higher limit
    "#);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_key() {
    let hub = Hub::start().await;
    hub.graphql("Clusters", json!({"clusters": page(&[])}));
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": [], "errors": []}}),
    );
    hub.graphql(
        "CreateProject",
        json!({"createProject": {"object": {"id": "prj_1", "name": "web", "createdAt": "2026-01-02T11:00:00Z"},
            "errors": []}}),
    );
    let mut user = User::of(&hub);
    hub.lose(1);
    assert_eq!(user.runs("clusters").await.exit, Exit::Done);
    assert_eq!(hub.asked().len(), 2);

    let file = user.file("a.yaml", documents::PROMPT);
    hub.lose(2);
    let left = user.runs(&format!("apply -f {file}")).await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    let asked = hub.asked();
    assert_eq!(asked.len(), 5);
    let key = &asked[2].1["input"]["idempotencyKey"];
    assert!(
        key.is_string()
            && asked[3..]
                .iter()
                .all(|(_, v)| v["input"]["idempotencyKey"] == *key)
    );

    // Writes that show a secret too: what is done is done once, and the secret is shown once.
    hub.lose(1);
    let left = user.runs("projects create web").await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    let secrets = [
        (
            "CreateCluster",
            "createCluster",
            "clusters create edge-1",
            "clusters join edge-1",
        ),
        (
            "CreateJoinToken",
            "createJoinToken",
            "clusters join edge-1",
            "clusters join edge-1",
        ),
        (
            "CreateApiToken",
            "createApiToken",
            "tokens create ci --role viewer --scope read",
            "tokens revoke tok_1",
        ),
    ];
    let cluster = json!({"id": "cls_1", "name": "edge-1", "state": "NEVER_SEEN"});
    hub.graphql("ClusterByName", json!({"clusterByName": cluster}));
    for (operation, field, verb, next) in secrets {
        let object = match operation {
            "CreateApiToken" => operator::token(),
            _ => cluster.clone(),
        };
        hub.graphql(operation, json!({field: {"object": object, "errors": []}}));
        let before = hub.asked().len();
        hub.lose(1);
        let file = user.folder.path().join(field);
        let left = user
            .runs(&format!("{verb} --token-file {}", file.display()))
            .await;
        assert_eq!(left.exit, Exit::Failed, "{verb}: {}", left.err);
        assert!(
            left.err.contains("lost on the way") && left.err.contains(next),
            "{}",
            left.err
        );
        assert!(!file.exists(), "{verb}");
        let asked: Vec<_> = hub
            .asked()
            .split_off(before)
            .into_iter()
            .filter(|(name, _)| name == operation)
            .collect();
        let keys: Vec<_> = asked
            .iter()
            .map(|(_, v)| v["input"]["idempotencyKey"].clone())
            .collect();
        // The answer that was lost is that to the look at the cluster, where there is one.
        let times = if operation == "CreateJoinToken" { 1 } else { 2 };
        assert!(
            keys.len() == times && keys[0].is_string() && keys.iter().all(|key| *key == keys[0]),
            "{keys:?}"
        );
    }
}

#[test]
fn the_exit_codes_are_those_of_the_document() {
    let text = include_str!("../../../../docs/cli.md");
    let (_, table) = text.split_once("## Exit codes").unwrap();
    let codes: Vec<u8> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(codes, Exit::ALL.map(|exit| exit as u8));
}

#[tokio::test]
async fn s30_the_token_is_in_no_url() {
    let hub = Hub::start().await;
    hub.graphql("Clusters", json!({"clusters": page(&[])}));
    User::of(&hub).runs("clusters").await;
    assert_eq!(hub.paths(), ["/graphql"]);
}

#[tokio::test]
async fn contexts_are_listed_used_added_and_removed() {
    let hub = Hub::start().await;
    let mut user = User::of(&hub).pipes("rst_another\n");
    let add = format!("context add prod --server {} --tenant acme -p web", hub.url);
    let left = user.runs(&add).await;
    assert_eq!((left.exit, left.err.as_str()), (Exit::Done, ""));
    assert_eq!(user.runs("context use prod").await.exit, Exit::Done);
    let left = user.runs("context").await;
    let words: Vec<Vec<&str>> = left
        .out
        .lines()
        .skip(1)
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(words[0], ["dev", &hub.url, "local", "support"]);
    assert_eq!(words[1], ["*", "prod", &hub.url, "acme", "web"]);
    assert!(
        !user
            .runs("context list -o json")
            .await
            .out
            .contains("rst_another")
    );
    assert_eq!(user.runs("context remove prod").await.exit, Exit::Done);
    assert_eq!(user.runs("context use prod").await.exit, Exit::Usage);
    let mode = std::fs::metadata(user.config()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    user.input = Input::Piped("rst_x".to_owned());
    let left = user
        .runs("context add far --server http://hub.example.com --tenant acme")
        .await;
    assert_eq!(left.exit, Exit::Usage, "{}", left.err);
}

#[tokio::test]
async fn what_needs_no_hub_needs_no_configuration() {
    let mut user = User::with("");
    let left = user.runs("explain agent.spec.limits.steps").await;
    assert_eq!(left.exit, Exit::Done);
    assert!(left.out.contains("Model calls in one task"), "{}", left.out);
    assert_eq!(user.runs("explain agent.spec.limts").await.exit, Exit::NotFound);
    let left = user.runs("schema agents").await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&left.out).unwrap()["title"],
        "Agent"
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let left = user.runs(&format!("completion {shell}")).await;
        for word in ["roadstead", "approve-deletes", "token-file", "rollback"] {
            assert!(left.out.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(user.runs("frobnicate").await.exit, Exit::Usage);
    let left = user.runs("--help").await;
    assert_eq!(left.exit, Exit::Done);
    insta::assert_snapshot!(left.out);
}

#[tokio::test]
async fn logs_are_followed_beyond_the_end_of_a_stream() {
    let hub = Hub::start().await;
    let agent = json!({"id": "agt_1", "project": "support", "name": "a", "revision": 1, "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z", "placements": []});
    for answer in [&agent, &agent, &json!(null)] {
        hub.graphql("AgentByName", json!({"agentByName": answer}));
    }
    let one = json!({"cluster": "edge-1", "time": "2026-01-02T11:59:00Z", "line": "one"});
    let two = json!({"cluster": "edge-1", "time": "2026-01-02T11:59:01Z", "line": "two \u{1b}[2J"});
    let three = json!({"cluster": "edge-1", "time": "2026-01-02T11:59:02Z", "line": "three"});
    hub.lines_and_break(vec![one.clone(), two.clone()]);
    hub.lines(vec![one, two, three]);
    let mut user = User::of(&hub);
    user.terminal = true;
    let left = user.runs("logs a -f --tail 5").await;
    assert_eq!(
        (left.exit, left.out.as_str()),
        (
            Exit::NotFound,
            "2026-01-02T11:59:00Z one\n2026-01-02T11:59:01Z two \\u{1b}[2J\n2026-01-02T11:59:02Z three\n"
        ),
        "{}",
        left.err
    );
    assert_eq!(left.err.matches("connecting again").count(), 2, "{}", left.err);
    let asked: Vec<_> = hub
        .asked()
        .into_iter()
        .filter(|(name, _)| name == "AgentLogs")
        .collect();
    let expected =
        |tail: u32| json!({"project": "support", "name": "a", "tail": tail, "follow": true, "since": null});
    assert_eq!((&asked[0].1, &asked[1].1), (&expected(5), &expected(10_000)));
}

#[tokio::test]
async fn logs_since_a_moment_are_all_that_there_are() {
    let hub = Hub::start().await;
    let agent = json!({"id": "agt_1", "project": "support", "name": "a", "revision": 1, "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z", "placements": []});
    hub.graphql("AgentByName", json!({"agentByName": agent}));
    hub.lines(vec![]);
    let mut user = User::of(&hub);
    for verb in [
        "logs a",
        "logs a --since 15m",
        "logs a --since 2026-01-01T00:00:00Z --tail 7",
    ] {
        assert_eq!(user.runs(verb).await.exit, Exit::Done, "{verb}");
    }
    let asked: Vec<_> = hub
        .asked()
        .into_iter()
        .filter(|(name, _)| name == "AgentLogs")
        .collect();
    let expected = [
        (100, json!(null)),
        (10_000, json!("2026-01-02T11:45:00.000Z")),
        (7, json!("2026-01-01T00:00:00.000Z")),
    ];
    for ((_, asked), (tail, since)) in asked.iter().zip(expected) {
        assert_eq!((&asked["tail"], &asked["since"]), (&json!(tail), &since));
    }
    assert_eq!(user.runs("logs a --since yesterday").await.exit, Exit::Usage);
}

#[tokio::test]
async fn logs_are_read_as_json_and_yaml() {
    let hub = Hub::start().await;
    let agent = json!({"id": "agt_1", "project": "support", "name": "a", "revision": 1, "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z", "placements": []});
    hub.graphql("AgentByName", json!({"agentByName": agent}));
    hub.lines(vec![
        json!({"cluster": "c", "time": null, "line": "a: \u{9b}b"});
        2
    ]);
    let mut user = User::of(&hub);
    let left = user.runs("logs a -o json").await;
    assert_eq!(left.exit, Exit::Done);
    let lines: Vec<serde_json::Value> = left
        .out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!((lines.len(), &lines[1]["line"]), (2, &json!("a: \u{9b}b")));
    let left = user.runs("logs a -o yaml").await;
    assert_eq!(left.out.matches("---\n").count(), 2, "{}", left.out);
    assert!(left.out.contains("cluster: c\n"), "{}", left.out);
}

//! kill -9 of the real process at random points: what was promised holds in the next one.

use crate::support::{Process, answer, bundle, send, text};
use a2a::{SendMessageRequest, Task, TaskState};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use roadstead_contract::bundle::Bundle;
use roadstead_model_server::{ModelServer, Script};
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

const ROUNDS: usize = 16;
const TASKS: usize = 6;
/// Within which tasks of a dead process are gone on with, or ended.
const SOON: Duration = Duration::from_secs(1);
/// For what never comes to be found all the same.
const PATIENCE: Duration = Duration::from_secs(30);

/// An MCP server over standard input and output. `note` writes its number down, for good, and takes a moment; `look`
/// says of itself that it only reads. Each call of either is a line in the book.
const SERVER: &str = r#"
import json, os, sys, time

book = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
schema = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
tools = [{"name": "note", "description": "Notes a number.", "inputSchema": schema},
         {"name": "look", "description": "Looks at a number.", "inputSchema": schema,
          "annotations": {"readOnlyHint": True}}]
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    method, params = request["method"], request.get("params") or {}
    answer = {"jsonrpc": "2.0", "id": request["id"]}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "book", "version": "1"}}
    elif method == "tools/list":
        answer["result"] = {"tools": tools}
    elif method == "tools/call":
        number = params["arguments"]["number"]
        os.write(book, b"%s %d\n" % (params["name"].encode(), number))
        time.sleep(0.03)
        answer["result"] = {"content": [{"type": "text", "text": f"number {number}"}]}
    elif method == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"#;

/// What a task does: answers alone, or after a call that must not be repeated, or after one that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Note,
    Look,
}

/// A message that was sent; its number is in its text.
struct Sent {
    kind: Kind,
    number: u64,
    request: SendMessageRequest,
}

impl Sent {
    fn new(number: u64, random: &mut StdRng) -> Self {
        let kind = [Kind::Plain, Kind::Note, Kind::Look][random.random_range(0..3)];
        let pace = random.random_range(0..40);
        let said = match kind {
            Kind::Plain => format!("say number {number}\nchunks 3 {pace}"),
            Kind::Note => {
                format!("call book/note {{\"number\": {number}}}\nsay number {number}\nchunks 3 {pace}")
            }
            Kind::Look => {
                format!("call book/look {{\"number\": {number}}}\nsay number {number}\nchunks 3 {pace}")
            }
        };
        Self {
            kind,
            number,
            request: text(&said),
        }
    }
}

/// Everything around the processes that are killed.
struct World {
    model: ModelServer,
    folder: tempfile::TempDir,
    spec: Bundle,
}

impl World {
    async fn new() -> Self {
        let model = ModelServer::start(Script::default()).await.expect("a model");
        let folder = tempfile::tempdir().expect("a folder");
        let server = folder.path().join("book.py");
        fs::write(&server, SERVER).expect("written");
        let command = json!(["python3", server, folder.path().join("book")]);
        let more = json!({"tools": [{"server": "book", "allow": ["note", "look"]}]});
        let mut spec = bundle(&model.openai_url(), more);
        let book = json!({"stdio": {"command": command, "timeout": "20s"}, "trustHints": true});
        let book = serde_json::from_value(book).expect("a tool server");
        spec.tool_servers.insert("book".to_owned(), book);
        Self { model, folder, spec }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    async fn start(&self) -> Process {
        Process::with(&self.state(), self.spec.clone()).await
    }

    /// The texts by which the model was asked since its request `from`.
    fn asked(&self, from: usize) -> Vec<String> {
        let requests = self.model.requests().into_iter().skip(from);
        requests.map(|request| request.body.to_string()).collect()
    }

    /// How often each number is in the book, of one tool.
    fn book(&self, tool: &str) -> BTreeMap<u64, usize> {
        let text = fs::read_to_string(self.folder.path().join("book")).unwrap_or_default();
        let mut times = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix(tool)) {
            *times.entry(line.trim().parse().expect("a number")).or_default() += 1;
        }
        times
    }
}

/// Tasks of the journal that have not ended and wait for nobody: uid, and the text that began them.
fn working(state: &Path) -> Vec<(String, String)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let journal = Connection::open_with_flags(state.join("journal.sqlite"), flags).expect("a journal");
    journal.busy_timeout(PATIENCE).expect("set");
    let sql = "SELECT t.uid, (SELECT body FROM messages m WHERE m.task = t.id ORDER BY m.id LIMIT 1)
               FROM tasks t WHERE t.state < 2";
    let mut rows = journal.prepare(sql).expect("SQL");
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.expect("read").collect::<Result<_, _>>().expect("read")
}

/// The number in a message's text.
fn number(body: &str) -> String {
    let at = body.find("number ").expect("a number") + "number ".len();
    let digits = body[at..].chars().take_while(char::is_ascii_digit);
    digits.collect()
}

/// Starts a process on what another left, and waits until each task of it is gone on with: its model is asked again, or
/// it has ended, or it asks a person. How long that took, from the start of the process, and of how many tasks.
async fn resumed(world: &World) -> (Process, Duration, usize) {
    let left: BTreeSet<String> = working(&world.state())
        .iter()
        .map(|(_, body)| number(body))
        .collect();
    let from = world.model.requests().len();
    let started = Instant::now();
    let engine = world.start().await;
    loop {
        let asked = world.asked(from);
        let works: BTreeSet<String> = working(&world.state())
            .iter()
            .map(|(_, body)| number(body))
            .collect();
        let idle = |number: &&String| {
            let text = format!("say number {number}\\n");
            works.contains(*number) && !asked.iter().any(|body| body.contains(&text))
        };
        let idle: Vec<&String> = left.iter().filter(idle).collect();
        if idle.is_empty() {
            return (engine, started.elapsed(), left.len());
        }
        assert!(started.elapsed() < PATIENCE, "not gone on with: {idle:?}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// What the same takes where nothing was killed: a start, and a turn with a call of the tool, which starts its server.
async fn undisturbed(world: &World) -> Duration {
    let started = Instant::now();
    let engine = world.start().await;
    let request = text("call book/look {\"number\": 0}\nsay number 0");
    let found = send(&engine.alice().await, &request).await;
    assert_eq!(found.status.state, TaskState::Completed, "{found:?}");
    let took = started.elapsed();
    engine.kill().await;
    took
}

/// Sends tasks and kills the process in the middle of them.
async fn strike(engine: Process, sent: &mut Vec<Sent>, random: &mut StdRng) {
    let mut sends = Vec::new();
    let alice = Arc::new(engine.alice().await);
    for _ in 0..TASKS {
        let client = Arc::clone(&alice);
        let one = Sent::new(sent.len() as u64 + 1, random);
        let request = one.request.clone();
        sent.push(one);
        sends.push(tokio::spawn(async move {
            client.send_message(&request).await.is_ok()
        }));
    }
    sleep(Duration::from_millis(random.random_range(0..200))).await;
    engine.kill().await;
    for send in sends {
        // Heard or not: both are fine, as long as asking again gives one truth.
        let _ = send.await.expect("joined");
    }
}

/// Asks after every message again: each has one task with one truthful end. The tasks that completed.
async fn ends(engine: &Process, sent: &[Sent]) -> BTreeMap<String, Task> {
    let alice = engine.alice().await;
    let (mut ids, mut completed) = (BTreeSet::new(), BTreeMap::new());
    for one in sent {
        let found = timeout(PATIENCE, send(&alice, &one.request)).await;
        let found = found.expect("no task hangs");
        assert!(
            ids.insert(found.id.clone()),
            "each message began one task: {found:?}"
        );
        match found.status.state {
            TaskState::Completed => {
                assert_eq!(answer(&found), format!("number {}", one.number));
                completed.insert(found.id.clone(), found);
            }
            // Whether the call had its effect is not known: a person is asked, and nobody else.
            TaskState::InputRequired => assert_eq!(one.kind, Kind::Note, "{found:?}"),
            _ => panic!("{found:?}"),
        }
    }
    completed
}

fn called_once(world: &World, sent: &[Sent], answered: impl Fn(u64) -> bool) {
    let (noted, looked) = (world.book("note"), world.book("look"));
    let twice: Vec<_> = noted.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "calls that were silently repeated: {twice:?}");
    for one in sent {
        let book = match one.kind {
            Kind::Plain => continue,
            Kind::Note => &noted,
            Kind::Look => &looked,
        };
        assert!(
            !answered(one.number) || book.contains_key(&one.number),
            "answered, and never called: {}",
            one.number
        );
    }
    let again = looked.values().filter(|times| **times > 1).count();
    eprintln!(
        "{} notes, none twice; {} looks, {again} of them again",
        noted.len(),
        looked.len()
    );
}

/// A busy machine makes a start late; a wait of the engine's own makes every one late. So the median counts, and what
/// an undisturbed start and turn took in the same run is allowed for.
fn soon(mut took: Vec<Duration>, undisturbed: Duration) {
    took.sort_unstable();
    let median = *took.get(took.len() / 2).expect("a process left open tasks");
    eprintln!(
        "gone on with after {median:?} (median of {}; slowest {:?}), undisturbed {undisturbed:?}",
        took.len(),
        took.last()
    );
    assert!(
        median <= SOON + undisturbed,
        "expected within {SOON:?} and what a start takes"
    );
}

#[tokio::test]
async fn killed_at_random_no_task_is_lost_doubled_or_left_hanging() {
    let seed = std::env::var("ROADSTEAD_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random);
    println!("ROADSTEAD_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new().await;
    let undisturbed = undisturbed(&world).await;
    let (mut sent, mut took) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // In half of the rounds the next kill may come before what was left is gone on with.
        let engine = if round % 2 == 0 {
            world.start().await
        } else {
            let (engine, after, left) = resumed(&world).await;
            if left > 0 {
                took.push(after);
            }
            engine
        };
        strike(engine, &mut sent, &mut random).await;
    }
    let (mut engine, after, left) = resumed(&world).await;
    if left > 0 {
        took.push(after);
    }
    soon(took, undisturbed);
    let completed = ends(&engine, &sent).await;
    let answers: BTreeSet<String> = completed.values().map(answer).collect();
    called_once(&world, &sent, |number| {
        answers.contains(&format!("number {number}"))
    });
    // With the undisturbed one. A task that asks has no end yet, and no record.
    let ended = completed.len() + 1;
    let mut records: BTreeMap<String, (u64, String)> = BTreeMap::new();
    while records.len() < ended {
        let run = engine.run_record().await;
        let before = records.insert(run.task_id.clone(), (run.sequence, run.id.clone()));
        assert!(
            before.is_none_or(|b| b == (run.sequence, run.id)),
            "one record a task"
        );
    }
    let mut sequences: Vec<u64> = records.values().map(|(sequence, _)| *sequence).collect();
    sequences.sort_unstable();
    assert!(
        sequences.iter().copied().eq(1..=ended as u64),
        "gapless: {sequences:?}"
    );
}

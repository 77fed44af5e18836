//! The cluster agent without a hub: what is in the inbox runs, and is back after any end. Scripted engines.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use roadstead_agent::{Agent, Config, StartError};
use roadstead_contract::fleet::document_digest;
use roadstead_inbox::{Batch, Change, Document, Inbox, InboxError, Purpose};
use roadstead_runtime::EngineStatus;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};
use tokio::time::Instant;

fn fake_engine() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fake_engine.py")
}

fn change(revision: u64, uid: &str, kind: &str, name: &str, spec: &Value) -> Change {
    let json = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "project": "support"}, "spec": spec});
    let json = serde_json::to_vec(&json).unwrap();
    Change::Upsert {
        revision,
        document: Document {
            uid: uid.to_owned(),
            generation: revision,
            digest: document_digest(&json),
            kind: kind.to_owned(),
            project: "support".to_owned(),
            name: name.to_owned(),
            json,
        },
    }
}

fn spec(description: &str) -> Value {
    json!({"instructions": "Help.", "model": "m", "description": description})
}

/// The inbox, once who held it before has let go.
async fn inbox(state: &Path) -> Inbox {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Inbox::open(&state.join("inbox.db")) {
            Err(InboxError::InUse) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Puts into the inbox what a hub would have sent.
async fn fill(state: &Path, from: u64, changes: Vec<Change>) {
    fs::create_dir_all(state).unwrap();
    let inbox = inbox(state).await;
    let through = from + changes.len() as u64;
    let batch = Batch {
        from,
        through,
        purpose: Purpose::Delta,
        changes,
    };
    inbox.apply(batch).await.unwrap();
}

async fn filled(description: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = json!({"provider": "openaiCompatible", "model": "m", "endpoint": "http://127.0.0.1:1/v1"});
    let changes = vec![
        change(1, "m1", "Model", "m", &model),
        change(2, "a1", "Agent", "notes", &spec(description)),
    ];
    fill(folder.path(), 0, changes).await;
    folder
}

/// Nobody listens there.
const NO_HUB: &str = "127.0.0.1:1";

fn config(state: &Path) -> Config {
    let mut config = Config::new(NO_HUB.to_owned(), state.to_path_buf(), fake_engine());
    config.probe = Some(([127, 0, 0, 1], 0).into());
    config.grace = Duration::from_millis(500);
    config
}

async fn until(agent: &Agent, uid: &str, what: &str, is: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
    let mut changes = agent.engine_changes();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = agent.engines().remove(uid);
        if let Some(status) = status.clone().filter(|s| is(s)) {
            return status;
        }
        let next = tokio::time::timeout_at(deadline, changes.changed()).await;
        assert!(next.is_ok(), "{uid} did not become {what}: {status:?}");
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let asked = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn ask(address: SocketAddr, path: &'static str) -> String {
    tokio::task::spawn_blocking(move || get(address, path))
        .await
        .unwrap()
}

#[tokio::test]
async fn what_the_inbox_holds_runs_without_a_hub() {
    let folder = filled("").await;
    let agent = Agent::start(config(folder.path())).await.unwrap();
    let first = until(&agent, "a1", "ready", EngineStatus::ready).await;
    assert_eq!(first.applied.unwrap().0, 2);
    let probe = agent.probe().unwrap();
    assert!(ask(probe, "/livez").await.starts_with("HTTP/1.1 200"));
    let ready = ask(probe, "/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("hub: away"),
        "{ready}"
    );
    assert!(ask(probe, "/metrics").await.starts_with("HTTP/1.1 200"));
    assert!(ask(probe, "/token").await.starts_with("HTTP/1.1 404"));
    let gave_up = agent.gave_up().await;
    assert!(gave_up.to_string().contains("no identity"), "{gave_up}");
    assert!(agent.engines()["a1"].ready(), "engines go on");

    let second = Agent::start(config(folder.path())).await;
    assert!(matches!(second, Err(StartError::Running { .. })), "{second:?}");
    agent.shutdown().await;

    // What changed meanwhile is what runs next.
    fill(
        folder.path(),
        2,
        vec![change(3, "a1", "Agent", "notes", &spec("another"))],
    )
    .await;
    let agent = Agent::start(config(folder.path())).await.unwrap();
    let status = until(&agent, "a1", "ready", EngineStatus::ready).await;
    assert_eq!(status.applied.unwrap().0, 3);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_document_that_turned_bad_leaves_the_last_good_one() {
    let folder = filled("").await;
    let agent = Agent::start(config(folder.path())).await.unwrap();
    until(&agent, "a1", "ready", EngineStatus::ready).await;
    agent.shutdown().await;
    let bad = json!({"instructions": "Help.", "model": "gone"});
    fill(folder.path(), 2, vec![change(3, "a1", "Agent", "notes", &bad)]).await;
    let agent = Agent::start(config(folder.path())).await.unwrap();
    let status = until(&agent, "a1", "ready", EngineStatus::ready).await;
    assert_eq!(status.applied.unwrap().0, 2);
    agent.shutdown().await;
}

#[tokio::test]
async fn run_records_wait_on_disk_for_the_hub() {
    let folder = filled("runs").await;
    let agent = Agent::start(config(folder.path())).await.unwrap();
    // The scripted engine's records name the agent a1, as they must; it ends them once they are kept.
    until(&agent, "a1", "ready", EngineStatus::ready).await;
    let heard = folder.path().join("agents/a1/journal/heard");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(&heard)
        .unwrap_or_default()
        .contains("\"kept\": 5")
    {
        assert!(Instant::now() < deadline, "the engine never forgot its records");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.shutdown().await;
    let inbox = inbox(folder.path()).await;
    let waiting = inbox.pending_runs(0, 100).await.unwrap();
    assert_eq!(waiting.len(), 5);
}

#[tokio::test]
async fn probes_are_for_this_machine_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.probe = Some(([0, 0, 0, 0], 0).into());
    let refused = Agent::start(config).await.unwrap_err();
    assert!(refused.to_string().contains("loopback"), "{refused}");
}

/// The program itself, killed when the test ends.
struct Program(Child);

impl Program {
    /// Its log goes to the file `log` in its state folder.
    fn run(state: &Path) -> Self {
        let log = fs::File::create(state.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_roadstead-agent"))
            .args(["run", "--hub", NO_HUB, "--grace", "1", "--state"])
            .arg(state)
            .env("ROADSTEAD_ENGINE", fake_engine())
            .stderr(log)
            .spawn();
        Self(child.unwrap())
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(std::time::Instant::now() < deadline, "the program does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes whose environment or arguments name this folder: what a cluster agent started.
fn engines(state: &Path) -> Vec<u32> {
    let journal = state.join("agents");
    let named = journal.to_str().unwrap().as_bytes().to_vec();
    let folders = fs::read_dir("/proc").unwrap().flatten();
    let pids = folders.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        argv.windows(named.len()).any(|part| part == named)
    })
    .collect()
}

fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_killed_cluster_agent_is_ready_again_and_leaves_no_process() {
    let folder = filled("").await;
    let state = folder.path().canonicalize().unwrap();
    let address = state.join("engines/support.notes/address");
    for round in 0..5u64 {
        let _ = fs::remove_file(&address);
        let mut program = Program::run(&state);
        let within = Duration::from_secs(5);
        wait_for("the engine serves again within 5 s", within, || {
            fs::read_to_string(&address).ok()
        });
        // At another point of its work each time.
        std::thread::sleep(Duration::from_millis(round * 7));
        program.signal("-9");
        program.wait();
        wait_for("its engine ends", Duration::from_secs(5), || {
            engines(&state).is_empty().then_some(())
        });
    }
    let mut program = Program::run(&state);
    let serving = || {
        fs::read_to_string(&address)
            .ok()
            .filter(|_| !engines(&state).is_empty())
    };
    wait_for("the engine serves", Duration::from_secs(5), serving);
    // No hub was ever joined, and that is what the exit code says.
    wait_for("the hub is given up", Duration::from_secs(5), || {
        let log = fs::read_to_string(state.join("log")).unwrap();
        log.contains("the hub is not tried any more").then_some(())
    });
    program.signal("-TERM");
    assert_eq!(program.wait().code(), Some(1));
    assert!(engines(&state).is_empty());
    assert!(!address.exists());
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong() {
    let folder = filled("").await;
    let examine = || {
        Command::new(env!("CARGO_BIN_EXE_roadstead-agent"))
            .args(["doctor", "--hub", NO_HUB, "--state"])
            .arg(folder.path())
            .env("ROADSTEAD_ENGINE", "/nowhere/roadstead-engine")
            .output()
            .unwrap()
    };
    // Whoever filled the inbox may hold it a moment longer.
    let said = wait_for("the inbox is free", Duration::from_secs(20), || {
        let said = examine();
        (!String::from_utf8_lossy(&said.stdout).contains("held by")).then_some(said)
    });
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said.status.code(), Some(1));
    for line in [
        "ok    inbox: 2 documents at revision 2",
        "WRONG engine: no engine at /nowhere/roadstead-engine",
        "WRONG identity: this cluster has not joined",
        "WRONG hub: 127.0.0.1:1 cannot be reached",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

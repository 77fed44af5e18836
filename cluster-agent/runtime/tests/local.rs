//! The local runtime with a scripted engine: real processes, real pipes.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use futures::StreamExt as _;
use roadstead_contract::{bundle::Bundle, documents::AgentSpec, run::RunRecord};
use roadstead_plan::{Action, EngineUnit, Process};
use roadstead_runtime::{Config, EngineStatus, HubTrust, Local, Phase, RunSink, Timing};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    error::Error,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// An outbox in memory that can be made to fail.
#[derive(Default)]
struct Outbox {
    kept: Mutex<Vec<RunRecord>>,
    broken: AtomicBool,
    refusals: AtomicU32,
}

#[async_trait::async_trait]
impl RunSink for Outbox {
    async fn keep(&self, records: Vec<RunRecord>) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.broken.load(Ordering::SeqCst) {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            return Err("the disk is full".into());
        }
        self.kept.lock().unwrap().extend(records);
        Ok(())
    }
}

struct Harness {
    folder: tempfile::TempDir,
    local: Local,
    outbox: Arc<Outbox>,
}

fn config(folder: &std::path::Path) -> Config {
    let engine = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake_engine.py");
    let mut config = Config::new(engine, folder.join("state"));
    config.offered = ["TEST_KEY".to_owned()].into();
    let own = config.lookup.clone();
    config.lookup = Arc::new(move |name| match name {
        "TEST_KEY" => Some("canary-0123456789".to_owned()),
        "OTHER_KEY" => Some("never".to_owned()),
        _ => own(name),
    });
    config.timing = Timing {
        start: Duration::from_secs(5),
        answer: Duration::from_secs(2),
        grace: Duration::from_millis(500),
        memory: Duration::from_millis(100),
    };
    config
}

impl Harness {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::open(folder)
    }

    fn open(folder: tempfile::TempDir) -> Self {
        let outbox = Arc::new(Outbox::default());
        let local = Local::open(config(folder.path()), outbox.clone()).unwrap();
        Self {
            folder,
            local,
            outbox,
        }
    }

    fn journal(&self, uid: &str) -> PathBuf {
        self.folder.path().join("state/agents").join(uid).join("journal")
    }

    /// Makes the engine misbehave before it was told anything.
    fn mode(&self, uid: &str, mode: &str) {
        let journal = self.journal(uid);
        std::fs::create_dir_all(&journal).unwrap();
        std::fs::write(journal.join("mode"), mode).unwrap();
    }

    fn heard(&self, uid: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.journal(uid).join("heard")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn start(&self, unit: EngineUnit) {
        self.local.take(vec![Action::Start(Box::new(unit))]);
    }

    fn hand_over(&self, unit: EngineUnit) {
        self.local.take(vec![Action::HandOver(Box::new(unit))]);
    }

    /// Waits for a state of one engine.
    async fn until(&self, uid: &str, what: &str, is: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        let mut changes = self.local.changes();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.local.status(uid);
            if let Some(status) = status.clone().filter(|s| is(s)) {
                return status;
            }
            let next = tokio::time::timeout_at(deadline, changes.changed()).await;
            assert!(next.is_ok(), "{uid} did not become {what}: {status:?}");
        }
    }

    async fn ready(&self, uid: &str) -> EngineStatus {
        self.until(uid, "ready", EngineStatus::ready).await
    }

    async fn log_has(&self, uid: &str, text: &str) -> String {
        let mut lines = self.local.logs(uid, 1000, true).unwrap();
        let find = async {
            loop {
                let line = lines.next().await.unwrap();
                if line.text.contains(text) {
                    return line.text.clone();
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), find).await;
        found.unwrap_or_else(|_| panic!("{text:?} never appeared in the log"))
    }
}

/// Waits until something outside the runtime holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn unit(uid: &str, generation: u64, description: &str) -> EngineUnit {
    let agent: AgentSpec =
        serde_json::from_value(json!({"instructions": "Help.", "model": "m", "description": description}))
            .unwrap();
    let bundle = Bundle {
        project: "support".parse().unwrap(),
        name: format!("agent-{uid}").parse().unwrap(),
        uid: uid.to_owned(),
        generation,
        agent,
        models: BTreeMap::new(),
        tool_servers: BTreeMap::new(),
        prompts: BTreeMap::new(),
    };
    EngineUnit {
        digest: bundle.digest(),
        process: Process::default(),
        peers: BTreeMap::new(),
        callers: BTreeMap::new(),
        environment: Default::default(),
        sources: BTreeMap::from([(uid.to_owned(), generation)]),
        bundle,
    }
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn kill9(pid: u32) {
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
    assert!(killed.unwrap().success());
}

const GRACE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_revision_is_handed_to_the_running_engine() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "one"));
    let first = harness.ready("a").await;
    harness.hand_over(unit("a", 2, "two"));
    let second = harness
        .until("a", "generation 2", |s| {
            s.applied.as_ref().is_some_and(|(g, _)| *g == 2)
        })
        .await;
    assert_eq!(first.pid, second.pid, "no restart");
    assert_eq!((second.phase, second.restarts), (Phase::Ready, 0));
    assert_eq!(harness.local.observed().engines["a"], unit("a", 2, "two"));
    harness.local.shutdown(GRACE).await;
    assert!(harness.local.statuses().is_empty());
    assert!(!alive(second.pid.unwrap()));
}

#[tokio::test]
async fn changed_process_settings_start_another_process() {
    let harness = Harness::new();
    harness.start(unit("a", 1, ""));
    let first = harness.ready("a").await;
    let mut limited = unit("a", 2, "");
    limited.process.memory_limit = Some(1 << 30);
    limited.process.cpu_limit = Some(500);
    harness.local.take(vec![Action::Restart(Box::new(limited))]);
    let second = harness
        .until("a", "another process", |s| s.ready() && s.pid != first.pid)
        .await;
    assert_eq!(second.applied.unwrap().0, 2);
    assert_eq!(second.unenforced, ["spec.runtime.resources.limits.cpu"]);
    assert!(!alive(first.pid.unwrap()));
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_refused_revision_leaves_the_one_before() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "good"));
    let first = harness.ready("a").await;
    harness.hand_over(unit("a", 2, "refuse"));
    let refused = harness.until("a", "refused", |s| s.refused.is_some()).await;
    assert_eq!(refused.refused.as_ref().unwrap().generation, 2);
    assert_eq!(refused.refused.as_ref().unwrap().reason, "the script says no");
    assert_eq!(
        (refused.applied.as_ref().unwrap().0, refused.phase),
        (1, Phase::Ready)
    );
    assert!(refused.settled());

    // A new process has no revision before: it gets the last good one, and the refusal stays in sight.
    kill9(first.pid.unwrap());
    let again = harness
        .until("a", "back", |s| {
            s.ready() && s.pid.is_some() && s.pid != first.pid
        })
        .await;
    assert_eq!(again.applied.unwrap().0, 1);
    assert!(again.refused.is_some());

    harness.hand_over(unit("a", 3, "mended"));
    let mended = harness
        .until("a", "mended", |s| {
            s.applied.as_ref().is_some_and(|(g, _)| *g == 3)
        })
        .await;
    assert_eq!(mended.refused, None);
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn the_last_good_one_outlives_the_cluster_agent() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "good"));
    harness.ready("a").await;
    harness.hand_over(unit("a", 2, "refuse"));
    harness.until("a", "refused", |s| s.refused.is_some()).await;
    harness.local.shutdown(GRACE).await;

    let harness = Harness::open(harness.folder);
    assert_eq!(harness.local.observed().stored["a"], unit("a", 1, "good"));
    assert!(harness.local.observed().engines.is_empty());
    harness.start(unit("a", 2, "refuse"));
    let status = harness.ready("a").await;
    assert_eq!(status.applied.unwrap().0, 1);
    assert_eq!(status.refused.unwrap().generation, 2);
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn an_engine_that_is_killed_again_and_again_is_soon_back() {
    let harness = Harness::new();
    harness.start(unit("a", 1, ""));
    let mut pid = harness.ready("a").await.pid;
    for round in 0..6 {
        kill9(pid.unwrap());
        let since = Instant::now();
        let status = harness.until("a", "back", |s| s.ready() && s.pid != pid).await;
        assert!(since.elapsed() < Duration::from_secs(5), "round {round}");
        assert_eq!(status.restarts, round + 1);
        pid = status.pid;
    }
    harness.log_has("a", "was ended by signal 9").await;
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn engines_that_do_not_work_are_killed_and_say_why() {
    let harness = Harness::new();
    let from_the_start = [
        ("exit", "exit", "exit code 4"),
        ("silent", "silent", "did not say where it listens"),
        ("nonsense", "nonsense", "does not speak control frames"),
        ("flood", "flood", "sends a line without end"),
        ("outside", "outside", "not loopback"),
    ];
    let with_a_revision = [
        ("hang", "hang", "did not answer a revision in time"),
        ("crash", "crash", "exit code 3"),
    ];
    for (uid, mode, _) in from_the_start {
        harness.mode(uid, mode);
        harness.start(unit(uid, 1, ""));
    }
    for (uid, description, _) in with_a_revision {
        harness.start(unit(uid, 1, description));
    }
    for (uid, _, why) in from_the_start.into_iter().chain(with_a_revision) {
        let status = harness
            .until(uid, "waiting", |s| {
                s.phase == Phase::Waiting && s.reason.contains(why)
            })
            .await;
        assert_eq!((status.pid, status.address), (None, None), "{uid}");
        assert!(status.failures > 0, "{uid}");
    }
    harness.log_has("crash", "about to crash").await;

    // None of them held up another, and a new revision is tried without waiting for the backoff's end.
    harness.hand_over(unit("crash", 2, "mended"));
    harness.ready("crash").await;
    harness.local.shutdown(GRACE).await;
    assert!(harness.local.statuses().is_empty());
}

#[tokio::test]
async fn an_engine_that_is_not_ready_says_why() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "unready"));
    let status = harness
        .until("a", "not ready", |s| {
            s.phase == Phase::NotReady && s.reason == "told so"
        })
        .await;
    assert!(status.applied.is_some() && status.settled());
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn more_memory_than_the_limit_ends_the_process() {
    let harness = Harness::new();
    let mut hog = unit("a", 1, "hog");
    hog.process.memory_limit = Some(64 << 20);
    harness.start(hog);
    harness
        .until("a", "over its limit", |s| s.reason.contains("bytes of memory"))
        .await;
    harness.local.shutdown(GRACE).await;
}

/// What somebody in the process that was started for a test wrote down.
fn noted(harness: &Harness, uid: &str, what: &str) -> Option<u32> {
    let heard = harness.heard(uid);
    let pid = heard.iter().rev().find_map(|h| h[what].as_u64())?;
    Some(u32::try_from(pid).unwrap())
}

#[tokio::test]
async fn memory_of_a_daemon_counts_and_it_ends_with_its_engine() {
    let harness = Harness::new();
    let mut small = unit("a", 1, "daemon");
    small.process.memory_limit = Some(64 << 20);
    harness.start(small);
    let first = harness.ready("a").await;
    eventually("a daemon runs", || noted(&harness, "a", "daemon").is_some()).await;
    let daemon = noted(&harness, "a", "daemon").unwrap();
    assert!(alive(daemon) && alive(first.pid.unwrap()));

    let mut fat = unit("b", 1, "daemon fat");
    fat.process.memory_limit = Some(64 << 20);
    harness.start(fat);
    let held = harness
        .until("b", "over its limit", |s| s.reason.contains("bytes of memory"))
        .await;
    let bytes: u64 = held
        .reason
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap();
    // An engine without one is inside the limit, as the first is.
    assert!(bytes > 64 << 20, "{}", held.reason);
    let fat = noted(&harness, "b", "daemon").unwrap();
    eventually("the daemon ends with its engine", || !alive(fat)).await;
    assert!(alive(daemon), "the other agent's was not to end");
    harness.local.shutdown(GRACE).await;
    // This process adopts nobody, so what an engine leaves when it ends by itself is not found here.
    kill9(daemon);
}

#[tokio::test]
async fn nothing_that_an_engine_started_outlives_it() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "child"));
    let engine = harness.ready("a").await.pid.unwrap();
    let child = || {
        let heard = harness.heard("a");
        heard
            .iter()
            .find_map(|h| h["child"].as_u64())
            .map(|pid| u32::try_from(pid).unwrap())
    };
    eventually("the engine starts its child", || child().is_some()).await;
    let child = child().unwrap();
    kill9(engine);
    eventually("the child ends", || !alive(child)).await;
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_drain_that_is_ignored_ends_by_force() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "stubborn"));
    let pid = harness.ready("a").await.pid.unwrap();
    let since = Instant::now();
    harness.local.shutdown(Duration::from_millis(200)).await;
    assert!(since.elapsed() < Duration::from_secs(3));
    assert!(!alive(pid));
    assert!(harness.heard("a").iter().any(|h| h["drain"] == 200));
    assert!(harness.local.observed().engines.is_empty());
}

#[tokio::test]
async fn an_agent_that_leaves_takes_its_address_and_comes_back_to_its_journal() {
    let harness = Harness::new();
    harness.start(unit("a", 1, ""));
    let first = harness.ready("a").await;
    let public = harness.folder.path().join("state/engines/support.agent-a");
    let address = std::fs::read_to_string(public.join("address")).unwrap();
    assert_eq!(address, first.address.unwrap().to_string());
    harness.local.take(vec![Action::Stop { uid: "a".to_owned() }]);
    assert!(
        harness.local.observed().engines.is_empty(),
        "what ends is not running"
    );
    // Asked back while the old process may still end: one process at a time on a journal.
    harness.start(unit("a", 2, ""));
    let second = harness
        .until("a", "back", |s| s.ready() && s.pid != first.pid)
        .await;
    assert_eq!(second.applied.unwrap().0, 2);
    assert!(!alive(first.pid.unwrap()));
    harness.local.take(vec![Action::Stop { uid: "a".to_owned() }]);
    eventually("the agent leaves", || harness.local.status("a").is_none()).await;
    assert!(!public.exists());
    assert!(harness.journal("a").exists(), "conversations are kept");
    assert!(harness.local.observed().stored.is_empty());
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn s75_local_callers_and_peers_have_tokens_of_their_own() {
    use sha2::Digest as _;
    use std::os::unix::fs::PermissionsExt as _;
    let harness = Harness::new();
    let mut caller = unit("a", 1, "");
    caller.peers = [("translator".to_owned(), "b".to_owned())].into();
    let mut called = unit("b", 1, "");
    called.callers = [("a".to_owned(), "support/agent-a".to_owned())].into();
    harness.local.trust(HubTrust {
        jwks: Some(json!({"keys": []})),
        issuer: Some("https://hub".to_owned()),
    });
    harness.start(caller);
    harness.start(called);
    harness.ready("a").await;
    let b = harness.ready("b").await;
    let peer = || {
        let heard = harness.heard("a");
        let last = heard.iter().rev().find_map(|h| h["peers"].get("translator"));
        last.cloned()
    };
    let url = |status: &EngineStatus| format!("http://{}", status.address.unwrap());
    eventually("the caller learns the address", || {
        peer().is_some_and(|p| p["url"] == url(&b))
    })
    .await;
    let token = peer().unwrap()["token"].as_str().unwrap().to_owned();
    let trust = harness
        .heard("b")
        .iter()
        .rev()
        .find_map(|h| h.get("trust").cloned())
        .unwrap();
    assert_eq!(trust["issuer"], "https://hub");
    let callers = trust["callers"].as_array().unwrap();
    let hash = |token: &str| hex::encode(sha2::Sha256::digest(token));
    let agent = callers
        .iter()
        .find(|c| c["subject"] == "agent:support/agent-a")
        .unwrap();
    assert_eq!(
        (agent["tokenSha256"] == hash(&token), &agent["delegates"]),
        (true, &json!(true))
    );

    let file = harness.folder.path().join("state/engines/support.agent-b/token");
    let local = std::fs::read_to_string(&file).unwrap();
    let outside = callers.iter().find(|c| c["subject"] == "local").unwrap();
    assert_eq!(
        (outside["tokenSha256"] == hash(&local), &outside["delegates"]),
        (true, &json!(false))
    );
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(callers.len(), 2);

    // The called engine comes back elsewhere: its caller is told.
    kill9(b.pid.unwrap());
    let again = harness.until("b", "back", |s| s.ready() && s.pid != b.pid).await;
    eventually("the caller learns the new address", || {
        peer().is_some_and(|p| p["url"] == url(&again))
    })
    .await;
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn s62_only_offered_values_travel_and_none_is_seen() {
    let harness = Harness::new();
    let mut leak = unit("a", 1, "leak");
    leak.environment = ["TEST_KEY".to_owned(), "OTHER_KEY".to_owned()].into();
    harness.start(leak);
    let status = harness.ready("a").await;
    let line = harness.log_has("a", "key=").await;
    assert_eq!(line, "key=***");
    let heard = harness.heard("a");
    let applied = heard.iter().find(|h| h.get("apply").is_some()).unwrap();
    assert_eq!(applied["secrets"], json!(["TEST_KEY"]));
    let started = heard.iter().find(|h| h.get("environment").is_some()).unwrap();
    let environment: Vec<&str> = started["environment"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    // Cargo sets it for tests; the interpreter's own wrapper may add others.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(environment.contains(&"PATH"), "{environment:?}");
    assert!(
        !environment.iter().any(|name| name.starts_with("CARGO")),
        "{environment:?}"
    );
    let limits = started["core"].as_str().unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    let pid = status.pid.unwrap();
    let seen = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    for bytes in [seen, argv] {
        assert!(!String::from_utf8_lossy(&bytes).contains("canary"));
    }
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn run_records_are_kept_before_the_engine_forgets_them() {
    let harness = Harness::new();
    harness.outbox.broken.store(true, Ordering::SeqCst);
    harness.start(unit("a", 1, "runs"));
    harness.ready("a").await;
    let forgets = || {
        harness
            .heard("a")
            .iter()
            .rev()
            .find_map(|h| h["kept"].as_u64())
            .unwrap_or(0)
    };
    // While the outbox fails nothing is forgotten; later everything is there.
    eventually("the outbox refuses", || {
        harness.outbox.refusals.load(Ordering::SeqCst) > 1
    })
    .await;
    assert_eq!(forgets(), 0);
    harness.outbox.broken.store(false, Ordering::SeqCst);
    eventually("the engine forgets", || forgets() == 5).await;
    let kept = harness.outbox.kept.lock().unwrap().clone();
    let mut sequences: Vec<u64> = kept.iter().map(|r| r.sequence).collect();
    sequences.dedup();
    assert_eq!(sequences[..5], [1, 2, 3, 4, 5], "{sequences:?}");
    assert!(
        kept.iter().all(|r| r.agent_uid == "a"),
        "no record in another's name"
    );
    harness.local.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_flood_of_log_lines_leaves_the_engine_in_control() {
    let harness = Harness::new();
    harness.start(unit("a", 1, "flood"));
    harness.start(unit("b", 1, ""));
    harness.ready("a").await;
    harness.ready("b").await;
    let folder = harness.folder.path().join("state/agents/a");
    eventually("the log is rotated", || folder.join("engine.log.1").exists()).await;
    harness.hand_over(unit("a", 2, "calm"));
    harness
        .until("a", "generation 2", |s| {
            s.applied.as_ref().is_some_and(|(g, _)| *g == 2)
        })
        .await;
    harness.local.shutdown(GRACE).await;
}

/// The test binary starts itself as the cluster agent's part, so that it can be killed.
#[tokio::test]
async fn no_engine_outlives_a_killed_runtime() {
    const ROLE: &str = "ROADSTEAD_TEST_RUNTIME_FOLDER";
    if let Ok(folder) = std::env::var(ROLE) {
        let outbox = Arc::new(Outbox::default());
        let local = Local::open(config(std::path::Path::new(&folder)), outbox).unwrap();
        for (uid, description) in [("a", ""), ("b", "stubborn")] {
            local.take(vec![Action::Start(Box::new(unit(uid, 1, description)))]);
        }
        std::future::pending::<()>().await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_engine_outlives_a_killed_runtime", "--nocapture"])
        .env(ROLE, folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let noted = |uid: &str| {
        let heard = folder.path().join("state/agents").join(uid).join("journal/heard");
        let text = std::fs::read_to_string(heard).unwrap_or_default();
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect();
        let applied = lines.iter().any(|l| l.get("applied").is_some());
        lines
            .first()
            .filter(|_| applied)
            .and_then(|l| l["pid"].as_u64())
            .map(|pid| u32::try_from(pid).unwrap())
    };
    eventually("both engines run", || {
        noted("a").is_some() && noted("b").is_some()
    })
    .await;
    let (a, b) = (noted("a").unwrap(), noted("b").unwrap());
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the engine ends with its pipe", || !alive(a)).await;

    // One that ignores the end of its pipe ends when the next cluster agent needs its journal.
    assert!(alive(b));
    let harness = Harness::open(folder);
    harness.start(unit("b", 2, ""));
    harness.ready("b").await;
    assert!(!alive(b));
    harness.local.shutdown(GRACE).await;
}

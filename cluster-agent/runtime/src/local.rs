//! The handle of the local runtime.

use crate::{
    config::{Config, ConfigError},
    folder::Root,
    logs::{Log, LogStream},
    spawn,
    status::{EngineStatus, Phase},
    supervisor::{End, Supervisor, Wanted},
};
use parking_lot::Mutex;
use rand::RngCore as _;
use roadstead_contract::{
    control::{Caller, Peer, SecretText, Trust},
    run::RunRecord,
};
use roadstead_plan::{Action, EngineUnit, Observed};
use roadstead_processes::{Id, Listing};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fmt, io,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where run records go: the outbox on disk.
#[async_trait::async_trait]
pub trait RunSink: Send + Sync + 'static {
    /// Keeps records for good: when this returns `Ok` the engine forgets them. May see a record again; its id makes
    /// it the same.
    ///
    /// # Errors
    /// The records are not kept; they are brought again.
    async fn keep(&self, records: Vec<RunRecord>) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The hub's keys, for the tokens that it calls engines with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HubTrust {
    /// JWK Set (RFC 7517).
    pub jwks: Option<serde_json::Value>,
    /// Expected `iss`.
    pub issuer: Option<String>,
}

/// Engines as child processes. Cheap to clone. When the process ends without [`Local::shutdown`], engines end by the
/// end of their standard input.
#[derive(Clone)]
pub struct Local {
    shared: Arc<Shared>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

struct Shared {
    config: Arc<Config>,
    root: Root,
    sink: Arc<dyn RunSink>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<String, Slot>,
    stored: BTreeMap<String, EngineUnit>,
    hub: HubTrust,
    /// The token with which one agent calls another: (caller, called).
    edges: HashMap<(String, String), SecretText>,
    /// Numbers supervisors, so that one that ends late does not speak for its successor.
    supervisors: u64,
    closed: bool,
}

/// One agent.
struct Slot {
    supervisor: u64,
    wanted: watch::Sender<Wanted>,
    status: EngineStatus,
    log: Arc<Log>,
    /// Of callers outside.
    token_sha256: String,
    ended: CancellationToken,
    /// Why the process was killed from outside its supervisor.
    note: Option<String>,
    /// The process that was above its memory limit, while it is being killed.
    clearing: Option<Id>,
}

impl Slot {
    fn ending(&self) -> bool {
        self.wanted.borrow().end.is_some()
    }
}

impl Local {
    /// Opens the runtime's folder. Starts nothing: the first [`Local::take`] does.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn open(config: Config, sink: Arc<dyn RunSink>) -> Result<Self, ConfigError> {
        if !config.engine.is_file() {
            return Err(ConfigError::NoEngine { path: config.engine });
        }
        let root = Root::open(&config.state).map_err(|source| ConfigError::State {
            path: config.state.clone(),
            source,
        })?;
        let stored = root
            .stored()
            .into_iter()
            .map(|unit| (unit.uid().to_owned(), unit));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stored: stored.collect(),
                ..State::default()
            }),
            config: Arc::new(config),
            root,
            sink,
            changes: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let (weak, stop) = (Arc::downgrade(&shared), shared.stop.clone());
        let every = shared.config.timing.memory;
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(shared) = weak.upgrade() else { break };
                shared.hold_memory().await;
            }
        }));
        Ok(Self { shared })
    }

    /// What the next plan needs to know.
    #[must_use]
    pub fn observed(&self) -> Observed {
        let state = self.shared.state.lock();
        let running = state.slots.iter().filter(|(_, slot)| !slot.ending());
        Observed {
            engines: running
                .map(|(uid, slot)| (uid.clone(), (*slot.wanted.borrow().unit).clone()))
                .collect(),
            stored: state.stored.clone(),
        }
    }

    /// Takes the steps of a plan. Returns at once; supervisors carry them out.
    pub fn take(&self, steps: Vec<Action>) {
        let mut state = self.shared.state.lock();
        if state.closed {
            return;
        }
        for step in steps {
            match step {
                Action::Start(unit) | Action::HandOver(unit) => self.shared.give(&mut state, *unit, false),
                Action::Restart(unit) => self.shared.give(&mut state, *unit, true),
                Action::Stop { uid } => self.shared.retire(&mut state, &uid),
            }
        }
        refresh(&mut state);
    }

    /// Ends an agent's process, after the grace that running tasks have, and starts another with the same unit. Returns
    /// at once, with how the engine was; `None` where no such agent runs here.
    #[must_use]
    pub fn restart(&self, uid: &str) -> Option<EngineStatus> {
        let state = self.shared.state.lock();
        let slot = state.slots.get(uid).filter(|slot| !slot.ending())?;
        let before = slot.status.clone();
        slot.wanted.send_modify(|wanted| wanted.restarts += 1);
        Some(before)
    }

    /// What running tasks get when a process is to end.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.shared.config.timing.grace
    }

    /// The hub's keys, for every engine. The keys before are gone with it.
    pub fn trust(&self, hub: HubTrust) {
        let mut state = self.shared.state.lock();
        if state.hub != hub {
            state.hub = hub;
            refresh(&mut state);
        }
    }

    /// One engine; `None` where no such agent runs here.
    #[must_use]
    pub fn status(&self, uid: &str) -> Option<EngineStatus> {
        self.shared
            .state
            .lock()
            .slots
            .get(uid)
            .map(|slot| slot.status.clone())
    }

    /// Every engine, by the agent's uid.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<String, EngineStatus> {
        let state = self.shared.state.lock();
        let each = state.slots.iter();
        each.map(|(uid, slot)| (uid.clone(), slot.status.clone()))
            .collect()
    }

    /// Changes whenever any status does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The last `tail` lines of an engine's log, then what comes if `follow`; `None` where no such agent runs here.
    #[must_use]
    pub fn logs(&self, uid: &str, tail: usize, follow: bool) -> Option<LogStream> {
        let log = self
            .shared
            .state
            .lock()
            .slots
            .get(uid)
            .map(|slot| slot.log.clone());
        log.map(|log| log.stream(tail, follow))
    }

    /// Ends every engine: running tasks get `grace`, then whatever still runs is killed. No step is taken any more.
    pub async fn shutdown(&self, grace: Duration) {
        {
            let mut state = self.shared.state.lock();
            state.closed = true;
            for slot in state.slots.values() {
                slot.wanted.send_if_modified(|wanted| {
                    let first = wanted.end.is_none();
                    if first {
                        wanted.end = Some(End { grace, retire: false });
                    }
                    first
                });
            }
        }
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let all = tokio::time::timeout(grace + Duration::from_secs(3), self.shared.tasks.wait()).await;
        if all.is_err() {
            let left = self.statuses();
            tracing::error!(
                engines = left.len(),
                "engines did not end in time; they are killed"
            );
            spawn::clear_all(left.values().filter_map(|status| status.process).collect()).await;
        }
    }
}

impl Shared {
    /// Gives a unit to its supervisor, a new one if there is none.
    fn give(self: &Arc<Self>, state: &mut State, unit: EngineUnit, restart: bool) {
        let uid = unit.uid().to_owned();
        if let Some(slot) = state.slots.get_mut(&uid).filter(|slot| !slot.ending()) {
            slot.status.unenforced = unenforced(&unit);
            if slot.status.wanted.1 != unit.digest {
                slot.status.failures = 0;
            }
            slot.status.wanted = (unit.bundle.generation, unit.digest.clone());
            slot.wanted.send_modify(|wanted| {
                wanted.unit = Arc::new(unit);
                wanted.restarts += u64::from(restart);
            });
            return;
        }
        let folder = self.root.agent(&unit);
        let token = match folder.open(token) {
            Ok(token) => token,
            Err(error) => {
                // Without a folder there is no journal. The next plan tries again.
                tracing::error!(agent = uid, %error, "an agent's folder cannot be made");
                return;
            }
        };
        state.supervisors += 1;
        let (wanted, watched) = watch::channel(Wanted {
            unit: Arc::new(unit.clone()),
            restarts: 0,
            trust: Arc::default(),
            peers: Arc::default(),
            end: None,
        });
        let slot = Slot {
            supervisor: state.supervisors,
            wanted,
            status: EngineStatus {
                wanted: (unit.bundle.generation, unit.digest.clone()),
                unenforced: unenforced(&unit),
                ..EngineStatus::default()
            },
            log: Arc::new(Log::new(folder.log())),
            token_sha256: sha256(&token),
            ended: CancellationToken::new(),
            note: None,
            clearing: None,
        };
        let report = Report {
            shared: self.clone(),
            uid: uid.clone(),
            supervisor: slot.supervisor,
        };
        let (log, ended) = (slot.log.clone(), slot.ended.clone());
        let after = state.slots.insert(uid.clone(), slot).map(|earlier| earlier.ended);
        let supervisor = Supervisor {
            config: self.config.clone(),
            folder,
            log,
            wanted: watched,
            report: report.clone(),
            sink: self.sink.clone(),
            good: state.stored.remove(&uid).map(Arc::new),
            after,
            token,
        };
        // The first values must be complete before an engine sees them.
        refresh(state);
        self.changes.send_modify(|count| *count += 1);
        self.tasks.spawn(async move {
            supervisor.run().await;
            ended.cancel();
            report.gone();
        });
    }

    fn retire(&self, state: &mut State, uid: &str) {
        if state.stored.remove(uid).is_some() {
            self.root.forget(uid);
        }
        if let Some(slot) = state.slots.get(uid) {
            let grace = self.config.timing.grace;
            slot.wanted
                .send_modify(|wanted| wanted.end = Some(End { grace, retire: true }));
        }
    }

    /// Kills every engine that holds more memory than its limit, together with all that it started. Does not wait for
    /// their end: the others are watched meanwhile.
    async fn hold_memory(self: &Arc<Self>) {
        let limited: Vec<(String, Id, u64)> = {
            let state = self.state.lock();
            let each = state.slots.iter();
            each.filter_map(|(uid, slot)| {
                let limit = slot.wanted.borrow().unit.process.memory_limit?;
                let engine = slot
                    .status
                    .process
                    .filter(|engine| slot.clearing != Some(*engine))?;
                Some((uid.clone(), engine, limit))
            })
            .collect()
        };
        if limited.is_empty() {
            return;
        }
        let listed = tokio::task::spawn_blocking(Listing::now).await;
        let all = match listed.map_err(io::Error::from).flatten() {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "processes cannot be listed: no engine is held to its memory limit");
                return;
            }
        };
        for (uid, engine, limit) in limited {
            let used = all.resident(engine);
            if used > limit {
                let why = format!("held {used} bytes of memory, more than its limit of {limit}");
                let mut state = self.state.lock();
                let Some(slot) = state
                    .slots
                    .get_mut(&uid)
                    .filter(|s| s.status.process == Some(engine))
                else {
                    continue;
                };
                slot.note = Some(why);
                slot.clearing = Some(engine);
                drop(state);
                let shared = self.clone();
                tokio::spawn(async move {
                    spawn::clear(engine).await;
                    let mut state = shared.state.lock();
                    if let Some(slot) = state.slots.get_mut(&uid).filter(|s| s.clearing == Some(engine)) {
                        slot.clearing = None;
                    }
                });
            }
        }
    }
}

/// Computes every engine's callers and peers anew, and tells those whose changed.
fn refresh(state: &mut State) {
    let State {
        slots, edges, hub, ..
    } = state;
    let live = |uid: &String| slots.get(uid).filter(|slot| !slot.ending());
    edges.retain(|(caller, called), _| live(caller).is_some() && live(called).is_some());
    let mut edge = |caller: &str, called: &str| {
        let key = (caller.to_owned(), called.to_owned());
        edges
            .entry(key)
            .or_insert_with(|| SecretText::new(token()))
            .clone()
    };
    for (uid, slot) in slots.iter() {
        let unit = slot.wanted.borrow().unit.clone();
        let mut callers = vec![Caller {
            token_sha256: slot.token_sha256.clone(),
            subject: "local".to_owned(),
            delegates: false,
            approve: false,
        }];
        callers.extend(
            unit.callers
                .iter()
                .filter(|(caller, _)| live(caller).is_some())
                .map(|(caller, name)| Caller {
                    token_sha256: sha256(edge(caller, uid).expose()),
                    subject: format!("agent:{name}"),
                    delegates: true,
                    approve: false,
                }),
        );
        let trust = Trust {
            jwks: hub.jwks.clone(),
            issuer: hub.issuer.clone(),
            callers,
        };
        let mut peers = BTreeMap::new();
        for (reference, called) in &unit.peers {
            if let Some(address) = live(called).and_then(|slot| slot.status.address) {
                let token = edge(uid, called);
                let url = format!("http://{address}");
                peers.insert(reference.clone(), Peer { url, token });
            }
        }
        slot.wanted.send_if_modified(|wanted| {
            let changed = *wanted.trust != trust || *wanted.peers != peers;
            if changed {
                wanted.trust = Arc::new(trust);
                wanted.peers = Arc::new(peers);
            }
            changed
        });
    }
}

/// What this runtime does not enforce of what the document asks; see the crate's header.
fn unenforced(unit: &EngineUnit) -> Vec<&'static str> {
    let process = &unit.process;
    let mut wishes = Vec::new();
    if process.cpu_limit.is_some() {
        wishes.push("spec.runtime.resources.limits.cpu");
    }
    if process.memory_limit.is_some() && !cfg!(target_os = "linux") {
        wishes.push("spec.runtime.resources.limits.memory");
    }
    wishes
}

/// 256 random bits in hex.
fn token() -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

fn sha256(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

/// A supervisor's way to tell what it sees.
#[derive(Clone)]
pub(crate) struct Report {
    shared: Arc<Shared>,
    uid: String,
    supervisor: u64,
}

impl Report {
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut EngineStatus)) {
        let mut state = self.shared.state.lock();
        let Some(slot) = self.slot(&mut state) else {
            return;
        };
        let before = slot.status.clone();
        change(&mut slot.status);
        if slot.status == before {
            return;
        }
        if slot.status.address != before.address {
            refresh(&mut state);
        }
        drop(state);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Why somebody else killed the process, if so.
    pub(crate) fn take_note(&self) -> Option<String> {
        let mut state = self.shared.state.lock();
        self.slot(&mut state)?.note.take()
    }

    /// The supervisor has ended.
    fn gone(&self) {
        let mut state = self.shared.state.lock();
        if self
            .slot(&mut state)
            .is_some_and(|slot| slot.status.phase == Phase::Ended)
        {
            state.slots.remove(&self.uid);
        }
        drop(state);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn slot<'a>(&self, state: &'a mut State) -> Option<&'a mut Slot> {
        state
            .slots
            .get_mut(&self.uid)
            .filter(|slot| slot.supervisor == self.supervisor)
    }
}

//! Puts the parts together and takes them down in order.

use crate::{
    VERSION, commands,
    controller::{Controller, Health},
    probe,
    tunnel::Tunnel,
};
use roadstead_contract::{fleet::JoinToken, run::RunRecord};
use roadstead_inbox::{Inbox, InboxError};
use roadstead_link::{
    Clock as _, Identity, Link, LinkError, LinkState, OsRandom, Parts, Reports, Settings, SystemClock,
    TcpDial,
};
use roadstead_plan::{Abilities, Programs};
use roadstead_runtime::{ConfigError, EngineStatus, Local, RunSink};
use roadstead_telemetry::Metrics;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Tunnel calls at once; more wait at the hub.
const CALLS: usize = 256;

/// What a cluster agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port` of the hub's fleet port.
    pub hub: String,
    /// The cluster agent's own folder; made with mode 0700 if it is not there.
    pub state: PathBuf,
    /// Needed once, while there is no identity in the folder.
    pub join: Option<JoinToken>,
    /// The program `roadstead-engine`; see [`roadstead_runtime::find_engine`].
    pub engine: PathBuf,
    /// Environment variables whose values documents may have.
    pub offered: BTreeSet<String>,
    /// Programs that tool servers may be; none by default.
    pub programs: Programs,
    /// Set for every engine, over what it inherits.
    pub environment: BTreeMap<String, String>,
    /// Loopback address of `/livez`, `/readyz` and `/metrics`; `None`: nothing listens.
    pub probe: Option<SocketAddr>,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// What running tasks get when the cluster agent or their engine is to end.
    pub grace: Duration,
}

impl Config {
    /// With the defaults of everything that has one.
    #[must_use]
    pub fn new(hub: String, state: PathBuf, engine: PathBuf) -> Self {
        Self {
            hub,
            state,
            join: None,
            engine,
            offered: BTreeSet::new(),
            programs: Programs::None,
            environment: BTreeMap::new(),
            probe: None,
            metrics: Metrics::none(),
            grace: Duration::from_secs(10),
        }
    }
}

/// Why a cluster agent cannot start. What the hub says is no reason: see [`Agent::gave_up`].
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the folder {path} cannot be used")]
    State {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another cluster agent runs in {path}: stop it first")]
    Running { path: PathBuf },
    #[error(transparent)]
    Inbox(#[from] InboxError),
    #[error(transparent)]
    Runtime(#[from] ConfigError),
    #[error("{address} is not a loopback address: probes and metrics are for this machine only")]
    NotLoopback { address: SocketAddr },
    #[error("{address} cannot be listened on")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// A running cluster agent. Dropping it without [`Agent::shutdown`] stops nothing at once; engines end with the
/// process.
#[derive(Debug)]
pub struct Agent {
    local: Local,
    inbox: Inbox,
    reports: Reports,
    stop: CancellationToken,
    /// Ends what does commands, before the engines end.
    stop_commands: CancellationToken,
    link: JoinHandle<()>,
    gave_up: watch::Receiver<Option<Arc<LinkError>>>,
    health: watch::Receiver<Health>,
    tasks: Vec<JoinHandle<()>>,
    probe: Option<SocketAddr>,
    grace: Duration,
    /// Held for as long as this runs.
    _lock: fs::File,
}

impl Agent {
    /// Starts everything and returns: engines of documents that are in the inbox start at once, hub or no hub.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let lock = open(&config.state)?;
        let inbox = open_inbox(&config.state.join("inbox.db")).await?;
        let local = Local::open(runtime(&config), Arc::new(Outbox(inbox.clone())))?;
        let listener = match config.probe {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let probe = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let (link, reports) = Link::new(
            Settings {
                hub: config.hub.clone(),
                folder: config.state.join("link"),
                join: config.join.clone(),
                version: VERSION.to_owned(),
                capabilities: commands::capabilities(),
                calls: CALLS,
            },
            Parts {
                dial: Arc::new(TcpDial),
                clock: Arc::new(SystemClock),
                random: Arc::new(OsRandom),
                inbox: inbox.clone(),
                handler: Arc::new(Tunnel::new(local.clone())),
            },
        );
        let stop = CancellationToken::new();
        let (health, healthy) = watch::channel(Health::default());
        let abilities = Abilities::local(config.offered.iter().cloned());
        let abilities = abilities.with_programs(config.programs.clone());
        let stop_commands = stop.child_token();
        let commands = commands::run(inbox.clone(), local.clone(), stop_commands.clone());
        let controller = Controller::new(inbox.clone(), local.clone(), reports.clone(), abilities, health);
        probe::instruments(&local, &reports, &healthy);
        let mut tasks = vec![tokio::spawn(controller.run(stop.clone())), tokio::spawn(commands)];
        if let Some(listener) = listener {
            let serve = probe::serve(
                listener,
                config.metrics.clone(),
                healthy.clone(),
                reports.clone(),
                stop.clone(),
            );
            tasks.push(tokio::spawn(serve));
        }
        let (failed, gave_up) = watch::channel(None);
        let stop_link = stop.clone();
        let link = tokio::spawn(async move {
            if let Err(error) = link.run(stop_link).await {
                tracing::error!(%error, "the hub is not tried any more; engines go on");
                failed.send_replace(Some(Arc::new(error)));
            }
        });
        Ok(Self {
            local,
            inbox,
            reports,
            stop,
            stop_commands,
            link,
            gave_up,
            health: healthy,
            tasks,
            probe,
            grace: config.grace,
            _lock: lock,
        })
    }

    /// How the connection to the hub is, as it changes.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.reports.state()
    }

    /// Waits until the link gives up, which only a person can mend, and until it is known what runs without it;
    /// forever while all is well. Engines go on.
    pub async fn gave_up(&self) -> Arc<LinkError> {
        let mut health = self.health.clone();
        let seen = |health: &Health| health.planned || health.trouble.is_some();
        // The controller ends with the cluster agent alone.
        let _ = health.wait_for(seen).await;
        let mut gave_up = self.gave_up.clone();
        loop {
            if let Some(error) = gave_up.borrow_and_update().clone() {
                return error;
            }
            if gave_up.changed().await.is_err() {
                // The link ended as it was asked to.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Every engine, by the agent's uid.
    #[must_use]
    pub fn engines(&self) -> BTreeMap<String, EngineStatus> {
        self.local.statuses()
    }

    /// Changes whenever any engine's status does.
    #[must_use]
    pub fn engine_changes(&self) -> watch::Receiver<u64> {
        self.local.changes()
    }

    /// Where probes and metrics are served.
    #[must_use]
    pub fn probe(&self) -> Option<SocketAddr> {
        self.probe
    }

    /// Ends everything: engines first, so that their last run records still find the hub, then the connection. What
    /// becomes of engines from now on says nothing of a command: the next start does, and the hub sends it new ones.
    pub async fn shutdown(self) {
        self.inbox.close_commands();
        self.stop_commands.cancel();
        self.local.shutdown(self.grace).await;
        self.stop.cancel();
        for task in self.tasks.into_iter().chain([self.link]) {
            let aborter = task.abort_handle();
            if tokio::time::timeout(Duration::from_secs(3), task).await.is_err() {
                aborter.abort();
            }
        }
    }
}

/// Whether the cluster agent of this folder has an identity that is good now; without one it needs a join token.
#[must_use]
pub fn joined(state: &Path) -> bool {
    let now = SystemClock.now_ms() / 1_000;
    matches!(Identity::load(&state.join("link")), Ok(Some(identity)) if identity.not_after > now)
}

fn runtime(config: &Config) -> roadstead_runtime::Config {
    let mut runtime = roadstead_runtime::Config::new(config.engine.clone(), config.state.clone());
    runtime.offered.clone_from(&config.offered);
    runtime.environment.clone_from(&config.environment);
    runtime.timing.grace = config.grace;
    runtime
}

/// The folder's lock is ours, so whoever still holds the inbox is an earlier one of this process on its way out.
async fn open_inbox(path: &Path) -> Result<Inbox, InboxError> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
    loop {
        match Inbox::open(path) {
            Err(InboxError::InUse) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened,
        }
    }
}

/// Makes the folder for this user alone, and locks it.
fn open(state: &Path) -> Result<fs::File, StartError> {
    let failed = |source| StartError::State {
        path: state.to_path_buf(),
        source,
    };
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(state.join("link")).map_err(failed)?;
    // One that was there before may be open to others: it holds keys, documents and conversations.
    if fs::metadata(state).map_err(failed)?.permissions().mode() & 0o077 != 0
        && let Err(error) = fs::set_permissions(state, fs::Permissions::from_mode(0o700))
    {
        tracing::warn!(%error, folder = %state.display(), "other users can look into the cluster agent's folder");
    }
    let lock = fs::File::create(state.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::Running {
            path: state.to_path_buf(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    if !address.ip().is_loopback() {
        return Err(StartError::NotLoopback { address });
    }
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen { address, source })
}

/// Run records go to the inbox's file; the link brings them to the hub from there.
struct Outbox(Inbox);

#[async_trait::async_trait]
impl RunSink for Outbox {
    async fn keep(&self, records: Vec<RunRecord>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.append_runs(records).await?)
    }
}

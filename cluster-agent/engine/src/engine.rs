//! One engine, put together: journal, tasks, the running revision, and the edge in front of them.

use crate::{
    a2a::{Edge, router},
    auth::{Gate, Mode},
    clock::Clock,
    journal::{self, Journal},
    model::HttpClients,
    peers::Peers,
    revision::{Current, Factories, Revision, Serving},
    secrets::Secrets,
    services::Services,
    tasks::Tasks,
};
use axum::{Router, serve::ListenerExt as _};
use roadstead_contract::{bundle::Bundle, control::Trust};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;

/// Ended tasks are kept this long.
const RETENTION_MS: i64 = 30 * 24 * 60 * 60 * 1000;
const RETENTION_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Not at once: a start has better things to do.
const RETENTION_FIRST: Duration = Duration::from_secs(60);

/// How an engine is put together.
#[derive(Debug)]
pub struct Setup {
    pub journal: journal::Options,
    pub clock: Arc<dyn Clock>,
    pub factories: Factories,
    pub clients: Arc<HttpClients>,
    pub mode: Mode,
    /// Whether run records are kept for somebody who collects them.
    pub collect_runs: bool,
}

/// An engine.
#[derive(Debug)]
pub struct Engine {
    pub journal: Journal,
    pub tasks: Arc<Tasks>,
    pub current: Arc<Current>,
    pub peers: Arc<Peers>,
    /// Told when there is a new run record; `None` where none are collected.
    pub runs: Option<Arc<Notify>>,
    gate: Arc<Gate>,
    clock: Arc<dyn Clock>,
    factories: Factories,
    recovered: AtomicBool,
}

impl Engine {
    /// Puts an engine together. The journal opens in the background.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(setup: Setup) -> std::io::Result<Arc<Self>> {
        let journal = Journal::open(setup.journal)?;
        let current = Arc::new(Current::default());
        let peers = Arc::new(Peers::new(setup.clients));
        let runs = setup.collect_runs.then(Arc::<Notify>::default);
        let services = Services {
            journal: journal.clone(),
            clock: Arc::clone(&setup.clock),
            peers: Arc::clone(&peers) as _,
            runs: runs.clone(),
        };
        Ok(Arc::new(Self {
            tasks: Tasks::new(services, Arc::clone(&current)),
            gate: Arc::new(Gate::new(
                Arc::clone(&current),
                Arc::clone(&setup.clock),
                setup.mode,
                journal.clone(),
            )),
            journal,
            current,
            peers,
            runs,
            clock: setup.clock,
            factories: setup.factories,
            recovered: AtomicBool::new(false),
        }))
    }

    /// Serves this from the next task on. With the first revision the tasks of earlier processes go on. Answers the
    /// bundle's digest.
    ///
    /// # Errors
    /// The bundle does not load; what served before goes on.
    pub fn apply(self: &Arc<Self>, bundle: Bundle, secrets: Secrets, trust: Trust) -> Result<String, String> {
        let json = serde_json::to_string(&bundle).map_err(|e| e.to_string())?;
        let revision = Arc::new(Revision::load(bundle, &secrets, &self.factories)?);
        let digest = revision.digest.clone();
        // Queued before any task can begin on it, so it is in the journal first.
        let kept = self.journal.keep_revision(digest.clone(), json);
        let serving = Serving {
            revision,
            trust: Arc::new(trust),
            secrets,
        };
        self.current.set(serving.clone());
        let first = !self.recovered.swap(true, Ordering::Relaxed);
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = kept.await {
                tracing::warn!(%error, "the revision is not kept: its tasks cannot go on after a restart");
            }
            if first {
                engine.recover(&serving).await;
                // Its tool servers and secrets are to go when another revision takes its place.
                drop(serving);
                engine.retire_forever().await;
            }
        });
        Ok(digest)
    }

    async fn recover(&self, serving: &Serving) {
        let mut wait = Duration::from_millis(50);
        loop {
            match self.tasks.recover(serving, &self.factories).await {
                Ok(0) => return,
                Ok(tasks) => return tracing::info!(tasks, "tasks of an earlier process were taken over"),
                Err(error) => tracing::error!(%error, "tasks of an earlier process wait for the journal"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    async fn retire_forever(&self) {
        tokio::time::sleep(RETENTION_FIRST).await;
        loop {
            match self
                .journal
                .retire(self.clock.now_ms().saturating_sub(RETENTION_MS))
                .await
            {
                Ok(0) => {}
                Ok(tasks) => tracing::info!(tasks, "old tasks were forgotten"),
                Err(error) => tracing::warn!(%error, "old tasks could not be forgotten"),
            }
            tokio::time::sleep(RETENTION_EVERY).await;
        }
    }

    /// Every route, for a listener at `address`.
    pub fn router(&self, address: SocketAddr) -> Router {
        router(Edge {
            tasks: Arc::clone(&self.tasks),
            current: Arc::clone(&self.current),
            gate: Arc::clone(&self.gate),
            address: address.to_string(),
        })
    }

    /// Serves until `stop`, then lets open requests end by themselves.
    ///
    /// # Errors
    /// The listener has no address.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = self.router(listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            // Small events must not wait for more; a connection without the option works, only slower.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await
    }
}

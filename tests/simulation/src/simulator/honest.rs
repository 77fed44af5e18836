//! Cluster agents that do as they should: link and inbox as shipped, and a runtime that applies everything at once. What
//! each holds is compared with what it held.

use super::network::Line;
use crate::simulated::Seeded;
use parking_lot::{Mutex, RwLock};
use roadstead_contract::fleet::DocumentStatus;
use roadstead_inbox::{Document, Inbox};
use roadstead_link::{Dial, Link, LinkState, NoTunnel, Parts, Reports, Settings, SystemClock};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// Documents that were ever taken away: of all clusters, or of one.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub(super) everywhere: BTreeSet<String>,
    pub(super) of: BTreeSet<(usize, String)>,
}

/// What a cluster holds, and held.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By document, with the moment at which it was seen.
    held: BTreeMap<String, (u64, Instant)>,
    /// Of what is held no more.
    highest: BTreeMap<String, u64>,
    /// What must never be.
    pub(super) violations: Vec<String>,
}

impl Ledger {
    /// Since when a document is held in this generation or a later one.
    #[must_use]
    pub(super) fn since(&self, uid: &str, generation: u64) -> Option<Instant> {
        let (held, since) = self.held.get(uid)?;
        (*held >= generation).then_some(*since)
    }

    fn see(&mut self, n: usize, documents: &[Document], at: Instant, removed: &RwLock<Removed>) {
        let mut before = std::mem::take(&mut self.held);
        for document in documents {
            let (uid, generation) = (&document.uid, document.generation);
            let known = before.remove(uid);
            let highest = known
                .map(|(generation, _)| generation)
                .or_else(|| self.highest.remove(uid));
            if highest.is_some_and(|highest| highest > generation) {
                self.violations.push(format!(
                    "cluster {n}: {uid} went from {highest:?} back to {generation}"
                ));
            }
            let since = known
                .filter(|(known, _)| *known == generation)
                .map_or(at, |(_, since)| since);
            self.held.insert(uid.clone(), (generation, since));
        }
        for (uid, (generation, _)) in before {
            let removed = removed.read();
            if !removed.everywhere.contains(&uid) && !removed.of.contains(&(n, uid.clone())) {
                self.violations
                    .push(format!("cluster {n}: {uid} is gone without a tombstone"));
            }
            self.highest.insert(uid, generation);
        }
    }
}

/// A cluster agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) n: usize,
    pub(super) inbox: Inbox,
    pub(super) line: Arc<Line>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    folder: PathBuf,
    removed: Arc<RwLock<Removed>>,
    random: Arc<Seeded>,
    runs: Option<Runs>,
}

#[derive(Debug)]
struct Runs {
    reports: Reports,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Agent {
    /// The cluster number `n`, whose identity lies in the folder; it does nothing yet.
    ///
    /// # Errors
    /// The inbox cannot be made.
    pub(super) fn new(
        n: usize,
        folder: PathBuf,
        line: Arc<Line>,
        removed: Arc<RwLock<Removed>>,
        random: Arc<Seeded>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            n,
            inbox: Inbox::in_memory()?,
            line,
            ledger: Arc::default(),
            folder,
            removed,
            random,
            runs: None,
        })
    }

    /// Starts it.
    pub(super) fn start(&mut self) {
        self.start_over(self.line.clone(), "hub:8443");
    }

    /// Starts it over another network.
    pub(super) fn start_over(&mut self, dial: Arc<dyn Dial>, hub: &str) {
        let settings = Settings {
            hub: hub.to_owned(),
            folder: self.folder.clone(),
            join: None,
            version: "0.1.0".to_owned(),
            calls: 16,
            capabilities: Vec::new(),
        };
        let parts = Parts {
            dial,
            clock: Arc::new(SystemClock),
            random: self.random.clone(),
            inbox: self.inbox.clone(),
            handler: Arc::new(NoTunnel),
        };
        let (link, reports) = Link::new(settings, parts);
        let stop = CancellationToken::new();
        let (ends, n, ledger) = (stop.clone(), self.n, self.ledger.clone());
        let linked = async move {
            if let Err(error) = link.run(ends).await {
                ledger
                    .lock()
                    .violations
                    .push(format!("cluster {n}: the link gave up: {error}"));
            }
        };
        let followed = follow(
            n,
            self.inbox.clone(),
            reports.clone(),
            self.ledger.clone(),
            self.removed.clone(),
        );
        self.runs = Some(Runs {
            reports,
            stop,
            tasks: [tokio::spawn(linked), tokio::spawn(followed)],
        });
    }

    /// Whether a session lives, as far as this side knows.
    #[must_use]
    pub(super) fn connected(&self) -> bool {
        let state = self.runs.as_ref().map(|runs| runs.reports.state());
        state.is_some_and(|state| !matches!(*state.borrow(), LinkState::Away { .. }))
    }

    /// Ends it; the inbox stays.
    pub(super) async fn stop(&mut self) {
        let Some(runs) = self.runs.take() else { return };
        runs.stop.cancel();
        // A link that is dialling looks at it late.
        for task in runs.tasks {
            task.abort();
            let _ = task.await;
        }
        self.line.cut();
    }
}

/// Applies what comes, says so, and notes it.
async fn follow(
    n: usize,
    inbox: Inbox,
    reports: Reports,
    ledger: Arc<Mutex<Ledger>>,
    removed: Arc<RwLock<Removed>>,
) {
    let mut watch = inbox.watch();
    loop {
        let at = Instant::now();
        let Ok((seen, documents)) = inbox.documents().await else {
            return;
        };
        ledger.lock().see(n, &documents, at, &removed);
        for document in documents {
            reports.status(DocumentStatus {
                uid: document.uid,
                observed_generation: document.generation,
                phase: "Ready".to_owned(),
                conditions: Vec::new(),
            });
        }
        reports.applied(seen.revision);
        if watch.changed().await.is_err() {
            return;
        }
    }
}

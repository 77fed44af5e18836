//! A running hub takes up what the operator did with the folder of keys, and says so.

use anyhow::Context as _;
use roadstead_domain::{OsRandom, Random as _};
use roadstead_fleet::{Authority, Folder, KeyStore as _};
use roadstead_service::roots;
use roadstead_store::Store;
use std::{fs, sync::Arc, time::Duration};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How often the folder is looked at: what was retired is worth nothing within 5 s.
const LOOK: Duration = Duration::from_secs(2);
/// How often this replica says which roots it works with; see [`roadstead_fleet::roots::REPLICA_ENDED`].
const REPORT: Duration = Duration::from_secs(20);

/// What follows the folder.
pub(crate) struct Follower {
    pub(crate) folder: Folder,
    pub(crate) authority: Arc<Authority>,
    /// Where replicas report; `None` where there is one process alone.
    pub(crate) store: Option<Store>,
}

impl Follower {
    /// Runs until `stop`.
    pub(crate) fn spawn(self, stop: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
        tokio::spawn(self.follow(replica(), stop))
    }

    async fn follow(self, replica: String, stop: CancellationToken) -> anyhow::Result<()> {
        let mut report_at = Instant::now();
        let mut said = None;
        while !stop.is_cancelled() {
            // The same trouble again and again is one line in the log.
            let trouble = self.look().await.err().map(|error| format!("{error:#}"));
            if trouble != said
                && let Some(error) = &trouble
            {
                tracing::error!(
                    error,
                    "the folder of keys holds roots that this hub does not take up"
                );
            }
            said = trouble;
            let generation = self.authority.ring().generation;
            if Instant::now() >= report_at {
                report_at = match self.report(&replica).await {
                    Ok(()) => Instant::now() + REPORT,
                    Err(error) => {
                        tracing::debug!(%error, "which roots this replica works with is not written down");
                        Instant::now() + LOOK
                    }
                };
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.folder_moved(generation) {
                report_at = Instant::now();
            }
        }
        match &self.store {
            Some(store) => roots::leave(store, &replica)
                .await
                .context("the last report of roots"),
            None => Ok(()),
        }
    }

    fn folder_moved(&self, before: u64) -> bool {
        self.folder
            .generation()
            .is_ok_and(|generation| generation != before)
    }

    async fn look(&self) -> anyhow::Result<()> {
        let (folder, had) = (self.folder.clone(), self.authority.ring().generation);
        let found = spawn_blocking(move || match folder.generation()? == had {
            true => Ok(None),
            false => folder.load(),
        });
        let Some(stored) = found.await?? else {
            return Ok(());
        };
        if self.authority.adopt(&stored)? {
            let ring = &stored.ring;
            tracing::info!(
                generation = ring.generation,
                roots = ring.describe(),
                "the roots have changed"
            );
        }
        Ok(())
    }

    async fn report(&self, replica: &str) -> Result<(), roadstead_domain::Error> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let ring = self.authority.ring();
        roots::report(store, replica, ring.generation, &ring.digest().to_hex()).await
    }
}

/// A name for this process that an operator finds again, and that no other has.
fn replica() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(64)
        .collect();
    let mut salt = [0; 4];
    OsRandom.fill(&mut salt);
    let salt = u32::from_le_bytes(salt);
    format!(
        "{}/{}/{salt:08x}",
        if host.is_empty() { "hub" } else { &host },
        std::process::id()
    )
}

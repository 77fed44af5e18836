//! A cluster agent: inbox and link, as they are shipped.

use crate::eventually;
use roadstead_contract::fleet::{JoinToken, RESTART_ENGINE};
use roadstead_inbox::{Document, Inbox};
use roadstead_link::{
    Identity, Link, LinkError, LinkState, NoTunnel, OsRandom, Parts, Reports, Settings, SystemClock, TcpDial,
    TunnelHandler,
};
use std::{path::Path, sync::Arc};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running cluster agent. Dropping it leaves its tasks; use [`Self::stop`] or [`Self::kill`].
#[derive(Debug)]
pub struct ClusterAgent {
    pub inbox: Inbox,
    pub reports: Reports,
    folder: TempDir,
    stop: CancellationToken,
    running: JoinHandle<Result<(), LinkError>>,
}

impl ClusterAgent {
    /// Joins the hub at `hub` (`host:port`).
    #[must_use]
    pub fn join(hub: &str, token: &JoinToken) -> Self {
        Self::with(hub, token, Arc::new(NoTunnel))
    }

    /// As [`Self::join`], answering calls.
    #[must_use]
    pub fn with(hub: &str, token: &JoinToken, handler: Arc<dyn TunnelHandler>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::on(folder, hub, Some(token.clone()), handler)
    }

    fn on(folder: TempDir, hub: &str, join: Option<JoinToken>, handler: Arc<dyn TunnelHandler>) -> Self {
        let inbox = Inbox::open(&folder.path().join("inbox.db")).expect("an inbox");
        let settings = Settings {
            hub: hub.to_owned(),
            folder: folder.path().to_owned(),
            join,
            version: "0.1.0".to_owned(),
            capabilities: vec![RESTART_ENGINE.to_owned()],
            calls: 256,
        };
        let parts = Parts {
            dial: Arc::new(TcpDial),
            clock: Arc::new(SystemClock),
            random: Arc::new(OsRandom),
            inbox: inbox.clone(),
            handler,
        };
        let (link, reports) = Link::new(settings, parts);
        let stop = CancellationToken::new();
        let running = tokio::spawn(link.run(stop.clone()));
        Self {
            inbox,
            reports,
            folder,
            stop,
            running,
        }
    }

    /// Kills it; its folder stays.
    pub async fn kill(self) -> TempDir {
        let Self {
            running,
            folder,
            inbox,
            reports,
            ..
        } = self;
        running.abort();
        let _ = running.await;
        drop((inbox, reports));
        folder
    }

    /// Starts it again on a folder. The inbox before must have been let go.
    pub async fn again(folder: TempDir, hub: &str) -> Self {
        Self::again_with(folder, hub, None).await
    }

    /// As [`Self::again`], with another join token.
    pub async fn again_with(folder: TempDir, hub: &str, join: Option<JoinToken>) -> Self {
        // The writer thread of the inbox before may still be closing the file.
        let path = folder.path().join("inbox.db");
        eventually("the inbox is free", || async {
            Inbox::open(&path).ok().map(drop)
        })
        .await;
        eventually("the inbox is free again", || async {
            Inbox::open_inline(&path).ok().map(drop)
        })
        .await;
        Self::on(folder, hub, join, Arc::new(NoTunnel))
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops it in good order.
    pub async fn stop(self) -> Result<(), LinkError> {
        self.stop.cancel();
        self.running.await.expect("the link ends")
    }

    /// Waits for its end.
    pub async fn ended(self) -> Result<(), LinkError> {
        self.running.await.expect("the link ends")
    }

    /// Waits until a session lives.
    pub async fn connected(&self) -> LinkState {
        let state = self.reports.state();
        eventually("a session", || async {
            let now = state.borrow().clone();
            (!matches!(now, LinkState::Away { .. })).then_some(now)
        })
        .await
    }

    /// Generation and number of the hub's roots on its disk.
    #[must_use]
    pub fn roots(&self) -> (u64, usize) {
        let identity = Identity::load(self.folder.path()).expect("readable");
        identity.map_or((0, 0), |identity| (identity.trust_generation(), identity.roots()))
    }

    /// Waits until it has no session for a reason like this.
    pub async fn away_because(&self, wanted: &str) {
        let state = self.reports.state();
        eventually(&format!("no session: {wanted}"), || async {
            let now = state.borrow().clone();
            matches!(now, LinkState::Away { reason } if reason.contains(wanted)).then_some(())
        })
        .await;
    }

    /// Waits until the inbox holds the document in this generation.
    pub async fn holds(&self, uid: &str, generation: u64) -> Document {
        eventually(&format!("{uid} of generation {generation}"), || async {
            let document = self.inbox.document(uid).await.expect("the inbox answers")?;
            (document.generation == generation).then_some(document)
        })
        .await
    }

    /// Waits until the inbox holds so many documents.
    pub async fn counts(&self, documents: u64) {
        eventually(&format!("{documents} documents"), || async {
            let position = self.inbox.position().await.expect("the inbox answers");
            (position.documents == documents).then_some(())
        })
        .await;
    }
}

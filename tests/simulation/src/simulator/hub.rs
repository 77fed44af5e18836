//! The hub in this process: the fleet service as shipped, over a witnessed truth.

use super::{Plan, network::Network, witness::Witness};
use roadstead_contract::fleet::HubKeys;
use roadstead_domain::{Clock, OsRandom, SystemClock};
use roadstead_fleet::{Authority, Fleet, Folder, Parts, Settings};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What every hub is made of.
#[derive(Clone, Debug)]
pub(super) struct Makings {
    pub(super) authority: Arc<Authority>,
    pub(super) witness: Witness,
    pub(super) settings: Settings,
}

impl Makings {
    /// With keys in `folder`.
    ///
    /// # Errors
    /// The keys cannot be made.
    pub(super) fn new(plan: &Plan, witness: Witness, folder: &Path) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let keys = Folder(folder.to_owned());
        let authority = Authority::open(&keys, "simulated", clock, Arc::new(OsRandom))?;
        let mut settings = Settings::new(vec!["hub".to_owned(), "127.0.0.1".to_owned()], "0.1.0");
        settings.admission = plan.admission;
        settings.snapshots = plan.snapshots;
        settings.tunnel_streams = plan.tunnel_streams;
        settings.heartbeat = Duration::from_secs(plan.heartbeat);
        Ok(Self {
            authority: Arc::new(authority),
            witness,
            settings,
        })
    }
}

/// A running hub.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) fleet: Fleet,
    serving: JoinHandle<()>,
}

impl Hub {
    /// Starts one that listens on the network.
    #[must_use]
    pub(super) fn start(makings: &Makings, network: &Network) -> Self {
        let fleet = Fleet::new(Parts {
            store: Arc::new(makings.witness.clone()),
            authority: makings.authority.clone(),
            clock: Arc::new(SystemClock),
            keys: HubKeys {
                jwks: "{\"keys\":[]}".to_owned(),
                issuer: "https://hub".to_owned(),
            },
            settings: makings.settings.clone(),
        });
        let (listener, serving) = (network.listen(), fleet.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.serve(listener, CancellationToken::new()).await {
                tracing::error!(%error, "the hub ended");
            }
        });
        Self { fleet, serving }
    }

    /// Ends it without a word. Connections that are there end when the other side does.
    pub(super) fn kill(self) {
        self.serving.abort();
    }
}

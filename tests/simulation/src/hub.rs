//! A hub on loopback, over the model in memory.

use crate::{cluster, eventually, install_crypto, tenant};
use roadstead_contract::fleet::{HubKeys, JoinToken};
use roadstead_domain::{Clock, OsRandom, SystemClock};
use roadstead_fleet::{Authority, Fleet, Folder, Parts, Settings, memory::Memory, store::What};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A running hub. Dropping it is a crash.
#[derive(Debug)]
pub struct Hub {
    pub store: Memory,
    pub fleet: Fleet,
    pub authority: Arc<Authority>,
    pub address: SocketAddr,
    folder: TempDir,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    runtime: Option<Runtime>,
}

/// How a hub differs from the usual one.
#[derive(Debug)]
pub struct Wishes {
    pub client_life: Duration,
    pub heartbeat: Duration,
    pub clock: Arc<dyn Clock>,
    pub tunnel_streams: u32,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            client_life: Duration::from_secs(72 * 3_600),
            heartbeat: Duration::from_secs(25),
            clock: Arc::new(SystemClock),
            tunnel_streams: 4,
        }
    }
}

impl Hub {
    /// Starts a hub with one tenant and one cluster, both number 1.
    pub async fn start() -> Self {
        Self::with(Wishes::default()).await
    }

    /// As [`Self::start`], with wishes.
    pub async fn with(wishes: Wishes) -> Self {
        install_crypto();
        let folder = tempfile::tempdir().expect("a folder");
        let store = Memory::new(wishes.clock.clone());
        store.add_cluster(tenant(1), cluster(1));
        Self::on(folder, store, wishes, "127.0.0.1:0").await
    }

    async fn on(folder: TempDir, store: Memory, wishes: Wishes, address: &str) -> Self {
        let keys = Folder(folder.path().to_owned());
        let authority = Authority::open(&keys, "test.roadstead", wishes.clock.clone(), Arc::new(OsRandom))
            .expect("an authority")
            .with_client_life(wishes.client_life);
        let authority = Arc::new(authority);
        let mut settings = Settings::new(vec!["127.0.0.1".to_owned()], "0.1.0");
        settings.heartbeat = wishes.heartbeat;
        settings.tunnel_streams = wishes.tunnel_streams;
        let fleet = Fleet::new(Parts {
            store: Arc::new(store.clone()),
            authority: authority.clone(),
            clock: wishes.clock,
            keys: HubKeys {
                jwks: "{\"keys\":[]}".to_owned(),
                issuer: "https://hub".to_owned(),
            },
            settings,
        });
        // A runtime of its own, so that its end is the end of every connection, as with a process.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let address = address.to_owned();
        let bound = runtime.spawn(async move { TcpListener::bind(address).await.expect("a port") });
        let listener = bound.await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let (serving, stopped) = (fleet.clone(), stop.clone());
        let serving = async move { serving.serve(listener, stopped).await.expect("the hub serves") };
        let serving = runtime.spawn(serving);
        let runtime = Some(runtime);
        Self {
            store,
            fleet,
            authority,
            address,
            folder,
            stop,
            serving,
            runtime,
        }
    }

    /// Kills the hub and starts it again on the same port with the same database.
    pub async fn restart(mut self) -> Self {
        let (store, address) = (self.store.clone(), self.address.to_string());
        let spare = tempfile::tempdir().expect("a folder");
        let folder = std::mem::replace(&mut self.folder, spare);
        drop(self);
        // The port is free once the runtime has gone.
        eventually("the port is free", || async {
            TcpListener::bind(&address).await.ok().map(drop)
        })
        .await;
        Self::on(folder, store, Wishes::default(), &address).await
    }

    /// Drains and stops.
    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.serving).await.expect("the hub stops");
    }

    /// A join token for the cluster number `n` of tenant 1.
    #[must_use]
    pub fn token(&self, n: u64, secret: &str) -> JoinToken {
        self.store.add_token(secret, tenant(1), cluster(n), i64::MAX);
        JoinToken::new(secret.to_owned(), self.authority.pin().expect("a pin")).expect("a token")
    }

    /// How often the audit log has an event of this kind.
    #[must_use]
    pub fn audited(&self, what: What) -> usize {
        self.store
            .events()
            .iter()
            .filter(|event| event.what == what)
            .count()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

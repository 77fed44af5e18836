//! A hub on loopback, over the model in memory or another truth.

use crate::{cluster, eventually, install_crypto, tenant};
use roadstead_contract::fleet::{HubKeys, JoinToken};
use roadstead_domain::{Clock, OsRandom, SystemClock};
use roadstead_fleet::{
    Authority, Fleet, FleetStore, Folder, KeyStore as _, Parts, Settings,
    memory::Memory,
    roots::{Refusal, Ring, Root, Step},
    store::What,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// What a hub keeps: shared by all replicas, and what is left of a hub that was killed.
pub trait Truth: Clone + Send + Sync + 'static {
    /// As the fleet sees it.
    fn fleet_store(&self) -> Arc<dyn FleetStore>;

    /// The secret of a new join token for the cluster number `n`.
    fn secret(&self, n: u64) -> impl Future<Output = String> + Send;
}

impl Truth for Memory {
    fn fleet_store(&self) -> Arc<dyn FleetStore> {
        Arc::new(self.clone())
    }

    async fn secret(&self, n: u64) -> String {
        let secret = format!("raw{n}");
        self.add_token(&secret, tenant(1), cluster(n), i64::MAX);
        secret
    }
}

/// A running hub. Dropping it is a crash.
#[derive(Debug)]
pub struct Hub<S = Memory> {
    pub store: S,
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
    pub stall: Duration,
    pub admission: f64,
    pub renewals: f64,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            client_life: Duration::from_secs(72 * 3_600),
            heartbeat: Duration::from_secs(25),
            clock: Arc::new(SystemClock),
            tunnel_streams: 4,
            stall: Duration::from_secs(30),
            admission: 200.0,
            renewals: 20.0,
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
        let store = Memory::new(wishes.clock.clone());
        store.add_cluster(tenant(1), cluster(1));
        Self::over(store, wishes).await
    }

    /// A join token for the cluster number `n` of tenant 1.
    #[must_use]
    pub fn token(&self, n: u64, secret: &str) -> JoinToken {
        self.store.add_token(secret, tenant(1), cluster(n), i64::MAX);
        JoinToken::new(secret.to_owned(), self.authority.pin().expect("a pin")).expect("a token")
    }

    /// Which kinds of stream were refused to a certificate that TLS accepts, in the order of the audit log.
    #[must_use]
    pub fn refused_streams(&self) -> Vec<String> {
        let events = self.store.events().into_iter();
        let refused = events.filter(|event| event.what == What::IdentityRefused);
        let kind = |detail: &str| detail.split(':').next().unwrap_or_default().to_owned();
        refused.map(|event| kind(&event.detail)).collect()
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

impl<S: Truth> Hub<S> {
    /// What an operator does by `roadstead-hub roots`, and a running hub follows: `step` is given the roots and a new one.
    ///
    /// # Errors
    /// The step is not to be taken now.
    pub fn roots(&self, step: impl FnOnce(&Ring, Root) -> Result<Step, Refusal>) -> Result<Step, Refusal> {
        let folder = Folder(self.folder.path().to_owned());
        let mut stored = folder.load().expect("readable").expect("roots");
        let made = Authority::generate_root("test.roadstead", &SystemClock, &OsRandom);
        let (root, key) = made.expect("a root");
        stored.keys.insert(root.id(), key);
        let step = step(&stored.ring, root)?;
        stored.ring = step.ring.clone();
        folder.save(&stored).expect("kept");
        folder.tidy(&stored).expect("tidied up");
        self.authority
            .adopt(&folder.load().expect("readable").expect("roots"))
            .expect("usable");
        Ok(step)
    }

    /// Kills the hub and puts another one, of roots of its own, on its port.
    pub async fn replaced_by_a_stranger(mut self, store: S) -> Self {
        self.folder = tempfile::tempdir().expect("a folder");
        self.restart_over(store).await
    }

    /// Its roots and keys as they are now, in another folder.
    pub fn copied_keys(&self) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(self.folder.path()).expect("readable") {
            let entry = entry.expect("readable");
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
        }
        copy
    }

    /// Kills the hub and starts another one on its port, with the roots of that folder; the folder before comes back.
    pub async fn with_keys(mut self, folder: TempDir, store: S) -> (Self, TempDir) {
        let before = std::mem::replace(&mut self.folder, folder);
        (self.restart_over(store).await, before)
    }

    /// A hub over this truth.
    pub async fn over(store: S, wishes: Wishes) -> Self {
        install_crypto();
        let folder = tempfile::tempdir().expect("a folder");
        Self::on(folder, store, wishes, "127.0.0.1:0").await
    }

    /// A join token for the cluster number `n`.
    pub async fn join(&self, n: u64) -> JoinToken {
        let secret = self.store.secret(n).await;
        JoinToken::new(secret, self.authority.pin().expect("a pin")).expect("a token")
    }

    async fn on(folder: TempDir, store: S, wishes: Wishes, address: &str) -> Self {
        let keys = Folder(folder.path().to_owned());
        let authority = Authority::open(&keys, "test.roadstead", wishes.clock.clone(), Arc::new(OsRandom))
            .expect("an authority")
            .with_client_life(wishes.client_life);
        let authority = Arc::new(authority);
        let mut settings = Settings::new(vec!["127.0.0.1".to_owned()], "0.1.0");
        settings.heartbeat = wishes.heartbeat;
        settings.tunnel_streams = wishes.tunnel_streams;
        settings.stall = wishes.stall;
        settings.admission = wishes.admission;
        settings.renewals = wishes.renewals;
        let fleet = Fleet::new(Parts {
            store: store.fleet_store(),
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
    pub async fn restart(self) -> Self {
        let store = self.store.clone();
        self.restart_over(store).await
    }

    /// Kills the hub and starts it again on the same port with another database, as after a restore.
    pub async fn restart_over(mut self, store: S) -> Self {
        let address = self.address.to_string();
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
}

impl<S> Drop for Hub<S> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

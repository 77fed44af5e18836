//! The hub, put together: store, fleet port and HTTP faces. `serve` and `dev` run the same.

use crate::{
    certificate, engines::Engines, health, housekeeping, http_server, keys, limits::Limits, lock, observe,
    proxy, roots,
};
use anyhow::Context as _;
use axum::{Router, extract::DefaultBodyLimit, middleware};
use roadstead_contract::fleet::HubKeys;
use roadstead_domain::{OsRandom, SystemClock};
use roadstead_fleet::{Authority, Fleet, Folder};
use roadstead_gateway::Gateway;
use roadstead_graphql::Graphql;
use roadstead_http::Bodies;
use roadstead_login::{FailureLimit, Login};
use roadstead_store::{Store, StoreOptions};
use roadstead_telemetry::Metrics;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// For requests that are under way when the hub is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// What a hub needs to know.
#[derive(Clone)]
pub(crate) struct Config {
    /// Which command runs the hub, for whoever finds its database in use.
    pub(crate) who: &'static str,
    /// Where the database is.
    pub(crate) store: StoreOptions,
    /// The HTTP faces.
    pub(crate) listen: SocketAddr,
    /// The cluster agents' port.
    pub(crate) fleet_listen: SocketAddr,
    /// Host names and addresses by which cluster agents reach that port.
    pub(crate) fleet_names: Vec<String>,
    /// How people reach the HTTP faces, without a slash at the end; from the port where it is `None`.
    pub(crate) public_url: Option<String>,
    /// Folder of the hub's own keys.
    pub(crate) keys: PathBuf,
    /// `/metrics`, on a port of its own.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Certificate and key of the HTTP faces' port; plain HTTP where it is `None`.
    pub(crate) tls: Option<certificate::Files>,
    /// Between tenants.
    pub(crate) limits: Limits,
    /// Proxies before the HTTP faces whose `X-Forwarded-For` counts.
    pub(crate) proxies: proxy::Trusted,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("fleet_listen", &self.fleet_listen)
            .finish_non_exhaustive()
    }
}

/// A running hub.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) store: Store,
    /// Where the HTTP faces listen.
    pub(crate) address: SocketAddr,
    /// Where the fleet port listens.
    pub(crate) fleet_address: SocketAddr,
    pub(crate) authority: Arc<Authority>,
    /// Where `/metrics` is served.
    pub(crate) metrics_address: Option<SocketAddr>,
    _lock: Option<lock::Lock>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Hub {
    /// Opens the database, binds both ports and serves until [`Hub::stop`].
    ///
    /// # Errors
    /// When the database, a key or a port cannot be had; nothing runs then.
    pub(crate) async fn start(config: &Config, metrics: Metrics) -> anyhow::Result<Self> {
        keys::folder(&config.keys)?;
        let pair = config.tls.clone().map(certificate::Pair::open).transpose()?;
        let acceptor = pair.as_ref().map(certificate::Pair::acceptor).transpose()?;
        let file = lock::database_file(&config.store.url);
        let lock = file.map(|file| lock::take(&file, config.who)).transpose()?;
        let store = Store::open(config.store.clone()).await.map_err(explained)?;
        let listener = bind(config.listen).await?;
        let address = listener.local_addr()?;
        let fleet_listener = bind(config.fleet_listen).await?;
        let fleet_address = fleet_listener.local_addr()?;
        let public_url = config.public_url.clone().unwrap_or_else(|| match pair {
            Some(_) => format!("https://{address}"),
            None => format!("http://{address}"),
        });
        let engine_keys = Arc::new(keys::engine_keys(&config.keys, &public_url)?);
        let authority = Arc::new(authority(&config.keys)?);
        roots::not_older(&store, authority.ring().generation).await?;
        let fleet = fleet(config, &store, authority.clone(), &engine_keys);
        let stop = CancellationToken::new();
        let mut tasks = vec![serve_fleet(fleet.clone(), fleet_listener, stop.clone())];
        observe::fleet(fleet.clone());
        tasks.push(housekeeping::spawn(store.clone(), stop.clone()));
        let follower = roots::Follower {
            folder: Folder(config.keys.clone()),
            authority: authority.clone(),
            // Only replicas need to agree; dev is one process.
            store: (config.who != crate::dev::DEV).then(|| store.clone()),
        };
        tasks.push(follower.spawn(stop.clone()));
        let engines = Engines::new(fleet, authority.clone());
        let app = faces(&store, engines, engine_keys, (public_url, config.limits), &stop);
        if let Some(pair) = pair {
            tasks.push(pair.spawn(stop.clone()));
        }
        let served = (app, acceptor);
        tasks.push(serve_http(listener, served, config.proxies.clone(), stop.clone()));
        let mut metrics_address = None;
        if let Some(address) = config.metrics_listen {
            let listener = bind(address).await?;
            metrics_address = Some(listener.local_addr()?);
            let (app, proxies) = (health::metrics(metrics), proxy::Trusted::default());
            tasks.push(serve_http(listener, (app, None), proxies, stop.clone()));
        }
        Ok(Self {
            metrics_address,
            _lock: lock,
            store,
            address,
            fleet_address,
            authority,
            stop,
            tasks,
        })
    }

    /// Waits until a port fails, which ends the hub.
    ///
    /// # Errors
    /// What failed.
    pub(crate) async fn failed(&mut self) -> anyhow::Result<()> {
        let tasks = self.tasks.iter_mut();
        let (ended, _, _) = futures::future::select_all(tasks).await;
        ended?
    }

    /// Tells cluster agents to come back elsewhere, lets requests finish for a while, closes the database.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(DRAIN, task).await.is_err() {
                abort.abort();
            }
        }
        self.store.close().await;
    }
}

/// The error with the detail that only the operator sees.
fn explained(error: roadstead_domain::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("the database cannot be used")
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

/// The trust domain of SPIFFE ids; one hub, one domain.
pub(crate) const TRUST_DOMAIN: &str = "roadstead";

/// The fleet's certificate authority in the folder of keys; made there at the first start.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn authority(keys: &Path) -> anyhow::Result<Authority> {
    let folder = Folder(keys.to_owned());
    let opened = Authority::open(&folder, TRUST_DOMAIN, Arc::new(SystemClock), Arc::new(OsRandom));
    opened.with_context(|| format!("the certificate authority in {}", keys.display()))
}

fn fleet(
    config: &Config,
    store: &Store,
    authority: Arc<Authority>,
    keys: &roadstead_gateway::EngineKeys,
) -> Fleet {
    Fleet::new(roadstead_fleet::Parts {
        store: Arc::new(roadstead_fleet::Sql::new(store.clone())),
        authority,
        clock: Arc::new(SystemClock),
        keys: HubKeys {
            jwks: keys.jwks().to_string(),
            issuer: keys.issuer().to_owned(),
        },
        settings: roadstead_fleet::Settings::new(config.fleet_names.clone(), env!("CARGO_PKG_VERSION")),
    })
}

fn serve_fleet(
    fleet: Fleet,
    listener: TcpListener,
    stop: CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async move { fleet.serve(listener, stop).await.context("the fleet port") })
}

/// All HTTP faces behind login; `/livez` and `/readyz` before it.
fn faces(
    store: &Store,
    engines: Engines,
    keys: Arc<roadstead_gateway::EngineKeys>,
    (public_url, limits): (String, Limits),
    stop: &CancellationToken,
) -> Router {
    let engines = Arc::new(engines);
    let login = Arc::new(Login::new(
        store.clone(),
        FailureLimit::default(),
        limits.requests(),
    ));
    let bodies = Bodies::new(limits.bodies());
    let gateway = Arc::new(Gateway {
        agents: Arc::new(roadstead_gateway::ServiceAgents(store.clone())),
        tunnel: engines.clone(),
        keys,
        public_url: public_url.clone(),
        body_bytes: roadstead_gateway::BODY_BYTES,
        bodies: bodies.clone(),
        patience: roadstead_gateway::Patience::default(),
        clock: Arc::new(SystemClock),
    });
    let graphql = Graphql::new(roadstead_graphql::Parts {
        store: store.clone(),
        fleet: engines,
        authenticate: login.clone(),
        origins: vec![public_url],
        limits: limits.graphql(),
        bodies,
        socket: roadstead_graphql::SocketLimits::default(),
        stop: stop.clone(),
    });
    Router::new()
        .merge(roadstead_graphql::router(Arc::new(graphql)))
        .merge(roadstead_gateway::router(gateway))
        .merge(health::router(store.clone()))
        .fallback(roadstead_http::not_found)
        .layer(middleware::from_fn_with_state(login, roadstead_login::require))
        .layer(DefaultBodyLimit::max(roadstead_gateway::BODY_BYTES))
        .layer(middleware::from_fn(roadstead_http::guard))
}

fn serve_http(
    listener: TcpListener,
    app: (Router, Option<TlsAcceptor>),
    proxies: proxy::Trusted,
    stop: CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async move {
        http_server::serve(listener, app, http_server::Limits::default(), proxies, stop).await;
        Ok(())
    })
}

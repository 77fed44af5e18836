//! `roadstead-hub serve`, and what an operator does before it.

use crate::composition::{Config, Hub};
use anyhow::Context as _;
use roadstead_contract::documents::Name;
use roadstead_service::bootstrap;
use roadstead_store::{Store, StoreOptions};
use roadstead_telemetry::Metrics;
use secrecy::ExposeSecret as _;
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Where the database is. A URL with a password belongs into a file: a command line is seen by everybody.
#[derive(Debug, clap::Args)]
pub(crate) struct Database {
    /// `sqlite:PATH` or `postgres://…` (without a password; else use --database-file).
    #[arg(long, value_name = "URL", env = "ROADSTEAD_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// File that holds the URL alone.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "database",
        env = "ROADSTEAD_DATABASE_FILE"
    )]
    database_file: Option<PathBuf>,
}

impl Database {
    /// The URL.
    ///
    /// # Errors
    /// When neither is given, or the file cannot be read.
    pub(crate) fn url(&self) -> anyhow::Result<String> {
        match (&self.database, &self.database_file) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(file)) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Ok(text.trim().to_owned())
            }
            (None, None) => anyhow::bail!(
                "which database? give --database sqlite:PATH, or --database-file FILE with a postgres:// URL"
            ),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it does not answer, or is not migrated.
    pub(crate) async fn open(&self) -> anyhow::Result<Store> {
        let opened = Store::open(StoreOptions::new(self.url()?)).await;
        opened.context("the database cannot be used")
    }
}

/// The hub, as a server. Replicas share the database and the folder of keys.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    database: Database,
    /// Address of the API.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8080",
        env = "ROADSTEAD_LISTEN"
    )]
    listen: SocketAddr,
    /// Address of the cluster agents' port.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8443",
        env = "ROADSTEAD_FLEET_LISTEN"
    )]
    fleet_listen: SocketAddr,
    /// Host name or address by which cluster agents reach that port. Repeat for more.
    #[arg(long = "fleet-name", value_name = "HOST", default_values = ["127.0.0.1", "localhost"])]
    fleet_names: Vec<String>,
    /// How people reach the API (`https://hub.example.com`); from --listen if left out.
    #[arg(long, value_name = "URL", env = "ROADSTEAD_PUBLIC_URL")]
    public_url: Option<String>,
    /// Folder of the hub's own keys, mode 0700; they are made in an empty one.
    #[arg(long, value_name = "DIR", env = "ROADSTEAD_KEYS")]
    keys: PathBuf,
    /// Address of /metrics.
    #[arg(long, value_name = "ADDR", env = "ROADSTEAD_METRICS")]
    metrics: Option<SocketAddr>,
}

/// Serves until `stop`.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub(crate) async fn run(args: Serve, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config {
        database: args.database.url()?,
        listen: args.listen,
        fleet_listen: args.fleet_listen,
        fleet_names: args.fleet_names,
        public_url: args.public_url.map(|url| url.trim_end_matches('/').to_owned()),
        keys: args.keys,
        metrics_listen: args.metrics,
    };
    let mut hub = Hub::start(&config, metrics).await?;
    tracing::info!(listen = %hub.address, fleet = %hub.fleet_address, "the hub serves");
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        failed = hub.failed() => failed,
    };
    hub.stop().await;
    ended
}

/// Run as the schema's owner; `serve` runs as another role.
#[derive(Debug, clap::Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    database: Database,
    /// PostgreSQL role of the hub, which gets its rights on the tables and owns none.
    #[arg(long, value_name = "ROLE")]
    app_role: Option<String>,
}

/// Migrates.
///
/// # Errors
/// When the database does not answer, or a migration fails.
pub(crate) async fn migrate(args: Migrate) -> anyhow::Result<()> {
    roadstead_store::migrate(&args.database.url()?, args.app_role.as_deref())
        .await
        .context("migrating")
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateTenant {
    #[command(flatten)]
    database: Database,
    /// The tenant's name.
    name: Name,
    /// Its first project.
    #[arg(long, value_name = "NAME", default_value = "default")]
    project: Name,
    /// Gets the owner's API token; must not be there yet.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

/// Makes a tenant, its project and its owner's token. The token is in the file and nowhere else.
///
/// # Errors
/// When the name is taken or the file is there.
pub(crate) async fn create_tenant(args: CreateTenant) -> anyhow::Result<()> {
    let mut file = new_secret_file(&args.token_file)?;
    let made = async {
        let store = args.database.open().await?;
        let owner = bootstrap::tenant(&store, &args.name, &args.project).await?;
        let issued = owner.issue_token(&store, "owner").await?;
        file.write_all(issued.secret.expose_secret().as_bytes())?;
        file.sync_all()?;
        store.close().await;
        anyhow::Ok(())
    };
    let made = made.await;
    if made.is_err() {
        let _ = fs::remove_file(&args.token_file);
    }
    made
}

fn new_secret_file(path: &Path) -> anyhow::Result<fs::File> {
    let opened = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    opened.with_context(|| path.display().to_string())
}

//! `roadstead-hub serve`, and what an operator does before it.

use crate::{
    certificate::Files,
    composition::{Config, Hub},
    limits::Limits,
    proxy::{Network, Trusted},
};
use anyhow::Context as _;
use roadstead_contract::documents::Name;
use roadstead_service::bootstrap;
use roadstead_store::{Store, StoreOptions};
use roadstead_telemetry::Metrics;
use secrecy::{ExposeSecret as _, SecretString};
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Where the database is. A URL with a password belongs into a file: a command line is seen by everybody.
#[derive(Debug, clap::Args)]
pub(crate) struct Database {
    /// `sqlite:PATH` or `postgres://…` without a password (with one, use --database-file).
    #[arg(long, value_name = "URL", env = "ROADSTEAD_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// File that holds the URL alone; others than its owner and group must not read it.
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
            (Some(url), _) => {
                anyhow::ensure!(
                    !(holds_password(url) && on_command_line(url)),
                    "--database: a password on the command line is seen by everybody on the machine: put the URL into a \
                     file and use --database-file"
                );
                Ok(url.clone())
            }
            (None, Some(file)) => {
                let mode = fs::metadata(file).with_context(|| file.display().to_string())?;
                let mode = mode.permissions().mode() & 0o777;
                anyhow::ensure!(
                    mode & 0o007 == 0,
                    "{} may hold a password: expected a file that others cannot read, found mode {mode:o} (chmod 600 it)",
                    file.display()
                );
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
    /// Certificate of the API's port: PEM, the hub's own first, then those that lead to its root. With it the port speaks
    /// TLS alone; without it plain HTTP, for a proxy on the same machine or network that does. Read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        env = "ROADSTEAD_TLS_CERTIFICATE"
    )]
    tls_certificate: Option<PathBuf>,
    /// Its private key: PEM, in a file that others than its owner and group cannot read.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_certificate",
        env = "ROADSTEAD_TLS_KEY"
    )]
    tls_key: Option<PathBuf>,
    /// How people reach the API (`https://hub.example.com`); from --listen if left out.
    #[arg(long, value_name = "URL", env = "ROADSTEAD_PUBLIC_URL")]
    public_url: Option<String>,
    /// Folder of the hub's own keys, mode 0700; they are made in an empty one.
    #[arg(long, value_name = "DIR", env = "ROADSTEAD_KEYS")]
    keys: PathBuf,
    /// Address of /metrics, on a port of its own (127.0.0.1:9090); not served if left out. Whoever reaches it needs no
    /// token: names and numbers of operations are there for all to read, so let only your Prometheus reach it.
    #[arg(long, value_name = "ADDR", env = "ROADSTEAD_METRICS")]
    metrics: Option<SocketAddr>,
    /// Proxy before the API whose X-Forwarded-For is believed: an address or a network. Repeat for more. Without one
    /// the header means nothing.
    #[arg(
        long = "trusted-proxy",
        value_name = "NET",
        env = "ROADSTEAD_TRUSTED_PROXIES",
        value_delimiter = ','
    )]
    trusted_proxies: Vec<Network>,
    #[command(flatten)]
    limits: Limits,
}

/// Serves until `stop`.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub(crate) async fn run(args: Serve, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config {
        who: "serve",
        store: StoreOptions {
            places: args.limits.places(),
            ..StoreOptions::new(args.database.url()?)
        },
        limits: args.limits.check()?,
        listen: args.listen,
        fleet_listen: args.fleet_listen,
        fleet_names: args.fleet_names,
        public_url: args.public_url.map(|url| url.trim_end_matches('/').to_owned()),
        keys: args.keys,
        metrics_listen: args.metrics,
        tls: args
            .tls_certificate
            .zip(args.tls_key)
            .map(|(certificate, key)| Files { certificate, key }),
        proxies: Trusted(args.trusted_proxies.into()),
    };
    let mut hub = Hub::start(&config, metrics).await?;
    tracing::info!(
        listen = %hub.address,
        fleet = %hub.fleet_address,
        metrics = hub.metrics_address.map(tracing::field::display),
        "the hub serves"
    );
    if hub
        .metrics_address
        .is_some_and(|address| !address.ip().is_loopback())
    {
        tracing::warn!("/metrics is served beyond loopback, to whoever reaches it: no token is asked there");
    }
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

/// Makes a tenant, its project and its owner's token, all of it or nothing. The token is in the file and nowhere else.
///
/// # Errors
/// When the name is taken or the file is there.
pub(crate) async fn create_tenant(args: CreateTenant) -> anyhow::Result<()> {
    let store = args.database.open().await?;
    let file = SecretFile::new(&args.token_file)?;
    let made = bootstrap::tenant(&store, &args.name, &args.project, |secret| file.keep(secret)).await;
    file.settle(made)?;
    store.close().await;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct IssueOwnerToken {
    #[command(flatten)]
    database: Database,
    /// The tenant's name.
    tenant: Name,
    /// Gets the API token; must not be there yet.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

/// Issues a token of an owner in a tenant that is there.
///
/// # Errors
/// When there is no such tenant, or the file is there.
pub(crate) async fn issue_owner_token(args: IssueOwnerToken) -> anyhow::Result<()> {
    let store = args.database.open().await?;
    let file = SecretFile::new(&args.token_file)?;
    let made = bootstrap::owner_token(&store, &args.tenant, |secret| file.keep(secret)).await;
    file.settle(made)?;
    store.close().await;
    Ok(())
}

/// A new file for a secret.
#[derive(Debug)]
struct SecretFile {
    path: PathBuf,
    file: fs::File,
}

impl SecretFile {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let opened = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        Ok(Self {
            file: opened.with_context(|| path.display().to_string())?,
            path: path.to_owned(),
        })
    }

    /// A file without its tenant is a trap: it goes with the failure.
    fn settle(self, made: anyhow::Result<()>) -> anyhow::Result<()> {
        if made.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        made
    }

    fn keep(&self, secret: &SecretString) -> Result<(), anyhow::Error> {
        let mut file = &self.file;
        file.write_all(secret.expose_secret().as_bytes())?;
        file.sync_all()?;
        Ok(())
    }
}

fn holds_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':')
        || url
            .split_once('?')
            .is_some_and(|(_, query)| query.contains("password="))
}

fn on_command_line(url: &str) -> bool {
    std::env::args().any(|argument| argument.contains(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_seen() {
        for url in [
            "postgres://u:p@h/d",
            "postgresql://u:@h",
            "postgres://h/d?user=u&password=p",
        ] {
            assert!(holds_password(url), "{url}");
        }
        for url in [
            "postgres://u@h:5432/d",
            "postgres://h:5432/d?sslmode=require",
            "sqlite:/a:b@c.db",
        ] {
            assert!(!holds_password(url), "{url}");
        }
    }
}

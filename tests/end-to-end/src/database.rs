//! The hub's database in a test: a SQLite file, or a PostgreSQL server of the test's own that it can kill, stop and
//! start again.

use crate::binary;
use anyhow::{Context as _, bail};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/postgres");
const OWNER: &str = "roadstead_owner";
const HUB: &str = "roadstead_hub";
const PASSWORD: &str = "canary-database-password";

/// Where a hub keeps its state.
#[derive(Debug)]
pub struct Database {
    /// As the hub opens it.
    pub url: String,
    /// A file that holds the URL alone.
    pub url_file: PathBuf,
    pub server: Option<Postgres>,
}

impl Database {
    /// A SQLite file in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn sqlite(folder: &Path) -> anyhow::Result<Self> {
        Self::of(
            format!("sqlite:{}", folder.join("hub.db").display()),
            folder,
            None,
        )
    }

    /// A migrated database of a new PostgreSQL server; `None`, said aloud, where none is installed.
    ///
    /// # Errors
    /// When the server does not start or does not do what the hub needs.
    ///
    /// # Panics
    /// In a complete run (`make test`), which must not pass without one.
    pub fn postgres(folder: &Path) -> anyhow::Result<Option<Self>> {
        Self::of_postgres(folder, None)
    }

    /// The same with its tables in the folder `place`, which must be [`Postgres::user`]'s.
    ///
    /// # Errors
    /// When the server does not start or does not do what the hub needs.
    ///
    /// # Panics
    /// In a complete run (`make test`), which must not pass without one.
    pub fn postgres_on(folder: &Path, place: &Path) -> anyhow::Result<Option<Self>> {
        Self::of_postgres(folder, Some(place))
    }

    fn of_postgres(folder: &Path, place: Option<&Path>) -> anyhow::Result<Option<Self>> {
        if std::env::var_os("ROADSTEAD_TEST_PG_BIN").is_none() {
            assert!(
                std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
                "ROADSTEAD_TEST_PG_BIN is not set"
            );
            eprintln!("skipped: no PostgreSQL is installed (make test-tools)");
            return Ok(None);
        }
        let mut server = Postgres::start()?;
        for role in [OWNER, HUB] {
            server.tell(&format!(
                "sql CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER NOBYPASSRLS"
            ))?;
        }
        let mut options = "TEMPLATE template0".to_owned();
        if let Some(place) = place {
            server.tell(&format!(
                "sql CREATE TABLESPACE place LOCATION '{}'",
                place.display()
            ))?;
            options.push_str(" TABLESPACE place");
        }
        server.tell(&format!("sql CREATE DATABASE hub OWNER {OWNER} {options}"))?;
        let (_, place) = server.url.split_once('@').context("a URL with a host")?;
        let address = place
            .split_once('/')
            .map_or(place, |(address, _)| address)
            .to_owned();
        let url = |role: &str| format!("postgres://{role}:{PASSWORD}@{address}/hub");
        let owner = folder.join("owner-url");
        secret_file(&owner, &url(OWNER))?;
        let migrated = Command::new(binary("roadstead-hub"))
            .args(["migrate", "--app-role", HUB, "--database-file"])
            .arg(&owner)
            .output()?;
        anyhow::ensure!(migrated.status.success(), "{migrated:?}");
        Self::of(url(HUB), folder, Some(server)).map(Some)
    }

    fn of(url: String, folder: &Path, server: Option<Postgres>) -> anyhow::Result<Self> {
        let url_file = folder.join("database-url");
        secret_file(&url_file, &url)?;
        Ok(Self {
            url,
            url_file,
            server,
        })
    }

    /// The server, for faults.
    ///
    /// # Errors
    /// On SQLite.
    pub fn server(&mut self) -> anyhow::Result<&mut Postgres> {
        self.server.as_mut().context("SQLite has no server")
    }

    /// Walks the chain of audit records of every tenant.
    ///
    /// # Errors
    /// When it is broken.
    pub fn verify_audit(&self) -> anyhow::Result<String> {
        let verified = Command::new(binary("roadstead-hub"))
            .args(["audit", "verify", "--database-file"])
            .arg(&self.url_file)
            .output()?;
        anyhow::ensure!(verified.status.success(), "{verified:?}");
        Ok(String::from_utf8_lossy(&verified.stdout).into_owned())
    }
}

/// A file for this user alone, as the hub wants one that may hold a password.
fn secret_file(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    Ok(options.open(path)?.write_all(text.as_bytes())?)
}

/// `tests/tools/postgres obey`: does what it is told, and is gone when the test is.
#[derive(Debug)]
pub struct Postgres {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Of a superuser.
    pub url: String,
}

impl Postgres {
    fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(SCRIPT)
            .arg("obey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context(SCRIPT)?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("stdout")?);
        let mut server = Self {
            process,
            orders,
            answers,
            url: String::new(),
        };
        server.url = server.answer()?;
        Ok(server)
    }

    /// The number of the user whose the server is, as tests/tools/postgres chooses it.
    ///
    /// # Errors
    /// When the system knows no such user.
    pub fn user() -> anyhow::Result<u32> {
        let id = |name: Option<&str>| {
            let said = Command::new("id").arg("-u").args(name).output().ok()?;
            let number = String::from_utf8_lossy(&said.stdout).trim().parse::<u32>().ok();
            number.filter(|_| said.status.success())
        };
        let own = id(None).context("id -u")?;
        if own != 0 {
            return Ok(own);
        }
        id(Some("postgres"))
            .or_else(|| id(Some("nobody")))
            .context("neither a user postgres nor nobody")
    }

    /// kill -9 of the server.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.tell("kill").map(drop)
    }

    /// Stops it: sessions are cut, and no connection is accepted.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.tell("stop").map(drop)
    }

    /// Starts it again, on the same data and port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn again(&mut self) -> anyhow::Result<()> {
        self.tell("start").map(drop)
    }

    /// Runs a statement as superuser in `hub`; rows come back as one line.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn sql(&mut self, statement: &str) -> anyhow::Result<String> {
        self.tell(&format!("hub {statement}"))
    }

    fn tell(&mut self, order: &str) -> anyhow::Result<String> {
        let orders = self.orders.as_mut().context("the server is gone")?;
        writeln!(orders, "{order}")?;
        orders.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("done", rest) => Ok(rest.to_owned()),
            _ => bail!("tests/tools/postgres obey said {line:?}"),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The end of its orders ends it.
        self.orders = None;
        let _ = self.process.wait();
    }
}

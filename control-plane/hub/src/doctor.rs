//! `roadstead-hub doctor`: looks at a deployment as its parts would see it, and changes nothing.
//!
//! From inside: the database with the hub's own role, the folder of keys, the disk. From outside, when the addresses are
//! given: the API and the cluster agents' port, as a client reaches them.

use crate::{keys, lock, roots, serve::Database};
use anyhow::{Context as _, bail, ensure};
use roadstead_domain::SystemClock;
use rustls::pki_types::ServerName;
use std::{
    fs,
    future::Future,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpStream;

/// For each thing that is asked over the network.
const PATIENCE: Duration = Duration::from_secs(5);
/// Less free space than this is trouble soon.
const ROOM: u64 = 1024 * 1024 * 1024;
/// The private files of every folder of keys; a rotation of roots adds some.
const PRIVATE: [&str; 2] = ["ca-key.pem", "engine-key.pem"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    database: Database,
    /// Folder of the hub's own keys.
    #[arg(long, value_name = "DIR", env = "ROADSTEAD_KEYS")]
    keys: Option<PathBuf>,
    /// How people reach the API (`https://hub.example.com`).
    #[arg(long, value_name = "URL", env = "ROADSTEAD_PUBLIC_URL")]
    public_url: Option<String>,
    /// Host and port by which cluster agents reach their port (`hub.example.com:8443`). Repeat for more. Needs --keys.
    #[arg(long = "fleet", value_name = "HOST:PORT")]
    fleet: Vec<String>,
}

/// One line of the table.
struct Line {
    what: String,
    found: Result<String, String>,
}

#[derive(Default)]
struct Report(Vec<Line>);

impl Report {
    fn add(&mut self, what: impl Into<String>, found: anyhow::Result<String>) {
        self.0.push(Line {
            what: what.into(),
            found: found.map_err(|error| format!("{error:#}")),
        });
    }

    fn is_well(&self) -> bool {
        self.0.iter().all(|line| line.found.is_ok())
    }

    fn table(&self) -> String {
        let wide = self
            .0
            .iter()
            .map(|line| line.what.chars().count())
            .max()
            .unwrap_or(0);
        let mut table = String::new();
        for line in &self.0 {
            let (mark, found) = match &line.found {
                Ok(found) => ("ok   ", found),
                Err(wrong) => ("WRONG", wrong),
            };
            table.push_str(&format!("{mark}  {:wide$}  {found}\n", line.what));
        }
        table
    }
}

/// Prints a table; the exit code is 1 when anything in it is wrong.
///
/// # Errors
/// When it cannot begin to look: no database was named.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let url = args.database.url()?;
    let mut report = Report::default();
    for finding in roadstead_store::examine(&url, &SystemClock).await {
        report.add(finding.what, finding.found.map_err(anyhow::Error::msg));
    }
    if let Some(file) = lock::database_file(&url) {
        report.add("database file is private", private(&file));
        report.add(
            "room for the database",
            room(file.parent().unwrap_or(Path::new("."))),
        );
    }
    if let Some(folder) = &args.keys {
        look_at_keys(&mut report, folder);
        look_at_roots(&mut report, folder, &url).await;
    }
    if let Some(url) = &args.public_url {
        look_at_api(&mut report, url.trim_end_matches('/')).await;
    }
    for address in &args.fleet {
        let seen = within(fleet(address, args.keys.as_deref())).await;
        report.add(format!("cluster agents' port {address}"), seen);
    }
    print!("{}", report.table());
    Ok(if report.is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn within<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
}

fn mode(path: &Path) -> anyhow::Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

fn private(path: &Path) -> anyhow::Result<String> {
    let mode = mode(path)?;
    ensure!(
        mode & 0o077 == 0,
        "{}: expected a mode without rights for others (chmod go= it), found {mode:o}",
        path.display()
    );
    Ok(format!("mode {mode:o}"))
}

fn room(folder: &Path) -> anyhow::Result<String> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let disk = rustix::fs::statvfs(folder).with_context(|| folder.display().to_string())?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let mib = free / (1024 * 1024);
    ensure!(
        free >= ROOM,
        "expected 1024 MiB free in {}, found {mib} MiB",
        folder.display()
    );
    ensure!(
        disk.f_files == 0 || disk.f_favail > 1_000,
        "the file system of {} has no inodes left",
        folder.display()
    );
    Ok(format!("{mib} MiB free"))
}

fn look_at_keys(report: &mut Report, folder: &Path) {
    report.add("folder of keys is private", private(folder));
    let mut names: Vec<_> = PRIVATE.map(str::to_owned).into();
    let others = roadstead_fleet::Folder(folder.to_owned()).private_files();
    names.extend(
        others
            .unwrap_or_default()
            .into_iter()
            .filter(|name| !PRIVATE.contains(&name.as_str())),
    );
    for name in names {
        report.add(format!("{name} is private"), private(&folder.join(&name)));
    }
    // Read only where they are: the look must not make them.
    if PRIVATE.iter().all(|name| folder.join(name).is_file()) {
        let read = keys::engine_keys(folder, "doctor").map(|_| "read".to_owned());
        report.add("key for engines' tokens", read);
        report.add(
            "authority of the fleet",
            authority(folder).map(|_| "read".to_owned()),
        );
    }
    report.add("room for keys", room(folder));
}

/// How a rotation of roots stands: what there is, who works with it, who has it, how old certificates are.
async fn look_at_roots(report: &mut Report, folder: &Path, url: &str) {
    let folder = roadstead_fleet::Folder(folder.to_owned());
    let ring = match roadstead_fleet::KeyStore::load(&folder) {
        Ok(Some(stored)) => stored.ring,
        Ok(None) => return,
        Err(error) => return report.add("roots of the fleet", Err(error.into())),
    };
    let now_ms = roadstead_domain::Clock::now_ms(&SystemClock);
    report.add(
        "roots of the fleet",
        Ok(format!("generation {}: {}", ring.generation, ring.describe())),
    );
    report.add("root that signs", roots::time_left(ring.signer(), now_ms));
    let holders = match roots::look(url).await {
        Ok(holders) => holders,
        Err(error) => return report.add("who has which roots", Err(error)),
    };
    let others = ring.other_replicas(&holders, now_ms);
    report.add(
        "replicas work with these roots",
        match others.is_empty() {
            true => Ok(roots::replicas(&holders, now_ms)),
            false => Err(anyhow::anyhow!("{}", others.join("; "))),
        },
    );
    for (what, found) in roots::progress(&ring, &holders) {
        report.add(what, Ok(found));
    }
    report.add("certificates of clusters", Ok(roots::ages(&holders, now_ms)));
}

fn authority(folder: &Path) -> anyhow::Result<roadstead_fleet::Authority> {
    ensure!(
        folder.join("ca.pem").is_file(),
        "{}: expected ca.pem beside ca-key.pem",
        folder.display()
    );
    crate::composition::authority(folder)
}

async fn look_at_api(report: &mut Report, url: &str) {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return report.add("API", Err(error.into())),
    };
    for (path, wanted, what) in [
        ("/livez", 200, "API lives"),
        ("/readyz", 200, "API is ready"),
        ("/graphql", 401, "API asks for a token"),
    ] {
        let answered = asked(&client, &format!("{url}{path}"), wanted).await;
        report.add(what, answered);
    }
    let secure = match url.strip_prefix("https://") {
        Some(_) => Ok("https, with a certificate that this machine trusts".to_owned()),
        None if is_loopback(url) => Ok("http, on loopback".to_owned()),
        None => Err(anyhow::anyhow!(
            "expected https://, found {url}: tokens would cross the network in the clear"
        )),
    };
    report.add("API is encrypted", secure);
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

async fn asked(client: &reqwest::Client, url: &str, wanted: u16) -> anyhow::Result<String> {
    let request = match wanted {
        401 => client
            .post(url)
            .body("{}")
            .header("content-type", "application/json"),
        _ => client.get(url),
    };
    let answer = request.send().await.with_context(|| url.to_owned())?;
    let status = answer.status().as_u16();
    if status == wanted {
        return Ok(format!("{status} from {url}"));
    }
    let body = answer.text().await.unwrap_or_default();
    let said: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
    bail!("expected {wanted} from {url}, found {status}: {said}")
}

/// Shakes hands as a cluster agent does before it has a certificate: the port's own certificate must be of the hub's
/// authority and for this name.
async fn fleet(address: &str, keys: Option<&Path>) -> anyhow::Result<String> {
    let folder =
        keys.context("give --keys too: the port's certificate is checked against the hub's authority")?;
    let authority = authority(folder)?;
    let mut roots = rustls::RootCertStore::empty();
    for root in authority.ring().trusted() {
        roots.add(root.der().to_vec().into())?;
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (host, _) = address.rsplit_once(':').context("expected HOST:PORT")?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .with_context(|| format!("{host:?} is no host name"))?;
    let stream = TcpStream::connect(address).await.context("connecting")?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let secure = connector
        .connect(name, stream)
        .await
        .context("the TLS handshake")?;
    let version = secure.get_ref().1.protocol_version();
    Ok(format!(
        "certificate of the hub's authority for {host}, {}",
        version.and_then(|v| v.as_str()).unwrap_or("TLS")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_wrong() {
        let mut report = Report::default();
        report.add("a", Ok("fine".to_owned()));
        assert!(report.is_well());
        report.add("longer", Err(anyhow::anyhow!("inner").context("outer")));
        assert!(!report.is_well());
        assert_eq!(
            report.table(),
            "ok     a       fine\nWRONG  longer  outer: inner\n"
        );
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for url in ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080"] {
            assert!(is_loopback(url), "{url}");
        }
        assert!(!is_loopback("http://hub.example.com:8080"));
        assert!(!is_loopback("http://127.0.0.1.example.com"));
    }

    #[test]
    fn files_that_others_may_read_are_wrong() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("key");
        fs::write(&file, "x")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
        assert!(private(&file).unwrap_err().to_string().contains("found 640"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        assert_eq!(private(&file)?, "mode 600");
        Ok(())
    }
}

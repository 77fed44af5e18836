//! TLS of the API's port: the operator's certificate and key, read again when they change.
//!
//! Whoever renews certificates (cert-manager into a mounted secret, an ACME client into a folder) writes new files; the
//! hub takes them up within seconds, for new connections. What cannot be used changes nothing: the pair before stays, the
//! log says why and `roadstead_hub_tls_pair_refused` is 1 until there is a pair that can.

use anyhow::Context as _;
use parking_lot::RwLock;
use roadstead_telemetry::{Counter, Label, meter};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt, fs,
    hash::{DefaultHasher, Hasher as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// PEM: the hub's own certificate first, then those that lead to its root.
    pub(crate) certificate: PathBuf,
    /// PEM: one private key.
    pub(crate) key: PathBuf,
}

/// The pair that is served, and what tells whether the files are still those.
pub(crate) struct Pair {
    files: Files,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
    /// Of the files that were looked at last, good or not.
    seen: AtomicU64,
    refused: Arc<AtomicU64>,
    reloads: Counter<u64>,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used: a hub without its certificate does not start.
    pub(crate) fn open(files: Files) -> anyhow::Result<Arc<Self>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let found = Found::read(&files)?;
        let current = found.pair(&files, &provider)?;
        let refused = Arc::new(AtomicU64::new(0));
        let meter = meter("roadstead-hub");
        let shown = refused.clone();
        meter
            .u64_observable_gauge("roadstead.hub.tls.pair.refused")
            .with_description(
                "1 while the API's certificate and key on disk cannot be used and older ones are served",
            )
            .with_callback(move |observer| observer.observe(shown.load(Ordering::Relaxed), &[]))
            .build();
        let reloads = meter
            .u64_counter("roadstead.hub.tls.reloads")
            .with_description("Changes of the API's certificate and key on disk, by outcome")
            .build();
        Ok(Arc::new(Self {
            seen: AtomicU64::new(found.mark()),
            files,
            provider,
            current: RwLock::new(Arc::new(current)),
            refused,
            reloads,
        }))
    }

    /// For the server: TLS 1.2 and 1.3 with the suites that rustls has on, HTTP/1.1 alone.
    ///
    /// # Errors
    /// When the provider has none of these versions.
    pub(crate) fn acceptor(self: &Arc<Self>) -> anyhow::Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .context("TLS of the API's port")?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files until `stop`.
    pub(crate) fn spawn(self: Arc<Self>, stop: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(LOOK) => {}
                }
                let pair = self.clone();
                spawn_blocking(move || pair.look()).await?;
            }
        })
    }

    /// Takes up what the files hold now, if it is new and can be used.
    pub(crate) fn look(&self) {
        let found = Found::read(&self.files);
        // A file that cannot be read is a state too: it is said once.
        let mark = found.as_ref().map_or(0, Found::mark);
        if self.seen.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        let outcome = match found.and_then(|found| found.pair(&self.files, &self.provider)) {
            Ok(pair) => {
                *self.current.write() = Arc::new(pair);
                self.refused.store(0, Ordering::Relaxed);
                tracing::info!(certificate = %self.files.certificate.display(), "the API's certificate has changed");
                "loaded"
            }
            Err(error) => {
                self.refused.store(1, Ordering::Relaxed);
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the API's new certificate or key cannot be used: the ones before are served further"
                );
                "refused"
            }
        };
        self.reloads.add(1, &[Label::new("outcome", outcome)]);
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

/// What the files hold.
struct Found {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

impl Found {
    fn read(files: &Files) -> anyhow::Result<Self> {
        Ok(Self {
            certificate: fs::read(&files.certificate).with_context(|| shown(&files.certificate))?,
            key: secret(&files.key)?.into(),
        })
    }

    /// Changes with what the files hold.
    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.certificate);
        hasher.write_usize(self.certificate.len());
        hasher.write(&self.key);
        // 0 stands for files that cannot be read.
        hasher.finish().max(1)
    }

    /// A chain and the key of its first certificate.
    fn pair(&self, files: &Files, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
        let certificate = || shown(&files.certificate);
        // What the reader of PEM says is left out, of the certificates too: its errors repeat the line that they stumble
        // over, and that is the whole key where a key came as one line, or in the place of the certificate.
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.map_err(|_| {
            anyhow::anyhow!(
                "{}: expected certificates in PEM, found something else",
                certificate()
            )
        })?;
        anyhow::ensure!(
            !chain.is_empty(),
            "{}: expected certificates in PEM, found none",
            certificate()
        );
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| {
                anyhow::anyhow!(
                    "{}: expected one private key in PEM, found something else (each line of it on a line of its own)",
                    shown(&files.key)
                )
            })?;
        CertifiedKey::from_der(chain, key, provider).with_context(|| {
            format!(
                "{} and {}: expected a certificate and its own key",
                shown(&files.certificate),
                shown(&files.key)
            )
        })
    }
}

/// The content of a file that its owner and group alone may read.
fn secret(file: &Path) -> anyhow::Result<Vec<u8>> {
    // Of what the name leads to: a mounted secret is a symbolic link.
    let mode = fs::metadata(file).with_context(|| shown(file))?;
    let mode = mode.permissions().mode() & 0o777;
    anyhow::ensure!(
        mode & 0o007 == 0,
        "{} holds a private key: expected a file that others cannot read, found mode {mode:o} (chmod 600 it)",
        shown(file)
    );
    fs::read(file).with_context(|| shown(file))
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt as _;

    /// A certificate for `localhost` with its key, in files; its own root.
    pub(crate) fn write(folder: &Path, name: &str) -> anyhow::Result<CertificateDer<'static>> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key)?;
        fs::write(folder.join("tls.crt"), certificate.pem())?;
        write_key(folder, &key.serialize_pem(), 0o600)?;
        Ok(certificate.der().clone())
    }

    fn write_key(folder: &Path, pem: &str, mode: u32) -> anyhow::Result<()> {
        let file = folder.join("tls.key");
        if file.exists() {
            fs::remove_file(&file)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut new = options.write(true).create_new(true).mode(mode).open(file)?;
        std::io::Write::write_all(&mut new, pem.as_bytes())?;
        Ok(())
    }

    pub(crate) fn files(folder: &Path) -> Files {
        Files {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        }
    }

    fn served(pair: &Pair) -> CertificateDer<'static> {
        pair.current.read().cert[0].clone()
    }

    #[test]
    fn a_pair_that_cannot_be_used_is_refused_and_names_its_file() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let refused = |expected: &str| {
            let error = Pair::open(files(folder.path())).expect_err("refused");
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("PRIVATE"), "{error}");
        };
        refused("tls.crt");
        write(folder.path(), "one")?;
        let key = fs::read_to_string(folder.path().join("tls.key"))?;
        Pair::open(files(folder.path()))?;
        write_key(folder.path(), &key, 0o644)?;
        refused("found mode 644 (chmod 600 it)");
        write_key(folder.path(), &key, 0o640)?;
        Pair::open(files(folder.path()))?;
        write_key(folder.path(), &rcgen::KeyPair::generate()?.serialize_pem(), 0o600)?;
        refused("expected a certificate and its own key");
        write_key(folder.path(), "nonsense", 0o600)?;
        refused("expected one private key in PEM");
        write_key(folder.path(), &key, 0o600)?;
        fs::write(folder.path().join("tls.crt"), "nonsense")?;
        refused("expected certificates in PEM, found none");
        Ok(())
    }

    /// Whether the text repeats a part of the key: as it is, or as the numbers of its bytes.
    fn repeats(text: &str, key: &str) -> bool {
        let secret: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
        secret.as_bytes().windows(6).any(|part| {
            let numbers = format!("{part:?}");
            text.contains(&*String::from_utf8_lossy(part)) || text.contains(numbers.trim_matches(['[', ']']))
        })
    }

    #[test]
    fn s66_a_key_that_cannot_be_read_is_not_repeated() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        write(folder.path(), "one")?;
        let certificate = fs::read_to_string(folder.path().join("tls.crt"))?;
        let key = fs::read_to_string(folder.path().join("tls.key"))?;
        let lines: Vec<&str> = key.lines().collect();
        let half = lines[..lines.len() - 1].join("\n");
        // As environments, templates and copies by hand leave it.
        let broken = [
            lines.join(" "),
            lines.join("\\n"),
            format!("{}\\n", lines.join("\\n")),
            lines.concat(),
            format!("  {}", lines.join("\n  ")),
            format!("\"{key}\""),
            lines.join("\n\n"),
            half,
        ];
        // The reader's own errors would: this test sees them.
        let reader =
            |text: &str| PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string());
        assert!(
            broken
                .iter()
                .any(|text| reader(text).is_err_and(|error| repeats(&error, &key)))
        );
        let opened = || Pair::open(files(folder.path())).map_err(|error| format!("{error:#} {error:?}"));
        for text in &broken {
            fs::write(folder.path().join("tls.crt"), &certificate)?;
            write_key(folder.path(), text, 0o600)?;
            if let Err(error) = opened() {
                assert!(!repeats(&error, &key), "{error}");
                assert!(error.contains("tls.key"), "{error}");
            }
        }
        for text in broken.iter().chain([&key]) {
            // A key where the certificate should be.
            fs::write(folder.path().join("tls.crt"), text)?;
            write_key(folder.path(), &key, 0o600)?;
            let error = opened().expect_err("a key is no certificate");
            assert!(!repeats(&error, &key), "{error}");
            assert!(error.contains("tls.crt"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_new_pair_is_taken_up_and_a_broken_one_leaves_the_one_before() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let first = write(folder.path(), "one")?;
        let pair = Pair::open(files(folder.path()))?;
        pair.look();
        assert_eq!(served(&pair), first);
        // Half of a change, as a renewal writes it: the certificate is there and its key is not.
        let old = fs::read_to_string(folder.path().join("tls.key"))?;
        let second = write(folder.path(), "two")?;
        let new = fs::read_to_string(folder.path().join("tls.key"))?;
        write_key(folder.path(), &old, 0o600)?;
        pair.look();
        assert_eq!(
            (served(&pair), pair.refused.load(Ordering::Relaxed)),
            (first.clone(), 1)
        );
        // Open to others is as bad, and said again since it is another state.
        write_key(folder.path(), &new, 0o644)?;
        pair.look();
        assert_eq!((served(&pair), pair.refused.load(Ordering::Relaxed)), (first, 1));
        write_key(folder.path(), &new, 0o600)?;
        pair.look();
        assert_eq!(
            (served(&pair), pair.refused.load(Ordering::Relaxed)),
            (second.clone(), 0)
        );
        fs::remove_file(folder.path().join("tls.crt"))?;
        pair.look();
        assert_eq!(
            (served(&pair), pair.refused.load(Ordering::Relaxed)),
            (second.clone(), 1)
        );
        // The same pair again is good again.
        write(folder.path(), "three")?;
        pair.look();
        assert_ne!(served(&pair), second);
        assert_eq!(pair.refused.load(Ordering::Relaxed), 0);
        Ok(())
    }
}

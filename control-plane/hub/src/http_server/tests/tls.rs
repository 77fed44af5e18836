//! The port with a certificate, from real clients.

use super::*;
use crate::certificate::{
    Pair,
    tests::{files, write},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use tokio_rustls::TlsConnector;

struct Secured {
    running: Running,
    pair: Arc<Pair>,
    folder: tempfile::TempDir,
    root: CertificateDer<'static>,
}

async fn secured(limits: Limits) -> Secured {
    let folder = tempfile::tempdir().expect("a folder");
    let root = write(folder.path(), "one").expect("written");
    let pair = Pair::open(files(folder.path())).expect("good");
    let acceptor = pair.acceptor().expect("good");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let served = serve(
        listener,
        (hello(), Some(acceptor)),
        limits,
        Trusted::default(),
        stop.clone(),
    );
    let running = Running {
        address,
        stop,
        task: tokio::spawn(served),
    };
    Secured {
        running,
        pair,
        folder,
        root,
    }
}

/// A client that trusts this root alone.
fn client(
    root: &CertificateDer<'static>,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .expect("known")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

impl Secured {
    async fn connect(&self, config: ClientConfig) -> io::Result<Stream> {
        let stream = self.running.connect().await;
        let name = ServerName::try_from("localhost").expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        timeout(PATIENCE, connecting).await.expect("in time")
    }

    async fn trusting(&self, root: &CertificateDer<'static>) -> io::Result<Stream> {
        self.connect(client(root, &rustls::version::TLS13)).await
    }
}

async fn asks(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .expect("written");
    let mut answer = String::new();
    let mut bytes = [0; 4096];
    while !is_whole(&answer) {
        let read = timeout(PATIENCE, stream.read(&mut bytes)).await;
        let read = read.expect("in time").expect("read");
        assert!(read > 0, "closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    answer
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_with_http_1_and_hsts() {
    let secured = secured(limits()).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut config = client(&secured.root, version);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut stream = secured.connect(config).await.expect("connected");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = asks(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("127.0.0.1"),
            "{answer}"
        );
        assert!(
            answer.contains("strict-transport-security: max-age=31536000\r\n"),
            "{answer}"
        );
    }
    // HTTP/2 alone is not to be had, and a stranger's root is not trusted.
    let mut config = client(&secured.root, &rustls::version::TLS13);
    config.alpn_protocols = vec![b"h2".to_vec()];
    secured.connect(config).await.expect_err("refused");
    let other = tempfile::tempdir().expect("a folder");
    let stranger = write(other.path(), "stranger").expect("written");
    secured.trusting(&stranger).await.expect_err("refused");
}

#[tokio::test]
async fn s29_a_handshake_that_does_not_end_is_cut_and_counts_before_it_begins() {
    let few = Limits {
        connections: 2,
        ..limits()
    };
    let secured = secured(few).await;
    let mut slow = Vec::new();
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = secured.running.connect().await;
        stream.write_all(begun).await.expect("written");
        slow.push(stream);
    }
    // Both places are taken by who has said nothing yet.
    assert_eq!(rest(&mut secured.running.connect().await).await, "");
    for stream in &mut slow {
        assert_eq!(rest(stream).await, "");
    }
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut stream) = secured.trusting(&secured.root).await {
            assert!(asks(&mut stream).await.starts_with("HTTP/1.1 200"));
            return;
        }
        assert!(Instant::now() < until, "the places stay taken");
    }
}

#[tokio::test]
async fn plain_http_is_told_to_use_tls_and_gets_nothing_else() {
    let secured = secured(limits()).await;
    let mut stream = secured.running.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\n\r\n")
        .await
        .expect("written");
    let told = rest(&mut stream).await;
    assert!(
        told.starts_with("HTTP/1.1 400 ") && told.contains("this port speaks TLS: use https://"),
        "{told}"
    );
    assert!(!told.contains("127.0.0.1") && !told.contains("secret"), "{told}");
    // What is neither is an alert of TLS, or nothing.
    let mut stream = secured.running.connect().await;
    stream.write_all(&[0; 64]).await.expect("written");
    assert!(!rest(&mut stream).await.contains("HTTP"));
}

#[tokio::test]
async fn a_new_certificate_is_served_and_no_connection_drops() {
    let secured = secured(Limits {
        head: Duration::from_secs(60),
        ..limits()
    })
    .await;
    let mut before = secured.trusting(&secured.root).await.expect("connected");
    assert!(asks(&mut before).await.starts_with("HTTP/1.1 200"));
    let second = write(secured.folder.path(), "two").expect("written");
    secured.pair.look();
    let mut after = secured.trusting(&second).await.expect("connected");
    assert!(asks(&mut after).await.starts_with("HTTP/1.1 200"));
    secured.trusting(&secured.root).await.expect_err("the one before");
    assert!(asks(&mut before).await.starts_with("HTTP/1.1 200"), "it lives on");
    // A broken pair changes nothing.
    fs::write(secured.folder.path().join("tls.crt"), "nonsense").expect("written");
    secured.pair.look();
    let mut still = secured.trusting(&second).await.expect("connected");
    assert!(asks(&mut still).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_hub_that_stops_waits_for_no_handshake() {
    let secured = secured(Limits {
        handshake: Duration::from_secs(600),
        ..limits()
    })
    .await;
    let mut silent = secured.running.connect().await;
    // Accepted for certain once somebody after it is served.
    drop(secured.trusting(&secured.root).await.expect("connected"));
    secured.running.stop.cancel();
    timeout(PATIENCE, secured.running.task)
        .await
        .expect("in time")
        .expect("ended");
    assert_eq!(rest(&mut silent).await, "");
}

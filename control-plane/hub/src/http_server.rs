//! The hub's HTTP server: HTTP/1.1, over TLS where the operator gives a certificate ([`crate::certificate`]), with an end
//! to everything that a client may draw out.
//!
//! axum's own server waits for ever: for the rest of a request's head, for a reader, for a free file descriptor. Here
//! a head has a deadline, a connection that takes nothing is closed, and there are so many connections and so many of
//! one client ([`crate::doors`]), which count before a handshake begins. HTTP/2 is not spoken: a proxy in front speaks HTTP/1.1 to the hub, and each stream inside a connection
//! would need all of these limits again. What the faces do with a body has deadlines of its own.

mod secured;

use crate::{
    doors::{Doors, Place},
    proxy::Trusted,
};
use axum::{Router, extract::ConnectInfo};
use http::{HeaderValue, header::STRICT_TRANSPORT_SECURITY};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    fs, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Sleep, sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For a TLS handshake.
    pub(crate) handshake: Duration,
    /// For the head of a request, and between two requests of a connection.
    pub(crate) head: Duration,
    /// In which a reader must take [`TAKEN`] bytes, or all that waits.
    pub(crate) stalled: Duration,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Connections of one client at once; programs on this machine may have all.
    pub(crate) per_client: usize,
}

/// The least that a reader takes in [`Limits::stalled`].
const TAKEN: usize = 64 * 1024;
/// Bytes of a request's head, and of what waits to be written.
const BUFFER: usize = 64 * 1024;
/// Between two attempts to accept when the system has no more descriptors.
const PAUSE: Duration = Duration::from_secs(1);

impl Default for Limits {
    /// At most half of the file descriptors that the process may have: the database and the fleet port need some too.
    fn default() -> Self {
        let connections = (descriptors().unwrap_or(1_024) / 2).clamp(64, 4_096);
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
            connections,
            per_client: connections / 2,
        }
    }
}

/// The soft limit of open files (`proc_pid_limits(5)`).
fn descriptors() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Serves until `stop`, then lets the requests under way finish; over TLS where there is an acceptor.
pub(crate) async fn serve(
    listener: TcpListener,
    (app, tls): (Router, Option<TlsAcceptor>),
    limits: Limits,
    trusted: Trusted,
    stop: CancellationToken,
) {
    let doors = Arc::new(Doors::new(limits.connections, limits.per_client, trusted));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // Dropped where there is no place: the client sees the connection closed at once.
            Ok((stream, peer)) => {
                if let Some(place) = doors.enter(peer) {
                    let io = Watched::new(stream, limits.stalled, place);
                    let served = Served {
                        app: app.clone(),
                        place: Arc::clone(&io.place),
                        limits,
                        stop: stop.clone(),
                    };
                    match &tls {
                        None => connections.spawn(connection(io, served, None)),
                        Some(acceptor) => connections.spawn(secured::serve(acceptor.clone(), io, served)),
                    };
                }
            }
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Errors that a peer causes by going away before it is accepted.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// What a connection is served with.
struct Served {
    app: Router,
    place: Arc<Place>,
    limits: Limits,
    stop: CancellationToken,
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    served: Served,
    hsts: Option<HeaderValue>,
) {
    let Served {
        app,
        place,
        limits,
        stop,
    } = served;
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let answer = match place.client(request.headers()) {
            Ok(client) => {
                request.extensions_mut().insert(ConnectInfo(client));
                Ok(app.call(request))
            }
            Err(crowded) => Err(crowded.response(request.method(), request.uri().path())),
        };
        let hsts = hsts.clone();
        async move {
            let mut answer = match answer {
                Ok(answer) => answer.await,
                Err(refusal) => Ok(refusal),
            };
            if let (Ok(answer), Some(hsts)) = (&mut answer, hsts) {
                answer.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
            }
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER);
    let serving = http.serve_connection(TokioIo::new(io), service).with_upgrades();
    let mut serving = pin!(serving);
    let mut ending = false;
    let ended = loop {
        tokio::select! {
            ended = serving.as_mut() => break ended,
            () = stop.cancelled(), if !ending => {
                ending = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// A connection that fails when its reader takes too little. Holds its place, also once it has become a WebSocket.
struct Watched {
    stream: TcpStream,
    stalled: Duration,
    /// Runs while something waits to be written.
    patience: Option<Pin<Box<Sleep>>>,
    /// Since then.
    taken: usize,
    place: Arc<Place>,
}

impl Watched {
    fn new(stream: TcpStream, stalled: Duration, place: Place) -> Self {
        // Events are small and wanted at once; a stream that cannot be told so is only slower.
        drop(stream.set_nodelay(true));
        Self {
            stream,
            stalled,
            patience: None,
            taken: 0,
            place: Arc::new(place),
        }
    }

    /// Passes on what a write of `wanted` bytes came to.
    fn watch(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(taken)) => {
                self.taken = self.taken.saturating_add(taken);
                if taken >= wanted {
                    self.patience = None;
                }
                Poll::Ready(Ok(taken))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => loop {
                let patience = self.patience.get_or_insert_with(|| {
                    self.taken = 0;
                    Box::pin(sleep(self.stalled))
                });
                ready!(patience.as_mut().poll(cx));
                if self.taken < TAKEN {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.patience = None;
            },
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(cx, buf.len(), written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(cx, wanted, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    mod tls;

    use super::*;
    use axum::{
        body::{Body, Bytes},
        routing::get,
    };
    use futures::stream;
    use std::{
        convert::Infallible,
        net::SocketAddr,
        sync::atomic::{AtomicBool, Ordering},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Notify,
        time::{Instant, timeout},
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn limits() -> Limits {
        Limits {
            handshake: Duration::from_millis(500),
            head: Duration::from_millis(200),
            stalled: Duration::from_millis(200),
            connections: 100,
            per_client: 50,
        }
    }

    struct Running {
        address: SocketAddr,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn served(app: Router, limits: Limits) -> Running {
        served_behind(app, limits, &[]).await
    }

    async fn served_behind(app: Router, limits: Limits, proxies: &[&str]) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let trusted = Trusted(proxies.iter().map(|n| n.parse().expect("a network")).collect());
        let task = tokio::spawn(serve(listener, (app, None), limits, trusted, stop.clone()));
        Running { address, stop, task }
    }

    impl Running {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("connected")
        }
    }

    fn hello() -> Router {
        let peer = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() };
        Router::new().route("/", get(peer))
    }

    /// All that comes until the server closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut text)).await;
        // A reset is an end too.
        drop(read.expect("the server holds the connection"));
        String::from_utf8_lossy(&text).into_owned()
    }

    #[tokio::test]
    async fn s29_a_head_that_never_ends_and_a_connection_without_requests_are_closed() {
        let served = served(hello(), limits()).await;
        for begun in [
            "",
            "G",
            "GET / HTTP/1.1\r\nhost: x\r\nx-y: ",
            "PRI * HTTP/2.0\r\n\r\n",
        ] {
            let mut stream = served.connect().await;
            stream.write_all(begun.as_bytes()).await.expect("written");
            let got = rest(&mut stream).await;
            assert!(!got.contains("200"), "{begun:?}: {got}");
        }
        let mut stream = served.connect().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("written");
        let got = rest(&mut stream).await;
        assert!(
            got.starts_with("HTTP/1.1 200") && got.ends_with("127.0.0.1"),
            "{got}"
        );
    }

    /// Says that it was dropped.
    struct Dropped(Arc<AtomicBool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn s29_a_reader_that_stops_is_cut_off() {
        let gone = Arc::new(AtomicBool::new(false));
        let flag = gone.clone();
        let endless = move || async move {
            let guard = Dropped(flag);
            let chunk = move || {
                let _ = &guard;
                Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 16 * 1024]))
            };
            Body::from_stream(stream::repeat_with(chunk))
        };
        let served = served(Router::new().route("/", get(endless)), limits()).await;
        let mut stream = served.connect().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("written");
        let until = Instant::now() + PATIENCE;
        while !gone.load(Ordering::SeqCst) {
            assert!(Instant::now() < until, "the answer goes on for nobody");
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn s29_there_are_so_many_connections_and_a_place_becomes_free() {
        let few = Limits {
            head: Duration::from_secs(60),
            connections: 3,
            ..limits()
        };
        let served = served(hello(), few).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut stream = served.connect().await;
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .expect("written");
            let mut byte = [0];
            timeout(PATIENCE, stream.read_exact(&mut byte))
                .await
                .expect("in time")
                .expect("answered");
            open.push(stream);
        }
        let mut fourth = served.connect().await;
        assert_eq!(rest(&mut fourth).await, "");
        drop(open);
        let until = Instant::now() + PATIENCE;
        loop {
            let mut stream = served.connect().await;
            let asked = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            drop(stream.write_all(asked).await);
            if rest(&mut stream).await.starts_with("HTTP/1.1 200") {
                break;
            }
            assert!(Instant::now() < until, "the places stay taken");
        }
    }

    /// One request on a connection that stays open, as a proxy's do; its answer.
    async fn asks_for(stream: &mut TcpStream, client: &str) -> String {
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {client}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
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

    fn is_whole(answer: &str) -> bool {
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return false;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        body.len() >= length.and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn of_a_proxy() -> Limits {
        Limits {
            head: Duration::from_secs(60),
            connections: 20,
            per_client: 3,
            ..limits()
        }
    }

    #[tokio::test]
    async fn s29_behind_a_trusted_proxy_each_client_has_a_share_of_its_own() {
        let served = served_behind(hello(), of_a_proxy(), &["127.0.0.1"]).await;
        let mut greedy = Vec::new();
        for _ in 0..3 {
            let mut stream = served.connect().await;
            let answer = asks_for(&mut stream, "203.0.113.9").await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("203.0.113.9"),
                "{answer}"
            );
            greedy.push(stream);
        }
        // The proxy may open more connections; that client gets no more of them.
        let mut fourth = served.connect().await;
        let refused = asks_for(&mut fourth, "203.0.113.9").await;
        assert!(
            refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after"),
            "{refused}"
        );
        // The same connection serves somebody else, and then counts as theirs.
        assert!(
            asks_for(&mut fourth, "203.0.113.10")
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            asks_for(&mut greedy[0], "203.0.113.10")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let mut fifth = served.connect().await;
        assert!(
            asks_for(&mut fifth, "203.0.113.9")
                .await
                .starts_with("HTTP/1.1 200")
        );
        // What the client itself wrote into the header changes nothing: the rightmost stranger counts.
        assert!(
            asks_for(&mut served.connect().await, "198.51.100.1, 203.0.113.9")
                .await
                .starts_with("HTTP/1.1 429")
        );
    }

    #[tokio::test]
    async fn s29_all_connections_of_a_trusted_proxy_are_bounded() {
        let served = served_behind(hello(), of_a_proxy(), &["127.0.0.1"]).await;
        let mut open = Vec::new();
        for n in 0..20 {
            let mut stream = served.connect().await;
            assert!(
                asks_for(&mut stream, &format!("203.0.113.{n}"))
                    .await
                    .starts_with("HTTP/1.1 200")
            );
            open.push(stream);
        }
        assert_eq!(rest(&mut served.connect().await).await, "");
    }

    #[tokio::test]
    async fn s25_a_forged_header_of_a_stranger_moves_no_share() {
        let served = served_behind(hello(), of_a_proxy(), &["192.0.2.0/24"]).await;
        let mut open = Vec::new();
        for _ in 0..6 {
            let mut stream = served.connect().await;
            let answer = asks_for(&mut stream, "203.0.113.9").await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("127.0.0.1"),
                "{answer}"
            );
            open.push(stream);
        }
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_when_the_hub_stops() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, waits) = (begun.clone(), go_on.clone());
        let slow = move || async move {
            told.notify_one();
            waits.notified().await;
            "done"
        };
        let served = served(Router::new().route("/", get(slow)), limits()).await;
        let mut stream = served.connect().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("written");
        begun.notified().await;
        served.stop.cancel();
        go_on.notify_one();
        assert!(rest(&mut stream).await.ends_with("done"));
        timeout(PATIENCE, served.task)
            .await
            .expect("in time")
            .expect("ended");
    }
}

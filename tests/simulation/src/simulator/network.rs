//! The network in the process: byte streams in memory, with real TLS on them, so that ten thousand cluster agents need no
//! open files. A line can be cut, and can be slow.

use crate::simulated::Seeded;
use async_trait::async_trait;
use parking_lot::Mutex;
use roadstead_fleet::Listen;
use roadstead_link::Dial;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a line holds in each direction before the writer waits, as the buffers of a socket would.
const BUFFER: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: usize = 16_384;
/// How long a slow line reads, and how long it does not, at most.
const READS: Duration = Duration::from_secs(4);
const SLEEPS: Duration = Duration::from_secs(75);

type Accepted = (DuplexStream, SocketAddr);

/// Where the hub listens. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Network(Arc<Mutex<Option<mpsc::Sender<Accepted>>>>);

impl Network {
    /// The hub listens here from now on; who listened before accepts no more.
    #[must_use]
    pub(super) fn listen(&self) -> Listener {
        let (sender, connections) = mpsc::channel(BACKLOG);
        *self.0.lock() = Some(sender);
        Listener(connections)
    }

    /// A connection to whoever listens.
    ///
    /// # Errors
    /// Nobody listens, or too many wait.
    pub(super) fn connect(&self, from: IpAddr) -> io::Result<DuplexStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (ours, theirs) = duplex(BUFFER);
        let listening = self.0.lock().clone().ok_or_else(refused)?;
        let accepted = (theirs, SocketAddr::new(from, 40_000));
        listening.try_send(accepted).map_err(|_| refused())?;
        Ok(ours)
    }
}

/// The hub's end.
#[derive(Debug)]
pub(super) struct Listener(mpsc::Receiver<Accepted>);

#[async_trait]
impl Listen for Listener {
    async fn accept(&mut self) -> io::Result<(Box<dyn roadstead_fleet::Io>, Option<SocketAddr>)> {
        match self.0.recv().await {
            Some((stream, address)) => Ok((Box::new(stream), Some(address))),
            // Somebody else listens now.
            None => std::future::pending().await,
        }
    }
}

/// The address of the cluster number `n`: each has its own, as the hub limits what comes from one.
#[must_use]
pub(super) fn address(n: usize) -> IpAddr {
    let [_, a, b, c] = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, a, b, c))
}

/// One cluster agent's way to the hub.
#[derive(Debug)]
pub(super) struct Line {
    network: Network,
    from: IpAddr,
    random: Arc<Seeded>,
    slow: AtomicBool,
    cut: Mutex<CancellationToken>,
}

impl Line {
    #[must_use]
    pub(super) fn new(network: Network, n: usize, random: Arc<Seeded>) -> Arc<Self> {
        Arc::new(Self {
            network,
            from: address(n),
            random,
            slow: AtomicBool::new(false),
            cut: Mutex::default(),
        })
    }

    /// Every connection of this line breaks.
    pub(super) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }

    /// Connections that are made from now on read late; those that are there break.
    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
        self.cut();
    }

    /// A connection.
    ///
    /// # Errors
    /// See [`Network::connect`].
    pub(super) fn connect(&self) -> io::Result<Cable> {
        let stream = self.network.connect(self.from)?;
        let slow = self.slow.load(Ordering::Relaxed);
        Ok(Cable {
            stream,
            cut: Box::pin(self.cut.lock().clone().cancelled_owned()),
            slow: slow.then(|| Slow::new(self.random.clone())),
        })
    }
}

#[async_trait]
impl Dial for Line {
    async fn dial(&self, _: &str) -> io::Result<Box<dyn roadstead_link::Io>> {
        Ok(Box::new(self.connect()?))
    }
}

/// The cluster agent's end of a connection.
pub(super) struct Cable {
    stream: DuplexStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    slow: Option<Slow>,
}

/// Reads for a while, then not for a while.
struct Slow {
    random: Arc<Seeded>,
    reads: bool,
    until: Pin<Box<Sleep>>,
}

impl Slow {
    fn new(random: Arc<Seeded>) -> Self {
        let until = Box::pin(sleep(READS));
        Self {
            random,
            reads: true,
            until,
        }
    }

    fn poll_awake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.until.as_mut().poll(cx).is_ready() {
            self.reads = !self.reads;
            let most = if self.reads { READS } else { SLEEPS };
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            self.until = Box::pin(sleep(Duration::from_millis(1 + self.random.below(most))));
        }
        match self.reads {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Cable {
    fn whole(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Cable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole(cx)?;
        if let Some(slow) = &mut self.slow
            && slow.poll_awake(cx).is_pending()
        {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.whole(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Cluster agents for the load: inbox and link as they are shipped, many in one process. What a runtime would do is
//! answered at once, so that the hub hears from each what it hears from a real one.

use anyhow::Context as _;
use roadstead_contract::fleet::{DocumentStatus, JoinToken};
use roadstead_inbox::Inbox;
use roadstead_link::{Dial, Io, Link, LinkState, NoTunnel, OsRandom, Parts, Reports, Settings, SystemClock};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// That a client has something new on its disk, and since when.
pub(crate) type Persisted = mpsc::UnboundedReceiver<Instant>;

/// Connected clients. They end with their process.
pub(crate) struct Clients {
    pub(crate) persisted: Persisted,
    stop: CancellationToken,
    links: Vec<JoinHandle<()>>,
    followers: Vec<JoinHandle<()>>,
}

/// Dials from a loopback address of its own: the hub limits enrolments by their source.
#[derive(Debug)]
struct DialFrom(Ipv4Addr);

#[async_trait::async_trait]
impl Dial for DialFrom {
    async fn dial(&self, address: &str) -> io::Result<Box<dyn Io>> {
        let address: SocketAddr = address
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(self.0), 0))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl Clients {
    /// Joins the hub with each of the tokens and waits until all are connected.
    pub(crate) async fn join(hub: &str, tokens: &[String], folder: &Path) -> anyhow::Result<Self> {
        let (told, persisted) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (mut links, mut followers, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (n, token) in tokens.iter().enumerate() {
            let token: JoinToken = token.parse()?;
            let own = folder.join(format!("client-{n}"));
            std::fs::create_dir(&own)?;
            let inbox = Inbox::open(&own.join("inbox.db"))?;
            let [high, low] = u16::try_from(n)?.to_be_bytes();
            let settings = Settings {
                hub: hub.to_owned(),
                folder: own,
                join: Some(token),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                capabilities: Vec::new(),
                calls: 16,
            };
            let parts = Parts {
                dial: Arc::new(DialFrom(Ipv4Addr::new(127, 1, high, low.wrapping_add(1)))),
                clock: Arc::new(SystemClock),
                random: Arc::new(OsRandom),
                inbox: inbox.clone(),
                handler: Arc::new(NoTunnel),
            };
            let (link, reports) = Link::new(settings, parts);
            let ends = stop.clone();
            links.push(tokio::spawn(async move {
                if let Err(error) = link.run(ends).await {
                    eprintln!("a client gave up: {error}");
                }
            }));
            followers.push(tokio::spawn(follow(inbox, reports.clone(), told.clone())));
            all.push(reports);
        }
        for reports in all {
            connected(&reports).await?;
        }
        Ok(Self {
            persisted,
            stop,
            links,
            followers,
        })
    }

    /// Ends them all in good order.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for follower in self.followers {
            follower.abort();
        }
        for link in self.links {
            let abort = link.abort_handle();
            if tokio::time::timeout(Duration::from_secs(2), link).await.is_err() {
                abort.abort();
            }
        }
    }
}

async fn connected(reports: &Reports) -> anyhow::Result<()> {
    let mut state = reports.state();
    let lives = state.wait_for(|state| !matches!(state, LinkState::Away { .. }));
    tokio::time::timeout(Duration::from_secs(20), lives)
        .await
        .context("a client does not connect")??;
    Ok(())
}

/// Tells when the inbox has changed, then reports everything as running, as a runtime would.
async fn follow(inbox: Inbox, reports: Reports, told: mpsc::UnboundedSender<Instant>) {
    let mut seen = inbox.watch();
    let mut changes = seen.borrow_and_update().changes;
    while seen.changed().await.is_ok() {
        let now = Instant::now();
        let latest = seen.borrow_and_update().changes;
        if latest > changes && told.send(now).is_err() {
            return;
        }
        changes = latest;
        let Ok((at, documents)) = inbox.documents().await else {
            return;
        };
        for document in documents {
            reports.status(DocumentStatus {
                uid: document.uid,
                observed_generation: document.generation,
                phase: "Ready".to_owned(),
                conditions: Vec::new(),
            });
        }
        reports.applied(at.revision);
    }
}

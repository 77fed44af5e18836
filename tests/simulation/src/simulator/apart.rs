//! The cluster agents in a process of their own, over TCP on loopback, so that the memory of either side can be told from
//! that of the other. Each has two connections (session and tunnel), and each connection is an open file on both sides.

use super::{
    Plan, Report,
    figures::resident,
    honest::Agent,
    network::{Line, Network, address},
    world::World,
};
use crate::simulated::Seeded;
use anyhow::Context as _;
use async_trait::async_trait;
use roadstead_link::{Dial, Io};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{TcpListener, TcpSocket},
    process::Command,
};
use tokio_util::sync::CancellationToken;

/// Open files of a process besides its connections.
const OTHERS: u64 = 256;

/// As many open files as the system lets this process have.
fn raise_limit(clusters: usize) -> anyhow::Result<()> {
    let wanted = 2 * clusters as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    anyhow::ensure!(
        hard >= wanted,
        "{clusters} cluster agents apart need {wanted} open files in each process, and the hard limit is {hard}: \
         raise it (ulimit -Hn), or take fewer"
    );
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")
}

/// Dials from a loopback address of its own: the hub limits what comes from one.
#[derive(Debug)]
struct DialFrom(IpAddr);

#[async_trait]
impl Dial for DialFrom {
    async fn dial(&self, hub: &str) -> io::Result<Box<dyn Io>> {
        let hub: SocketAddr = hub.parse().map_err(io::Error::other)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.0, 0))?;
        let stream = socket.connect(hub).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// The hub's process: connects all, and says what memory each side took.
pub(super) async fn run(plan: Plan, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Report> {
    raise_limit(plan.clusters as usize)?;
    let mut world = World::prepared(plan, tell).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let hub = listener.local_addr()?.to_string();
    let (fleet, before) = (world.fleet(), resident(std::process::id())?);
    tokio::spawn(async move { fleet.serve(listener, CancellationToken::new()).await });
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--agents-of")
        .arg(&hub)
        .arg("--folder")
        .arg(world.folder())
        .args(["--clusters", &world.plan.clusters.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let said = child.stdout.take().context("a pipe")?;
    let said = BufReader::new(said).lines().next_line().await?;
    let inboxes: u64 = said.context("the cluster agents ended")?.parse()?;
    let count = world.plan.clusters as usize;
    let took = world.in_sync("apart", count).await?;
    let child = child.id().context("the cluster agents run")?;
    let sides = [
        ("hub", before, resident(std::process::id())?),
        (
            "cluster agents with their inboxes' content",
            inboxes,
            resident(child)?,
        ),
    ];
    world.row(
        "processes apart, over TCP",
        format!("{count} in sync after {:.1} s", took.as_secs_f64()),
    );
    for (side, before, after) in sides {
        let each = after.saturating_sub(before) / count as u64;
        world.row(
            &format!("… resident memory of a session, {side}"),
            format!("{each} KiB each ({} MiB in all)", after / 1024),
        );
    }
    world.verdict().await
}

/// The cluster agents' process: says its memory before it connects, and runs until its input ends.
///
/// # Errors
/// An inbox cannot be made.
#[expect(clippy::print_stdout, reason = "the other process reads it")]
pub async fn agents(hub: &str, folder: &Path, count: usize) -> anyhow::Result<()> {
    crate::install_crypto();
    raise_limit(count)?;
    let random = Arc::new(Seeded::new(1));
    let mut agents = Vec::with_capacity(count);
    for n in 0..count {
        let line = Line::new(Network::default(), n, random.clone());
        let folder: PathBuf = folder.join(n.to_string());
        agents.push(Agent::new(n, folder, line, Arc::default(), random.clone())?);
    }
    println!("{}", resident(std::process::id())?);
    for (n, agent) in agents.iter_mut().enumerate() {
        let IpAddr::V4(own) = address(n) else { continue };
        let [_, a, b, c] = own.octets();
        // 127.0.0.0/8, without the network's own address.
        let own = Ipv4Addr::new(127, a.wrapping_add(1), b, c.wrapping_add(1));
        agent.start_over(Arc::new(DialFrom(own.into())), hub);
    }
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await?;
    Ok(())
}

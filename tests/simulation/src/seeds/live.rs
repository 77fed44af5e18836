//! What lives on the hosts: hub replicas and cluster agents, as shipped.

use super::{
    keys::Keys,
    store::Moody,
    world::{CLUSTERS, DIRECT, HEARTBEAT, HUBS, Log, WIPED, see},
};
use crate::{
    run,
    simulated::{PORT, Seeded, SimulatedClock, SimulatedListener},
};
use async_trait::async_trait;
use roadstead_contract::fleet::{CommandCode, DocumentStatus, HubKeys, JoinToken, RESTART_ENGINE};
use roadstead_domain::Clock as _;
use roadstead_fleet::{Authority, Fleet, KeyStore as _, Settings};
use roadstead_inbox::{Command, CommandResult, Inbox, InboxError};
use roadstead_link::{Dial, Io, Link, NoTunnel, Reports};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use turmoil::net::TcpStream;

/// What a cluster agent lives on.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) n: usize,
    pub(super) folder: PathBuf,
    pub(super) token: JoinToken,
    pub(super) random: Arc<Seeded>,
    pub(super) log: Arc<Mutex<Log>>,
    /// Faults go on: runs are made, relays are used.
    pub(super) faults: Arc<AtomicBool>,
}

/// Dials a hub, or the relay before them once there is an identity that it can use.
#[derive(Debug)]
struct Dialler {
    relay: Option<String>,
    identity: PathBuf,
    faults: Arc<AtomicBool>,
    random: Arc<Seeded>,
}

#[async_trait]
impl Dial for Dialler {
    async fn dial(&self, _: &str) -> io::Result<Box<dyn Io>> {
        let chance = self.random.below(3);
        let relayed = chance == 0 && self.faults.load(Ordering::Relaxed) && self.identity.exists();
        let host = match &self.relay {
            Some(relay) if relayed => relay,
            _ => HUBS[self.random.below(2) as usize],
        };
        Ok(Box::new(TcpStream::connect((host, PORT)).await?))
    }
}

/// The name of a cluster's relay.
pub(super) fn relay(n: usize) -> String {
    format!("relay{n}")
}

/// A hub replica.
pub(super) async fn serve(keys: Keys, random: Arc<Seeded>, store: Moody) -> turmoil::Result {
    let clock = Arc::new(SimulatedClock);
    let authority = Arc::new(Authority::open(&keys, "simulated", clock.clone(), random)?);
    let mut settings = Settings::new(vec!["hub".to_owned()], "0.1.0");
    settings.heartbeat = HEARTBEAT;
    settings.tunnel_streams = 1;
    let fleet = Fleet::new(roadstead_fleet::Parts {
        store: Arc::new(store),
        authority: authority.clone(),
        clock,
        keys: HubKeys {
            jwks: "{\"keys\":[]}".to_owned(),
            issuer: "hub".to_owned(),
        },
        settings,
    });
    let listener = SimulatedListener::bind().await?;
    tokio::select! {
        biased;
        served = fleet.serve(listener, CancellationToken::new()) => Ok(served?),
        followed = follow(&keys, &authority) => followed,
    }
}

/// As a hub follows its folder of keys.
async fn follow(keys: &Keys, authority: &Authority) -> turmoil::Result {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Some(stored) = keys.load()? {
            authority.adopt(&stored)?;
        }
    }
}

/// A cluster agent: link and inbox as shipped, a runtime that applies at once, an engine that finishes runs.
pub(super) async fn live(life: Life) -> turmoil::Result {
    let inbox = Inbox::open_inline(&life.folder.join("inbox.db"))?;
    let settings = roadstead_link::Settings {
        hub: format!("hub:{PORT}"),
        folder: life.folder.clone(),
        join: Some(life.token.clone()),
        version: "0.1.0".to_owned(),
        capabilities: vec![RESTART_ENGINE.to_owned()],
        calls: 8,
    };
    let dialler = Dialler {
        relay: (life.n != DIRECT).then(|| relay(life.n)),
        identity: life.folder.join("identity.json"),
        faults: life.faults.clone(),
        random: life.random.clone(),
    };
    let parts = roadstead_link::Parts {
        dial: Arc::new(dialler),
        clock: Arc::new(SimulatedClock),
        random: life.random.clone(),
        inbox: inbox.clone(),
        handler: Arc::new(NoTunnel),
    };
    let (link, reports) = Link::new(settings, parts);
    let ended: turmoil::Result = tokio::select! {
        biased;
        ended = link.run(CancellationToken::new()) => Err(format!("{}: the link ended: {ended:?}", CLUSTERS[life.n]).into()),
        ended = apply(&life, &inbox, &reports) => ended,
        ended = work(&life, &inbox) => ended,
        ended = obey(&life, &inbox) => ended,
    };
    ended
}

/// Applies what comes, and says so.
async fn apply(life: &Life, inbox: &Inbox, reports: &Reports) -> turmoil::Result {
    let mut watch = inbox.watch();
    loop {
        let (seen, documents) = inbox.documents().await?;
        let position = inbox.position().await?;
        see(life.n, &life.log, &documents, (position.cursor, position.root.0));
        for document in &documents {
            reports.status(DocumentStatus {
                uid: document.uid.clone(),
                observed_generation: document.generation,
                phase: "Ready".to_owned(),
                conditions: Vec::new(),
            });
        }
        reports.applied(seen.revision);
        watch.changed().await?;
    }
}

/// Finishes a run now and then.
async fn work(life: &Life, inbox: &Inbox) -> turmoil::Result {
    loop {
        tokio::time::sleep(Duration::from_millis(200 + life.random.below(1_000))).await;
        if life.n == WIPED || !life.faults.load(Ordering::Relaxed) {
            continue;
        }
        let sequence = {
            let mut log = life.log.lock().expect("no panic holds it");
            log.clusters[life.n].next_run += 1;
            log.clusters[life.n].next_run
        };
        let id = format!("run-{}-{sequence}", life.n);
        inbox.append_runs(vec![run(&id, "agent", sequence)]).await?;
        log_entrusted(life, id);
    }
}

/// Does what is commanded, as it comes; being killed in the middle of it is what the journal is for.
async fn obey(life: &Life, inbox: &Inbox) -> turmoil::Result {
    let mut taken = inbox.watch_commands();
    let mut running = JoinSet::new();
    loop {
        taken.mark_unchanged();
        for command in inbox.begin_commands().await? {
            begun(life, &command);
            running.spawn(end(life.clone(), inbox.clone(), command.id));
        }
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => ended??,
            changed = taken.changed() => changed?,
        }
    }
}

/// The rest of a command, which takes a while.
async fn end(life: Life, inbox: Inbox, id: String) -> Result<(), InboxError> {
    tokio::time::sleep(Duration::from_millis(life.random.below(2_000))).await;
    let code = match life.random.chance(20) {
        true => CommandCode::Failed,
        false => CommandCode::Succeeded,
    };
    let result = CommandResult {
        id: id.clone(),
        code,
        detail: String::new(),
    };
    inbox.conclude_command(result).await?;
    let mut log = life.log.lock().expect("no panic holds it");
    log.clusters[life.n].concluded.insert(id, code);
    Ok(())
}

/// The effect of a command: it is seen at most once, and not after its time.
fn begun(life: &Life, command: &Command) {
    let Command { id, expires_ms, .. } = command;
    let mut log = life.log.lock().expect("no panic holds it");
    let first = log.clusters[life.n].begun.insert(id.clone());
    assert!(first, "{}: the command {id} runs twice", CLUSTERS[life.n]);
    // Everybody has the same clock here; what the hub says of it may be held up for a while on its way.
    assert!(
        SimulatedClock.now_ms() < expires_ms + 10_000,
        "{}: the command {id} runs after its time",
        CLUSTERS[life.n]
    );
}

fn log_entrusted(life: &Life, id: String) {
    life.log.lock().expect("no panic holds it").clusters[life.n]
        .entrusted
        .push(id);
}

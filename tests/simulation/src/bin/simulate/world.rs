//! A fleet under faults: two hub replicas over one store, three clusters.

use crate::store::Moody;
use roadstead_contract::fleet::{DocumentStatus, HubKeys, JoinToken};
use roadstead_domain::ClusterId;
use roadstead_fleet::{Authority, Fleet, KeyStore, Settings, StoredAuthority, memory::Memory, store::What};
use roadstead_inbox::Inbox;
use roadstead_link::{Link, NoTunnel};
use roadstead_simulation::{
    cluster, prompt, run,
    simulated::{Seeded, SimulatedClock, SimulatedDial, SimulatedListener},
    tenant,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

const HUBS: [&str; 2] = ["hub0", "hub1"];
const CLUSTERS: [&str; 3] = ["cluster0", "cluster1", "cluster2"];
/// This one's inbox is wiped at times, so no run record is entrusted to it.
const WIPED: usize = 2;
/// Documents that come and go in each cluster, besides the agent that runs are of.
const DOCUMENTS: u64 = 12;
/// Time for joining, before any fault.
const QUIET: Duration = Duration::from_secs(2);
const FAULTS: Duration = Duration::from_secs(20);
/// After the last fault everything agrees within this time: the longest wait before dialling is a minute, and a
/// session that hangs is found by four missed heartbeats.
const BOUND: Duration = Duration::from_secs(150);
const TICK: Duration = Duration::from_millis(10);
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What came of a seed; equal for equal seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) agreed_after: Duration,
    pub(crate) revisions: Vec<u64>,
    pub(crate) epochs: Vec<u64>,
    pub(crate) runs: usize,
    pub(crate) snapshots_held: usize,
}

/// What a cluster was last seen to hold.
#[derive(Debug, Default)]
struct Sight {
    generations: BTreeMap<String, u64>,
    /// The highest ever seen, deleted ones too.
    highest: BTreeMap<String, u64>,
    root: Option<[u8; 32]>,
    cursor: u64,
    /// Run records that the outbox has taken.
    entrusted: Vec<String>,
    next_run: u64,
}

#[derive(Debug, Default)]
struct Log {
    clusters: Vec<Sight>,
    /// Documents that were ever taken away from a cluster.
    removed: BTreeSet<(usize, String)>,
}

pub(crate) struct World {
    seed: u64,
    telling: bool,
    random: Arc<Seeded>,
    model: Memory,
    log: Arc<Mutex<Log>>,
    folder: TempDir,
    away_until: Option<Duration>,
    down: BTreeMap<&'static str, Duration>,
    cut: BTreeMap<(&'static str, &'static str), Duration>,
    stalled: BTreeMap<(&'static str, &'static str), Duration>,
    held: usize,
}

/// The authority of both replicas, kept in memory.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<Option<StoredAuthority>>>);

impl KeyStore for Keys {
    fn load(&self) -> io::Result<Option<StoredAuthority>> {
        Ok(self.0.lock().expect("no panic holds it").clone())
    }
    fn save(&self, authority: &StoredAuthority) -> io::Result<()> {
        *self.0.lock().expect("no panic holds it") = Some(authority.clone());
        Ok(())
    }
}

impl World {
    pub(crate) fn new(seed: u64, telling: bool) -> Self {
        // Memory where there is some: a simulation commits thousands of times.
        let shared = Path::new("/dev/shm");
        let folder = match shared.is_dir() {
            true => tempfile::tempdir_in(shared),
            false => tempfile::tempdir(),
        };
        let log = Log {
            clusters: CLUSTERS.iter().map(|_| Sight::default()).collect(),
            ..Log::default()
        };
        Self {
            seed,
            telling,
            random: Arc::new(Seeded::new(seed)),
            model: Memory::new(Arc::new(SimulatedClock)),
            log: Arc::new(Mutex::new(log)),
            folder: folder.expect("a folder"),
            away_until: None,
            down: BTreeMap::new(),
            cut: BTreeMap::new(),
            stalled: BTreeMap::new(),
            held: 0,
        }
    }

    pub(crate) fn run(mut self) -> Report {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(self.seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(60))
            .tcp_capacity(1_024)
            .simulation_duration(QUIET + FAULTS + BOUND + Duration::from_secs(60));
        let mut sim = builder.build();
        self.people(&mut sim);
        let mut next = QUIET;
        while sim.elapsed() < QUIET + FAULTS {
            sim.step().expect("the simulation goes on");
            self.mend(&mut sim);
            if sim.elapsed() >= next {
                next += Duration::from_millis(20 + self.random.below(300));
                self.act(&mut sim);
            }
        }
        self.mend_all(&mut sim);
        let quiet = sim.elapsed();
        let mut checked = quiet;
        while !self.agreed() {
            assert!(
                sim.elapsed() < quiet + BOUND,
                "no agreement {BOUND:?} after the last fault: {}",
                self.disagreement()
            );
            sim.step().expect("the simulation goes on");
            if sim.elapsed() > checked + Duration::from_secs(2) {
                checked = sim.elapsed();
                self.allow_deletes(&mut sim);
            }
        }
        self.report(sim.elapsed() - quiet)
    }

    /// Hosts: hubs and clusters.
    fn people(&self, sim: &mut Sim<'_>) {
        let keys = Keys::default();
        let random: Arc<Seeded> = Arc::new(Seeded::new(self.seed ^ 0xA11C_E5ED));
        let clock = Arc::new(SimulatedClock);
        let authority =
            Authority::open(&keys, "simulated", clock.clone(), random.clone()).expect("an authority");
        let pin = authority.pin().expect("a pin");
        let store = Moody::new(self.model.clone(), Arc::new(Seeded::new(self.seed ^ 0xD1CE)));
        for hub in HUBS {
            let (keys, random, store) = (keys.clone(), random.clone(), store.clone());
            sim.host(hub, move || serve(keys.clone(), random.clone(), store.clone()));
        }
        for (n, name) in CLUSTERS.into_iter().enumerate() {
            self.model.add_cluster(tenant(1), id(n));
            let secret = format!("secret{n}");
            self.model.add_token(&secret, tenant(1), id(n), i64::MAX);
            self.model
                .place(id(n), &[("agent".to_owned(), Some(prompt("agent", "x")))]);
            let token = JoinToken::new(secret, pin).expect("a token");
            let folder = self.cluster_folder(n);
            std::fs::create_dir(&folder).expect("a folder");
            let random = Arc::new(Seeded::new(self.seed.wrapping_mul(31).wrapping_add(n as u64)));
            let log = self.log.clone();
            sim.host(name, move || {
                live(n, folder.clone(), token.clone(), random.clone(), log.clone())
            });
        }
    }

    fn cluster_folder(&self, n: usize) -> PathBuf {
        self.folder.path().join(CLUSTERS[n])
    }

    #[expect(clippy::print_stdout, reason = "a replay is to be read")]
    fn tell(&self, sim: &Sim<'_>, what: &str) {
        if self.telling {
            println!("{:?} {what}", sim.elapsed());
        }
    }

    /// One act of chance.
    fn act(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        let n = self.random.below(CLUSTERS.len() as u64) as usize;
        let (name, hub) = (CLUSTERS[n], HUBS[self.random.below(2) as usize]);
        let later = |random: &Seeded, most: u64| now + Duration::from_millis(100 + random.below(most));
        match self.random.below(100) {
            0..55 => self.change(n),
            55..60 => {
                let revision = self.model.cluster(id(n)).expect("the cluster").revision;
                self.model.raise_floor(id(n), self.random.below(revision + 1));
            }
            60..70 if !self.cut.contains_key(&(hub, name)) => {
                self.tell(sim, &format!("cut {hub} {name}"));
                match self.random.below(3) {
                    0 => sim.partition_oneway(hub, name),
                    1 => sim.partition_oneway(name, hub),
                    _ => sim.partition(hub, name),
                }
                self.cut.insert((hub, name), later(&self.random, 9_000));
            }
            70..80 if !self.cut.contains_key(&(hub, name)) && !self.stalled.contains_key(&(hub, name)) => {
                self.tell(sim, &format!("stall {hub} {name}"));
                sim.hold(hub, name);
                self.stalled.insert((hub, name), later(&self.random, 4_000));
            }
            80..88 if !self.down.contains_key(name) => {
                self.tell(sim, &format!("kill {name}"));
                sim.crash(name);
                self.down.insert(name, later(&self.random, 3_000));
                if n == WIPED && self.random.chance(40) {
                    self.tell(sim, &format!("wipe {name}"));
                    for file in ["inbox.db", "inbox.db-wal"] {
                        // Not there when the cluster has not begun yet.
                        let _ = std::fs::remove_file(self.cluster_folder(n).join(file));
                    }
                    self.log.lock().expect("no panic holds it").clusters[n]
                        .generations
                        .clear();
                }
            }
            88..95 if !self.down.contains_key(hub) => {
                self.tell(sim, &format!("kill {hub}"));
                sim.crash(hub);
                self.down.insert(hub, later(&self.random, 4_000));
            }
            95..98 => {
                self.model.set_away(true);
                self.away_until = Some(later(&self.random, 2_000));
            }
            _ => {
                let most = 5 + self.random.below(400);
                sim.set_link_max_message_latency(hub, name, Duration::from_millis(most));
            }
        }
    }

    /// Documents change, go, and come back.
    fn change(&self, n: usize) {
        let mut changes = Vec::new();
        for _ in 0..=self.random.below(3) {
            let uid = format!("d{}", self.random.below(DOCUMENTS));
            if changes.iter().any(|(other, _)| *other == uid) {
                continue;
            }
            let document = match self.random.chance(25) {
                true => None,
                false => {
                    // Now and then one that goes by Bulk.
                    let length = if self.random.chance(5) {
                        90_000
                    } else {
                        self.random.below(2_000) as usize
                    };
                    Some(prompt(&uid, &"x".repeat(length)))
                }
            };
            if document.is_none() {
                self.log
                    .lock()
                    .expect("no panic holds it")
                    .removed
                    .insert((n, uid.clone()));
            }
            changes.push((uid, document));
        }
        self.model.place(id(n), &changes);
    }

    /// What has lasted long enough ends.
    fn mend(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        if self.away_until.is_some_and(|until| now >= until) {
            self.model.set_away(false);
            self.away_until = None;
        }
        let due = |until: &Duration| now >= *until;
        for (host, _) in self
            .down
            .extract_if(.., |_, until| due(until))
            .collect::<Vec<_>>()
        {
            self.tell(sim, &format!("start {host}"));
            sim.bounce(host);
        }
        for ((hub, name), _) in self.cut.extract_if(.., |_, until| due(until)).collect::<Vec<_>>() {
            self.tell(sim, &format!("mend {hub} {name}"));
            sim.repair(hub, name);
        }
        for ((hub, name), _) in self
            .stalled
            .extract_if(.., |_, until| due(until))
            .collect::<Vec<_>>()
        {
            sim.release(hub, name);
        }
    }

    fn mend_all(&mut self, sim: &mut Sim<'_>) {
        let ended = Duration::ZERO;
        self.away_until = self.away_until.map(|_| ended);
        self.down
            .values_mut()
            .chain(self.cut.values_mut())
            .chain(self.stalled.values_mut())
            .for_each(|u| *u = ended);
        self.mend(sim);
        self.tell(sim, "no more faults");
    }

    /// A person looks at deletions that wait, and allows them; the cluster agent is started again to fetch them.
    fn allow_deletes(&mut self, sim: &mut Sim<'_>) {
        for (n, name) in CLUSTERS.into_iter().enumerate() {
            let cluster = self.model.cluster(id(n)).expect("the cluster");
            if cluster.held.is_some() && cluster.approved_deletes == 0 {
                self.tell(sim, &format!("allow the deletions of {name}"));
                self.held += 1;
                self.model.approve_deletes(id(n), 1_000);
                sim.crash(name);
                sim.bounce(name);
            }
        }
    }

    fn agreed(&self) -> bool {
        let log = self.log.lock().expect("no panic holds it");
        let runs: BTreeSet<String> = self
            .model
            .runs()
            .into_iter()
            .map(|(_, record)| record.id)
            .collect();
        CLUSTERS.iter().enumerate().all(|(n, _)| {
            let cluster = self.model.cluster(id(n)).expect("the cluster");
            let sight = &log.clusters[n];
            sight.root == Some(cluster.desired().root().0)
                && cluster.persisted == cluster.revision
                && cluster.applied == cluster.revision
                && sight.entrusted.iter().all(|id| runs.contains(id))
        })
    }

    fn disagreement(&self) -> String {
        let log = self.log.lock().expect("no panic holds it");
        let runs = self.model.runs().len();
        let clusters = CLUSTERS.iter().enumerate().map(|(n, name)| {
            let cluster = self.model.cluster(id(n)).expect("the cluster");
            let sight = &log.clusters[n];
            let same = sight.root == Some(cluster.desired().root().0);
            format!(
                "{name}: revision {}, cursor {}, persisted {}, applied {}, same root {same}, held {:?}, entrusted {}; ",
                cluster.revision, sight.cursor, cluster.persisted, cluster.applied, cluster.held, sight.entrusted.len()
            )
        });
        format!("{} runs in the hub {runs}", clusters.collect::<String>())
    }

    fn report(&self, agreed_after: Duration) -> Report {
        let records = self.model.runs();
        let mut last: BTreeMap<ClusterId, u64> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (cluster, record) in &records {
            assert!(
                ids.insert(record.id.clone()),
                "run {} is in the hub twice",
                record.id
            );
            let before = last.insert(*cluster, record.sequence);
            assert!(
                before.is_none_or(|before| before < record.sequence),
                "runs arrive in order"
            );
        }
        let forged = self
            .model
            .events()
            .into_iter()
            .filter(|event| matches!(event.what, What::Forged | What::Abuse));
        assert_eq!(
            forged.collect::<Vec<_>>(),
            [],
            "honest cluster agents are not accused"
        );
        let clusters = (0..CLUSTERS.len()).map(|n| self.model.cluster(id(n)).expect("the cluster"));
        let clusters: Vec<_> = clusters.collect();
        Report {
            agreed_after,
            revisions: clusters.iter().map(|cluster| cluster.revision).collect(),
            epochs: clusters.iter().map(|cluster| cluster.epoch).collect(),
            runs: records.len(),
            snapshots_held: self.held,
        }
    }
}

fn id(n: usize) -> ClusterId {
    cluster(n as u64 + 1)
}

/// A hub replica.
async fn serve(keys: Keys, random: Arc<Seeded>, store: Moody) -> turmoil::Result {
    let clock = Arc::new(SimulatedClock);
    let authority = Authority::open(&keys, "simulated", clock.clone(), random)?;
    let mut settings = Settings::new(vec!["hub".to_owned()], "0.1.0");
    settings.heartbeat = HEARTBEAT;
    settings.tunnel_streams = 1;
    let fleet = Fleet::new(roadstead_fleet::Parts {
        store: Arc::new(store),
        authority: Arc::new(authority),
        clock,
        keys: HubKeys {
            jwks: "{\"keys\":[]}".to_owned(),
            issuer: "hub".to_owned(),
        },
        settings,
    });
    fleet
        .serve(SimulatedListener::bind().await?, CancellationToken::new())
        .await?;
    Ok(())
}

/// A cluster agent: link and inbox as shipped, a runtime that applies at once, an engine that finishes runs.
async fn live(
    n: usize,
    folder: PathBuf,
    token: JoinToken,
    random: Arc<Seeded>,
    log: Arc<Mutex<Log>>,
) -> turmoil::Result {
    let inbox = Inbox::open_inline(&folder.join("inbox.db"))?;
    let settings = roadstead_link::Settings {
        hub: "hub:8443".to_owned(),
        folder,
        join: Some(token),
        version: "0.1.0".to_owned(),
        calls: 8,
    };
    let hubs = HUBS.map(str::to_owned).to_vec();
    let parts = roadstead_link::Parts {
        dial: Arc::new(SimulatedDial {
            hubs,
            random: random.clone(),
        }),
        clock: Arc::new(SimulatedClock),
        random: random.clone(),
        inbox: inbox.clone(),
        handler: Arc::new(NoTunnel),
    };
    let (link, reports) = Link::new(settings, parts);
    let watching = async {
        let mut watch = inbox.watch();
        loop {
            let (seen, documents) = inbox.documents().await?;
            let position = inbox.position().await?;
            see(n, &log, &documents, (position.cursor, position.root.0));
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
    };
    let working = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200 + random.below(1_000))).await;
            if n == WIPED || turmoil::sim_elapsed().unwrap_or_default() > QUIET + FAULTS {
                continue;
            }
            let sequence = {
                let mut log = log.lock().expect("no panic holds it");
                log.clusters[n].next_run += 1;
                log.clusters[n].next_run
            };
            let id = format!("run-{n}-{sequence}");
            inbox.append_runs(vec![run(&id, "agent", sequence)]).await?;
            log.lock().expect("no panic holds it").clusters[n]
                .entrusted
                .push(id);
        }
    };
    let ended: turmoil::Result = tokio::select! {
        biased;
        ended = link.run(CancellationToken::new()) => Err(format!("{}: the link ended: {ended:?}", CLUSTERS[n]).into()),
        ended = watching => ended,
        ended = working => ended,
    };
    ended
}

/// Compares what a cluster holds with what it held.
fn see(n: usize, log: &Mutex<Log>, documents: &[roadstead_inbox::Document], (cursor, root): (u64, [u8; 32])) {
    let mut log = log.lock().expect("no panic holds it");
    let now: BTreeMap<String, u64> = documents
        .iter()
        .map(|document| (document.uid.clone(), document.generation))
        .collect();
    let before = std::mem::take(&mut log.clusters[n].generations);
    for uid in before.keys().filter(|uid| !now.contains_key(*uid)) {
        assert!(
            log.removed.contains(&(n, uid.clone())),
            "{}: {uid} is gone without a tombstone",
            CLUSTERS[n]
        );
    }
    let sight = &mut log.clusters[n];
    for (uid, generation) in &now {
        let highest = sight.highest.entry(uid.clone()).or_insert(0);
        assert!(
            *highest <= *generation,
            "{}: {uid} went from {highest} back to {generation}",
            CLUSTERS[n]
        );
        *highest = *generation;
    }
    sight.generations = now;
    sight.cursor = cursor;
    sight.root = Some(root);
}

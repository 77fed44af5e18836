//! A fleet under faults: two hub replicas over one store, three clusters.

use super::{
    keys::Keys,
    live::{Life, live, relay, serve},
    relay::Relay,
    store::Moody,
};
use crate::{
    cluster, prompt,
    simulated::{Seeded, SimulatedClock, at},
    tenant,
};
use roadstead_contract::fleet::{CommandCode, JoinToken};
use roadstead_domain::ClusterId;
use roadstead_fleet::{
    Authority,
    memory::{Document, Memory},
    store::What,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use turmoil::Sim;

pub(super) const HUBS: [&str; 2] = ["hub0", "hub1"];
pub(super) const CLUSTERS: [&str; 3] = ["cluster0", "cluster1", "cluster2"];
/// This one's inbox is wiped, or set back to an older copy, at times: no run record is entrusted to it.
pub(super) const WIPED: usize = 2;
/// No relay meddles with this one's frames.
pub(super) const DIRECT: usize = 0;
/// Documents that come and go in each cluster, besides the agent that runs are of.
const DOCUMENTS: u64 = 12;
/// Time for joining, before any fault.
const QUIET: Duration = Duration::from_secs(2);
const FAULTS: Duration = Duration::from_secs(20);
/// After the last fault everything agrees within this time: the longest wait before dialling is a minute, and a
/// session that hangs is found by four missed heartbeats.
const BOUND: Duration = Duration::from_secs(150);
/// After the last fault every cluster has followed a rotation of the root: one that was told to renew and could not is told
/// again after one to two minutes, and the steps of a rotation wait for each other.
const FOLLOWED: Duration = Duration::from_secs(400);
const TICK: Duration = Duration::from_millis(10);
/// Between two steps of a rotation.
const ROTATE: Duration = Duration::from_secs(3);
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);

/// What came of a seed; equal for equal seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub agreed_after: Duration,
    pub revisions: Vec<u64>,
    pub epochs: Vec<u64>,
    pub runs: usize,
    pub snapshots_held: usize,
    /// How the commands ended.
    pub commands: BTreeMap<String, usize>,
}

/// What a cluster was last seen to hold.
#[derive(Debug, Default)]
pub(super) struct Sight {
    generations: BTreeMap<String, u64>,
    /// The highest ever seen, deleted ones too.
    highest: BTreeMap<String, u64>,
    root: Option<[u8; 32]>,
    cursor: u64,
    /// Run records that the outbox has taken.
    pub(super) entrusted: Vec<String>,
    pub(super) next_run: u64,
    /// Commands whose effect began.
    pub(super) begun: BTreeSet<String>,
    /// What came of them, as the journal has it.
    pub(super) concluded: BTreeMap<String, CommandCode>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) clusters: Vec<Sight>,
    /// Documents that were taken away from a cluster, with the last generation that was: what is gone beyond that is
    /// gone without a reason.
    removed: BTreeMap<(usize, String), u64>,
    /// How many commands were made.
    commands: u64,
}

#[derive(Debug)]
pub struct World {
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
    faults: Arc<AtomicBool>,
    keys: Keys,
    /// Where new roots come from.
    rotations: Seeded,
}

impl World {
    pub fn new(seed: u64, telling: bool) -> Self {
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
            faults: Arc::new(AtomicBool::new(true)),
            keys: Keys::default(),
            rotations: Seeded::new(seed ^ 0x0007),
        }
    }

    pub fn run(mut self) -> Report {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(self.seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(60))
            .tcp_capacity(1_024)
            .simulation_duration(QUIET + FAULTS + FOLLOWED + Duration::from_secs(60));
        let mut sim = builder.build();
        self.people(&mut sim);
        let (mut next, mut rotate_at) = (QUIET, QUIET + ROTATE);
        while sim.elapsed() < QUIET + FAULTS {
            sim.step().expect("the simulation goes on");
            self.mend(&mut sim);
            if sim.elapsed() >= next {
                next += Duration::from_millis(20 + self.random.below(300));
                self.act(&mut sim);
            }
            if sim.elapsed() >= rotate_at {
                rotate_at += ROTATE;
                self.rotate(&sim);
            }
        }
        self.mend_all(&mut sim);
        let quiet = sim.elapsed();
        let (mut checked, mut settled) = (quiet, false);
        while !(self.agreed() && self.rotated()) {
            settled |= self.agreed();
            let bound = if settled { FOLLOWED } else { BOUND };
            assert!(
                sim.elapsed() < quiet + bound,
                "no agreement {bound:?} after the last fault: {}",
                self.disagreement()
            );
            sim.step().expect("the simulation goes on");
            if sim.elapsed() > checked + Duration::from_secs(2) {
                checked = sim.elapsed();
                self.allow_deletes(&mut sim);
                self.rotate(&sim);
            }
        }
        self.report(sim.elapsed() - quiet)
    }

    /// Hosts: hubs and clusters.
    fn people(&self, sim: &mut Sim<'_>) {
        let keys = self.keys.clone();
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
            fs::create_dir(&folder).expect("a folder");
            let chance = |salt: u64| {
                Arc::new(Seeded::new(
                    self.seed.wrapping_mul(31).wrapping_add(n as u64) ^ salt,
                ))
            };
            let between = Relay {
                folder: folder.clone(),
                keys: keys.clone(),
                hubs: HUBS.map(str::to_owned).to_vec(),
                random: chance(0xBE7),
            };
            sim.host(relay(n), move || between.clone().serve());
            let life = Life {
                n,
                folder,
                token,
                random: chance(0),
                log: self.log.clone(),
                faults: self.faults.clone(),
            };
            sim.host(name, move || live(life.clone()));
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
            0..12 if n != WIPED => self.command(n, sim),
            0..55 => self.change(n),
            55..60 => {
                // Only of what the cluster has on disk, as the hub does.
                let persisted = self.model.cluster(id(n)).expect("the cluster").persisted;
                self.model.raise_floor(id(n), self.random.below(persisted + 1));
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
                if n == WIPED {
                    self.lose(sim);
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

    /// In every second seed the operator rotates the root, never further than everybody can follow.
    fn rotate(&self, sim: &Sim<'_>) {
        if self.seed.is_multiple_of(2)
            && let Some(step) = self.keys.rotate(&self.rotations, &self.model.trust())
        {
            self.tell(sim, &format!("roots: {step}"));
        }
    }

    /// The rotation is through, and everybody has followed.
    fn rotated(&self) -> bool {
        let signer = self.keys.signer();
        let followed = |n| self.model.cluster(id(n)).expect("the cluster").trust == signer;
        !self.seed.is_multiple_of(2) || (signer.0 == 3 && (0..CLUSTERS.len()).all(followed))
    }

    /// The inbox of a cluster agent that is down is wiped, set back to an older copy, or copied for later.
    fn lose(&self, sim: &Sim<'_>) {
        let (folder, copy) = (self.cluster_folder(WIPED), self.folder.path().join("copy"));
        let files = ["inbox.db", "inbox.db-wal"];
        let act = self.random.below(100);
        // A file is not there when the cluster has not begun yet, or when its log was taken in.
        match act {
            0..30 => {
                self.tell(sim, &format!("wipe {}", CLUSTERS[WIPED]));
                for file in files {
                    let _ = fs::remove_file(folder.join(file));
                }
            }
            30..60 if copy.exists() => {
                self.tell(sim, &format!("set back {}", CLUSTERS[WIPED]));
                // What it forgets, the hub has forgotten too: only a snapshot can mend that.
                let persisted = self.model.cluster(id(WIPED)).expect("the cluster").persisted;
                self.model.raise_floor(id(WIPED), persisted);
                for file in files {
                    let _ = fs::remove_file(folder.join(file));
                    let _ = fs::copy(copy.join(file), folder.join(file));
                }
            }
            _ => {
                let _ = fs::remove_dir_all(&copy);
                fs::create_dir(&copy).expect("a folder");
                for file in files {
                    let _ = fs::copy(folder.join(file), copy.join(file));
                }
                return;
            }
        }
        let mut log = self.log.lock().expect("no panic holds it");
        log.clusters[WIPED].generations.clear();
        log.clusters[WIPED].highest.clear();
    }

    /// Somebody wants something done, soon or never.
    fn command(&self, n: usize, sim: &Sim<'_>) {
        let mut log = self.log.lock().expect("no panic holds it");
        log.commands += 1;
        let id = format!("command-{n}-{}", log.commands);
        let lasts_ms = match self.random.chance(40) {
            true => 200 + self.random.below(8_000),
            // Until after the last fault.
            false => 120_000,
        };
        let expires_ms = at(sim.elapsed() + Duration::from_millis(lasts_ms));
        self.model
            .command(cluster(n as u64 + 1), &id, "agent", expires_ms);
    }

    /// Documents change, go, and come back.
    fn change(&self, n: usize) {
        let mut changes = Vec::new();
        if self.random.chance(6) {
            let all: Vec<_> = (0..DOCUMENTS).map(|d| (format!("d{d}"), None)).collect();
            self.note_removed(n, &all);
            self.model.place(id(n), &all);
            return;
        }
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
            changes.push((uid, document));
        }
        self.note_removed(n, &changes);
        self.model.place(id(n), &changes);
    }

    /// Before it is done: a cluster agent may be quick.
    fn note_removed(&self, n: usize, changes: &[(String, Option<Document>)]) {
        let rows = self.model.cluster(id(n)).expect("the cluster").rows;
        let mut log = self.log.lock().expect("no panic holds it");
        for (uid, _) in changes.iter().filter(|(_, document)| document.is_none()) {
            if let Some(row) = rows.get(uid).filter(|row| row.document.is_some()) {
                log.removed.insert((n, uid.clone()), row.generation);
            }
        }
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
        self.faults.store(false, Ordering::Relaxed);
        for n in 0..CLUSTERS.len() {
            sim.crash(relay(n));
        }
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
                && self.model.results(id(n)).values().all(Option::is_some)
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
                "{name}: revision {}, cursor {}, persisted {}, applied {}, same root {same}, held {:?}, entrusted {}, \
                 trust {:?}, commands {:?}; ",
                cluster.revision,
                sight.cursor,
                cluster.persisted,
                cluster.applied,
                cluster.held,
                sight.entrusted.len(),
                cluster.trust,
                self.model.results(id(n))
            )
        });
        let clusters = clusters.collect::<String>();
        format!(
            "{clusters} runs in the hub {runs}, roots {:?}",
            self.keys.signer()
        )
    }

    fn report(&self, agreed_after: Duration) -> Report {
        let records = self.model.runs();
        let mut last = 0;
        let mut ids = BTreeSet::new();
        for (cluster, record) in &records {
            assert!(
                ids.insert(record.id.clone()),
                "run {} is in the hub twice",
                record.id
            );
            // Behind a relay nothing can be said of order.
            if *cluster == id(DIRECT) {
                assert!(last < record.sequence, "runs arrive in order");
                last = record.sequence;
            }
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
        let commands = self.commanded();
        Report {
            agreed_after,
            revisions: clusters.iter().map(|cluster| cluster.revision).collect(),
            epochs: clusters.iter().map(|cluster| cluster.epoch).collect(),
            runs: records.len(),
            snapshots_held: self.held,
            commands,
        }
    }

    /// Each command has one result, which is what the cluster said if it began.
    fn commanded(&self) -> BTreeMap<String, usize> {
        let log = self.log.lock().expect("no panic holds it");
        let mut counts = BTreeMap::new();
        for (n, name) in CLUSTERS.into_iter().enumerate() {
            let sight = &log.clusters[n];
            for (command, result) in self.model.results(id(n)) {
                let result = result.unwrap_or_else(|| panic!("{name}: {command} has no result"));
                match (sight.begun.contains(&command), sight.concluded.get(&command)) {
                    (true, Some(said)) => {
                        assert_eq!(result, *said, "{name}: the result of {command} is another")
                    }
                    // Killed before its end was written down.
                    (true, None) => assert_eq!(result, CommandCode::Unknown, "{name}: {command} began"),
                    // Killed before its beginning could be noted here.
                    (false, _) => assert!(
                        matches!(result, CommandCode::Expired | CommandCode::Unknown),
                        "{name}: {command} never began, and is {result:?}"
                    ),
                }
                *counts.entry(result.as_str_name().to_owned()).or_insert(0) += 1;
            }
        }
        counts
    }
}

fn id(n: usize) -> ClusterId {
    cluster(n as u64 + 1)
}

/// Compares what a cluster holds with what it held.
pub(super) fn see(
    n: usize,
    log: &Mutex<Log>,
    documents: &[roadstead_inbox::Document],
    (cursor, root): (u64, [u8; 32]),
) {
    let mut log = log.lock().expect("no panic holds it");
    let now: BTreeMap<String, u64> = documents
        .iter()
        .map(|document| (document.uid.clone(), document.generation))
        .collect();
    let before = std::mem::take(&mut log.clusters[n].generations);
    for (uid, generation) in before.iter().filter(|(uid, _)| !now.contains_key(*uid)) {
        let removed = log.removed.get(&(n, uid.clone()));
        assert!(
            removed.is_some_and(|removed| removed >= generation),
            "{}: {uid} of generation {generation} is gone without a tombstone",
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

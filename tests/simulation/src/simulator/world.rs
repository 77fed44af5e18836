//! The fleet and what happens to it.

use super::{
    Plan,
    enrol::{Enrolled, enrol},
    figures::{Figures, cpu, p50_p99, resident, seconds},
    honest::{Agent, Removed},
    hub::{Hub, Makings},
    liar::Liar,
    network::{Line, Network},
    share,
    truth::{Change, Truth, Whom},
    witness::Witness,
};
use crate::simulated::Seeded;
use anyhow::Context as _;
use parking_lot::RwLock;
use roadstead_fleet::Fleet;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// Clusters of one look at how they stand.
const PAGE: usize = 500;
/// Documents of each cluster that come and go.
const OWN: u64 = 3;
const PROGRESS: Duration = Duration::from_secs(5);

/// The fleet.
pub(super) struct World<'a> {
    pub(super) plan: Plan,
    tell: &'a (dyn Fn(&str) + Sync),
    pub(super) random: Arc<Seeded>,
    pub(super) truth: Truth,
    pub(super) witness: Witness,
    makings: Makings,
    network: Network,
    hub: Hub,
    pub(super) enrolled: Vec<Enrolled>,
    /// All but the liars.
    pub(super) agents: Vec<Agent>,
    /// Of the first, how many are healthy, flapping, slow, and cloned; in this order.
    pub(super) kinds: [usize; 4],
    removed: Arc<RwLock<Removed>>,
    folder: TempDir,
    round: u64,
    pub(super) figures: Figures,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<'a> World<'a> {
    /// The hub with its clusters, all enrolled, and cluster agents that are not started.
    ///
    /// # Errors
    /// Something cannot be made.
    pub(super) async fn new(plan: Plan, tell: &'a (dyn Fn(&str) + Sync)) -> anyhow::Result<Self> {
        let mut world = Self::prepared(plan, tell).await?;
        let before = resident(std::process::id())?;
        for n in 0..world.kinds.iter().sum() {
            let folder = world.folder.path().join(n.to_string());
            world.agents.push(world.agent(n, folder)?);
        }
        let after = resident(std::process::id())?;
        world.memory("resident memory of an inbox in memory", before, after);
        Ok(world)
    }

    /// The same without the cluster agents.
    pub(super) async fn prepared(plan: Plan, tell: &'a (dyn Fn(&str) + Sync)) -> anyhow::Result<Self> {
        let count = plan.clusters as usize;
        let [flapping, slow, lying, cloned] =
            [plan.flapping, plan.slow, plan.lying, plan.cloned].map(|percent| share(count, percent));
        let honest = count.checked_sub(lying).context("too many liars")?;
        let healthy = honest.checked_sub(flapping + slow + cloned);
        let healthy = healthy
            .filter(|healthy| *healthy > 0)
            .context("no cluster would be healthy")?;
        // Memory where there is some: each cluster agent has a folder for its identity.
        let shared = Path::new("/dev/shm");
        let folder = match shared.is_dir() {
            true => tempfile::tempdir_in(shared),
            false => tempfile::tempdir(),
        }?;
        let (truth, secrets) = Truth::new(plan.truth, count, plan.bytes).await?;
        let witness = Witness::new(truth.store());
        let keys = folder.path().join("keys");
        std::fs::create_dir(&keys)?;
        let makings = Makings::new(&plan, witness.clone(), &keys)?;
        let enrolled = enrol(&makings, &secrets, folder.path()).await?;
        tell(&format!("{count} clusters are enrolled"));
        let network = Network::default();
        let mut world = Self {
            random: Arc::new(Seeded::new(plan.seed)),
            hub: Hub::start(&makings, &network),
            kinds: [healthy, flapping, slow, cloned],
            agents: Vec::new(),
            removed: Arc::default(),
            round: 0,
            figures: Figures::default(),
            plan,
            tell,
            truth,
            witness,
            makings,
            network,
            enrolled,
            folder,
        };
        world.write(Whom::All, 0).await?;
        world.write(Whom::One(0), 0).await?;
        Ok(world)
    }

    pub(super) fn fleet(&self) -> Fleet {
        self.hub.fleet.clone()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn agent(&self, n: usize, folder: std::path::PathBuf) -> anyhow::Result<Agent> {
        let line = Line::new(self.network.clone(), n, self.random.clone());
        Agent::new(n, folder, line, self.removed.clone(), self.random.clone())
    }

    fn memory(&mut self, what: &str, before: u64, after: u64) {
        let each = after.saturating_sub(before) / self.agents.len().max(1) as u64;
        self.row(what, format!("{each} KiB each ({} MiB in all)", after / 1024));
    }

    pub(super) fn row(&mut self, what: &str, measured: String) {
        (self.tell)(&format!("{what}: {measured}"));
        self.figures.row(what, measured);
    }

    async fn write(&mut self, whom: Whom, n: usize) -> anyhow::Result<Change> {
        self.round += 1;
        self.truth.write(whom, n, self.round).await
    }

    /// Noted before it is done: what sees it gone knows that it may be.
    async fn delete(&self, whom: Whom, n: usize) -> anyhow::Result<()> {
        let uid = self.truth.uid(whom, n);
        let noted = match whom {
            Whom::All => self.removed.write().everywhere.insert(uid),
            Whom::One(cluster) => self.removed.write().of.insert((cluster, uid)),
        };
        tracing::debug!(noted, "a document is deleted");
        self.truth.delete(whom, n).await
    }

    /// The revision of each cluster of `0..count`.
    async fn revisions(&self, count: usize) -> anyhow::Result<Vec<u64>> {
        let store = self.truth.store();
        let mut revisions = Vec::with_capacity(count);
        let peers: Vec<_> = self
            .enrolled
            .iter()
            .take(count)
            .map(|one| one.peer.clone())
            .collect();
        for page in peers.chunks(PAGE) {
            let standing = store.standing(page).await?;
            revisions.extend(
                standing
                    .into_iter()
                    .map(|standing| standing.map_or(u64::MAX, |s| s.revision)),
            );
        }
        Ok(revisions)
    }

    /// Waits until the first `count` have a session, and have on their disks what the hub has now.
    pub(super) async fn in_sync(&self, what: &str, count: usize) -> anyhow::Result<Duration> {
        let (began, wanted) = (Instant::now(), self.revisions(count).await?);
        let mut told = began;
        loop {
            let live: BTreeSet<_> = self.hub.fleet.live().into_iter().collect();
            let clusters = self.enrolled.iter().map(|one| one.peer.cluster);
            let agrees =
                |(id, revision): (_, &u64)| live.contains(&id) && self.witness.persisted(id) >= *revision;
            let agree = clusters
                .zip(&wanted)
                .filter(|(id, revision)| agrees((*id, *revision)))
                .count();
            if agree == count {
                return Ok(began.elapsed());
            }
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let sides = self.agents.iter().filter(|agent| agent.connected()).count();
                let (passed, begun) = (seconds(began.elapsed()), self.witness.begun(began));
                (self.tell)(&format!(
                    "{what}: after {passed} {agree} of {count} in sync, {} sessions live ({sides} by their own word), \
                     {begun} began",
                    live.len()
                ));
            }
            let late = began.elapsed() > Duration::from_secs(self.plan.patience);
            anyhow::ensure!(
                !late,
                "{what}: {agree} of {count} in sync after {}",
                seconds(began.elapsed())
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// All of them at once.
    ///
    /// # Errors
    /// They are not in sync in time.
    pub(super) async fn connect(&mut self) -> anyhow::Result<()> {
        let (pid, began) = (std::process::id(), Instant::now());
        let (memory, used) = (resident(pid)?, cpu(pid)?);
        for agent in &mut self.agents {
            agent.start();
        }
        let took = self.in_sync("connecting", self.agents.len()).await?;
        let all = self.agents.len();
        self.row(
            &format!("{all} started at once → all connected and in sync"),
            seconds(took),
        );
        self.row(
            "… most sessions that began in a second",
            self.witness.peak(began).to_string(),
        );
        self.row(
            "… sessions that began in all",
            self.witness.begun(began).to_string(),
        );
        self.row(
            "… processor time, both sides",
            seconds(cpu(pid)?.saturating_sub(used)),
        );
        self.memory(
            "resident memory of a session, both sides with the inbox's content",
            memory,
            resident(pid)?,
        );
        Ok(())
    }

    /// When a healthy cluster held this.
    async fn held(&self, n: usize, change: &Change) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            let since = self.agents[n].ledger.lock().since(&change.uid, change.generation);
            if let Some(since) = since {
                return Ok(since);
            }
            let late = began.elapsed() > Duration::from_secs(60);
            anyhow::ensure!(!late, "cluster {n} does not get {change:?}");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Documents for one cluster each, one after another.
    ///
    /// # Errors
    /// One does not arrive.
    pub(super) async fn write_one(&mut self) -> anyhow::Result<()> {
        let (pid, mut samples) = (std::process::id(), Vec::new());
        let (used, began) = (cpu(pid)?, Instant::now());
        for _ in 0..self.plan.ones {
            let n = self.random.below(self.kinds[0] as u64) as usize;
            let change = self.write(Whom::One(n), 0).await?;
            let accepted = Instant::now();
            let held = self.held(n, &change).await?;
            samples.push(held.saturating_duration_since(accepted));
            sleep(Duration::from_millis(20)).await;
        }
        let all = self.agents.len();
        self.row(
            &format!("accepted → PERSISTED, {all} connected, for one, p50 / p99"),
            p50_p99(samples),
        );
        let share = cpu(pid)?.saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64();
        self.row(
            "… of a processor used meanwhile, both sides",
            format!("{:.0} %", share * 100.0),
        );
        Ok(())
    }

    /// Documents for all clusters, one after another.
    ///
    /// # Errors
    /// One does not arrive.
    pub(super) async fn write_all(&mut self) -> anyhow::Result<()> {
        let (pid, mut each, mut last, mut accepting) =
            (std::process::id(), Vec::new(), Vec::new(), Vec::new());
        let used = cpu(pid)?;
        for _ in 0..self.plan.alls {
            let sent = Instant::now();
            let change = self.write(Whom::All, 0).await?;
            accepting.push(sent.elapsed());
            let mut latest = sent;
            for n in 0..self.agents.len() {
                let held = self.held(n, &change).await?;
                each.push(held.saturating_duration_since(sent));
                latest = latest.max(held);
            }
            last.push(latest.saturating_duration_since(sent));
            self.in_sync("a document for all", self.agents.len()).await?;
        }
        let all = self.agents.len();
        let what = format!("sent → PERSISTED, for all of {all}, each, p50 / p99");
        self.row(&what, p50_p99(each));
        self.row("… the last of them, p50 / p99", p50_p99(last));
        self.row("… answer to the writer after, p50 / p99", p50_p99(accepting));
        let each = cpu(pid)?.saturating_sub(used).as_secs_f64() / f64::from(self.plan.alls.max(1));
        self.row(
            "… processor time of one, both sides, acknowledgements included",
            format!("{each:.2} s"),
        );
        Ok(())
    }

    /// The hub is killed, every connection with it, and another one starts; meanwhile a document changed.
    ///
    /// # Errors
    /// They do not come back in time.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        let (pid, began) = (std::process::id(), Instant::now());
        let used = cpu(pid)?;
        let fresh = Hub::start(&self.makings, &self.network);
        std::mem::replace(&mut self.hub, fresh).kill();
        for agent in &self.agents {
            agent.line.cut();
        }
        self.write(Whom::All, 0).await?;
        self.in_sync("restart", self.agents.len()).await?;
        let took = began.elapsed();
        self.row("hub killed and started again → all in sync", seconds(took));
        self.row(
            "… most sessions that began in a second",
            self.witness.peak(began).to_string(),
        );
        self.row(
            "… sessions that began in all",
            self.witness.begun(began).to_string(),
        );
        self.row(
            "… processor time, both sides",
            seconds(cpu(pid)?.saturating_sub(used)),
        );
        Ok(())
    }

    /// Which cluster agents are of a kind.
    pub(super) fn of(&self, kind: usize) -> std::ops::Range<usize> {
        let first: usize = self.kinds[..kind].iter().sum();
        first..first + self.kinds[kind]
    }

    /// Some flap, some are slow, some lie, some are cloned; documents change; then all of it ends, but for the lies.
    ///
    /// # Errors
    /// They do not agree in time.
    pub(super) async fn faults(&mut self, lasting: Duration) -> anyhow::Result<()> {
        let mut troubles = JoinSet::new();
        for n in self.of(FLAPPING) {
            let (line, random) = (self.agents[n].line.clone(), self.random.clone());
            troubles.spawn(async move {
                loop {
                    sleep(Duration::from_millis(500 + random.below(15_000))).await;
                    line.cut();
                }
            });
        }
        for n in self.of(SLOW) {
            self.agents[n].line.set_slow(true);
        }
        let mut twins = Vec::new();
        for n in self.of(CLONED) {
            let (own, copy) = (
                self.folder.path().join(n.to_string()),
                self.folder.path().join(format!("{n}-twin")),
            );
            std::fs::create_dir(&copy)?;
            std::fs::copy(own.join("identity.json"), copy.join("identity.json"))?;
            let mut twin = self.agent(n, copy)?;
            twin.start();
            twins.push(twin);
        }
        let mut liars = JoinSet::new();
        for liar in self.liars() {
            liars.spawn(liar.lie());
        }
        let began = Instant::now();
        self.change_things(lasting).await?;
        troubles.shutdown().await;
        for twin in &mut twins {
            twin.stop().await;
            self.agents[twin.n]
                .ledger
                .lock()
                .violations
                .append(&mut twin.ledger.lock().violations);
        }
        for n in self.of(SLOW) {
            self.agents[n].line.set_slow(false);
        }
        self.write(Whom::All, 0).await?;
        let took = self.in_sync("after the faults", self.agents.len()).await?;
        self.row(
            &format!("{} of faults ended → all but liars in sync", seconds(lasting)),
            seconds(took),
        );
        self.row(
            "… sessions that began in and after them",
            self.witness.begun(began).to_string(),
        );
        Ok(())
    }

    fn liars(&self) -> Vec<Liar> {
        let liar = |n: usize| Liar {
            own: self.enrolled[n].clone(),
            foreign: self.truth.uid(Whom::One(0), 0),
            shared: self.truth.uid(Whom::All, 0),
            root: self.makings.authority.root_der(),
            line: Line::new(self.network.clone(), n, self.random.clone()),
            random: self.random.clone(),
        };
        (self.agents.len()..self.enrolled.len()).map(liar).collect()
    }

    /// Documents change, go, and come back, for so long.
    async fn change_things(&mut self, lasting: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut there: BTreeMap<(bool, usize, u64), Whom> = BTreeMap::new();
        while began.elapsed() < lasting {
            sleep(Duration::from_millis(20 + self.random.below(100))).await;
            let all = self.random.chance(3);
            let cluster = self.random.below(self.agents.len() as u64) as usize;
            let number = 1 + self.random.below(OWN);
            let (whom, cluster) = if all {
                (Whom::All, 0)
            } else {
                (Whom::One(cluster), cluster)
            };
            let key = (all, cluster, number);
            if there.contains_key(&key) && self.random.chance(30) {
                there.remove(&key);
                self.delete(whom, number as usize).await?;
            } else {
                self.write(whom, number as usize).await?;
                there.insert(key, whom);
            }
        }
        // Deletions that a cluster has not heard of yet are there for everybody who was away.
        for ((_, _, number), whom) in there.into_iter().take(20) {
            self.delete(whom, number as usize).await?;
        }
        Ok(())
    }
}

pub(super) const FLAPPING: usize = 1;
pub(super) const SLOW: usize = 2;
pub(super) const CLONED: usize = 3;

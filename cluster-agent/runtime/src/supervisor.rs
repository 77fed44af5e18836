//! One agent's supervisor: keeps one engine running, hands it what is wanted, and tells what it says.
//!
//! Everything is level-triggered: [`Wanted`] is the whole truth, and what differs from what was sent is sent. So a
//! change that comes while another is under way, or while no process runs, is neither lost nor queued.

use crate::{
    backoff::Backoff,
    config::Config,
    control::{Heard, Reader, Unsent, Writer},
    folder::Folder,
    local::{Report, RunSink},
    logs::{self, Log},
    spawn::{self, Process},
    status::{Phase, Refusal},
};
use roadstead_contract::{
    control::{Apply, FromEngine, Peer, SecretText, ToEngine, Trust},
    run::RunRecord,
};
use roadstead_plan::EngineUnit;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Lines that are no frames, before a process is taken for no engine.
const MAX_NONSENSE: u32 = 16;
/// Run records under way to the outbox.
const RUNS: usize = 64;

/// What one engine should be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) unit: Arc<EngineUnit>,
    /// Counts the times that another process was asked for.
    pub(crate) restarts: u64,
    pub(crate) trust: Arc<Trust>,
    pub(crate) peers: Arc<BTreeMap<String, Peer>>,
    pub(crate) end: Option<End>,
}

/// How an engine is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) grace: Duration,
    /// The agent belongs here no more, rather than the runtime going away.
    pub(crate) retire: bool,
}

pub(crate) struct Supervisor {
    pub(crate) config: Arc<Config>,
    pub(crate) folder: Folder,
    pub(crate) log: Arc<Log>,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) report: Report,
    pub(crate) sink: Arc<dyn RunSink>,
    /// The last unit that an engine accepted.
    pub(crate) good: Option<Arc<EngineUnit>>,
    /// An earlier supervisor of the same agent, whose journal must be free first.
    pub(crate) after: Option<CancellationToken>,
    pub(crate) token: String,
}

/// Why a process is no more.
enum Over {
    /// As it was asked to.
    Asked,
    /// Another one is wanted at once.
    Restart,
    Died {
        why: String,
        ready_for: Option<Duration>,
    },
}

impl Supervisor {
    pub(crate) async fn run(mut self) {
        if let Some(earlier) = self.after.take() {
            earlier.cancelled().await;
        }
        let mut backoff = Backoff::default();
        while self.wanted.borrow_and_update().end.is_none() {
            match self.life().await {
                Over::Asked => break,
                Over::Restart => backoff = Backoff::default(),
                Over::Died { why, ready_for } => {
                    let wait = backoff.after(ready_for, rand::random());
                    self.mourn(&why, wait);
                    self.pause(wait).await;
                }
            }
            self.report.update(|status| status.restarts += 1);
        }
        if self.wanted.borrow().end.is_some_and(|end| end.retire) {
            self.folder.retire(&self.token);
        }
        self.report.update(|status| {
            status.phase = Phase::Ended;
            status.reason = String::new();
        });
        self.log.end();
    }

    fn mourn(&self, why: &str, wait: Duration) {
        let uid = self.report.uid();
        tracing::warn!(
            agent = uid,
            wait_ms = wait.as_millis(),
            "the engine {why}; it is started again"
        );
        self.say(&format!(
            "the engine {why}; started again in {} ms",
            wait.as_millis()
        ));
        self.report.update(|status| {
            status.phase = Phase::Waiting;
            status.reason = format!("the engine {why}");
            status.failures = status.failures.saturating_add(1);
        });
    }

    /// A line of the runtime's own in the agent's log.
    fn say(&self, text: &str) {
        self.log
            .push((self.config.clock)(), format!("[runtime] {text}").as_bytes());
    }

    /// Waits, unless something that could help is asked for meanwhile.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        let before = {
            let wanted = self.wanted.borrow_and_update();
            (wanted.unit.digest.clone(), wanted.restarts)
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = self.wanted.changed() => {
                    let wanted = self.wanted.borrow_and_update();
                    let news = wanted.unit.digest != before.0 || wanted.restarts != before.1;
                    if changed.is_err() || news || wanted.end.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// One process from its start to its end.
    async fn life(&mut self) -> Over {
        self.folder.clear(Duration::from_secs(1)).await;
        let engine = match spawn::spawn(&self.config, &self.folder) {
            Ok(engine) => engine,
            Err(error) => {
                let why = format!("cannot be started: {error}");
                return Over::Died { why, ready_for: None };
            }
        };
        let id = engine.process.id();
        self.say(&format!("the engine starts as process {}", id.pid));
        if let Err(error) = self.folder.note(id) {
            tracing::warn!(agent = self.report.uid(), %error, "the engine's process cannot be noted");
        }
        self.report.update(|status| {
            status.phase = Phase::Starting;
            status.reason = "the engine starts".to_owned();
            status.pid = Some(id.pid.cast_unsigned());
            status.process = Some(id);
        });
        let (log, clock) = (self.log.clone(), self.config.clock.clone());
        let stderr = engine.stderr;
        let capture = tokio::spawn(async move { logs::capture(stderr, &log, &*clock).await });
        let writer = Writer::start(engine.stdin);
        let over = Life::new(self, engine.process, writer)
            .run(Reader::new(engine.stdout))
            .await;
        // What it said last is worth waiting for; what could not be killed may hold the pipe open.
        let _ = tokio::time::timeout(Duration::from_millis(200), capture).await;
        self.folder.withdraw(&self.token);
        self.report.update(|status| {
            status.pid = None;
            status.process = None;
            status.address = None;
            status.applied = None;
        });
        over
    }

    fn secrets(&self, unit: &EngineUnit) -> BTreeMap<String, SecretText> {
        let offered = unit.environment.intersection(&self.config.offered);
        let found = offered.filter_map(|name| Some((name.clone(), (self.config.lookup)(name)?)));
        found
            .map(|(name, value)| (name, SecretText::new(value)))
            .collect()
    }
}

/// Moments by which something must have happened.
#[derive(Debug, Default)]
struct Deadlines {
    start: Option<Instant>,
    answer: Option<Instant>,
    drain: Option<Instant>,
    output: Option<Instant>,
}

impl Deadlines {
    /// The nearest, and what it means to miss it.
    fn next(&self) -> Option<(Instant, &'static str)> {
        let all = [
            (self.start, "did not say where it listens in time"),
            (self.answer, "did not answer a revision in time"),
            (self.drain, "did not finish in time"),
            (self.output, "closed its standard output"),
        ];
        all.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }
}

/// One process's life.
struct Life<'a> {
    of: &'a mut Supervisor,
    process: Process,
    writer: Writer,
    deadlines: Deadlines,
    /// Why it was killed, once it was.
    killed: Option<String>,
    /// Restarts that were asked for before this life.
    restarts: u64,
    /// Whether it was asked to end, and whether another is wanted then.
    draining: Option<bool>,
    /// What waits for its answer.
    pending: Option<(Arc<EngineUnit>, Arc<Trust>)>,
    /// What the process serves: the digest, and whom it trusts.
    serving: Option<(String, Arc<Trust>)>,
    sent_peers: Option<Arc<BTreeMap<String, Peer>>>,
    /// The digests that this process refused.
    refused: BTreeSet<String>,
    ready_since: Option<Instant>,
    ready: (bool, String),
    nonsense: u32,
}

impl<'a> Life<'a> {
    fn new(of: &'a mut Supervisor, process: Process, writer: Writer) -> Self {
        let restarts = of.wanted.borrow_and_update().restarts;
        let start = Some(Instant::now() + of.config.timing.start);
        Self {
            of,
            process,
            writer,
            deadlines: Deadlines {
                start,
                ..Deadlines::default()
            },
            killed: None,
            restarts,
            draining: None,
            pending: None,
            serving: None,
            sent_peers: None,
            refused: BTreeSet::new(),
            ready_since: None,
            ready: (false, "the engine starts".to_owned()),
            nonsense: 0,
        }
    }

    async fn run(mut self, mut reader: Reader) -> Over {
        let (runs, records) = mpsc::channel(RUNS);
        let (keeper, mut kept) = mpsc::channel(RUNS);
        tokio::spawn(keep(self.of.sink.clone(), records, keeper));
        let mut held: Option<RunRecord> = None;
        let mut open = true;
        self.advance();
        let status = loop {
            let deadline = self.deadlines.next().filter(|_| self.killed.is_none());
            tokio::select! {
                status = self.process.wait() => break status,
                heard = reader.next(), if open && held.is_none() => match heard {
                    Heard::Frame(FromEngine::Run(record)) => held = self.checked(*record),
                    Heard::Frame(frame) => self.frame(frame),
                    Heard::Nonsense(why) => self.nonsense(&why),
                    Heard::Broken(why) => {
                        open = false;
                        self.kill(why);
                    }
                    Heard::End => {
                        open = false;
                        self.deadlines.output = Some(Instant::now() + Duration::from_secs(1));
                    }
                },
                permit = runs.reserve(), if held.is_some() => {
                    if let (Ok(permit), Some(record)) = (permit, held.take()) {
                        permit.send(record);
                    }
                }
                Some(sequence) = kept.recv() => self.send(&ToEngine::RunsKept { sequence }),
                Ok(()) = self.of.wanted.changed() => self.advance(),
                () = until(deadline.map(|(at, _)| at)) => {
                    self.kill(deadline.map_or("", |(_, why)| why));
                }
            }
        };
        // Tool servers and whatever else it started end with it.
        spawn::clear(self.process.id()).await;
        self.last_words(&mut reader, open, &runs).await;
        self.over(status)
    }

    /// Run records that were in the pipe when the process ended. Those that are missed come again from its journal.
    async fn last_words(&self, reader: &mut Reader, open: bool, runs: &mpsc::Sender<RunRecord>) {
        let read = async {
            if !open {
                return;
            }
            loop {
                match reader.next().await {
                    Heard::Frame(FromEngine::Run(record)) => {
                        if let Some(record) = self.checked(*record) {
                            let _ = runs.send(record).await;
                        }
                    }
                    Heard::End | Heard::Broken(_) => break,
                    Heard::Frame(_) | Heard::Nonsense(_) => {}
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
    }

    fn over(self, status: std::io::Result<std::process::ExitStatus>) -> Over {
        match self.draining {
            Some(true) => Over::Restart,
            Some(false) => Over::Asked,
            None => {
                let noted = self.killed.or_else(|| self.of.report.take_note());
                Over::Died {
                    why: noted.unwrap_or_else(|| spawn::ended(status)),
                    ready_for: self.ready_since.map(|since| since.elapsed()),
                }
            }
        }
    }

    fn kill(&mut self, why: &str) {
        if self.killed.is_none() {
            self.of.say(&format!("the engine {why}; it is killed"));
            self.killed = Some(why.to_owned());
        }
        self.process.kill();
    }

    fn send(&mut self, frame: &ToEngine) {
        if self.writer.send(frame) == Err(Unsent::Stuck) {
            self.kill("does not read its standard input");
        }
    }

    /// Sends what differs from what was sent. One revision is under way at a time.
    fn advance(&mut self) {
        let wanted = self.of.wanted.borrow_and_update().clone();
        if self.draining.is_some() {
            return;
        }
        if wanted.end.is_some() || wanted.restarts != self.restarts {
            let grace = wanted.end.map_or(self.of.config.timing.grace, |end| end.grace);
            self.drain(grace, wanted.end.is_none());
            return;
        }
        if self.pending.is_some() {
            return;
        }
        // Peers first: the tasks of a new revision find all of them.
        if self.sent_peers.as_ref() != Some(&wanted.peers) {
            let peers = (*wanted.peers).clone();
            self.sent_peers = Some(wanted.peers.clone());
            self.send(&ToEngine::Peers { peers });
        }
        let candidates = [Some(wanted.unit), self.of.good.clone()];
        let usable = |unit: &Arc<EngineUnit>| !self.refused.contains(&unit.digest);
        if let Some(unit) = candidates.into_iter().flatten().find(usable) {
            self.apply(unit, wanted.trust);
        }
    }

    fn apply(&mut self, unit: Arc<EngineUnit>, trust: Arc<Trust>) {
        if self
            .serving
            .as_ref()
            .is_some_and(|(digest, trusted)| *digest == unit.digest && *trusted == trust)
        {
            self.served(&unit);
            return;
        }
        let secrets = self.of.secrets(&unit);
        self.of.log.strike(secrets.values().cloned().collect());
        let frame = ToEngine::Apply(Box::new(Apply {
            bundle: unit.bundle.clone(),
            secrets,
            trust: (*trust).clone(),
        }));
        match self.writer.send(&frame) {
            Ok(()) => {
                self.pending = Some((unit, trust));
                self.deadlines.answer = Some(Instant::now() + self.of.config.timing.answer);
            }
            Err(Unsent::TooLong) => {
                let reason =
                    "the agent with everything it refers to is too large for a control frame".to_owned();
                self.refuse(&unit, reason);
            }
            Err(Unsent::Stuck) => self.kill("does not read its standard input"),
        }
    }

    fn drain(&mut self, grace: Duration, again: bool) {
        self.draining = Some(again);
        self.deadlines = Deadlines {
            drain: Some(Instant::now() + grace + Duration::from_millis(500)),
            ..Deadlines::default()
        };
        self.of.report.update(|status| {
            status.phase = Phase::Draining;
            status.reason = "the engine finishes what runs".to_owned();
        });
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.send(&ToEngine::Drain { grace_ms });
    }

    fn nonsense(&mut self, why: &str) {
        self.nonsense += 1;
        if self.nonsense == 1 {
            self.of.say(&format!(
                "a line on the engine's standard output is no control frame: {why}"
            ));
        }
        if self.nonsense >= MAX_NONSENSE {
            self.kill("does not speak control frames");
        }
    }

    /// A record that can be this agent's. Another's would be a lie to the hub.
    fn checked(&self, record: RunRecord) -> Option<RunRecord> {
        if record.agent_uid == self.of.report.uid() {
            return Some(record);
        }
        let claimed = &record.agent_uid;
        tracing::error!(agent = self.of.report.uid(), %claimed, "a run record of another agent was dropped");
        None
    }

    fn frame(&mut self, frame: FromEngine) {
        match frame {
            FromEngine::Listening { address } => self.listening(&address),
            FromEngine::Applied { digest, .. } => match self.answered(&digest) {
                Some((unit, trust)) => {
                    let (digest, generation) = (&unit.digest, unit.bundle.generation);
                    if self.serving.as_ref().is_none_or(|(before, _)| before != digest) {
                        self.of.say(&format!("generation {generation} serves"));
                    }
                    self.serving = Some((unit.digest.clone(), trust));
                    self.served(&unit);
                    self.advance();
                }
                None => self.nonsense("an answer to a revision that was not sent"),
            },
            FromEngine::Refused { digest, reason, .. } => match self.answered(&digest) {
                Some((unit, _)) => self.refuse(&unit, reason),
                None => self.nonsense("an answer to a revision that was not sent"),
            },
            FromEngine::Ready { ready, reason } => {
                self.ready = (ready, reason);
                self.show();
            }
            FromEngine::Run(_) => {}
        }
    }

    fn answered(&mut self, digest: &str) -> Option<(Arc<EngineUnit>, Arc<Trust>)> {
        let answered = self.pending.take_if(|(unit, _)| unit.digest == digest)?;
        self.deadlines.answer = None;
        Some(answered)
    }

    /// Only loopback: whatever an engine says, neither the tunnel nor a peer is sent anywhere else.
    fn listening(&mut self, address: &str) {
        let Some(at) = address
            .parse()
            .ok()
            .filter(|a: &std::net::SocketAddr| a.ip().is_loopback())
        else {
            self.kill("listens on an address that is not loopback");
            return;
        };
        self.deadlines.start = None;
        if let Err(error) = self.of.folder.publish(address, &self.of.token) {
            tracing::warn!(agent = self.of.report.uid(), %error, "the engine's address cannot be published");
        }
        self.of.report.update(|status| status.address = Some(at));
        self.show();
    }

    fn served(&mut self, unit: &Arc<EngineUnit>) {
        let wanted = self.of.wanted.borrow().unit.clone();
        let applied = Some((unit.bundle.generation, unit.digest.clone()));
        let accepted = unit.digest == wanted.digest;
        self.of.report.update(|status| {
            status.applied = applied;
            if accepted {
                status.refused = None;
                status.failures = 0;
            }
        });
        self.show();
        // After the report, which people wait for. A crash before this leaves the unit before, which is good too.
        if accepted && self.of.good.as_ref() != Some(&wanted) {
            if let Err(error) = self.of.folder.keep(&wanted) {
                tracing::warn!(agent = self.of.report.uid(), %error, "the accepted revision cannot be kept");
            }
            self.of.good = Some(wanted);
        }
    }

    fn refuse(&mut self, unit: &EngineUnit, reason: String) {
        self.of.say(&format!(
            "generation {} was refused: {reason}",
            unit.bundle.generation
        ));
        self.refused.insert(unit.digest.clone());
        if unit.digest != self.of.wanted.borrow().unit.digest {
            // The one that was accepted before; the refusal of the wanted one stays what people see.
            self.advance();
            return;
        }
        let refusal = Refusal {
            generation: unit.bundle.generation,
            digest: unit.digest.clone(),
            reason,
        };
        self.of.report.update(|status| status.refused = Some(refusal));
        self.show();
        self.advance();
    }

    /// Tells in which phase the process is.
    fn show(&mut self) {
        if self.draining.is_some() {
            return;
        }
        let ready = self.ready.clone();
        let mut is_ready = false;
        self.of.report.update(|status| {
            (status.phase, status.reason) = match (&status.address, &status.applied, &status.refused) {
                (None, _, _) => (Phase::Starting, "the engine starts".to_owned()),
                (_, None, Some(refused)) => (Phase::NotReady, refused.reason.clone()),
                (_, None, None) => (Phase::Starting, "the engine loads its revision".to_owned()),
                _ if ready.0 => (Phase::Ready, String::new()),
                _ => (Phase::NotReady, ready.1),
            };
            is_ready = status.phase == Phase::Ready;
        });
        if is_ready {
            self.ready_since.get_or_insert_with(Instant::now);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Brings run records to the outbox, in order, and tells up to where they are kept. While the outbox cannot be
/// written it tries again: the engine keeps them meanwhile, and its pipe holds it back.
async fn keep(sink: Arc<dyn RunSink>, mut records: mpsc::Receiver<RunRecord>, kept: mpsc::Sender<u64>) {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, RUNS).await > 0 {
        let last = batch.last().map_or(0, |record| record.sequence);
        while let Err(error) = sink.keep(batch.clone()).await {
            tracing::warn!(
                error = &*error,
                "run records cannot be kept; the engine holds them"
            );
            if kept.is_closed() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        batch.clear();
        if kept.send(last).await.is_err() && records.is_empty() {
            return;
        }
    }
}

//! What lives on this replica: sessions and other streams, by cluster.
//!
//! A session is woken when its cluster's desired set changes, and ended when a newer one begins (here or on another
//! replica), when its identity is revoked, or when the replica drains. Bulk and tunnel streams end with a revocation.

use crate::{
    bucket::Bucket,
    store::{Event, Standing, What},
};
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_domain::ClusterId;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Why a session is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Superseded,
    Revoked,
    Drain,
}

/// Sessions that one cluster agent may begin, a second and at once: admission to the hub is everybody's (S39).
const SESSIONS: (f64, f64) = (0.5, 20.0);
/// Events of one cluster, or of nobody, that are written to the audit log, a second and at once.
const EVENTS: (f64, f64) = (0.5, 24.0);
/// Of so many events are counted apart; whoever comes beyond them is counted with those that nobody knows.
const TELLERS: usize = 4_096;
/// Open bulk and tunnel streams of one cluster: 256 calls, and what is parked.
pub(crate) const STREAMS: usize = 320;
/// Streams of one cluster that have not said Hello yet.
const GREETINGS: usize = 4;
/// How long a certificate may still be used on a live stream after its end: clocks differ (protocol.md §4).
pub(crate) const EXPIRED_GRACE: Duration = Duration::from_secs(300);

/// `true` once a certificate's time, in seconds since the Unix epoch, and the grace are over.
pub(crate) fn is_over(not_after: i64, now_ms: i64) -> bool {
    let grace = i64::try_from(EXPIRED_GRACE.as_millis()).unwrap_or(i64::MAX);
    now_ms > not_after.saturating_mul(1_000).saturating_add(grace)
}

/// A session's place in the registry.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) peer: PeerIdentity,
    pub(crate) epoch: u64,
    /// The desired set may have changed.
    pub(crate) wake: Notify,
    /// Commands may wait.
    pub(crate) commands: Notify,
    ended: Mutex<Option<Reason>>,
    pub(crate) end: CancellationToken,
    /// Through which revision rows were read.
    pub(crate) read: std::sync::atomic::AtomicU64,
}

impl Seat {
    fn end(&self, reason: Reason) {
        self.ended.lock().get_or_insert(reason);
        self.end.cancel();
    }

    pub(crate) fn reason(&self) -> Reason {
        self.ended.lock().clone().unwrap_or(Reason::Drain)
    }
}

/// How often two instances have taken turns, and since when.
#[derive(Debug)]
struct Turns {
    instance: String,
    since: Instant,
    turns: u32,
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<ClusterId, Arc<Seat>>,
    /// Streams other than sessions, by certificate.
    streams: BTreeMap<PeerKey, Streams>,
    /// Streams that are to say Hello.
    greetings: BTreeMap<ClusterId, usize>,
    admissions: BTreeMap<ClusterId, Bucket>,
    events: BTreeMap<Teller, Told>,
    turns: BTreeMap<ClusterId, Turns>,
    /// When sessions ended; milliseconds since the Unix epoch.
    gone: BTreeMap<ClusterId, i64>,
    /// Last heard, not yet written.
    seen: BTreeMap<ClusterId, (PeerIdentity, i64)>,
    draining: bool,
}

impl State {
    /// Of each certificate of the cluster. To look at everybody's, for each of ten thousand clusters, takes seconds.
    fn streams_of(&self, cluster: ClusterId) -> impl Iterator<Item = &Streams> {
        let first = (cluster, String::new());
        let from = self.streams.range(first..);
        from.take_while(move |((of, _), _)| *of == cluster)
            .map(|(_, streams)| streams)
    }

    /// Where the event is counted, and whether that is with those that nobody knows although it tells of somebody.
    fn told(&mut self, event: &Event) -> (&mut Told, bool) {
        let (mut of, kind) = teller(event);
        let crowded = self.events.len() >= TELLERS && !self.events.contains_key(&(of, kind));
        if crowded {
            of = None;
        }
        let crowded = crowded && event.peer.is_some();
        (self.events.entry((of, kind)).or_insert_with(Told::new), crowded)
    }
}

/// Of whom events tell; `None` is nobody. Refused enrolments apart: whoever has an old join token must not drown what
/// is told of the cluster itself.
type Teller = (Option<ClusterId>, bool);

fn teller(event: &Event) -> Teller {
    let cluster = event.peer.as_ref().map(|peer| peer.cluster);
    (cluster, event.what == What::EnrolmentRefused)
}

/// What the audit log still takes of them.
#[derive(Debug)]
struct Told {
    bucket: Bucket,
    /// How many it did not take, and the last of them.
    counted: u64,
    last: Option<Event>,
}

impl Told {
    fn new() -> Self {
        Self {
            bucket: Bucket::new(EVENTS.0, EVENTS.1),
            counted: 0,
            last: None,
        }
    }

    /// Where it is crowded the count is of many: it belongs into nobody's log but the platform's.
    fn count(&mut self, events: u64, last: &Event, crowded: bool) {
        self.counted += events;
        let mut last = last.clone();
        if crowded {
            last.peer = None;
        }
        self.last = Some(last);
    }
}

type PeerKey = (ClusterId, String);

/// The streams that one certificate has opened.
#[derive(Debug)]
struct Streams {
    peer: PeerIdentity,
    /// Seconds since the Unix epoch.
    not_after: i64,
    /// The certificate is revoked: what runs is cut.
    revoked: CancellationToken,
    /// Nothing new begins: revoked too, or its time is over, or the replica drains.
    ended: CancellationToken,
    open: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<State>);

/// Instances that take turns this often within [`TURNS_WITHIN`] share an identity. A restart is one turn.
const TURNS: u32 = 4;
const TURNS_WITHIN: Duration = Duration::from_secs(300);

impl Registry {
    /// Seats a session and ends an older one of the cluster. `None` when the replica drains, or when a newer session
    /// of the cluster sits here already.
    pub(crate) fn seat(&self, peer: PeerIdentity, epoch: u64) -> Option<Arc<Seat>> {
        let mut state = self.0.lock();
        let newer = state
            .sessions
            .get(&peer.cluster)
            .is_some_and(|seat| seat.epoch > epoch);
        if state.draining || newer {
            return None;
        }
        let cluster = peer.cluster;
        let seat = Arc::new(Seat {
            peer,
            epoch,
            wake: Notify::new(),
            commands: Notify::new(),
            ended: Mutex::new(None),
            end: CancellationToken::new(),
            read: std::sync::atomic::AtomicU64::new(0),
        });
        state.gone.remove(&cluster);
        if let Some(older) = state.sessions.insert(cluster, seat.clone()) {
            older.end(Reason::Superseded);
        }
        Some(seat)
    }

    /// The session has ended.
    pub(crate) fn leave(&self, seat: &Arc<Seat>, now_ms: i64) {
        let mut state = self.0.lock();
        let cluster = seat.peer.cluster;
        if state
            .sessions
            .get(&cluster)
            .is_some_and(|sitting| Arc::ptr_eq(sitting, seat))
        {
            state.sessions.remove(&cluster);
            state.gone.insert(cluster, now_ms);
        }
    }

    /// `true` when two instances seem to take turns with one identity; said once for each time it is found.
    pub(crate) fn takes_turns(&self, cluster: ClusterId, instance: &str) -> bool {
        let now = Instant::now();
        let mut state = self.0.lock();
        let fresh = || Turns {
            instance: instance.to_owned(),
            since: now,
            turns: 0,
        };
        let turns = state.turns.entry(cluster).or_insert_with(fresh);
        if turns.instance == instance {
            return false;
        }
        if now.duration_since(turns.since) > TURNS_WITHIN {
            *turns = fresh();
        }
        instance.clone_into(&mut turns.instance);
        turns.turns += 1;
        let found = turns.turns >= TURNS;
        if found {
            turns.turns = 0;
        }
        found
    }

    /// Tokens that are cancelled when the peer's certificate is revoked, or its time is over; held for as long as the
    /// stream lives. `None` when the cluster has enough of them.
    pub(crate) fn stream(self: &Arc<Self>, peer: &PeerIdentity, not_after: i64) -> Option<StreamGuard> {
        let key = (peer.cluster, peer.serial.clone());
        let mut state = self.0.lock();
        let own = state.streams_of(peer.cluster);
        if own.map(|streams| streams.open).sum::<usize>() >= STREAMS {
            return None;
        }
        let entry = state.streams.entry(key.clone()).or_insert_with(|| {
            let revoked = CancellationToken::new();
            Streams {
                peer: peer.clone(),
                not_after,
                ended: revoked.child_token(),
                revoked,
                open: 0,
            }
        });
        entry.open += 1;
        Some(StreamGuard {
            registry: self.clone(),
            key,
            revoked: entry.revoked.clone(),
            ended: entry.ended.clone(),
        })
    }

    /// A place for a stream that is to say Hello; `None` when the cluster has enough of them.
    pub(crate) fn greeting(self: &Arc<Self>, cluster: ClusterId) -> Option<Greeting> {
        let mut state = self.0.lock();
        let waiting = state.greetings.entry(cluster).or_insert(0);
        if *waiting >= GREETINGS {
            return None;
        }
        *waiting += 1;
        Some(Greeting {
            registry: self.clone(),
            cluster,
        })
    }

    /// Whether the cluster may begin a session now, or how long until then.
    pub(crate) fn admit(&self, cluster: ClusterId) -> Result<(), Duration> {
        let mut state = self.0.lock();
        let fresh = || Bucket::new(SESSIONS.0, SESSIONS.1);
        state.admissions.entry(cluster).or_insert_with(fresh).take()
    }

    /// Whether this event is to be written to the audit log: then how many like it were not since the last one. Whoever
    /// is refused can come again and again; the log says so without growing with it. What is not written is counted.
    pub(crate) fn notes(&self, event: &Event) -> Option<u64> {
        let mut state = self.0.lock();
        let (told, crowded) = state.told(event);
        if told.bucket.take().is_err() {
            told.count(1, event, crowded);
            return None;
        }
        match crowded {
            true => Some(0),
            false => Some(std::mem::take(&mut told.counted)),
        }
    }

    /// These events could not be written: they are counted again.
    pub(crate) fn unwritten(&self, events: u64, last: &Event) {
        let mut state = self.0.lock();
        let (told, crowded) = state.told(last);
        told.count(events, last, crowded);
    }

    /// What was counted and may be written now: how many events, and the last of them. With `all` whatever was counted.
    pub(crate) fn counted(&self, all: bool) -> Vec<(u64, Event)> {
        let mut state = self.0.lock();
        let mut counted = Vec::new();
        for told in state.events.values_mut() {
            if told.counted > 0
                && (all || told.bucket.take().is_ok())
                && let Some(last) = told.last.take()
            {
                counted.push((std::mem::take(&mut told.counted), last));
            }
        }
        let silent = |told: &Told| told.counted == 0 && told.bucket.is_full();
        state.events.retain(|_, told| !silent(told));
        counted
    }

    /// Ends streams whose certificate's time is over.
    pub(crate) fn end_expired(&self, now_ms: i64) {
        let state = self.0.lock();
        let over = state
            .streams
            .values()
            .filter(|streams| is_over(streams.not_after, now_ms));
        over.for_each(|streams| streams.ended.cancel());
    }

    /// Everybody whose standing is worth a look: one entry for each certificate.
    pub(crate) fn peers(&self) -> Vec<PeerIdentity> {
        let state = self.0.lock();
        let sessions = state.sessions.values().map(|seat| &seat.peer);
        let alone = sessions.filter(|peer| {
            let mut streams = state.streams_of(peer.cluster);
            !streams.any(|streams| streams.peer.serial == peer.serial)
        });
        let streams = state.streams.values().map(|streams| &streams.peer);
        streams.chain(alone).cloned().collect()
    }

    /// Takes in how a peer stands in the database.
    pub(crate) fn stands(&self, peer: &PeerIdentity, standing: Option<Standing>) {
        let state = self.0.lock();
        let revoked = standing.is_none_or(|standing| standing.revoked);
        if revoked && let Some(streams) = state.streams.get(&(peer.cluster, peer.serial.clone())) {
            streams.revoked.cancel();
        }
        let Some(seat) = state.sessions.get(&peer.cluster) else {
            return;
        };
        if standing.is_some_and(|standing| standing.commands) {
            seat.commands.notify_one();
        }
        match standing {
            _ if revoked && seat.peer.serial == peer.serial => seat.end(Reason::Revoked),
            Some(standing) if standing.epoch > seat.epoch => seat.end(Reason::Superseded),
            Some(standing) if standing.approved_deletes > 0 => seat.wake.notify_one(),
            Some(standing) if standing.revision > seat.read.load(std::sync::atomic::Ordering::Relaxed) => {
                seat.wake.notify_one();
            }
            _ => {}
        }
    }

    /// Ends every session, and lets none begin. Calls that run may end.
    pub(crate) fn drain(&self) {
        let mut state = self.0.lock();
        state.draining = true;
        for seat in state.sessions.values() {
            seat.end(Reason::Drain);
        }
        for streams in state.streams.values() {
            streams.ended.cancel();
        }
    }

    pub(crate) fn live(&self) -> Vec<ClusterId> {
        self.0.lock().sessions.keys().copied().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().sessions.len()
    }

    pub(crate) fn is_live(&self, cluster: ClusterId) -> bool {
        self.0.lock().sessions.contains_key(&cluster)
    }

    /// When the cluster's last session here ended; milliseconds since the Unix epoch.
    pub(crate) fn gone_since(&self, cluster: ClusterId) -> Option<i64> {
        self.0.lock().gone.get(&cluster).copied()
    }

    pub(crate) fn heard(&self, peer: &PeerIdentity, now_ms: i64) {
        let mut state = self.0.lock();
        match state.seen.get_mut(&peer.cluster) {
            Some(seen) => seen.1 = now_ms,
            None => {
                state.seen.insert(peer.cluster, (peer.clone(), now_ms));
            }
        }
    }

    pub(crate) fn take_seen(&self) -> Vec<(PeerIdentity, i64)> {
        std::mem::take(&mut self.0.lock().seen).into_values().collect()
    }
}

/// A stream's place in the registry.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    registry: Arc<Registry>,
    key: PeerKey,
    /// The certificate is revoked: a call that runs ends at once.
    pub(crate) revoked: CancellationToken,
    /// The stream must begin nothing more; a call that runs may end. Cancelled by a revocation too.
    pub(crate) ended: CancellationToken,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.registry.0.lock();
        if let Some(entry) = state.streams.get_mut(&self.key) {
            entry.open -= 1;
            if entry.open == 0 {
                state.streams.remove(&self.key);
            }
        }
    }
}

/// A stream that is to say Hello; see [`Registry::greeting`].
#[derive(Debug)]
pub(crate) struct Greeting {
    registry: Arc<Registry>,
    cluster: ClusterId,
}

impl Drop for Greeting {
    fn drop(&mut self) {
        let mut state = self.registry.0.lock();
        if let Some(waiting) = state.greetings.get_mut(&self.cluster) {
            *waiting -= 1;
            if *waiting == 0 {
                state.greetings.remove(&self.cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{FakeClock, SeededRandom, TenantId};

    fn peer(serial: &str) -> PeerIdentity {
        let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
        PeerIdentity {
            tenant: TenantId::generate(&clock, &random),
            cluster: ClusterId::generate(&clock, &random),
            serial: serial.to_owned(),
        }
    }

    #[test]
    fn a_newer_session_ends_the_older_and_never_the_reverse() {
        let registry = Registry::default();
        let first = registry.seat(peer("a"), 1).unwrap();
        let second = registry.seat(peer("a"), 2).unwrap();
        assert!(first.end.is_cancelled());
        assert_eq!(first.reason(), Reason::Superseded);
        assert!(registry.seat(peer("a"), 1).is_none());
        registry.leave(&first, 5);
        assert!(registry.is_live(second.peer.cluster));
        registry.leave(&second, 6);
        assert_eq!(registry.gone_since(second.peer.cluster), Some(6));
    }

    #[test]
    fn a_revoked_certificate_ends_only_what_it_opened() {
        let registry = Arc::new(Registry::default());
        let old = registry.stream(&peer("old"), i64::MAX).unwrap();
        let seat = registry.seat(peer("new"), 1).unwrap();
        let revoked = Standing {
            revision: 0,
            epoch: 1,
            revoked: true,
            approved_deletes: 0,
            frozen: false,
            commands: false,
        };
        registry.stands(&peer("old"), Some(revoked));
        assert!(old.revoked.is_cancelled() && old.ended.is_cancelled());
        assert!(!seat.end.is_cancelled());
        registry.stands(&peer("new"), None);
        assert_eq!(seat.reason(), Reason::Revoked);
        let serials = || {
            let peers = registry.peers().into_iter();
            peers.map(|peer| peer.serial).collect::<Vec<_>>()
        };
        assert_eq!(serials(), ["old", "new"]);
        let same = registry.stream(&peer("new"), i64::MAX).unwrap();
        assert_eq!(serials(), ["new", "old"], "each certificate once");
        drop((old, same));
        assert_eq!(serials(), ["new"]);
    }

    #[tokio::test]
    async fn s39_one_cluster_leaves_admission_log_and_streams_to_the_others() {
        let registry = Arc::new(Registry::default());
        let cluster = peer("a").cluster;
        let count = |n: usize| (0..1_000).take_while(|_| registry.admit(cluster).is_ok()).count() == n;
        assert!(count(20) && count(0));
        let event = |what, serial: Option<&str>| Event {
            peer: serial.map(peer),
            source: None,
            what,
            detail: String::new(),
        };
        let (forged, nobody) = (
            event(What::Forged, Some("a")),
            event(What::EnrolmentRefused, None),
        );
        let written = (0..100).filter(|_| registry.notes(&forged).is_some()).count();
        assert_eq!(written, 24);
        assert_eq!(registry.notes(&nobody), Some(0));
        assert_eq!(registry.notes(&event(What::EnrolmentRefused, Some("a"))), Some(0));
        assert_eq!(registry.counted(false), []);
        registry.unwritten(2, &nobody);
        assert_eq!(registry.counted(false), [(2, nobody)]);
        // At the end nothing is left out.
        assert_eq!(registry.counted(true), [(76, forged)]);
        assert_eq!(registry.counted(true), []);
        // Whichever of its certificates they are of; those of the others are not counted.
        let neighbours = (0..20).map(|n| {
            let mut neighbour = peer("a");
            neighbour.cluster = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(2 + n));
            registry.stream(&neighbour, 0)
        });
        let neighbours = neighbours.collect::<Vec<_>>();
        let opened = (0..1_000)
            .map_while(|n| registry.stream(&peer(["b", "a", "c"][n % 3]), 0))
            .collect::<Vec<_>>();
        assert_eq!(opened.len(), STREAMS);
        registry.end_expired(i64::MAX);
        assert!(opened[0].ended.is_cancelled());
        registry.drain();
        assert!(!opened[0].revoked.is_cancelled(), "what runs may end");
        drop(opened);
        drop(neighbours);
        let hellos = (0..9)
            .map_while(|_| registry.greeting(cluster))
            .collect::<Vec<_>>();
        assert_eq!(hellos.len(), GREETINGS);
        drop(hellos);
        assert!(registry.greeting(cluster).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn s39_whoever_names_many_clusters_does_not_fill_the_memory() {
        let registry = Registry::default();
        let clock = FakeClock::at(1);
        for n in 0..10_000 {
            let mut peer = peer("a");
            peer.cluster = ClusterId::generate(&clock, &SeededRandom::new(n));
            let event = Event {
                peer: Some(peer),
                source: None,
                what: What::CertificateRefused,
                detail: String::new(),
            };
            registry.notes(&event);
        }
        let known = || registry.0.lock().events.len();
        assert!(known() <= TELLERS + 2, "{}", known());
        // Once they have been silent they are forgotten, and nothing that was counted is.
        assert_eq!(registry.counted(true).len(), 1);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(registry.counted(false), []);
        assert_eq!(known(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn s39_counts_of_others_are_written_into_no_tenants_log() {
        let registry = Registry::default();
        let (clock, random) = (FakeClock::at(1), SeededRandom::new(7));
        let event = || Event {
            peer: Some(PeerIdentity {
                tenant: TenantId::generate(&clock, &random),
                cluster: ClusterId::generate(&clock, &random),
                serial: "a".to_owned(),
            }),
            source: None,
            what: What::CertificateRefused,
            detail: String::new(),
        };
        for _ in 0..TELLERS {
            assert_eq!(registry.notes(&event()), Some(0));
        }
        // Beyond them each writes what is its own, and what is only counted is of many tenants.
        let written = (0..40).filter(|_| registry.notes(&event()) == Some(0)).count();
        assert_eq!(written, 24);
        registry.unwritten(3, &event());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(
            registry.notes(&event()),
            Some(0),
            "the others' count is not its own"
        );
        // Nobody's own events take the count with them: both are the platform's.
        let platform = Event {
            peer: None,
            ..event()
        };
        assert_eq!(registry.notes(&platform), Some(16 + 3));
        registry.unwritten(2, &event());
        assert_eq!(registry.counted(true), [(2, platform)]);
    }

    #[tokio::test]
    async fn restarts_are_no_clones_and_alternating_instances_are() {
        let registry = Registry::default();
        let cluster = peer("a").cluster;
        let found: Vec<_> = ["x", "x", "y", "x", "y", "x"]
            .map(|i| registry.takes_turns(cluster, i))
            .into();
        assert_eq!(found, [false, false, false, false, false, true]);
        assert!(!registry.takes_turns(cluster, "z"));
    }
}

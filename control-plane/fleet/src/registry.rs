//! What lives on this replica: sessions and other streams, by cluster.
//!
//! A session is woken when its cluster's desired set changes, and ended when a newer one begins (here or on another
//! replica), when its identity is revoked, or when the replica drains. Bulk and tunnel streams end with a revocation.

use crate::store::Standing;
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_domain::ClusterId;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Why a session is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Superseded,
    Revoked,
    Drain,
}

/// A session's place in the registry.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) peer: PeerIdentity,
    pub(crate) epoch: u64,
    /// The desired set may have changed.
    pub(crate) wake: Notify,
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
    streams: BTreeMap<PeerKey, (PeerIdentity, CancellationToken, usize)>,
    turns: BTreeMap<ClusterId, Turns>,
    /// When sessions ended; milliseconds since the Unix epoch.
    gone: BTreeMap<ClusterId, i64>,
    /// Last heard, not yet written.
    seen: BTreeMap<ClusterId, (PeerIdentity, i64)>,
    draining: bool,
}

type PeerKey = (ClusterId, String);

#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<State>);

/// Instances that take turns this often within [`TURNS_WITHIN`] share an identity. A restart is one turn.
const TURNS: u32 = 4;
const TURNS_WITHIN: std::time::Duration = std::time::Duration::from_secs(300);

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

    /// A token that is cancelled when the peer's certificate is revoked; held for as long as the stream lives.
    pub(crate) fn stream(self: &Arc<Self>, peer: &PeerIdentity) -> StreamGuard {
        let key = (peer.cluster, peer.serial.clone());
        let mut state = self.0.lock();
        let entry = state
            .streams
            .entry(key.clone())
            .or_insert_with(|| (peer.clone(), CancellationToken::new(), 0));
        entry.2 += 1;
        StreamGuard {
            registry: self.clone(),
            key,
            revoked: entry.1.clone(),
        }
    }

    /// Everybody whose standing is worth a look: one entry for each certificate.
    pub(crate) fn peers(&self) -> Vec<PeerIdentity> {
        let state = self.0.lock();
        let mut seen = BTreeSet::new();
        let sessions = state.sessions.values().map(|seat| &seat.peer);
        let streams = state.streams.values().map(|(peer, ..)| peer);
        sessions
            .chain(streams)
            .filter(|peer| seen.insert((peer.cluster, peer.serial.clone())))
            .cloned()
            .collect()
    }

    /// Takes in how a peer stands in the database.
    pub(crate) fn stands(&self, peer: &PeerIdentity, standing: Option<Standing>) {
        let state = self.0.lock();
        let revoked = standing.is_none_or(|standing| standing.revoked);
        if revoked && let Some((_, token, _)) = state.streams.get(&(peer.cluster, peer.serial.clone())) {
            token.cancel();
        }
        let Some(seat) = state.sessions.get(&peer.cluster) else {
            return;
        };
        match standing {
            _ if revoked && seat.peer.serial == peer.serial => seat.end(Reason::Revoked),
            Some(standing) if standing.epoch > seat.epoch => seat.end(Reason::Superseded),
            Some(standing) if standing.revision > seat.read.load(std::sync::atomic::Ordering::Relaxed) => {
                seat.wake.notify_one();
            }
            _ => {}
        }
    }

    /// Ends every session, and lets none begin.
    pub(crate) fn drain(&self) {
        let mut state = self.0.lock();
        state.draining = true;
        for seat in state.sessions.values() {
            seat.end(Reason::Drain);
        }
        for (_, token, _) in state.streams.values() {
            token.cancel();
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
    pub(crate) revoked: CancellationToken,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.registry.0.lock();
        if let Some(entry) = state.streams.get_mut(&self.key) {
            entry.2 -= 1;
            if entry.2 == 0 {
                state.streams.remove(&self.key);
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
        let old = registry.stream(&peer("old"));
        let seat = registry.seat(peer("new"), 1).unwrap();
        let revoked = Standing {
            revision: 0,
            epoch: 1,
            revoked: true,
        };
        registry.stands(&peer("old"), Some(revoked));
        assert!(old.revoked.is_cancelled());
        assert!(!seat.end.is_cancelled());
        registry.stands(&peer("new"), None);
        assert_eq!(seat.reason(), Reason::Revoked);
        drop(old);
        assert_eq!(registry.peers().len(), 1);
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

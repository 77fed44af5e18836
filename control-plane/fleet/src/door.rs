//! Who may come in: shares of handshakes and of connections, so that one address, or one cluster, leaves room for the
//! others (S39, S51).
//!
//! A connection without a certificate can only enrol: it has little time and there are few of them from one address.

use crate::bucket::Bucket;
use parking_lot::Mutex;
use roadstead_domain::ClusterId;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes at once: each is about a millisecond of work, and they must not starve live sessions.
const HANDSHAKES: usize = 64;
/// Of one address; a proxy in front of the port makes many clusters one address.
const HANDSHAKES_EACH: usize = 16;
/// Connections of one address whose handshake is not finished; more are closed at once.
const WAITING_EACH: usize = 128;
/// Connections of one address without a certificate.
const ANONYMOUS_EACH: usize = 32;
/// What a connection without a certificate has for enrolling.
pub(crate) const ANONYMOUS_WITHIN: Duration = Duration::from_secs(30);
/// Connections in all. A cluster agent has three, for a moment more.
const CONNECTIONS: usize = 32_768;
/// Connections of one cluster: session, tunnel, bulk, twice while a certificate is renewed, and what a cut network has
/// left behind.
const CONNECTIONS_EACH: usize = 16;
/// Part of the admission that one address may use.
const SHARE: f64 = 0.25;
/// Addresses remembered before those that were not heard of lately are forgotten.
const SOURCES: usize = 4_096;

/// An address as limits count it: whoever has one address of an IPv6 network has its whole /64.
pub(crate) fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Debug)]
struct Source {
    rate: Bucket,
    waiting: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
}

impl Source {
    fn new(admission: f64) -> Self {
        Self {
            rate: Bucket::new(admission * SHARE, admission),
            waiting: Arc::new(Semaphore::new(WAITING_EACH)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_EACH)),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_EACH)),
        }
    }
}

/// The limits of one port.
#[derive(Debug)]
pub(crate) struct Door {
    admission: f64,
    all: Bucket,
    /// Who waits for it: one, so that a turn wakes one.
    next: tokio::sync::Mutex<()>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    sources: Mutex<BTreeMap<Option<IpAddr>, Arc<Source>>>,
    clusters: Mutex<BTreeMap<ClusterId, Arc<Semaphore>>>,
}

/// A connection's place; dropped with it.
#[derive(Debug)]
pub(crate) struct Place {
    _connection: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
}

/// A connection whose handshake is not done.
#[derive(Debug)]
pub(crate) struct Waiting {
    door: Arc<Door>,
    source: Arc<Source>,
    connection: OwnedSemaphorePermit,
    _waiting: OwnedSemaphorePermit,
}

/// Permission for one handshake.
#[derive(Debug)]
pub(crate) struct Admitted {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Door {
    pub(crate) fn new(admission: f64) -> Arc<Self> {
        Arc::new(Self {
            admission,
            all: Bucket::new(admission, admission),
            next: tokio::sync::Mutex::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            sources: Mutex::default(),
            clusters: Mutex::default(),
        })
    }

    /// A place for a connection that was accepted; `None`: close it.
    pub(crate) fn enter(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Waiting> {
        let source = self.source(source.map(prefix));
        let waiting = source.waiting.clone().try_acquire_owned().ok()?;
        let connection = self.connections.clone().try_acquire_owned().ok()?;
        Some(Waiting {
            door: self.clone(),
            source,
            connection,
            _waiting: waiting,
        })
    }

    fn source(&self, address: Option<IpAddr>) -> Arc<Source> {
        let mut sources = self.sources.lock();
        if sources.len() >= SOURCES && !sources.contains_key(&address) {
            sources.retain(|_, source| Arc::strong_count(source) > 1 || !source.rate.is_full());
        }
        let fresh = || Arc::new(Source::new(self.admission));
        sources.entry(address).or_insert_with(fresh).clone()
    }
}

impl Waiting {
    /// Waits for a turn; the address's own first, so that one address waits for itself alone.
    pub(crate) async fn admitted(&self) -> Option<Admitted> {
        let own = self.source.handshakes.clone().acquire_owned().await.ok()?;
        while let Err(wait) = self.source.rate.take() {
            tokio::time::sleep(wait).await;
        }
        let all = self.door.handshakes.clone().acquire_owned().await.ok()?;
        let next = self.door.next.lock().await;
        while let Err(wait) = self.door.all.take() {
            tokio::time::sleep(wait).await;
        }
        drop(next);
        Some(Admitted { _own: own, _all: all })
    }

    /// The place of the connection once it is known whose it is; `None`: close it.
    pub(crate) fn seated(self, cluster: Option<ClusterId>) -> Option<Place> {
        let shares = match cluster {
            None => self.source.anonymous.clone(),
            Some(cluster) => {
                let mut clusters = self.door.clusters.lock();
                let fresh = || Arc::new(Semaphore::new(CONNECTIONS_EACH));
                clusters.entry(cluster).or_insert_with(fresh).clone()
            }
        };
        Some(Place {
            _connection: self.connection,
            _share: shares.try_acquire_owned().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use roadstead_domain::{FakeClock, SeededRandom};

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[tokio::test]
    async fn s51_one_address_leaves_handshakes_to_the_others() {
        let door = Door::new(200.0);
        let mut held = Vec::new();
        while let Some(waiting) = door.enter(address(1)) {
            held.push(waiting);
        }
        assert_eq!(held.len(), WAITING_EACH);
        let admitted: Vec<_> = held.iter().filter_map(|w| w.admitted().now_or_never()?).collect();
        assert_eq!(admitted.len(), HANDSHAKES_EACH);
        let other = door.enter(address(2)).expect("room for others");
        assert!(other.admitted().now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn s51_connections_of_one_cluster_and_without_a_certificate_are_few() {
        let door = Door::new(200.0);
        let cluster = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(1));
        let seat = |cluster| door.enter(address(1)).expect("room").seated(cluster);
        let own: Vec<_> = (0..40).filter_map(|_| seat(Some(cluster))).collect();
        let nobody: Vec<_> = (0..40).filter_map(|_| seat(None)).collect();
        assert_eq!((own.len(), nobody.len()), (CONNECTIONS_EACH, ANONYMOUS_EACH));
        drop((own, nobody));
        assert!(seat(Some(cluster)).is_some() && seat(None).is_some());
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let parse = |text: &str| prefix(text.parse().expect("an address"));
        assert_eq!(parse("2001:db8:1:2:3:4:5:6"), parse("2001:db8:1:2::1"));
        assert_ne!(parse("2001:db8:1:2::1"), parse("2001:db8:1:3::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    }
}

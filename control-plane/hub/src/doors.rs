//! How many connections there are, and of whom: one client must not take them all.
//!
//! A client is an address, or what a trusted proxy says stands behind it ([`crate::proxy`]). A connection of such a proxy
//! counts as that of the client whose request came last on it; HTTP/1.1 has one at a time, and a stream or a WebSocket
//! keeps the connection to its end.

use crate::proxy::Trusted;
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode};
use roadstead_http::{Problem, turn_away};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// When a client that is refused may try again.
const AGAIN: Duration = Duration::from_secs(5);

/// How many connections there are.
#[derive(Debug)]
pub(crate) struct Doors {
    connections: usize,
    per_client: usize,
    trusted: Trusted,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    clients: HashMap<IpAddr, usize>,
    /// When a refusal was last logged: a flood must not fill the log too.
    told: Option<Instant>,
}

impl Open {
    fn leave(&mut self, client: IpAddr) {
        if let Some(own) = self.clients.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                self.clients.remove(&client);
            }
        }
    }
}

/// One connection's place, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    doors: Arc<Doors>,
    peer: SocketAddr,
    /// Whose it is counted as: the peer's, or that of the client whose request a trusted proxy sent last.
    client: Mutex<Option<IpAddr>>,
}

/// The client has as many connections as one may have.
#[derive(Debug)]
pub(crate) struct Crowded;

impl Crowded {
    pub(crate) fn response(&self, method: &Method, path: &str) -> Response {
        let detail = "this client has as many requests and streams open as one may have";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "LIMIT", detail).retry_after(AGAIN);
        turn_away(method, path, &problem)
    }
}

impl Doors {
    pub(crate) fn new(connections: usize, per_client: usize, trusted: Trusted) -> Self {
        Self {
            connections,
            per_client,
            trusted,
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose share a connection of that address takes; `None` for a trusted proxy, which speaks for many.
    fn share(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.trusted.trusts(address)).then(|| counted(address))
    }

    /// A place for a connection; `None`: close it.
    pub(crate) fn enter(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let client = self.share(peer.ip());
        let mut open = self.lock();
        let full = open.total >= self.connections;
        if full || !self.fits(&open, client) {
            self.tell(&mut open, peer.ip());
            return None;
        }
        open.total += 1;
        if let Some(client) = client {
            *open.clients.entry(client).or_default() += 1;
        }
        Some(Place {
            doors: Arc::clone(self),
            peer,
            client: Mutex::new(client),
        })
    }

    /// Whether one more of the client's does.
    fn fits(&self, open: &Open, client: Option<IpAddr>) -> bool {
        client.is_none_or(|client| {
            let own = open.clients.get(&client).copied().unwrap_or(0);
            own < self.per_client || client.is_loopback()
        })
    }

    fn tell(&self, open: &mut Open, address: IpAddr) {
        let now = Instant::now();
        if open.told.is_none_or(|told| now - told > Duration::from_secs(10)) {
            open.told = Some(now);
            let total = open.total;
            tracing::warn!(%address, total, "there are as many connections as may be; more are refused");
        }
    }
}

impl Place {
    /// Whose request this is: the peer's, or of a trusted proxy the client's whom it names (S25). The connection counts as
    /// that client's from now on: one of many behind a proxy must not take all that the proxy may have.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Result<SocketAddr, Crowded> {
        let client = self.doors.trusted.client(self.peer, headers);
        if !self.doors.trusted.trusts(self.peer.ip()) {
            return Ok(client);
        }
        let share = self.doors.share(client.ip());
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == share {
            return Ok(client);
        }
        let mut open = self.doors.lock();
        if !self.doors.fits(&open, share) {
            self.doors.tell(&mut open, client.ip());
            return Err(Crowded);
        }
        if let Some(before) = std::mem::replace(&mut *current, share) {
            open.leave(before);
        }
        if let Some(now) = share {
            *open.clients.entry(now).or_default() += 1;
        }
        Ok(client)
    }
}

/// Whoever has one address of IPv6 has the 2^64 beside it.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let network = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        other => other,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut open = self.doors.lock();
        open.total -= 1;
        if let Some(client) = client {
            open.leave(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 1)
    }

    fn trusted(networks: &[&str]) -> Trusted {
        Trusted(networks.iter().map(|n| n.parse().expect("a network")).collect())
    }

    fn forwarded(client: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            "x-forwarded-for".parse().expect("a name"),
            client.parse().expect("a value"),
        )])
    }

    #[test]
    fn s29_one_address_does_not_take_all_places() {
        let doors = Arc::new(Doors::new(10, 4, Trusted::default()));
        let enter = |address: &str| doors.enter(peer(address));
        let held: Vec<_> = (0..4).map(|n| enter(&format!("2001:db8::{n}"))).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(enter("2001:db8::ffff:1").is_none(), "the same network");
        let others: Vec<_> = ["2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1"]
            .map(enter)
            .into();
        assert!(others.iter().all(Option::is_some));
        assert_eq!(doors.open.lock().expect("whole").clients.len(), 3);
        drop((held, others));
        let local: Vec<_> = (0..10).map(|_| enter("127.0.0.1")).collect();
        assert!(
            local.iter().all(Option::is_some),
            "programs on this machine may have all"
        );
        assert!(enter("192.0.2.1").is_none());
        drop(local);
        let open = doors.open.lock().expect("whole");
        assert_eq!((open.total, open.clients.len()), (0, 0));
    }

    #[test]
    fn s29_a_trusted_proxy_has_no_share_and_its_clients_have() {
        let doors = Arc::new(Doors::new(10, 2, trusted(&["10.0.0.0/8"])));
        let places: Vec<_> = (0..10).map_while(|_| doors.enter(peer("10.0.0.1"))).collect();
        assert_eq!(places.len(), 10, "all that there are");
        assert!(doors.enter(peer("10.0.0.1")).is_none() && doors.enter(peer("192.0.2.1")).is_none());
        let asks = |n: usize, client: &str| {
            places[n]
                .client(&forwarded(client))
                .map(|client| client.ip().to_string())
        };
        for n in [0, 1] {
            assert_eq!(asks(n, "203.0.113.9").expect("a share"), "203.0.113.9");
        }
        assert!(asks(2, "203.0.113.9").is_err());
        assert!(asks(0, "203.0.113.9").is_ok(), "the same again is no more");
        // Without the header the proxy speaks for itself.
        assert_eq!(
            places[0]
                .client(&HeaderMap::new())
                .expect("no share")
                .ip()
                .to_string(),
            "10.0.0.1"
        );
        assert!(asks(2, "203.0.113.9").is_ok());
        assert_eq!(doors.lock().clients.len(), 1);
        drop(places);
        let open = doors.lock();
        assert_eq!((open.total, open.clients.len()), (0, 0));
    }

    #[test]
    fn s25_a_stranger_counts_as_itself_whatever_it_writes() {
        let doors = Arc::new(Doors::new(10, 2, trusted(&["10.0.0.1"])));
        let places: Vec<_> = (0..10).map_while(|_| doors.enter(peer("192.0.2.1"))).collect();
        assert_eq!(places.len(), 2);
        let client = places[0]
            .client(&forwarded("203.0.113.9"))
            .expect("its own share");
        assert_eq!(client, peer("192.0.2.1"));
        assert!(doors.enter(peer("192.0.2.1")).is_none());
        assert_eq!(
            doors.lock().clients.keys().collect::<Vec<_>>(),
            [&peer("192.0.2.1").ip()]
        );
    }
}

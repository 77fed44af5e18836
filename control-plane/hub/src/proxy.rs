//! Whose request it is when a proxy stands before the hub (S25).
//!
//! The peer's address counts failures of login and goes into audit records. Behind a proxy the peer is the proxy, for
//! everybody. So an operator may name proxies that are trusted; then, and only then, `X-Forwarded-For` is read, from the
//! right: the rightmost address that is no trusted proxy's is the client, since everything left of it the client wrote
//! itself. From any other peer the header means nothing.

use http::HeaderMap;
use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// An address, or a network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a network (10.0.0.0/8, fd00::/8), found {0:?}")]
pub(crate) struct NoNetwork(String);

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let wrong = || NoNetwork(text.chars().take(80).collect());
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(|_| wrong())?)),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        // Nobody means the whole world, and whoever writes it trusts everybody's header.
        if prefix > bits || prefix == 0 {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl Network {
    fn contains(self, other: IpAddr) -> bool {
        let wide = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((own, own_v4), (other, other_v4)) = (wide(self.address), wide(other.to_canonical()));
        let mask = u128::MAX << (128 - self.prefix);
        own_v4 == other_v4 && own & mask == other & mask
    }
}

/// The proxies whose word counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trusted(pub(crate) Arc<[Network]>);

impl Trusted {
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(ip))
    }

    /// Whose request it is that `peer` sent with these headers. The port is 0 where a proxy sent it: that is its own
    /// business.
    pub(crate) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        let values = headers.get_all(FORWARDED_FOR).iter();
        let values: Vec<&str> = values
            .map(|value| value.to_str().unwrap_or("unreadable"))
            .collect();
        let client = self.behind(peer.ip(), values.into_iter());
        if client == peer.ip() {
            peer
        } else {
            SocketAddr::new(client, 0)
        }
    }

    /// The client of a request that `peer` sent with these values of the header, in order.
    fn behind<'a>(&self, peer: IpAddr, headers: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        for hop in headers.flat_map(|value| value.split(',')).rev() {
            // A hop that is no address ends the chain: what is left of it cannot be placed.
            let Some(ip) = address(hop.trim()) else { break };
            client = ip;
            if !self.trusts(ip) {
                break;
            }
        }
        client
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let ip = text.parse().ok();
    let ip = ip.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(networks: &[&str]) -> Trusted {
        Trusted(networks.iter().map(|n| n.parse().unwrap()).collect())
    }

    fn client(trusted: &Trusted, peer: &str, header: &[&str]) -> String {
        let peer = peer.parse().unwrap();
        trusted.behind(peer, header.iter().copied()).to_string()
    }

    #[test]
    fn networks_hold_what_they_say() {
        let net = |text: &str| text.parse::<Network>();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0/8").unwrap().contains(ip("10.255.0.1")));
        assert!(net("10.0.0.0/8").unwrap().contains(ip("::ffff:10.1.2.3")));
        assert!(!net("10.0.0.0/8").unwrap().contains(ip("11.0.0.1")));
        assert!(net("192.0.2.1").unwrap().contains(ip("192.0.2.1")));
        assert!(!net("192.0.2.1").unwrap().contains(ip("192.0.2.2")));
        assert!(net("fd00::/8").unwrap().contains(ip("fd12::1")));
        assert!(!net("fd00::/8").unwrap().contains(ip("10.0.0.1")));
        for wrong in [
            "",
            "10.0.0.0/33",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/x",
            "proxy.example",
        ] {
            net(wrong).unwrap_err();
        }
    }

    #[test]
    fn s25_a_stranger_changes_nothing_by_a_header() {
        let nobody = trusted(&[]);
        assert_eq!(client(&nobody, "192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        let proxy = trusted(&["10.0.0.1"]);
        assert_eq!(client(&proxy, "192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
    }

    #[test]
    fn s25_behind_a_trusted_proxy_the_rightmost_stranger_is_the_client() {
        let proxies = trusted(&["10.0.0.0/8"]);
        // The client wrote the first one itself.
        let forged = ["198.51.100.1, 203.0.113.9", "10.0.0.2"];
        assert_eq!(client(&proxies, "10.0.0.1", &forged), "203.0.113.9");
        assert_eq!(client(&proxies, "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client(&proxies, "10.0.0.1", &["10.0.0.3"]), "10.0.0.3");
        assert_eq!(
            client(&proxies, "10.0.0.1", &["203.0.113.9, unknown"]),
            "10.0.0.1"
        );
        assert_eq!(client(&proxies, "10.0.0.1", &["[2001:db8::1]:99"]), "2001:db8::1");
    }
}

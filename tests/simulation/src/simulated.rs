//! The simulated network: the shipped code over turmoil, with its time, its faults and its seed.

use async_trait::async_trait;
use roadstead_fleet::Listen;
use roadstead_link::Dial;
use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};
use turmoil::net::{TcpListener, TcpStream};

/// Where every simulation's time of day begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: i64 = 1_767_225_600_000;

/// The simulation's time of day.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimulatedClock;

fn now_ms() -> i64 {
    at(turmoil::sim_elapsed().unwrap_or_default())
}

/// The hosts' clock after so long; who is no host has none.
pub(crate) fn at(elapsed: std::time::Duration) -> i64 {
    EPOCH_MS + i64::try_from(elapsed.as_millis()).expect("a simulation of minutes")
}

impl roadstead_domain::Clock for SimulatedClock {
    fn now_ms(&self) -> i64 {
        now_ms()
    }
}

impl roadstead_link::Clock for SimulatedClock {
    fn now_ms(&self) -> i64 {
        now_ms()
    }
}

/// A sequence of numbers by seed (SplitMix64).
#[derive(Debug)]
pub struct Seeded(AtomicU64);

impl Seeded {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number below `limit`.
    ///
    /// # Panics
    /// For a limit of 0.
    #[must_use]
    pub fn below(&self, limit: u64) -> u64 {
        roadstead_link::Random::next(self) % limit
    }

    /// `true` in `percent` of a hundred cases.
    #[must_use]
    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

impl roadstead_link::Random for Seeded {
    fn next(&self) -> u64 {
        let mut x = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

impl roadstead_domain::Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = roadstead_link::Random::next(self).to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
    }
}

/// Dials one of several hub replicas, by turns of the seed.
#[derive(Debug)]
pub struct SimulatedDial {
    pub hubs: Vec<String>,
    pub random: std::sync::Arc<Seeded>,
}

#[async_trait]
impl Dial for SimulatedDial {
    async fn dial(&self, _: &str) -> io::Result<Box<dyn roadstead_link::Io>> {
        let hub = self.random.below(self.hubs.len() as u64) as usize;
        let stream = TcpStream::connect((self.hubs[hub].as_str(), PORT)).await?;
        Ok(Box::new(stream))
    }
}

/// The hubs' port.
pub const PORT: u16 = 8443;

/// Listens in the simulation.
#[derive(Debug)]
pub struct SimulatedListener(TcpListenerBox);

/// turmoil's listener has no `Debug`.
struct TcpListenerBox(TcpListener);

impl std::fmt::Debug for TcpListenerBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TcpListener")
    }
}

impl SimulatedListener {
    /// Binds [`PORT`] of this host.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn bind() -> io::Result<Self> {
        Ok(Self(TcpListenerBox(TcpListener::bind(("0.0.0.0", PORT)).await?)))
    }
}

#[async_trait]
impl Listen for SimulatedListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn roadstead_fleet::Io>, Option<SocketAddr>)> {
        let (stream, address) = self.0.0.accept().await?;
        Ok((Box::new(stream), Some(address)))
    }
}

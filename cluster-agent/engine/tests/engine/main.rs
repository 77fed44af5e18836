//! The real process, spoken to as its runtime and its callers do.

mod auth;
mod crash;
mod frames;
mod hidden;
mod peers;
mod support;
mod v03;
mod wire;

//! One agent's runtime: the conversation loop and its A2A server.
//!
//! `a2a` (edge) → `tasks` → `turn` (the loop) → {[`model`], [`tools`]}; beneath them the `journal`, beside them the
//! running revision and the outbox of run records. See docs/engine.md for the shape and what each part promises.

pub mod a2a;
pub mod alone;
pub mod auth;
pub mod clock;
pub mod control;
pub mod engine;
pub mod journal;
pub mod model;
mod observe;
pub mod peers;
pub mod revision;
pub mod secrets;
pub mod services;
mod spent;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod tools;
mod turn;

//! One agent's runtime: the conversation loop and its A2A server.
//!
//! `a2a` (edge) → `tasks` → `turn` (the loop) → {[`model`], [`tools`]}; beneath them the `journal`, beside them the
//! running revision and the outbox of run records. See docs/engine.md for the shape and what each part promises.

pub mod model;
pub mod secrets;
pub mod tools;

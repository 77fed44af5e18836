//! What hub and cluster side say to each other, and the only crate that both may use.
//!
//! * [`documents`]: the kinds people write (`Agent`, `Model`, `ToolServer`, `Prompt`), their schema and validation.
//! * [`bundle`]: one agent with everything it refers to: what an engine runs.
//! * [`call`]: the claims with which the hub calls an engine.
//! * [`control`]: the frames between a runtime and the engine it started.
//! * [`logs`]: an engine's log, as the hub reads it.
//! * [`numbers`]: numbers that went through A2A's doubles.
//! * [`run`]: the run record, content-free.
//! * [`fleet`]: the generated messages and services of the hub ↔ cluster agent protocol.

pub mod bundle;
pub mod call;
pub mod control;
pub mod documents;
pub mod fleet;
pub mod logs;
pub mod numbers;
pub mod run;

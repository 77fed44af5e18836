//! Faults of real processes that an operator would run apart: hub, cluster agent, engines, PostgreSQL, model server.

mod away;
mod database;
mod escape;
mod kill;
mod models;
mod roots;
mod strangers;
mod trace;

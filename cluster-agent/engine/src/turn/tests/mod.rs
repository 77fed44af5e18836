//! The loop with scripted models and tools, through [`crate::tasks`] and a real journal.

mod answers;
mod approvals;
mod attacks;
mod basics;
mod limits;
mod models;
mod questions;
mod restarts;
mod results;
mod sizes;
mod tools;

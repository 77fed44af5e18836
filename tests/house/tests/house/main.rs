//! The house rules, as tests: what lies where, who may name what, and what the committed lists say.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be read fails the test"
)]

mod examples;
mod generated;
mod layout;
mod manifests;
mod supply_chain;

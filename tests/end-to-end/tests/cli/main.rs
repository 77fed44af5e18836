//! The CLI against the real hub: every verb, a person at a terminal, and the first minute with `roadstead-hub dev`.

mod first;
mod laptop;
mod lost;
mod operator;
mod restart;
mod restored;
mod revoked;
mod terminal;
mod verbs;

use std::time::Duration;

/// For what takes a moment on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The folder of the examples' tool servers; `None`, said aloud, where the tests' tools are not installed.
fn tools() -> Option<String> {
    let tools = std::env::var("ROADSTEAD_TEST_TOOLS").ok();
    if tools.is_none() {
        assert!(
            std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
            "ROADSTEAD_TEST_TOOLS is not set"
        );
        eprintln!("skipped: the examples' tool servers are not installed (make test-tools)");
    }
    tools
}

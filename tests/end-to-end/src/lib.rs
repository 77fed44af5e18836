//! Real processes for the end-to-end, fault and benchmark tests: the binaries of this workspace, started as a user
//! would start them, each in a private folder on free loopback ports, and gone when their guard is dropped.

pub mod apart;
pub mod ask;
pub mod callers;
pub mod cli;
pub mod counter;
pub mod database;
pub mod dev;
pub mod disk;
pub mod processes;
pub mod random;
pub mod returns;
pub mod rotel;
pub mod stdio_server;
pub mod wait;

use std::path::PathBuf;

/// The path of one of this workspace's binaries, built beside the running test or program.
///
/// # Panics
/// When it was not built: `cargo test` builds a package's binaries for that package's tests alone.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("ROADSTEAD_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let own = std::env::current_exe().expect("a running program has a path");
            let folder = own.parent().expect("a program is in a folder");
            // Tests run in <profile>/deps, programs in <profile>.
            match folder.parent() {
                Some(profile) if folder.ends_with("deps") => profile.to_owned(),
                _ => folder.to_owned(),
            }
        });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{name} is not built: run `cargo build --workspace --bins` first (`make test` does)"
    );
    path
}

/// The folder of the examples' tool servers; `None`, said aloud, where the tests' tools are not installed.
///
/// # Panics
/// In a complete run (`make test`), which must not pass without them.
#[must_use]
pub fn tools() -> Option<String> {
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

/// `PATH` with the examples' tool servers first.
fn tools_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::var("ROADSTEAD_TEST_TOOLS").map_or(path.clone(), |tools| format!("{tools}:{path}"))
}

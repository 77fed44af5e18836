//! What the tests of the repository itself read: tracked files, manifests, security statements, advisories.
//!
//! The rules live in `tests/house/`, as tables; this library only finds facts. It reads what git tracks, so a
//! developer's scratch files do not matter, and a new file matters once it is added.

pub mod advisories;
pub mod licences;
pub mod manifests;
pub mod statements;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The repository's top folder.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("this crate lies two folders below the top")
        .to_path_buf()
}

/// Paths of tracked files, relative to the top, that end in one of `endings` (all files for an empty list) and exist.
///
/// # Errors
/// git is missing, or this is no git repository.
pub fn tracked(endings: &[&str]) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .context("git could not be started; the house tests read what it tracks")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listed = String::from_utf8(output.stdout).context("a tracked path is not UTF-8")?;
    let wanted = |path: &str| endings.is_empty() || endings.iter().any(|e| path.ends_with(e));
    Ok(listed
        .split_terminator('\0')
        .filter(|path| wanted(path) && root().join(path).is_file())
        .map(str::to_owned)
        .collect())
}

/// The text of a file given relative to the top; `None` for a file that is not UTF-8.
///
/// # Errors
/// The file cannot be read.
pub fn text(path: &str) -> anyhow::Result<Option<String>> {
    let bytes = std::fs::read(root().join(path)).with_context(|| format!("cannot read {path}"))?;
    Ok(String::from_utf8(bytes).ok())
}

/// What a cargo command prints, without using the network.
///
/// # Errors
/// The command fails.
pub fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "cargo {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

//! The state folder of dev: one user's, used by one process at a time.

use crate::{keys, lock};
use anyhow::Context as _;
use std::{
    fs,
    path::{Path, PathBuf},
};

const LOCK: &str = "dev.lock";
const DATABASE: &str = "hub.db";

/// The open folder; the lock is held while it lives.
#[derive(Debug)]
pub(crate) struct State {
    folder: PathBuf,
    _lock: fs::File,
}

impl State {
    /// Makes the folder for this user alone, and locks it.
    ///
    /// # Errors
    /// When it cannot be made, is open to others, holds a database of somebody else, or another dev runs in it.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        keys::folder(folder)?;
        let folder = folder.canonicalize()?;
        refuse_foreign(&folder)?;
        let lock = fs::File::create(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                anyhow::bail!(
                    "another `roadstead-hub dev` runs in {}: stop it, or use --state",
                    folder.display()
                )
            }
            Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| folder.display().to_string()),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.join(DATABASE)
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// The cluster agent's own folder.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.folder.join("cluster")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// Whether the cluster agent has its identity already.
    pub(crate) fn joined(&self) -> bool {
        roadstead_agent::joined(&self.cluster())
    }

    /// Where the demo model served last.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn demo_port(&self) -> anyhow::Result<Option<u16>> {
        match fs::read_to_string(self.folder.join("demo-port")) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("the demo model's port"),
        }
    }

    /// Keeps that for the next start.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep_demo_port(&self, port: u16) -> anyhow::Result<()> {
        super::context::replace(&self.folder.join("demo-port"), port.to_string().as_bytes())
    }

    /// The token that was kept; `None` at the first start.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn token(&self) -> anyhow::Result<Option<String>> {
        match fs::read_to_string(self.token_file()) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("the token of the dev context"),
        }
    }

    /// Keeps a token for the next start and for the CLI.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep_token(&self, token: &str) -> anyhow::Result<()> {
        super::context::replace(&self.token_file(), token.as_bytes())
    }
}

/// A database that `serve` used last, or that was there before dev ever was, is not dev's to take over.
fn refuse_foreign(folder: &Path) -> anyhow::Result<()> {
    let database = folder.join(DATABASE);
    if !database.exists() {
        return Ok(());
    }
    let owner = lock::last_user(&database);
    let ours = match owner.as_deref() {
        Some(owner) => owner == super::DEV,
        None => folder.join(LOCK).exists(),
    };
    anyhow::ensure!(
        ours,
        "{} was not made by dev ({}): use another --state, or `roadstead-hub serve`",
        database.display(),
        owner.map_or("it has no dev.lock beside it".to_owned(), |owner| format!(
            "`roadstead-hub {owner}` used it last"
        ))
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dev_at_a_time() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("state");
        let first = State::open(&folder)?;
        let error = State::open(&folder).unwrap_err().to_string();
        assert!(error.contains("another `roadstead-hub dev` runs"), "{error}");
        drop(first);
        State::open(&folder)?;
        Ok(())
    }

    #[test]
    fn a_database_of_serve_is_left_alone() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("state");
        drop(State::open(&folder)?);
        fs::write(folder.join("hub.db"), "")?;
        drop(State::open(&folder)?);
        drop(lock::take(&folder.join("hub.db"), "serve")?);
        let error = State::open(&folder).unwrap_err().to_string();
        assert!(error.contains("`roadstead-hub serve` used it last"), "{error}");
        drop(lock::take(&folder.join("hub.db"), super::super::DEV)?);
        State::open(&folder)?;

        let other = root.path().join("other");
        keys::folder(&other)?;
        fs::write(other.join("hub.db"), "")?;
        let error = State::open(&other).unwrap_err().to_string();
        assert!(error.contains("was not made by dev"), "{error}");
        assert!(!other.join("dev.lock").exists(), "nothing is left behind");
        Ok(())
    }

    #[test]
    fn a_kept_token_is_read_again() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let state = State::open(&root.path().join("state"))?;
        assert_eq!(state.token()?, None);
        state.keep_token("rst_x")?;
        assert_eq!(state.token()?.as_deref(), Some("rst_x"));
        Ok(())
    }
}

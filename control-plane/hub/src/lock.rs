//! One hub at a time on a SQLite file: it has one writer, and hints of changes stay inside one process.

use anyhow::Context as _;
use std::{
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Held while the hub runs; the operating system gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: fs::File,
}

/// The file of a `sqlite:` URL; `None` for a server's.
pub(crate) fn database_file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?.trim_start_matches("//");
    Some(PathBuf::from(path.split('?').next().unwrap_or_default()))
}

fn beside(database: &Path) -> PathBuf {
    let mut path = database.to_owned().into_os_string();
    path.push(".lock");
    path.into()
}

/// Takes the lock of the database; `who` (`serve`, `dev`) is told to whoever finds it taken, and stays in the file.
///
/// # Errors
/// When another hub has it.
pub(crate) fn take(database: &Path, who: &str) -> anyhow::Result<Lock> {
    let path = beside(database);
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            std::io::Write::write_all(&mut file, who.as_bytes())?;
            Ok(Lock { _file: file })
        }
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            anyhow::bail!(
                "another `roadstead-hub {holder}` uses {}: stop it first, or use another database",
                database.display()
            )
        }
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Who used the database last: `serve`, `dev`, or nobody that left a word.
pub(crate) fn last_user(database: &Path) -> Option<String> {
    fs::read_to_string(beside(database))
        .ok()
        .filter(|who| !who.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hub_at_a_time_and_the_next_one_after_it() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let database = folder.path().join("hub.db");
        assert_eq!(last_user(&database), None);
        let held = take(&database, "serve")?;
        let refused = take(&database, "dev").unwrap_err().to_string();
        assert!(
            refused.contains("another `roadstead-hub serve` uses"),
            "{refused}"
        );
        drop(held);
        assert_eq!(last_user(&database).as_deref(), Some("serve"));
        take(&database, "dev")?;
        assert_eq!(last_user(&database).as_deref(), Some("dev"));
        Ok(())
    }

    #[test]
    fn the_file_of_a_url() {
        assert_eq!(database_file("sqlite:/a/b.db?mode=rwc"), Some("/a/b.db".into()));
        assert_eq!(database_file("sqlite://b.db"), Some("b.db".into()));
        assert_eq!(database_file("postgres://h/d"), None);
    }
}

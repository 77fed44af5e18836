//! A small disk of the test's own, to fill up.

use anyhow::Context as _;
use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

const BALLAST: &str = "ballast";

/// A mounted `tmpfs`, which is a real file system with an end. Gone when dropped, so it must outlive what uses it.
#[derive(Debug)]
pub struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// One of so many MiB that belongs to `owner` (a user's number); `None`, said aloud, where mounting is refused.
    ///
    /// # Errors
    /// When no folder can be made.
    ///
    /// # Panics
    /// In a complete run (`make test`), which must not pass without it.
    pub fn small(mebibytes: u32, owner: u32) -> anyhow::Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("roadstead-disk").tempdir()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mebibytes}m,mode=0700,uid={owner}"))
            .arg("roadstead-test")
            .arg(folder.path())
            .output()
            .context("mount")?;
        if mounted.status.success() {
            return Ok(Some(Self { folder }));
        }
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        assert!(
            std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
            "a complete run needs to mount a small tmpfs for the test of a full disk, as root with CAP_SYS_ADMIN: {why}"
        );
        eprintln!("skipped: a small disk cannot be mounted here: {why}");
        Ok(None)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join(BALLAST)
    }

    /// Leaves so many bytes free.
    ///
    /// # Errors
    /// When the ballast cannot be written for another reason than that there is no room.
    pub fn fill(&self, free: u64) -> anyhow::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.ballast())?;
        let block = [0_u8; 4096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => {
                    let length = file.metadata()?.len();
                    return Ok(file.set_len(length.saturating_sub(free))?);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the ballast away.
    ///
    /// # Errors
    /// When there is none.
    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazy: whoever still has a file open there loses the name, and the memory goes with the last of them.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is left mounted", self.path().display());
        }
    }
}

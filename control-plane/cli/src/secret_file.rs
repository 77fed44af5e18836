//! A new file for a secret that is shown once.

use crate::failure::{Exit, Failure, Outcome};
use secrecy::{ExposeSecret as _, SecretString};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The file, made before the secret is asked for, so that none is lost for want of a place. It goes again unless it is
/// written.
#[derive(Debug)]
pub(crate) struct SecretFile {
    path: PathBuf,
    file: Option<File>,
}

impl SecretFile {
    /// Makes the file, for its owner alone.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub(crate) fn new(path: &Path) -> Outcome<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let file = options.open(path).map_err(|error| {
            let failure = |what: &str| Failure::new(Exit::Failed, format!("{} {what}", path.display()));
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    failure("is there already").next("name a file that is not there: --token-file FILE")
                }
                _ => failure(&format!("cannot be made: {error}"))
                    .next("name a file in a folder that you may write"),
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
        })
    }

    /// Writes the secret, which keeps the file.
    ///
    /// # Errors
    /// The disk refuses; the file goes again.
    pub(crate) fn write(mut self, secret: &SecretString) -> Outcome<PathBuf> {
        if let Some(mut file) = self.file.take() {
            let written = file.write_all(secret.expose_secret().as_bytes());
            if let Err(error) = written.and_then(|()| file.sync_all()) {
                self.file = Some(file);
                let message = format!("{} cannot be written: {error}", self.path.display());
                return Err(Failure::new(Exit::Failed, message)
                    .next("the token is lost: revoke it or make another, into a file on a disk with room"));
            }
        }
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // An empty file that stays does no harm beyond being in the way.
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_written_for_its_owner_into_a_new_file_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        drop(SecretFile::new(&path).unwrap());
        assert!(!path.exists(), "a file that was not written goes again");
        let file = SecretFile::new(&path).unwrap();
        assert_eq!(file.write(&SecretString::from("s")).unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "s");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(
            SecretFile::new(&path)
                .unwrap_err()
                .message
                .contains("is there already")
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "s");
    }
}

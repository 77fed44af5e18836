//! The hub's own keys, in one folder that only the hub reads: the fleet's certificate authority and the key that
//! signs the tokens for engines. Replicas share the folder (a mounted secret).

use anyhow::Context as _;
use roadstead_gateway::EngineKeys;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

const ENGINE_KEY: &str = "engine-key.pem";
/// Keys that signed before and are still announced: `engine-key.*.retired.pem`.
const RETIRED: &str = ".retired.pem";

/// Makes the folder for this user alone; refuses one that others may enter.
///
/// # Errors
/// When the folder cannot be made, or is open to others.
pub(crate) fn folder(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| path.display().to_string())?;
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    anyhow::ensure!(
        mode & 0o077 == 0,
        "{} holds private keys: expected mode 0700, found {mode:o} (chmod 700 it)",
        path.display()
    );
    Ok(())
}

/// The keys for engines' tokens: read from the folder, made there at the first start.
///
/// # Errors
/// When a file cannot be read or written, or holds no Ed25519 key.
pub(crate) fn engine_keys(folder: &Path, issuer: &str) -> anyhow::Result<EngineKeys> {
    let file = folder.join(ENGINE_KEY);
    let current = match fs::read_to_string(&file) {
        Ok(pem) => pem,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(&file)?,
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    let keys = EngineKeys::new(issuer.to_owned(), &current, &retired(folder)?);
    keys.with_context(|| format!("{} or a retired key beside it", file.display()))
}

fn make(file: &Path) -> anyhow::Result<String> {
    let pem = EngineKeys::generate_pem()?;
    let mut new = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    new.write_all(pem.as_bytes())?;
    new.sync_all()?;
    Ok(pem)
}

fn retired(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut pems = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_str().is_some_and(|p| p.ends_with(RETIRED)) {
            pems.push(fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        }
    }
    Ok(pems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_private() -> anyhow::Result<()> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let root = tempfile::tempdir()?;
        let keys = root.path().join("keys");
        folder(&keys)?;
        let first = engine_keys(&keys, "https://hub.test")?.jwks();
        assert_eq!(engine_keys(&keys, "https://hub.test")?.jwks(), first);
        assert_eq!(
            fs::metadata(keys.join(ENGINE_KEY))?.permissions().mode() & 0o777,
            0o600
        );
        Ok(())
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let keys = root.path().join("keys");
        fs::create_dir(&keys)?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o755))?;
        let error = folder(&keys).unwrap_err().to_string();
        assert!(error.contains("expected mode 0700, found 755"), "{error}");
        Ok(())
    }
}

//! Secrets that the hub shows once: into a file, or onto standard output with a warning. Never anywhere else.

use crate::{
    args::Format,
    failure::{Exit, Failure, Outcome},
    render,
    secret_file::SecretFile,
    shell::Shell,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use std::{io::Write as _, path::PathBuf};

/// Where the secret went.
pub(super) struct Kept<'a> {
    /// The secret itself, where no file took it.
    pub(super) secret: Option<&'a str>,
    pub(super) file: Option<String>,
}

/// Writes the secret into its file, else to standard output: alone on its line, so that it can be piped. With JSON or
/// YAML `value` is written.
///
/// # Errors
/// The file or the output refuses.
pub(super) fn hand_over(
    secret: &SecretString,
    file: Option<SecretFile>,
    format: Format,
    shell: &mut Shell,
    value: impl FnOnce(&Kept<'_>) -> Value,
) -> Outcome<Option<PathBuf>> {
    let path = file.map(|file| file.write(secret)).transpose()?;
    if path.is_none() {
        writeln!(
            shell.err,
            "warning: this is a secret and is shown this once: keep it in a file of mode 0600 (--token-file writes \
             one), never on a command line"
        )?;
    }
    let kept = Kept {
        secret: path.is_none().then(|| secret.expose_secret()),
        file: path.as_ref().map(|path| path.display().to_string()),
    };
    match (format, &kept.secret) {
        (Format::Table, Some(secret)) => shell.say(&format!("{secret}\n"))?,
        (Format::Table, None) => {
            let file = kept.file.clone().unwrap_or_default();
            shell.say(&format!("token in {file}\n"))?;
        }
        _ => render::value(shell, format, &value(&kept))?,
    }
    Ok(path)
}

/// An answer without object and without errors.
pub(super) fn neither_yes_nor_no() -> Failure {
    Failure::new(Exit::Failed, "the hub says neither yes nor no")
        .next("use a CLI and a hub of the same version")
}

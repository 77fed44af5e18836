//! The file with the contexts: which server, as whom.
//!
//! It may hold tokens, so it is refused when others may read it, written by a rename, and never shown.

use crate::{
    failure::{Exit, Failure, Outcome},
    shell::Shell,
};
use roadstead_contract::documents::Name;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Longest configuration or token file, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;

/// All of the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The context used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<Context>,
}

/// A server and how to use it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub name: String,
    /// Base URL: `https`, or `http` on a loopback address.
    pub server: String,
    /// `http` to other machines too: the token crosses the network in the clear.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
    pub tenant: Name,
    pub project: Name,
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
    pub token: Option<SecretString>,
    /// A file that holds the token alone; read at each use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn exposed<S: Serializer>(token: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match token {
        Some(token) => serializer.serialize_str(token.expose_secret()),
        None => serializer.serialize_none(),
    }
}

/// Where the file is, whether or not it exists.
///
/// # Errors
/// No variable says where the user's folder is.
pub fn path(shell: &Shell) -> Outcome<PathBuf> {
    if let Some(path) = shell.env("ROADSTEAD_CONFIG") {
        return Ok(path.into());
    }
    let folder = if cfg!(windows) {
        shell.env("APPDATA").map(PathBuf::from)
    } else {
        // Relative paths are ignored: XDG Base Directory Specification 0.8.
        let xdg = shell
            .env("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute());
        xdg.or_else(|| shell.env("HOME").map(|home| Path::new(home).join(".config")))
    };
    folder
        .map(|folder| folder.join("roadstead").join("config.toml"))
        .ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                "there is no folder for the configuration: HOME is not set",
            )
            .next("set ROADSTEAD_CONFIG to a file")
        })
}

impl Config {
    /// Reads the file; empty where there is none.
    ///
    /// # Errors
    /// Not readable, readable by others, or not what docs/cli.md says. The content is not repeated.
    pub fn load(path: &Path) -> Outcome<Self> {
        let Some(text) = read_private(path)? else {
            return Ok(Self::default());
        };
        toml::from_str(text.expose_secret()).map_err(|error| {
            // The library's own rendering quotes the line, which may be the token's.
            let line = error.span().map_or(1, |span| {
                text.expose_secret()[..span.start].matches('\n').count() + 1
            });
            let what = format!("{}:{line}: {}", path.display(), error.message());
            Failure::new(Exit::Invalid, what).next("correct the file; docs/cli.md shows one")
        })
    }

    /// Writes the file: beside itself first, then renamed, readable by its owner alone.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn save(&self, path: &Path) -> Outcome<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(
                Exit::Failed,
                format!("{} cannot be written: {error}", path.display()),
            )
            .next("make its folder writable, or set ROADSTEAD_CONFIG to another file")
        };
        let text = SecretString::from(toml::to_string(self).map_err(|e| failed(&e))?);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        // Made with mode 0600 by the library.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| failed(&e))?;
        file.write_all(text.expose_secret().as_bytes())
            .map_err(|e| failed(&e))?;
        file.as_file().sync_all().map_err(|e| failed(&e))?;
        file.persist(path).map_err(|e| failed(&e))?;
        Ok(())
    }

    /// The context of that name, else the current one, else the only one.
    ///
    /// # Errors
    /// None fits; says how to make one.
    pub fn context(&self, name: Option<&str>, path: &Path) -> Outcome<&Context> {
        let only = || match self.contexts.as_slice() {
            [one] => Some(one.name.as_str()),
            _ => None,
        };
        let wanted = name.or(self.current.as_deref()).or_else(only);
        let found = wanted.and_then(|wanted| self.contexts.iter().find(|c| c.name == wanted));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.contexts.iter().map(|c| c.name.as_str()).collect();
            let (message, next) = match wanted {
                Some(wanted) if names.is_empty() => {
                    (format!("there is no context {wanted:?}"), START.to_owned())
                }
                Some(wanted) => {
                    let message = format!("there is no context {wanted:?} in {}", path.display());
                    (
                        message,
                        format!("use one of {}: roadstead context use NAME", names.join(", ")),
                    )
                }
                None if names.is_empty() => (
                    format!("no hub is known: {} does not exist or is empty", path.display()),
                    START.to_owned(),
                ),
                None => (
                    "no context is current".to_owned(),
                    format!("roadstead context use {}", names.join("|")),
                ),
            };
            Failure::new(Exit::Usage, message).next(next)
        })
    }
}

const START: &str = "start one with `roadstead-hub dev`, which writes a context, or `roadstead context add NAME \
                     --server URL --tenant TENANT`";

impl Context {
    /// The bearer token.
    ///
    /// # Errors
    /// There is none, or its file is not readable, or readable by others.
    pub fn bearer(&self) -> Outcome<SecretString> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => read_private(file)?.ok_or_else(|| {
                Failure::new(
                    Exit::Forbidden,
                    format!("the token file {} does not exist", file.display()),
                )
                .next(format!(
                    "write it again (`roadstead-hub dev` writes its own when it starts), or: roadstead context add {}",
                    self.name
                ))
            })?,
            (None, None) => {
                return Err(Failure::new(
                    Exit::Forbidden,
                    format!("the context {:?} has no token", self.name),
                )
                .next("add one: roadstead context add, with the token on standard input"));
            }
        };
        let token = text.expose_secret().trim();
        if token.is_empty() || !token.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(Failure::new(
                Exit::Forbidden,
                format!(
                    "the token of the context {:?} is empty or has other characters than a token",
                    self.name
                ),
            )
            .next("add it again: roadstead context add, with the token on standard input"));
        }
        Ok(SecretString::from(token))
    }
}

/// A file's text; `None` if there is no such file.
fn read_private(path: &Path) -> Outcome<Option<SecretString>> {
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Failed,
            format!("{} cannot be read: {error}", path.display()),
        )
        .next("make it readable by you alone (chmod 600), or set ROADSTEAD_CONFIG to another file")
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            let message = format!(
                "{} may be read by others (mode {:03o})",
                path.display(),
                mode & 0o777
            );
            return Err(Failure::new(Exit::Forbidden, message).next(format!("chmod 600 {}", path.display())));
        }
    }
    let mut text = String::new();
    file.take(MAX_CONFIG).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(SecretString::from(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const TEXT: &str = "current = \"dev\"\n[[contexts]]\nname = \"dev\"\nserver = \"http://127.0.0.1:8080\"\n\
                        tenant = \"local\"\nproject = \"default\"\ntoken = \"rst_secret\"\n";

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_file_is_read_and_written_for_its_owner_alone() {
        let (_folder, path) = file(TEXT, 0o600);
        let config = Config::load(&path).unwrap();
        let context = config.context(None, &path).unwrap();
        assert_eq!(context.bearer().unwrap().expose_secret(), "rst_secret");
        config.save(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            std::fs::read_to_string(&path)
                .unwrap()
                .matches("rst_secret")
                .count(),
            1
        );
        assert!(!format!("{config:?}").contains("rst_secret"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let (_folder, path) = file(TEXT, 0o640);
        assert_eq!(Config::load(&path).unwrap_err().exit, Exit::Forbidden);
    }

    #[test]
    fn a_bad_file_is_named_by_its_line_and_not_repeated() {
        let (_folder, path) = file(&TEXT.replace("tenant", "tennant"), 0o600);
        let failure = Config::load(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.contains("tennant"), "{failure}");
        let (_folder, path) = file(&TEXT.replace("\"rst_secret\"", "rst_secret"), 0o600);
        let failure = Config::load(&path).unwrap_err();
        assert!(failure.message.contains(":7:"), "{failure}");
        assert!(!failure.message.contains("rst_secret"), "{failure}");
    }

    #[test]
    fn without_a_context_the_way_to_one_is_said() {
        let none = Config::default();
        let failure = none.context(None, Path::new("x")).unwrap_err();
        assert!(failure.next.unwrap().contains("roadstead-hub dev"));
    }
}

//! The CLI's context that dev writes, so that the very next `roadstead get agents` works. Its form: docs/cli.md.

use anyhow::{Context as _, bail};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// The context's name.
pub(crate) const NAME: &str = "dev";

/// What the CLI needs to reach this hub.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) server: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) project: &'a str,
    /// A file of mode 0600 that holds the API token alone.
    pub(crate) token_file: &'a Path,
}

/// `$ROADSTEAD_CONFIG`, else `$XDG_CONFIG_HOME/roadstead/config.toml`, else `~/.config/roadstead/config.toml`.
///
/// # Errors
/// When none of the variables says where.
pub(crate) fn path(env: impl Fn(&str) -> Option<String>) -> anyhow::Result<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = set("ROADSTEAD_CONFIG") {
        return Ok(file);
    }
    // Relative paths are ignored, as the CLI does: XDG Base Directory Specification 0.8.
    let xdg = set("XDG_CONFIG_HOME").filter(|folder| folder.is_absolute());
    let folder = xdg.or_else(|| set("HOME").map(|home| home.join(".config")));
    let folder =
        folder.context("neither ROADSTEAD_CONFIG nor HOME is set: where should the CLI's context go?")?;
    Ok(folder.join("roadstead/config.toml"))
}

/// Puts the context into the file (other contexts stay) and makes it the current one.
///
/// # Errors
/// A file that is there and is not understood is left alone.
pub(crate) fn write(file: &Path, context: &Context<'_>) -> anyhow::Result<()> {
    let mut config = read(file)?;
    let ours = Table::from_iter([
        ("name".to_owned(), Value::from(NAME)),
        ("server".to_owned(), Value::from(context.server)),
        ("tenant".to_owned(), Value::from(context.tenant)),
        ("project".to_owned(), Value::from(context.project)),
        (
            "token_file".to_owned(),
            Value::from(context.token_file.display().to_string()),
        ),
    ]);
    let contexts = config
        .entry("contexts")
        .or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(contexts) = contexts else {
        bail!("{}: expected `contexts` to be a list of tables", file.display())
    };
    contexts.retain(|c| c.get("name").and_then(Value::as_str) != Some(NAME));
    contexts.push(Value::Table(ours));
    config.insert("current".to_owned(), Value::from(NAME));
    replace(file, toml::to_string(&config)?.as_bytes())
}

fn read(file: &Path) -> anyhow::Result<Table> {
    match fs::read_to_string(file) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{} is not TOML; mend or move it", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Table::new()),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

/// Writes a file of mode 0600 so that a reader sees the old content or the new, never a half.
///
/// # Errors
/// When the folder or the file cannot be written.
pub(crate) fn replace(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = file.parent().context("a file in a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let mut new = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    new.set_permissions(fs::Permissions::from_mode(0o600))?;
    new.write_all(content)?;
    new.sync_all()?;
    fs::rename(&temporary, file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(token_file: &Path) -> Context<'_> {
        Context {
            server: "http://127.0.0.1:8080",
            tenant: "local",
            project: "default",
            token_file,
        }
    }

    #[test]
    fn the_file_is_the_one_that_the_cli_reads() -> anyhow::Result<()> {
        let path = |variables: &[(&str, &str)]| {
            path(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let home = ("HOME", "/home/a");
        assert_eq!(path(&[home])?, Path::new("/home/a/.config/roadstead/config.toml"));
        let absolute = ("XDG_CONFIG_HOME", "/x");
        assert_eq!(path(&[home, absolute])?, Path::new("/x/roadstead/config.toml"));
        for relative in ["x", "./x", ""] {
            let relative = ("XDG_CONFIG_HOME", relative);
            assert_eq!(
                path(&[home, relative])?,
                Path::new("/home/a/.config/roadstead/config.toml")
            );
        }
        let named = ("ROADSTEAD_CONFIG", "here.toml");
        assert_eq!(path(&[home, absolute, named])?, Path::new("here.toml"));
        assert!(path(&[]).is_err());
        Ok(())
    }

    #[test]
    fn other_contexts_stay_and_dev_becomes_current() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("roadstead/config.toml");
        replace(
            &file,
            b"current = \"prod\"\n[[contexts]]\nname = \"prod\"\nserver = \"https://hub.example.com\"\n",
        )?;
        write(&file, &context(Path::new("/t")))?;
        write(&file, &context(Path::new("/t2")))?;
        let config: Table = fs::read_to_string(&file)?.parse()?;
        let names: Vec<_> = config["contexts"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| &c["name"])
            .collect();
        assert_eq!(names, [&Value::from("prod"), &Value::from("dev")]);
        assert_eq!(config["current"].as_str(), Some("dev"));
        assert_eq!(config["contexts"][1]["token_file"].as_str(), Some("/t2"));
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        Ok(())
    }

    #[test]
    fn a_file_that_is_not_understood_is_left_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config.toml");
        replace(&file, b"contexts = 3")?;
        assert!(write(&file, &context(Path::new("/t"))).is_err());
        assert_eq!(fs::read_to_string(&file)?, "contexts = 3");
        Ok(())
    }
}

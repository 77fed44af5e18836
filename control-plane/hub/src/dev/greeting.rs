//! What dev tells the person who started it: where everything is, and three commands that work on this machine as it
//! is. The example that they use is written into the state folder, so that they work from every folder.

use super::{
    context,
    model_choice::{Choice, DOCUMENT},
    model_document::Written,
};
use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

const TIME: &str = include_str!("../../../../docs/examples/time/agent.yaml");
const HELLO: &str = include_str!("../../../../docs/examples/hello/agent.yaml");
/// The program of the time example's tool server.
const TOOL: &str = "mcp-server-time";
/// Folders that are on everybody's `PATH`.
const USUAL: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// An agent that can run here.
#[derive(Debug)]
pub(super) struct Example {
    name: &'static str,
    question: &'static str,
    file: PathBuf,
    /// What the machine lacks for a better one.
    lacks: Option<String>,
}

/// Writes the example that can run with the programs on `path` into the state folder.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn example(state: &Path, path: Option<&OsStr>) -> anyhow::Result<Example> {
    let (name, document, question, lacks) = if is_on(path, TOOL) {
        ("time", TIME, "What time is it in Europe/Berlin?", None)
    } else {
        let lacks = format!(
            "{TOOL} is not on the PATH of this process, so the example has no tools; `make run` in the sources \
             installs them, docs/examples/README.md says how"
        );
        ("hello", HELLO, "Who are you?", Some(lacks))
    };
    let file = state.join("examples").join(format!("{name}.yaml"));
    let text =
        format!("# Written by `roadstead-hub dev` at each start: copy it before you change it.\n{document}");
    context::replace(&file, text.as_bytes())?;
    Ok(Example {
        name,
        question,
        file,
        lacks,
    })
}

/// Whether a program of that name is in one of the folders.
fn is_on(path: Option<&OsStr>, program: &str) -> bool {
    let mut folders = path.into_iter().flat_map(std::env::split_paths);
    folders.any(|folder| is_program(&folder.join(program)))
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What there is to say.
pub(super) struct Greeting<'a> {
    pub(super) server: &'a str,
    pub(super) state: &'a Path,
    /// The CLI's configuration.
    pub(super) config: &'a Path,
    /// Whether `ROADSTEAD_CONFIG` named it, which the CLI's terminal must do too.
    pub(super) config_named: bool,
    pub(super) choice: &'a Choice,
    pub(super) written: Written,
    pub(super) example: &'a Example,
    /// This program, beside which the CLI is looked for.
    pub(super) program: &'a Path,
}

impl Greeting<'_> {
    pub(super) fn text(&self) -> String {
        let Self { example, .. } = self;
        let mut text = format!(
            "\nRoadstead is ready at {}\n  state    {}\n  context  dev, in {}\n  model    {}\n  cli      {}\n",
            self.server,
            self.state.display(),
            self.context(),
            self.model(),
            self.cli(),
        );
        if let Some(lacks) = &example.lacks {
            let _ = writeln!(text, "  tools    {lacks}");
        }
        let _ = write!(
            text,
            "\nNext:\n  roadstead get agents\n  roadstead apply -f {}\n  roadstead chat {} --message \"{}\"\n\n\
             Ctrl-C stops everything.",
            quoted(&example.file),
            example.name,
            example.question
        );
        text
    }

    fn model(&self) -> String {
        let found = self.choice.describe();
        match self.written {
            Written::ByDev => found,
            Written::ByPerson { revision } => format!(
                "as in the Model {DOCUMENT} that somebody applied (revision {revision}), which stays; dev would have \
                 taken {found}, and does again when that is deleted or rolled back to dev's"
            ),
        }
    }

    fn context(&self) -> String {
        let file = quoted(self.config);
        if self.config_named {
            format!("{file} (in the other terminal too: export ROADSTEAD_CONFIG={file})")
        } else {
            file
        }
    }

    fn cli(&self) -> String {
        let Some(folder) = self.program.parent() else {
            return "roadstead, wherever it is installed".to_owned();
        };
        let program = folder.join("roadstead");
        if !is_program(&program) {
            return format!(
                "not beside this program ({}): install roadstead",
                quoted(&program)
            );
        }
        if USUAL.iter().any(|usual| folder == Path::new(usual)) {
            return quoted(&program);
        }
        format!("{} (export PATH={}:$PATH)", quoted(&program), quoted(folder))
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn text(state: &Path, path: &Path, program: &Path) -> anyhow::Result<String> {
        let example = example(state, Some(path.as_os_str()))?;
        let greeting = Greeting {
            server: "http://127.0.0.1:8080",
            state: Path::new("./state"),
            config: Path::new("/home/a b/config.toml"),
            config_named: true,
            choice: &Choice::Demo,
            written: Written::ByDev,
            example: &example,
            program,
        };
        Ok(greeting.text())
    }

    #[test]
    fn the_commands_are_for_what_the_machine_has() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let bin = root.path().join("bin");
        fs::create_dir(&bin)?;
        let state = root.path().join("the state");
        let program = bin.join("roadstead-hub");
        let bare = text(&state, &bin, &program)?;
        assert!(bare.contains("mcp-server-time is not on the PATH"), "{bare}");
        assert!(bare.contains("roadstead chat hello --message \"Who"), "{bare}");
        assert!(bare.contains("install roadstead"), "{bare}");
        // A file that cannot be run is no program.
        fs::write(bin.join(TOOL), "")?;
        assert!(text(&state, &bin, &program)?.contains("chat hello"));
        for name in [TOOL, "roadstead"] {
            fs::write(bin.join(name), "")?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let full = text(&state, &bin, &program)?;
        let file = state.join("examples/time.yaml");
        assert!(
            full.contains(&format!("roadstead apply -f '{}'\n", file.display())),
            "{full}"
        );
        assert!(full.contains("roadstead chat time --message"), "{full}");
        assert!(
            full.contains(&format!("(export PATH={}:$PATH)", bin.display())),
            "{full}"
        );
        assert!(
            full.contains("export ROADSTEAD_CONFIG='/home/a b/config.toml'"),
            "{full}"
        );
        assert!(!full.contains("tools    "), "{full}");
        assert!(fs::read_to_string(file)?.ends_with(TIME));
        Ok(())
    }
}

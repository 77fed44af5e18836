//! What can be typed.

use crate::shell::Shell;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell as CompletionShell;
use roadstead_contract::documents::{Kind, Name, Reference};
use std::path::PathBuf;

/// Runs AI agents across clusters: documents, conversations and what became of them.
#[derive(Debug, Parser)]
#[command(
    name = "roadstead",
    version,
    propagate_version = true,
    disable_help_subcommand = false
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 invalid input, 4 not found, 5 not allowed, 6 conflict, \
                        7 unavailable, 8 limit, 9 waits for a person, 130 interrupted."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// The context to use instead of the current one.
    #[arg(
        long,
        global = true,
        env = "ROADSTEAD_CONTEXT",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub(crate) context: Option<String>,
    /// The project instead of the context's.
    #[arg(long, short = 'p', global = true, value_name = "NAME")]
    pub(crate) project: Option<Name>,
    /// How results are written.
    #[arg(long, short = 'o', global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// When to colour.
    #[arg(long = "color", global = true, value_enum, default_value_t = Colour::Auto)]
    pub(crate) colour: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Colour {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// `NO_COLOR` is obeyed as <https://no-color.org> says.
    pub(crate) fn wanted(self, shell: &Shell) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => shell.out_is_terminal && shell.env("NO_COLOR").is_none(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write documents: all of them, or none if one is refused.
    Apply(Apply),
    /// List documents, or write one out.
    Get(Get),
    /// Everything about one document, and where it runs.
    Describe(Named),
    /// Delete a document, or all documents of files.
    Delete(Delete),
    /// The revisions of a document, newest first.
    Revisions(Named),
    /// Make an agent's earlier revision the newest one.
    Rollback(Rollback),
    /// Talk with an agent.
    Chat(Chat),
    /// What agents did: who asked, when, outcome, tokens, cost.
    Runs(Runs),
    /// The engine's log lines of an agent.
    Logs(Logs),
    /// The clusters that you may see.
    Clusters,
    /// A kind or one of its fields in words (`agent.spec.limits`).
    Explain {
        /// Kind and fields, joined by dots.
        path: String,
    },
    /// The JSON Schema of a kind.
    Schema {
        #[arg(value_parser = kind)]
        kind: Kind,
    },
    /// A completion script for your shell.
    Completion { shell: CompletionShell },
    /// The servers that you use, and as whom.
    Context {
        #[command(subcommand)]
        command: Option<ContextCommand>,
    },
}

impl Command {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apply(_) => "apply",
            Self::Get(_) => "get",
            Self::Describe(_) => "describe",
            Self::Delete(_) => "delete",
            Self::Revisions(_) => "revisions",
            Self::Rollback(_) => "rollback",
            Self::Chat(_) => "chat",
            Self::Runs(_) => "runs",
            Self::Logs(_) => "logs",
            Self::Clusters => "clusters",
            Self::Explain { .. } => "explain",
            Self::Schema { .. } => "schema",
            Self::Completion { .. } => "completion",
            Self::Context { .. } => "context",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Files {
    /// A file, a folder (its .yaml, .yml and .json files), or - for standard input; may be repeated.
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Folders with everything below them.
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Do everything but the writing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show what changes.
    #[arg(long)]
    pub(crate) diff: bool,
    /// Only if the document is at this revision now (0: it does not exist); for one document.
    #[arg(long, value_name = "N")]
    pub(crate) expected_revision: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Get {
    /// agents, models, toolservers or prompts.
    #[arg(value_parser = kind)]
    pub(crate) kind: Kind,
    /// A name, or project/name.
    pub(crate) name: Option<Reference>,
    /// Of every project that you may see.
    #[arg(long, short = 'A', conflicts_with_all = ["name", "project"])]
    pub(crate) all_projects: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Named {
    /// agent, model, toolserver or prompt.
    #[arg(value_parser = kind)]
    pub(crate) kind: Kind,
    /// A name, or project/name.
    pub(crate) name: Reference,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Delete {
    /// agent, model, toolserver or prompt.
    #[arg(value_parser = kind, requires = "name", required_unless_present = "files")]
    pub(crate) kind: Option<Kind>,
    /// A name, or project/name.
    pub(crate) name: Option<Reference>,
    #[command(flatten)]
    pub(crate) files: Files,
    /// Only if the document is at this revision now.
    #[arg(long, value_name = "N", requires = "name")]
    pub(crate) expected_revision: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rollback {
    /// The agent's name, or project/name.
    pub(crate) agent: Reference,
    /// The revision to go back to; the one before the current one if it is left out.
    #[arg(long, value_name = "REVISION")]
    pub(crate) to: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Chat {
    /// The agent's name, or project/name.
    pub(crate) agent: Reference,
    /// Say this, print the answer, end. Without it, and without a terminal, standard input is the message.
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Go on in this session.
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Answer this task, which waits for you.
    #[arg(long, value_name = "ID")]
    pub(crate) task: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Runs {
    #[command(subcommand)]
    pub(crate) command: Option<RunsCommand>,
    #[command(flatten)]
    pub(crate) list: RunsList,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// The latest runs.
    List(RunsList),
    /// One run.
    Get {
        /// The run's id, as the list shows it.
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunsList {
    /// Of this agent: a name, or project/name.
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Option<Reference>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub(crate) limit: usize,
    /// Of every project that you may see.
    #[arg(long, short = 'A', conflicts_with_all = ["agent", "project"])]
    pub(crate) all_projects: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logs {
    /// The agent's name, or project/name.
    pub(crate) agent: Reference,
    /// Go on with new lines as they come.
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// Lines of the past.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) tail: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// All contexts; the current one is marked.
    List,
    /// Make a context the current one.
    Use { name: String },
    /// Write a context down, with the token from standard input or a file.
    Add(ContextAdd),
    /// Forget a context, and its token.
    Remove { name: String },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ContextAdd {
    pub(crate) name: String,
    /// https://…, or http:// on a loopback address.
    #[arg(long)]
    pub(crate) server: String,
    #[arg(long)]
    pub(crate) tenant: Name,
    /// A file of 0600 with the token, read at each use. Without it the token is read from standard input.
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
}

/// The kind that is meant: singular, plural, any case.
fn kind(text: &str) -> Result<Kind, String> {
    let lower = text.to_lowercase();
    let singular = lower.strip_suffix('s').unwrap_or(&lower);
    let found = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str().to_lowercase() == singular);
    found.ok_or_else(|| "expected agents, models, toolservers or prompts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn kinds_are_understood_in_any_case_and_number() {
        assert_eq!(kind("Agents"), Ok(Kind::Agent));
        assert_eq!(kind("toolserver"), Ok(Kind::ToolServer));
        assert!(kind("pods").is_err());
    }
}

//! What can be typed.

use crate::{
    shell::Shell,
    when::{self, When},
};
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
    /// Everything about one document, and where it runs; or about a cluster, and what waits there for a person.
    Describe(Describe),
    /// Delete a document, or all documents of files.
    Delete(Delete),
    /// The revisions of a document, newest first.
    Revisions(Named),
    /// Make an earlier revision of a document the newest one.
    Rollback(Rollback),
    /// Restart an agent's engine; its running tasks go on from where they are.
    Restart(Restart),
    /// What cluster agents were told to do, and what came of it.
    Commands(Commands),
    /// Talk with an agent.
    Chat(Chat),
    /// What agents did: who asked, when, outcome, tokens, cost.
    Runs(Runs),
    /// The engine's log lines of an agent.
    Logs(Logs),
    /// The clusters that you may see; register, join, revoke and delete them.
    Clusters(Clusters),
    /// The tenant's projects.
    Projects(Projects),
    /// The tenant's API tokens.
    Tokens(Tokens),
    /// The audit log, newest first: accepted writes, denials, logins.
    Audit(Audit),
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
            Self::Restart(_) => "restart",
            Self::Commands(_) => "commands",
            Self::Chat(_) => "chat",
            Self::Runs(_) => "runs",
            Self::Logs(_) => "logs",
            Self::Clusters(_) => "clusters",
            Self::Projects(_) => "projects",
            Self::Tokens(_) => "tokens",
            Self::Audit(_) => "audit",
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
    /// Show what would change, and write nothing.
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
pub(crate) struct Describe {
    /// agent, model, toolserver, prompt or cluster.
    #[arg(value_parser = described)]
    pub(crate) kind: Described,
    /// A name, or project/name; of a cluster, its name.
    pub(crate) name: Reference,
}

/// What can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Described {
    Document(Kind),
    Cluster,
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
#[command(override_usage = "roadstead rollback [OPTIONS] [KIND] NAME")]
pub(crate) struct Rollback {
    /// The kind (agent, model, toolserver or prompt; an agent where it is left out) and a name, or project/name.
    #[arg(value_name = "NAME", num_args = 1..=2, required = true)]
    pub(crate) document: Vec<String>,
    /// The revision to go back to; the one before the current one if it is left out.
    #[arg(long, value_name = "REVISION")]
    pub(crate) to: Option<u64>,
}

impl Rollback {
    /// What was named.
    ///
    /// # Errors
    /// No kind, or no name of a document.
    pub(crate) fn target(&self) -> Result<(Kind, Reference), String> {
        let (kind, name) = match self.document.as_slice() {
            [name] => (Kind::Agent, name),
            [first, name] => (kind(first)?, name),
            _ => return Err("expected a kind and a name".to_owned()),
        };
        let name = name.parse::<Reference>().map_err(|error| error.to_string())?;
        Ok((kind, name))
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Restart {
    /// The agent's name, or project/name.
    pub(crate) agent: Reference,
    /// On this cluster alone; on every one that the agent is placed on if it is left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<Name>,
    /// Wait until it is done there, and fail if it is not.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Commands {
    /// About this agent: a name, or project/name.
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Option<Reference>,
    /// For this cluster.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<Name>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub(crate) limit: usize,
    /// Of every project that you may see.
    #[arg(long, short = 'A', conflicts_with_all = ["agent", "project"])]
    pub(crate) all_projects: bool,
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
    #[command(flatten)]
    pub(crate) span: Span,
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
    /// Lines of the past; 100 where neither this nor --since is given.
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u32>,
    /// Not older than this: 15m, 2h, 3d ago, or a time (2026-01-02T15:04:05Z).
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    pub(crate) since: Option<When>,
}

/// From when to when.
#[derive(Debug, ClapArgs)]
pub(crate) struct Span {
    /// Not older than this: 15m, 2h, 3d ago, or a time (2026-01-02T15:04:05Z).
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    pub(crate) since: Option<When>,
    /// Older than this.
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    pub(crate) until: Option<When>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Clusters {
    #[command(subcommand)]
    pub(crate) command: Option<ClustersCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClustersCommand {
    /// All clusters that you may see.
    List,
    /// Register a cluster, and get the token with which its cluster agent joins.
    Create(ClusterCreate),
    /// Get a new token for a cluster that has not joined, or is to join again; unused ones before end.
    #[command(alias = "join-token")]
    Join(ClusterToken),
    /// Revoke a cluster's certificates: its session ends within seconds, and it must join again.
    Revoke(ClusterRevoke),
    /// Delete a cluster: its certificates are revoked, what should run there is forgotten, its runs stay.
    Delete { name: Name },
    /// Say yes to deletions on a cluster that wait because they are more than its budget.
    ApproveDeletes(ClusterApprove),
    /// Let the hub's view of a cluster go on that is ahead of the hub's database, as after a restore from a backup.
    AcceptTimeline(ClusterAccept),
    /// Make a certificate of a cluster good that the hub's database does not know, as after a restore from a backup.
    AdmitCertificate(ClusterAdmit),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterCreate {
    pub(crate) name: Name,
    /// For placement; roadstead.dev/default=true takes the agents that say nothing of placement. Repeat for more.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) place: JoinPlace,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterToken {
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) place: JoinPlace,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct JoinPlace {
    /// A new file of 0600 for the token. Without it the token goes to standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The hub's fleet port as the cluster reaches it, for the command that is shown.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) hub: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterRevoke {
    pub(crate) name: Name,
    /// One certificate by its serial number; all of them without it.
    #[arg(long, value_name = "SERIAL")]
    pub(crate) serial: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterApprove {
    pub(crate) name: Name,
    /// How many deletions were looked at; `roadstead clusters` shows how many wait.
    #[arg(long, value_name = "N")]
    pub(crate) deletes: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterAccept {
    pub(crate) name: Name,
    /// The cluster's revision that was looked at; `roadstead describe cluster` shows it, and what would change.
    #[arg(long, value_name = "REVISION")]
    pub(crate) cursor: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterAdmit {
    pub(crate) name: Name,
    /// The certificate's serial number; `roadstead-agent doctor` on the cluster names the one that it uses.
    #[arg(long, value_name = "SERIAL")]
    pub(crate) serial: String,
}

/// `key=value`.
fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    parts
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Projects {
    #[command(subcommand)]
    pub(crate) command: Option<ProjectsCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectsCommand {
    /// All projects.
    List,
    /// Make a project.
    Create { name: Name },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Tokens {
    #[command(subcommand)]
    pub(crate) command: Option<TokensCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// All tokens, without their secrets.
    List,
    /// Make a token. Nobody hands out more than they have.
    Create(TokenCreate),
    /// End a token at once, and the tokens that it issued.
    Revoke(TokenRevoke),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenRevoke {
    /// The token's id, as the list shows it.
    pub(crate) id: String,
    /// The tokens that it issued stay good: for an old token that is changed for a new one.
    #[arg(long)]
    pub(crate) keep_issued: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenCreate {
    /// For people: what or who will use it.
    pub(crate) name: String,
    /// What it may do in the tenant; each role may do what the ones before it may.
    #[arg(long, value_enum)]
    pub(crate) role: Role,
    /// A ceiling; each but approve implies the ones before it. Repeat for more.
    #[arg(long = "scope", value_enum, required = true)]
    pub(crate) scopes: Vec<Scope>,
    /// How long it is good.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=366))]
    pub(crate) days: u64,
    /// A new file of 0600 for the token. Without it the token goes to standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    Viewer,
    Operator,
    Editor,
    Admin,
    Owner,
}

impl Role {
    /// As the API spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Viewer => "VIEWER",
            Self::Operator => "OPERATOR",
            Self::Editor => "EDITOR",
            Self::Admin => "ADMIN",
            Self::Owner => "OWNER",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Scope {
    Read,
    Invoke,
    Write,
    Approve,
    Admin,
}

impl Scope {
    /// As the API spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Invoke => "INVOKE",
            Self::Write => "WRITE",
            Self::Approve => "APPROVE",
            Self::Admin => "ADMIN",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Audit {
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub(crate) limit: usize,
    /// Of this actor, as the list shows it (token:tok_…).
    #[arg(long, value_name = "ACTOR")]
    pub(crate) actor: Option<String>,
    /// This act alone, as the list shows it ("revoke token").
    #[arg(long, value_name = "ACTION")]
    pub(crate) action: Option<String>,
    /// On this object, as the list shows it.
    #[arg(long, value_name = "ID")]
    pub(crate) object: Option<String>,
    /// What came of it.
    #[arg(long, value_parser = ["allow", "deny", "refuse"])]
    pub(crate) decision: Option<String>,
    #[command(flatten)]
    pub(crate) span: Span,
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
    /// Allow http to another machine: the token crosses the network in the clear.
    #[arg(long)]
    pub(crate) plain_http: bool,
}

fn described(text: &str) -> Result<Described, String> {
    if matches!(text.to_lowercase().as_str(), "cluster" | "clusters") {
        return Ok(Described::Cluster);
    }
    kind(text)
        .map(Described::Document)
        .map_err(|_| "expected agent, model, toolserver, prompt or cluster".to_owned())
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
    use crate::failure::Exit;
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
        assert_eq!(described("Cluster"), Ok(Described::Cluster));
        assert_eq!(described("prompts"), Ok(Described::Document(Kind::Prompt)));
        assert!(described("pods").is_err());
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let help = Args::command().render_help().to_string();
        let (_, listed) = help.split_once("Exit codes: ").unwrap();
        let expected: Vec<String> = Exit::ALL
            .into_iter()
            .map(|exit| format!("{} {}", exit as u8, exit.meaning()))
            .collect();
        assert_eq!(listed.trim().trim_end_matches('.'), expected.join(", "));
    }

    #[test]
    fn a_rollback_names_an_agent_or_a_kind() {
        let target = |words: &[&str]| {
            let document = words.iter().map(|w| (*w).to_owned()).collect();
            Rollback { document, to: None }.target()
        };
        assert_eq!(target(&["p/a"]).unwrap().0, Kind::Agent);
        assert_eq!(target(&["prompts", "a"]).unwrap().0, Kind::Prompt);
        assert!(target(&["pods", "a"]).is_err());
        assert!(target(&["A b"]).is_err());
    }
}

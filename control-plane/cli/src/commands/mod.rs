//! One file for each verb.

mod apply;
mod approval;
mod audit;
mod chat;
mod cluster_page;
mod clusters;
mod command_list;
mod context;
mod delete;
mod describe;
mod get;
mod logs;
mod projects;
mod restart;
mod revisions;
mod rollback;
mod runs;
mod secret;
mod task_view;
mod tokens;
mod waiting;

use crate::{
    args::{Args, Command, Common},
    client::Client,
    config::{self, Config},
    failure::{Exit, Failure, Outcome},
    shell::Shell,
};
use roadstead_contract::documents::{explain, schema};

/// Does what was typed.
///
/// # Errors
/// Whatever keeps it from being done.
pub(crate) async fn run(args: Args, shell: &mut Shell) -> Outcome<Exit> {
    let Args { common, command } = args;
    match command {
        Command::Explain { path } => {
            let page = explain(&path).map_err(|error| {
                Failure::new(Exit::NotFound, error.to_string())
                    .next("begin with a kind: roadstead explain agent, model, toolserver or prompt")
            })?;
            shell.say(&page)?;
        }
        Command::Schema { kind } => shell.say(&format!("{:#}\n", schema(kind)))?,
        Command::Completion { shell: kind } => {
            let mut script = Vec::new();
            clap_complete::generate(kind, &mut crate::command_tree(), "roadstead", &mut script);
            shell.out.write_all(&script)?;
        }
        Command::Context { command } => context::run(command, &common, shell)?,
        command => return with_hub(&common, command, shell).await,
    }
    Ok(Exit::Done)
}

async fn with_hub(common: &Common, command: Command, shell: &mut Shell) -> Outcome<Exit> {
    let path = config::path(shell)?;
    let config = Config::load(&path)?;
    let context = config.context(common.context.as_deref(), &path)?;
    let client = Client::new(context, common.project.clone())?;
    match command {
        Command::Apply(args) => apply::run(&client, common, &args, shell).await?,
        Command::Get(args) => get::run(&client, common, &args, shell).await?,
        Command::Describe(args) => describe::run(&client, common, args, shell).await?,
        Command::Delete(args) => delete::run(&client, common, &args, shell).await?,
        Command::Revisions(named) => revisions::run(&client, common, &named, shell).await?,
        Command::Rollback(args) => rollback::run(&client, common, &args, shell).await?,
        Command::Restart(args) => restart::run(&client, common, &args, shell).await?,
        Command::Commands(args) => command_list::run(&client, common, &args, shell).await?,
        Command::Chat(args) => return chat::run(&client, common, args, shell).await,
        Command::Runs(args) => runs::run(&client, common, args, shell).await?,
        Command::Logs(args) => logs::run(&client, common, &args, shell).await?,
        Command::Clusters(args) => clusters::run(&client, common, args, shell).await?,
        Command::Projects(args) => projects::run(&client, common, args, shell).await?,
        Command::Tokens(args) => tokens::run(&client, common, args, shell).await?,
        Command::Audit(args) => audit::run(&client, common, &args, shell).await?,
        Command::Explain { .. }
        | Command::Schema { .. }
        | Command::Completion { .. }
        | Command::Context { .. } => {
            return Err(Failure::new(Exit::Failed, "this command needs no hub"));
        }
    }
    Ok(Exit::Done)
}

/// A key under which the hub remembers a write, so that a repeated request does nothing twice.
fn idempotency_key() -> String {
    uuid::Uuid::new_v4().to_string()
}

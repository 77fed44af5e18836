//! `restart`: the engine of an agent gets another process.

use super::command_list::state;
use crate::{
    api::{ClusterCommand, CommandsPayload},
    args::{Common, Format, Restart},
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    render,
    shell::Shell,
    text::line,
};
use serde_json::json;
use std::{io::Write as _, time::Duration};
use tokio::time::Instant;

/// Between two looks at a command.
const LOOK: Duration = Duration::from_millis(300);
/// After its expiry a command that was sent may still be under way.
const UNDER_WAY: Duration = Duration::from_secs(150);

pub(super) async fn run(client: &Client, common: &Common, args: &Restart, shell: &mut Shell) -> Outcome<()> {
    let (project, name) = client.place(&args.agent);
    let input = json!({
        "project": project,
        "name": name,
        "cluster": args.cluster,
        "idempotencyKey": super::idempotency_key(),
    });
    let payload: CommandsPayload = client
        .call("RestartAgent", "restartAgent", json!({"input": input}))
        .await?;
    let what = format!("agent {project}/{name} is not restarted");
    if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
        return Err(match failure.exit {
            Exit::Conflict => failure.next(format!(
                "roadstead describe agent {project}/{name} shows where it runs"
            )),
            _ => failure,
        });
    }
    let mut commands = payload.objects;
    if args.wait {
        for command in &mut commands {
            wait(client, command).await?;
        }
    }
    if common.output == Format::Table {
        say(&commands, shell)?;
    } else {
        render::value(shell, common.output, &commands)?;
    }
    if !args.wait {
        let next = format!("what comes of it: roadstead commands --agent {project}/{name}");
        return Ok(writeln!(shell.err, "{}", line(&next))?);
    }
    failed(&commands, &what)
}

fn say(commands: &[ClusterCommand], shell: &mut Shell) -> Outcome<()> {
    for command in commands {
        let said = match &command.result {
            None => format!("command {}", command.id),
            Some(result) => format!("{}: {}", state(command), result.detail),
        };
        shell.say(&format!(
            "agent {}/{}, cluster {}: {}\n",
            line(&command.project),
            line(&command.agent),
            line(&command.cluster),
            line(&said)
        ))?;
    }
    Ok(())
}

/// Looks until the command has its result.
async fn wait(client: &Client, command: &mut ClusterCommand) -> Outcome<()> {
    let lasts = (command.expires_at - command.created_at)
        .to_std()
        .unwrap_or_default();
    let until = Instant::now() + lasts + UNDER_WAY;
    while command.result.is_none() {
        if Instant::now() >= until {
            let message = format!(
                "the cluster {} has not said what came of it ({})",
                command.cluster,
                state(command)
            );
            return Err(
                Failure::new(Exit::Unavailable, message).next("roadstead commands shows it once it is known")
            );
        }
        tokio::time::sleep(LOOK).await;
        let found: Option<ClusterCommand> = client
            .call("Command", "command", json!({"id": command.id}))
            .await?;
        *command = found.ok_or_else(|| {
            let message = format!("the hub does not know the command {} any more", command.id);
            Failure::new(Exit::NotFound, message)
        })?;
    }
    Ok(())
}

/// Where one did not succeed.
fn failed(commands: &[ClusterCommand], what: &str) -> Outcome<()> {
    let results = commands.iter().filter_map(|command| command.result.as_ref());
    let mut failed = results.filter(|result| result.code != "SUCCEEDED");
    let Some(first) = failed.next() else { return Ok(()) };
    let exit = match first.code.as_str() {
        "EXPIRED" => Exit::Unavailable,
        _ => Exit::Failed,
    };
    let what = match failed.count() {
        0 => what.to_owned(),
        more => format!("{what} on {} clusters", more + 1),
    };
    let next = "roadstead clusters says which clusters are connected; roadstead logs AGENT, why an engine does not start";
    Err(Failure::new(exit, what).next(next))
}

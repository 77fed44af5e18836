//! `commands`: what cluster agents were told to do, and what came of it.

use crate::{
    api::ClusterCommand,
    args::{Commands, Common},
    client::Client,
    failure::Outcome,
    render::{self, Table, age},
    shell::Shell,
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

pub(super) async fn run(client: &Client, common: &Common, args: &Commands, shell: &mut Shell) -> Outcome<()> {
    let place = args.agent.as_ref().map(|agent| client.place(agent));
    let project = match (place, args.all_projects) {
        (Some((project, _)), _) => project.into(),
        (None, true) => Value::Null,
        (None, false) => client.project.as_str().into(),
    };
    let agent = place.map(|(_, name)| name);
    let variables = json!({"project": project, "agent": agent, "cluster": args.cluster});
    let commands: Vec<ClusterCommand> = client.list("Commands", "commands", variables, args.limit).await?;
    let now = (shell.now)();
    render::list(shell, common.output, &commands, "no commands", |commands| {
        table(commands, now)
    })
}

fn table(commands: &[ClusterCommand], now: DateTime<Utc>) -> Table {
    let mut table = Table::new(&[
        "COMMAND", "KIND", "AGENT", "CLUSTER", "STATE", "MADE", "BY", "DETAIL",
    ]);
    for command in commands {
        let result = command.result.as_ref();
        table.row([
            command.id.clone(),
            words(&command.kind),
            format!("{}/{}", command.project, command.agent),
            command.cluster.clone(),
            state(command),
            format!("{} ago", age(now, command.created_at)),
            command.created_by.clone(),
            result.map(|result| result.detail.clone()).unwrap_or_default(),
        ]);
    }
    table
}

/// Its result once it has one.
pub(super) fn state(command: &ClusterCommand) -> String {
    let word = command
        .result
        .as_ref()
        .map_or(&command.state, |result| &result.code);
    words(word)
}

fn words(word: &str) -> String {
    word.to_lowercase().replace('_', " ")
}

//! `rollback`: an earlier revision becomes the newest one.

use super::get;
use crate::{
    api::Payload,
    args::{Common, Format, Rollback},
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    render,
    shell::Shell,
};
use serde_json::json;

pub(super) async fn run(client: &Client, common: &Common, args: &Rollback, shell: &mut Shell) -> Outcome<()> {
    let agent = get::agent(client, &args.agent).await?;
    let name = format!("{}/{}", agent.project, agent.name);
    let to = match args.to {
        Some(revision) => revision,
        None if agent.revision > 1 => agent.revision - 1,
        None => {
            let message = format!("Agent {name} has one revision: there is nothing to go back to");
            return Err(Failure::new(Exit::Invalid, message));
        }
    };
    // What was looked at is what is rolled back: somebody else's write in between is a conflict.
    let input = json!({
        "project": agent.project,
        "name": agent.name,
        "toRevision": to,
        "expectedRevision": agent.revision,
        "idempotencyKey": super::idempotency_key(),
    });
    let payload: Payload = client
        .call("RollBackAgent", "rollBackAgent", json!({"input": input}))
        .await?;
    let what = format!("Agent {name} was not rolled back");
    if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
        return Err(failure);
    }
    let object = payload
        .object
        .ok_or_else(|| Failure::new(Exit::Failed, "the hub says neither yes nor no"))?;
    if common.output != Format::Table {
        return render::value(shell, common.output, &object);
    }
    shell.say(&format!(
        "Agent {name} is at revision {}, with the content of revision {to}\n",
        object.revision
    ))
}

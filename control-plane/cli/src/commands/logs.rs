//! `logs`: the engine's lines, as they come.

use super::get;
use crate::{
    api::LogLine,
    args::{Common, Format, Logs},
    client::Client,
    failure::Outcome,
    render::time,
    shell::Shell,
    socket::{Next, Subscription},
    text::line,
};
use serde_json::json;

pub(super) async fn run(client: &Client, common: &Common, args: &Logs, shell: &mut Shell) -> Outcome<()> {
    // A name that is not there is said before a stream is opened for it.
    let agent = get::agent(client, &args.agent).await?;
    let several = agent.placements.len() > 1;
    let variables =
        json!({"project": agent.project, "name": agent.name, "tail": args.tail, "follow": args.follow});
    let mut lines = Subscription::start(client, "AgentLogs", "agentLogs", variables).await?;
    loop {
        let next = tokio::select! {
            next = lines.next::<LogLine>() => next?,
            () = shell.interrupt.wait() => break,
        };
        let Next::Item(item) = next else { return Ok(()) };
        let text = match common.output {
            Format::Json | Format::Yaml => format!("{}\n", json!(item)),
            Format::Table => shown(&item, several),
        };
        shell.say(&text)?;
        shell.flush()?;
    }
    lines.stop().await;
    Ok(())
}

fn shown(item: &LogLine, several: bool) -> String {
    let at = item.time.map(|t| format!("{} ", time(t))).unwrap_or_default();
    let cluster = if several {
        format!("{} ", item.cluster)
    } else {
        String::new()
    };
    format!("{}\n", line(&format!("{at}{cluster}{}", item.line)))
}

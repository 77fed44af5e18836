//! `clusters`: where agents can run.

use crate::{
    api::Cluster,
    args::Common,
    client::Client,
    failure::Outcome,
    render::{self, Table, age},
    shell::Shell,
};
use serde_json::json;

/// Most clusters that are listed.
const MOST: usize = 10_000;

pub(super) async fn run(client: &Client, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let clusters: Vec<Cluster> = client.list("Clusters", "clusters", json!({}), MOST).await?;
    let now = (shell.now)();
    render::list(
        shell,
        common.output,
        &clusters,
        "no clusters that you may see",
        |clusters| {
            let mut table = Table::new(&["NAME", "STATE", "SINCE", "AGENTS", "VERSION", "LABELS"]);
            for c in clusters {
                let labels: Vec<String> = c
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                table.row([
                    c.name.clone(),
                    c.state.to_lowercase().replace('_', " "),
                    c.since
                        .map_or_else(|| "-".to_owned(), |since| format!("{} ago", age(now, since))),
                    c.agent_count.to_string(),
                    c.version.clone().unwrap_or_else(|| "-".to_owned()),
                    labels.join(","),
                ]);
            }
            table
        },
    )
}

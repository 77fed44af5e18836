//! `describe cluster`: how it is, and what waits there for a person.

use super::{clusters, waiting};
use crate::{
    api::{Cluster, Node, Timeline, kind_shown},
    args::{Common, Format},
    client::Client,
    failure::{Exit, Failure, Outcome},
    render::{self, age, time},
    shell::Shell,
    text::line,
};
use chrono::{DateTime, Utc};
use roadstead_contract::documents::{Name, Reference};
use serde_json::json;
use std::fmt::Write as _;

/// Documents of each sort that are named; of the rest the number is said.
const NAMED: usize = 20;

pub(super) async fn run(
    client: &Client,
    common: &Common,
    reference: &Reference,
    shell: &mut Shell,
) -> Outcome<()> {
    let cluster = clusters::named(client, name(reference)?).await?;
    if common.output != Format::Table {
        return render::value(shell, common.output, &cluster);
    }
    let changes = match &cluster.timeline {
        Some(timeline) => changes(client, timeline).await?,
        None => Vec::new(),
    };
    let text = page(&cluster, &changes, (shell.now)());
    shell.say(&text)
}

/// A cluster belongs to no project.
fn name(reference: &Reference) -> Outcome<&Name> {
    match reference.project {
        None => Ok(&reference.name),
        Some(_) => Err(Failure::new(
            Exit::Usage,
            "a cluster belongs to no project: its name alone is meant",
        )
        .next(format!("roadstead describe cluster {}", reference.name))),
    }
}

/// Which documents accepting the hub's view deletes and replaces.
async fn changes(client: &Client, timeline: &Timeline) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    for id in timeline.deleted.iter().take(NAMED) {
        lines.push(format!("deleted there: {}", document(client, id).await?));
    }
    let shown = timeline.deleted.len().min(NAMED) as u64;
    if timeline.deletes > shown {
        lines.push(format!("deleted there: {} more", timeline.deletes - shown));
    }
    for replaced in timeline.replaced.iter().take(NAMED) {
        let what = document(client, &replaced.document).await?;
        lines.push(format!("replaced there: {what}, revision {}", replaced.revision));
    }
    if timeline.replaced.len() > NAMED {
        lines.push(format!(
            "replaced there: {} more",
            timeline.replaced.len() - NAMED
        ));
    }
    Ok(lines)
}

/// A document by its name, where the hub knows it; by its id in any case.
async fn document(client: &Client, id: &str) -> Outcome<String> {
    let found: Option<Node> = match client.call("Node", "node", json!({"id": id})).await {
        // The cluster named it: it may be anything.
        Err(failure) if failure.exit == Exit::Invalid => None,
        found => found?,
    };
    let named = found.and_then(|node| {
        let kind = node
            .kind
            .as_deref()
            .map_or_else(|| "Agent".to_owned(), kind_shown);
        Some(format!("{kind} {}/{} ({id})", node.project?, node.name?))
    });
    Ok(line(&named.unwrap_or_else(|| id.to_owned())))
}

fn page(cluster: &Cluster, changes: &[String], now: DateTime<Utc>) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<11} {}", line(value));
        }
    };
    let ago = |at: DateTime<Utc>| format!("{} ({} ago)", time(at), age(now, at));
    fact("Kind", "Cluster");
    fact("Name", &cluster.name);
    fact("Id", &cluster.id);
    fact("State", &cluster.state.to_lowercase().replace('_', " "));
    fact("Last seen", &cluster.last_seen_at.map(ago).unwrap_or_default());
    fact("Enrolled by", cluster.enrolled_by.as_deref().unwrap_or_default());
    fact("Version", cluster.version.as_deref().unwrap_or_default());
    fact("Labels", &clusters::labels(cluster));
    fact("Agents", &cluster.agent_count.to_string());
    fact("Revision", &clusters::revision(cluster));
    fact(
        "Certificate",
        &cluster
            .certificate_expires_at
            .map(|end| format!("until {}", time(end)))
            .unwrap_or_default(),
    );
    let waits = waiting::page(cluster, changes);
    if !waits.is_empty() {
        text.push_str("\nWaits for a person\n");
        for waits in waits {
            let _ = writeln!(text, "  {}", line(&waits));
        }
    }
    text
}

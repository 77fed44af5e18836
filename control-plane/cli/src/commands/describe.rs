//! `describe`: a document, where it runs, what one may do with it.

use super::{cluster_page, get};
use crate::{
    api::{Agent, Document, kind_shown},
    args::{Common, Describe, Described, Format},
    client::Client,
    failure::Outcome,
    render::{self, Table, age, seconds, time, yaml},
    shell::Shell,
    text::line,
};
use chrono::{DateTime, Utc};
use roadstead_contract::documents::Kind;
use serde_json::json;
use std::fmt::Write as _;

pub(super) async fn run(client: &Client, common: &Common, args: Describe, shell: &mut Shell) -> Outcome<()> {
    let Described::Document(kind) = args.kind else {
        return cluster_page::run(client, common, &args.name, shell).await;
    };
    let document = client.document(kind, &args.name).await?;
    let agent = match kind {
        Kind::Agent => Some(get::agent(client, &args.name).await?),
        _ => None,
    };
    if common.output != Format::Table {
        let status = agent.as_ref().map(|a| &a.placements);
        return render::value(
            shell,
            common.output,
            &json!({"object": document, "placements": status}),
        );
    }
    let text = page(&document, agent.as_ref(), (shell.now)())?;
    shell.say(&text)
}

fn page(document: &Document, agent: Option<&Agent>, now: DateTime<Utc>) -> Outcome<String> {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10} {}", line(&value));
    };
    fact("Kind", kind_shown(&document.kind));
    fact("Name", format!("{}/{}", document.project, document.name));
    fact("Id", document.id.clone());
    fact("Revision", document.revision.to_string());
    fact("Digest", document.digest.clone());
    fact(
        "Created",
        format!(
            "{} ({} ago)",
            time(document.created_at),
            age(now, document.created_at)
        ),
    );
    fact(
        "Changed",
        format!(
            "{} ({} ago)",
            time(document.updated_at),
            age(now, document.updated_at)
        ),
    );
    let allowed: Vec<&str> = document
        .actions
        .iter()
        .filter(|a| a.allowed)
        .map(|a| a.name.as_str())
        .collect();
    if !document.actions.is_empty() {
        fact(
            "You may",
            if allowed.is_empty() {
                "look".to_owned()
            } else {
                allowed.join(", ")
            },
        );
    }
    if let Some(agent) = agent {
        fact("Status", get::status(agent));
        text.push_str("\nClusters\n");
        text.push_str(&indent(&placements(agent, now)));
    }
    if let Some(json) = &document.json {
        text.push_str("\nDocument\n");
        text.push_str(&indent(&yaml(json)?));
    }
    Ok(text)
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "  {line}");
        out
    })
}

fn placements(agent: &Agent, now: DateTime<Utc>) -> String {
    if agent.placements.is_empty() {
        return "none: give the agent a spec.placement and apply it again\n".to_owned();
    }
    let mut table = Table::new(&[
        "CLUSTER", "WANTED", "RUNNING", "PHASE", "SINCE", "REPORTED", "REASON",
    ]);
    for placement in &agent.placements {
        let running = placement.running.as_ref();
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.row([
            placement.cluster.clone(),
            placement.wanted.revision.to_string(),
            text(running.and_then(|r| r.revision).map(|r| r.to_string())),
            text(running.map(|r| r.phase.to_lowercase())),
            text(
                running
                    .and_then(|r| r.since)
                    .map(|since| format!("{} ago", age(now, since))),
            ),
            text(
                running
                    .and_then(|r| r.report_age_seconds)
                    .map(|s| format!("{} ago", seconds(i64::try_from(s).unwrap_or(i64::MAX)))),
            ),
            running.and_then(|r| r.reason.clone()).unwrap_or_default(),
        ]);
    }
    table.text()
}

//! `get`: a list, or documents as they were written.

use crate::{
    api::{self, Agent, Document, kind_name},
    args::{Common, Format, Get},
    client::Client,
    failure::Outcome,
    render::{self, Table, age},
    shell::Shell,
};
use chrono::{DateTime, Utc};
use roadstead_contract::documents::{Kind, Reference};
use serde_json::{Value, json};

/// Most items that are listed.
const MOST: usize = 10_000;

pub(super) async fn run(client: &Client, common: &Common, args: &Get, shell: &mut Shell) -> Outcome<()> {
    let now = (shell.now)();
    match (&args.name, common.output, args.kind) {
        (Some(name), Format::Table, Kind::Agent) => {
            let agent = agent(client, name).await?;
            render::list(shell, common.output, &[agent], "", |agents| {
                agents_table(agents, now)
            })
        }
        (Some(name), format, kind) => {
            let document = client.document(kind, name).await?;
            if format == Format::Table {
                return render::list(shell, format, &[document], "", |d| documents_table(d, now));
            }
            render::documents(shell, format, &[document.json.unwrap_or_default()], true)
        }
        (None, Format::Table, Kind::Agent) => {
            let variables = json!({"project": project(client, args)});
            let agents: Vec<Agent> = client.list("Agents", "agents", variables, MOST).await?;
            render::list(shell, common.output, &agents, &nothing(client, args), |a| {
                agents_table(a, now)
            })
        }
        (None, format, kind) => {
            let variables = json!({"kind": kind_name(kind), "project": project(client, args),
                "json": format != Format::Table});
            let found: Vec<Document> = client.list("Documents", "documents", variables, MOST).await?;
            if format == Format::Table {
                return render::list(shell, format, &found, &nothing(client, args), |d| {
                    documents_table(d, now)
                });
            }
            let documents: Vec<Value> = found.into_iter().filter_map(|d| d.json).collect();
            render::documents(shell, format, &documents, false)
        }
    }
}

/// One agent with where it runs.
pub(super) async fn agent(client: &Client, reference: &Reference) -> Outcome<Agent> {
    let (project, name) = client.place(reference);
    let variables = json!({"project": project, "name": name});
    let agent: Option<Agent> = client.call("AgentByName", "agentByName", variables).await?;
    agent.ok_or_else(|| client.nothing(Kind::Agent, reference))
}

fn project(client: &Client, args: &Get) -> Value {
    if args.all_projects {
        Value::Null
    } else {
        client.project.as_str().into()
    }
}

fn nothing(client: &Client, args: &Get) -> String {
    let kind = args.kind.as_str().to_lowercase();
    if args.all_projects {
        format!("no {kind}s in any project that you may see")
    } else {
        format!("no {kind}s in project {}", client.project)
    }
}

fn documents_table(documents: &[Document], now: DateTime<Utc>) -> Table {
    let mut table = Table::new(&["PROJECT", "NAME", "REVISION", "CHANGED"]);
    for d in documents {
        let cells = [
            d.project.clone(),
            d.name.clone(),
            d.revision.to_string(),
            age(now, d.updated_at),
        ];
        table.row(cells);
    }
    table
}

fn agents_table(agents: &[Agent], now: DateTime<Utc>) -> Table {
    let mut table = Table::new(&["PROJECT", "NAME", "REVISION", "STATUS", "CLUSTERS", "CHANGED"]);
    for a in agents {
        let clusters: Vec<&str> = a.placements.iter().map(|p| p.cluster.as_str()).collect();
        let clusters = if clusters.is_empty() {
            "none".to_owned()
        } else {
            clusters.join(",")
        };
        let cells = [
            a.project.clone(),
            a.name.clone(),
            a.revision.to_string(),
            status(a),
            clusters,
            age(now, a.updated_at),
        ];
        table.row(cells);
    }
    table
}

/// One word (or few) for all clusters: `ready`, `ready 1/2`, else the worst phase.
pub(super) fn status(agent: &Agent) -> String {
    let all = agent.placements.len();
    let serves = |p: &&api::Placement| {
        p.running
            .as_ref()
            .is_some_and(|r| r.phase == "READY" && r.revision == Some(p.wanted.revision))
    };
    let ready = agent.placements.iter().filter(serves).count();
    if all == 0 {
        return "not placed".to_owned();
    }
    if ready == all {
        return if all == 1 {
            "ready".to_owned()
        } else {
            format!("ready {ready}/{all}")
        };
    }
    let phases = agent
        .placements
        .iter()
        .filter(|p| !serves(p))
        .map(|p| match &p.running {
            None => "pending".to_owned(),
            Some(r) if r.phase == "READY" => "updating".to_owned(),
            Some(r) => r.phase.to_lowercase(),
        });
    let rank = |phase: &String| matches!(phase.as_str(), "failed");
    let worst = phases.max_by_key(rank).unwrap_or_default();
    if all == 1 {
        worst
    } else {
        format!("{worst} {ready}/{all}")
    }
}

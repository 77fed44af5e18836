//! `runs`: what agents did. No content: that stays with the engine.

use crate::{
    api::Run,
    args::{Common, Format, Runs, RunsCommand, RunsList},
    client::Client,
    failure::{Exit, Failure, Outcome},
    render::{self, Table, age, money, time},
    shell::Shell,
    text::line,
    when,
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(super) async fn run(client: &Client, common: &Common, args: Runs, shell: &mut Shell) -> Outcome<()> {
    match args.command {
        Some(RunsCommand::Get { id }) => get(client, common, &id, shell).await,
        Some(RunsCommand::List(wanted)) => list(client, common, &wanted, shell).await,
        None => list(client, common, &args.list, shell).await,
    }
}

async fn list(client: &Client, common: &Common, args: &RunsList, shell: &mut Shell) -> Outcome<()> {
    let place = args.agent.as_ref().map(|agent| client.place(agent));
    let project = match (place, args.all_projects) {
        (Some((project, _)), _) => project.into(),
        (None, true) => Value::Null,
        (None, false) => client.project.as_str().into(),
    };
    let now = (shell.now)();
    let mut variables = json!({"project": project, "agent": place.map(|(_, name)| name)});
    let started = when::filter(args.span.since, args.span.until, now);
    if !started.is_null() {
        variables["filter"] = json!({"startedAt": started});
    }
    let runs: Vec<Run> = client.list("Runs", "runs", variables, args.limit).await?;
    render::list(shell, common.output, &runs, "no runs", |runs| table(runs, now))
}

fn table(runs: &[Run], now: DateTime<Utc>) -> Table {
    let mut table = Table::new(&[
        "RUN", "AGENT", "REVISION", "OUTCOME", "STARTED", "TOOK", "TOKENS", "COST", "BY",
    ]);
    for run in runs {
        table.row([
            run.id.clone(),
            format!("{}/{}", run.project, run.agent),
            run.revision.to_string(),
            outcome(run),
            format!("{} ago", age(now, run.started_at)),
            took(run),
            tokens(run),
            cost(run),
            run.subject.clone(),
        ]);
    }
    table
}

fn outcome(run: &Run) -> String {
    let outcome = run.outcome.to_lowercase();
    if run.reason.is_empty() {
        outcome
    } else {
        format!("{outcome} ({})", run.reason)
    }
}

fn took(run: &Run) -> String {
    let ms = (run.ended_at - run.started_at).num_milliseconds();
    if ms < 10_000 {
        format!("{ms}ms")
    } else {
        render::seconds(ms / 1_000)
    }
}

fn tokens(run: &Run) -> String {
    let mark = if run.estimated { "~" } else { "" };
    format!("{mark}{}", run.input_tokens + run.output_tokens)
}

fn cost(run: &Run) -> String {
    run.cost
        .as_ref()
        .map_or_else(|| "-".to_owned(), |c| money(c.micros, &c.currency))
}

async fn get(client: &Client, common: &Common, id: &str, shell: &mut Shell) -> Outcome<()> {
    let run: Option<Run> = client.call("Run", "run", json!({"id": id})).await?;
    let run = run.ok_or_else(|| {
        Failure::new(Exit::NotFound, "there is no such run that you may see").next("roadstead runs")
    })?;
    if common.output != Format::Table {
        return render::value(shell, common.output, &run);
    }
    let text = page(&run);
    shell.say(&text)
}

fn page(run: &Run) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<10} {}", line(value));
        }
    };
    fact("Run", &run.id);
    fact(
        "Agent",
        &format!("{}/{}, revision {}", run.project, run.agent, run.revision),
    );
    fact("Cluster", run.cluster.as_deref().unwrap_or_default());
    fact("Outcome", &outcome(run));
    fact("By", &run.subject);
    fact("Session", &run.session_id);
    fact("Task", &run.task_id);
    fact("Started", &time(run.started_at));
    fact("Ended", &format!("{} (took {})", time(run.ended_at), took(run)));
    fact("Model", &format!("{}, {} calls", run.model, run.model_calls));
    let cached = if run.cached_input_tokens > 0 {
        format!(" ({} cached)", run.cached_input_tokens)
    } else {
        String::new()
    };
    let estimated = if run.estimated { ", estimated" } else { "" };
    fact(
        "Tokens",
        &format!(
            "{} in{cached}, {} out{estimated}",
            run.input_tokens, run.output_tokens
        ),
    );
    fact("Cost", &cost(run));
    fact("Trace", run.trace_id.as_deref().unwrap_or_default());
    if !run.tools.is_empty() {
        let mut table = Table::new(&["TOOL", "CALLS", "ERRORS"]);
        for tool in &run.tools {
            table.row([tool.name.clone(), tool.calls.to_string(), tool.errors.to_string()]);
        }
        let _ = write!(text, "\n{}", table.text());
    }
    text
}

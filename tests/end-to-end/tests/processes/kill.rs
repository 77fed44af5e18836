//! kill -9 of one process alone (hub, cluster agent, engine, PostgreSQL) at random points under writes and chats.
//!
//! Each round kills one of them while three callers go on: one writes documents, one talks with an agent, one lets an
//! agent call a tool that counts. What was acknowledged must be there at the end, once.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    ask,
    cli::Cli,
    counter,
    random::Random,
    wait,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, spawn_blocking};

/// A busy machine may be slow; something that never comes back is found all the same.
const BACK: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Hub,
    ClusterAgent,
    Engine,
    Postgres,
}

/// What the callers were told.
#[derive(Debug, Default)]
struct Told {
    documents: BTreeSet<String>,
    /// Tasks that ended well.
    tasks: BTreeSet<String>,
    /// Numbers given to the counting tool, of tasks that ended well.
    counted: BTreeSet<u64>,
    /// Calls that were not answered, or not well.
    refused: u32,
}

fn prompt(name: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: {name}}}\nspec: {{text: hi}}\n"
    )
}

/// Writes documents; one that is not acknowledged is written again, the same, until it is.
fn write(cli: &Cli, stop: &AtomicBool) -> Result<Told> {
    let mut told = Told::default();
    for n in 0.. {
        let name = format!("kept-{n}");
        loop {
            let answer = cli.with(&["apply", "-f", "-"], &prompt(&name))?;
            match answer.code {
                Some(0) => break,
                _ if stop.load(Ordering::Relaxed) => return Ok(told),
                // The hub is away, or its database is.
                Some(7) => told.refused += 1,
                _ => anyhow::bail!("{answer:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        told.documents.insert(name);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(told)
}

/// Talks; what is not answered is not asked again, since it may have happened.
fn talk(cli: &Cli, stop: &AtomicBool, counts: bool) -> Result<Told> {
    let mut told = Told::default();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let (agent, text) = match counts {
            true => ("counts", format!(r#"call counter/count {{"number": {n}}}"#)),
            false => ("echo", format!("say number {n}\nchunks 5 10")),
        };
        let answer = cli.run(&["chat", agent, "-o", "json", "--message", &text])?;
        if answer.code != Some(0) {
            told.refused += 1;
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let task = answer.json()?;
        let said = task["answer"].as_str().context("an answer")?;
        if counts && said.contains(&format!("counted {n}")) {
            told.counted.insert(n);
        }
        anyhow::ensure!(counts || said == format!("number {n}"), "{task}");
        told.tasks
            .insert(task["task"].as_str().context("a task")?.to_owned());
    }
    Ok(told)
}

struct Callers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Told>>>,
}

impl Callers {
    fn start(cli: &Cli) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        type Work = fn(&Cli, &AtomicBool) -> Result<Told>;
        let works: [Work; 3] = [write, |c, s| talk(c, s, false), |c, s| talk(c, s, true)];
        let tasks = works.map(|work| {
            let (cli, stop) = (cli.clone(), stop.clone());
            spawn_blocking(move || work(&cli, &stop))
        });
        Self {
            stop,
            tasks: tasks.into(),
        }
    }

    async fn end(mut self) -> Result<Told> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for task in std::mem::take(&mut self.tasks) {
            let told = task.await??;
            all.documents.extend(told.documents);
            all.tasks.extend(told.tasks);
            all.counted.extend(told.counted);
            all.refused += told.refused;
        }
        Ok(all)
    }
}

impl Drop for Callers {
    /// A test that has failed does not wait for them.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Kills one process, starts it again where nothing else does, and waits until what it did is done again.
async fn round(apart: &mut Apart, victim: Victim, random: &mut Random) -> Result<Duration> {
    tokio::time::sleep(Duration::from_millis(random.below(250))).await;
    let killed = Instant::now();
    match victim {
        Victim::Hub => {
            apart.hub()?.kill()?;
            apart.start_hub()?;
            apart.hub_ready().await?;
        }
        Victim::ClusterAgent => {
            apart.agent()?.kill()?;
            apart.start_agent()?;
            apart.linked().await?;
        }
        Victim::Engine => {
            let engines = wait::until("an engine", READY, || async {
                apart.engines().ok().filter(|engines| !engines.is_empty())
            });
            let engine = *random.one_of(&engines.await?);
            let status = Command::new("kill").args(["-9", &engine.to_string()]).output()?;
            // It may have ended by itself: its cluster agent was killed a moment ago.
            if status.status.success() {
                wait::until("another engine", READY, || async {
                    let engines = apart.engines().ok()?;
                    (engines.len() == 2 && !engines.contains(&engine)).then_some(())
                })
                .await?;
            }
        }
        Victim::Postgres => {
            let server = apart.database.server()?;
            server.kill()?;
            server.again()?;
            apart.hub_ready().await?;
        }
    }
    apart.answers("echo").await?;
    Ok(killed.elapsed())
}

async fn rounds(apart: &mut Apart, victims: &[Victim], count: u32, random: &mut Random) -> Result<()> {
    let mut slowest: BTreeMap<Victim, (u32, Duration)> = BTreeMap::new();
    // Each of them in turn for a start, then whoever it hits.
    let turns = victims.iter().copied().map(Some).chain(std::iter::repeat(None));
    for turn in turns.take(count as usize) {
        let victim = turn.unwrap_or_else(|| *random.one_of(victims));
        let took = round(apart, victim, random)
            .await
            .with_context(|| format!("after {victim:?} was killed\n{}", apart.logs()))?;
        eprintln!("{victim:?}: back after {took:?}");
        let entry = slowest.entry(victim).or_default();
        *entry = (entry.0 + 1, entry.1.max(took));
        anyhow::ensure!(took < BACK, "{victim:?} was back after {took:?}");
    }
    for (victim, (times, took)) in slowest {
        eprintln!("{victim:?}: killed {times} times, slowest return {took:?}");
    }
    Ok(())
}

async fn graphql(apart: &Apart, query: &str, variables: Value) -> Result<Value> {
    let url = format!("{}/graphql", apart.api());
    let body = json!({"query": query, "variables": variables});
    let (status, text) = ask::post(&url, &apart.token()?, &body).await?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
    anyhow::ensure!(answer["errors"].is_null(), "{answer}");
    Ok(answer["data"].clone())
}

/// Every node of a list, page by page.
async fn all(apart: &Apart, field: &str, arguments: &str, nodes: &str) -> Result<Vec<Value>> {
    let query = format!(
        "query($after: String) {{ {field}(first: 100, after: $after{arguments}) {{ nodes {{ {nodes} }} pageInfo {{ \
         hasNextPage endCursor }} }} }}"
    );
    let (mut found, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = graphql(apart, &query, json!({"after": after})).await?;
        found.extend(page[field]["nodes"].as_array().context("nodes")?.iter().cloned());
        if page[field]["pageInfo"]["hasNextPage"] != json!(true) {
            return Ok(found);
        }
        after = page[field]["pageInfo"]["endCursor"].clone();
    }
}

fn texts<'a>(items: &'a [Value], field: &'a str) -> impl Iterator<Item = String> + 'a {
    items
        .iter()
        .filter_map(move |item| item[field].as_str().map(str::to_owned))
}

/// Documents, audit records, run records and tool calls: everything acknowledged is there, and nothing twice.
async fn hold(apart: &Apart, told: &Told) -> Result<()> {
    let documents = all(apart, "documents", ", kind: PROMPT", "id name revision").await?;
    let names: BTreeSet<_> = texts(&documents, "name").collect();
    assert_eq!(
        names, told.documents,
        "every document that was acknowledged, and no other"
    );
    let again: Vec<_> = documents.iter().filter(|d| d["revision"] != json!(1)).collect();
    assert!(again.is_empty(), "written twice: {again:?}");
    let ids: BTreeSet<_> = texts(&documents, "id").collect();
    let records = all(apart, "auditRecords", "", "action object decision sequence").await?;
    let mut applied: BTreeMap<String, u32> = BTreeMap::new();
    for record in &records {
        let object = record["object"].as_str().unwrap_or_default();
        if ids.contains(object) && record["decision"] == "allow" {
            *applied.entry(object.to_owned()).or_default() += 1;
        }
    }
    let wrong: Vec<_> = ids.iter().filter(|id| applied.get(*id) != Some(&1)).collect();
    assert!(
        wrong.is_empty(),
        "{wrong:?} of {applied:?}: one audit record for each write"
    );
    let sequences: BTreeSet<_> = records.iter().filter_map(|r| r["sequence"].as_u64()).collect();
    assert_eq!(sequences.len(), records.len());
    assert_eq!(sequences.last().copied(), Some(records.len() as u64), "no gaps");

    let runs = wait::until("a run record of every task that was answered", READY, || async {
        let runs = all(apart, "runs", "", "id taskId outcome").await.ok()?;
        let tasks: BTreeSet<_> = texts(&runs, "taskId").collect();
        told.tasks.is_subset(&tasks).then_some(runs)
    })
    .await?;
    let (ids, tasks): (BTreeSet<_>, BTreeSet<_>) =
        (texts(&runs, "id").collect(), texts(&runs, "taskId").collect());
    assert_eq!(
        (ids.len(), tasks.len()),
        (runs.len(), runs.len()),
        "each run once"
    );
    counter::at_most_once(apart.folder(), &told.counted)?;
    eprint!("{}", apart.database.verify_audit()?);
    eprintln!(
        "{} documents, {} answers ({} of them counted), {} run records, {} audit records; {} calls refused meanwhile",
        told.documents.len(),
        told.tasks.len(),
        told.counted.len(),
        runs.len(),
        records.len(),
        told.refused
    );
    Ok(())
}

async fn kill_and_hold(keep: Keep, victims: &[Victim], count: u32) -> Result<()> {
    let mut random = Random::from_environment(&format!("kill -9 on {keep:?}"));
    let Some(mut apart) = Apart::start(keep, Setup::default()).await? else {
        return Ok(());
    };
    apart.apply(&counter::documents(apart.folder())?)?;
    for agent in ["echo", "counts"] {
        apart.answers(agent).await?;
    }
    let callers = Callers::start(&apart.cli);
    rounds(&mut apart, victims, count, &mut random).await?;
    let told = callers.end().await?;
    hold(&apart, &told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_one_process_is_killed() -> Result<()> {
    kill_and_hold(
        Keep::Sqlite,
        &[Victim::Hub, Victim::ClusterAgent, Victim::Engine],
        34,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_postgres_or_a_process_is_killed() -> Result<()> {
    let victims = [
        Victim::Postgres,
        Victim::Hub,
        Victim::ClusterAgent,
        Victim::Engine,
    ];
    kill_and_hold(Keep::Postgres, &victims, 20).await
}

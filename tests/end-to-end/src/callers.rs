//! Callers that go on while processes are killed, and what must hold of what they were told.

use crate::{apart::READY, ask, cli::Cli, counter, wait};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::{JoinHandle, spawn_blocking};

/// What the callers were told.
#[derive(Debug, Default)]
pub struct Told {
    documents: BTreeSet<String>,
    /// Tasks that ended well.
    tasks: BTreeSet<String>,
    /// Numbers given to the counting tool, of tasks that ended well.
    counted: BTreeSet<u64>,
    /// Calls that were not answered, or not well.
    refused: u32,
}

/// What they have been told so far, for who waits for more of it.
#[derive(Debug, Default)]
struct Progress {
    documents: AtomicU64,
    tasks: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn prompt(name: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: {name}}}\nspec: {{text: hi}}\n"
    )
}

/// Writes documents; one that is not acknowledged is written again, the same, until it is.
fn write(cli: &Cli, progress: &Progress) -> Result<Told> {
    let mut told = Told::default();
    for n in 0.. {
        let name = format!("kept-{n}");
        loop {
            let answer = cli.with(&["apply", "-f", "-"], &prompt(&name))?;
            match answer.code {
                Some(0) => break,
                _ if progress.stops() => return Ok(told),
                // The hub is away, or its database is.
                Some(7) => told.refused += 1,
                _ => anyhow::bail!("{answer:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        told.documents.insert(name);
        progress.documents.fetch_add(1, Ordering::Relaxed);
        if progress.stops() {
            break;
        }
    }
    Ok(told)
}

/// Talks; what is not answered is not asked again, since it may have happened.
fn talk(cli: &Cli, progress: &Progress, counts: bool) -> Result<Told> {
    let mut told = Told::default();
    let mut n = 0;
    while !progress.stops() {
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
        progress.tasks.fetch_add(1, Ordering::Relaxed);
    }
    Ok(told)
}

/// One writes documents, one talks with the agent `echo`, one lets `counts` call its tool
/// ([`counter::documents`]).
#[derive(Debug)]
pub struct Callers {
    progress: Arc<Progress>,
    tasks: Vec<JoinHandle<Result<Told>>>,
}

impl Callers {
    #[must_use]
    pub fn start(cli: &Cli) -> Self {
        let progress = Arc::new(Progress::default());
        type Work = fn(&Cli, &Progress) -> Result<Told>;
        let works: [Work; 3] = [write, |c, p| talk(c, p, false), |c, p| talk(c, p, true)];
        let tasks = works.map(|work| {
            let (cli, progress) = (cli.clone(), progress.clone());
            spawn_blocking(move || work(&cli, &progress))
        });
        Self {
            progress,
            tasks: tasks.into(),
        }
    }

    /// Waits until another document has been acknowledged and another task answered.
    ///
    /// # Errors
    /// When that takes too long. One that has given up says why in [`Self::end`].
    pub async fn told_more(&self) -> Result<()> {
        let now = || {
            let progress = &self.progress;
            let (documents, tasks) = (&progress.documents, &progress.tasks);
            (documents.load(Ordering::Relaxed), tasks.load(Ordering::Relaxed))
        };
        let before = now();
        wait::until("an answer to the callers", READY, || async {
            let after = now();
            let more = after.0 > before.0 && after.1 > before.1;
            (more || self.tasks.iter().any(JoinHandle::is_finished)).then_some(())
        })
        .await
    }

    /// Ends them; what all of them were told.
    ///
    /// # Errors
    /// When one was told something wrong.
    pub async fn end(mut self) -> Result<Told> {
        self.progress.stop.store(true, Ordering::Relaxed);
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
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}

/// A hub's public API, as a user with this token sees it.
pub struct Api {
    pub url: String,
    pub token: String,
}

impl Api {
    /// What it answers to a query.
    ///
    /// # Errors
    /// When there is no answer, or an error in it.
    pub async fn graphql(&self, query: &str, variables: Value) -> Result<Value> {
        let url = format!("{}/graphql", self.url);
        let body = json!({"query": query, "variables": variables});
        let (status, text) = ask::post(&url, &self.token, &body).await?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
        anyhow::ensure!(answer["errors"].is_null(), "{answer}");
        Ok(answer["data"].clone())
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Every node of a list, page by page.
async fn all(api: &Api, field: &str, arguments: &str, nodes: &str) -> Result<Vec<Value>> {
    let query = format!(
        "query($after: String) {{ {field}(first: 100, after: $after{arguments}) {{ nodes {{ {nodes} }} pageInfo {{ \
         hasNextPage endCursor }} }} }}"
    );
    let (mut found, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = api.graphql(&query, json!({"after": after})).await?;
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
/// `folder` is the counting tool's.
///
/// # Errors
/// When it is not so, with what is wrong.
pub async fn hold(api: &Api, folder: &Path, told: &Told) -> Result<()> {
    let documents = all(api, "documents", ", kind: PROMPT", "id name revision").await?;
    let names: BTreeSet<_> = texts(&documents, "name").collect();
    anyhow::ensure!(
        names == told.documents,
        "every document that was acknowledged, and no other: {names:?}, not {:?}",
        told.documents
    );
    let again: Vec<_> = documents.iter().filter(|d| d["revision"] != json!(1)).collect();
    anyhow::ensure!(again.is_empty(), "written twice: {again:?}");
    let ids: BTreeSet<_> = texts(&documents, "id").collect();
    let records = all(api, "auditRecords", "", "action object decision sequence").await?;
    let mut applied: BTreeMap<String, u32> = BTreeMap::new();
    for record in &records {
        let object = record["object"].as_str().unwrap_or_default();
        if ids.contains(object) && record["decision"] == "allow" {
            *applied.entry(object.to_owned()).or_default() += 1;
        }
    }
    let wrong: Vec<_> = ids.iter().filter(|id| applied.get(*id) != Some(&1)).collect();
    anyhow::ensure!(
        wrong.is_empty(),
        "{wrong:?} of {applied:?}: one audit record for each write"
    );
    let sequences: BTreeSet<_> = records.iter().filter_map(|r| r["sequence"].as_u64()).collect();
    anyhow::ensure!(
        sequences.iter().copied().eq(1..=records.len() as u64),
        "no gaps, and none twice: {sequences:?}"
    );

    let runs = wait::until("a run record of every task that was answered", READY, || async {
        let runs = all(api, "runs", "", "id taskId outcome").await.ok()?;
        let tasks: BTreeSet<_> = texts(&runs, "taskId").collect();
        told.tasks.is_subset(&tasks).then_some(runs)
    })
    .await?;
    let (ids, tasks): (BTreeSet<_>, BTreeSet<_>) =
        (texts(&runs, "id").collect(), texts(&runs, "taskId").collect());
    anyhow::ensure!(
        (ids.len(), tasks.len()) == (runs.len(), runs.len()),
        "each run once: {runs:?}"
    );
    counter::at_most_once(folder, &told.counted)?;
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

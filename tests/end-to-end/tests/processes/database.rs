//! The hub's database is locked, full or gone: a clear error, liveness green, readiness red, nothing half-written, and
//! everything works again by itself when the database does.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    ask, counter,
    database::{Database, Postgres},
    disk::Disk,
    random::Random,
    wait,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// For the hub to say that it is not ready.
const RED: Duration = Duration::from_secs(30);

/// What is to be refused: a full disk has free pages for small rows, and these come and go with what else is written.
const REFUSED: &str = "refused";

/// A text that does not fit into pages that are there, however it is compressed.
fn bulk() -> String {
    let mut random = Random::from_environment("a text");
    (0..200_000)
        .map(|_| char::from(*random.one_of(b"abcdefghijklmnopqrstuvwxyz0123456789")))
        .collect()
}

fn set(name: &str) -> String {
    let hi = if name == REFUSED { bulk() } else { "hi".to_owned() };
    let prompt = |name: &str, text: &str| {
        format!(
            "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: {name}}}\nspec: {{text: {text}}}\n"
        )
    };
    [
        prompt(&format!("{name}-one"), &format!("x{hi}")),
        prompt(&format!("{name}-two"), "ho"),
    ]
    .join("---\n")
}

fn prompts(apart: &Apart) -> Result<Vec<String>> {
    let listed = apart.cli.run(&["get", "prompts", "-o", "json"])?.json()?;
    let names = listed.as_array().context("a list")?.iter();
    Ok(names
        .filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

/// What must hold while the database does not work; `words` are part of what people are told.
async fn fails_well(apart: &Apart, words: &str) -> Result<()> {
    let refused = apart.cli.with(&["apply", "-f", "-"], &set(REFUSED))?;
    assert_eq!(refused.code, Some(7), "unavailable: {refused:?}");
    assert!(refused.err.contains(words), "{words:?} in {refused:?}");
    let secret = apart.database.url.contains("canary") && refused.err.contains("canary");
    assert!(
        !secret && !refused.err.contains("SELECT") && !refused.err.contains("INSERT"),
        "{refused:?}"
    );

    let document = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Prompt", "metadata": {"name": "refused-three"},
                          "spec": {"text": bulk()}});
    let body = json!({
        "query": "mutation($i: ApplyDocumentsInput!) { applyDocuments(input: $i) { errors { code message } } }",
        "variables": {"i": {"documents": [{"json": document}], "project": "default", "idempotencyKey": "one-two-three"}},
    });
    let (status, text) = ask::post(&format!("{}/graphql", apart.api()), &apart.token()?, &body).await?;
    assert!(
        text.contains("UNAVAILABLE") && text.contains(words),
        "{status}: {text}"
    );

    assert_eq!(
        apart.probe("/livez").await.map(|(status, _)| status),
        Some(200),
        "liveness green"
    );
    let red = || async { apart.probe("/readyz").await.filter(|(status, _)| *status == 503) };
    let (_, said) = wait::until("readiness red", RED, red).await?;
    assert!(!said.contains("canary"), "{said}");
    assert_eq!(
        apart.probe("/livez").await.map(|(status, _)| status),
        Some(200),
        "liveness green"
    );
    Ok(())
}

/// What must hold once the database works again: without a restart, and without what was refused.
async fn comes_back(apart: &mut Apart, kept: &[impl AsRef<str>]) -> Result<()> {
    let ready = apart.hub_ready().await?;
    let written = || async {
        let applied = apart.cli.with(&["apply", "-f", "-"], &set("after")).ok()?;
        (applied.code == Some(0)).then_some(())
    };
    wait::until("a write", READY, written).await?;
    let mut expected: Vec<String> = kept
        .iter()
        .map(AsRef::as_ref)
        .chain(["after"])
        .flat_map(|name| [format!("{name}-one"), format!("{name}-two")])
        .collect();
    expected.sort();
    let mut found = prompts(apart)?;
    found.sort();
    assert_eq!(found, expected, "nothing half-written, nothing lost");
    apart.answers("echo").await?;
    eprintln!(
        "ready again after {ready:?}; audit: {}",
        apart.database.verify_audit()?.trim()
    );
    Ok(())
}

async fn started(keep: Keep) -> Result<Option<Apart>> {
    let Some(apart) = Apart::start(keep, Setup::default()).await? else {
        return Ok(None);
    };
    prepare(&apart).await?;
    Ok(Some(apart))
}

async fn prepare(apart: &Apart) -> Result<()> {
    apart.apply(&counter::documents(apart.folder())?)?;
    apart.apply(&set("before"))?;
    apart.answers("echo").await.map(drop)
}

/// Another process that has a SQLite file open, in a transaction.
struct Session(Child);

impl Session {
    /// After these statements, until it is dropped.
    fn of(file: &Path, statements: &str) -> Result<Self> {
        let program = "import sqlite3, sys\n\
                       c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n\
                       for s in sys.argv[2].split(';'): c.execute(s).fetchall()\n\
                       print('open', flush=True)\nsys.stdin.read()\n";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .arg(file)
            .arg(statements)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        anyhow::ensure!(line.trim() == "open", "{line:?}");
        Ok(Self(child))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_said_and_waited_out() -> Result<()> {
    let mut apart = started(Keep::Sqlite).await?.context("SQLite")?;
    let lock = Session::of(&apart.folder().join("hub.db"), "BEGIN EXCLUSIVE")?;
    fails_well(&apart, "locked").await?;
    assert_eq!(prompts(&apart)?, ["before-one", "before-two"], "readers go on");
    // What agents do goes on, and its record waits.
    let said = apart
        .cli
        .run(&["chat", "echo", "--message", "say all the same"])?
        .ok()?;
    assert!(said.contains("all the same"), "{said}");
    let task = apart
        .cli
        .run(&["chat", "echo", "-o", "json", "--message", "say recorded"])?
        .json()?;
    drop(lock);
    comes_back(&mut apart, &["before"]).await?;
    recorded(&apart, &task["task"]).await
}

async fn recorded(apart: &Apart, task: &Value) -> Result<()> {
    wait::until("the run record", READY, || async {
        let runs = apart.cli.run(&["runs", "-o", "json"]).ok()?.json().ok()?;
        runs.as_array()?
            .iter()
            .any(|run| run["taskId"] == *task)
            .then_some(())
    })
    .await
}

/// What is left on a disk that is about to be full.
const ROOM: u64 = 256 * 1024;

/// Writes until not even a small one is kept any more; the names of those that were. Readiness may be green only as long as
/// writes are kept.
async fn fill_up(apart: &Apart, disk: &Disk) -> Result<Vec<String>> {
    disk.fill(ROOM)?;
    let mut kept = Vec::new();
    let mut refused = 0;
    // The database goes on in the room that it has already: its log, and its free pages.
    for number in 0..2_000 {
        let name = format!("n{number}");
        let ready = apart.probe("/readyz").await.map(|(status, _)| status);
        let applied = apart.cli.with(&["apply", "-f", "-"], &set(&name))?;
        match applied.code {
            Some(0) => {
                kept.push(name);
                refused = 0;
            }
            Some(7) if applied.err.contains("disk is full") => refused += 1,
            _ => anyhow::bail!("{applied:?}"),
        }
        if refused >= 5 && ready == Some(503) {
            eprintln!("full after {} more writes", kept.len());
            return Ok(kept);
        }
        // An answer of readiness is as old as two seconds.
        anyhow::ensure!(refused < 200, "writes are refused and readiness says {ready:?}");
    }
    anyhow::bail!("the disk does not fill up");
}

/// The whole story of a full disk; `apart` keeps its database on `disk`.
async fn full_and_back(apart: &mut Apart, disk: &Disk) -> Result<()> {
    prepare(apart).await?;
    let mut kept = vec!["before".to_owned()];
    kept.extend(fill_up(apart, disk).await?);
    fails_well(apart, "disk is full").await?;
    // It does not turn green by itself, and what is there can be read.
    for _ in 0..10 {
        let (status, said) = apart.probe("/readyz").await.context("an answer")?;
        assert!(status == 503 && said.contains("disk is full"), "{status}: {said}");
        let refused = apart.cli.with(&["apply", "-f", "-"], &set(REFUSED))?;
        assert_eq!(refused.code, Some(7), "{refused:?}");
    }
    assert_eq!(prompts(apart)?.len(), 2 * kept.len(), "readers go on");
    let task = apart
        .cli
        .run(&["chat", "echo", "-o", "json", "--message", "say recorded"])?
        .json()?;
    apart.database.verify_audit()?;
    disk.make_room()?;
    comes_back(apart, &kept).await?;
    recorded(apart, &task["task"]).await?;
    // What was acknowledged is on the disk, and not in the process that acknowledged it.
    apart.hub()?.kill()?;
    apart.start_hub()?;
    apart.hub_ready().await?;
    assert_eq!(prompts(apart)?.len(), 2 * (kept.len() + 1));
    apart.database.verify_audit().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_waited_out() -> Result<()> {
    let Some(disk) = Disk::small(16, 0)? else {
        return Ok(());
    };
    let database = Database::sqlite(disk.path())?;
    let mut apart = Apart::with(tempfile::tempdir()?, database, Setup::default()).await?;
    full_and_back(&mut apart, &disk).await
}

/// Its tables are on the small disk, and what else a server writes is not: where its log is full too it ends, as it does in
/// the test of one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_whose_disk_is_full_is_said_and_waited_out() -> Result<()> {
    let Some(disk) = Disk::small(32, Postgres::user()?)? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let Some(database) = Database::postgres_on(folder.path(), disk.path())? else {
        return Ok(());
    };
    let mut apart = Apart::with(folder, database, Setup::default()).await?;
    full_and_back(&mut apart, &disk).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_that_is_moved_away_is_said_and_waited_out() -> Result<()> {
    let mut apart = started(Keep::Sqlite).await?.context("SQLite")?;
    let (file, aside) = (apart.folder().join("hub.db"), apart.folder().join("aside.db"));
    std::fs::rename(&file, &aside)?;
    fails_well(&apart, "gone").await?;
    std::fs::rename(&aside, &file)?;
    comes_back(&mut apart, &["before"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_gone_is_said_and_waited_out() -> Result<()> {
    let Some(mut apart) = started(Keep::Postgres).await? else {
        return Ok(());
    };
    let (url, token) = apart.in_cluster("echo").await?;
    apart.database.server()?.stop()?;
    fails_well(&apart, "database does not answer").await?;
    // Engines need neither hub nor database.
    let task = ask::turn(&url, &token, "without-a-database", "say still here").await?;
    assert_eq!(task["status"]["state"], "TASK_STATE_COMPLETED", "{task}");
    apart.database.server()?.again()?;
    apart.linked().await?;
    comes_back(&mut apart, &["before"]).await?;
    recorded(&apart, &task["id"]).await
}

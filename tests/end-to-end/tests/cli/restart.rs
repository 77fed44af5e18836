//! `restart`: the engine really gets another process, and a task that runs goes on in it.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{binary, dev::Dev, processes::Process, wait};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf, process::Command};

const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                     instructions: Answer.\n  model: default\n";

/// Longer than the grace that tasks have before their engine ends, chunk by chunk.
fn slowly() -> String {
    let words: Vec<String> = (0..60).map(|n| format!("word{n}")).collect();
    format!("say {}\nchunks 60 300", words.join(" "))
}

/// The engine's processes as the result of a restart names them: after and before.
fn processes(detail: &str) -> Result<(u32, u32)> {
    let numbers = detail
        .split(|c: char| !c.is_ascii_digit())
        .filter(|n| !n.is_empty());
    let numbers: Vec<u32> = numbers.map(str::parse).collect::<Result<_, _>>()?;
    match numbers.as_slice() {
        [after, before] => Ok((*after, *before)),
        _ => anyhow::bail!("no two processes in {detail:?}"),
    }
}

fn runs(pid: u32) -> bool {
    // A zombie has no command line.
    let line = PathBuf::from(format!("/proc/{pid}/cmdline"));
    std::fs::read(line).is_ok_and(|line| !line.is_empty())
}

fn restart(dev: &Dev, words: &[&str]) -> Result<Value> {
    let words = [&["restart", "echo", "-o", "json"][..], words].concat();
    let made = dev.cli(&words)?.json()?;
    made.get(0).cloned().context(made.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_gets_another_process_and_a_task_that_runs_goes_on_in_it() -> Result<()> {
    let dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], AGENT)?.ok()?;
    dev.cli(&["chat", "echo", "-m", "say ready"])?.ok()?;
    let mut chat = Command::new(binary("roadstead"));
    chat.args(["chat", "echo", "-m", &slowly()])
        .env("ROADSTEAD_CONFIG", dev.folder().join("config.toml"));
    let mut chat = Process::start(&mut chat, &dev.folder().join("chat.log"))?;
    wait::until("the task runs", super::SOON, || async {
        chat.output().contains("word1").then_some(())
    })
    .await?;

    let command = restart(&dev, &["--wait"])?;
    assert_eq!(command["result"]["code"], "SUCCEEDED", "{command}");
    let detail = command["result"]["detail"].as_str().context("a detail")?;
    let (after, before) = processes(detail)?;
    assert_ne!(after, before);
    assert!(runs(after) && !runs(before), "{detail}");

    let status = wait::until("the task's end", super::SOON, || {
        let status = chat.exited();
        async move { status.ok().flatten() }
    })
    .await?;
    let said = chat.output();
    assert!(status.success() && said.contains("word59"), "{status}: {said}");
    let log = dev.cli(&["logs", "echo"])?.ok()?;
    for pid in [before, after] {
        assert!(
            log.contains(&format!("the engine starts as process {pid}")),
            "{log}"
        );
    }
    wait::until("the task's run record", super::SOON, || async {
        let listed = dev.cli(&["runs", "-o", "json"]).ok()?.json().ok()?;
        let done = listed
            .as_array()?
            .iter()
            .filter(|run| run["outcome"] == "COMPLETED");
        (done.count() == 2).then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_outlives_the_hub_and_is_done_once() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], AGENT)?.ok()?;
    dev.cli(&["chat", "echo", "-m", "say ready"])?.ok()?;
    let command = restart(&dev, &[])?;
    let id = command["id"].as_str().context("an id")?.to_owned();
    // The hub and its cluster agent end in the middle of whatever they do.
    dev.hub()?.kill()?;
    dev.up().await?;
    let commanded = || -> Option<Value> {
        let listed = dev.cli(&["commands", "-o", "json"]).ok()?.json().ok()?;
        let found = listed.as_array()?.iter().find(|command| command["id"] == *id)?;
        (found["state"] == "DONE").then(|| found.clone())
    };
    let ended = wait::until("a result", super::SOON, || async { commanded() }).await?;
    let code = ended["result"]["code"].as_str().context("a code")?;
    assert!(matches!(code, "SUCCEEDED" | "UNKNOWN"), "{ended}");
    // Said once, and then the same for ever.
    let again = restart(
        &dev,
        &[
            "--wait",
            "--cluster",
            ended["cluster"].as_str().context("a cluster")?,
        ],
    )?;
    assert_eq!(again["result"]["code"], "SUCCEEDED", "{again}");
    let table = dev.cli(&["commands", "--agent", "echo"])?.ok()?;
    let rows: BTreeSet<&str> = table.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{table}");
    assert_eq!(commanded(), Some(ended));

    // What cannot be is said at once, and nothing is made.
    let refused = dev.cli(&["restart", "echo", "--cluster", "elsewhere"])?;
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(
        refused.err.contains("does not run on a cluster elsewhere"),
        "{refused:?}"
    );
    let refused = dev.cli(&["restart", "nobody"])?;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert_eq!(
        dev.cli(&["commands", "-o", "json"])?
            .json()?
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    let log = dev
        .cli(&["audit", "--action", "restart agent", "-o", "json"])?
        .json()?;
    assert_eq!(log.as_array().map(Vec::len), Some(2), "{log}");
    Ok(())
}

//! Faults of whole processes: what was acknowledged stays, nothing happens twice, and everything comes back by itself.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{binary, dev::Dev, wait};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

const ROUNDS: u32 = 50;
const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                     instructions: Answer.\n  model: default\n";

fn prompt(name: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: {name}}}\nspec: {{text: hi}}\n"
    )
}

fn names(dev: &Dev, kind: &str) -> Result<BTreeSet<String>> {
    let listed = dev.cli(&["get", kind, "-o", "json"])?.json()?;
    let name = |d: &Value| d["metadata"]["name"].as_str().map(str::to_owned);
    Ok(listed
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(name)
        .collect())
}

/// kill -9 of hub, cluster agent and engines at once, under writes: dev is one process tree, and its engines end with
/// it.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_everything_is_killed() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], AGENT)?.ok()?;
    let mut acknowledged = BTreeSet::new();
    let mut ready = Duration::ZERO;
    for round in 0..ROUNDS {
        let name = format!("kept-{round}");
        if dev.cli_with(&["apply", "-f", "-"], &prompt(&name))?.code == Some(0) {
            acknowledged.insert(name);
        }
        let said = dev
            .cli(&["chat", "echo", "--message", &format!("say round {round}")])?
            .ok()?;
        assert!(said.contains(&format!("round {round}")), "{said}");
        dev.take_hub()?.kill()?;
        let killed = Instant::now();
        dev.up().await?;
        ready = ready.max(killed.elapsed());
    }
    assert_eq!(names(&dev, "prompts")?, acknowledged);
    let runs = wait::until("a run record of every chat", Duration::from_secs(30), || async {
        let runs = dev
            .cli(&["runs", "--limit", "100", "-o", "json"])
            .ok()?
            .json()
            .ok()?;
        runs.as_array().filter(|r| r.len() >= ROUNDS as usize).cloned()
    });
    assert_eq!(runs.await?.len(), ROUNDS as usize, "each run once");
    let verified = Command::new(binary("roadstead-hub"))
        .args(["audit", "verify", "--state"])
        .arg(dev.state())
        .output()?;
    assert!(verified.status.success(), "{verified:?}");
    eprintln!("slowest return: {ready:?}");
    Ok(())
}

/// The model server stops in the middle of a conversation: the task ends with a reason and never hangs.
#[tokio::test]
async fn a_model_that_is_gone_ends_the_task_with_a_reason() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], AGENT)?.ok()?;
    dev.cli(&["chat", "echo", "--message", "say hello"])?.ok()?;
    let refused = dev.cli(&["chat", "echo", "--message", "fail 401"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    dev.model().kill()?;
    let gone = dev.cli(&["chat", "echo", "--message", "say hello"])?;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.contains("model"), "{gone:?}");
    Ok(())
}

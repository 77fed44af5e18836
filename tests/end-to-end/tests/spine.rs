//! The whole path with real processes: document → hub → cluster agent → engine → model and MCP tools → streamed answer
//! → run record.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{binary, dev::Dev, processes::descendants, tools, wait};
use serde_json::Value;
use std::{process::Command, time::Duration};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples");
const SOON: Duration = Duration::from_secs(30);

fn runs(dev: &Dev) -> Result<Vec<Value>> {
    let answer = dev.cli(&["runs", "-o", "json"])?.json()?;
    Ok(answer.as_array().cloned().unwrap_or_default())
}

async fn run_count(dev: &Dev, count: usize) -> Result<Vec<Value>> {
    wait::until("the run records", SOON, || async {
        runs(dev).ok().filter(|r| r.len() >= count)
    })
    .await
}

#[tokio::test]
async fn a_document_becomes_an_answer_and_a_run() -> Result<()> {
    if tools().is_none() {
        return Ok(());
    }
    let mut dev = Dev::start().await?;
    assert_eq!(
        dev.cli(&["get", "agents", "-o", "json"])?.json()?,
        serde_json::json!([])
    );
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/time")])?.ok()?;
    let said = dev
        .cli(&["chat", "time", "--message", "say Good morning."])?
        .ok()?;
    assert!(said.contains("Good morning."), "{said}");
    let call = r#"call time/get_current_time {"timezone": "Europe/Berlin"}"#;
    let told = dev.cli(&["chat", "time", "--message", call])?.ok()?;
    assert!(
        told.contains("Europe/Berlin") && told.contains("datetime"),
        "{told}"
    );
    let runs = run_count(&dev, 2).await?;
    let run = serde_json::to_string(&runs)?;
    assert!(
        run.contains("time/get_current_time") && !run.contains("Good morning"),
        "{run}"
    );

    let verified = Command::new(binary("roadstead-hub"))
        .args(["audit", "verify", "--state"])
        .arg(dev.state())
        .output()?;
    assert!(verified.status.success(), "{verified:?}");
    state_survives_and_nothing_is_left(&mut dev).await
}

async fn state_survives_and_nothing_is_left(dev: &mut Dev) -> Result<()> {
    let mut hub = dev.take_hub()?;
    let children = descendants(hub.id())?;
    assert!(!children.is_empty(), "dev has an engine");
    hub.signal("INT")?;
    let mut status = None;
    let ended = std::time::Instant::now();
    while status.is_none() {
        anyhow::ensure!(
            ended.elapsed() < SOON,
            "Ctrl-C does not end dev:\n{}",
            hub.output()
        );
        status = hub.exited()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(status.context("ended")?.success(), "{}", hub.output());
    let left: Vec<_> = children.into_iter().filter(|pid| running(*pid)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");

    dev.up().await?;
    let agents = dev.cli(&["get", "agents", "-o", "json"])?.json()?;
    assert_eq!(agents.as_array().map(Vec::len), Some(1), "{agents}");
    dev.cli(&["chat", "time", "--message", "say Back again."])?.ok()?;
    run_count(dev, 3).await?;
    Ok(())
}

/// A process that runs: neither gone nor a zombie.
fn running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|l| l.starts_with("State:") && !l.contains('Z'))
}

#[tokio::test]
async fn a_wrong_document_changes_nothing() -> Result<()> {
    let dev = Dev::start().await?;
    let set = "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: good}\nspec: {text: hi}\n---\n\
               apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: bad}\nspec:\n  instructions: hi\n  \
               model: nowhere\n  modle: typo\n";
    let refused = dev.cli_with(&["apply", "-f", "-"], set)?;
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(
        refused.err.contains("spec.modle") && refused.err.contains("12"),
        "{refused:?}"
    );
    let prompts = dev.cli(&["get", "prompts", "-o", "json"])?.json()?;
    assert_eq!(prompts, serde_json::json!([]));
    Ok(())
}

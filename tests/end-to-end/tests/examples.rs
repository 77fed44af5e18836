//! The examples of docs/examples, as they are, with their real MCP servers.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{ask, dev::Dev, tools, wait};
use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples");
/// Where the documents say that the sample data is.
const DATA: &str = "/tmp/roadstead-examples";

fn sample_data() -> Result<()> {
    let made = Command::new(format!("{EXAMPLES}/setup")).output()?;
    anyhow::ensure!(made.status.success(), "{made:?}");
    Ok(())
}

#[tokio::test]
async fn files_are_read_and_nothing_is_written_without_a_yes() -> Result<()> {
    if tools().is_none() {
        return Ok(());
    }
    sample_data()?;
    let dev = Dev::start().await?;
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/files")])?.ok()?;
    let read = format!(r#"call files/read_text_file {{"path": "{DATA}/files/harbour.md"}}"#);
    let told = dev.cli(&["chat", "files", "--message", &read])?.ok()?;
    assert!(told.contains("North harbour"), "{told}");

    let note = format!("{DATA}/files/never-agreed-{}.md", std::process::id());
    let write = format!(r#"call files/write_file {{"path": "{note}", "content": "x"}}"#);
    let waits = dev.cli(&["chat", "files", "--message", &write])?;
    assert_eq!(waits.code, Some(9), "the task waits for a person: {waits:?}");
    assert!(!Path::new(&note).exists(), "written without a yes");

    let outside = r#"call files/read_text_file {"path": "/etc/passwd"}"#;
    let refused = dev.cli(&["chat", "files", "--message", outside])?.ok()?;
    assert!(!refused.contains("root:"), "{refused}");
    // S79: a tool that the server has and the agent was not given.
    let evil =
        format!(r#"evil files/move_file {{"source": "{DATA}/files/harbour.md", "destination": "{note}"}}"#);
    dev.cli(&["chat", "files", "--message", &evil])?;
    assert!(Path::new(&format!("{DATA}/files/harbour.md")).exists() && !Path::new(&note).exists());
    Ok(())
}

#[tokio::test]
async fn release_notes_come_from_a_real_repository() -> Result<()> {
    if tools().is_none() {
        return Ok(());
    }
    sample_data()?;
    let dev = Dev::start().await?;
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/release-notes")])?
        .ok()?;
    let log = format!(r#"call git/git_log {{"repo_path": "{DATA}/repository"}}"#);
    let told = dev.cli(&["chat", "release-notes", "--message", &log])?.ok()?;
    assert!(
        told.contains("Compute high water") && told.contains("Document the unit"),
        "{told}"
    );
    Ok(())
}

/// For a small model to answer on a processor.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whether the small real model was asked for; `make test` does without.
fn real_model() -> Result<Option<Command>> {
    if std::env::var("ROADSTEAD_REAL_LLM").is_ok_and(|wanted| wanted == "1") {
        let python = std::env::var_os("ROADSTEAD_TEST_MODEL_PYTHON").context(
            "no local model is installed: tests/tools/install --with-local-model, and read its env file",
        )?;
        let mut command = Command::new(python);
        command.arg(format!("{EXAMPLES}/tools/local-model"));
        return Ok(Some(command));
    }
    eprintln!("left out: ROADSTEAD_REAL_LLM=1 asks the small real model");
    Ok(None)
}

/// One question; what is asserted is what a model of 135 million parameters can do: text comes in pieces, the task ends,
/// its run is recorded. Which tools it calls, and whether it is right, is not.
async fn asked(dev: &mut Dev, agent: &str, question: &str) -> Result<()> {
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/{agent}")])?.ok()?;
    dev.cli(&["describe", "agent", agent])?.ok()?;
    let url = format!("{}/a2a/local/default/{agent}", dev.api()?);
    let events = ask::stream(&url, &dev.token()?, question, PATIENCE).await?;
    let results: Vec<&Value> = events.iter().map(|event| &event["result"]).collect();
    let pieces: Vec<&str> = results
        .iter()
        .filter_map(|r| r["artifactUpdate"]["artifact"]["parts"][0]["text"].as_str())
        .filter(|text| !text.is_empty())
        .collect();
    anyhow::ensure!(pieces.len() > 1, "{agent}: no answer that streams in {events:?}");
    let mut ends = results
        .iter()
        .filter_map(|r| r["statusUpdate"]["status"]["state"].as_str());
    let end = ends.next_back().unwrap_or_default().to_owned();
    let task = results
        .iter()
        .find_map(|r| r["statusUpdate"]["taskId"].as_str())
        .context("a task")?;
    anyhow::ensure!(end == "TASK_STATE_COMPLETED", "{agent}: {end}: {events:?}");
    let run = wait::until("the run record", Duration::from_secs(30), || async {
        let runs = dev.cli(&["runs", "-o", "json"]).ok()?.json().ok()?;
        runs.as_array()?.iter().find(|run| run["taskId"] == task).cloned()
    })
    .await?;
    anyhow::ensure!(
        run["outcome"] == "COMPLETED" && run["model"] == "smollm2-135m",
        "{run}"
    );
    eprintln!(
        "{agent}: {} pieces, {} model calls, {} + {} tokens, tools {}: {}",
        pieces.len(),
        run["modelCalls"],
        run["inputTokens"],
        run["outputTokens"],
        run["tools"],
        pieces.concat().chars().take(200).collect::<String>()
    );
    Ok(())
}

#[tokio::test]
async fn every_example_answers_with_a_real_model() -> Result<()> {
    let Some(mut model) = real_model()? else {
        return Ok(());
    };
    if tools().is_none() {
        return Ok(());
    }
    sample_data()?;
    let address = |line: &str| line.starts_with("http://").then(|| line.trim().to_owned());
    let mut dev = Dev::with_model(&mut model, "smollm2-135m", address).await?;
    for (agent, question) in [
        ("hello", "Say hello in one short sentence."),
        (
            "time",
            "What is a time zone? Answer in one short sentence, without a tool.",
        ),
        (
            "files",
            "What is a harbour? Answer in one short sentence, without a tool.",
        ),
        (
            "release-notes",
            "What is a commit? Answer in one short sentence, without a tool.",
        ),
    ] {
        asked(&mut dev, agent, question).await?;
    }
    Ok(())
}

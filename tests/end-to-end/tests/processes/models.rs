//! The model server is gone, slow, breaks off, throttles or talks nonsense: over the whole path, from the CLI to the run
//! record, a task ends with a reason and never hangs.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    wait,
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Three tries of 2 s each, with what lies between them; a busy machine gets some more.
const ENDS: Duration = Duration::from_secs(60);

const SCRIPT: &str = r"
rules:
  - {when: {user: silent}, fault: hang}
  - {when: {user: stuck}, reply: {text: [one, two, three]}, fault: {hangAfter: {chunks: 1}}}
  - {when: {user: Go on exactly}, fault: hang}
  - {when: {user: breaks}, reply: {text: [one, two, three]}, fault: {cutAfter: {chunks: 0}}}
  - {when: {user: throttled}, fault: {status: {status: 429, retryAfter: '600'}}}
  - {when: {user: overloaded}, fault: {status: {status: 503}}}
  - {when: {user: nonsense}, reply: {text: [one, two]}, fault: {nonsenseAfter: {chunks: 0}}}
  - {when: {user: page}, fault: {page: {status: 200, contentType: text/html, body: '<h1>Welcome</h1>'}}}
  - {when: {user: crawls}, reply: {text: [a, b, c, d, e, f, g, h, i, j], delayMs: 2000}}
";
const AGENTS: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  instructions: \
                      Answer.\n  model: default\n  limits: {wallTime: 40s}\n---\nkind: Agent\nmetadata: {name: \
                      hasty}\nspec:\n  instructions: Answer.\n  model: patient\n  limits: {wallTime: 3s}\n";

/// One message that must fail; the reason of its task, and the words with it.
async fn fails(apart: &Apart, agent: &str, message: &str) -> Result<(String, String)> {
    let started = Instant::now();
    let answer = apart
        .cli
        .run(&["chat", agent, "-o", "json", "--message", message])?;
    let took = started.elapsed();
    anyhow::ensure!(took < ENDS, "{message}: ended after {took:?}: {answer:?}");
    anyhow::ensure!(answer.code == Some(1), "{message}: {answer:?}");
    let task: Value = serde_json::from_str(&answer.out).with_context(|| format!("{answer:?}"))?;
    anyhow::ensure!(task["state"] == "failed", "{message}: {task}");
    let reason = task["reason"].as_str().unwrap_or_default().to_owned();
    anyhow::ensure!(
        !reason.is_empty() && answer.err.contains(&reason),
        "{message}: {answer:?}"
    );
    let run = wait::until("the run record", READY, || async {
        let runs = apart.cli.run(&["runs", "-o", "json"]).ok()?.json().ok()?;
        runs.as_array()?
            .iter()
            .find(|run| run["taskId"] == task["task"])
            .cloned()
    })
    .await?;
    anyhow::ensure!(run["reason"] == reason.as_str(), "{message}: {reason} and {run}");
    eprintln!("{message}: {reason} after {took:?}: {}", answer.err.trim());
    Ok((reason, answer.err))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_model_server_ends_the_task_with_a_reason() -> Result<()> {
    let setup = Setup {
        script: Some(SCRIPT.to_owned()),
        model_options: Some("{timeout: 2s}".to_owned()),
        ..Setup::default()
    };
    let mut apart = Apart::start(Keep::Sqlite, setup).await?.context("SQLite")?;
    apart.apply(&format!(
        "{AGENTS}---\n{}",
        apart.model_document("patient", "{timeout: 60s}")
    ))?;
    apart.answers("echo").await?;
    for (message, expected) in [
        ("silent", "model.timeout"),
        ("stuck", "model.timeout"),
        ("breaks", "model."),
        ("throttled", "model."),
        ("overloaded", "model."),
        ("nonsense", "model."),
        ("page", "model."),
    ] {
        let (reason, _) = fails(&apart, "echo", message).await?;
        assert!(reason.starts_with(expected), "{message}: {reason}");
    }
    let (reason, _) = fails(&apart, "hasty", "crawls").await?;
    assert_eq!(reason, "limit.wallTime");
    apart.model()?.kill()?;
    let (reason, said) = fails(&apart, "echo", "gone").await?;
    assert!(
        reason.starts_with("model.") && said.contains("model"),
        "{reason}: {said}"
    );
    apart.start_model().await?;
    apart.answers("echo").await?;
    Ok(())
}

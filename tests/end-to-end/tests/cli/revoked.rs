//! A revocation ends what already runs: streams and followed logs, of the token and of the cluster.

use super::SOON;
use anyhow::{Context as _, Result};
use roadstead_end_to_end::{ask::Events, binary, dev::Dev, processes::Process, wait};
use std::process::Command;

const ECHO: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                    instructions: Answer.\n  model: default\n";
/// Ends by itself after five minutes.
const LONG: [&str; 2] = [
    "say first two three four five six seven eight nine ten eleven twelve\nchunks 30 10000",
    "say second two three four five six seven eight nine ten eleven twelve\nchunks 30 10000",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s14_a_revocation_ends_what_runs_by_the_token_and_then_the_cluster() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], ECHO)?.ok()?;
    dev.cli(&["chat", "echo", "-m", "say one"])?.ok()?;
    let (api, owner) = (dev.api()?, dev.token()?);
    let agent = format!("{api}/a2a/local/default/echo");
    let file = dev.folder().join("guest.token").display().to_string();
    let create = [
        "tokens",
        "create",
        "guest",
        "--role",
        "editor",
        "--scope",
        "invoke",
        "--token-file",
        &file,
        "-o",
        "json",
    ];
    let made = dev.cli(&create)?.json()?;
    let id = made["token"]["id"].as_str().context("an id")?;
    let add = [
        "context",
        "add",
        "guest",
        "--server",
        &api,
        "--tenant",
        "local",
        "--token-file",
        &file,
    ];
    dev.cli(&add)?.ok()?;
    let guest = std::fs::read_to_string(&file)?;

    let running = Events::begin(&agent, guest.trim(), LONG[0]).await?;
    let mut follow = Command::new(binary("roadstead"));
    follow
        .args(["logs", "echo", "-f", "--context", "guest"])
        .env("ROADSTEAD_CONFIG", dev.folder().join("config.toml"));
    let mut logs = Process::start(&mut follow, &dev.folder().join("logs.txt"))?;
    wait::until("the log is followed", SOON, || async {
        (!logs.output().is_empty()).then_some(())
    })
    .await?;
    dev.cli(&["tokens", "revoke", id])?.ok()?;
    let events = running.rest(SOON).await?;
    let last = events.last().context("a last event")?;
    assert_eq!(last["error"]["data"][0]["reason"], "UNAUTHENTICATED", "{last}");
    let began = std::time::Instant::now();
    let status = loop {
        if let Some(status) = logs.exited()? {
            break status;
        }
        anyhow::ensure!(began.elapsed() < SOON, "the log goes on:\n{}", logs.output());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(status.code(), Some(5), "{}", logs.output());

    let running = Events::begin(&agent, &owner, LONG[1]).await?;
    let clusters = dev.cli(&["clusters", "-o", "json"])?.json()?;
    let name = clusters[0]["name"].as_str().context("a cluster")?;
    dev.cli(&["clusters", "revoke", name])?.ok()?;
    let events = running.rest(SOON).await?;
    let last = events.last().context("a last event")?;
    let message = last["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("cluster was revoked"), "{last}");
    Ok(())
}

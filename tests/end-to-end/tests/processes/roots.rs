//! The hub's root certificate is replaced by the operator's commands while people chat: real processes, no stream lost.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    cli::Answer,
};
use serde_json::Value;
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                     instructions: Answer.\n  model: default\n  limits: {wallTime: 5m}\n";
/// Words of the long answer, half a second apart: it begins before the rotation.
const WORDS: usize = 70;

fn script() -> String {
    let words = (0..WORDS)
        .map(|n| format!("w{n}."))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "rules:\n  - {{when: {{user: crawls}}, reply: {{text: [{words}], delayMs: 500}}}}\n  \
         - {{when: {{user: say ready}}, reply: {{text: [ready]}}}}\n  \
         - {{when: {{user: again}}, reply: {{text: [one., two., three., four.], delayMs: 250}}}}\n"
    )
}

/// Repeats a step until it is taken: it says itself what it waits for.
fn step(apart: &Apart, arguments: &[&str]) -> Result<String> {
    let began = Instant::now();
    loop {
        let said = apart.roots(arguments)?;
        match said.code {
            Some(0) => return Ok(said.out),
            _ if began.elapsed() > READY => anyhow::bail!("{said:#?}"),
            _ => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The cluster agent's identity on disk.
fn identity(apart: &Apart) -> Result<Value> {
    let text = fs::read_to_string(apart.folder().join("cluster/link/identity.json"))?;
    Ok(serde_json::from_str(&text)?)
}

fn rotate(apart: &Apart) -> Result<()> {
    let early = apart.roots(&["retire"])?;
    anyhow::ensure!(early.code == Some(1), "{early:#?}");
    let announced = step(apart, &["add"])?;
    anyhow::ensure!(announced.contains("generation 1: "), "{announced}");
    let list = apart.roots(&["list"])?.ok()?;
    anyhow::ensure!(list.contains("replicas: 1 heard within"), "{list}");
    step(apart, &["switch"])?;
    let retired = step(apart, &["retire"])?;
    anyhow::ensure!(retired.contains("generation 3: one root"), "{retired}");
    Ok(())
}

/// Chats one after the other until told to stop; how many.
fn chats(apart: &Apart, stop: &AtomicBool) -> Result<usize> {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = apart.cli.run(&["chat", "echo", "--message", "again"])?.ok()?;
        anyhow::ensure!(answer.contains("one.two.three.four."), "{answer}");
        done += 1;
    }
    Ok(done)
}

fn while_they_chat(apart: &Apart) -> Result<(Answer, usize)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let long = scope.spawn(|| apart.cli.run(&["chat", "echo", "--message", "crawls"]));
        let short = scope.spawn(|| chats(apart, &stop));
        let rotated = rotate(apart);
        stop.store(true, Ordering::Relaxed);
        let short = short
            .join()
            .map_err(|_| anyhow::anyhow!("the short chats panicked"))?;
        let long = long
            .join()
            .map_err(|_| anyhow::anyhow!("the long chat panicked"))?;
        rotated?;
        Ok((long?, short?))
    })
}

async fn rotation(keep: Keep) -> Result<()> {
    let setup = Setup {
        script: Some(script()),
        ..Setup::default()
    };
    let Some(mut apart) = Apart::start(keep, setup).await? else {
        return Ok(());
    };
    apart.apply(AGENT)?;
    apart.answers("echo").await?;
    let old = identity(&apart)?["roots"][0]
        .as_str()
        .context("a root")?
        .to_owned();
    let lost = |apart: &Apart| apart.logs().matches("no session with the hub").count();
    let before = lost(&apart);
    let (long, short) = tokio::task::block_in_place(|| while_they_chat(&apart))?;
    let long = long.ok()?;
    let whole: String = (0..WORDS).map(|n| format!("w{n}.")).collect();
    anyhow::ensure!(long.contains(&whole), "a word of the answer is lost: {long}");
    anyhow::ensure!(short > 0, "no other chat in all that time");
    // The cluster follows without a session lost, and the old root is nowhere any more.
    apart.linked().await?;
    let followed = || async {
        let roots = identity(&apart).ok()?["roots"].as_array()?.clone();
        (roots.len() == 1 && roots[0] != old.as_str()).then_some(())
    };
    roadstead_end_to_end::wait::until("the new root alone on disk", READY, followed).await?;
    anyhow::ensure!(!fs::read_to_string(apart.folder().join("cluster/link/identity.json"))?.contains(&old));
    anyhow::ensure!(lost(&apart) == before, "a session was lost:\n{}", apart.logs());
    let keys = fs::read_dir(apart.folder().join("keys"))?;
    let keys = keys.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    anyhow::ensure!(keys.filter(|name| name.starts_with("root-")).count() == 1);
    let list = apart.roots(&["list"])?.ok()?;
    anyhow::ensure!(list.contains("clusters that keep these roots: all 1"), "{list}");
    anyhow::ensure!(
        apart
            .database
            .verify_audit()?
            .contains("roadstead-platform: whole")
    );
    // Both start again on what they have kept.
    apart.agent()?.kill()?;
    apart.hub()?.kill()?;
    apart.start_hub()?;
    apart.hub_ready().await?;
    apart.start_agent()?;
    apart.linked().await?;
    apart.answers("echo").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_the_root_is_replaced_while_chats_stream() -> Result<()> {
    rotation(Keep::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_the_root_is_replaced_while_chats_stream_on_postgres() -> Result<()> {
    rotation(Keep::Postgres).await
}

//! Faults of whole processes: what was acknowledged stays, nothing happens twice, and everything comes back by itself.

use anyhow::Result;
use roadstead_end_to_end::{
    binary,
    callers::{Api, Callers, hold},
    counter,
    dev::Dev,
    random::Random,
    returns::Returns,
};
use std::{
    process::Command,
    time::{Duration, Instant},
};

const ROUNDS: u32 = 50;
/// One in so many rounds waits for answers since the last start; the others kill wherever things stand.
const WORKED: u64 = 3;
/// One in so many rounds kills a second time, while everything starts.
const SECOND: u64 = 3;
const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                     instructions: Answer.\n  model: default\n";

/// Kills everything again and again while the callers go on.
async fn rounds(dev: &mut Dev, callers: &Callers, first: Duration, random: &mut Random) -> Result<()> {
    let start = u64::try_from(first.as_millis())?;
    let mut returns = Returns::new("dev".to_owned(), first);
    for _ in 0..ROUNDS {
        if random.below(WORKED) == 0 {
            callers.told_more().await?;
        }
        tokio::time::sleep(Duration::from_millis(random.below(200))).await;
        dev.take_hub()?.kill()?;
        if random.below(SECOND) == 0 {
            dev.begin()?;
            tokio::time::sleep(Duration::from_millis(random.below(start))).await;
            dev.take_hub()?.kill()?;
        }
        let killed = Instant::now();
        dev.up().await?;
        returns.add(killed.elapsed());
    }
    returns.hold()
}

/// kill -9 of hub, cluster agent and engines at once, under writes and chats: dev is one process tree, and its engines
/// end with it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_everything_is_killed() -> Result<()> {
    let mut random = Random::from_environment("kill -9 of everything");
    let (mut dev, first) = Dev::in_one_place().await?;
    dev.cli_with(&["apply", "-f", "-"], &counter::documents(dev.folder())?)?
        .ok()?;
    let callers = Callers::start(&dev.shell());
    let killed = rounds(&mut dev, &callers, first, &mut random).await;
    // Everything that is under way comes to its end before it is counted; and what a caller says is said first.
    if killed.is_ok() {
        callers.told_more().await?;
    }
    let told = callers.end().await?;
    killed?;
    let api = Api {
        url: dev.api()?,
        token: dev.token()?,
    };
    hold(&api, dev.folder(), &told).await?;
    let verified = Command::new(binary("roadstead-hub"))
        .args(["audit", "verify", "--state"])
        .arg(dev.state())
        .output()?;
    assert!(verified.status.success(), "{verified:?}");
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

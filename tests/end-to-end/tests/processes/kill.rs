//! kill -9 of one process alone (hub, cluster agent, engine, PostgreSQL) at random points under writes and chats.
//!
//! Each round kills one of them while three callers go on: one writes documents, one talks with an agent, one lets an
//! agent call a tool that counts. In some rounds a second one is killed while the first starts. What was acknowledged
//! must be there at the end, once.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    callers::{Api, Callers, hold},
    counter,
    random::Random,
    returns::Returns,
    wait,
};
use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

/// Agents, and with them engines.
const AGENTS: [&str; 2] = ["echo", "counts"];
/// One in so many rounds kills a second time.
const SECOND: u64 = 3;
/// Within which the second kill comes, in milliseconds: less than what a start takes.
const STARTING: u64 = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Hub,
    ClusterAgent,
    Engine,
    Postgres,
}

/// Kills one process, and starts it again where nothing else does; the engine that was killed.
fn strike(apart: &mut Apart, victim: Victim, random: &mut Random) -> Result<Option<u32>> {
    match victim {
        Victim::Hub => {
            apart.hub()?.kill()?;
            apart.start_hub()?;
        }
        Victim::ClusterAgent => {
            apart.agent()?.kill()?;
            apart.start_agent()?;
        }
        Victim::Engine => {
            let engines = apart.engines()?;
            // None while their cluster agent starts; and one may end by itself, since its cluster agent was killed.
            if !engines.is_empty() {
                let engine = *random.one_of(&engines);
                let sent = Command::new("kill").args(["-9", &engine.to_string()]).output()?;
                return Ok(sent.status.success().then_some(engine));
            }
        }
        Victim::Postgres => {
            let server = apart.database.server()?;
            server.kill()?;
            server.again()?;
        }
    }
    Ok(None)
}

/// Kills once or twice, and waits until everything is as before; how long it took since the last.
async fn round(apart: &mut Apart, victim: Victim, random: &mut Random) -> Result<Duration> {
    tokio::time::sleep(Duration::from_millis(random.below(250))).await;
    let mut killed = Instant::now();
    let mut gone = vec![strike(apart, victim, random)?];
    if random.below(SECOND) == 0 {
        tokio::time::sleep(Duration::from_millis(random.below(STARTING))).await;
        let second = *random.one_of(&[Victim::Hub, Victim::ClusterAgent, Victim::Engine]);
        eprintln!("{second:?}: killed while {victim:?} starts");
        killed = Instant::now();
        gone.push(strike(apart, second, random)?);
    }
    apart.hub_ready().await?;
    apart.linked().await?;
    wait::until("every engine", READY, || async {
        let engines = apart.engines().ok()?;
        let again = gone.iter().flatten().any(|engine| engines.contains(engine));
        (engines.len() == AGENTS.len() && !again).then_some(())
    })
    .await?;
    apart.answers("echo").await?;
    Ok(killed.elapsed())
}

async fn rounds(
    apart: &mut Apart,
    victims: &[Victim],
    count: usize,
    first: Duration,
    random: &mut Random,
) -> Result<()> {
    let mut returns: BTreeMap<Victim, Returns> = BTreeMap::new();
    let mut deck = Vec::new();
    for _ in 0..count {
        // Each as often as the others, in an order of its own.
        if deck.is_empty() {
            deck = random.shuffled(victims);
        }
        let victim = deck.pop().context("victims")?;
        let took = round(apart, victim, random)
            .await
            .with_context(|| format!("after {victim:?} was killed\n{}", apart.logs()))?;
        eprintln!("{victim:?}: back after {took:?}");
        let new = || Returns::new(format!("{victim:?}"), first);
        returns.entry(victim).or_insert_with(new).add(took);
    }
    returns.into_values().try_for_each(Returns::hold)
}

async fn kill_and_hold(keep: Keep, victims: &[Victim], count: usize) -> Result<()> {
    let mut random = Random::from_environment(&format!("kill -9 on {keep:?}"));
    let Some(mut apart) = Apart::start(keep, Setup::default()).await? else {
        return Ok(());
    };
    apart.apply(&counter::documents(apart.folder())?)?;
    let mut first = apart.first_start;
    for agent in AGENTS {
        first += apart.answers(agent).await?;
    }
    let callers = Callers::start(&apart.cli);
    rounds(&mut apart, victims, count, first, &mut random).await?;
    let told = callers.end().await?;
    let api = Api {
        url: apart.api(),
        token: apart.token()?,
    };
    hold(&api, apart.folder(), &told).await?;
    eprint!("{}", apart.database.verify_audit()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_one_process_is_killed() -> Result<()> {
    kill_and_hold(
        Keep::Sqlite,
        &[Victim::Hub, Victim::ClusterAgent, Victim::Engine],
        34,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_postgres_or_a_process_is_killed() -> Result<()> {
    let victims = [
        Victim::Postgres,
        Victim::Hub,
        Victim::ClusterAgent,
        Victim::Engine,
    ];
    kill_and_hold(Keep::Postgres, &victims, 20).await
}

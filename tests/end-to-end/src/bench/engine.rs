//! The engine alone: start, memory, and the time it adds to its model's and its tools' own.

use crate::{
    alone::{Alone, Running, leave_engine_core},
    call::Caller,
    figures::{Figures, Samples},
    own::{Own, asks_tool},
    procfs::memory,
};
use anyhow::Context as _;
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const STARTS: usize = 40;
/// Turns that warm up, and turns that count.
const WARM: usize = 50;
const TURNS: usize = 1_000;
const SESSIONS: usize = 50;
/// Tool turns of each of the sessions.
const TOOL_TURNS: usize = 10;

/// Measures it all.
///
/// # Errors
/// When a process does not start or a turn fails: a benchmark with failures is worth nothing.
pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Figures> {
    leave_engine_core()?;
    let alone = Alone::new().await?;
    let mut figures = Figures::new("Engine");
    starts(&alone, &mut figures).await?;

    let (engine, _) = alone.start(STARTS).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = memory(engine.process.id())?;
    figures.row("RSS, idle", idle.to_string(), "≤ 9 MiB");
    plain_turns(&alone, &engine, &mut figures).await?;
    tool_turns(&alone, &engine, &mut figures).await?;

    let (engine, _) = alone.start(STARTS + 1).await?;
    load(&engine, seconds, &mut figures).await?;
    drop(engine);
    let (engine, _) = alone.start(STARTS + 2).await?;
    tool_load(&engine, &mut figures).await?;
    Ok(figures)
}

async fn starts(alone: &Alone, figures: &mut Figures) -> anyhow::Result<()> {
    let mut starts = Samples::default();
    for n in 0..STARTS {
        starts.add(alone.start(n).await?.1);
    }
    figures.row(
        "process start → card served, p50",
        format!("{:.1} ms", starts.quantile_ms(0.5)),
        "≤ 8 ms",
    );
    Ok(())
}

/// Own and whole time, one after the other, so that both see the same machine.
#[derive(Default)]
struct Pair {
    own: Samples,
    whole: Samples,
}

impl Pair {
    fn row(&mut self, figures: &mut Figures, what: &str, aim: &str) {
        let (own, whole) = (self.own.quantile_ms(0.5), self.whole.quantile_ms(0.5));
        let added = whole - own;
        figures.row(
            what,
            format!(
                "{added:.2} ms ({whole:.2} − {own:.2}; p99 of the whole {:.2})",
                self.whole.quantile_ms(0.99)
            ),
            aim,
        );
    }
}

/// One caller, one turn after the other: what the engine adds to the model server's own time.
async fn plain_turns(alone: &Alone, engine: &Running, figures: &mut Figures) -> anyhow::Result<()> {
    let (caller, own) = (Caller::a2a()?, Own::new(alone)?);
    let mut pair = Pair::default();
    for n in 0..WARM + TURNS {
        let text = format!("hello {n}");
        let started = Instant::now();
        own.plain(&text).await?;
        let between = Instant::now();
        caller
            .turn(&engine.url, &text, &text)
            .await
            .context("a plain turn")?;
        if n >= WARM {
            pair.own.add(between - started);
            pair.whole.add(between.elapsed());
        }
    }
    pair.row(figures, "added per plain turn, journal included, p50", "≤ 0.5 ms");
    Ok(())
}

/// The same with a tool call in each turn: two model calls and one call of the tool are not the engine's own.
async fn tool_turns(alone: &Alone, engine: &Running, figures: &mut Figures) -> anyhow::Result<()> {
    let (caller, own) = (Caller::a2a()?, Own::new(alone)?);
    let mut pair = Pair::default();
    for n in 0..WARM + TURNS {
        let (text, answer) = asks_tool(n);
        let started = Instant::now();
        own.with_tool(n).await?;
        let between = Instant::now();
        caller
            .turn(&engine.url, &text, &answer)
            .await
            .context("a turn with a tool call")?;
        if n >= WARM {
            pair.own.add(between - started);
            pair.whole.add(between.elapsed());
        }
    }
    pair.row(figures, "added per turn with one tool call, p50", "≤ 1 ms");
    Ok(())
}

/// Many sessions at once, each turn as soon as the one before is answered.
async fn load(engine: &Running, seconds: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let started = Instant::now();
    let sessions = (0..SESSIONS).map(|_| async {
        let caller = Caller::a2a()?;
        let mut samples = Samples::default();
        while Instant::now() < until {
            let began = Instant::now();
            caller.turn(&engine.url, "hello", "hello").await?;
            samples.add(began.elapsed());
        }
        anyhow::Ok(samples)
    });
    let mut all = Samples::default();
    for samples in try_join_all(sessions).await? {
        all.extend(samples);
    }
    let rate = all.rate(started.elapsed());
    figures.row(
        "plain turns/s, 50 sessions at once, engine on one core, none failed",
        format!("{rate:.0}"),
        "≥ 5,000",
    );
    figures.row("… p99", format!("{:.1} ms", all.quantile_ms(0.99)), "≤ 25 ms");
    let after = memory(engine.process.id())?;
    figures.row("RSS after that", after.to_string(), "");
    Ok(())
}

async fn tool_load(engine: &Running, figures: &mut Figures) -> anyhow::Result<()> {
    let started = Instant::now();
    let sessions = (0..SESSIONS).map(|session| async move {
        let caller = Caller::a2a()?;
        let mut samples = Samples::default();
        for n in 0..TOOL_TURNS {
            let (text, answer) = asks_tool(session * TOOL_TURNS + n);
            let began = Instant::now();
            caller.turn(&engine.url, &text, &answer).await?;
            samples.add(began.elapsed());
        }
        anyhow::Ok(samples)
    });
    let mut all = Samples::default();
    for samples in try_join_all(sessions).await? {
        all.extend(samples);
    }
    let rate = all.rate(started.elapsed());
    let after = memory(engine.process.id())?;
    figures.row(
        "RSS after 500 tool turns, 50 at once",
        format!("{after}, at {rate:.0} turns/s"),
        "≤ 20 MiB",
    );
    Ok(())
}

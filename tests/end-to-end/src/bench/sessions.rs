//! What sessions cost an engine: many at once in memory, a long one to open, and the text of one on disk.

use crate::{
    alone::{Alone, leave_engine_core},
    call::Caller,
    figures::{Figures, Samples, p50_p99},
    procfs::{memory, peak_mib},
};
use anyhow::Context as _;
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const AT_ONCE: usize = 200;
/// Turns of each of them.
const TURNS: usize = 20;
/// Turns of the long session: a question and an answer each.
const LONG: usize = 500;
/// Of each message, in bytes.
const TEXT: usize = 1_024;
/// Times that the long session is opened by a new process.
const OPENED: usize = 20;
const READY: Duration = Duration::from_secs(20);

/// Measures it all.
///
/// # Errors
/// When a process does not start or a turn fails.
pub(crate) async fn measure() -> anyhow::Result<Figures> {
    leave_engine_core()?;
    let alone = Alone::new().await?;
    let mut figures = Figures::new("Sessions");
    many(&alone, &mut figures).await?;
    long(&alone, &mut figures).await?;
    Ok(figures)
}

/// All of them at once, each turn as soon as the one before is answered.
async fn many(alone: &Alone, figures: &mut Figures) -> anyhow::Result<()> {
    let (engine, _) = alone.start(0).await?;
    let sessions = (0..AT_ONCE).map(|session| {
        let url = &engine.url;
        async move {
            let (caller, session) = (Caller::a2a()?, format!("session-{session}"));
            for _ in 0..TURNS {
                caller.turn_in(url, Some(&session), "hello", "hello").await?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(sessions).await?;
    let pid = engine.process.id();
    figures.row(
        "RSS at its most, 200 sessions at once",
        format!("{:.1} MiB; after that {}", peak_mib(pid)?, memory(pid)?),
        "≤ 40 MiB",
    );
    Ok(())
}

/// One session that grows to 1,000 messages, opened again and again by a new process.
async fn long(alone: &Alone, figures: &mut Figures) -> anyhow::Result<()> {
    const STATE: usize = 1;
    const SESSION: &str = "long";
    let (mut engine, _) = alone.start(STATE).await?;
    let (caller, text) = (Caller::a2a()?, "x".repeat(TEXT));
    for _ in 0..LONG {
        caller.turn_in(&engine.url, Some(SESSION), &text, &text).await?;
    }
    // An orderly end leaves everything in one file.
    engine.process.signal("TERM")?;
    let began = Instant::now();
    while engine.process.exited()?.is_none() {
        anyhow::ensure!(began.elapsed() < READY, "the engine does not stop");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let bytes = std::fs::metadata(alone.journal(STATE))?.len();
    let (mut new, mut opened) = (Samples::default(), Samples::default());
    for n in 0..OPENED {
        let (mut engine, _) = alone.start(STATE).await?;
        let caller = Caller::a2a()?;
        let started = Instant::now();
        caller.turn_in(&engine.url, None, &text, &text).await?;
        let between = Instant::now();
        let turn = caller.turn_in(&engine.url, Some(SESSION), &text, &text);
        turn.await.with_context(|| format!("opening number {n}"))?;
        new.add(between - started);
        opened.add(between.elapsed());
        engine.process.kill()?;
    }
    figures.row(
        "first turn of a new process in a session of 1,000 messages of 1 KiB, p50 / p99",
        format!(
            "{} (in a new session {})",
            p50_p99(&mut opened),
            p50_p99(&mut new)
        ),
        "≤ 20 ms",
    );
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = bytes as f64 / (2 * LONG * TEXT) as f64;
    figures.row(
        "journal on disk, by the text that it holds",
        format!("{ratio:.2} ×"),
        "≤ 2 ×",
    );
    Ok(())
}

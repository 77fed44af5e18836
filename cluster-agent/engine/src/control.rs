//! The runtime's end of the pipe: frames in on standard input, frames out on standard output.
//!
//! The end of the input is the end of the engine: none outlives its runtime. A frame that cannot be read is reported
//! and passed over; it changes nothing.

use crate::{engine::Engine, journal::Health, secrets::Secrets};
use anyhow::{Context as _, Result};
use roadstead_contract::control::{Apply, FromEngine, MAX_LINE, ToEngine};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

/// Run records in one read of the outbox.
const PAGE: u32 = 100;
/// Without word from the runtime, records that were sent are sent again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at readiness, beside those that a change causes.
const READY_EVERY: Duration = Duration::from_secs(5);

/// Why the pipe was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The runtime is gone.
    EndOfInput,
    /// It asked the engine to finish within this time.
    Drain(Duration),
}

/// Speaks with the runtime until it is gone or sends the engine home.
///
/// # Errors
/// The input cannot be read.
pub async fn speak(
    engine: &Arc<Engine>,
    address: String,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
) -> Result<Left> {
    let (out, queue) = mpsc::channel(64);
    tokio::spawn(write_frames(queue, output));
    send(&out, FromEngine::Listening { address }).await;
    tokio::spawn(tell_readiness(Arc::clone(engine), out.clone()));
    let (kept, kept_rx) = mpsc::channel(16);
    tokio::spawn(deliver(Arc::clone(engine), out.clone(), kept_rx));
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(MAX_LINE));
    let mut passed_over = false;
    loop {
        let line = match lines.next().await {
            Some(Ok(line)) => line,
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                tracing::error!("a frame of the runtime is longer than {MAX_LINE} bytes and was passed over");
                passed_over = true;
                continue;
            }
            Some(Err(LinesCodecError::Io(error))) => {
                return Err(error).context("the runtime's frames cannot be read");
            }
            // The reader says so once after an error, and goes on when asked again.
            None if passed_over => {
                passed_over = false;
                continue;
            }
            None => return Ok(Left::EndOfInput),
        };
        match serde_json::from_str(&line) {
            Ok(ToEngine::Apply(apply)) => send(&out, take(engine, *apply)).await,
            Ok(ToEngine::Peers { peers }) => engine.peers.set(peers),
            // The deliverer ends with the engine only.
            Ok(ToEngine::RunsKept { sequence }) => drop(kept.send(sequence).await),
            Ok(ToEngine::Drain { grace_ms }) => return Ok(Left::Drain(Duration::from_millis(grace_ms))),
            // The line may hold secrets: where it is wrong is all that is said.
            Err(error) => tracing::error!(column = error.column(), "a frame of the runtime is not readable"),
        }
    }
}

async fn send(out: &mpsc::Sender<FromEngine>, frame: FromEngine) {
    if out.send(frame).await.is_err() {
        tracing::error!("the runtime does not read any more");
    }
}

fn take(engine: &Arc<Engine>, apply: Apply) -> FromEngine {
    let (generation, digest) = (apply.bundle.generation, apply.bundle.digest());
    match engine.apply(apply.bundle, Secrets::new(apply.secrets), apply.trust) {
        Ok(_) => {
            tracing::info!(generation, digest, "a revision serves");
            FromEngine::Applied { generation, digest }
        }
        Err(reason) => {
            tracing::warn!(generation, digest, reason, "a revision does not load");
            FromEngine::Refused {
                generation,
                digest,
                reason,
            }
        }
    }
}

async fn write_frames(mut queue: mpsc::Receiver<FromEngine>, mut output: impl AsyncWrite + Unpin) {
    while let Some(frame) = queue.recv().await {
        let Ok(mut line) = serde_json::to_vec(&frame) else {
            continue;
        };
        line.push(b'\n');
        let written = async {
            output.write_all(&line).await?;
            output.flush().await
        };
        if let Err(error) = written.await {
            tracing::error!(%error, "the runtime does not read any more");
            return;
        }
    }
}

async fn tell_readiness(engine: Arc<Engine>, out: mpsc::Sender<FromEngine>) {
    let mut health = engine.journal.health();
    let mut told = None;
    loop {
        let now = engine.tasks.ready().await;
        if told.as_ref() != Some(&now) {
            let reason = now.clone().err().unwrap_or_default();
            send(
                &out,
                FromEngine::Ready {
                    ready: now.is_ok(),
                    reason,
                },
            )
            .await;
            told = Some(now);
        }
        let opening = *health.borrow_and_update() == Health::Opening || engine.current.get().is_none();
        let wait = if opening {
            Duration::from_millis(20)
        } else {
            READY_EVERY
        };
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
            () = out.closed() => return,
        }
    }
}

/// Sends run records in order; what the runtime has kept is deleted here.
async fn deliver(engine: Arc<Engine>, out: mpsc::Sender<FromEngine>, mut kept: mpsc::Receiver<u64>) {
    let Some(news) = engine.runs.clone() else { return };
    let (mut sent, mut acked) = (0, 0);
    loop {
        match engine.journal.runs_after(sent, PAGE).await {
            Ok(records) => {
                let full = records.len() == PAGE as usize;
                for record in records {
                    sent = record.sequence;
                    send(&out, FromEngine::Run(Box::new(record))).await;
                }
                if full {
                    continue;
                }
            }
            Err(error) => tracing::debug!(%error, "run records wait for the journal"),
        }
        tokio::select! {
            () = news.notified() => {}
            sequence = kept.recv() => {
                let Some(sequence) = sequence else { return };
                acked = acked.max(sequence);
                if let Err(error) = engine.journal.runs_kept(sequence).await {
                    tracing::warn!(%error, "kept run records could not be deleted; they will be sent again");
                }
            }
            () = tokio::time::sleep(AGAIN) => sent = sent.min(acked),
            () = out.closed() => return,
        }
    }
}

//! An answer that lasts: it ends at its deadline, when its caller may no longer have it (S14), and when its caller
//! stops reading.
//!
//! A task of its own carries the chunks, so that clock and checks go on whatever the caller's connection does.

use crate::{
    Gateway, TunnelError,
    failure::{Dialect, Failure},
    tunnel::Chunks,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use roadstead_contract::documents::Name;
use roadstead_domain::Error;
use roadstead_http::{ONE_LOOK, RECHECK, RequestId, Session, UNANSWERED};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument as _;

/// Chunks that may wait for a slow reader; a chunk may have half a megabyte.
const WAITING: usize = 2;
/// For a reader to take the next one.
const SLOW: Duration = Duration::from_secs(30);

/// Whether the caller may still have the answer.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) gateway: Arc<Gateway>,
    /// `None` where login left no session: then nothing can be verified anew, and the deadline alone holds.
    pub(crate) session: Option<Session>,
    pub(crate) project: Name,
    pub(crate) agent: Name,
    /// When somebody could last say that the caller may.
    pub(crate) answered: Instant,
}

enum Standing {
    Good,
    Ended,
    /// The store is away.
    Unknown,
}

impl Watch {
    /// Whether the caller may still have it. Only a store that is away changes nothing, and that for [`UNANSWERED`]: whatever
    /// else keeps the answer from being known is taken for a no.
    ///
    /// # Errors
    /// Why it ends.
    pub(crate) async fn check(&mut self) -> Result<(), Cut> {
        let looked = timeout(ONE_LOOK, self.look()).await;
        match looked.unwrap_or(Standing::Unknown) {
            Standing::Good => {
                self.answered = Instant::now();
                Ok(())
            }
            Standing::Ended => Err(Cut::NotAllowed),
            Standing::Unknown if self.answered.elapsed() < UNANSWERED => Ok(()),
            Standing::Unknown => Err(Cut::Unverified),
        }
    }

    async fn look(&self) -> Standing {
        let Some(session) = &self.session else {
            return Standing::Good;
        };
        let context = match session.verify().await {
            Ok(context) => context,
            Err(problem) if problem.code() == "UNAVAILABLE" => return Standing::Unknown,
            Err(_) => return Standing::Ended,
        };
        let agents = &self.gateway.agents;
        match agents.invocable(&context, &self.project, &self.agent).await {
            Ok(_) => Standing::Good,
            Err(Error::Unavailable { .. }) => Standing::Unknown,
            Err(_) => Standing::Ended,
        }
    }
}

/// Why an answer ends before its own end.
#[derive(Debug)]
pub(crate) enum Cut {
    Deadline,
    /// The caller does not read.
    Slow,
    /// The caller's token has ended, or allows the call no longer.
    NotAllowed,
    /// For too long nobody could say whether it has.
    Unverified,
    /// The agent's cluster has been revoked.
    Revoked,
    /// By accident.
    Broken(io::Error),
}

impl Cut {
    /// What the caller is told where the hub has ended the answer on purpose. An accident, and a deadline, are a stream
    /// that breaks off: clients subscribe again then.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::NotAllowed => Some(Failure::no_longer_allowed()),
            Self::Unverified => Some(Failure::unverified()),
            Self::Revoked => Some(Failure::revoked()),
            Self::Deadline | Self::Slow | Self::Broken(_) => None,
        }
    }

    pub(crate) fn of(error: io::Error) -> Self {
        let cause = error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<TunnelError>());
        match cause {
            Some(TunnelError::Revoked) => Self::Revoked,
            _ => Self::Broken(error),
        }
    }
}

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Deadline | Cut::Slow => io::ErrorKind::TimedOut.into(),
            Cut::NotAllowed | Cut::Unverified | Cut::Revoked => io::ErrorKind::PermissionDenied.into(),
            Cut::Broken(error) => error,
        }
    }
}

/// Server-sent events of which the last says so where the hub has ended them on purpose. In the middle of an event nothing
/// can be said: then the stream breaks off.
pub(crate) fn told(
    chunks: impl Stream<Item = Result<Bytes, Cut>> + Send,
    (dialect, id): (Dialect, RequestId),
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut tail = Tail::default();
    chunks.map(move |chunk| match chunk {
        Ok(chunk) => {
            tail.push(&chunk);
            Ok(chunk)
        }
        Err(cut) => match cut.failure() {
            Some(failure) if tail.is_between_events() => Ok(failure.event(&dialect, &id)),
            _ => Err(cut.into()),
        },
    })
}

/// The last bytes of a stream of events.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(&chunk[chunk.len().saturating_sub(3)..]);
        let more = self.0.len().saturating_sub(3);
        self.0.drain(..more);
    }

    /// Nothing yet, or an empty line (WHATWG HTML §9.2.6).
    fn is_between_events(&self) -> bool {
        let ends = |line: &[u8]| self.0.ends_with(line);
        self.0.is_empty() || ends(b"\n\n") || ends(b"\n\r\n") || ends(b"\r\r")
    }
}

/// The same chunks; an error, and nothing after it, once `deadline` has passed or the caller may not have more.
pub(crate) fn guarded(
    (body, revoked): (Chunks, BoxFuture<'static, ()>),
    deadline: Instant,
    watch: Watch,
) -> impl Stream<Item = Result<Bytes, Cut>> + Send {
    let (chunks, taken) = mpsc::channel(WAITING);
    let (cut, is_cut) = oneshot::channel();
    let mut passing = Passing {
        body,
        revoked,
        watch,
        deadline,
        chunks,
    };
    let work = async move {
        // Said before the chunks end with `passing`: an answer that was cut must not look whole.
        if let Err(why) = passing.run().await {
            // The caller may have gone.
            drop(cut.send(why));
        }
        drop(passing);
    };
    tokio::spawn(work.in_current_span());
    stream::unfold(Some((taken, is_cut)), |state| async move {
        let (mut taken, mut is_cut) = state?;
        let next = tokio::select! {
            biased;
            // Before what waits: a caller who may not have more does not get the rest either.
            Ok(why) = &mut is_cut, if !is_cut.is_terminated() => Err(why),
            chunk = taken.recv() => Ok(chunk),
        };
        match next {
            Err(why) | Ok(Some(Err(why))) => Some((Err(why), None)),
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some((taken, is_cut)))),
            // Between the two looks above it may have been cut: the chunks end then too, and must not seem to be all.
            Ok(None) => is_cut.try_recv().ok().map(|why| (Err(why), None)),
        }
    })
}

struct Passing {
    body: Chunks,
    revoked: BoxFuture<'static, ()>,
    watch: Watch,
    deadline: Instant,
    chunks: mpsc::Sender<Result<Bytes, Cut>>,
}

impl Passing {
    /// Until the body ends or the caller has gone.
    ///
    /// # Errors
    /// Why it was cut.
    async fn run(&mut self) -> Result<(), Cut> {
        let mut check = Instant::now() + RECHECK;
        let mut next: Option<Result<Bytes, Cut>> = None;
        let mut patience = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.chunks.closed() => return Ok(()),
                () = sleep_until(self.deadline) => return Err(Cut::Deadline),
                // Of its own: while a chunk waits for a slow reader, nobody asks the body.
                () = &mut self.revoked => return Err(Cut::Revoked),
                () = sleep_until(check) => {
                    self.watch.check().await?;
                    check = Instant::now() + RECHECK;
                }
                place = self.chunks.reserve(), if next.is_some() => {
                    let (Ok(place), Some(chunk)) = (place, next.take()) else { return Ok(()) };
                    let last = chunk.is_err();
                    place.send(chunk);
                    if last {
                        return Ok(());
                    }
                }
                () = sleep_until(patience), if next.is_some() => {
                    tracing::debug!("the caller has stopped reading");
                    return Err(Cut::Slow);
                }
                chunk = self.body.next(), if next.is_none() => {
                    let Some(chunk) = chunk else { return Ok(()) };
                    next = Some(match chunk.map_err(Cut::of) {
                        Err(Cut::Revoked) => return Err(Cut::Revoked),
                        chunk => chunk,
                    });
                    patience = Instant::now() + SLOW;
                }
            }
        }
    }
}

//! An answer that lasts: it ends at its deadline, when its caller may no longer have it (S14), and when its caller
//! stops reading.
//!
//! A task of its own carries the chunks, so that clock and checks go on whatever the caller's connection does.

use crate::{Gateway, tunnel::Chunks};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use roadstead_contract::documents::Name;
use roadstead_domain::Error;
use roadstead_http::{RECHECK, Session};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
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
}

impl Watch {
    /// `false` once the token is no longer good, or no longer allows the call. Only a store that is away changes
    /// nothing: whatever else keeps the answer from being known is taken for a no.
    pub(crate) async fn still_allowed(&self) -> bool {
        let Some(session) = &self.session else {
            return true;
        };
        match session.verify().await {
            Ok(context) => {
                let agents = &self.gateway.agents;
                let found = agents.invocable(&context, &self.project, &self.agent).await;
                matches!(found, Ok(_) | Err(Error::Unavailable { .. }))
            }
            Err(problem) => problem.code() == "UNAVAILABLE",
        }
    }
}

/// The same chunks; an error, and nothing after it, once `deadline` has passed or the caller may not have more.
pub(crate) fn guarded(
    body: Chunks,
    deadline: Instant,
    watch: Watch,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (chunks, taken) = mpsc::channel(WAITING);
    let (cut, is_cut) = watch::channel(None);
    let mut passing = Passing {
        body,
        watch,
        deadline,
        chunks,
    };
    let work = async move {
        // Said before the chunks end with `passing`: an answer that was cut must not look whole.
        if let Err(why) = passing.run().await {
            cut.send_replace(Some(why));
        }
        drop(passing);
    };
    tokio::spawn(work.in_current_span());
    stream::unfold(Some((taken, is_cut)), |state| async move {
        let (mut taken, mut is_cut) = state?;
        let chunk = tokio::select! {
            biased;
            // Before what waits: a caller who may not have more does not get the rest either.
            Ok(_) = is_cut.wait_for(Option::is_some) => None,
            chunk = taken.recv() => chunk,
        };
        let why = *is_cut.borrow();
        match (why, chunk) {
            (Some(why), _) => Some((Err(io::Error::from(why)), None)),
            (None, Some(Err(error))) => Some((Err(error), None)),
            (None, Some(chunk)) => Some((chunk, Some((taken, is_cut)))),
            (None, None) => None,
        }
    })
}

struct Passing {
    body: Chunks,
    watch: Watch,
    deadline: Instant,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl Passing {
    /// Until the body ends or the caller has gone.
    ///
    /// # Errors
    /// Why it was cut.
    async fn run(&mut self) -> Result<(), io::ErrorKind> {
        let mut check = Instant::now() + RECHECK;
        let mut next: Option<io::Result<Bytes>> = None;
        let mut patience = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.chunks.closed() => return Ok(()),
                () = sleep_until(self.deadline) => return Err(io::ErrorKind::TimedOut),
                () = sleep_until(check) => {
                    if !self.watch.still_allowed().await {
                        return Err(io::ErrorKind::PermissionDenied);
                    }
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
                    return Err(io::ErrorKind::TimedOut);
                }
                chunk = self.body.next(), if next.is_none() => {
                    if chunk.is_none() {
                        return Ok(());
                    }
                    next = chunk;
                    patience = Instant::now() + SLOW;
                }
            }
        }
    }
}

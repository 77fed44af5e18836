//! An answer that lasts: it ends at its deadline, and when its caller may no longer have it (S14).

use crate::{Gateway, tunnel::Chunks};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use roadstead_contract::documents::Name;
use roadstead_domain::Error;
use roadstead_http::{RECHECK, Session};
use std::{io, sync::Arc};
use tokio::time::{Instant, sleep_until};

/// Whether the caller may still have the answer.
pub(crate) struct Watch {
    pub(crate) gateway: Arc<Gateway>,
    /// `None` where login left no session: then nothing can be verified anew, and the deadline alone holds.
    pub(crate) session: Option<Session>,
    pub(crate) project: Name,
    pub(crate) agent: Name,
}

impl Watch {
    /// `false` once the token is revoked or no longer allows the call. A store that is away changes nothing.
    async fn still_allowed(&self) -> bool {
        let Some(session) = &self.session else {
            return true;
        };
        match session.verify().await {
            Ok(context) => {
                let found = self
                    .gateway
                    .agents
                    .invocable(&context, &self.project, &self.agent)
                    .await;
                !matches!(found, Err(Error::NotFound { .. } | Error::Forbidden { .. }))
            }
            Err(problem) => problem.code() != "UNAUTHENTICATED",
        }
    }
}

struct Passing {
    body: Chunks,
    watch: Watch,
    deadline: Instant,
    check: Instant,
}

/// The same chunks; an error, and nothing after it, once `deadline` has passed or the caller may not have more.
pub(crate) fn guarded(
    body: Chunks,
    deadline: Instant,
    watch: Watch,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let check = Instant::now() + RECHECK;
    let passing = Passing {
        body,
        watch,
        deadline,
        check,
    };
    stream::unfold(Some(passing), |passing| async move {
        let mut passing = passing?;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(passing.deadline) => return Some((Err(io::ErrorKind::TimedOut.into()), None)),
                () = sleep_until(passing.check) => {
                    if !passing.watch.still_allowed().await {
                        return Some((Err(io::ErrorKind::PermissionDenied.into()), None));
                    }
                    passing.check = Instant::now() + RECHECK;
                }
                chunk = passing.body.next() => return match chunk {
                    Some(Ok(chunk)) => Some((Ok(chunk), Some(passing))),
                    Some(Err(error)) => Some((Err(error), None)),
                    None => None,
                },
            }
        }
    })
}

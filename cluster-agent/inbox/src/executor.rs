//! Where the inbox's work is done: on a thread of its own, since a commit waits for the disk; or inline, where a
//! simulation must repeat.

use crate::{InboxError, Shared, core::Core};
use std::{fmt, sync::Arc, sync::mpsc};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&mut Core) + Send>;

#[derive(Clone)]
pub(crate) enum Executor {
    Thread(mpsc::Sender<Job>),
    Inline(Shared<Core>),
}

impl Executor {
    pub(crate) fn thread(mut core: Core) -> Self {
        let (sender, jobs) = mpsc::channel::<Job>();
        // SQLite and the JSON of one document need little stack; the default of 2 MiB would be mapped for nothing.
        let builder = std::thread::Builder::new()
            .name("inbox".to_owned())
            .stack_size(512 * 1024);
        let started = builder.spawn(move || {
            for job in jobs {
                job(&mut core);
            }
        });
        if let Err(error) = started {
            // Without the thread every call answers `Ended`; the log says why.
            tracing::error!(%error, "the inbox's writer thread cannot be started");
        }
        Self::Thread(sender)
    }

    pub(crate) fn inline(core: Core) -> Self {
        Self::Inline(Arc::new(parking_lot::Mutex::new(core)))
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, InboxError> + Send + 'static,
    ) -> Result<T, InboxError> {
        match self {
            Self::Inline(core) => work(&mut core.lock()),
            Self::Thread(sender) => {
                let (reply, answer) = oneshot::channel();
                let job: Job = Box::new(move |core| {
                    // Nobody waits any more: the work is done and on disk all the same.
                    let _ = reply.send(work(core));
                });
                sender.send(job).map_err(|_| InboxError::Ended)?;
                answer.await.map_err(|_| InboxError::Ended)?
            }
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "Executor::Thread",
            Self::Inline(_) => "Executor::Inline",
        })
    }
}

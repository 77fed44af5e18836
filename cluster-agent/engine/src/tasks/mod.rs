//! Tasks: what callers send, see, cancel and watch. Owns the open tasks in memory and starts their turns.
//!
//! A subject sees its own tasks and no others; a task that is not there and one of somebody else are the same error
//! (S75). A message that came before is answered with what it began.

mod answer;
mod live;
mod recover;
mod send;
mod view;

pub use live::{
    Answer, Event, Fed, Feed, FileOut, Live, LiveIds, Numbered, Place, Shown, Status, TaskView, Waiting,
};
pub use send::{Inbound, Sent};
pub use view::List;
pub(crate) use view::given;

use crate::{
    journal::{Finish, Health, JournalError, TaskState},
    revision::{Current, Revision},
    services::Services,
    turn::{self, Start, Turn},
};
use futures::FutureExt as _;
use parking_lot::Mutex;
use roadstead_contract::control::Budget;
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// How long a cancel is waited for; streams and tools are given up after a tenth of a second.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Open tasks of all callers, as a multiple of those that may run at once: the others wait for a person.
const OPEN_FACTOR: usize = 10;

/// Who calls, as the edge has verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user (or service) for whom everything is done.
    pub subject: String,
    /// Whether it may decide approvals (S82).
    pub approve: bool,
    /// How deep in a chain of agent calls; 0 from a person.
    pub depth: u32,
    /// The uids of the agents that the call came through.
    pub chain: Vec<String>,
    /// What the calling agent left of its limits.
    pub budget: Option<Budget>,
    /// W3C `traceparent` of the call.
    pub traceparent: Option<String>,
}

/// Why a request is not served. The texts are for callers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not there, or somebody else's.
    #[error("task not found: {0}")]
    NotFound(String),
    /// It has ended.
    #[error("task cannot be canceled: {0}")]
    NotCancelable(String),
    #[error("{0}")]
    Unsupported(String),
    /// A part of a kind that this agent does not take.
    #[error("{0}")]
    Media(String),
    #[error("{0}")]
    Invalid(String),
    /// As many tasks as the agent's limits allow are active, or open for this caller.
    #[error("the agent has its {0} tasks at once (limit.sessions); wait for one, answer one or cancel one")]
    Full(u32),
    /// No revision yet, shutting down, or the journal does not take writes.
    #[error("{0}")]
    Unavailable(String),
}

impl From<JournalError> for Refusal {
    fn from(error: JournalError) -> Self {
        tracing::error!(%error, "a request is refused: the journal is not available");
        Self::Unavailable("the engine's journal is not available; try again later".to_owned())
    }
}

/// The tasks of one engine.
#[derive(Debug)]
pub struct Tasks {
    services: Services,
    current: Arc<Current>,
    open: Mutex<HashMap<String, Open>>,
    /// Whose tasks are about to begin, so that a burst does not pass the limits between look and deed.
    beginning: Mutex<Vec<String>>,
    turns: AtomicUsize,
    draining: AtomicBool,
}

#[derive(Clone, Debug)]
struct Open {
    live: Arc<Live>,
    /// The one that it began on.
    revision: Arc<Revision>,
}

impl Tasks {
    #[must_use]
    pub fn new(services: Services, current: Arc<Current>) -> Arc<Self> {
        Arc::new(Self {
            services,
            current,
            open: Mutex::default(),
            beginning: Mutex::default(),
            turns: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        })
    }

    /// Whether new tasks are taken; if not, why. Asks the disk again where it failed last.
    pub async fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("shutting down".to_owned());
        }
        if self.current.get().is_none() {
            return Err("no revision yet".to_owned());
        }
        let health = self.services.journal.health().borrow().clone();
        match health {
            Health::Good => Ok(()),
            Health::Opening | Health::Failed(_) => {
                let probe = timeout(Duration::from_secs(2), self.services.journal.probe()).await;
                probe
                    .map_err(|_| "the journal does not answer".to_owned())?
                    .map_err(|e| e.to_string())
            }
        }
    }

    /// Turns that run now.
    #[must_use]
    pub fn active(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    /// Takes nothing new and waits for the turns that run, at most `grace`. What then still runs is gone on with by
    /// the next process.
    pub async fn drain(&self, grace: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        let until = Instant::now() + grace;
        while self.active() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn find(&self, caller: &Caller, uid: &str) -> Option<Open> {
        let open = self.open.lock().get(uid).cloned();
        open.filter(|o| o.live.subject == caller.subject)
    }

    fn start(self: &Arc<Self>, open: &Open, turn: Turn, start: Start) {
        let (tasks, open) = (Arc::clone(self), open.clone());
        tasks.turns.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let guard = TurnGuard(&tasks.turns);
            let outcome = AssertUnwindSafe(turn.run(start)).catch_unwind().await;
            drop(guard);
            if outcome.is_err() {
                tasks.end_panicked(&open).await;
            }
            match open.live.state() {
                state if state.is_terminal() => {
                    tasks.open.lock().remove(&open.live.uid);
                }
                _ => tasks.watch_expiry(&open),
            }
        });
    }

    /// Ends a task. Answers how it then looks.
    ///
    /// # Errors
    /// Not there, ended already, or the journal does not take the end.
    pub async fn cancel(self: &Arc<Self>, caller: &Caller, uid: &str) -> Result<TaskView, Refusal> {
        let Some(open) = self.find(caller, uid) else {
            // Ended or not there: the lookup tells them apart for the owner alone.
            self.get(caller, uid).await?;
            return Err(Refusal::NotCancelable(uid.to_owned()));
        };
        open.live.cancel.cancel();
        if open.live.state() == TaskState::InputRequired && open.live.take_turn() {
            self.end_idle(&open, TaskState::Canceled, "canceled", "canceled")
                .await?;
        }
        let settled = async {
            loop {
                let view = open.live.settled().await;
                if view.status.state.is_terminal() {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let slow = |_| Refusal::Unavailable("the task has not ended yet; ask for it again".to_owned());
        timeout(CANCEL_WAIT, settled).await.map_err(slow)
    }

    /// A turn broke off by a fault of the engine's own: its task ends, and the session is free again.
    async fn end_panicked(&self, open: &Open) {
        tracing::error!(task = open.live.uid, "a turn panicked");
        let detail = "the engine failed while it worked on this task";
        let mut wait = Duration::from_millis(100);
        while let Err(error) = self
            .end_idle(open, TaskState::Failed, "engine.panic", detail)
            .await
        {
            tracing::error!(task = open.live.uid, %error, "the end of a task is not kept yet");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    /// Writes the end of a task that no turn works on.
    async fn end_idle(
        &self,
        open: &Open,
        state: TaskState,
        reason: &'static str,
        detail: &str,
    ) -> Result<(), Refusal> {
        let live = &open.live;
        let now_ms = self.services.clock.now_ms();
        let stored = self.services.journal.open_task(live.task).await;
        let stored = stored.inspect_err(|_| live.leave_turn())?;
        let Some(stored) = stored else { return Ok(()) };
        let counters = stored.task.counters;
        let record = turn::record(live, &open.revision, &counters, (state, reason), now_ms);
        let finish = Finish {
            task: live.task,
            session: live.session,
            state,
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            entry: None,
            step: None,
            counters: counters.clone(),
            record: self.services.runs.is_some().then_some(record),
            now_ms,
        };
        self.services
            .journal
            .finish(finish)
            .await
            .inspect_err(|_| live.leave_turn())?;
        let status = Status {
            state,
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            waits_for: Vec::new(),
            at_ms: now_ms,
        };
        crate::observe::task_ended(turn::outcome(state), &counters);
        live.finish(status, counters);
        self.open.lock().remove(&live.uid);
        if let Some(runs) = &self.services.runs {
            runs.notify_one();
        }
        Ok(())
    }

    /// Takes a seat for a task of `caller` that is about to begin: as many may run as the agent's limits say, no
    /// caller has more than that open (waiting for a person included), and all together a multiple of it.
    fn take_seat(self: &Arc<Self>, caller: &Caller, limit: u32) -> Result<Seat, Refusal> {
        let cap = limit as usize;
        let open = self.open.lock();
        let mut beginning = self.beginning.lock();
        let of_caller = |subject: &str| subject == caller.subject;
        let own = open.values().filter(|o| of_caller(&o.live.subject)).count()
            + beginning.iter().filter(|s| of_caller(s)).count();
        let all = open.len() + beginning.len();
        if self.active() + beginning.len() >= cap || own >= cap || all >= cap.saturating_mul(OPEN_FACTOR) {
            return Err(Refusal::Full(limit));
        }
        beginning.push(caller.subject.clone());
        Ok(Seat {
            tasks: Arc::clone(self),
            subject: caller.subject.clone(),
        })
    }

    /// Watches a task; one that has ended is a feed of its last view.
    ///
    /// # Errors
    /// Not there; [`Refusal::Unsupported`] if it has ended.
    pub async fn subscribe(&self, caller: &Caller, uid: &str, after: Option<Place>) -> Result<Feed, Refusal> {
        match self.find(caller, uid) {
            Some(open) => Ok(open.live.watch(after, false)),
            None => {
                self.get(caller, uid).await?;
                Err(Refusal::Unsupported(format!(
                    "task {uid} has ended: get it instead"
                )))
            }
        }
    }
}

/// A seat for a task that is about to begin.
#[derive(Debug)]
struct Seat {
    tasks: Arc<Tasks>,
    subject: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut beginning = self.tasks.beginning.lock();
        if let Some(at) = beginning.iter().position(|s| *s == self.subject) {
            beginning.swap_remove(at);
        }
    }
}

/// Counts a turn out however it ends.
struct TurnGuard<'a>(&'a AtomicUsize);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

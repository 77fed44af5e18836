//! Sending a message: a new task, or the answer that a task waits for.

use super::{Caller, Feed, Live, LiveIds, Open, Refusal, Shown, Status, TaskView, Tasks};
use crate::{
    clock::new_id,
    journal::{Begin, Begun, Entry, InPart, Origin, TaskState},
    peers::MAX_DEPTH,
    revision::{Revision, Serving},
    turn::{Start, Turn, user_message},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// A message as the edge read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inbound {
    pub message_id: String,
    /// The session to go on with; a name nobody used yet begins one.
    pub context: Option<String>,
    /// The task that waits for this answer.
    pub task: Option<String>,
    pub parts: Vec<InPart>,
}

/// What a message led to.
#[derive(Debug)]
pub enum Sent {
    /// A task that is open, or was a moment ago.
    Open(Arc<Live>),
    /// The message came before, and what it began has ended.
    Ended(Box<TaskView>),
}

impl Sent {
    /// Waits until the task has ended or asks a person.
    pub async fn settled(self) -> TaskView {
        match self {
            Self::Open(live) => live.settled().await,
            Self::Ended(view) => *view,
        }
    }

    /// How it looks now.
    #[must_use]
    pub fn view(&self) -> TaskView {
        match self {
            Self::Open(live) => live.view(),
            Self::Ended(view) => (**view).clone(),
        }
    }

    /// Watches it until it has ended or asks a person; a task that has ended is `Err` of its view.
    ///
    /// # Errors
    /// No error: the view of a task that has ended.
    pub fn watch(self) -> Result<Feed, Box<TaskView>> {
        match self {
            Self::Open(live) => Ok(live.watch(None, true)),
            Self::Ended(view) => Err(view),
        }
    }
}

/// Longest id of a message or session, in bytes.
const MAX_ID: usize = 256;

impl Tasks {
    /// Takes a message.
    ///
    /// # Errors
    /// Every [`Refusal`]; nothing was begun.
    pub async fn send(self: &Arc<Self>, caller: &Caller, inbound: Inbound) -> Result<Sent, Refusal> {
        let serving = self.current.get();
        let serving = serving.ok_or_else(|| Refusal::Unavailable("no revision yet; try again".to_owned()))?;
        check(&serving.revision, caller, &inbound)?;
        if let Some(uid) = inbound.task.clone() {
            return self.answer(caller, &uid, inbound).await;
        }
        let limit = serving.revision.bundle.agent.limits.sessions;
        let seat = if self.draining.load(Ordering::Relaxed) {
            Err(Refusal::Unavailable(
                "the engine is shutting down; try again".to_owned(),
            ))
        } else {
            self.take_seat(caller, limit)
        };
        let seat = match seat {
            Ok(seat) => seat,
            // Its answer was lost on the way, maybe: what it began needs no seat.
            Err(refusal) => {
                let journal = &self.services.journal;
                let begun = journal.known(caller.subject.clone(), inbound.message_id).await;
                let begun = begun.ok().flatten().ok_or(refusal)?;
                return self.known(caller, &begun).await;
            }
        };
        let sent = self.begin(caller, inbound, serving).await;
        // Only now: what began is counted by itself.
        drop(seat);
        sent
    }

    async fn begin(
        self: &Arc<Self>,
        caller: &Caller,
        inbound: Inbound,
        serving: Serving,
    ) -> Result<Sent, Refusal> {
        let clock = self.services.clock.as_ref();
        let now_ms = clock.now_ms();
        let task_uid = new_id(clock);
        let origin = Origin {
            run_id: new_id(clock),
            depth: caller.depth,
            chain: caller.chain.clone(),
            budget: caller.budget.clone(),
            traceparent: caller.traceparent.clone(),
        };
        let entry = Entry::User {
            message_id: inbound.message_id.clone(),
            parts: inbound.parts.clone(),
        };
        let begun = self.services.journal.begin(Begin {
            subject: caller.subject.clone(),
            context: inbound.context,
            new_context: new_id(clock),
            message_id: inbound.message_id.clone(),
            task_uid: task_uid.clone(),
            entry,
            revision: serving.revision.digest.clone(),
            origin: origin.clone(),
            now_ms,
        });
        match begun.await? {
            Begun::Known { task } => self.known(caller, &task).await,
            Begun::Busy {
                task,
                state: TaskState::InputRequired,
            } => Err(Refusal::Unsupported(format!(
                "task {task} of this session waits for an answer: send it with that taskId"
            ))),
            Begun::Busy { task, .. } => Err(Refusal::Unsupported(format!(
                "task {task} of this session still works: wait for it or cancel it"
            ))),
            Begun::New {
                task,
                session,
                context,
                step,
                earlier,
            } => {
                let ids = LiveIds {
                    uid: task_uid,
                    context,
                    subject: caller.subject.clone(),
                    task,
                    session,
                    origin,
                    revision: serving.revision.digest.clone(),
                };
                let start = if earlier {
                    Start::Later
                } else {
                    Start::First(user_message(&inbound.parts))
                };
                let shown = Shown::User {
                    message_id: inbound.message_id,
                    parts: inbound.parts,
                };
                let live = Arc::new(Live::new(ids, working(now_ms), (vec![shown], Vec::new()), now_ms));
                self.launch(&live, serving.revision, step, start);
                Ok(Sent::Open(live))
            }
        }
    }

    fn launch(self: &Arc<Self>, live: &Arc<Live>, revision: Arc<Revision>, step: i64, start: Start) {
        let open = Open {
            live: Arc::clone(live),
            revision,
        };
        self.open.lock().insert(live.uid.clone(), open.clone());
        let turn = Turn::fresh(
            self.services.clone(),
            Arc::clone(&open.revision),
            Arc::clone(live),
            step,
        );
        if live.take_turn() {
            self.start(&open, turn, start);
        }
    }

    /// The task that a message began when it came first.
    pub(super) async fn known(&self, caller: &Caller, uid: &str) -> Result<Sent, Refusal> {
        // Written down by a sibling request a moment ago, it may not be in memory yet.
        for _ in 0..200 {
            if let Some(open) = self.find(caller, uid) {
                return Ok(Sent::Open(open.live));
            }
            let view = self.get(caller, uid).await?;
            if view.status.state.is_terminal() {
                return Ok(Sent::Ended(Box::new(view)));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Refusal::Unavailable(
            "the task of this message is being taken over; try again".to_owned(),
        ))
    }
}

pub(super) fn working(at_ms: i64) -> Status {
    Status {
        state: TaskState::Working,
        reason: String::new(),
        detail: String::new(),
        waits_for: Vec::new(),
        at_ms,
    }
}

fn check(revision: &Revision, caller: &Caller, inbound: &Inbound) -> Result<(), Refusal> {
    if caller.depth > MAX_DEPTH {
        let text = format!(
            "agents may call agents at most {MAX_DEPTH} deep, this call is {} deep",
            caller.depth
        );
        return Err(Refusal::Unsupported(text));
    }
    if caller.chain.contains(&revision.bundle.uid) {
        let text = "this agent is in the chain of agents that the call came through: agents may not call in a circle";
        return Err(Refusal::Unsupported(text.to_owned()));
    }
    for (what, id) in [
        ("message.messageId", Some(&inbound.message_id)),
        ("message.contextId", inbound.context.as_ref()),
    ] {
        if id.is_some_and(|id| id.is_empty() || id.len() > MAX_ID) {
            return Err(Refusal::Invalid(format!("{what}: expected 1 to {MAX_ID} bytes")));
        }
    }
    if inbound.parts.is_empty() {
        return Err(Refusal::Invalid(
            "message.parts: expected at least one part, found none".to_owned(),
        ));
    }
    let blank = |part: &InPart| matches!(part, InPart::Text { text } if text.trim().is_empty());
    if inbound.parts.iter().all(blank) {
        return Err(Refusal::Invalid(
            "message.parts: expected something said, found blanks".to_owned(),
        ));
    }
    let file = inbound
        .parts
        .iter()
        .any(|part| matches!(part, InPart::File { .. }));
    if file && !revision.takes_files() {
        return Err(Refusal::Media(
            "message.parts: this agent takes text, found a file".to_owned(),
        ));
    }
    Ok(())
}

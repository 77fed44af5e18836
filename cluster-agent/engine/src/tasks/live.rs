//! An open task in memory: what it looks like now, and who is watching.
//!
//! Events are numbered from 1, and a name that a restart changes stands before the number. A watcher gets a snapshot first and then every event after it;
//! one that comes back with the last number it saw gets what it missed if that is still held, else a snapshot. A slow
//! watcher is never waited for and never costs memory without bound: it gets a snapshot in place of what it missed.

use crate::journal::{Change, Counters, Entry, InPart, Origin, Question, TaskState};
use parking_lot::Mutex;
use std::{collections::VecDeque, fmt, str::FromStr, sync::Arc};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Events held for watchers that come back.
const HELD: usize = 256;
/// Files of one task, in bytes of Base64: with them it still fits into one message of gRPC, of which clients take 4 MiB.
const MAX_FILES: usize = 3 * 1024 * 1024;
/// Events a watcher may be behind.
const BEHIND: usize = 128;

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub state: TaskState,
    /// Short code of why it ended; else empty.
    pub reason: String,
    /// For people; may be empty.
    pub detail: String,
    /// What it waits for, while it waits.
    pub waits_for: Vec<Waiting>,
    pub at_ms: i64,
}

/// A decision that a task waits for, as a person is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub approval: String,
    pub question: Question,
    pub server: String,
    pub tool: String,
    pub arguments: serde_json::Value,
    pub digest: String,
    /// The tool's description or schema is not the one that was approved: the answer is about this one, too.
    pub change: Option<Change>,
    pub expires_ms: i64,
}

/// Something shown in a task's history.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    User {
        message_id: String,
        parts: Vec<InPart>,
    },
    /// What the agent said before it called tools.
    Agent {
        text: String,
    },
}

/// The answer, or as much of it as there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// `answer-N`: N is the number of the model call.
    pub artifact: String,
    pub text: String,
    /// Byte offsets at which the model's stream was cut and gone on with.
    pub cuts: Vec<usize>,
    /// It is JSON that fits the agent's output schema.
    pub json: bool,
}

/// A file that a tool gave and the agent gives on.
#[derive(Clone, Debug, PartialEq)]
pub struct FileOut {
    /// `file-S-N`: the N-th of the step S.
    pub artifact: String,
    /// The tool.
    pub name: String,
    pub media_type: String,
    /// Base64 (standard, padded).
    pub data: String,
}

/// A task as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskView {
    pub uid: String,
    pub context: String,
    pub status: Status,
    pub history: Vec<Shown>,
    pub answer: Option<Answer>,
    pub files: Vec<Arc<FileOut>>,
    pub created_ms: i64,
    /// Only of a task that has ended.
    pub counters: Option<Counters>,
    /// The number of the last event that is part of this view; 0 before the first.
    pub number: u64,
    /// Of which count the number is: another process counts anew.
    pub epoch: u32,
}

/// The place of an event: its count, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub epoch: u32,
    pub number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.epoch, self.number)
    }
}

impl FromStr for Place {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, number) = text.split_once('-').ok_or(())?;
        Ok(Self {
            epoch: u32::from_str_radix(epoch, 16).map_err(|_| ())?,
            number: number.parse().map_err(|_| ())?,
        })
    }
}

/// Something that happened in a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Status(Status),
    /// More of the answer.
    Text {
        artifact: String,
        text: String,
        first: bool,
    },
    /// The whole answer: JSON that fits the agent's output schema.
    Json {
        artifact: String,
        text: String,
    },
    File(Arc<FileOut>),
    /// The text under this name is complete; `interim` if tools were called after it.
    TextEnd {
        artifact: String,
        interim: bool,
    },
    Reasoning {
        text: String,
    },
    ToolCall {
        call: String,
        server: String,
        tool: String,
        arguments: serde_json::Value,
    },
    ToolResult {
        call: String,
        server: String,
        tool: String,
        text: String,
        is_error: bool,
    },
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    pub number: u64,
    pub event: Event,
}

/// An open task.
#[derive(Debug)]
pub struct Live {
    pub uid: String,
    pub context: String,
    pub subject: String,
    pub task: i64,
    pub session: i64,
    pub origin: Origin,
    /// Digest of the revision that it runs on.
    pub revision: String,
    /// Ends the task; reaches streams and tools.
    pub cancel: CancellationToken,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    view: TaskView,
    held: VecDeque<Arc<Numbered>>,
    watchers: Option<broadcast::Sender<Arc<Numbered>>>,
    /// A turn runs (or is about to): at most one a task.
    turning: bool,
}

/// What identifies an open task.
#[derive(Clone, Debug)]
pub struct LiveIds {
    pub uid: String,
    pub context: String,
    pub subject: String,
    pub task: i64,
    pub session: i64,
    pub origin: Origin,
    pub revision: String,
}

impl Live {
    #[must_use]
    pub fn new(
        ids: LiveIds,
        status: Status,
        (history, files): (Vec<Shown>, Vec<Arc<FileOut>>),
        created_ms: i64,
    ) -> Self {
        let view = TaskView {
            uid: ids.uid.clone(),
            context: ids.context.clone(),
            status,
            history,
            answer: None,
            files,
            created_ms,
            counters: None,
            number: 0,
            epoch: rand::random(),
        };
        Self {
            uid: ids.uid,
            context: ids.context,
            subject: ids.subject,
            task: ids.task,
            session: ids.session,
            origin: ids.origin,
            revision: ids.revision,
            cancel: CancellationToken::new(),
            inner: Mutex::new(Inner {
                view,
                held: VecDeque::new(),
                watchers: None,
                turning: false,
            }),
            changed: Notify::new(),
        }
    }

    #[must_use]
    pub fn view(&self) -> TaskView {
        self.inner.lock().view.clone()
    }

    #[must_use]
    pub fn state(&self) -> TaskState {
        self.inner.lock().view.status.state
    }

    /// What it waits for.
    #[must_use]
    pub fn waits_for(&self) -> Vec<Waiting> {
        self.inner.lock().view.status.waits_for.clone()
    }

    /// Claims the one turn that a task has at a time; `false` if one runs.
    #[must_use]
    pub fn take_turn(&self) -> bool {
        !std::mem::replace(&mut self.inner.lock().turning, true)
    }

    /// The turn is over.
    pub fn leave_turn(&self) {
        self.inner.lock().turning = false;
    }

    /// Adds what a person said to the history.
    pub fn show(&self, shown: Shown) {
        self.inner.lock().view.history.push(shown);
    }

    /// Waits until the task has ended or waits for a person, and answers how it then looks.
    pub async fn settled(&self) -> TaskView {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.inner.lock();
                let state = inner.view.status.state;
                if state.is_terminal() || state == TaskState::InputRequired {
                    return inner.view.clone();
                }
            }
            changed.await;
        }
    }

    /// Shows how the task stands now; an end is final.
    pub(crate) fn set_status(&self, status: Status) {
        if self.state().is_terminal() {
            return;
        }
        self.emit(Event::Status(status));
        self.changed.notify_waiters();
    }

    pub(crate) fn finish(&self, status: Status, counters: Counters) {
        self.inner.lock().view.counters = Some(counters);
        self.set_status(status);
    }

    /// Marks the answer so far as cut at its end, to be gone on with.
    pub(crate) fn mark_cut(&self) {
        if let Some(answer) = &mut self.inner.lock().view.answer {
            answer.cuts.push(answer.text.len());
        }
    }

    /// The text so far is complete; `interim` if the model goes on with something else.
    pub(crate) fn end_text(&self, interim: bool) {
        // A structured answer went out whole.
        let inner = self.inner.lock();
        let answer = inner.view.answer.as_ref().filter(|a| !a.json);
        let artifact = answer.map(|a| a.artifact.clone());
        drop(inner);
        if let Some(artifact) = artifact {
            self.emit(Event::TextEnd { artifact, interim });
        }
    }

    /// What was shown of the answer that is under way.
    pub(crate) fn said(&self) -> Option<Entry> {
        let inner = self.inner.lock();
        let answer = inner.view.answer.as_ref().filter(|a| !a.text.is_empty())?;
        Some(Entry::Assistant {
            text: answer.text.clone(),
            tool_calls: Vec::new(),
            provider_state: None,
            cuts: answer.cuts.clone(),
            json: answer.json,
        })
    }

    /// Gives files of a tool to whoever looks at the task, unless it has too many already.
    pub(crate) fn give(&self, files: Vec<FileOut>) -> bool {
        let size = |files: &mut dyn Iterator<Item = usize>| files.sum::<usize>();
        let more = size(&mut files.iter().map(|f| f.data.len()));
        let held = size(&mut self.inner.lock().view.files.iter().map(|f| f.data.len()));
        if held + more > MAX_FILES {
            return false;
        }
        for file in files {
            self.emit(Event::File(Arc::new(file)));
        }
        true
    }

    pub(crate) fn emit(&self, event: Event) {
        let mut inner = self.inner.lock();
        apply(&mut inner.view, &event);
        inner.view.number += 1;
        let numbered = Arc::new(Numbered {
            number: inner.view.number,
            event,
        });
        if inner.held.len() == HELD {
            inner.held.pop_front();
        }
        if let Some(watchers) = &inner.watchers {
            // Nobody may be watching any more; the event is in the view all the same.
            let _ = watchers.send(Arc::clone(&numbered));
        }
        inner.held.push_back(numbered);
    }

    /// Watches from now on, or from after the event `after` where that is still held.
    #[must_use]
    pub fn watch(self: &Arc<Self>, after: Option<Place>, until_pause: bool) -> Feed {
        let mut inner = self.inner.lock();
        let sender = inner
            .watchers
            .get_or_insert_with(|| broadcast::Sender::new(BEHIND));
        let events = sender.subscribe();
        // Of another count, a number says nothing: all there is comes as a snapshot.
        let after = after.filter(|place| place.epoch == inner.view.epoch);
        let missed = after.and_then(|place| held_after(&inner, place.number));
        let snapshot = missed.is_none().then(|| inner.view.clone());
        let done =
            ends(inner.view.status.state, until_pause) && missed.as_ref().is_none_or(VecDeque::is_empty);
        Feed {
            live: Arc::clone(self),
            events,
            missed: missed.unwrap_or_default(),
            snapshot,
            until_pause,
            done,
        }
    }
}

fn held_after(inner: &Inner, number: u64) -> Option<VecDeque<Arc<Numbered>>> {
    let oldest = inner.held.front().map_or(inner.view.number + 1, |e| e.number);
    let known = number <= inner.view.number && number + 1 >= oldest;
    known.then(|| inner.held.iter().filter(|e| e.number > number).cloned().collect())
}

fn ends(state: TaskState, until_pause: bool) -> bool {
    state.is_terminal() || (until_pause && state == TaskState::InputRequired)
}

fn apply(view: &mut TaskView, event: &Event) {
    match event {
        Event::Status(status) => view.status = status.clone(),
        Event::Text {
            artifact,
            text,
            first,
        } => {
            if *first {
                view.answer = Some(Answer {
                    artifact: artifact.clone(),
                    ..Answer::default()
                });
            }
            if let Some(answer) = &mut view.answer {
                answer.text.push_str(text);
            }
        }
        Event::Json { artifact, text } => {
            view.answer = Some(Answer {
                artifact: artifact.clone(),
                text: text.clone(),
                json: true,
                ..Answer::default()
            });
        }
        Event::File(file) => view.files.push(Arc::clone(file)),
        Event::TextEnd { interim: true, .. } => {
            if let Some(answer) = view.answer.take() {
                view.history.push(Shown::Agent { text: answer.text });
            }
        }
        Event::TextEnd { .. }
        | Event::Reasoning { .. }
        | Event::ToolCall { .. }
        | Event::ToolResult { .. } => {}
    }
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub enum Fed {
    /// The whole task as it is: at first, and in place of what was missed.
    Snapshot(Box<TaskView>),
    Event(Arc<Numbered>),
}

/// A watcher's view of a task, to its end (or to its next question).
#[derive(Debug)]
pub struct Feed {
    live: Arc<Live>,
    events: broadcast::Receiver<Arc<Numbered>>,
    missed: VecDeque<Arc<Numbered>>,
    snapshot: Option<TaskView>,
    until_pause: bool,
    done: bool,
}

impl Feed {
    /// The ids of the task and of its session, and the count of its events.
    #[must_use]
    pub fn ids(&self) -> (String, String, u32) {
        let epoch = self.live.inner.lock().view.epoch;
        (self.live.uid.clone(), self.live.context.clone(), epoch)
    }

    /// The next thing; `None` after the end.
    pub async fn next(&mut self) -> Option<Fed> {
        if let Some(view) = self.snapshot.take() {
            self.done = ends(view.status.state, self.until_pause);
            return Some(Fed::Snapshot(Box::new(view)));
        }
        if let Some(event) = self.missed.pop_front() {
            return Some(self.pass(event));
        }
        if self.done {
            return None;
        }
        match self.events.recv().await {
            Ok(event) => Some(self.pass(event)),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let live = Arc::clone(&self.live);
                *self = live.watch(None, self.until_pause);
                self.snapshot.take().map(|view| Fed::Snapshot(Box::new(view)))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    fn pass(&mut self, event: Arc<Numbered>) -> Fed {
        if let Event::Status(status) = &event.event {
            self.done = ends(status.state, self.until_pause);
        }
        Fed::Event(event)
    }
}

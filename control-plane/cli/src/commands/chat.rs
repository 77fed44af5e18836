//! `chat`: a conversation with one agent.
//!
//! What the agent says goes to standard output as it comes; into a pipe only the answer goes, once it is known to be
//! the answer. Tool calls, thoughts and questions go to standard error.

use super::{
    approval,
    task_view::{Show, TaskView},
};
use crate::{
    a2a::{AgentEndpoint, Events},
    args::{Chat, Common, Format},
    client::Client,
    failure::{Exit, Failure, Outcome},
    render,
    shell::Shell,
    text::line,
};
use a2a::{Message, Part, Role, StreamResponse, TaskState};
use serde_json::json;
use std::{io::Write as _, time::Duration};

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// How long a cancelled task has to say that it ended.
const CANCEL: Duration = Duration::from_secs(10);
/// Pauses before a broken stream is taken up again.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

pub(super) async fn run(client: &Client, common: &Common, args: Chat, shell: &mut Shell) -> Outcome<Exit> {
    let (project, name) = client.place(&args.agent);
    let mut chat = Conversation {
        endpoint: AgentEndpoint::new(client, &args.agent),
        agent: format!("{project}/{name}"),
        session: args.session,
        format: common.output,
        line_open: false,
        held: String::new(),
    };
    let interactive = args.message.is_none() && shell.input.is_terminal();
    if interactive && common.output != Format::Table {
        return Err(Failure::new(Exit::Usage, "-o is for one message")
            .next("add --message TEXT, or pipe the message in"));
    }
    if let Some(task) = args.task {
        return chat.take_up(&task, args.message, shell).await;
    }
    if interactive {
        return chat.talk(shell).await;
    }
    let text = match args.message {
        Some(text) => text,
        None => shell.input.all(MAX_MESSAGE).map_err(|error| match error.kind() {
            std::io::ErrorKind::FileTooLarge => Failure::new(
                Exit::Invalid,
                format!("the message is longer than {MAX_MESSAGE} bytes"),
            ),
            _ => error.into(),
        })?,
    };
    if text.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the message is empty")
            .next("give it with --message or on standard input"));
    }
    let view = chat.say(text, shell).await?;
    chat.close(&view, shell)
}

struct Conversation<'a> {
    endpoint: AgentEndpoint<'a>,
    agent: String,
    session: Option<String>,
    format: Format,
    /// The terminal's line is not ended.
    line_open: bool,
    /// A text that may turn out to be no answer; only where the output is no terminal.
    held: String,
}

impl<'a> Conversation<'a> {
    /// Message by message, until the input ends.
    async fn talk(&mut self, shell: &mut Shell) -> Outcome<Exit> {
        writeln!(
            shell.err,
            "Talking with {}. Ctrl-C stops an answer, Ctrl-D ends.",
            line(&self.agent)
        )?;
        loop {
            write!(shell.err, "> ")?;
            shell.flush()?;
            let interrupt = shell.interrupt.clone();
            let typed = tokio::select! {
                typed = shell.input.line() => typed?,
                () = interrupt.wait() => None,
            };
            let Some(text) = typed else { break };
            if text.trim().is_empty() {
                continue;
            }
            match self.say(text, shell).await {
                Ok(view) => {
                    if let Some(failure) = ended_badly(&view) {
                        failure.write(&mut shell.err)?;
                    }
                }
                // The next message may be luckier; what is wrong with the way to the agent stays wrong.
                Err(failure)
                    if matches!(failure.exit, Exit::Failed | Exit::Invalid | Exit::Limit)
                        && !failure.is_broken_pipe() =>
                {
                    self.end_line(shell)?;
                    failure.write(&mut shell.err)?;
                }
                Err(failure) => return Err(failure),
            }
        }
        if let Some(session) = &self.session {
            writeln!(
                shell.err,
                "\nGo on with: roadstead chat {} --session {}",
                self.agent,
                line(session)
            )?;
        }
        Ok(Exit::Done)
    }

    /// One message and everything up to the task's end; questions are asked where there is somebody to ask.
    async fn say(&mut self, text: String, shell: &mut Shell) -> Outcome<TaskView> {
        let mut message = Message::new(Role::User, vec![Part::text(text)]);
        message.context_id.clone_from(&self.session);
        let mut view = TaskView::default();
        self.deliver(message, &mut view, shell).await?;
        Ok(view)
    }

    /// A task that waits: answered with `text`, or by asking.
    async fn take_up(&mut self, task: &str, text: Option<String>, shell: &mut Shell) -> Outcome<Exit> {
        let mut view = TaskView::default();
        let stored = self.endpoint.task(task).await?;
        let ended = stored.status.state.is_terminal();
        self.show_all(view.take(StreamResponse::Task(stored)), shell)?;
        match text {
            Some(text) if !ended => {
                let mut message = Message::new(Role::User, vec![Part::text(text)]);
                message.task_id.clone_from(&view.task);
                message.context_id.clone_from(&view.session);
                // It waits no more: what the stored task said must not end the watch before the first event.
                view.state = TaskState::Working;
                self.deliver(message, &mut view, shell).await?;
            }
            Some(_) => {
                let message = format!("the task {task} has ended and takes no answer");
                return Err(Failure::new(Exit::Conflict, message));
            }
            None if ended => {}
            None => {
                if !view.rests() {
                    let events = self.endpoint.subscribe(task).await?;
                    self.watch(events, &mut view, shell).await?;
                }
                self.settle(&mut view, shell).await?;
            }
        }
        self.close(&view, shell)
    }

    async fn deliver(&mut self, message: Message, view: &mut TaskView, shell: &mut Shell) -> Outcome<()> {
        let interrupt = shell.interrupt.clone();
        let events = tokio::select! {
            events = self.endpoint.send(message) => events?,
            () = interrupt.wait() => return Err(Failure::new(Exit::Interrupted, "interrupted before the agent answered")),
        };
        self.watch(events, view, shell).await?;
        self.settle(view, shell).await
    }

    /// Answers what the task waits for, again and again until it has ended.
    async fn settle(&mut self, view: &mut TaskView, shell: &mut Shell) -> Outcome<()> {
        while view.state == TaskState::InputRequired {
            self.end_line(shell)?;
            self.session.clone_from(&view.session);
            if !shell.input.is_terminal() {
                return Err(approval::nobody_to_ask(view, &self.agent, (shell.now)()));
            }
            let Some(message) = approval::ask(view, shell).await? else {
                return Err(approval::nobody_to_ask(view, &self.agent, (shell.now)()));
            };
            let events = self.endpoint.send(message).await?;
            view.state = TaskState::Working;
            self.watch(events, view, shell).await?;
        }
        self.end_line(shell)
    }

    /// Shows events until the task rests. A stream that breaks is taken up again; Ctrl-C cancels the task.
    async fn watch(&mut self, mut events: Events<'a>, view: &mut TaskView, shell: &mut Shell) -> Outcome<()> {
        let (mut tries, mut cancelled) = (0, false);
        let interrupt = shell.interrupt.clone();
        let end = async |cancelled: bool| {
            if cancelled {
                tokio::time::sleep(CANCEL).await
            } else {
                std::future::pending().await
            }
        };
        while !view.rests() {
            let event = tokio::select! {
                event = events.next() => event,
                () = interrupt.wait() => {
                    let Some(task) = view.task.clone().filter(|_| !cancelled) else {
                        return Err(Failure::new(Exit::Interrupted, "interrupted; the task may still run"));
                    };
                    cancelled = true;
                    self.end_line(shell)?;
                    writeln!(shell.err, "cancelling …")?;
                    let task = self.endpoint.cancel(&task).await?;
                    self.show_all(view.take(StreamResponse::Task(task)), shell)?;
                    continue;
                }
                () = end(cancelled) => {
                    return Err(Failure::new(Exit::Interrupted, "the agent does not say that the task has ended"));
                }
            };
            match event {
                Ok(Some(event)) => {
                    tries = 0;
                    let shows = view.take(event);
                    self.session.clone_from(&view.session);
                    self.show_all(shows, shell)?;
                }
                Ok(None) => events = self.again(view, &mut tries, None, shell).await?,
                Err(failure) if failure.exit == Exit::Unavailable => {
                    events = self.again(view, &mut tries, Some(failure), shell).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Takes a broken stream up again, where the task is known.
    async fn again(
        &mut self,
        view: &mut TaskView,
        tries: &mut usize,
        failure: Option<Failure>,
        shell: &mut Shell,
    ) -> Outcome<Events<'a>> {
        let broken = || Failure::new(Exit::Unavailable, "the agent's answer broke off");
        let mut last = failure.unwrap_or_else(broken);
        let Some(task) = view.task.clone() else {
            return Err(last);
        };
        while let Some(pause) = AGAIN.get(*tries) {
            *tries += 1;
            tokio::time::sleep(*pause).await;
            match self.endpoint.task(&task).await {
                Ok(stored) => {
                    let shows = view.take(StreamResponse::Task(stored));
                    self.show_all(shows, shell)?;
                }
                Err(failure) if failure.exit == Exit::Unavailable => {
                    last = failure;
                    continue;
                }
                Err(failure) => return Err(failure),
            }
            if view.rests() {
                return Ok(self.endpoint.nothing());
            }
            match self.endpoint.subscribe(&task).await {
                Ok(events) => return Ok(events),
                Err(failure) => last = failure,
            }
        }
        Err(last.next(format!(
            "see how it ended: roadstead chat {} --task {}",
            self.agent,
            line(&task)
        )))
    }

    /// The last word of a one-shot: the answer is out, the rest is an exit code.
    fn close(&mut self, view: &TaskView, shell: &mut Shell) -> Outcome<Exit> {
        self.end_line(shell)?;
        if self.format != Format::Table {
            let state = state_name(&view.state);
            let value = json!({"agent": self.agent, "session": view.session, "task": view.task, "state": state,
                "reason": view.reason, "answer": view.answer()});
            render::value(shell, self.format, &value)?;
        }
        match ended_badly(view) {
            Some(failure) => Err(failure),
            None => Ok(Exit::Done),
        }
    }

    fn show_all(&mut self, shows: Vec<Show>, shell: &mut Shell) -> Outcome<()> {
        for show in shows {
            self.show(show, shell)?;
        }
        shell.flush()
    }

    fn show(&mut self, show: Show, shell: &mut Shell) -> Outcome<()> {
        match show {
            Show::Text(text) if self.format != Format::Table => drop(text),
            Show::Text(text) if shell.out_is_terminal => {
                self.line_open = !text.ends_with('\n');
                shell.say(&text)?;
            }
            Show::Text(text) => self.held.push_str(&text),
            Show::TextEnd { interim } => {
                let held = std::mem::take(&mut self.held);
                if !held.is_empty() && interim {
                    writeln!(shell.err, "{}", crate::text::shown(&held))?;
                } else if !held.is_empty() {
                    shell.say(&held)?;
                    if !held.ends_with('\n') {
                        shell.say("\n")?;
                    }
                }
                self.end_line(shell)?;
            }
            Show::Thought(text) => self.aside(&text, shell)?,
            Show::File {
                name,
                media_type,
                bytes,
            } => self.aside(&format!("← {name}: {media_type}, {bytes} bytes"), shell)?,
            Show::ToolCall { name, arguments } => self.aside(&format!("→ {name} {arguments}"), shell)?,
            Show::ToolResult { name, text, is_error } => {
                let first = text.lines().next().unwrap_or_default();
                let outcome = if is_error {
                    format!("failed: {first}")
                } else {
                    format!("{} bytes: {first}", text.len())
                };
                self.aside(&format!("← {name} {outcome}"), shell)?;
            }
        }
        Ok(())
    }

    /// A line beside the answer, cut to what fits.
    fn aside(&mut self, text: &str, shell: &mut Shell) -> Outcome<()> {
        self.end_line(shell)?;
        let text = line(text);
        let cut = text
            .char_indices()
            .nth(200)
            .map_or(text.as_str(), |(at, _)| &text[..at]);
        let more = if cut.len() < text.len() { "…" } else { "" };
        if shell.colour && shell.err_is_terminal {
            writeln!(shell.err, "\u{1b}[2m{cut}{more}\u{1b}[0m")?;
        } else {
            writeln!(shell.err, "{cut}{more}")?;
        }
        Ok(())
    }

    fn end_line(&mut self, shell: &mut Shell) -> Outcome<()> {
        if std::mem::take(&mut self.line_open) {
            shell.say("\n")?;
            shell.flush()?;
        }
        Ok(())
    }
}

fn state_name(state: &TaskState) -> &'static str {
    match state {
        TaskState::Submitted => "submitted",
        TaskState::Working => "working",
        TaskState::Completed => "completed",
        TaskState::Failed => "failed",
        TaskState::Canceled => "canceled",
        TaskState::InputRequired => "input-required",
        TaskState::Rejected => "rejected",
        TaskState::AuthRequired => "auth-required",
        TaskState::Unspecified => "unknown",
    }
}

/// How a task that did not complete ended.
fn ended_badly(view: &TaskView) -> Option<Failure> {
    let exit = match view.state {
        TaskState::Completed => return None,
        TaskState::Canceled => Exit::Interrupted,
        TaskState::AuthRequired => Exit::Forbidden,
        _ => Exit::Failed,
    };
    let reason = if view.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", view.reason)
    };
    let detail = if view.detail.is_empty() {
        String::new()
    } else {
        format!(": {}", view.detail)
    };
    Some(Failure::new(
        exit,
        format!("the task {}{reason}{detail}", state_name(&view.state)),
    ))
}

//! The tool calls of one answer: checked, approved, made (in `calls`), and answered to the model in call order.

use super::{
    End, Turn,
    ask::Reply,
    calls::PARALLEL,
    pause::digest,
    refused_by_person,
    results::capped,
    table::{Offered, PERSON, label},
};
use crate::{
    journal::{Approval, Decision, Entry, ModelDone, NewStep, Question, Step, StepResult, StepState},
    model::{ChatMessage, ToolCall},
};
use roadstead_contract::documents::OnUnknownResult;
use std::sync::Arc;
use tokio::time::Instant;

/// How often one tool may be called wrongly in a row before the task ends.
const WRONG_CALLS: u32 = 3;

/// A call with its row in the journal.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(super) step: i64,
    pub(super) call: ToolCall,
    pub(super) server: String,
    pub(super) tool: String,
    pub(super) what: What,
    /// The journal has its result.
    kept: bool,
}

/// What is to be done about a call.
#[derive(Debug)]
pub(crate) enum What {
    /// Its result is there.
    Done(StepResult),
    /// It may be made; `sent` if the journal says so already.
    Run { sent: bool, by: Leave },
    /// A person is asked; `asked` if the question is written down.
    Ask { question: Question, asked: bool },
    /// Found as planned after a restart: to be checked like a new one.
    Check,
    /// Found as sent after a restart, without a result.
    Lost,
}

/// By whose leave a call is made.
#[derive(Debug)]
pub(crate) enum Leave {
    /// It needs nobody's.
    Free,
    /// A person's, for what has this digest.
    Person(String),
}

/// A call as a restart finds it.
pub(super) fn placed(call: &ToolCall, step: Step, approvals: &[Approval]) -> Planned {
    let latest = approvals
        .iter()
        .find(|a| a.step == step.id && a.decision != Some(Decision::Void));
    let kept = step.state == StepState::Done;
    let what = match (step.state, step.result) {
        (_, Some(result)) => What::Done(result),
        (state, None) => match latest {
            Some(a) => answered(a, state),
            None if state == StepState::Sent => What::Lost,
            None => What::Check,
        },
    };
    Planned {
        step: step.id,
        call: call.clone(),
        server: step.server,
        tool: step.tool,
        what,
        kept,
    }
}

fn answered(approval: &Approval, state: StepState) -> What {
    match (approval.question, approval.decision) {
        (question, None) => What::Ask {
            question,
            asked: true,
        },
        (Question::Asked, Some(Decision::Answered)) => What::Done(StepResult {
            text: capped(approval.reason.clone()),
            ..StepResult::default()
        }),
        (Question::Asked, Some(_)) => What::Done(StepResult::error("Nobody answered in time.")),
        // The decision was used up: it allowed one call.
        (_, Some(Decision::Yes)) if state == StepState::Sent => What::Lost,
        (_, Some(Decision::Yes)) => What::Run {
            sent: false,
            by: Leave::Person(approval.digest.clone()),
        },
        (Question::Approve, Some(decision)) => {
            What::Done(StepResult::error(refused_by_person(decision, &approval.reason)))
        }
        (Question::Unknown, Some(_)) => What::Done(StepResult::error(unknown_effect(&approval.reason))),
    }
}

fn unknown_effect(reason: &str) -> String {
    let mut text =
        "The engine stopped after this call was sent. It may have taken effect; its result is not known. \
                    It was not repeated."
            .to_owned();
    if !reason.is_empty() {
        text.push_str(" A person adds: ");
        text.push_str(reason);
    }
    text
}

impl StepResult {
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: true,
            ..Self::default()
        }
    }
}

impl Turn {
    /// Checks the calls of an answer and writes them down with it.
    pub(super) async fn plan(&mut self, reply: Reply, step: i64) -> Result<(Entry, Vec<Planned>), End> {
        let calls = reply.calls.clone();
        self.show_held(&reply.text);
        let entry = reply.into_entry(false);
        let mut verdicts = Vec::with_capacity(calls.len());
        for call in &calls {
            verdicts.push(self.check(call));
        }
        let made = verdicts
            .iter()
            .filter(|(_, what)| !matches!(what, What::Done(_)))
            .count();
        let limit = self.caps.before_tools(&self.counters, made);
        if let Err((code, detail)) = limit {
            let last = Some(Box::new(super::Last { entry, step }));
            return Err(End::Failed { code, detail, last });
        }
        let mut free = PARALLEL;
        for (_, what) in &mut verdicts {
            if let What::Run { sent, .. } = what {
                *sent = free > 0;
                free = free.saturating_sub(1);
            }
        }
        let steps = calls
            .iter()
            .zip(&verdicts)
            .map(|(call, (offered, what))| new_step(call, offered.as_deref(), what));
        let done = ModelDone {
            task: self.live.task,
            session: self.live.session,
            step,
            entry: entry.clone(),
            calls: steps.collect(),
            counters: self.counters.clone(),
        };
        let written = self.services.journal.model_done(done).await?;
        self.live.end_text(true);
        self.too_often()?;
        let planned =
            calls
                .into_iter()
                .zip(verdicts)
                .zip(written.steps)
                .map(|((call, (offered, what)), step)| {
                    let (server, tool) = place(&call, offered.as_deref());
                    let kept = matches!(what, What::Done(_));
                    Planned {
                        step,
                        call,
                        server,
                        tool,
                        what,
                        kept,
                    }
                });
        Ok((entry, planned.collect()))
    }

    /// Whether a call may be made: known and allowed, with fitting arguments, and whether a person is to be asked.
    fn check(&mut self, call: &ToolCall) -> (Option<Arc<Offered>>, What) {
        let offered = self.table.get(&call.name).cloned();
        let wrong = match (&offered, &call.problem) {
            (None, _) => Some(format!(
                "There is no tool {}. The tools are: {}.",
                call.name,
                self.table.names()
            )),
            (Some(_), Some(problem)) => Some(format!("The arguments are not JSON: {problem}.")),
            (Some(offered), None) => {
                // What a changed schema says is not for the model to read before a person has: it is held to it then.
                let misfit = match offered.changed {
                    Some(_) => None,
                    None => offered.check(&call.arguments).err(),
                };
                misfit.map(|m| format!("The arguments do not fit the tool's JSON Schema: {m}."))
            }
        };
        // A tool that is gone with its server is no mistake of the model's.
        if let (None, Some(missing)) = (&offered, self.table.missing()) {
            let text = format!("There is no tool {} now. {missing}", call.name);
            return (offered, What::Done(StepResult::error(text)));
        }
        if let Some(wrong) = wrong {
            *self.counters.refused.entry(call.name.clone()).or_default() += 1;
            return (offered, What::Done(StepResult::error(wrong)));
        }
        self.counters.refused.remove(&call.name);
        let question = match &offered {
            Some(offered) if offered.server == PERSON => Some(Question::Asked),
            Some(offered) if offered.approve || offered.changed.is_some() => Some(Question::Approve),
            _ => None,
        };
        let what = match question {
            Some(question) => What::Ask {
                question,
                asked: false,
            },
            None => What::Run {
                sent: false,
                by: Leave::Free,
            },
        };
        (offered, what)
    }

    fn too_often(&self) -> Result<(), End> {
        let often = self.counters.refused.iter().find(|(_, n)| **n > WRONG_CALLS);
        often.map_or(Ok(()), |(name, n)| {
            let detail = format!("the model called {name} wrongly {n} times in a row");
            Err(End::failed("tool.arguments", detail))
        })
    }

    /// Makes what may be made, asks what must be asked, and gives the model its results.
    pub(super) async fn settle(&mut self, entry: &Entry, mut batch: Vec<Planned>) -> Result<(), End> {
        for planned in &mut batch {
            self.review(planned)?;
        }
        let sent = Instant::now();
        self.make_calls(&mut batch).await;
        self.waited += sent.elapsed();
        if self.live.cancel.is_cancelled() {
            return Err(End::Canceled);
        }
        if batch.iter().any(|p| matches!(p.what, What::Ask { .. })) {
            self.confirm().await?;
            return Err(self.pause(&batch).await?);
        }
        self.push(entry);
        for planned in batch {
            if let What::Done(result) = planned.what {
                let ToolCall { id, name, .. } = planned.call;
                let message = ChatMessage::Tool {
                    call_id: id,
                    name,
                    text: result.text,
                    is_error: result.is_error,
                };
                self.request_mut().messages.push(message);
            }
        }
        Ok(())
    }

    /// Decides about what a restart found, and writes down results that came without a call.
    fn review(&mut self, planned: &mut Planned) -> Result<(), End> {
        match &planned.what {
            What::Check => planned.what = self.check(&planned.call).1,
            What::Lost => planned.what = self.lost(planned)?,
            What::Run { by, .. } => match self.table.find(&planned.server, &planned.tool) {
                None => {
                    let text = format!("The tool {} is not on offer any more.", planned.call.name);
                    planned.what = What::Done(StepResult::error(text));
                }
                Some(offered) if !covers(by, offered, &planned.call) => {
                    planned.what = What::Ask {
                        question: Question::Approve,
                        asked: false,
                    };
                }
                Some(_) => {}
            },
            What::Done(_) | What::Ask { .. } => {}
        }
        if let What::Done(result) = &planned.what
            && !planned.kept
        {
            self.unconfirmed
                .push(self.services.journal.tool_done(planned.step, result));
            planned.kept = true;
        }
        Ok(())
    }

    /// A call that was sent and has no result: repeated only where that is known to be safe.
    fn lost(&self, planned: &Planned) -> Result<What, End> {
        let offered = self.table.find(&planned.server, &planned.tool);
        // What says something else of itself today need not be what it was.
        if offered.is_some_and(|o| o.repeatable && o.changed.is_none()) {
            return Ok(What::Run {
                sent: true,
                by: Leave::Free,
            });
        }
        let label = label(&planned.server, &planned.tool);
        match self.revision.bundle.agent.on_unknown_result {
            OnUnknownResult::Ask => Ok(What::Ask {
                question: Question::Unknown,
                asked: false,
            }),
            OnUnknownResult::Tell => Ok(What::Done(StepResult::error(unknown_effect("")))),
            OnUnknownResult::Fail => {
                let detail = format!("the engine stopped after {label} was called; its effect is not known");
                Err(End::failed("tool.unknownResult", detail))
            }
        }
    }
}

/// Whether a leave is one for the tool as it is now: a change that the person was not shown needs another (S80).
fn covers(leave: &Leave, offered: &Offered, call: &ToolCall) -> bool {
    let Some(change) = &offered.changed else {
        return true;
    };
    let wanted = digest(&offered.server, &offered.tool, &call.arguments, Some(change));
    matches!(leave, Leave::Person(digest) if *digest == wanted)
}

fn place(call: &ToolCall, offered: Option<&Offered>) -> (String, String) {
    match offered {
        Some(offered) => (offered.server.clone(), offered.tool.clone()),
        None => (String::new(), call.name.clone()),
    }
}

fn new_step(call: &ToolCall, offered: Option<&Offered>, what: &What) -> NewStep {
    let (server, tool) = place(call, offered);
    let (state, result) = match what {
        What::Done(result) => (StepState::Done, Some(result.clone())),
        What::Run { sent: true, .. } => (StepState::Sent, None),
        _ => (StepState::Planned, None),
    };
    NewStep {
        server,
        tool,
        state,
        result,
    }
}

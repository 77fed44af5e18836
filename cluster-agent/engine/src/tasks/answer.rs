//! A person's answer to what a task waits for: bound to the digest of what was asked, single-use, expiring.

use super::{Caller, Inbound, Open, Refusal, Sent, Shown, Status, Tasks, Waiting, send::working};
use crate::{
    journal::{Decide, Decided, Decision, Entry, InPart, TaskState},
    turn::{Start, Turn, sentence},
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

/// The data part that answers an approval.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Verdict {
    approval: String,
    decision: Word,
    /// Of what was asked.
    digest: String,
    #[serde(default)]
    reason: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Word {
    Approve,
    Deny,
    /// Of a call whose effect is not known: call it again.
    Repeat,
    /// Of a call whose effect is not known: tell the model.
    Tell,
}

const SAY: &str = "answer with `yes` or `no`, or with a data part {approval, decision: approve|deny, digest, reason} \
                   for each";

impl Tasks {
    pub(super) async fn answer(
        self: &Arc<Self>,
        caller: &Caller,
        uid: &str,
        inbound: Inbound,
    ) -> Result<Sent, Refusal> {
        let Some(open) = self.find(caller, uid) else {
            let view = self.get(caller, uid).await?;
            return self.late(caller, view, &inbound).await;
        };
        let live = &open.live;
        if inbound.context.as_ref().is_some_and(|c| *c != live.context) {
            return Err(Refusal::Invalid(
                "message.contextId: expected the session of the task".to_owned(),
            ));
        }
        if live.state() != TaskState::InputRequired {
            return match self
                .services
                .journal
                .known(caller.subject.clone(), inbound.message_id)
                .await?
            {
                Some(task) => self.known(caller, &task).await,
                None => Err(Refusal::Unsupported(format!(
                    "task {uid} works: it waits for no answer"
                ))),
            };
        }
        let waiting = live.waits_for();
        let now_ms = self.services.clock.now_ms();
        let answers = verdicts(&waiting, &inbound.parts, now_ms)?;
        // A no stops what the caller could cancel anyway; a yes lets a call happen.
        if !caller.approve && answers.iter().any(|a| a.decision == Decision::Yes) {
            tracing::warn!(
                task = live.uid,
                by = caller.subject,
                "a caller who may not approve tried to"
            );
            return Err(Refusal::Unsupported(format!(
                "task {uid} waits for a yes from somebody who may approve calls of this agent, and you may not"
            )));
        }
        let entry = Entry::Answer {
            message_id: inbound.message_id.clone(),
            parts: inbound.parts.clone(),
        };
        let message = Some((inbound.message_id.clone(), entry));
        if self.take(&open, &caller.subject, message, answers).await? {
            live.show(Shown::User {
                message_id: inbound.message_id,
                parts: inbound.parts,
            });
        }
        Ok(Sent::Open(Arc::clone(live)))
    }

    /// A message for a task that has ended: known, or refused.
    async fn late(&self, caller: &Caller, view: super::TaskView, inbound: &Inbound) -> Result<Sent, Refusal> {
        match self
            .services
            .journal
            .known(caller.subject.clone(), inbound.message_id.clone())
            .await?
        {
            Some(task) => self.known(caller, &task).await,
            None => Err(Refusal::Unsupported(format!(
                "task {} has ended: send the message without taskId to go on in its session",
                view.uid
            ))),
        }
    }

    /// Writes answers down and lets the task go on when all are in. `false` if the message had come before.
    async fn take(
        self: &Arc<Self>,
        open: &Open,
        by: &str,
        message: Option<(String, Entry)>,
        answers: Vec<Decide>,
    ) -> Result<bool, Refusal> {
        let live = &open.live;
        let now_ms = self.services.clock.now_ms();
        let answered: Vec<String> = answers.iter().map(|a| a.uid.clone()).collect();
        let ids = (live.task, live.session);
        let decided = self
            .services
            .journal
            .decide(ids, by.to_owned(), message, answers, now_ms)
            .await?;
        match decided {
            Decided::Known => Ok(false),
            Decided::Refused { uid, why } => Err(Refusal::Invalid(format!("approval {uid}: {why}"))),
            Decided::Taken { open: 0 } => {
                tracing::info!(task = live.uid, by, "approvals were answered");
                live.set_status(working(now_ms));
                self.go_on(open).await?;
                Ok(true)
            }
            Decided::Taken { .. } => {
                let mut waits_for = live.waits_for();
                waits_for.retain(|w| !answered.contains(&w.approval));
                let (state, detail) = (TaskState::InputRequired, sentence(&waits_for));
                live.set_status(Status {
                    state,
                    reason: String::new(),
                    detail,
                    waits_for,
                    at_ms: now_ms,
                });
                Ok(true)
            }
        }
    }

    /// Starts a turn from what the journal holds.
    pub(super) async fn go_on(self: &Arc<Self>, open: &Open) -> Result<(), Refusal> {
        let live = &open.live;
        if !live.take_turn() {
            return Ok(());
        }
        let stored = self
            .services
            .journal
            .open_task(live.task)
            .await
            .inspect_err(|_| live.leave_turn())?;
        if let Some(stored) = stored {
            let revision = Arc::clone(&open.revision);
            let turn = Turn::resume(self.services.clone(), revision, Arc::clone(live), &stored);
            self.start(open, turn, Start::Resumed(Box::new(stored)));
        }
        Ok(())
    }

    /// Answers for nobody when the time is over: the model is told that no one did.
    pub(super) fn watch_expiry(self: &Arc<Self>, open: &Open) {
        let now_ms = self.services.clock.now_ms();
        let Some(first) = open.live.waits_for().iter().map(|w| w.expires_ms).min() else {
            return;
        };
        let wait = Duration::from_millis(u64::try_from(first.saturating_sub(now_ms)).unwrap_or(0));
        let (tasks, open) = (Arc::clone(self), open.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = open.live.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let now_ms = tasks.services.clock.now_ms();
            let waiting = open.live.waits_for();
            let expired: Vec<Decide> = waiting
                .iter()
                .filter(|w| w.expires_ms <= now_ms)
                .map(|w| decide(w, Decision::Expired, String::new()))
                .collect();
            if expired.is_empty() {
                return;
            }
            if let Err(error) = tasks.take(&open, "system:expiry", None, expired).await {
                tracing::warn!(%error, "an approval expired and that is not kept yet");
            }
        });
    }
}

fn decide(waiting: &Waiting, decision: Decision, reason: String) -> Decide {
    Decide {
        uid: waiting.approval.clone(),
        digest: waiting.digest.clone(),
        decision,
        reason,
    }
}

/// What the parts of a message decide. An expired approval takes no other answer than that.
fn verdicts(waiting: &[Waiting], parts: &[InPart], now_ms: i64) -> Result<Vec<Decide>, Refusal> {
    let mut answers: Vec<Decide> = Vec::new();
    for part in parts {
        let answer = match part {
            InPart::Data { data } => from_data(waiting, data)?,
            InPart::Text { text } if text.trim().is_empty() => continue,
            InPart::Text { text } => from_text(waiting, text)?,
            InPart::File { .. } => {
                return Err(Refusal::Media(format!("expected an answer, found a file: {SAY}")));
            }
        };
        if answers.iter().any(|a| a.uid == answer.uid) {
            return Err(Refusal::Invalid(format!(
                "approval {} is answered twice in one message",
                answer.uid
            )));
        }
        answers.push(answer);
    }
    if answers.is_empty() {
        return Err(Refusal::Invalid(format!("expected an answer, found none: {SAY}")));
    }
    for answer in &mut answers {
        let expired = waiting
            .iter()
            .any(|w| w.approval == answer.uid && w.expires_ms <= now_ms);
        if expired {
            answer.decision = Decision::Expired;
        }
    }
    Ok(answers)
}

fn from_data(waiting: &[Waiting], data: &serde_json::Value) -> Result<Decide, Refusal> {
    let verdict =
        Verdict::deserialize(data).map_err(|e| Refusal::Invalid(format!("data part: {e}; {SAY}")))?;
    let unknown = || {
        Refusal::Invalid(format!(
            "approval {}: this task does not wait for it",
            verdict.approval
        ))
    };
    let asked = waiting
        .iter()
        .find(|w| w.approval == verdict.approval)
        .ok_or_else(unknown)?;
    let decision = match verdict.decision {
        Word::Approve | Word::Repeat => Decision::Yes,
        Word::Deny | Word::Tell => Decision::No,
    };
    // The digest is the caller's own word for what they saw; the journal compares it.
    Ok(Decide {
        digest: verdict.digest,
        ..decide(asked, decision, verdict.reason)
    })
}

fn from_text(waiting: &[Waiting], text: &str) -> Result<Decide, Refusal> {
    let [asked] = waiting else {
        let text = format!(
            "{} decisions are asked for, and a plain text answers one: {SAY}",
            waiting.len()
        );
        return Err(Refusal::Invalid(text));
    };
    let text = text.trim();
    let (word, reason) = text.split_once([',', ':', ' ']).unwrap_or((text, ""));
    let decision = match word.trim_end_matches(['.', '!']).to_ascii_lowercase().as_str() {
        "yes" | "y" | "approve" | "ok" | "repeat" => Decision::Yes,
        "no" | "n" | "deny" | "tell" => Decision::No,
        _ => return Err(Refusal::Invalid(format!("expected yes or no: {SAY}"))),
    };
    Ok(decide(asked, decision, reason.trim().to_owned()))
}

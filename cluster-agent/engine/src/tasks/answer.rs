//! A person's answer to what a task waits for: bound to the digest of what was asked, single-use, expiring.
//!
//! Words alone answer where one thing is asked. Where several are, each has its own data part: what was said to one
//! question must never count as a yes to something else.

use super::{Caller, Inbound, Open, Refusal, Sent, Shown, Status, Tasks, Waiting, send::working};
use crate::{
    journal::{Decide, Decided, Decision, Entry, InPart, Question, TaskState},
    turn::{Start, Turn, code, question, sentence},
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

/// The data part that answers a question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    question: String,
    answer: String,
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
const SAY_EACH: &str = "answer with a data part for each: {approval, decision: approve|deny, digest, reason} for a call, \
                        {question, answer} for a question";
/// Before a question that expired is written down again.
const EXPIRY_AGAIN: Duration = Duration::from_secs(5);
/// Longest answer to a question, in bytes: what a model reads of one result.
const MAX_ANSWER: usize = 64 * 1024;

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
        let said = Shown::User {
            message_id: inbound.message_id,
            parts: inbound.parts,
        };
        self.take(&open, &caller.subject, message, answers, Some(said))
            .await?;
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

    /// Writes answers down and lets the task go on when all are in; `said` goes into its history. A message that had
    /// come before changes nothing.
    async fn take(
        self: &Arc<Self>,
        open: &Open,
        by: &str,
        message: Option<(String, Entry)>,
        answers: Vec<Decide>,
        said: Option<Shown>,
    ) -> Result<(), Refusal> {
        let live = &open.live;
        let now_ms = self.services.clock.now_ms();
        let answered: Vec<String> = answers.iter().map(|a| a.uid.clone()).collect();
        let ids = (live.task, live.session);
        let decided = self
            .services
            .journal
            .decide(ids, by.to_owned(), message, answers, now_ms)
            .await?;
        let left = match decided {
            Decided::Known => return Ok(()),
            Decided::Refused { uid, why } => return Err(Refusal::Invalid(format!("approval {uid}: {why}"))),
            Decided::NotWaiting => {
                return Err(Refusal::Unsupported(format!(
                    "task {} waits for no answer any more",
                    live.uid
                )));
            }
            Decided::Taken { open } => open,
        };
        let (done, waits_for): (Vec<Waiting>, Vec<Waiting>) = live
            .waits_for()
            .into_iter()
            .partition(|w| answered.contains(&w.approval));
        // As the journal has it: a question that has its answer is history.
        let asked = done.iter().filter(|w| w.question == Question::Asked);
        let asked = asked.map(|w| Shown::Agent {
            text: question(&w.arguments).to_owned(),
        });
        for shown in asked.chain(said) {
            live.show(shown);
        }
        match left {
            0 => {
                tracing::info!(task = live.uid, by, "what was asked is answered");
                live.set_status(working(now_ms));
                self.go_on(open).await
            }
            _ => {
                let (state, detail) = (TaskState::InputRequired, sentence(&waits_for));
                live.set_status(Status {
                    state,
                    reason: String::new(),
                    detail,
                    waits_for,
                    at_ms: now_ms,
                });
                Ok(())
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
            // A journal that does not take it now is asked again: else the task would wait for ever.
            while tasks.expire(&open).await.is_err() {
                tokio::select! {
                    () = open.live.cancel.cancelled() => return,
                    () = tokio::time::sleep(EXPIRY_AGAIN) => {}
                }
            }
        });
    }

    async fn expire(self: &Arc<Self>, open: &Open) -> Result<(), Refusal> {
        let now_ms = self.services.clock.now_ms();
        let waiting = open.live.waits_for();
        let expired: Vec<Decide> = waiting
            .iter()
            .filter(|w| w.expires_ms <= now_ms)
            .map(|w| decide(w, Decision::Expired, String::new()))
            .collect();
        if expired.is_empty() {
            return Ok(());
        }
        match self.take(open, "system:expiry", None, expired, None).await {
            Err(error @ Refusal::Unavailable(_)) => {
                tracing::warn!(%error, "a question expired and that is not kept yet");
                Err(error)
            }
            // Answered or ended meanwhile.
            _ => Ok(()),
        }
    }
}

fn decide(waiting: &Waiting, decision: Decision, reason: String) -> Decide {
    Decide {
        uid: waiting.approval.clone(),
        digest: waiting.digest.clone(),
        decision,
        reason,
        bare: false,
    }
}

/// What the parts of a message decide. An expired question takes no other answer than that.
fn verdicts(waiting: &[Waiting], parts: &[InPart], now_ms: i64) -> Result<Vec<Decide>, Refusal> {
    if parts.iter().any(|part| matches!(part, InPart::File { .. })) {
        return Err(Refusal::Media(
            "expected an answer in words, found a file".to_owned(),
        ));
    }
    let mut answers = match waiting {
        [asked] if asked.question == Question::Asked => vec![in_words(asked, parts)?],
        several => one_by_one(several, parts)?,
    };
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

/// The answer to the one question there is: whatever the message says.
fn in_words(asked: &Waiting, parts: &[InPart]) -> Result<Decide, Refusal> {
    if let [InPart::Data { data }] = parts
        && let Ok(words) = Words::deserialize(data)
    {
        return for_question(std::slice::from_ref(asked), words);
    }
    let lines: Vec<String> = parts
        .iter()
        .map(|part| match part {
            InPart::Text { text } => text.trim().to_owned(),
            InPart::Data { data } => data.to_string(),
            InPart::File { name, .. } => name.clone(),
        })
        .collect();
    answered(asked, lines.join("\n").trim())
}

fn answered(asked: &Waiting, words: &str) -> Result<Decide, Refusal> {
    if words.is_empty() {
        return Err(Refusal::Invalid("expected an answer, found none".to_owned()));
    }
    if words.len() > MAX_ANSWER {
        return Err(Refusal::Invalid(format!(
            "expected an answer of at most {MAX_ANSWER} bytes, found {}",
            words.len()
        )));
    }
    Ok(decide(asked, Decision::Answered, words.to_owned()))
}

/// An answer in each part.
fn one_by_one(waiting: &[Waiting], parts: &[InPart]) -> Result<Vec<Decide>, Refusal> {
    let mut answers: Vec<Decide> = Vec::new();
    for part in parts {
        let answer = match part {
            InPart::Data { data } => from_data(waiting, data)?,
            InPart::Text { text } if text.trim().is_empty() => continue,
            InPart::Text { text } => from_text(waiting, text)?,
            InPart::File { .. } => continue,
        };
        if answers.iter().any(|a| a.uid == answer.uid) {
            return Err(Refusal::Invalid(format!(
                "{} is answered twice in one message",
                answer.uid
            )));
        }
        answers.push(answer);
    }
    if answers.is_empty() {
        return Err(Refusal::Invalid(format!("expected an answer, found none: {SAY}")));
    }
    Ok(answers)
}

fn from_data(waiting: &[Waiting], data: &serde_json::Value) -> Result<Decide, Refusal> {
    // One form and no other: the hub looks for decisions in the same words, for the audit log (S89). Types that are read
    // from JSON would take a list for an object, and an object for a word.
    let is_word = data.get("decision").is_none_or(serde_json::Value::is_string);
    if !data.is_object() || !is_word {
        return Err(Refusal::Invalid(format!(
            "data part: expected an object with words; {SAY_EACH}"
        )));
    }
    if data.get("question").is_some() {
        let words = Words::deserialize(data);
        let words = words.map_err(|e| Refusal::Invalid(format!("data part: {e}; {SAY_EACH}")))?;
        return for_question(waiting, words);
    }
    let verdict =
        Verdict::deserialize(data).map_err(|e| Refusal::Invalid(format!("data part: {e}; {SAY}")))?;
    let asked = waiting
        .iter()
        .find(|w| w.approval == verdict.approval && w.question != Question::Asked);
    let asked = asked.ok_or_else(|| not_waited_for("approval", &verdict.approval))?;
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

fn for_question(waiting: &[Waiting], words: Words) -> Result<Decide, Refusal> {
    let asked = waiting
        .iter()
        .find(|w| w.approval == words.question && w.question == Question::Asked);
    let asked = asked.ok_or_else(|| not_waited_for("question", &words.question))?;
    answered(asked, words.answer.trim())
}

fn not_waited_for(what: &str, id: &str) -> Refusal {
    Refusal::Invalid(format!("{what} {id}: this task does not wait for it"))
}

fn from_text(waiting: &[Waiting], text: &str) -> Result<Decide, Refusal> {
    let [asked] = waiting else {
        let text = format!(
            "{} decisions are asked for, and a plain text answers one: {SAY_EACH}",
            waiting.len()
        );
        return Err(Refusal::Invalid(text));
    };
    let text = text.trim();
    let (word, rest) = text.split_once([',', ':', ' ']).unwrap_or((text, ""));
    let (word, rest) = (
        word.trim_end_matches(['.', '!']).to_ascii_lowercase(),
        rest.trim(),
    );
    let code = code(&asked.approval);
    match word.as_str() {
        "no" | "n" | "deny" | "tell" => Ok(decide(asked, Decision::No, rest.to_owned())),
        "yes" | "y" | "approve" | "ok" | "repeat" if rest.eq_ignore_ascii_case(code) => {
            Ok(decide(asked, Decision::Yes, String::new()))
        }
        "yes" | "y" | "approve" | "ok" | "repeat" if rest.is_empty() => Ok(Decide {
            bare: true,
            ..decide(asked, Decision::Yes, String::new())
        }),
        // "Yes, but" is no yes.
        _ => Err(Refusal::Invalid(format!(
            "expected `yes`, `yes {code}` or `no`: {SAY}"
        ))),
    }
}

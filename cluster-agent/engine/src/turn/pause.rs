//! Waiting for a person: what is asked, what an answer binds to, and writing that down.

use super::{
    End, Turn,
    batch::{Planned, What},
    table::{label, question},
};
use crate::{
    clock::new_id,
    journal::{Change, NewApproval, Question, TaskState},
    tasks::{Status, Waiting},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How long a person has to answer.
const APPROVAL_LIFE_MS: i64 = 24 * 60 * 60 * 1000;

/// Characters of an id's random end: 24 bits, to tell the questions of one task apart.
const CODE: usize = 6;

impl Turn {
    /// Writes the questions down and asks them.
    pub(super) async fn pause(&mut self, batch: &[Planned]) -> Result<End, End> {
        let now = self.services.clock.now_ms();
        let mut waits_for = self.live.waits_for();
        let mut new = Vec::new();
        for planned in batch {
            if let What::Ask {
                question,
                asked: false,
            } = planned.what
            {
                if question == Question::Asked {
                    self.count_call(&label(&planned.server, &planned.tool), false);
                }
                let waiting = self.question(planned, question, now);
                new.push(NewApproval {
                    uid: waiting.approval.clone(),
                    step: planned.step,
                    question,
                    digest: waiting.digest.clone(),
                    change: waiting.change.clone(),
                    expires_ms: waiting.expires_ms,
                });
                waits_for.push(waiting);
            }
        }
        let detail = sentence(&waits_for);
        self.counters.active_ms = self.active_ms();
        let (task, counters) = (self.live.task, self.counters.clone());
        self.services
            .journal
            .pause(task, new, detail.clone(), counters, now)
            .await?;
        let (state, reason) = (TaskState::InputRequired, String::new());
        self.live.leave_turn();
        self.live.set_status(Status {
            state,
            reason,
            detail,
            waits_for,
            at_ms: now,
        });
        Ok(End::Paused)
    }

    fn question(&self, planned: &Planned, question: Question, now_ms: i64) -> Waiting {
        let (server, tool, arguments) = (&planned.server, &planned.tool, &planned.call.arguments);
        let change = self.table.find(server, tool).and_then(|o| o.changed.clone());
        Waiting {
            approval: new_id(self.services.clock.as_ref()),
            question,
            server: server.clone(),
            tool: tool.clone(),
            arguments: arguments.clone(),
            digest: digest(server, tool, arguments, change.as_ref()),
            change,
            expires_ms: now_ms.saturating_add(APPROVAL_LIFE_MS),
        }
    }
}

/// What an approval binds to: SHA-256 in hex over server, tool and arguments as JSON, in the order that the model
/// wrote; and over the tool's new description and schema, where it has one that waits for the same word.
pub(crate) fn digest(server: &str, tool: &str, arguments: &Value, change: Option<&Change>) -> String {
    let text = match change {
        None => json!([server, tool, arguments]),
        Some(change) => json!([server, tool, arguments, change.digest]),
    };
    hex::encode(Sha256::digest(text.to_string()))
}

/// What a person adds to a yes in words to say which question they mean: the last characters of its id.
pub(crate) fn code(approval: &str) -> &str {
    let at = approval.len().saturating_sub(CODE);
    approval.get(at..).unwrap_or(approval)
}

/// What a person is asked, in words.
pub(crate) fn sentence(waits_for: &[Waiting]) -> String {
    waits_for.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(w: &Waiting) -> String {
    let label = label(&w.server, &w.tool);
    let ask = match w.question {
        Question::Asked => return question(&w.arguments).to_owned(),
        Question::Approve => format!("May {label} be called with {}?", w.arguments),
        Question::Unknown => format!(
            "The engine stopped after {label} was called with {}; whether that took effect is not known. \
             Shall it be called again?",
            w.arguments
        ),
    };
    let change = w.change.as_ref().map_or_else(String::new, |change| {
        format!(
            " Its description or parameters are not those that were approved; a yes accepts them, too. It now says: \
             {:?}, parameters: {}",
            change.description, change.parameters
        )
    });
    format!("{ask}{change} (`yes {}` or `no`)", code(&w.approval))
}

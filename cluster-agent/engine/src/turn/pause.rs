//! Waiting for a person: what is asked, what an answer binds to, and writing that down.

use super::{
    End, Turn,
    batch::{Planned, What},
    table::{label, question},
};
use crate::{
    clock::new_id,
    journal::{NewApproval, Question, TaskState},
    tasks::{Status, Waiting},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How long a person has to answer.
const APPROVAL_LIFE_MS: i64 = 24 * 60 * 60 * 1000;

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
        Waiting {
            approval: new_id(self.services.clock.as_ref()),
            question,
            server: server.clone(),
            tool: tool.clone(),
            arguments: arguments.clone(),
            digest: digest(server, tool, arguments),
            expires_ms: now_ms.saturating_add(APPROVAL_LIFE_MS),
        }
    }
}

/// What an approval binds to: SHA-256 in hex over server, tool and arguments as JSON, in the order that the model wrote.
pub(crate) fn digest(server: &str, tool: &str, arguments: &Value) -> String {
    let text = serde_json::json!([server, tool, arguments]).to_string();
    hex::encode(Sha256::digest(text))
}

/// What a person is asked, in words.
pub(crate) fn sentence(waits_for: &[Waiting]) -> String {
    let one = |w: &Waiting| {
        let label = label(&w.server, &w.tool);
        match w.question {
            Question::Approve => format!("May {label} be called with {}?", w.arguments),
            Question::Asked => question(&w.arguments).to_owned(),
            Question::Unknown => format!(
                "The engine stopped after {label} was called with {}; whether that took effect is not known. \
                 Shall it be called again?",
                w.arguments
            ),
        }
    };
    waits_for.iter().map(one).collect::<Vec<_>>().join("\n")
}

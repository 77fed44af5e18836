//! Asking a person for the decisions and answers that a task waits for.

use super::task_view::{Approval, TaskView};
use crate::{
    failure::{Exit, Failure, Outcome},
    render::seconds,
    shell::Shell,
    text::{explicit, line, shown},
};
use a2a::{Message, Part, Role};
use serde_json::json;
use std::io::Write as _;

/// The answer to what `view` waits for; `None` when the input ends before it is given.
///
/// The answer names the digest of what was shown: the engine refuses it for anything else.
pub(super) async fn ask(view: &TaskView, shell: &mut Shell) -> Outcome<Option<Message>> {
    let mut parts = Vec::new();
    match (view.approvals.as_slice(), view.questions.as_slice()) {
        // Words answer a question that is alone; an agent that is not ours has no other way.
        ([], [] | [_]) => {
            let question = if view.detail.is_empty() {
                "The agent waits for an answer."
            } else {
                view.detail.as_str()
            };
            let Some(answer) = reply(question, shell).await? else {
                return Ok(None);
            };
            parts.push(Part::text(answer));
        }
        (approvals, questions) => {
            for question in questions {
                let Some(answer) = reply(&question.text, shell).await? else {
                    return Ok(None);
                };
                parts.push(Part::data(
                    json!({"question": question.question, "answer": answer}),
                ));
            }
            for approval in approvals {
                let Some(part) = decide(approval, shell).await? else {
                    return Ok(None);
                };
                parts.push(part);
            }
        }
    }
    let mut message = Message::new(Role::User, parts);
    message.task_id.clone_from(&view.task);
    message.context_id.clone_from(&view.session);
    Ok(Some(message))
}

/// Shows what the agent asks and reads the answer, which is never blank.
async fn reply(question: &str, shell: &mut Shell) -> Outcome<Option<String>> {
    writeln!(shell.err, "{}", shown(question))?;
    loop {
        match prompt(shell, "answer> ").await? {
            Some(answer) if answer.trim().is_empty() => {}
            answer => return Ok(answer),
        }
    }
}

async fn decide(approval: &Approval, shell: &mut Shell) -> Outcome<Option<Part>> {
    let unknown = approval.question == "unknownResult";
    writeln!(shell.err, "{}", describe(approval, (shell.now)()))?;
    let (yes, no, text) = if unknown {
        (
            "repeat",
            "tell",
            "Call it again, or tell the agent that it may have happened? [repeat/tell] ",
        )
    } else {
        ("approve", "deny", "Approve this call? [yes/no] ")
    };
    loop {
        let Some(answer) = prompt(shell, text).await? else {
            return Ok(None);
        };
        let decision = match (answer.trim().to_lowercase().as_str(), unknown) {
            ("y" | "yes" | "approve", false) | ("r" | "repeat", true) => yes,
            ("n" | "no" | "deny", false) | ("t" | "tell", true) => no,
            _ => continue,
        };
        let reason = match decision {
            "deny" => prompt(shell, "Why (the agent is told; may be empty)? ")
                .await?
                .unwrap_or_default(),
            _ => String::new(),
        };
        return Ok(Some(Part::data(json!({
            "approval": approval.approval,
            "decision": decision,
            "digest": approval.digest,
            "reason": reason.trim(),
        }))));
    }
}

/// What is asked, with all arguments: nobody decides what they cannot see.
fn describe(approval: &Approval, now: chrono::DateTime<chrono::Utc>) -> String {
    let name = line(&explicit(&format!("{}/{}", approval.server, approval.tool)));
    let expiry = approval
        .expires_at
        .map(|at| format!(", to be decided within {}", seconds((at - now).num_seconds())));
    let what = if approval.question == "unknownResult" {
        format!(
            "It is not known whether {name} took effect when the engine stopped{}:",
            expiry.unwrap_or_default()
        )
    } else {
        format!("The agent wants to call {name}{}:", expiry.unwrap_or_default())
    };
    let arguments = format!("{:#}", approval.arguments);
    let arguments: Vec<String> = explicit(&arguments).lines().map(|l| format!("  {l}")).collect();
    let change = approval.change.as_ref().map_or_else(String::new, |change| {
        format!(
            "\nIts description or parameters are not those that were approved; a yes accepts them, too:\n  {}\n  {}",
            line(&change.description),
            line(&change.parameters)
        )
    });
    format!("{what}\n{}{change}", arguments.join("\n"))
}

async fn prompt(shell: &mut Shell, text: &str) -> Outcome<Option<String>> {
    write!(shell.err, "{text}")?;
    shell.flush()?;
    let interrupt = shell.interrupt.clone();
    tokio::select! {
        line = shell.input.line() => line,
        () = interrupt.wait() => Err(Failure::new(Exit::Interrupted, "interrupted; the task still waits")),
    }
}

/// The failure of a task that waits where nobody can be asked.
pub(super) fn nobody_to_ask(view: &TaskView, agent: &str, now: chrono::DateTime<chrono::Utc>) -> Failure {
    let task = view.task.as_deref().unwrap_or_default();
    let asked = view.questions.iter().map(|q| q.text.clone());
    let mut details: Vec<String> = asked
        .chain(view.approvals.iter().map(|a| describe(a, now)))
        .collect();
    if details.is_empty() {
        details.push(view.detail.clone());
    }
    let take_up = format!("roadstead chat {agent} --task {}", line(task));
    let next = match (view.approvals.as_slice(), view.questions.as_slice()) {
        ([], [_]) => format!("answer it: {take_up} --message ANSWER, or in a terminal without --message"),
        _ => format!("answer it in a terminal: {take_up}"),
    };
    Failure::new(Exit::Waiting, format!("the task {task} waits for a person"))
        .details(details)
        .next(next)
}

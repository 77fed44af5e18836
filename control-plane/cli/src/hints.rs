//! What to do next, by what went wrong: one table for the API's codes, one for the reasons of tasks, one for the rest.
//!
//! Where a place knows better it says so itself ([`Failure::next`](crate::Failure::next)); where it does not, the
//! person still gets a next step from here.

use crate::failure::Exit;

/// About an error code of the API (`ErrorCode` of web/schema.graphql); `context` is the context's name.
pub(crate) fn by_code(code: &str, context: &str) -> Option<String> {
    let next = match code {
        "INVALID" => {
            "correct what is named above and try again; `roadstead explain KIND.FIELD` says what a field of a document \
             expects"
        }
        "NOT_FOUND" => {
            "look for the name: roadstead get agents -A (models, toolservers, prompts), roadstead clusters, roadstead \
             projects"
        }
        "FORBIDDEN" => "ask an administrator of the tenant or project for a role that may",
        "CONFLICT" => "look at the current state (roadstead get … -o yaml) and try again",
        "LIMIT" => {
            "wait a little and try again; where it stays, delete what is not needed or ask for a higher limit"
        }
        "UNAVAILABLE" => "try again in a few seconds; roadstead clusters says which clusters are connected",
        "INTERNAL" => {
            "try again; where it stays, it is the hub's fault: its log has more under the request's id, if one is named"
        }
        "UNAUTHENTICATED" => {
            return Some(format!(
                "the token of the context {context:?} is not valid (any more): roadstead context add {context} with a \
                 new one; for `roadstead-hub dev`, start it again"
            ));
        }
        _ => return None,
    };
    Some(next.to_owned())
}

/// About the reason with which a task ended (`limit.steps`); `agent` is its name.
pub(crate) fn by_reason(reason: &str, agent: &str) -> String {
    let logs = format!("roadstead logs {agent} shows what its engine says");
    match reason.split_once('.') {
        // The one limit that is the engine's own and no field of the document.
        Some(("limit", "outputSize")) => "ask for less at once".to_owned(),
        Some(("limit", field)) => format!(
            "ask for less at once, or raise spec.limits.{field} of the agent and apply it again (roadstead explain \
             agent.spec.limits)"
        ),
        Some(("model", "rateLimited")) => {
            "wait a little and try again: the model's provider asks for it".to_owned()
        }
        Some(("model", _)) => format!(
            "check endpoint, key and name of the agent's model (roadstead get models -o yaml); {logs}"
        ),
        Some(("tool", _)) => {
            format!("check the agent's tool servers (roadstead get toolservers -o yaml); {logs}")
        }
        _ => format!("try again; {logs}"),
    }
}

/// Where nothing better is known. Nothing is wrong after `Done` and `Interrupted`.
pub(crate) fn by_exit(exit: Exit) -> Option<&'static str> {
    match exit {
        Exit::Done | Exit::Interrupted => None,
        Exit::Failed => Some("try again; with ROADSTEAD_LOG=debug set it says more"),
        Exit::Usage => Some("roadstead help COMMAND says what can be typed"),
        Exit::Invalid => Some("correct what is named above and try again"),
        Exit::NotFound => {
            Some("roadstead get agents -A lists what you may see; roadstead context, where you look")
        }
        Exit::Forbidden => {
            Some("roadstead context says as whom you ask; an administrator gives roles and tokens")
        }
        Exit::Conflict => Some("look at the current state (roadstead get … -o yaml) and try again"),
        Exit::Unavailable => {
            Some("try again in a few seconds; roadstead clusters says which clusters are connected")
        }
        Exit::Limit => Some("wait a little and try again, or ask for less at once"),
        Exit::Waiting => Some("answer the task in a terminal: roadstead chat AGENT --task ID"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = include_str!("../../../web/schema.graphql");

    /// The codes of the schema, so that a new one needs a hint.
    fn codes() -> Vec<&'static str> {
        let (_, rest) = SCHEMA.split_once("enum ErrorCode {").unwrap();
        let (body, _) = rest.split_once('}').unwrap();
        let words = body.lines().map(str::trim);
        words
            .filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
            .collect()
    }

    #[test]
    fn every_code_of_the_schema_has_a_next_step() {
        let codes = codes();
        assert!(codes.len() >= 8, "{codes:?}");
        for code in codes {
            assert!(by_code(code, "dev").is_some_and(|next| next.len() > 20), "{code}");
        }
        assert_eq!(by_code("", "dev"), None);
    }

    #[test]
    fn every_failure_has_a_next_step() {
        for exit in Exit::ALL {
            let nothing_wrong = matches!(exit, Exit::Done | Exit::Interrupted);
            assert_eq!(by_exit(exit).is_none(), nothing_wrong, "{exit:?}");
        }
    }

    #[test]
    fn limits_of_tasks_name_the_field() {
        for field in ["steps", "tokens", "wallTime", "cost", "toolCalls"] {
            assert!(
                roadstead_contract::documents::explain(&format!("agent.spec.limits.{field}")).is_ok(),
                "{field}"
            );
            let next = by_reason(&format!("limit.{field}"), "p/a");
            assert!(next.contains(&format!("spec.limits.{field} ")), "{next}");
        }
        assert!(by_reason("model.timeout", "p/a").contains("roadstead logs p/a"));
        assert!(by_reason("", "p/a").contains("roadstead logs p/a"));
    }
}

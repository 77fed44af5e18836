//! One engine that calls another, for the user that it works for.

use crate::support::{ENGINE, Process, answer, bundle, send, text};
use a2a::TaskState;
use roadstead_contract::control::{Peer, SecretText, ToEngine};
use roadstead_model_server::{ModelServer, Reply, Rule, Script, ToolCall, When};
use serde_json::json;
use std::collections::BTreeMap;

fn calls_translator() -> Script {
    let tool = ToolCall {
        name: "agent_translator".to_owned(),
        arguments: json!({"message": "say bonjour"}),
        ..ToolCall::default()
    };
    let first = Rule {
        when: When::user("translate").tool_results(0),
        reply: Reply {
            tools: vec![tool],
            ..Reply::default()
        },
        fault: None,
    };
    let then = Rule {
        when: When::user("translate"),
        reply: Reply::text("it is bonjour"),
        fault: None,
    };
    Script {
        rules: vec![first, then],
        ..Script::default()
    }
}

#[tokio::test]
async fn s88_an_agent_hands_work_to_another_for_its_user() {
    let model = ModelServer::start(calls_translator()).await.expect("a model");
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let mut other = Process::with(two.path(), bundle(&model.openai_url(), json!({}))).await;
    let spec = bundle(
        &model.openai_url(),
        json!({"agents": [{"name": "translator", "isolate": false}]}),
    );
    let mut caller = Process::with(one.path(), spec).await;
    let alice = caller.alice().await;

    // Not told where it is: an error result, not a dead task.
    let task = send(&alice, &text("translate hello")).await;
    assert_eq!(task.status.state, TaskState::Completed, "{task:?}");

    let peer = Peer {
        url: other.url(""),
        token: SecretText::new(ENGINE.to_owned()),
    };
    caller
        .tell(&ToEngine::Peers {
            peers: BTreeMap::from([("translator".to_owned(), peer)]),
        })
        .await;
    let task = send(&alice, &text("translate hello")).await;
    assert_eq!(
        (&task.status.state, answer(&task).as_str()),
        (&TaskState::Completed, "it is bonjour")
    );
    let run = other.run_record().await;
    assert_eq!(
        (run.subject.as_str(), run.reason.as_str()),
        ("alice", ""),
        "the user's own, not the engine's"
    );
    let (first, second) = (caller.run_record().await, caller.run_record().await);
    assert_eq!(
        (
            first.tools["agent/translator"].errors,
            second.tools["agent/translator"].errors
        ),
        (1, 0)
    );
}

//! One engine that calls another, for the user that it works for.

use crate::support::{ENGINE, Process, answer, bundle, http, send, text};
use a2a::{TRANSPORT_PROTOCOL_JSONRPC, Task, TaskState};
use reqwest::StatusCode;
use roadstead_contract::{
    bundle::Bundle,
    control::{BUDGET, CHAIN, Peer, SecretText, ToEngine},
    numbers::whole,
};
use roadstead_model_server::{ModelServer, Reply, Rule, Script, ToolCall, When};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

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

/// Another agent than the caller.
fn translator(model: &ModelServer) -> Bundle {
    Bundle {
        uid: "agent-2".to_owned(),
        ..bundle(&model.openai_url(), json!({}))
    }
}

/// A caller with these limits that knows where the translator is.
async fn caller_of(state: &Path, model: &ModelServer, limits: Value, other: &Process) -> Process {
    let agents = json!({"agents": [{"name": "translator"}], "limits": limits});
    let spec = bundle(&model.openai_url(), agents);
    let mut caller = Process::with(state, spec.clone()).await;
    let peer = Peer {
        url: other.url(""),
        token: SecretText::new(ENGINE.to_owned()),
    };
    let peers = BTreeMap::from([("translator".to_owned(), peer)]);
    caller.meet(peers, spec).await;
    caller
}

fn usage(task: &Task) -> Value {
    whole(task.metadata.as_ref().expect("metadata")["roadstead.dev/usage"].clone())
}

#[tokio::test]
async fn s83_what_a_called_agent_spends_counts_against_the_callers_limits() {
    let model = ModelServer::start(calls_translator()).await.expect("a model");
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let mut other = Process::with(two.path(), translator(&model)).await;
    // Its own two steps and one of the other.
    let caller = caller_of(one.path(), &model, json!({"steps": 3}), &other).await;
    let task = send(&caller.alice().await, &text("translate hello")).await;
    assert_eq!(
        (&task.status.state, answer(&task).as_str()),
        (&TaskState::Completed, "it is bonjour"),
        "{task:?}"
    );
    let run = other.run_record().await;
    let agents = usage(&task)["agents"].clone();
    assert_eq!(
        (&agents["modelCalls"], &agents["tokens"]),
        (&json!(1), &json!(run.input_tokens + run.output_tokens))
    );
    assert_eq!(usage(&task)["modelCalls"], 2, "the caller's own, once");
    caller.kill().await;
    // One step must stay for the caller: nothing is left for the other, which is not even called.
    let caller = caller_of(one.path(), &model, json!({"steps": 2}), &other).await;
    let task = send(&caller.alice().await, &text("translate hello")).await;
    assert_eq!(task.status.state, TaskState::Completed, "{task:?}");
    assert_eq!(usage(&task)["agents"]["modelCalls"], 0);
    let own = other.client(ENGINE, TRANSPORT_PROTOCOL_JSONRPC).await;
    assert_eq!(
        send(&own, &text("say hi")).await.status.state,
        TaskState::Completed
    );
    assert_eq!(other.run_record().await.subject, "agent:support/caller");
}

#[tokio::test]
async fn s83_a_budget_is_held_by_the_agent_that_is_called() {
    let tool = ToolCall {
        name: "nowhere".to_owned(),
        ..ToolCall::default()
    };
    let twice = Rule {
        when: When::user("loop").tool_results(0),
        reply: Reply {
            tools: vec![tool],
            ..Reply::default()
        },
        fault: None,
    };
    let script = Script {
        rules: vec![twice],
        ..Script::default()
    };
    let model = ModelServer::start(script).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let engine = Process::with(state.path(), bundle(&model.openai_url(), json!({}))).await;
    let call = |headers: &[(&str, String)]| {
        let message = json!({"messageId": format!("{:x}", rand::random::<u64>()), "role": "ROLE_USER",
            "parts": [{"text": "loop"}]});
        let mut request = http()
            .post(engine.url("/message:send"))
            .bearer_auth(ENGINE)
            .header("a2a-version", "1.0")
            .json(&json!({"message": message}));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        async move {
            let answer = request.send().await.expect("answered");
            let status = answer.status();
            (status, answer.json::<Value>().await.unwrap_or_default())
        }
    };
    let budget = |steps: u32| {
        let budget = json!({"steps": steps, "tokens": 100_000, "toolCalls": 5, "wallTimeMs": 60_000});
        (BUDGET, budget.to_string())
    };
    let (_, task) = call(&[budget(1)]).await;
    assert_eq!(
        task["task"]["metadata"]["roadstead.dev/reason"], "limit.steps",
        "{task}"
    );
    let (_, task) = call(&[budget(2)]).await;
    assert_eq!(task["task"]["status"]["state"], "TASK_STATE_COMPLETED", "{task}");
    for bad in ["", "{}", "x", "{\"steps\":-1}"] {
        let (status, _) = call(&[(BUDGET, bad.to_owned())]).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{bad:?}");
    }
    let (status, _) = call(&[budget(1), budget(9)]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "one of two");
    // In a circle.
    let (status, said) = call(&[(CHAIN, "agent-7,agent-1".to_owned())]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(said.to_string().contains("in a circle"), "{said}");
    for bad in ["", "a,,b", "a b", "a,b,c,d,e,f,g"] {
        let (status, _) = call(&[(CHAIN, bad.to_owned())]).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{bad:?}");
    }
}

#[tokio::test]
async fn s83_agents_that_call_in_a_circle_are_stopped_at_the_first_return() {
    let model = ModelServer::start(calls_translator()).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let agents = json!({"agents": [{"name": "translator"}]});
    let mut engine = Process::with(state.path(), bundle(&model.openai_url(), agents)).await;
    let peer = Peer {
        url: engine.url(""),
        token: SecretText::new(ENGINE.to_owned()),
    };
    let peers = BTreeMap::from([("translator".to_owned(), peer)]);
    engine.tell(&ToEngine::Peers { peers }).await;
    let task = send(&engine.alice().await, &text("translate hello")).await;
    assert_eq!(task.status.state, TaskState::Completed, "{task:?}");
    let run = engine.run_record().await;
    assert_eq!(
        (
            run.tools["agent/translator"].calls,
            run.tools["agent/translator"].errors
        ),
        (1, 1)
    );
    assert_eq!(run.model_calls, 2, "nothing began beside it");
}

#[tokio::test]
async fn s88_an_agent_hands_work_to_another_for_its_user() {
    let model = ModelServer::start(calls_translator()).await.expect("a model");
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let mut other = Process::with(two.path(), translator(&model)).await;
    let spec = bundle(
        &model.openai_url(),
        json!({"agents": [{"name": "translator", "isolate": false}]}),
    );
    let mut caller = Process::with(one.path(), spec.clone()).await;
    let alice = caller.alice().await;

    // Not told where it is: an error result, not a dead task.
    let task = send(&alice, &text("translate hello")).await;
    assert_eq!(task.status.state, TaskState::Completed, "{task:?}");

    let peer = Peer {
        url: other.url(""),
        token: SecretText::new(ENGINE.to_owned()),
    };
    let peers = BTreeMap::from([("translator".to_owned(), peer)]);
    caller.meet(peers, spec).await;
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

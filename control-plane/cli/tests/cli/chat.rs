//! Conversations: streaming, tools, approvals, cancellation, broken streams.

use super::{
    Exit, Hub, User,
    server::Stream::{Error, Events, Held, Lost, NotReady, Result},
};
use serde_json::{Value, json};
use std::sync::Arc;

fn text(id: &str, text: &str, append: bool) -> Value {
    json!({"artifactUpdate": {"taskId": "t1", "contextId": "s1", "append": append, "lastChunk": false,
        "artifact": {"artifactId": id, "parts": [{"text": text}]}}})
}

fn end(id: &str, interim: bool) -> Value {
    json!({"artifactUpdate": {"taskId": "t1", "contextId": "s1", "append": true, "lastChunk": true,
        "artifact": {"artifactId": id, "parts": [{"text": ""}], "metadata": {"roadstead.dev/interim": interim}}}})
}

fn status(state: &str, parts: &Value, reason: &str) -> Value {
    json!({"statusUpdate": {"taskId": "t1", "contextId": "s1", "metadata": {"roadstead.dev/reason": reason},
        "status": {"state": state, "message": {"messageId": "m", "role": "ROLE_AGENT", "parts": parts}}}})
}

fn task(state: &str, answer: &str) -> Value {
    json!({"id": "t1", "contextId": "s1", "status": {"state": state},
        "artifacts": [{"artifactId": "answer-1", "parts": [{"text": answer}]}]})
}

fn with_tool() -> Vec<Value> {
    vec![
        json!({"task": {"id": "t1", "contextId": "s1", "status": {"state": "TASK_STATE_SUBMITTED"}}}),
        text("answer-1", "Looking.", false),
        end("answer-1", true),
        status(
            "TASK_STATE_WORKING",
            &json!([{"data": {"toolCall": {"id": "1", "server": "git", "tool": "log", "arguments": {"n": 1}}}}]),
            "",
        ),
        status(
            "TASK_STATE_WORKING",
            &json!([{"data": {"toolResult": {"id": "1", "server": "git", "tool": "log", "text": "abc\ndef", "isError": false}}}]),
            "",
        ),
        text("answer-2", "Two \u{1b}[31m", false),
        text("answer-2", "commits.", true),
        end("answer-2", false),
        status("TASK_STATE_COMPLETED", &json!([]), ""),
    ]
}

fn approval() -> Value {
    let waiting = json!({"approvals": [{"approval": "a1", "question": "approve", "server": "git", "tool": "commit",
        "arguments": {"message": "x"}, "digest": "d1", "expiresAt": "2026-01-02T13:00:00Z"}]});
    status(
        "TASK_STATE_INPUT_REQUIRED",
        &json!([{"text": "git/commit waits"}, {"data": waiting}]),
        "",
    )
}

#[tokio::test]
async fn a_pipe_gets_the_answer_alone() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(with_tool()));
    let left = User::of(&hub)
        .pipes("How many commits?\n")
        .runs("chat helper")
        .await;
    assert_eq!(
        (left.exit, left.out.as_str()),
        (Exit::Done, "Two \u{1b}[31mcommits.\n")
    );
    assert_eq!(
        left.err,
        "Looking.\n→ git/log {\"n\":1}\n← git/log 7 bytes: abc\n"
    );
    assert_eq!(hub.paths(), ["/a2a/local/support/helper"]);
    let message = hub.asked()[0].1["message"].clone();
    assert_eq!(
        (&message["role"], &message["parts"][0]["text"]),
        (&json!("ROLE_USER"), &json!("How many commits?\n"))
    );
}

#[tokio::test]
async fn a_terminal_sees_everything_and_obeys_nothing() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(with_tool()));
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![
            text("answer-1", "Bye.", false),
            status("TASK_STATE_COMPLETED", &json!([]), ""),
        ]),
    );
    let left = User::of(&hub)
        .types(&["How many?", "", "Thanks"])
        .runs("chat other/helper --session s0")
        .await;
    assert_eq!(left.exit, Exit::Done);
    assert_eq!(left.out, "Looking.\nTwo \\u{1b}[31mcommits.\nBye.\n");
    assert!(
        left.err
            .ends_with("Go on with: roadstead chat other/helper --session s1\n"),
        "{}",
        left.err
    );
    let asked = hub.asked();
    assert_eq!(
        (
            &asked[0].1["message"]["contextId"],
            &asked[1].1["message"]["contextId"]
        ),
        (&json!("s0"), &json!("s1"))
    );
    assert_eq!(hub.paths()[0], "/a2a/local/other/helper");
}

#[tokio::test]
async fn one_message_can_be_answered_as_json() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(with_tool()));
    let left = User::of(&hub).runs("chat helper -m hi -o json").await;
    let value: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!(
        (&value["answer"], &value["state"], &value["session"]),
        (
            &json!("Two \u{1b}[31mcommits."),
            &json!("completed"),
            &json!("s1")
        )
    );
}

#[tokio::test]
async fn s82_an_approval_is_asked_and_bound_to_what_was_shown() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(vec![approval()]));
    let rest = vec![
        status("TASK_STATE_WORKING", &json!([]), ""),
        text("answer-2", "Committed.", false),
        status("TASK_STATE_COMPLETED", &json!([]), ""),
    ];
    hub.a2a("SendStreamingMessage", Events(rest));
    let left = User::of(&hub)
        .types(&["perhaps", "no", "not today"])
        .runs("chat helper -m commit")
        .await;
    assert_eq!((left.exit, left.out.as_str()), (Exit::Done, "Committed.\n"));
    insta::assert_snapshot!(left.err, @r#"
    The agent wants to call git/commit, to be decided within 1h0m:
      {
        "message": "x"
      }
    Approve this call? [yes/no] Approve this call? [yes/no] Why (the agent is told; may be empty)?
    "#);
    let message = hub.asked()[1].1["message"].clone();
    assert_eq!(
        (&message["taskId"], &message["contextId"]),
        (&json!("t1"), &json!("s1"))
    );
    let verdict = json!({"approval": "a1", "decision": "deny", "digest": "d1", "reason": "not today"});
    assert_eq!(message["parts"][0]["data"], verdict);
}

#[tokio::test]
async fn without_a_terminal_nobody_is_asked() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(vec![approval()]));
    let left = User::of(&hub).pipes("commit").runs("chat helper").await;
    assert_eq!(left.exit, Exit::Waiting);
    assert!(
        left.err
            .contains("next: answer it in a terminal: roadstead chat support/helper --task t1"),
        "{}",
        left.err
    );
    assert_eq!(hub.asked().len(), 1);
}

fn question() -> Value {
    let asked = json!({"questions": [{"question": "q1", "text": "Which \u{1b}branch?", "expiresAt": "2026-01-02T13:00:00Z"}]});
    let parts = json!([{"text": "Which \u{1b}branch?"}, {"data": asked}]);
    status("TASK_STATE_INPUT_REQUIRED", &parts, "")
}

#[tokio::test]
async fn a_question_is_shown_and_answered() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(vec![question()]));
    let rest = vec![
        status("TASK_STATE_WORKING", &json!([]), ""),
        text("answer-2", "On main.", false),
        status("TASK_STATE_COMPLETED", &json!([]), ""),
    ];
    hub.a2a("SendStreamingMessage", Events(rest));
    let left = User::of(&hub)
        .types(&["", "main"])
        .runs("chat helper -m commit")
        .await;
    assert_eq!((left.exit, left.out.as_str()), (Exit::Done, "On main.\n"));
    assert_eq!(left.err, "Which \\u{1b}branch?\nanswer> answer> ");
    let message = hub.asked()[1].1["message"].clone();
    assert_eq!(
        (&message["taskId"], &message["parts"]),
        (&json!("t1"), &json!([{"text": "main"}]))
    );
}

#[tokio::test]
async fn a_question_beside_an_approval_has_an_answer_of_its_own() {
    let hub = Hub::start().await;
    let mut both = approval();
    let asked = json!({"data": {"questions": [{"question": "q1", "text": "Which branch?"}]}});
    let parts = both["statusUpdate"]["status"]["message"]["parts"].as_array_mut();
    parts.expect("parts").push(asked);
    hub.a2a("SendStreamingMessage", Events(vec![both]));
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status("TASK_STATE_COMPLETED", &json!([]), "")]),
    );
    let left = User::of(&hub)
        .types(&["main", "yes"])
        .runs("chat helper -m commit")
        .await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    let parts = hub.asked()[1].1["message"]["parts"].clone();
    assert_eq!(parts[0]["data"], json!({"question": "q1", "answer": "main"}));
    assert_eq!(parts[1]["data"]["decision"], "approve");
}

#[tokio::test]
async fn a_question_without_a_terminal_says_how_to_answer() {
    let hub = Hub::start().await;
    hub.a2a("SendStreamingMessage", Events(vec![question()]));
    let left = User::of(&hub).pipes("commit").runs("chat helper").await;
    assert_eq!(left.exit, Exit::Waiting);
    assert!(
        left.err.contains("Which \\u{1b}branch?")
            && left
                .err
                .contains("next: answer it: roadstead chat support/helper --task t1 --message ANSWER"),
        "{}",
        left.err
    );
    let mut waiting = task("TASK_STATE_INPUT_REQUIRED", "");
    waiting["status"] = question()["statusUpdate"]["status"].clone();
    hub.a2a("GetTask", Result(waiting));
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status("TASK_STATE_COMPLETED", &json!([]), "")]),
    );
    let left = User::of(&hub).runs("chat helper --task t1 --message main").await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    assert_eq!(hub.asked()[2].1["message"]["parts"], json!([{"text": "main"}]));
}

#[tokio::test]
async fn a_waiting_task_is_taken_up() {
    let hub = Hub::start().await;
    let mut waiting = task("TASK_STATE_INPUT_REQUIRED", "");
    waiting["status"] = approval()["statusUpdate"]["status"].clone();
    hub.a2a("GetTask", Result(waiting));
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status("TASK_STATE_COMPLETED", &json!([]), "")]),
    );
    let left = User::of(&hub).types(&["y"]).runs("chat helper --task t1").await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    assert_eq!(
        hub.asked()[1].1["message"]["parts"][0]["data"]["decision"],
        "approve"
    );
}

#[tokio::test]
async fn ctrl_c_cancels_the_task() {
    let hub = Hub::start().await;
    let hold = Arc::default();
    hub.a2a(
        "SendStreamingMessage",
        Held(vec![text("answer-1", "Thinking", false)], Arc::clone(&hold)),
    );
    hub.a2a("CancelTask", Result(task("TASK_STATE_CANCELED", "Thinking")));
    let mut user = User::of(&hub);
    user.terminal = true;
    let (interrupt, out) = (Arc::clone(&user.interrupt), user.out.clone());
    let pressing = tokio::spawn(async move {
        while !out.text().contains("Thinking") {
            tokio::task::yield_now().await;
        }
        interrupt.notify_one();
    });
    let left = user.runs("chat helper -m hi").await;
    pressing.await.unwrap();
    assert_eq!(left.exit, Exit::Interrupted, "{}", left.err);
    assert_eq!(hub.asked()[1], ("CancelTask".to_owned(), json!({"id": "t1"})));
    assert!(left.err.contains("cancelling"), "{}", left.err);
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_again() {
    let hub = Hub::start().await;
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![text("answer-1", "One ", false)]),
    );
    hub.a2a("GetTask", Result(task("TASK_STATE_WORKING", "One two ")));
    hub.a2a(
        "SubscribeToTask",
        Events(vec![
            json!({"task": task("TASK_STATE_WORKING", "One two ")}),
            text("answer-1", "three", true),
            end("answer-1", false),
            status("TASK_STATE_COMPLETED", &json!([]), ""),
        ]),
    );
    let left = User::of(&hub).runs("chat helper -m count").await;
    assert_eq!(
        (left.exit, left.out.as_str()),
        (Exit::Done, "One two three\n"),
        "{}",
        left.err
    );
}

fn placed(phase: &str) -> Value {
    let placements = json!([{"cluster": "c", "wanted": {"revision": 1}, "running": {"phase": phase}}]);
    json!({"agentByName": {"id": "agt_1", "project": "support", "name": "helper", "revision": 1,
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z", "placements": placements}})
}

#[tokio::test]
async fn an_agent_that_starts_is_waited_for() {
    let hub = Hub::start().await;
    hub.graphql("AgentByName", placed("STARTING"));
    for stream in [NotReady, NotReady, Lost, Events(with_tool())] {
        hub.a2a("SendStreamingMessage", stream);
    }
    let left = User::of(&hub).runs("chat helper -m hi").await;
    assert_eq!(left.exit, Exit::Done, "{}", left.err);
    assert_eq!(
        left.err.matches("waiting: the agent is not ready\n").count(),
        1,
        "{}",
        left.err
    );
    // The same message each time: the agent takes it once.
    let asked = hub.asked();
    let sent: Vec<&Value> = asked
        .iter()
        .filter(|(name, _)| name == "SendStreamingMessage")
        .map(|(_, p)| p)
        .collect();
    assert_eq!(sent.len(), 4);
    assert!(
        sent.iter()
            .all(|params| params["message"]["messageId"] == sent[0]["message"]["messageId"])
    );
}

#[tokio::test]
async fn an_agent_that_has_failed_is_not_waited_for() {
    let hub = Hub::start().await;
    hub.graphql("AgentByName", placed("FAILED"));
    hub.a2a("SendStreamingMessage", NotReady);
    let left = User::of(&hub).runs("chat helper -m hi").await;
    assert_eq!(left.exit, Exit::Unavailable);
    assert!(
        left.err
            .contains("next: try again in 5 s; see where the agent runs"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn a_task_that_fails_says_why() {
    let hub = Hub::start().await;
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status(
            "TASK_STATE_FAILED",
            &json!([{"text": "24 model calls are the limit"}]),
            "limit.steps",
        )]),
    );
    let left = User::of(&hub).runs("chat helper -m hi").await;
    assert_eq!(
        (left.exit, left.err.as_str()),
        (
            Exit::Failed,
            "error: the task failed (limit.steps): 24 model calls are the limit\n  next: ask for less at once, or raise \
             spec.limits.steps of the agent and apply it again (roadstead explain agent.spec.limits)\n"
        )
    );
}

#[tokio::test]
async fn refusals_of_the_edge_become_exit_codes() {
    let hub = Hub::start().await;
    let error = |code: i64, reason: &str| {
        Error(json!({"code": code, "message": "no", "data": [{"domain": "roadstead.dev", "reason": reason}]}))
    };
    hub.a2a("SendStreamingMessage", error(-32602, "NOT_FOUND"));
    hub.a2a("SendStreamingMessage", error(-32000, "UNAVAILABLE"));
    hub.a2a(
        "SendStreamingMessage",
        Error(json!({"code": -32001, "message": "no such task"})),
    );
    for exit in [Exit::NotFound, Exit::Unavailable, Exit::NotFound] {
        let left = User::of(&hub).runs("chat helper -m hi").await;
        assert_eq!(left.exit, exit, "{}", left.err);
    }
}

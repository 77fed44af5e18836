//! Decisions on approvals: who may, and that they are recorded.

use super::*;

#[tokio::test]
async fn s82_the_engine_is_told_whether_the_caller_may_approve() {
    let edge = Edge::new();
    for (path, approve) in [(NOTES, false), ("/a2a/acme/support/approvable", true)] {
        edge.answer("application/json", vec!["{}"]);
        edge.ask("POST", path, rpc("SendMessage")).await;
        let seen = edge.tunnel.seen.lock().unwrap().pop().unwrap();
        assert_eq!(edge.claims(&seen).approve, approve, "{path}");
    }
}

/// The same decision by JSON-RPC and by HTTP+JSON: path and body.
fn approvals() -> [(String, String); 5] {
    let digest = "0a".repeat(32);
    let part = json!({"data": {"approval": "a1", "decision": "approve", "digest": digest}});
    let message = json!({"messageId": "m", "role": "ROLE_USER", "taskId": "t1", "parts": [part]});
    let params = json!({"message": message});
    let rpc = json!({"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": params});
    // As 0.3 has it: its JSON-RPC, and its .proto.
    let typed = json!({"kind": "data", "data": part["data"]});
    let old = json!({"kind": "message", "messageId": "m", "role": "user", "taskId": "t1", "parts": [typed]});
    let old = json!({"jsonrpc": "2.0", "id": 7, "method": "message/stream", "params": {"message": old}});
    let deeper = json!({"data": {"data": part["data"]}});
    let proto = json!({"messageId": "m", "role": "ROLE_USER", "taskId": "t1", "content": [deeper]});
    [
        (NOTES.to_owned(), rpc.to_string()),
        (format!("{NOTES}/message:send"), params.to_string()),
        (format!("{NOTES}/v1/message:stream"), params.to_string()),
        (NOTES.to_owned(), old.to_string()),
        (
            format!("{NOTES}/v1/message:send"),
            json!({"message": proto}).to_string(),
        ),
    ]
}

#[tokio::test]
async fn s89_decisions_on_approvals_are_recorded_before_they_are_passed_on() {
    let edge = Edge::new();
    for (path, body) in approvals() {
        edge.answer("application/json", vec!["{}"]);
        edge.ask("POST", &path, body.clone()).await;
        let decided = edge.recorded.decided.lock().unwrap().pop().unwrap();
        assert_eq!(
            (decided.task.as_str(), decided.verdicts.len()),
            ("t1", 1),
            "{path}"
        );
        assert!(decided.verdicts[0].yes && decided.verdicts[0].digest.is_some());
        let seen = edge.tunnel.seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.body, body.as_bytes());
    }
    // What cannot be recorded does not happen.
    edge.recorded.broken.store(true, Ordering::SeqCst);
    for (path, body) in approvals() {
        let (_, answer) = edge.ask("POST", &path, body).await;
        assert!(String::from_utf8_lossy(&answer).contains("UNAVAILABLE"), "{path}");
    }
    assert!(edge.tunnel.seen.lock().unwrap().is_empty());
}

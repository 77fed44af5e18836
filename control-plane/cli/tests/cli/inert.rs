//! Text of strangers (models, tools, documents, logs, people) on a terminal: shown, never obeyed (S84, S90).

use super::{Exit, Hub, Left, User, document, page, server::Stream::Events};
use serde_json::{Value, json};

/// Clipboard, title, cursor, colour, the 8-bit forms, carriage return, and what turns the reading direction.
const EVIL: &str = "x\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}]0;title\u{1b}\\\u{1b}[2J\u{1b}[1;1H\u{9b}31m\u{9d}0;t\u{9c}\u{8}\u{7f}\r\u{202e}\u{2066}y";

fn is_active(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[track_caller]
fn assert_inert(left: &Left, command: &str) {
    for text in [&left.out, &left.err] {
        assert!(!text.contains(is_active), "{command}: {text:?}");
    }
    assert!(
        left.out.contains('x') || left.err.contains('x'),
        "{command}: the text is shown at all"
    );
}

fn agent() -> Value {
    let running =
        json!({"revision": 1, "phase": "FAILED", "reason": EVIL, "since": null, "reportAgeSeconds": 1});
    json!({"id": EVIL, "project": EVIL, "name": EVIL, "description": EVIL, "revision": 1,
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        "placements": [{"cluster": EVIL, "wanted": {"revision": 1}, "running": running}]})
}

fn run() -> Value {
    json!({"id": EVIL, "project": EVIL, "agent": EVIL, "revision": 1, "cluster": EVIL, "taskId": EVIL, "sessionId": EVIL,
        "subject": EVIL, "startedAt": "2026-01-02T11:50:00Z", "endedAt": "2026-01-02T11:50:02Z", "outcome": EVIL,
        "reason": EVIL, "model": EVIL, "modelCalls": 1, "inputTokens": 1, "outputTokens": 1, "cachedInputTokens": 0,
        "estimated": false, "cost": {"micros": 1, "currency": EVIL}, "tools": [{"name": EVIL, "calls": 1, "errors": 0}],
        "traceId": EVIL})
}

fn evil_hub(hub: &Hub) {
    let mut whole = document("AGENT", EVIL, 2);
    whole["project"] = json!(EVIL);
    whole["json"] = json!({"kind": "Agent", "metadata": {"name": EVIL}, "spec": {EVIL: [EVIL, {"a": EVIL}]}});
    whole["actions"] = json!([{"name": EVIL, "allowed": true}]);
    let revision = json!({"revision": 1, "digest": EVIL, "createdAt": "2026-01-02T11:00:00Z", "createdBy": EVIL, "json": {}});
    let cluster = json!({"id": EVIL, "name": EVIL, "labels": {EVIL: EVIL}, "state": EVIL, "since": "2026-01-02T11:00:00Z",
        "version": EVIL, "agentCount": 1, "heldDeletes": 3, "timeline": {"cursor": 9, "known": true, "deletes": 1, "deleted": [EVIL],
        "replaced": [{"document": EVIL, "revision": 1}]}, "unknownCertificates": [{"serial": EVIL,
        "seenAt": "2026-01-02T11:00:00Z", "expiresAt": "2026-01-02T11:00:00Z"}]});
    let record = json!({"sequence": 1, "time": "2026-01-02T11:59:00Z", "actor": EVIL, "onBehalfOf": EVIL, "action": EVIL,
        "object": EVIL, "decision": EVIL, "detail": {EVIL: EVIL}, "sourceIp": EVIL, "sourceClient": EVIL, "hash": EVIL});
    let token = json!({"id": EVIL, "name": EVIL, "role": EVIL, "scopes": [EVIL], "createdAt": "2026-01-02T11:00:00Z",
        "createdBy": EVIL, "expiresAt": "2026-04-02T12:00:00Z"});
    let applied = json!({"action": EVIL, "object": whole, "before": {"a": EVIL}, "after": {"a": EVIL, "b": EVIL},
        "clusters": []});
    hub.graphql("Document", json!({"document": whole}));
    hub.graphql("Documents", json!({"documents": page(&[whole])}));
    hub.graphql("AgentByName", json!({"agentByName": agent()}));
    hub.graphql("Agents", json!({"agents": page(&[agent()])}));
    hub.graphql("Revisions", json!({"revisions": page(&[revision])}));
    hub.graphql("Runs", json!({"runs": page(&[run()])}));
    hub.graphql("Run", json!({"run": run()}));
    hub.graphql("ClusterByName", json!({"clusterByName": cluster}));
    hub.graphql(
        "Node",
        json!({"node": {"kind": EVIL, "project": EVIL, "name": EVIL}}),
    );
    hub.graphql("Clusters", json!({"clusters": page(&[cluster])}));
    hub.graphql("AuditRecords", json!({"auditRecords": page(&[record])}));
    hub.graphql("ApiTokens", json!({"apiTokens": page(&[token])}));
    hub.graphql(
        "ApplyDocuments",
        json!({"applyDocuments": {"results": [applied], "errors": []}}),
    );
    let command = json!({"id": EVIL, "kind": EVIL, "cluster": EVIL, "project": EVIL, "agent": EVIL, "createdBy": EVIL,
        "createdAt": "2026-01-02T11:00:00Z", "expiresAt": "2026-01-02T11:05:00Z", "state": EVIL,
        "result": {"code": "SUCCEEDED", "detail": EVIL, "time": "2026-01-02T11:00:00Z"}});
    hub.graphql(
        "Commands",
        json!({"commands": page(std::slice::from_ref(&command))}),
    );
    hub.graphql(
        "RestartAgent",
        json!({"restartAgent": {"objects": [command], "errors": []}}),
    );
    hub.lines(vec![json!({"cluster": EVIL, "time": null, "line": EVIL})]);
}

#[tokio::test]
async fn s90_no_verb_hands_escape_codes_to_a_terminal() {
    let hub = Hub::start().await;
    evil_hub(&hub);
    let mut user = User::of(&hub);
    user.terminal = true;
    let file = user.file("a.yaml", super::documents::PROMPT);
    let apply = format!("apply -f {file} --diff");
    for verb in [
        "get agents",
        "get agent a",
        "get models",
        "get agent a -o yaml",
        "get agents -o yaml",
        "describe agent a",
        "revisions agent a",
        "runs",
        "runs get 1",
        "runs get 1 -o yaml",
        "commands",
        "restart a",
        "restart a --wait",
        "logs a",
        "logs a -o yaml",
        "clusters",
        "describe cluster a",
        "audit",
        "tokens",
        "rollback a --to 1",
        &apply,
    ] {
        let wanted = if verb.starts_with("rollback") {
            Exit::Failed
        } else {
            Exit::Done
        };
        if wanted == Exit::Failed {
            let error = json!({"code": EVIL, "message": EVIL, "path": EVIL});
            hub.graphql(
                "RollBackAgent",
                json!({"rollBackAgent": {"object": null, "errors": [error]}}),
            );
        }
        let left = user.runs(verb).await;
        assert_eq!(left.exit, wanted, "{verb}: {}", left.err);
        assert_inert(&left, verb);
    }
    // Faults of the hub, and what it says as HTTP.
    hub.refuse(500, vec![], json!({"detail": EVIL, "request_id": EVIL}));
    assert_inert(&user.runs("runs").await, "a refusal");
}

#[tokio::test]
async fn s90_json_is_inert_everywhere_and_loses_nothing() {
    let hub = Hub::start().await;
    evil_hub(&hub);
    for terminal in [true, false] {
        let mut user = User::of(&hub);
        user.terminal = terminal;
        for verb in [
            "get agents",
            "describe agent a",
            "runs",
            "logs a",
            "clusters",
            "describe cluster a",
            "audit",
            "tokens",
        ] {
            let left = user.runs(&format!("{verb} -o json")).await;
            assert_eq!(left.exit, Exit::Done, "{verb}: {}", left.err);
            assert_inert(&left, verb);
            let value: Value =
                serde_json::from_str(&left.out).unwrap_or_else(|e| panic!("{verb}: {e}: {}", left.out));
            assert!(holds(&value), "{verb}: the text itself is in the value");
        }
    }
}

fn holds(value: &Value) -> bool {
    match value {
        Value::String(text) => text == EVIL,
        Value::Array(items) => items.iter().any(holds),
        Value::Object(fields) => fields.values().any(holds),
        _ => false,
    }
}

fn status(state: &str, parts: &Value, reason: &str) -> Value {
    json!({"statusUpdate": {"taskId": "t1", "contextId": EVIL, "metadata": {"roadstead.dev/reason": reason},
        "status": {"state": state, "message": {"messageId": "m", "role": "ROLE_AGENT", "parts": parts}}}})
}

fn conversation() -> Vec<Value> {
    let text = |id: &str, text: &str| {
        json!({"artifactUpdate": {"taskId": "t1", "contextId": EVIL, "append": true, "lastChunk": false,
            "artifact": {"artifactId": id, "parts": [{"text": text}]}}})
    };
    let call = json!({"toolCall": {"id": "1", "server": EVIL, "tool": EVIL, "arguments": {EVIL: EVIL}}});
    let result =
        json!({"toolResult": {"id": "1", "server": EVIL, "tool": EVIL, "text": EVIL, "isError": true}});
    let mut events = vec![
        status(
            "TASK_STATE_WORKING",
            &json!([{"text": EVIL, "metadata": {"roadstead.dev/thought": true}}]),
            "",
        ),
        status("TASK_STATE_WORKING", &json!([{"data": call}]), ""),
        status("TASK_STATE_WORKING", &json!([{"data": result}]), ""),
    ];
    // An escape code in pieces, as a model may stream it.
    events.extend(EVIL.chars().map(|c| text("answer-1", &c.to_string())));
    events
}

#[tokio::test]
async fn s84_models_and_tools_say_nothing_that_a_terminal_obeys() {
    let hub = Hub::start().await;
    let mut events = conversation();
    events.push(status("TASK_STATE_FAILED", &json!([{"text": EVIL}]), EVIL));
    hub.a2a("SendStreamingMessage", Events(events));
    let left = User::of(&hub).types(&["hi"]).runs("chat a").await;
    assert_inert(&left, "chat");
    assert!(left.out.contains("\\u{1b}]52;c;"), "{}", left.out);

    let waiting = json!({"approvals": [{"approval": "a1", "question": "approve", "server": EVIL, "tool": EVIL,
        "arguments": {EVIL: [EVIL, "rm\u{200b} -rf\u{e0041}"]}, "digest": "d1"}]});
    let mut events = conversation();
    events.push(status(
        "TASK_STATE_INPUT_REQUIRED",
        &json!([{"text": EVIL}, {"data": waiting}]),
        "",
    ));
    hub.a2a("SendStreamingMessage", Events(events));
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status("TASK_STATE_COMPLETED", &json!([]), "")]),
    );
    let left = User::of(&hub).types(&["yes"]).runs("chat a -m hi").await;
    assert_inert(&left, "an approval");
    assert!(left.err.contains("rm\\u{200b} -rf\\u{e0041}"), "{}", left.err);

    hub.a2a(
        "SendStreamingMessage",
        Events(vec![status(
            "TASK_STATE_INPUT_REQUIRED",
            &json!([{"text": EVIL}]),
            "",
        )]),
    );
    assert_inert(
        &User::of(&hub).types(&[]).runs("chat a -m hi").await,
        "a question",
    );
}

//! Round trips of the A2A client over every binding, and what the wire says when something is wrong.

use crate::support::{ALICE, BOB, Process, answer, assert_completed, bundle, http, send, text};
use a2a::{
    CancelTaskRequest, GetTaskRequest, ListTasksRequest, StreamResponse, SubscribeToTaskRequest,
    TRANSPORT_PROTOCOL_GRPC, TRANSPORT_PROTOCOL_HTTP_JSON, TRANSPORT_PROTOCOL_JSONRPC, TaskState, error_code,
};
use futures::StreamExt as _;
use reqwest::{StatusCode, header};
use roadstead_model_server::{ModelServer, Script};
use serde_json::{Value, json};

const BINDINGS: [&str; 3] = [
    TRANSPORT_PROTOCOL_JSONRPC,
    TRANSPORT_PROTOCOL_HTTP_JSON,
    TRANSPORT_PROTOCOL_GRPC,
];

struct Rig {
    model: ModelServer,
    engine: Process,
    _state: tempfile::TempDir,
}

async fn rig() -> Rig {
    let model = ModelServer::start(Script::default()).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let engine = Process::with(state.path(), bundle(&model.openai_url(), json!({}))).await;
    Rig {
        model,
        engine,
        _state: state,
    }
}

fn get(id: &str) -> GetTaskRequest {
    GetTaskRequest {
        id: id.to_owned(),
        history_length: None,
        tenant: None,
    }
}

fn list() -> ListTasksRequest {
    ListTasksRequest {
        context_id: None,
        status: None,
        page_size: None,
        page_token: None,
        history_length: None,
        status_timestamp_after: None,
        include_artifacts: Some(true),
        tenant: None,
    }
}

#[tokio::test]
async fn every_binding_sends_gets_and_lists() {
    let rig = rig().await;
    for (n, binding) in BINDINGS.into_iter().enumerate() {
        let alice = rig.engine.client(ALICE, binding).await;
        let task = send(&alice, &text("say good day")).await;
        assert_completed(&task, "good day");
        let again = alice.get_task(&get(&task.id)).await.expect("there");
        assert_completed(&again, "good day");
        assert_eq!(again.history.as_ref().map(Vec::len), Some(1));
        let mine = alice.list_tasks(&list()).await.expect("a page");
        assert_eq!(
            (mine.total_size, mine.tasks[0].id.as_str()),
            (n as i32 + 1, task.id.as_str()),
            "{binding}"
        );
        assert_completed(&mine.tasks[0], "good day");
        let bob = rig.engine.client(BOB, binding).await;
        assert_eq!(bob.list_tasks(&list()).await.expect("a page").total_size, 0);
        let foreign = bob.get_task(&get(&task.id)).await.expect_err("not bob's");
        let missing = bob.get_task(&get("nowhere")).await.expect_err("not there");
        assert_eq!(
            (foreign.code, missing.code),
            (error_code::TASK_NOT_FOUND, error_code::TASK_NOT_FOUND)
        );
        assert_eq!(foreign.message.replace(&task.id, "nowhere"), missing.message);
    }
}

#[tokio::test]
async fn every_binding_streams_the_answer_as_it_comes() {
    let rig = rig().await;
    for binding in BINDINGS {
        let alice = rig.engine.client(ALICE, binding).await;
        let request = text("say one two three four\nchunks 4 5\nthink hm");
        let events: Vec<_> = alice
            .send_streaming_message(&request)
            .await
            .expect("a stream")
            .collect()
            .await;
        let events: Vec<StreamResponse> = events.into_iter().map(|e| e.expect("an event")).collect();
        assert!(
            matches!(events.first(), Some(StreamResponse::Task(_))),
            "{binding}"
        );
        let mut said = Vec::new();
        for event in &events {
            if let StreamResponse::ArtifactUpdate(update) = event {
                said.extend(
                    update
                        .artifact
                        .parts
                        .iter()
                        .filter_map(|p| p.as_text())
                        .filter(|t| !t.is_empty()),
                );
            }
        }
        assert!(said.len() >= 2, "{binding}: {said:?}");
        assert_eq!(said.concat(), "one two three four");
        let Some(StreamResponse::StatusUpdate(last)) = events.last() else {
            panic!("a status last")
        };
        assert_eq!(last.status.state, TaskState::Completed);
        let thought = events.iter().any(|e| {
            matches!(e, StreamResponse::StatusUpdate(s) if s.status.message.as_ref().and_then(|m| m.text()) == Some("hm"))
        });
        assert!(thought, "{binding}");
    }
}

#[tokio::test]
async fn every_binding_subscribes_and_cancels() {
    let rig = rig().await;
    for (called, binding) in BINDINGS.into_iter().enumerate() {
        let alice = rig.engine.client(ALICE, binding).await;
        let mut stream = alice
            .send_streaming_message(&text("hang"))
            .await
            .expect("a stream");
        let Some(Ok(StreamResponse::Task(task))) = stream.next().await else {
            panic!("the task first")
        };
        let subscribe = SubscribeToTaskRequest {
            id: task.id.clone(),
            tenant: None,
        };
        let mut watch = alice.subscribe_to_task(&subscribe).await.expect("a stream");
        assert!(
            matches!(watch.next().await, Some(Ok(StreamResponse::Task(_)))),
            "{binding}"
        );
        let reached = async {
            while rig.model.count() <= called {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let patience = std::time::Duration::from_secs(10);
        tokio::time::timeout(patience, reached)
            .await
            .expect("the model is asked");
        let cancel = CancelTaskRequest {
            id: task.id.clone(),
            metadata: None,
            tenant: None,
        };
        let canceled = alice.cancel_task(&cancel).await.expect("canceled");
        assert_eq!(canceled.status.state, TaskState::Canceled, "{binding}");
        let last = watch
            .collect::<Vec<_>>()
            .await
            .pop()
            .expect("an end")
            .expect("an event");
        assert!(matches!(last, StreamResponse::StatusUpdate(s) if s.status.state == TaskState::Canceled));
        let again = alice.cancel_task(&cancel).await.expect_err("ended");
        assert_eq!(again.code, error_code::TASK_NOT_CANCELABLE);
        assert!(alice.subscribe_to_task(&subscribe).await.is_err() || binding == TRANSPORT_PROTOCOL_JSONRPC);
    }
}

#[tokio::test]
async fn a_session_goes_on_over_another_binding() {
    let rig = rig().await;
    let first = send(&rig.engine.client(ALICE, BINDINGS[0]).await, &text("say noted")).await;
    let mut next = text("say again");
    next.message.context_id = Some(first.context_id.clone());
    let second = send(&rig.engine.client(ALICE, BINDINGS[2]).await, &next).await;
    assert_eq!(second.context_id, first.context_id);
    assert_eq!(answer(&second), "again");
}

async fn post(rig: &Rig, path: &str, version: Option<&str>, media: &str, body: String) -> reqwest::Response {
    let mut request = http()
        .post(rig.engine.url(path))
        .bearer_auth(ALICE)
        .header(header::CONTENT_TYPE, media);
    if let Some(version) = version {
        request = request.header("a2a-version", version);
    }
    request.body(body).send().await.expect("answered")
}

fn rpc(parts: Value) -> String {
    let message = json!({"messageId": "m", "role": "ROLE_USER", "parts": parts});
    json!({"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": {"message": message}}).to_string()
}

#[tokio::test]
async fn s77_versions() {
    let rig = rig().await;
    for version in [
        None,
        Some(""),
        Some("0.3"),
        Some("2.0"),
        Some("0.30"),
        Some("nonsense"),
    ] {
        // Those of 0.3 are of 0.3, which has no method of this name.
        let code = match version {
            None | Some("" | "0.3") => error_code::METHOD_NOT_FOUND,
            Some(_) => error_code::VERSION_NOT_SUPPORTED,
        };
        let answer = post(
            &rig,
            "/",
            version,
            "application/json",
            rpc(json!([{"text": "hi"}])),
        )
        .await;
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["code"], code, "{version:?}: {body}");
        let rest = json!({"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hi"}]}});
        let answer = post(
            &rig,
            "/message:send",
            version,
            "application/json",
            rest.to_string(),
        )
        .await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{version:?}");
        assert!(
            answer
                .text()
                .await
                .expect("text")
                .contains("VERSION_NOT_SUPPORTED")
        );
    }
    assert_eq!(rig.model.count(), 0);
}

#[tokio::test]
async fn s77_media() {
    let rig = rig().await;
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/xml",
    ] {
        let answer = post(&rig, "/", Some("1.0"), media, rpc(json!([{"text": "hi"}]))).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{media}");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["code"], error_code::CONTENT_TYPE_NOT_SUPPORTED);
    }
    for parts in [
        json!([{"raw": "AAAA", "mediaType": "image/png"}]),
        json!([{"url": "http://127.0.0.1/secret"}]),
    ] {
        let answer = post(&rig, "/", Some("1.0"), "application/json", rpc(parts.clone())).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{parts}");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(
            body["error"]["code"],
            error_code::CONTENT_TYPE_NOT_SUPPORTED,
            "{body}"
        );
        let rest = json!({"message": {"messageId": "m", "role": "ROLE_USER", "parts": parts}}).to_string();
        let answer = post(&rig, "/message:send", Some("1.0"), "application/json", rest).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    assert_eq!(rig.model.count(), 0);
}

#[tokio::test]
async fn nonsense_is_refused_and_changes_nothing() {
    let rig = rig().await;
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{\"jsonrpc\":\"2.0\"}",
        &"[".repeat(100_000),
        &"x".repeat(11 << 20),
    ] {
        let answer = post(&rig, "/", Some("1.0"), "application/json", body.to_owned()).await;
        let status = answer.status();
        let text = answer.text().await.expect("text");
        assert!(
            status.is_client_error() || text.contains("\"error\""),
            "{status} {text}"
        );
    }
    for parts in [json!([]), json!([{}]), json!("hi")] {
        let answer = post(&rig, "/", Some("1.0"), "application/json", rpc(parts)).await;
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["code"], error_code::INVALID_PARAMS, "{body}");
    }
    assert_eq!(rig.model.count(), 0);
    assert_completed(
        &send(&rig.engine.alice().await, &text("say still here")).await,
        "still here",
    );
}

#[tokio::test]
async fn s78_the_card_has_an_etag_and_is_not_sent_twice() {
    let mut rig = rig().await;
    let url = rig.engine.url("/.well-known/agent-card.json");
    let card = |etag: Option<String>| {
        let mut request = http().get(&url).bearer_auth(ALICE);
        if let Some(etag) = etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        request.send()
    };
    let first = card(None).await.expect("answered");
    let etag = first.headers()[header::ETAG].to_str().expect("text").to_owned();
    assert!(first.headers().contains_key(header::CACHE_CONTROL));
    let body: Value = first.json().await.expect("a card");
    assert_eq!(
        (body["name"].as_str(), body["skills"][0]["description"].as_str()),
        (Some("helper"), Some("Helps."))
    );
    let again = card(Some(etag.clone())).await.expect("answered");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.content_length().unwrap_or(0), 0);
    let changed = bundle(&rig.model.openai_url(), json!({"description": "Helps more."}));
    rig.engine
        .tell(&crate::support::apply(changed, crate::support::trust()))
        .await;
    rig.engine
        .until(|f| matches!(f, roadstead_contract::control::FromEngine::Applied { .. }))
        .await;
    let newer = card(Some(etag)).await.expect("answered");
    assert_eq!(newer.status(), StatusCode::OK);
}

#[tokio::test]
async fn model_faults_end_with_a_reason_and_never_hang() {
    let rig = rig().await;
    let alice = rig.engine.alice().await;
    for (prompt, reason) in [
        ("fail 401", "model.refused"),
        ("fail 500", "model.unavailable"),
        ("fail 429 0", "model.rateLimited"),
    ] {
        let task = send(&alice, &text(prompt)).await;
        let found = task
            .metadata
            .as_ref()
            .and_then(|m| m.get("roadstead.dev/reason"))
            .and_then(Value::as_str);
        assert_eq!(
            (&task.status.state, found),
            (&TaskState::Failed, Some(reason)),
            "{prompt}: {task:?}"
        );
    }
}

#[tokio::test]
async fn a_cut_stream_is_gone_on_with_and_marked() {
    let rig = rig().await;
    let task = send(&rig.engine.alice().await, &text("say a b c d\nchunks 4 1\ncut 2")).await;
    assert_eq!(task.status.state, TaskState::Completed);
    assert!(answer(&task).starts_with("a b "), "{task:?}");
    let metadata = task
        .artifacts
        .iter()
        .flatten()
        .filter_map(|a| a.metadata.as_ref())
        .next();
    assert!(
        metadata.is_some_and(|m| m.contains_key("roadstead.dev/cuts")),
        "{task:?}"
    );
}

#[tokio::test]
async fn a_structured_answer_is_a_data_artifact_on_every_binding() {
    let rig = rig().await;
    let mut engine = rig.engine;
    let schema = json!({"outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}});
    let changed = bundle(&rig.model.openai_url(), schema);
    engine
        .tell(&crate::support::apply(changed, crate::support::trust()))
        .await;
    engine
        .until(|f| matches!(f, roadstead_contract::control::FromEngine::Applied { .. }))
        .await;
    for binding in BINDINGS {
        let alice = engine.client(ALICE, binding).await;
        let events: Vec<_> = alice
            .send_streaming_message(&text("say {\"n\": 3}\nchunks 3 1"))
            .await
            .expect("a stream")
            .collect()
            .await;
        let mut answers = Vec::new();
        for event in events {
            if let StreamResponse::ArtifactUpdate(update) = event.expect("an event") {
                answers.push((update.artifact.parts.clone(), update.last_chunk));
            }
        }
        assert_eq!(answers.len(), 1, "{binding}: whole: {answers:?}");
        let task = send(&alice, &text("say {\"n\": 3}")).await;
        let again = alice.get_task(&get(&task.id)).await.expect("there");
        let kept = &again.artifacts.as_ref().expect("an artifact")[0].parts;
        for parts in [&answers[0].0, kept] {
            assert_eq!(
                parts[0].media_type.as_deref(),
                Some("application/json"),
                "{binding}"
            );
            let a2a::PartContent::Data(data) = &parts[0].content else {
                panic!("{binding}: expected data, found {parts:?}")
            };
            assert_eq!(data["n"].as_f64(), Some(3.0), "{binding}");
        }
    }
}

#[tokio::test]
async fn integers_in_data_come_through_exactly_or_are_refused() {
    let rig = rig().await;
    let body = |data: &str, binding: &str| {
        let id = format!("m-{binding}-{}", data.len());
        let parts = format!(r#"[{{"text": "say hi"}}, {{"data": {data}}}]"#);
        let message =
            format!(r#"{{"message": {{"messageId": "{id}", "role": "ROLE_USER", "parts": {parts}}}}}"#);
        match binding {
            "/" => format!(
                r#"{{"jsonrpc": "2.0", "id": 9007199254740993, "method": "SendMessage", "params": {message}}}"#
            ),
            _ => message,
        }
    };
    for binding in ["/", "/message:send"] {
        for number in ["9007199254740993", "-9007199254740993", "18446744073709551617"] {
            let body = body(&format!(r#"{{"order": {{"id": [{number}]}}}}"#), binding);
            let answer = post(&rig, binding, Some("1.0"), "application/json", body).await;
            let status = answer.status();
            let text = answer.text().await.expect("text");
            // Up to 64 bits the wire's own types refuse it; what is longer has been rounded before they see it.
            let said = text.contains("out of range") || text.contains(&format!("found {number}"));
            assert!(said, "{binding} {number} {status} {text}");
            let found: Value = serde_json::from_str(&text).expect("JSON");
            match binding {
                "/" => assert_eq!(found["error"]["code"], error_code::INVALID_PARAMS, "{text}"),
                _ => assert_eq!(status, StatusCode::BAD_REQUEST, "{text}"),
            }
        }
        assert_eq!(rig.model.count(), if binding == "/" { 0 } else { 1 });
        let data = r#"{"order":{"id":[9007199254740991,-3],"share":0.1,"text":"9007199254740993"}}"#;
        let answer = post(
            &rig,
            binding,
            Some("1.0"),
            "application/json",
            body(data, binding),
        )
        .await;
        let text = answer.text().await.expect("text");
        assert!(text.contains("TASK_STATE_COMPLETED"), "{text}");
        let read = rig.model.requests().pop().expect("asked").body["messages"].to_string();
        let quoted = json!(data).to_string();
        assert!(read.contains(quoted.trim_matches('"')), "as it was sent: {read}");
    }
}

/// Asks which branch, and says it again.
fn asks_a_question() -> Script {
    use roadstead_model_server::{Reply, Rule, ToolCall, When};
    let tool = ToolCall {
        name: "ask_user".to_owned(),
        arguments: json!({"question": "Which branch?"}),
        ..ToolCall::default()
    };
    let ask = Rule {
        when: When::user("commit").tool_results(0),
        reply: Reply {
            tools: vec![tool],
            ..Reply::default()
        },
        fault: None,
    };
    let then = Rule {
        when: When::user("commit"),
        reply: Reply::text("on that branch"),
        fault: None,
    };
    Script {
        rules: vec![ask, then],
        ..Script::default()
    }
}

#[tokio::test]
async fn a_question_is_asked_and_answered_on_every_binding_and_over_a_kill() {
    let model = ModelServer::start(asks_a_question()).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let spec = bundle(&model.openai_url(), json!({"questions": "ask"}));
    let mut engine = Process::with(state.path(), spec.clone()).await;
    for binding in BINDINGS {
        let task = send(&engine.client(ALICE, binding).await, &text("commit it")).await;
        assert_eq!(task.status.state, TaskState::InputRequired, "{binding}: {task:?}");
        let asked = task.status.message.as_ref().expect("a message");
        assert_eq!(asked.text(), Some("Which branch?"), "{binding}");
        engine.kill().await;
        engine = Process::with(state.path(), spec.clone()).await;
        let alice = engine.client(ALICE, binding).await;
        let mut reply = text("main");
        reply.message.task_id = Some(task.id.clone());
        reply.message.context_id = Some(task.context_id.clone());
        // The engine says it serves before it has taken over what waited.
        let done = loop {
            match alice.send_message(&reply).await {
                Ok(a2a::SendMessageResponse::Task(task)) => break task,
                Ok(other) => panic!("expected a task, found {other:?}"),
                Err(error) if error.code == error_code::UNSUPPORTED_OPERATION => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{binding}: {error:?}"),
            }
        };
        assert_completed(&done, "on that branch");
        let told = model.requests().last().expect("asked").body.to_string();
        assert!(told.contains("main"), "{told}");
    }
}

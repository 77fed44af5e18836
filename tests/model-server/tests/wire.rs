//! The formats as they travel, and the faults.

use roadstead_model_server::{Fault, ModelServer, Reply, Script, When};
use serde_json::{Value, json};
use std::time::Duration;

fn chat(text: &str, stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "stream_options": {"include_usage": true}, "max_tokens": 100,
        "messages": [{"role": "user", "content": text}]})
}

async fn post(server: &ModelServer, path: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new()
        .post(format!("{}{path}", server.url()))
        .header("anthropic-version", "2023-06-01")
        .json(body)
        .send()
        .await
        .expect("the server answers")
}

fn script() -> Script {
    Script::strict().rule(
        When::user("all"),
        Reply::chunks(&["Hel", "lo"])
            .reasoning("hm")
            .and_call("t", json!({"a": "é"}))
            .usage(10, 5, 4),
    )
}

#[tokio::test]
async fn openai_stream_has_every_part_and_ends_with_done() {
    let server = ModelServer::start(script()).await.unwrap();
    let text = post(&server, "/v1/chat/completions", &chat("all", true))
        .await
        .text()
        .await
        .unwrap();
    let events: Vec<&str> = text.split("\n\n").filter(|e| !e.is_empty()).collect();
    assert_eq!(*events.last().unwrap(), "data: [DONE]");
    let parsed: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let join = |pointer: &str| {
        parsed
            .iter()
            .filter_map(|v| v.pointer(pointer)?.as_str())
            .collect::<String>()
    };
    assert_eq!(join("/choices/0/delta/content"), "Hello");
    assert_eq!(join("/choices/0/delta/reasoning_content"), "hm");
    assert_eq!(
        join("/choices/0/delta/tool_calls/0/function/arguments"),
        "{\"a\":\"é\"}"
    );
    assert_eq!(join("/choices/0/finish_reason"), "tool_calls");
    let usage = &parsed.last().unwrap()["usage"];
    assert_eq!(usage["prompt_tokens"], 10);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 4);
}

#[tokio::test]
async fn anthropic_stream_has_its_events_in_order() {
    let server = ModelServer::start(script()).await.unwrap();
    let text = post(&server, "/v1/messages", &chat("all", true))
        .await
        .text()
        .await
        .unwrap();
    let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("event: ")).collect();
    let mut order = names.clone();
    order.dedup();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    let expected: Vec<&str> = ["message_start", "ping"]
        .into_iter()
        .chain([block; 3].concat())
        .chain(["message_delta", "message_stop"])
        .collect();
    assert_eq!(order, expected);
}

#[tokio::test]
async fn ollama_stream_ends_with_done_and_counts() {
    let server = ModelServer::start(script()).await.unwrap();
    let text = post(&server, "/api/chat", &chat("all", true))
        .await
        .text()
        .await
        .unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(5)));
    assert_eq!(
        lines[3]["message"]["tool_calls"][0]["function"]["arguments"],
        json!({"a": "é"})
    );
}

#[tokio::test]
async fn rules_burn_out_and_requests_are_recorded() {
    let script = Script::strict()
        .rule(When::any().times(1), Fault::status(429).retry_after("2"))
        .rule(When::any(), Reply::text("ok"));
    let server = ModelServer::start(script).await.unwrap();
    let first = post(&server, "/v1/chat/completions", &chat("x", false)).await;
    assert_eq!(first.status(), 429);
    assert_eq!(first.headers()["retry-after"], "2");
    let second: Value = post(&server, "/v1/chat/completions", &chat("x", false))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(second["choices"][0]["message"]["content"], "ok");
    assert_eq!(server.requests()[1].body["messages"][0]["content"], "x");
    assert_eq!((server.count(), server.open(), server.abandoned()), (2, 0, 0));
}

#[tokio::test]
async fn a_cut_breaks_the_body_and_an_end_does_not() {
    let reply = || Reply::chunks(&["one", "two", "three"]);
    let script = Script::strict()
        .rule(When::user("cut"), reply().with(Fault::CutAfter { chunks: 2 }))
        .rule(When::user("end"), reply().with(Fault::EndAfter { chunks: 2 }));
    let server = ModelServer::start(script).await.unwrap();
    let mut cut = post(&server, "/v1/chat/completions", &chat("cut", true)).await;
    let mut seen = String::new();
    let broken = loop {
        match cut.chunk().await {
            Ok(Some(bytes)) => seen += &String::from_utf8_lossy(&bytes),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(
        broken && seen.contains("two") && !seen.contains("three"),
        "{seen}"
    );
    let ended = post(&server, "/v1/chat/completions", &chat("end", true))
        .await
        .text()
        .await
        .unwrap();
    assert!(ended.contains("two") && !ended.contains("[DONE]"), "{ended}");
}

#[tokio::test]
async fn an_abandoned_answer_is_counted() {
    let script = Script::strict().rule(When::any(), Reply::text("x").with(Fault::HangAfter { chunks: 1 }));
    let server = ModelServer::start(script).await.unwrap();
    let mut answer = post(&server, "/v1/chat/completions", &chat("x", true)).await;
    answer.chunk().await.unwrap();
    assert_eq!(server.open(), 1);
    drop(answer);
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.abandoned() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_a_provider_refuses_is_refused() {
    let server = ModelServer::start(Script::prompt()).await.unwrap();
    let orphan = json!({"model": "m", "messages": [{"role": "user", "content": "x"},
        {"role": "tool", "tool_call_id": "c", "content": "r"}]});
    assert_eq!(post(&server, "/v1/chat/completions", &orphan).await.status(), 400);
    let unanswered = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "t", "input": {}}]},
        {"role": "user", "content": "y"}]});
    assert_eq!(post(&server, "/v1/messages", &unanswered).await.status(), 400);
    let mut named = chat("x", false);
    named["tools"] = json!([{"type": "function", "function": {"name": "a/b"}}]);
    assert_eq!(post(&server, "/v1/chat/completions", &named).await.status(), 400);
}

#[tokio::test]
async fn keys_echo_and_lists_work() {
    let server = ModelServer::start(Script::echo()).await.unwrap();
    for path in ["/v1/chat/completions", "/v1/messages", "/api/chat"] {
        for stream in [true, false] {
            let text = post(&server, path, &chat("é \"q\"", stream))
                .await
                .text()
                .await
                .unwrap();
            assert!(text.contains(r#"é \"q\""#), "{path} {text}");
        }
    }
    let tags: Value = reqwest::get(format!("{}/api/tags", server.url()))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(tags["models"][0]["name"], "scripted");
    server.set_script(Script::prompt().key("k1"));
    assert_eq!(
        post(&server, "/v1/chat/completions", &chat("x", true))
            .await
            .status(),
        401
    );
}

#[test]
fn a_script_is_read_from_yaml() {
    let script = Script::parse(
        "rules:\n- when: {user: hi, times: 1}\n  reply: {text: [hello], usage: {given: {input: 1, output: 2, cached: 0}}}\n\
         - fault: {status: {status: 429, retryAfter: '1'}}\n- fault: hang\n- fault: {cutAfter: {chunks: 2}}\notherwise: refuse\n",
    )
    .unwrap();
    assert_eq!(script.rules.len(), 4);
    assert_eq!(script.rules[1].fault, Some(Fault::status(429).retry_after("1")));
    assert!(Script::parse("rulez: []").is_err());
}

//! The providers against a model server that speaks the real wire formats, faults included.

use futures::StreamExt as _;
use roadstead_contract::{
    bundle::Bundle,
    control::SecretText,
    documents::{AgentSpec, ModelSpec},
};
use roadstead_engine::{
    model::{
        ChatMessage, ChatRequest, ErrorClass, HttpClients, Model, ModelError, ModelEvent, ModelFactory as _,
        Part, ProviderState, Providers, StopReason, ToolCall, ToolSchema, Usage,
    },
    secrets::Secrets,
};
use roadstead_model_server::{Fault, ModelServer, Reply, Script, When};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const KEY: &str = "sk-canary-0123456789-tail99";
const PROVIDERS: [&str; 4] = ["openai", "openaiCompatible", "anthropic", "ollama"];

fn bundle(model: Value) -> Bundle {
    let agent: AgentSpec =
        serde_json::from_value(json!({"description": "d", "instructions": "i", "model": "m"}))
            .expect("an agent");
    let spec: ModelSpec = serde_json::from_value(model).expect("a model");
    Bundle {
        project: "p".parse().expect("a name"),
        name: "a".parse().expect("a name"),
        uid: "u".to_owned(),
        generation: 1,
        agent,
        models: [("m".to_owned(), spec)].into(),
        tool_servers: BTreeMap::new(),
        prompts: BTreeMap::new(),
    }
}

fn load(model: Value) -> Result<Arc<dyn Model>, String> {
    let secrets = Secrets::new([("KEY".to_owned(), SecretText::new(format!("{KEY}\n")))].into());
    let providers = Providers::new(Arc::new(HttpClients::default()));
    let models = providers
        .load(&bundle(model), &secrets)
        .map_err(|e| e.to_string())?;
    Ok(Arc::clone(&models[0]))
}

fn document(server: &ModelServer, provider: &str) -> Value {
    let endpoint = if provider.starts_with("openai") {
        server.openai_url()
    } else {
        server.url()
    };
    json!({"provider": provider, "model": "m1", "endpoint": endpoint, "key": {"env": "KEY"},
        "headers": {"x-team": "support"}})
}

fn user(text: &str) -> ChatRequest {
    ChatRequest {
        system: "be brief".to_owned(),
        messages: vec![ChatMessage::User {
            parts: vec![Part::Text {
                text: text.to_owned(),
            }],
        }],
        ..ChatRequest::default()
    }
}

fn tools(names: &[&str]) -> Arc<[ToolSchema]> {
    let schema = |name: &&str| ToolSchema {
        name: (*name).to_owned(),
        description: "adds".to_owned(),
        parameters: Arc::new(json!({"type": "object", "properties": {"a": {"type": "integer"}}})),
    };
    names.iter().map(schema).collect()
}

async fn ask(model: &Arc<dyn Model>, request: ChatRequest) -> (Vec<ModelEvent>, Option<ModelError>) {
    ask_until(model, request, Instant::now() + Duration::from_secs(20)).await
}

async fn ask_until(
    model: &Arc<dyn Model>,
    request: ChatRequest,
    deadline: Instant,
) -> (Vec<ModelEvent>, Option<ModelError>) {
    let mut stream = model.stream(Arc::new(request), deadline);
    let mut events = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

fn text(events: &[ModelEvent]) -> String {
    let texts = events.iter().filter_map(|e| match e {
        ModelEvent::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn calls(events: &[ModelEvent]) -> Vec<ToolCall> {
    let calls = events.iter().filter_map(|e| match e {
        ModelEvent::ToolCall(call) => Some(call.clone()),
        _ => None,
    });
    calls.collect()
}

fn usage(events: &[ModelEvent]) -> Usage {
    let mut usages = events.iter().filter_map(|e| match e {
        ModelEvent::Usage(usage) => Some(*usage),
        _ => None,
    });
    usages.next_back().expect("usage")
}

#[tokio::test]
async fn every_provider_streams_text_thoughts_calls_and_usage() {
    let reply = Reply::chunks(&["Hel", "lo é"])
        .reasoning("hm")
        .and_call("add", json!({"a": 1, "b": "é\"\n"}))
        .and_call("add", json!({}))
        .usage(100, 7, 60);
    let script = Script::strict().key(KEY).rule(When::user("go"), reply);
    let server = ModelServer::start(script).await.unwrap();
    for provider in PROVIDERS {
        let model = load(document(&server, provider)).unwrap();
        let mut request = user("go");
        request.tools = tools(&["add"]);
        let (events, error) = ask(&model, request).await;
        assert_eq!(error, None, "{provider}");
        assert_eq!(text(&events), "Hello é", "{provider}");
        assert!(
            events.contains(&ModelEvent::Reasoning("hm".to_owned())),
            "{provider}"
        );
        let calls = calls(&events);
        assert_eq!(calls[0].arguments, json!({"a": 1, "b": "é\"\n"}), "{provider}");
        assert_eq!(calls[1].arguments, json!({}), "{provider}");
        assert!(
            calls[0].id != calls[1].id && !calls[0].id.is_empty(),
            "{provider}"
        );
        let cached = if provider == "ollama" { 0 } else { 60 };
        let expected = Usage {
            input: 100,
            output: 7,
            cached,
            estimated: false,
        };
        assert_eq!(usage(&events), expected, "{provider}");
        assert_eq!(
            events.last(),
            Some(&ModelEvent::Stop(StopReason::ToolCalls)),
            "{provider}"
        );
    }
    for sent in server.requests() {
        assert_eq!(sent.headers["x-team"], "support");
    }
}

fn long_conversation() -> ChatRequest {
    let call = |id: &str| ToolCall {
        id: id.to_owned(),
        name: "add".to_owned(),
        arguments: json!({"a": 1}),
        problem: None,
    };
    let bad = ToolCall {
        arguments: json!("{\"a"),
        problem: Some("cut".to_owned()),
        ..call("functions.add:1")
    };
    let answer = |call: &ToolCall, text: &str| ChatMessage::Tool {
        call_id: call.id.clone(),
        name: call.name.clone(),
        text: text.to_owned(),
        is_error: text.is_empty(),
    };
    let file = |name: &str, media_type: &str| Part::File {
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        data: "aGk=".to_owned(),
    };
    let mut request = user("one");
    request.tools = tools(&["add"]);
    request.messages.extend([
        ChatMessage::Assistant {
            text: String::new(),
            tool_calls: vec![call("c1"), bad.clone()],
            provider_state: Some(ProviderState {
                provider: "anthropic".to_owned(),
                value: json!([{"type": "thinking", "thinking": "t", "signature": "s"}]),
            }),
        },
        answer(&call("c1"), "2"),
        answer(&bad, ""),
        ChatMessage::User {
            parts: vec![
                Part::Text {
                    text: "look".to_owned(),
                },
                file("a.png", "image/png"),
                file("a.txt", "text/plain"),
            ],
        },
        ChatMessage::Assistant {
            text: "it is a".to_owned(),
            tool_calls: vec![],
            provider_state: None,
        },
    ]);
    request
}

#[tokio::test]
async fn the_conversation_is_sent_in_every_format_and_accepted() {
    let script = Script::strict().rule(When::any(), Reply::text("ok"));
    let server = ModelServer::start(script).await.unwrap();
    for provider in PROVIDERS {
        let model = load(document(&server, provider)).unwrap();
        let (events, error) = ask(&model, long_conversation()).await;
        assert_eq!((text(&events).as_str(), error), ("ok", None), "{provider}");
    }
    let bodies: Vec<Value> = server.requests().into_iter().map(|r| r.body).collect();
    assert_eq!(
        bodies[0]["messages"][0],
        json!({"role": "system", "content": "be brief"})
    );
    assert_eq!(bodies[0]["messages"][2]["content"], Value::Null);
    assert_eq!(
        bodies[0]["messages"][2]["tool_calls"][0]["function"]["arguments"],
        "{\"a\":1}"
    );
    assert_eq!(bodies[2]["messages"][1]["content"][0]["type"], "thinking");
    assert_eq!(
        bodies[2]["messages"][2]["content"][1]["tool_use_id"],
        "functions_add_1"
    );
    assert_eq!(bodies[2]["system"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(bodies[3]["messages"][5]["images"], json!(["aGk="]));
    for body in bodies {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        assert!(
            last["role"] == "user" && last.to_string().contains("broke off"),
            "{last}"
        );
    }
}

#[tokio::test]
async fn every_option_is_sent_or_refused() {
    let script = Script::strict().rule(When::any(), Reply::text("ok"));
    let server = ModelServer::start(script).await.unwrap();
    let options = json!({"temperature": 0.5, "topP": 0.9, "seed": 7, "stop": ["END"], "maxOutputTokens": 50,
        "reasoningEffort": "low", "timeout": "30s"});
    let mut sent = Vec::new();
    for provider in PROVIDERS {
        let mut document = document(&server, provider);
        document["options"] = options.clone();
        if provider == "anthropic" {
            let refused = load(document.clone()).unwrap_err();
            assert!(refused.contains("spec.options.seed"), "{refused}");
            document["options"].as_object_mut().unwrap().remove("seed");
        }
        let model = load(document).unwrap();
        assert_eq!(model.timeout(), Some(Duration::from_secs(30)));
        assert_eq!(ask(&model, user("x")).await.1, None);
        sent.push(server.requests().last().unwrap().body.clone());
    }
    for body in &sent[..2] {
        assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.5), &json!(0.9)));
        assert_eq!((&body["seed"], &body["stop"]), (&json!(7), &json!(["END"])));
        assert_eq!(body["reasoning_effort"], "low");
        assert_eq!(body["stream_options"]["include_usage"], true);
    }
    assert_eq!(
        (&sent[0]["max_completion_tokens"], &sent[1]["max_tokens"]),
        (&json!(50), &json!(50))
    );
    assert_eq!(sent[2]["stop_sequences"], json!(["END"]));
    assert_eq!(
        (&sent[2]["max_tokens"], &sent[2]["output_config"]["effort"]),
        (&json!(50), &json!("low"))
    );
    assert_eq!(
        (&sent[2]["temperature"], &sent[2]["top_p"]),
        (&json!(0.5), &json!(0.9))
    );
    let expected = json!({"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"], "num_predict": 50});
    assert_eq!(
        (&sent[3]["options"], &sent[3]["think"]),
        (&expected, &json!("low"))
    );
}

#[tokio::test]
async fn the_smaller_limit_of_output_is_sent() {
    let script = Script::strict().rule(When::any(), Reply::text("ok"));
    let server = ModelServer::start(script).await.unwrap();
    let mut document = document(&server, "openaiCompatible");
    document["options"] = json!({"maxOutputTokens": 50});
    let model = load(document).unwrap();
    let mut request = user("x");
    request.max_output_tokens = Some(20);
    request.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    ask(&model, request).await;
    assert_eq!(server.requests()[0].body["max_tokens"], 20);
    assert!(server.requests()[0].headers.contains_key("traceparent"));
}

#[tokio::test]
async fn statuses_have_their_class_and_retry_after() {
    let retry = ErrorClass::RateLimited {
        retry_after: Some(Duration::from_secs(3)),
    };
    let page = Fault::Page {
        status: 502,
        content_type: "text/html".to_owned(),
        body: "<html>Bad Gateway</html>".to_owned(),
    };
    let table = [
        (Fault::status(429).retry_after("3"), retry),
        (Fault::status(500), ErrorClass::Status(500)),
        (Fault::status(529), ErrorClass::RateLimited { retry_after: None }),
        (Fault::status(401), ErrorClass::Refused),
        (Fault::status(404), ErrorClass::Refused),
        (page, ErrorClass::Status(502)),
    ];
    let server = ModelServer::start(Script::strict()).await.unwrap();
    for (fault, class) in table {
        server.set_script(Script::strict().rule(When::any(), fault.clone()));
        for provider in PROVIDERS {
            let model = load(document(&server, provider)).unwrap();
            let (events, error) = ask(&model, user("x")).await;
            assert!(events.is_empty());
            assert_eq!(error.unwrap().class, class, "{provider} {fault:?}");
        }
    }
}

#[tokio::test]
async fn s62_the_key_is_in_no_error_and_no_debug_output() {
    let echo = Fault::Status {
        status: 401,
        retry_after: None,
        message: Some(format!(
            "Incorrect API key provided: {KEY}; header was Bearer {KEY}"
        )),
    };
    let page = Fault::Page {
        status: 200,
        content_type: "text/html".to_owned(),
        body: format!("<html>key {KEY}</html>"),
    };
    let server = ModelServer::start(Script::strict()).await.unwrap();
    for fault in [echo, page] {
        server.set_script(Script::strict().rule(When::any(), fault));
        for provider in PROVIDERS {
            let model = load(document(&server, provider)).unwrap();
            let (_, error) = ask(&model, user("x")).await;
            let told = format!("{error:?} {} {model:?}", error.as_ref().unwrap());
            assert!(!told.contains("canary") && !told.contains("tail99"), "{told}");
        }
    }
}

#[tokio::test]
async fn streams_that_break_are_cut() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    for fault in [Fault::CutAfter { chunks: 2 }, Fault::EndAfter { chunks: 2 }] {
        let reply = Reply::chunks(&["one ", "two ", "three"]);
        server.set_script(Script::strict().rule(When::any(), reply.with(fault.clone())));
        for provider in PROVIDERS {
            let model = load(document(&server, provider)).unwrap();
            let (events, error) = ask(&model, user("x")).await;
            assert_eq!(text(&events), "one two ", "{provider} {fault:?}");
            assert_eq!(error.unwrap().class, ErrorClass::Cut, "{provider} {fault:?}");
        }
    }
}

#[tokio::test]
async fn nonsense_is_told_as_nonsense() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    let faults = [
        Fault::NonsenseAfter { chunks: 1 },
        Fault::ContentType("text/html".to_owned()),
        Fault::Page {
            status: 200,
            content_type: "text/event-stream".to_owned(),
            body: "data: 7\n\n".to_owned(),
        },
    ];
    for fault in faults {
        server.set_script(Script::strict().rule(When::any(), fault.clone()));
        for provider in PROVIDERS {
            let model = load(document(&server, provider)).unwrap();
            let (_, error) = ask(&model, user("x")).await;
            assert_eq!(error.unwrap().class, ErrorClass::Nonsense, "{provider} {fault:?}");
        }
    }
}

#[tokio::test]
async fn an_error_inside_a_stream_has_its_class() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    let reply = Reply::chunks(&["one", "two"]);
    server.set_script(Script::strict().rule(When::any(), reply.with(Fault::ErrorAfter { chunks: 1 })));
    for provider in PROVIDERS {
        let model = load(document(&server, provider)).unwrap();
        let (events, error) = ask(&model, user("x")).await;
        let overloaded = ErrorClass::RateLimited { retry_after: None };
        let expected = if provider == "anthropic" {
            overloaded
        } else {
            ErrorClass::Status(500)
        };
        assert_eq!(
            (text(&events).as_str(), error.unwrap().class),
            ("one", expected),
            "{provider}"
        );
    }
}

#[tokio::test]
async fn deadlines_end_what_hangs_and_dropping_ends_the_call() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    for fault in [Fault::Hang, Fault::HangAfter { chunks: 1 }] {
        server.set_script(Script::strict().rule(When::any(), fault.clone()));
        for provider in PROVIDERS {
            let model = load(document(&server, provider)).unwrap();
            let began = Instant::now();
            let (_, error) = ask_until(&model, user("x"), began + Duration::from_millis(150)).await;
            assert_eq!(error.unwrap().class, ErrorClass::Timeout, "{provider} {fault:?}");
            assert!(began.elapsed() < Duration::from_secs(5));
        }
    }
    let mut slow = document(&server, "openai");
    slow["options"] = json!({"timeout": "100ms"});
    let (_, error) = ask(&load(slow).unwrap(), user("x")).await;
    assert_eq!(
        error.unwrap().class,
        ErrorClass::Timeout,
        "the document's own timeout"
    );
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("every call is closed");
}

#[tokio::test]
async fn no_server_is_a_connection_error() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    let documents = PROVIDERS.map(|p| document(&server, p));
    drop(server);
    for document in documents {
        let model = load(document).unwrap();
        let error = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let (_, error) = ask(&model, user("x")).await;
                match error {
                    Some(error) if error.class == ErrorClass::Connect => return error,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
        .expect("the port is closed");
        assert!(error.message.contains("127.0.0.1"), "{error}");
    }
}

#[tokio::test]
async fn usage_that_is_not_given_is_estimated() {
    let script = Script::strict().rule(When::any(), Reply::text("12345678").no_usage());
    let server = ModelServer::start(script).await.unwrap();
    for provider in ["openai", "ollama"] {
        let model = load(document(&server, provider)).unwrap();
        let (events, _) = ask(&model, user("x")).await;
        let usage = usage(&events);
        assert!(
            usage.estimated && usage.output == 2 && usage.input > 10,
            "{usage:?}"
        );
    }
}

#[tokio::test]
async fn arguments_are_repaired_once_or_refused() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    let reply = Reply::default()
        .and_raw_call("add", "{'a': 1,}")
        .and_raw_call("add", "{\"path\": \"/etc/pa");
    server.set_script(Script::strict().rule(When::any(), reply));
    for provider in PROVIDERS {
        let model = load(document(&server, provider)).unwrap();
        let mut request = user("x");
        request.tools = tools(&["add"]);
        let calls = calls(&ask(&model, request).await.0);
        assert_eq!(
            (&calls[0].arguments, &calls[0].problem),
            (&json!({"a": 1}), &None),
            "{provider}"
        );
        assert_eq!(calls[1].arguments, json!("{\"path\": \"/etc/pa"), "{provider}");
        assert!(calls[1].problem.is_some(), "{provider}");
    }
}

#[tokio::test]
async fn a_call_written_as_text_is_read_only_if_the_tool_is_offered() {
    let server = ModelServer::start(Script::strict()).await.unwrap();
    let said = "I look.\n```json\n{\"name\": \"add\", \"arguments\": {\"a\": 2}}\n```";
    let chunks: Vec<&str> = said.split_inclusive(' ').collect();
    server.set_script(Script::strict().rule(When::any(), Reply::chunks(&chunks)));
    for provider in PROVIDERS {
        let model = load(document(&server, provider)).unwrap();
        let mut request = user("x");
        request.tools = tools(&["add"]);
        let (events, _) = ask(&model, request.clone()).await;
        assert_eq!(text(&events).trim(), "I look.");
        assert_eq!(calls(&events)[0].arguments, json!({"a": 2}));
        assert_eq!(events.last(), Some(&ModelEvent::Stop(StopReason::ToolCalls)));
        request.tools = tools(&["other"]);
        let (events, _) = ask(&model, request).await;
        assert_eq!(text(&events), said);
        assert_eq!(events.last(), Some(&ModelEvent::Stop(StopReason::End)));
    }
}

#[tokio::test]
async fn anthropic_thoughts_come_back_signed() {
    let script = Script::strict().rule(When::any(), Reply::text("a").reasoning("t1"));
    let server = ModelServer::start(script).await.unwrap();
    let model = load(document(&server, "anthropic")).unwrap();
    let (events, _) = ask(&model, user("x")).await;
    let expected = json!([{"type": "thinking", "thinking": "t1", "signature": "c2lnbmF0dXJl"}]);
    assert!(
        events.contains(&ModelEvent::ProviderState(expected)),
        "{events:?}"
    );
}

#[tokio::test]
async fn documents_that_cannot_run_do_not_load() {
    let openai = |extra: Value| {
        let mut document = json!({"provider": "openai", "model": "m"});
        document
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        document
    };
    let table = [
        (openai(json!({"provider": "gemini"})), "spec.provider"),
        (openai(json!({"provider": "openaiCompatible"})), "spec.endpoint"),
        (openai(json!({"endpoint": "ftp://h"})), "spec.endpoint"),
        (openai(json!({"endpoint": "http://u:p@h/v1"})), "spec.endpoint"),
        (openai(json!({"key": {"env": "NONE"}})), "spec.key"),
        (openai(json!({"headers": {"a b": "x"}})), "spec.headers.a b"),
        (
            openai(json!({"headers": {"Authorization": "x"}})),
            "spec.headers.Authorization",
        ),
    ];
    for (document, path) in table {
        let error = load(document).unwrap_err();
        assert!(error.starts_with(&format!("Model m: {path}")), "{error}");
    }
}

/// Counts requests on a connection that has served one before. The end of a body comes late, after the answer is
/// complete.
async fn counting_server() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                let event = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\n\
                             data: [DONE]\n\n";
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let body = format!("{head}{:x}\r\n{event}\r\n", event.len());
                let mut first = true;
                while socket.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    if !std::mem::take(&mut first) {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    let sent = socket.write_all(body.as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if sent.is_err() || socket.write_all(b"0\r\n\r\n").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn connections_are_kept() {
    let (address, count) = counting_server().await;
    let model = load(
        json!({"provider": "openaiCompatible", "model": "m", "endpoint": format!("http://{address}/v1")}),
    )
    .unwrap();
    // A request that comes before the body's end was read has to take another connection. It is kept all the same, so
    // that requests come over used connections after a while; where they are not kept, none ever does.
    let began = Instant::now();
    while count.load(Ordering::SeqCst) < 5 {
        assert!(began.elapsed() < Duration::from_secs(20), "no connection is kept");
        let (events, error) = ask(&model, user("x")).await;
        assert_eq!((text(&events).as_str(), error), ("x", None));
    }
}

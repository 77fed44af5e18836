//! A2A 0.3, as its clients write it: what goes over the wire, and attacks by the older names.

use crate::support::{ALICE, BOB, Process, bundle, http};
use futures::StreamExt as _;
use reqwest::{Method, Response, StatusCode, header};
use roadstead_model_server::{ModelServer, Script};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

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

impl Rig {
    async fn post(&self, token: &str, body: &Value) -> Response {
        let request = http().post(self.engine.url("/")).bearer_auth(token).json(body);
        request.send().await.expect("answered")
    }

    /// A method of JSON-RPC: its result, or its error.
    async fn rpc(&self, token: &str, method: &str, params: Value) -> Result<Value, Value> {
        let body = json!({"jsonrpc": "2.0", "id": "7", "method": method, "params": params});
        let answer = self.post(token, &body).await;
        assert_eq!(answer.status(), StatusCode::OK, "{method}");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("7")));
        answer
            .get("result")
            .cloned()
            .ok_or_else(|| answer["error"].clone())
    }

    /// HTTP+JSON: status and body.
    async fn rest(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = http().request(method, self.engine.url(path)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("answered");
        let status = answer.status();
        (status, answer.json().await.unwrap_or_default())
    }
}

fn message(id: &str, text: &str) -> Value {
    json!({"message": {"kind": "message", "messageId": id, "role": "user",
        "parts": [{"kind": "text", "text": text}]}})
}

/// The `data` of server-sent events, up to the end.
async fn events(answer: Response) -> Vec<Value> {
    let media = answer.headers()[header::CONTENT_TYPE].to_str().expect("text");
    assert!(media.starts_with("text/event-stream"), "{media}");
    let text = tokio::time::timeout(PATIENCE, answer.text()).await;
    let text = text.expect("it ends").expect("text");
    text.lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

#[tokio::test]
async fn s77_json_rpc_of_0_3_is_served() {
    let rig = rig().await;
    let task = rig
        .rpc(ALICE, "message/send", message("m1", "say good day"))
        .await;
    let task = task.expect("a task");
    assert_eq!(
        (&task["kind"], &task["status"]["state"]),
        (&json!("task"), &json!("completed"))
    );
    assert_eq!(
        task["artifacts"][0]["parts"],
        json!([{"kind": "text", "text": "good day"}])
    );
    let said = &task["history"][0];
    assert_eq!(
        (&said["kind"], &said["role"], &said["messageId"]),
        (&json!("message"), &json!("user"), &json!("m1"))
    );
    assert_eq!(said["parts"], json!([{"kind": "text", "text": "say good day"}]));
    // Sent again it is the same task, whatever the version.
    let again = rig
        .rpc(ALICE, "message/send", message("m1", "say good day"))
        .await;
    assert_eq!(again.expect("a task")["id"], task["id"]);
    let got = rig
        .rpc(ALICE, "tasks/get", json!({"id": task["id"], "historyLength": 0}))
        .await;
    let got = got.expect("a task");
    assert_eq!((&got["id"], got.get("history")), (&task["id"], None));
    let error = rig.rpc(ALICE, "tasks/cancel", json!({"id": task["id"]})).await;
    assert_eq!(error.expect_err("it has ended")["code"], -32002);

    let at_once = json!({"blocking": false});
    let mut params = message("m2", "say later\nchunks 2 50");
    params["configuration"] = at_once;
    let begun = rig.rpc(ALICE, "message/send", params).await.expect("a task");
    assert!(begun["status"]["state"] != "completed", "{begun}");
}

#[tokio::test]
async fn s77_a_stream_of_0_3_ends_with_its_final_word() {
    let rig = rig().await;
    let text = "say one two three four\nchunks 4 5\nthink hm";
    let body = json!({"jsonrpc": "2.0", "id": 9, "method": "message/stream", "params": message("m", text)});
    let answer = rig.post(ALICE, &body).await;
    let all = events(answer).await;
    assert!(all.iter().all(|e| e["id"] == 9 && e["jsonrpc"] == "2.0"));
    let results: Vec<&Value> = all.iter().map(|e| &e["result"]).collect();
    assert_eq!(results[0]["kind"], "task");
    let chunks = results.iter().filter(|r| r["kind"] == "artifact-update");
    let said: String = chunks
        .filter_map(|r| r["artifact"]["parts"][0]["text"].as_str())
        .collect();
    assert_eq!(said, "one two three four");
    let (last, before) = results.split_last().expect("events");
    assert_eq!(
        (&last["kind"], &last["final"], &last["status"]["state"]),
        (&json!("status-update"), &json!(true), &json!("completed"))
    );
    let updates: Vec<_> = before.iter().filter(|r| r["kind"] == "status-update").collect();
    assert!(updates.iter().all(|r| r["final"] == false), "{updates:?}");
    let thought = |r: &&&Value| r["status"]["message"]["parts"][0]["text"] == "hm";
    assert!(updates.iter().any(thought), "{updates:?}");

    // The same by the .proto's JSON.
    let message = json!({"messageId": "p", "role": "ROLE_USER", "content": [{"text": text}]});
    let request = http()
        .post(rig.engine.url("/v1/message:stream"))
        .bearer_auth(ALICE)
        .json(&json!({"message": message}));
    let all = events(request.send().await.expect("answered")).await;
    assert!(all[0]["task"]["status"]["state"].is_string() && all[0]["task"].get("kind").is_none());
    let last = &all.last().expect("an end")["statusUpdate"];
    assert_eq!(
        (&last["final"], &last["status"]["state"]),
        (&json!(true), &json!("TASK_STATE_COMPLETED"))
    );
    let thought = all
        .iter()
        .find(|e| e["statusUpdate"]["status"]["message"]["content"][0]["text"] == "hm");
    let marked = &thought.expect("a thought")["statusUpdate"]["status"]["message"]["metadata"];
    assert_eq!(
        marked["roadstead.dev/thought"], true,
        "its parts have no metadata"
    );
}

#[tokio::test]
async fn s77_http_json_of_0_3_is_served() {
    let rig = rig().await;
    let message = json!({"messageId": "m", "role": "ROLE_USER", "content": [{"text": "say good day"}]});
    let request = json!({"message": message, "configuration": {"blocking": true}});
    let (status, answer) = rig
        .rest(ALICE, Method::POST, "/v1/message:send", Some(request))
        .await;
    let task = &answer["task"];
    assert_eq!(
        (status, &task["status"]["state"]),
        (StatusCode::OK, &json!("TASK_STATE_COMPLETED"))
    );
    assert_eq!(task["artifacts"][0]["parts"], json!([{"text": "good day"}]));
    assert_eq!(task["history"][0]["content"], json!([{"text": "say good day"}]));
    let id = task["id"].as_str().expect("an id");
    let (status, got) = rig
        .rest(
            ALICE,
            Method::GET,
            &format!("/v1/tasks/{id}?historyLength=0"),
            None,
        )
        .await;
    assert_eq!(
        (status, &got["id"], got.get("history")),
        (StatusCode::OK, &json!(id), None)
    );
    let (status, error) = rig
        .rest(ALICE, Method::POST, &format!("/v1/tasks/{id}:cancel"), None)
        .await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::BAD_REQUEST, &json!(-32002))
    );
    let (_, mine) = rig.rest(ALICE, Method::GET, "/v1/tasks", None).await;
    assert_eq!(mine.as_array().map(Vec::len), Some(1), "{mine}");
    let (_, others) = rig.rest(BOB, Method::GET, "/v1/tasks", None).await;
    assert_eq!(others, json!([]), "S75: a list is of one's own");
    for (path, code) in [
        ("/v1/card", StatusCode::BAD_REQUEST),
        ("/v1/tasks/x/pushNotificationConfigs", StatusCode::BAD_REQUEST),
        ("/v1/nowhere", StatusCode::NOT_FOUND),
        ("/v1/tasks/%2e%2e", StatusCode::NOT_FOUND),
        ("/v1/tasks/a/b", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(rig.rest(ALICE, Method::GET, path, None).await.0, code, "{path}");
    }
    let newer = http()
        .get(rig.engine.url("/v1/tasks"))
        .bearer_auth(ALICE)
        .header("a2a-version", "1.0");
    let told = newer.send().await.expect("answered").text().await.expect("text");
    assert!(told.contains("-32009"), "{told}");
}

#[tokio::test]
async fn s77_a_watch_of_0_3_sees_the_cancel() {
    let rig = rig().await;
    let ask =
        |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let first = rig
        .post(ALICE, &ask("message/stream", message("m", "hang")))
        .await;
    let mut first = first.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("\n\n") {
        let chunk = tokio::time::timeout(PATIENCE, first.next())
            .await
            .expect("in time");
        seen.push_str(&String::from_utf8_lossy(&chunk.expect("more").expect("read")));
    }
    let data = seen
        .lines()
        .find_map(|l| l.strip_prefix("data:"))
        .expect("an event");
    let task: Value = serde_json::from_str(data).expect("JSON");
    let id = json!({"id": task["result"]["id"]});
    let watch = rig.post(ALICE, &ask("tasks/resubscribe", id.clone())).await;
    let reached = async {
        while rig.model.count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .expect("the model is asked");
    let foreign = rig.rpc(BOB, "tasks/cancel", id.clone()).await;
    assert_eq!(foreign.expect_err("not bob's")["code"], -32001);
    let canceled = rig
        .rpc(ALICE, "tasks/cancel", id.clone())
        .await
        .expect("canceled");
    assert_eq!(canceled["status"]["state"], "canceled");
    let all = events(watch).await;
    let last = &all.last().expect("an end")["result"];
    assert_eq!(
        (&last["final"], &last["status"]["state"]),
        (&json!(true), &json!("canceled"))
    );
    let over = rig.rpc(ALICE, "tasks/resubscribe", id).await;
    assert_eq!(over.expect_err("it has ended")["code"], -32004);
}

#[tokio::test]
async fn s75_by_0_3_a_foreign_task_looks_like_none() {
    let rig = rig().await;
    let task = rig
        .rpc(ALICE, "message/send", message("m", "say mine"))
        .await
        .expect("a task");
    let id = task["id"].as_str().expect("an id").to_owned();
    let about = |id: &str| {
        let mut reply = message("b1", "say yours");
        reply["message"]["taskId"] = json!(id);
        [
            ("tasks/get", json!({"id": id})),
            ("tasks/cancel", json!({"id": id})),
            ("tasks/resubscribe", json!({"id": id})),
            ("message/send", reply.clone()),
            ("message/stream", reply),
        ]
    };
    for ((method, foreign), (_, missing)) in about(&id).into_iter().zip(about("nowhere")) {
        let foreign = rig.rpc(BOB, method, foreign).await.expect_err("not bob's");
        let missing = rig.rpc(BOB, method, missing).await.expect_err("not there");
        let said = |error: &Value| {
            error["message"]
                .as_str()
                .unwrap_or_default()
                .replace(&id, "nowhere")
        };
        assert_eq!(foreign["code"], -32001, "{method}: {foreign}");
        assert_eq!(
            (&foreign["code"], said(&foreign)),
            (&missing["code"], said(&missing)),
            "{method}"
        );
    }
    for (method, path) in [
        (Method::GET, format!("/v1/tasks/{id}")),
        (Method::POST, format!("/v1/tasks/{id}:cancel")),
        (Method::GET, format!("/v1/tasks/{id}:subscribe")),
    ] {
        let (status, error) = rig.rest(BOB, method.clone(), &path, None).await;
        assert_eq!(
            (status, &error["code"]),
            (StatusCode::NOT_FOUND, &json!(-32001)),
            "{method} {path}"
        );
    }
    // Another's session is no way in either.
    let mut joined = message("b2", "say together");
    joined["message"]["contextId"] = task["contextId"].clone();
    let joined = rig.rpc(BOB, "message/send", joined).await;
    let mut same = message("b3", "say together");
    same["message"]["contextId"] = json!("nowhere");
    let same = rig.rpc(BOB, "message/send", same).await;
    assert_eq!(joined.is_ok(), same.is_ok());
    for request in rig.model.requests().iter().rev().take(2) {
        let heard = format!("{request:?}");
        assert!(heard.contains("together") && !heard.contains("mine"), "{heard}");
    }
}

#[tokio::test]
async fn the_stream_of_a_message_that_came_twice_says_its_end() {
    let rig = rig().await;
    let body =
        json!({"jsonrpc": "2.0", "id": "7", "method": "message/stream", "params": message("m", "say hi")});
    let first = events(rig.post(ALICE, &body).await).await;
    let again = events(rig.post(ALICE, &body).await).await;
    let result = |events: &[Value], from_end: usize| {
        let at = events.len().checked_sub(from_end + 1);
        at.and_then(|at| events.get(at))
            .map(|event| event["result"].clone())
    };
    for events in [&first, &again] {
        let last = result(events, 0).expect("an end");
        assert_eq!(
            (&last["kind"], &last["final"]),
            (&json!("status-update"), &json!(true)),
            "{events:?}"
        );
        assert_eq!(last["status"]["state"], "completed");
    }
    assert_eq!(result(&again, 1).expect("the task")["kind"], "task");
    assert_eq!(rig.model.requests().len(), 1, "it was taken once");
}

#[tokio::test]
async fn s77_what_0_3_does_not_have_is_refused_in_its_words() {
    let rig = rig().await;
    let mut push = message("m", "say hi");
    push["configuration"] = json!({"pushNotificationConfig": {"url": "http://169.254.169.254/"}});
    let mut media = message("m", "say hi");
    media["message"]["parts"] = json!([{"kind": "file", "file": {"uri": "http://127.0.0.1/secret"}}]);
    let mut agent = message("m", "say hi");
    agent["message"]["role"] = json!("agent");
    let mut two = message("m", "say hi");
    two["message"]["parts"] = json!([{"kind": "text", "text": "a", "data": {}}]);
    for (method, params, code) in [
        ("message/send", push, -32003),
        ("tasks/pushNotificationConfig/set", json!({"taskId": "x"}), -32003),
        ("tasks/pushNotificationConfig/get", json!({"id": "x"}), -32003),
        ("tasks/pushNotificationConfig/list", json!({"id": "x"}), -32003),
        ("tasks/pushNotificationConfig/delete", json!({"id": "x"}), -32003),
        ("agent/getAuthenticatedExtendedCard", json!(null), -32007),
        ("message/send", agent, -32602),
        ("message/send", two, -32602),
        ("message/send", json!({}), -32602),
        ("tasks/get", json!({}), -32602),
        ("tasks/list", json!({}), -32601),
        ("SendMessage", json!({}), -32601),
    ] {
        let error = rig.rpc(ALICE, method, params.clone()).await.expect_err(method);
        assert_eq!(error["code"], code, "{method} {params}: {error}");
    }
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": media});
    let answer = rig.post(ALICE, &body).await;
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["error"]["code"], -32005);
    assert_eq!(rig.model.count(), 0);
}

#[tokio::test]
async fn integers_by_0_3_come_through_exactly_or_are_refused() {
    let rig = rig().await;
    let send = |n: usize, number: &str, media: &'static str| {
        let parts = format!(
            r#"[{{"kind": "text", "text": "say hi"}}, {{"kind": "data", "data": {{"n": {number}}}}}]"#
        );
        let message = format!(r#"{{"message": {{"messageId": "m{n}", "role": "user", "parts": {parts}}}}}"#);
        let rpc = format!(r#"{{"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {message}}}"#);
        [("/", rpc), ("/v1/message:send", message)].map(|(path, body)| {
            http()
                .post(rig.engine.url(path))
                .bearer_auth(ALICE)
                .header(header::CONTENT_TYPE, media)
                .body(body)
                .send()
        })
    };
    for number in ["9007199254740993", "18446744073709551617"] {
        for answer in send(0, number, "application/json") {
            let text = answer.await.expect("answered").text().await.expect("text");
            assert!(
                text.contains("-32602") && text.contains(&format!("found {number}")),
                "{text}"
            );
        }
        // A body that calls itself something else is not looked at, and so not taken.
        for answer in send(0, number, "application/grpc") {
            let status = answer.await.expect("answered").status();
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }
    assert_eq!(rig.model.count(), 0);
    for answer in send(1, "9007199254740991", "application/json") {
        assert_eq!(answer.await.expect("answered").status(), StatusCode::OK);
        let asked = rig.model.requests().pop().expect("asked").body.to_string();
        assert!(asked.contains("9007199254740991"), "{asked}");
    }
}

#[tokio::test]
async fn s78_one_card_serves_both_versions() {
    let rig = rig().await;
    let url = rig.engine.url("/.well-known/agent-card.json");
    let ask = |version: Option<&'static str>| {
        let mut request = http().get(&url).bearer_auth(ALICE);
        if let Some(version) = version {
            request = request.header("a2a-version", version);
        }
        request.send()
    };
    let plain = ask(None).await.expect("answered");
    let etag = plain.headers()[header::ETAG].clone();
    let text = plain.text().await.expect("text");
    let newer = ask(Some("1.0")).await.expect("answered");
    assert_eq!(newer.headers()[header::ETAG], etag);
    assert_eq!(newer.text().await.expect("text"), text);
    let old: Value = serde_json::from_str(&text).expect("JSON");
    let base = rig.engine.url("");
    assert_eq!(
        (&old["protocolVersion"], &old["url"], &old["preferredTransport"]),
        (&json!("0.3.0"), &json!(base), &json!("JSONRPC"))
    );
    assert_eq!(
        old["additionalInterfaces"][1],
        json!({"url": base, "transport": "HTTP+JSON"})
    );
    assert_eq!(old["securitySchemes"]["bearer"]["type"], "http");
    let new: a2a::AgentCard = serde_json::from_str(&text).expect("a card of 1.0");
    let versions: Vec<_> = new
        .supported_interfaces
        .iter()
        .map(|i| i.protocol_version.as_str())
        .collect();
    assert_eq!(versions, ["1.0", "1.0", "1.0", "0.3", "0.3"]);
}

//! Attacks on approvals by the older names, through the whole edge.

use crate::{
    auth::token_hash,
    secrets::Secrets,
    testing::{Rig, bundle, call, calls, say},
};
use roadstead_contract::control::{Caller, Trust};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const APPROVER: &str = "approver-token-0123456789";
const INVOKER: &str = "invoker-token-0123456789";
const OTHER: &str = "other-token-0123456789";

/// Two tokens of one user, of which one may approve; and somebody else who may.
fn trust() -> Trust {
    let caller = |token: &str, subject: &str, approve| Caller {
        token_sha256: hex::encode(token_hash(token)),
        subject: subject.to_owned(),
        delegates: false,
        approve,
    };
    Trust {
        jwks: None,
        issuer: None,
        callers: vec![
            caller(APPROVER, "alice", true),
            caller(INVOKER, "alice", false),
            caller(OTHER, "bob", true),
        ],
    }
}

struct Served {
    rig: Rig,
    url: String,
    client: reqwest::Client,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn served() -> Served {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let rig = Rig::new(json!({"tools": [{"server": "git", "allow": ["*"], "approve": ["commit"]}]}));
    let applied = rig
        .engine
        .apply(bundle(&rig.spec, 2), Secrets::default(), trust());
    applied.expect("applied");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let (engine, until) = (std::sync::Arc::clone(&rig.engine), stop.clone());
    tokio::spawn(async move { engine.serve(listener, until).await });
    Served {
        rig,
        url: format!("http://{address}"),
        client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        stop,
    }
}

/// The bindings of 0.3, as a client of either writes its messages.
#[derive(Clone, Copy, Debug)]
enum Binding {
    JsonRpc,
    Proto,
    TypedRest,
}

const BINDINGS: [Binding; 3] = [Binding::JsonRpc, Binding::Proto, Binding::TypedRest];

impl Binding {
    fn text(self, text: &str) -> Value {
        match self {
            Self::Proto => json!({"text": text}),
            Self::JsonRpc | Self::TypedRest => json!({"kind": "text", "text": text}),
        }
    }

    fn data(self, data: &Value) -> Value {
        match self {
            Self::Proto => json!({"data": {"data": data}}),
            Self::JsonRpc | Self::TypedRest => json!({"kind": "data", "data": data}),
        }
    }

    fn message(self, id: &str, task: Option<&str>, part: Value) -> Value {
        let parts = [part];
        let mut message = match self {
            Self::Proto => json!({"messageId": id, "role": "ROLE_USER", "content": parts}),
            Self::JsonRpc | Self::TypedRest => {
                json!({"kind": "message", "messageId": id, "role": "user", "parts": parts})
            }
        };
        if let Some(task) = task {
            message["taskId"] = json!(task);
        }
        json!({"message": message})
    }
}

impl Served {
    /// The task, or the code of the refusal.
    async fn send(&self, binding: Binding, token: &str, message: Value) -> Result<Value, Value> {
        let (path, body) = match binding {
            Binding::JsonRpc => (
                "/",
                json!({"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": message}),
            ),
            Binding::Proto | Binding::TypedRest => ("/v1/message:send", message),
        };
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(token)
            .json(&body);
        let answer = request.send().await.expect("answered");
        let answer: Value = answer.json().await.expect("JSON");
        match binding {
            Binding::JsonRpc => answer
                .get("result")
                .cloned()
                .ok_or(answer["error"]["code"].clone()),
            Binding::Proto | Binding::TypedRest => answer.get("task").cloned().ok_or(answer["code"].clone()),
        }
    }
}

/// What a task waits for: its id and its digest.
fn asked(task: &Value) -> (String, String) {
    let message = &task["status"]["message"];
    let parts = message
        .get("parts")
        .or_else(|| message.get("content"))
        .and_then(Value::as_array);
    let data = parts.into_iter().flatten().find_map(|part| {
        let data = part.get("data")?;
        data.get("approvals")
            .or_else(|| data.get("data")?.get("approvals"))
    });
    let approval = &data.expect("an approval")[0];
    assert_eq!(approval["arguments"], json!({"n": 7}));
    let text = |key: &str| approval[key].as_str().expect("a text").to_owned();
    (text("approval"), text("digest"))
}

#[tokio::test]
async fn s82_an_approval_by_0_3_needs_the_right_and_what_was_shown() {
    let served = served().await;
    for (n, binding) in BINDINGS.into_iter().enumerate() {
        served
            .rig
            .plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("committed")]);
        let begin = binding.message(&format!("m{n}"), None, binding.text("commit"));
        let task = served.send(binding, INVOKER, begin).await.expect("a task");
        let state = task["status"]["state"].as_str().unwrap_or_default();
        assert!(
            matches!(state, "input-required" | "TASK_STATE_INPUT_REQUIRED"),
            "{task}"
        );
        let id = task["id"].as_str().expect("an id");
        let (approval, digest) = asked(&task);
        let verdict = |approval: &str, decision: &str, digest: &str| {
            binding.data(&json!({"approval": approval, "decision": decision, "digest": digest}))
        };
        let reply = |m: &str, part| binding.message(&format!("{m}-{n}"), Some(id), part);
        let yes = || verdict(&approval, "approve", &digest);
        let wrong = verdict(&approval, "approve", &"0".repeat(64));
        // Types that are read from JSON would take it, and the hub would not see it (S89).
        let sly =
            binding.data(&json!({"approval": approval, "decision": {"approve": null}, "digest": digest}));
        let word = binding.data(&json!({"approval": approval, "decision": "approve"}));
        for (why, token, part, code) in [
            ("no right", INVOKER, yes(), -32004),
            ("no right, by a word", INVOKER, binding.text("yes"), -32004),
            (
                "no right, again",
                INVOKER,
                verdict(&approval, "repeat", &digest),
                -32004,
            ),
            ("somebody else", OTHER, yes(), -32001),
            ("another digest", APPROVER, wrong, -32602),
            ("no digest", APPROVER, word, -32602),
            (
                "another call",
                APPROVER,
                verdict("another", "approve", &digest),
                -32602,
            ),
            ("another form", APPROVER, sly, -32602),
            ("no word", APPROVER, verdict(&approval, "sure", &digest), -32602),
        ] {
            let refused = served.send(binding, token, reply(why, part)).await;
            assert_eq!(refused, Err(json!(code)), "{binding:?}: {why}");
            assert_eq!(served.rig.tools.names().len(), n, "{binding:?}: {why}");
        }
        let done = served
            .send(binding, APPROVER, reply("yes", yes()))
            .await
            .expect("taken");
        let state = done["status"]["state"].as_str().unwrap_or_default();
        assert!(matches!(state, "completed" | "TASK_STATE_COMPLETED"), "{done}");
        assert_eq!(served.rig.tools.names().len(), n + 1, "{binding:?}");
        let late = served.send(binding, APPROVER, reply("late", yes())).await;
        assert_eq!(late, Err(json!(-32004)), "{binding:?}: used up");
        assert_eq!(served.rig.tools.names().len(), n + 1, "{binding:?}");
    }
}

#[tokio::test]
async fn s82_a_no_by_0_3_needs_no_right() {
    let served = served().await;
    for (n, binding) in BINDINGS.into_iter().enumerate() {
        served
            .rig
            .plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("then not")]);
        let begin = binding.message(&format!("m{n}"), None, binding.text("commit"));
        let task = served.send(binding, INVOKER, begin).await.expect("a task");
        let id = task["id"].as_str().expect("an id");
        let no = binding.message(&format!("n{n}"), Some(id), binding.text("no, not on a Friday"));
        let done = served.send(binding, INVOKER, no).await.expect("taken");
        assert!(done.to_string().contains("then not"), "{done}");
    }
    assert_eq!(served.rig.tools.names(), Vec::<String>::new());
}

#[tokio::test]
async fn s75_the_limit_of_open_tasks_holds_for_both_versions_together() {
    let served = served().await;
    let limited = json!({"limits": {"sessions": 1},
        "tools": [{"server": "git", "allow": ["*"], "approve": ["commit"]}]});
    let spec = crate::testing::spec(limited);
    let applied = served
        .rig
        .engine
        .apply(bundle(&spec, 3), Secrets::default(), trust());
    applied.expect("applied");
    served.rig.plays([calls(&[call("c", "commit", json!({"n": 7}))])]);
    let begin = |binding: Binding, id: &str| binding.message(id, None, binding.text("commit"));
    let first = served
        .send(Binding::JsonRpc, INVOKER, begin(Binding::JsonRpc, "a"))
        .await;
    assert_eq!(first.expect("a task")["status"]["state"], "input-required");
    for (n, binding) in BINDINGS.into_iter().enumerate() {
        let refused = served
            .send(binding, INVOKER, begin(binding, &format!("b{n}")))
            .await;
        assert_eq!(refused, Err(json!(-32603)), "{binding:?}");
    }
    assert_eq!(served.rig.script.asked.lock().len(), 1);
}

//! Attacks on the door: everything but liveness and readiness needs a good token (S75, S88).

use crate::support::{ALICE, ENGINE, Process, apply, bundle, hash, http, trust};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519};
use reqwest::{Method, RequestBuilder, StatusCode};
use roadstead_contract::control::{Caller, DEPTH, FromEngine, ON_BEHALF_OF, Trust};
use roadstead_model_server::{ModelServer, Script};
use serde_json::{Value, json};

struct Hub {
    key: EncodingKey,
    jwks: Value,
}

fn hub(kid: &str) -> Hub {
    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let key = EncodingKey::from_ed_der(pair.serialized_der());
    let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x});
    Hub {
        key,
        jwks: json!({"keys": [jwk]}),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the engine under test looks at the real clock"
)]
fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

fn claims() -> Value {
    let id = format!("{:032x}", rand::random::<u128>());
    json!({"iss": "https://hub", "sub": "user:ann", "aud": "agent-1", "act": {"sub": "hub"}, "jti": id,
           "iat": now(), "exp": now() + 300})
}

fn sign(hub: &Hub, kid: &str, claims: &Value) -> String {
    let header = Header {
        kid: Some(kid.to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    jsonwebtoken::encode(&header, claims, &hub.key).expect("signed")
}

struct Rig {
    engine: Process,
    hub: Hub,
    model: ModelServer,
    state: tempfile::TempDir,
}

async fn rig() -> Rig {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let model = ModelServer::start(Script::default()).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let hub = hub("k1");
    let engine = start(state.path(), &hub, &model).await;
    Rig {
        engine,
        hub,
        model,
        state,
    }
}

async fn start(state: &std::path::Path, hub: &Hub, model: &ModelServer) -> Process {
    let mut engine = Process::start(state).await;
    let trust = Trust {
        jwks: Some(hub.jwks.clone()),
        issuer: Some("https://hub".to_owned()),
        ..trust()
    };
    engine
        .tell(&apply(bundle(&model.openai_url(), json!({})), trust))
        .await;
    engine.until(|f| matches!(f, FromEngine::Applied { .. })).await;
    engine
}

fn send(rig: &Rig) -> RequestBuilder {
    let message = json!({"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "say hello"}]});
    http()
        .post(rig.engine.url("/message:send"))
        .header("a2a-version", "1.0")
        .json(&json!({"message": message}))
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.expect("answered").status()
}

#[tokio::test]
async fn s75_every_route_needs_a_token_but_liveness_and_readiness() {
    let rig = rig().await;
    assert_eq!(status(http().get(rig.engine.url("/livez"))).await, StatusCode::OK);
    // The journal opens while the first requests come.
    let ready = async {
        while status(http().get(rig.engine.url("/readyz"))).await != StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    assert!(tokio::time::timeout(patience, ready).await.is_ok(), "not ready");
    assert_eq!(
        status(http().get(rig.engine.url("/readyz"))).await,
        StatusCode::OK
    );
    let routes = [
        (Method::GET, "/.well-known/agent-card.json"),
        (Method::POST, "/"),
        (Method::POST, "/message:send"),
        (Method::POST, "/message:stream"),
        (Method::GET, "/tasks"),
        (Method::GET, "/tasks/x"),
        (Method::POST, "/tasks/x:cancel"),
        (Method::GET, "/tasks/x:subscribe"),
        (Method::GET, "/extendedAgentCard"),
        (Method::POST, "/tasks/x/pushNotificationConfigs"),
        (Method::POST, "/lf.a2a.v1.A2AService/SendMessage"),
        (Method::POST, "/v1/message:send"),
        (Method::POST, "/v1/message:stream"),
        (Method::GET, "/v1/tasks"),
        (Method::GET, "/v1/tasks/x"),
        (Method::POST, "/v1/tasks/x:cancel"),
        (Method::GET, "/v1/tasks/x:subscribe"),
        (Method::GET, "/v1/card"),
        (Method::GET, "/v1/nowhere"),
        (Method::GET, "/nowhere"),
        (Method::DELETE, "/"),
    ];
    for (method, path) in routes {
        let answer = http()
            .request(method.clone(), rig.engine.url(path))
            .send()
            .await
            .expect("answered");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }
}

#[tokio::test]
async fn s75_bad_credentials_of_every_kind_are_refused() {
    let rig = rig().await;
    assert_eq!(status(send(&rig).bearer_auth(ALICE)).await, StatusCode::OK);
    let with = |value: &str| send(&rig).header("authorization", value);
    for bad in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic YWxpY2U6eA==",
        ALICE,
        "bearer: x",
        &format!("Bearer {}", &ALICE[1..]),
        &format!("Bearer {ALICE}x"),
        &format!("Bearer {}", hash(ALICE)),
    ] {
        assert_eq!(status(with(bad)).await, StatusCode::UNAUTHORIZED, "{bad:?}");
    }
    let twice = send(&rig)
        .header("authorization", "Bearer x")
        .header("authorization", format!("Bearer {ALICE}"));
    assert_eq!(status(twice).await, StatusCode::UNAUTHORIZED);
    let query = http()
        .post(rig.engine.url(&format!("/message:send?access_token={ALICE}")))
        .json(&json!({}));
    assert_eq!(
        status(query).await,
        StatusCode::UNAUTHORIZED,
        "S30: no token in a URL"
    );
}

#[tokio::test]
async fn s88_a_token_of_the_hub_is_good_for_one_agent_and_a_short_time() {
    let rig = rig().await;
    let good = sign(&rig.hub, "k1", &claims());
    assert_eq!(status(send(&rig).bearer_auth(&good)).await, StatusCode::OK);
    let mut wrong: Vec<(&str, String)> = Vec::new();
    let mut with = |why, key: &str, value: Value| {
        let mut claims = claims();
        claims[key] = value;
        wrong.push((why, sign(&rig.hub, "k1", &claims)));
    };
    with("another agent", "aud", json!("agent-2"));
    with("several agents", "aud", json!(["agent-1", "agent-2"]));
    with("another issuer", "iss", json!("https://evil"));
    with("expired", "exp", json!(now() - 60));
    with("lives too long", "exp", json!(now() + 3600));
    with("from the future", "iat", json!(now() + 120));
    with("no subject", "sub", json!(""));
    with("not good yet", "nbf", json!(now() + 120));
    with("no id", "jti", json!(""));
    with("a subject with a line end", "sub", json!("ann\nbob"));
    for key in ["aud", "iss", "exp", "iat", "sub", "jti", "act"] {
        let mut claims = claims();
        claims.as_object_mut().expect("an object").remove(key);
        wrong.push(("a claim is missing", sign(&rig.hub, "k1", &claims)));
    }
    wrong.push(("another key", sign(&hub("k1"), "k1", &claims())));
    wrong.push(("an unknown key", sign(&rig.hub, "k2", &claims())));
    let (head, rest) = good.split_once('.').expect("a token");
    let (body, _) = rest.split_once('.').expect("a token");
    wrong.push((
        "a changed byte",
        format!("{head}.{body}x.{}", rest.rsplit('.').next().expect("a part")),
    ));
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": "k1"}).to_string());
    wrong.push(("alg none", format!("{none}.{body}.")));
    let public = rig.hub.jwks["keys"][0]["x"].as_str().expect("a key");
    let secret = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(public).expect("base64"));
    let header = Header {
        kid: Some("k1".to_owned()),
        ..Header::new(Algorithm::HS256)
    };
    wrong.push((
        "HS256 by the public key",
        jsonwebtoken::encode(&header, &claims(), &secret).expect("signed"),
    ));
    for (why, token) in wrong {
        assert_eq!(
            status(send(&rig).bearer_auth(token)).await,
            StatusCode::UNAUTHORIZED,
            "{why}"
        );
    }
}

#[tokio::test]
async fn s88_a_token_of_the_hub_is_good_once() {
    let Rig {
        engine,
        hub,
        model,
        state,
    } = rig().await;
    let fresh = || sign(&hub, "k1", &claims());
    let card = |engine: &Process, token: &str| {
        let url = engine.url("/.well-known/agent-card.json");
        status(http().get(url).bearer_auth(token))
    };
    // At once and one after another, whatever it is used for.
    let token = fresh();
    let many = (0..16).map(|_| card(&engine, &token));
    let answers = futures::future::join_all(many).await;
    let good = answers.iter().filter(|s| **s == StatusCode::OK).count();
    let refused = answers.iter().filter(|s| **s == StatusCode::UNAUTHORIZED).count();
    assert_eq!((good, refused), (1, 15), "{answers:?}");
    assert_eq!(card(&engine, &fresh()).await, StatusCode::OK);
    // What it began outlives a kill, and so does that it was used.
    let used = fresh();
    let begun = http()
        .post(engine.url("/message:send"))
        .header("a2a-version", "1.0")
        .bearer_auth(&used)
        .json(&json!({"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "say hello"}]}}));
    assert_eq!(status(begun).await, StatusCode::OK);
    engine.kill().await;
    let engine = start(state.path(), &hub, &model).await;
    for old in [&token, &used] {
        assert_eq!(card(&engine, old).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(card(&engine, &fresh()).await, StatusCode::OK);
}

/// The same call by 0.3: JSON-RPC, HTTP+JSON.
fn sends_0_3(rig: &Rig) -> [RequestBuilder; 2] {
    let message = json!({"kind": "message", "messageId": "m", "role": "user",
        "parts": [{"kind": "text", "text": "say hello"}]});
    let rpc = json!({"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}});
    [
        http().post(rig.engine.url("/")).json(&rpc),
        http()
            .post(rig.engine.url("/v1/message:send"))
            .json(&json!({"message": message})),
    ]
}

#[tokio::test]
async fn s88_a_token_of_the_hub_is_good_once_for_every_version() {
    let rig = rig().await;
    for n in 0..2 {
        let call = || sends_0_3(&rig).into_iter().nth(n).expect("a call");
        let token = sign(&rig.hub, "k1", &claims());
        assert_eq!(status(call().bearer_auth(&token)).await, StatusCode::OK);
        assert_eq!(status(call().bearer_auth(&token)).await, StatusCode::UNAUTHORIZED);
        assert_eq!(
            status(send(&rig).bearer_auth(&token)).await,
            StatusCode::UNAUTHORIZED
        );
        let token = sign(&rig.hub, "k1", &claims());
        assert_eq!(status(send(&rig).bearer_auth(&token)).await, StatusCode::OK);
        assert_eq!(status(call().bearer_auth(&token)).await, StatusCode::UNAUTHORIZED);
        for (key, value) in [("aud", json!("agent-2")), ("exp", json!(now() - 60))] {
            let mut wrong = claims();
            wrong[key] = value;
            let token = sign(&rig.hub, "k1", &wrong);
            assert_eq!(
                status(call().bearer_auth(token)).await,
                StatusCode::UNAUTHORIZED,
                "{key}"
            );
        }
    }
}

#[tokio::test]
async fn s81_by_0_3_nobody_speaks_for_others_either() {
    let rig = rig().await;
    for call in sends_0_3(&rig) {
        let named = call.bearer_auth(ALICE).header(ON_BEHALF_OF, "root");
        assert_eq!(status(named).await, StatusCode::FORBIDDEN);
    }
    for call in sends_0_3(&rig) {
        let deep = call
            .bearer_auth(ENGINE)
            .header(ON_BEHALF_OF, "ann")
            .header(DEPTH, "6");
        let told = deep.send().await.expect("answered").text().await.expect("text");
        assert!(
            told.contains("-32004") && told.contains("at most 5 deep"),
            "{told}"
        );
    }
    assert_eq!(rig.model.count(), 0);
}

#[tokio::test]
async fn s81_only_engines_speak_for_others_and_tasks_belong_to_the_user() {
    let rig = rig().await;
    let named = |token: &str, user: &str| send(&rig).bearer_auth(token).header(ON_BEHALF_OF, user);
    assert_eq!(status(named(ALICE, "root")).await, StatusCode::FORBIDDEN);
    assert_eq!(status(named(ENGINE, "")).await, StatusCode::FORBIDDEN);
    assert_eq!(
        status(named(ENGINE, "ann").header(ON_BEHALF_OF, "bob")).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(named(ENGINE, "ann").header(DEPTH, "x")).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(named(ENGINE, "ann").header(DEPTH, "6")).await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        status(named(ENGINE, "ann").header(DEPTH, "5")).await,
        StatusCode::OK
    );
    let total = async |request: RequestBuilder| {
        let answer = request
            .header("a2a-version", "1.0")
            .send()
            .await
            .expect("answered");
        let body: Value = answer.json().await.expect("JSON");
        body["totalSize"].as_i64().unwrap_or(0)
    };
    let tasks = || http().get(rig.engine.url("/tasks"));
    assert_eq!(
        total(tasks().bearer_auth(ENGINE).header(ON_BEHALF_OF, "ann")).await,
        1
    );
    assert_eq!(
        total(tasks().bearer_auth(ENGINE)).await,
        0,
        "the engine's own tasks are others"
    );
    assert_eq!(total(tasks().bearer_auth(ALICE)).await, 0);
}

#[tokio::test]
async fn a_caller_that_is_taken_off_the_list_is_out_at_once() {
    let mut rig = rig().await;
    assert_eq!(status(send(&rig).bearer_auth(ALICE)).await, StatusCode::OK);
    let rest = Trust {
        callers: vec![Caller {
            token_sha256: hash("another"),
            subject: "x".to_owned(),
            delegates: false,
            approve: false,
        }],
        ..Trust::default()
    };
    rig.engine
        .tell(&apply(bundle("http://127.0.0.1:1/v1", json!({})), rest))
        .await;
    rig.engine
        .until(|f| matches!(f, FromEngine::Applied { .. }))
        .await;
    assert_eq!(
        status(send(&rig).bearer_auth(ALICE)).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn grpc_says_unauthenticated_in_its_own_way() {
    let rig = rig().await;
    let request = http()
        .post(rig.engine.url("/lf.a2a.v1.A2AService/SendMessage"))
        .header("content-type", "application/grpc")
        .body("");
    let answer = request.send().await.expect("answered");
    assert_eq!(
        (answer.status(), answer.headers()["grpc-status"].as_bytes()),
        (StatusCode::OK, b"16".as_slice())
    );
}

mod alone {
    //! `run --spec`, with and without a token file.
    use super::*;
    use std::{path::Path, process::Stdio};
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        process::{Child, Command},
    };

    const SPEC: &str = "apiVersion: roadstead.dev/v1alpha1
kind: Model
metadata: {name: fast}
spec: {provider: openaiCompatible, model: scripted, endpoint: 'ENDPOINT'}
---
kind: Agent
metadata: {name: helper}
spec: {instructions: Be brief., model: fast}
";

    async fn start(folder: &Path, endpoint: &str, more: &[&str]) -> (Child, String, String) {
        let spec = folder.join("spec.yaml");
        std::fs::write(&spec, SPEC.replace("ENDPOINT", endpoint)).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_roadstead-engine"))
            .args(["run", "--listen", "127.0.0.1:0", "--spec"])
            .arg(&spec)
            .arg("--state")
            .arg(folder.join("state"))
            .args(more)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = lines.next_line().await.expect("readable").expect("a line");
        let url = first.rsplit(' ').next().expect("an address").to_owned();
        let second = if more.is_empty() {
            lines.next_line().await.expect("readable")
        } else {
            None
        };
        (child, url, second.unwrap_or_default())
    }

    #[tokio::test]
    async fn loopback_without_a_token_keeps_pages_out() {
        let model = ModelServer::start(Script::default()).await.expect("a model");
        let folder = tempfile::tempdir().expect("a folder");
        let (_engine, url, note) = start(folder.path(), &model.openai_url(), &[]).await;
        assert!(note.contains("loopback only"), "{note}");
        let card = || http().get(format!("{url}/.well-known/agent-card.json"));
        assert_eq!(status(card()).await, StatusCode::OK);
        assert_eq!(
            status(card().header("host", "evil.example")).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            status(card().header("origin", "https://evil.example")).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            status(card().header("origin", "null")).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            status(card().header("origin", "http://localhost:3000")).await,
            StatusCode::OK
        );
        assert_eq!(
            status(card().bearer_auth("whatever")).await,
            StatusCode::UNAUTHORIZED
        );
    }

    #[tokio::test]
    async fn a_token_file_is_asked_for() {
        let model = ModelServer::start(Script::default()).await.expect("a model");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "0123456789abcdef\n").expect("written");
        let more = ["--token-file", file.to_str().expect("text")];
        let (_engine, url, _) = start(folder.path(), &model.openai_url(), &more).await;
        let card = || http().get(format!("{url}/.well-known/agent-card.json"));
        assert_eq!(status(card()).await, StatusCode::UNAUTHORIZED);
        assert_eq!(
            status(card().bearer_auth("0123456789abcdef")).await,
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn other_addresses_need_a_token_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = folder.path().join("spec.yaml");
        std::fs::write(&spec, SPEC).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_roadstead-engine"))
            .args(["run", "--listen", "0.0.0.0:0", "--spec"])
            .arg(&spec)
            .arg("--state")
            .arg(folder.path().join("state"))
            .output()
            .await
            .expect("run");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("without --token-file only a loopback address"),
            "{said}"
        );
    }
}

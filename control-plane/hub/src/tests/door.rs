//! What answers without a token: `/livez` and `/readyz`, and nothing else of what the hub really serves.

use super::World;
use crate::certificate::tests as certificate;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use roadstead_store::testing::TestDatabase;
use serde_json::Value;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

const AGENT: &str = "/a2a/acme/support/helper";

/// Every path that the faces serve, with a method that it takes, and what somebody may try beside them.
const PATHS: &[(&str, &str)] = &[
    ("POST", "/graphql"),
    ("GET", "/graphql"),
    ("GET", "/graphql/ws/"),
    ("POST", "/graphql/ws"),
    ("POST", AGENT),
    ("GET", "/a2a/acme/support/helper/.well-known/agent-card.json"),
    ("POST", "/a2a/acme/support/helper/v1/message:send"),
    ("POST", "/a2a/acme/support/helper/message:stream"),
    ("GET", "/a2a/acme/support/helper/tasks"),
    ("GET", "/a2a/"),
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/livez/"),
    ("GET", "//livez"),
    ("GET", "/livez/../graphql"),
    ("GET", "/LIVEZ"),
    ("GET", "/readyz/x"),
    ("GET", "/favicon.ico"),
    ("GET", "/.well-known/openid-configuration"),
    ("TRACE", "/"),
    ("OPTIONS", "/graphql"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answers_without_a_token_but_livez_and_readyz() -> anyhow::Result<()> {
    let world = World::new().await?;
    for path in ["/livez", "/readyz"] {
        let response = world.get(path).await?;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.text().await?, "ok\n", "{path}");
    }
    for (method, path) in PATHS {
        for authorization in [None, Some("Bearer rst_nobody"), Some("Basic b3duZXI6eA==")] {
            let method = Method::from_bytes(method.as_bytes())?;
            let mut request = world.client.request(method.clone(), world.url(path)).body("{}");
            request = request.header("content-type", "application/json");
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            let response = request.send().await?;
            let status = response.status().as_u16();
            // After many wrong tokens from one address the answer is 429, which is no answer either.
            assert!(
                status == 401 || (status == 429 && authorization.is_some()),
                "{method} {path} {authorization:?}: {status}"
            );
            let body: Value = serde_json::from_str(&response.text().await?).unwrap_or_default();
            if method != Method::TRACE {
                assert!(
                    body["code"] == "UNAUTHENTICATED" || body["code"] == "LIMIT",
                    "{path}: {body}"
                );
            }
            assert!(body.get("data").is_none(), "{body}");
        }
    }
    // The door itself works: with a token the same path answers.
    let asked = world
        .graphql("{ viewer { tenant } }", &Value::Null)
        .send()
        .await?;
    assert_eq!(asked.status(), 200);
    world.hub.stop().await;
    Ok(())
}

async fn socket(address: SocketAddr) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/graphql/ws").into_client_request()?;
    let protocol = "graphql-transport-ws".parse()?;
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let stream = TcpStream::connect(address).await?;
    Ok(client_async(request, stream).await?.0)
}

/// What a socket hears after these messages: texts, and the code of its close.
async fn heard(address: SocketAddr, messages: &[&str]) -> anyhow::Result<(Vec<String>, Option<u16>)> {
    let mut socket = socket(address).await?;
    for message in messages {
        socket.send(Message::text(*message)).await?;
    }
    let mut texts = Vec::new();
    let listen = async {
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Text(text)) => texts.push(text.to_string()),
                Ok(Message::Close(frame)) => return frame.map(|frame| u16::from(frame.code)),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        None
    };
    let code = tokio::time::timeout(Duration::from_secs(20), listen).await?;
    Ok((texts, code))
}

/// A browser cannot set headers on a socket, so the upgrade itself is open; nothing comes through it before a token has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s22_a_socket_without_a_token_hears_nothing() -> anyhow::Result<()> {
    let world = World::new().await?;
    let address = world.hub.address;
    let subscribe = r#"{"type": "subscribe", "id": "1", "payload": {"query":
        "subscription { agentLogs(project: \"support\", name: \"helper\") { line } }"}}"#;
    let (texts, code) = heard(address, &[subscribe]).await?;
    assert_eq!((texts, code), (Vec::new(), Some(4401)));
    for payload in [
        "{}",
        r#"{"authorization": "Bearer rst_nobody"}"#,
        r#"{"authorization": 3}"#,
    ] {
        let init = format!(r#"{{"type": "connection_init", "payload": {payload}}}"#);
        let (texts, code) = heard(address, &[&init, subscribe]).await?;
        assert_eq!(texts, Vec::<String>::new(), "{payload}");
        assert!(matches!(code, Some(4400..=4403)), "{payload}: {code:?}");
    }
    let init = format!(
        r#"{{"type": "connection_init", "payload": {{"authorization": "Bearer {}"}}}}"#,
        world.token
    );
    let mut good = socket(address).await?;
    good.send(Message::text(init)).await?;
    let ack = tokio::time::timeout(Duration::from_secs(20), good.next()).await?;
    assert!(matches!(ack, Some(Ok(Message::Text(text))) if text.contains("connection_ack")));
    drop(good);
    world.hub.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_a_port_of_their_own_with_nothing_else_on_it() -> anyhow::Result<()> {
    let world = World::new().await?;
    let Some(address) = world.hub.metrics_address else {
        panic!("it was asked for")
    };
    assert_ne!(address, world.hub.address);
    let ask = async |path: &str| world.client.get(format!("http://{address}{path}")).send().await;
    assert_eq!(ask("/metrics").await?.status(), 200);
    for path in ["/", "/graphql", "/livez", AGENT] {
        assert_eq!(ask(path).await?.status(), 404, "{path}");
    }
    world.hub.stop().await;
    Ok(())
}

/// A client that trusts this certificate alone.
fn trusting(certificate: &[u8]) -> anyhow::Result<reqwest::Client> {
    let root = reqwest::Certificate::from_der(certificate)?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
    Ok(client.pool_max_idle_per_host(0).build()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_is_served_over_tls_and_a_renewed_certificate_is_taken_up() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let first = certificate::write(folder.path(), "one")?;
    let files = certificate::files(folder.path());
    let world = World::with(TestDatabase::sqlite(), None, Some(files)).await?;
    let url = |path: &str| format!("https://localhost:{}{path}", world.hub.address.port());
    let live = trusting(&first)?.get(url("/livez")).send().await?;
    assert_eq!(live.status(), 200);
    assert_eq!(live.headers()["strict-transport-security"], "max-age=31536000");
    let asked = trusting(&first)?
        .post(url("/graphql"))
        .bearer_auth(&world.token)
        .header("content-type", "application/json")
        .body(r#"{"query": "{ viewer { tenant } }"}"#);
    assert_eq!(asked.send().await?.status(), 200);
    let plain = world.get("/livez").await?;
    assert_eq!(plain.status(), 400);
    assert!(plain.text().await?.contains("https://"));
    let second = certificate::write(folder.path(), "two")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while trusting(&second)?.get(url("/livez")).send().await.is_err() {
        anyhow::ensure!(Instant::now() < deadline, "the new certificate is not taken up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    trusting(&first)?
        .get(url("/livez"))
        .send()
        .await
        .expect_err("the one before");
    world.hub.stop().await;
    Ok(())
}

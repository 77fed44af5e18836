//! Proxies of the environment (S30). The HTTP client reads the process's own environment, so the program itself runs.

use super::{Hub, User, page, server::Stream::Events, server::TOKEN};
use serde_json::json;
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Takes every connection, remembers the first words and refuses.
struct Proxy {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let words = Arc::clone(&heard);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let said = head(connection);
                words.lock().unwrap().push(said);
            }
        });
        Self { url, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn head(mut connection: TcpStream) -> String {
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while !said.windows(4).any(|w| w == b"\r\n\r\n") {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => said.extend_from_slice(&buffer[..length]),
        }
    }
    let _ =
        connection.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    String::from_utf8_lossy(&said).into_owned()
}

async fn program(user: &User, proxy: &Proxy, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead"));
    command.args(arguments).env("ROADSTEAD_CONFIG", user.config());
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env(name, &proxy.url).env(name.to_uppercase(), &proxy.url);
    }
    for name in ["no_proxy", "NO_PROXY", "REQUEST_METHOD"] {
        command.env_remove(name);
    }
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

fn context(server: &str, more: &str) -> User {
    User::with(&format!(
        "[[contexts]]\nname = \"x\"\nserver = \"{server}\"\ntenant = \"t\"\nproject = \"p\"\ntoken = \"{TOKEN}\"\n{more}"
    ))
}

#[tokio::test]
async fn s30_a_proxy_hears_nothing_of_what_goes_to_this_machine() {
    let (hub, proxy) = (Hub::start().await, Proxy::start());
    let agent = json!({"id": "agt_1", "project": "support", "name": "a", "revision": 1, "placements": [],
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"});
    hub.graphql("Clusters", json!({"clusters": page(&[])}));
    hub.graphql("AgentByName", json!({"agentByName": agent}));
    hub.lines(vec![
        json!({"cluster": "c", "time": null, "line": "from the log"}),
    ]);
    hub.a2a(
        "SendStreamingMessage",
        Events(vec![json!({"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": [{"text": "from the agent"}]}})]),
    );
    let user = User::of(&hub);
    // GraphQL, WebSocket and A2A.
    for (arguments, words) in [
        (&["clusters"][..], ""),
        (&["logs", "a"], "from the log"),
        (&["chat", "a", "-m", "hi"], "from the agent"),
    ] {
        let output = program(&user, &proxy, arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(words),
            "{output:?}"
        );
    }
    assert_eq!(
        hub.paths(),
        ["/graphql", "/graphql", "/graphql/ws", "/a2a/local/support/a"]
    );
    assert_eq!(proxy.heard(), Vec::<String>::new());
}

#[tokio::test]
async fn s30_a_proxy_carries_tls_and_never_sees_the_token() {
    let proxy = Proxy::start();
    // This proxy does hear what goes through it, or the test above would say nothing.
    let output = program(&context("https://hub.invalid", ""), &proxy, &["clusters"]).await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let heard = proxy.heard();
    assert!(
        heard.iter().any(|h| h.starts_with("CONNECT hub.invalid:443 ")),
        "{heard:?}"
    );
    assert!(!heard.concat().contains(TOKEN), "{heard:?}");

    // Plain text to another machine, where the context asks for it: never by a proxy.
    let before = heard.len();
    let output = program(&context("http://hub.invalid", ""), &proxy, &["clusters"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = program(
        &context("http://hub.invalid", "plain_http = true\n"),
        &proxy,
        &["clusters"],
    )
    .await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(proxy.heard().len(), before);
}

//! The toolbox against real MCP servers: over HTTP in this process, and as programs.

#[path = "support/tool_server.rs"]
mod tool_server;

use http::StatusCode;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use roadstead_contract::{
    bundle::Bundle,
    control::SecretText,
    documents::{AgentSpec, ToolServerSpec},
};
use roadstead_engine::{
    model::HttpClients,
    secrets::Secrets,
    tools::{
        Listing, ResultPart, ToolError, ToolFactory as _, ToolRequest, ToolResult, ToolServers, Toolbox,
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tool_server::{Seen, ToolServer};

const TOKEN: &str = "canary-token-1";

fn bundle(server: Value, rule: Value) -> Bundle {
    let mut tool_use = json!({"server": "s"});
    tool_use
        .as_object_mut()
        .expect("an object")
        .extend(rule.as_object().expect("an object").clone());
    let agent: AgentSpec = serde_json::from_value(
        json!({"description": "d", "instructions": "i", "model": "m", "tools": [tool_use]}),
    )
    .expect("an agent");
    let spec: ToolServerSpec = serde_json::from_value(server).expect("a tool server");
    Bundle {
        project: "p".parse().expect("a name"),
        name: "a".parse().expect("a name"),
        uid: "u".to_owned(),
        generation: 1,
        agent,
        models: BTreeMap::new(),
        tool_servers: [("s".to_owned(), spec)].into(),
        prompts: BTreeMap::new(),
    }
}

fn servers() -> ToolServers {
    let guard = PathBuf::from(env!("CARGO_BIN_EXE_roadstead-engine"));
    ToolServers::new(Arc::new(HttpClients::default()), Some(guard))
}

fn secrets() -> Secrets {
    Secrets::new([("TOKEN".to_owned(), SecretText::new(TOKEN.to_owned()))].into())
}

fn toolbox(server: Value) -> Arc<dyn Toolbox> {
    servers()
        .load(&bundle(server, json!({"allow": ["*"]})), &secrets())
        .expect("it loads")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn request(tool: &str, arguments: Value) -> ToolRequest {
    ToolRequest {
        server: "s".to_owned(),
        tool: tool.to_owned(),
        arguments,
        idempotency_key: "key-7".to_owned(),
        deadline: soon(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

async fn call(toolbox: &Arc<dyn Toolbox>, tool: &str, arguments: Value) -> Result<ToolResult, ToolError> {
    toolbox
        .call(request(tool, arguments), CancellationToken::new())
        .await
}

fn text(result: &ToolResult) -> String {
    let texts = result.parts.iter().map(|part| match part {
        ResultPart::Text { text } => text.clone(),
        other => format!("{other:?}"),
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn names(listing: &Listing) -> Vec<&str> {
    listing.tools.iter().map(|t| t.name.as_str()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

/// A server over HTTP; `legacy` speaks 2025-11-25 with sessions only.
async fn http_server(legacy: bool) -> (String, Arc<Seen>, CancellationToken) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
    let seen = Arc::new(Seen::default());
    let stop = CancellationToken::new();
    serve(listener, legacy, Arc::clone(&seen), stop.clone());
    (url, seen, stop)
}

fn serve(listener: tokio::net::TcpListener, legacy: bool, seen: Arc<Seen>, stop: CancellationToken) {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(legacy)
        .with_json_response(!legacy)
        .with_cancellation_token(stop.clone());
    let service = StreamableHttpService::new(
        move || Ok(ToolServer::new(Arc::clone(&seen))),
        LocalSessionManager::default().into(),
        config,
    );
    let mut app = axum::Router::new().nest_service("/mcp", service);
    if legacy {
        // As servers of that time answer what they do not know: with a bare 400.
        app = app.layer(axum::middleware::from_fn(
            |request: axum::extract::Request, next: axum::middleware::Next| async move {
                let (parts, body) = request.into_parts();
                let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
                if String::from_utf8_lossy(&bytes).contains("server/discover") {
                    return axum::response::IntoResponse::into_response((
                        StatusCode::BAD_REQUEST,
                        "Bad Request",
                    ));
                }
                next.run(axum::extract::Request::from_parts(parts, bytes.into()))
                    .await
            },
        ));
    }
    tokio::spawn(async move {
        let stopped = async move { stop.cancelled().await };
        axum::serve(listener, app).with_graceful_shutdown(stopped).await
    });
}

fn http(url: &str) -> Value {
    json!({"http": {"url": url, "headers": {"authorization": {"env": "TOKEN"}}}})
}

/// The tests' tool server as a program: this very test binary, with [`serve_as_a_program`] as the only test. What the
/// test harness prints goes away; the server's output is file descriptor 3.
fn stdio() -> Value {
    let test = std::env::current_exe().expect("the test's own path");
    let script = "exec \"$0\" --ignored --exact serve_as_a_program 3>&1 >/dev/null";
    json!({"stdio": {"command": ["sh", "-c", script, test],
        "env": {"TOKEN": {"env": "TOKEN"}, "LANG": "C.UTF-8"}}})
}

#[test]
#[ignore = "is the program that other tests start"]
fn serve_as_a_program() {
    use rmcp::ServiceExt as _;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        eprintln!("tool server started");
        let output = tokio::fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/fd/3")
            .await
            .unwrap();
        let server = ToolServer::new(Arc::default());
        let service = server.serve((tokio::io::stdin(), output)).await.unwrap();
        service.waiting().await.unwrap();
    });
    // Reading standard input holds a thread that nothing can end.
    std::process::exit(0);
}

async fn every_transport() -> Vec<(&'static str, Value, CancellationToken)> {
    let (modern, _, stop_modern) = http_server(false).await;
    let (legacy, _, stop_legacy) = http_server(true).await;
    vec![
        ("modern", http(&modern), stop_modern),
        ("legacy", http(&legacy), stop_legacy),
        ("stdio", stdio(), CancellationToken::new()),
    ]
}

#[tokio::test]
async fn tools_are_listed_and_called_over_every_transport() {
    for (name, server, _stop) in every_transport().await {
        let toolbox = toolbox(server);
        let listing = toolbox.list(soon()).await;
        assert_eq!(listing.unavailable, [], "{name}");
        let add = listing.tools.iter().find(|t| t.name == "add").expect("add");
        assert!(
            add.read_only && add.idempotent && !add.trusted && !add.pinned,
            "{name}"
        );
        assert_eq!(add.input_schema["required"], json!(["a", "b"]), "{name}");
        let result = call(&toolbox, "add", json!({"a": 2, "b": 40})).await.expect(name);
        assert_eq!(text(&result), "{\"sum\":42}", "{name}");
        let result = call(&toolbox, "picture", json!({})).await.expect(name);
        assert_eq!(result.parts.len(), 2, "{name}");
        assert!(matches!(&result.parts[1], ResultPart::Blob { media_type, .. } if media_type == "image/png"));
    }
}

#[tokio::test]
async fn failures_keep_their_meaning() {
    for (name, server, _stop) in every_transport().await {
        let toolbox = toolbox(server);
        let wrong = call(&toolbox, "wrong", json!({})).await.expect(name);
        assert!(wrong.is_error && text(&wrong) == "no such file", "{name}");
        let failed = call(&toolbox, "fail", json!({})).await.expect(name);
        assert!(
            failed.is_error && text(&failed).contains("the disk is full"),
            "{name}"
        );
        let refused = call(&toolbox, "add", json!({"a": i64::MAX, "b": 1})).await;
        assert!(
            matches!(refused, Err(ToolError::Refused(_))),
            "{name} {refused:?}"
        );
        let unknown = call(&toolbox, "nothing", json!({})).await;
        assert!(
            matches!(unknown, Err(ToolError::Refused(_))),
            "{name} {unknown:?}"
        );
        let big = call(&toolbox, "big", json!({})).await.expect(name);
        assert!(big.is_error && text(&big).contains("Ask for less"), "{name}");
    }
}

#[tokio::test]
async fn calls_carry_key_trace_and_headers() {
    let (url, _, _stop) = http_server(false).await;
    let told = text(&call(&toolbox(http(&url)), "beside", json!({})).await.unwrap());
    assert!(
        told.contains("\"dev.roadstead/idempotencyKey\":\"key-7\""),
        "{told}"
    );
    assert!(
        told.contains("traceparent=00-0af7651916cd43dd8448eb211c80319c"),
        "{told}"
    );
    assert!(told.contains(&format!("authorization={TOKEN}")), "{told}");
    let told = text(&call(&toolbox(stdio()), "beside", json!({})).await.unwrap());
    assert!(
        told.contains("key-7") && told.contains("\"traceparent\":\"00-0af"),
        "{told}"
    );
}

#[tokio::test]
async fn s79_only_allowed_tools_are_listed_and_called() {
    let (url, seen, _stop) = http_server(false).await;
    let servers = servers();
    let bundle = bundle(http(&url), json!({"allow": ["add"]}));
    let toolbox = servers.load(&bundle, &secrets()).unwrap();
    assert_eq!(names(&*toolbox.list(soon()).await), ["add"]);
    let refused = call(&toolbox, "slow", json!({"ms": 1})).await;
    assert!(matches!(refused, Err(ToolError::NotSent(_))), "{refused:?}");
    let mut other = request("add", json!({"a": 1, "b": 1}));
    other.server = "t".to_owned();
    let refused = toolbox.call(other, CancellationToken::new()).await;
    assert!(matches!(refused, Err(ToolError::NotSent(_))), "{refused:?}");
    assert_eq!(seen.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tools_are_listed_once_and_shared_by_revisions() {
    let (url, seen, _stop) = http_server(false).await;
    let servers = servers();
    let first = servers
        .load(&bundle(http(&url), json!({"allow": ["*"]})), &secrets())
        .unwrap();
    let listing = first.list(soon()).await;
    until("the stream of changes opens", || {
        seen.lists.load(Ordering::SeqCst) > 0
    })
    .await;
    for _ in 0..20 {
        assert_eq!(names(&*first.list(soon()).await), names(&listing));
    }
    let second = servers
        .load(&bundle(http(&url), json!({"allow": ["add"]})), &secrets())
        .unwrap();
    assert_eq!(names(&*second.list(soon()).await), ["add"]);
    // Once at first, and once more when the stream of changes is open.
    assert!(seen.lists.load(Ordering::SeqCst) <= 2);
    assert!(Arc::ptr_eq(&first.list(soon()).await, &first.list(soon()).await));
}

#[tokio::test]
async fn s80_a_changed_description_is_seen_and_has_another_digest() {
    for (name, mut server, _stop) in every_transport().await {
        server["pin"] = json!("tools");
        let toolbox = toolbox(server);
        let digest = |listing: &Listing| {
            let add = listing.tools.iter().find(|t| t.name == "add").expect("add");
            assert!(add.pinned);
            add.digest.clone()
        };
        let before = digest(&*toolbox.list(soon()).await);
        if name == "modern" {
            // Changes are told on a stream that opens beside the first calls; without it they show after minutes.
            continue;
        }
        call(&toolbox, "change", json!({})).await.expect(name);
        let changed = tokio::time::timeout(Duration::from_secs(20), async {
            while digest(&*toolbox.list(soon()).await) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        changed
            .await
            .unwrap_or_else(|_| panic!("{name}: the change is seen"));
    }
}

#[tokio::test]
async fn cancelling_returns_at_once_and_tells_the_server() {
    for legacy in [false, true] {
        let (url, seen, _stop) = http_server(legacy).await;
        let toolbox = toolbox(http(&url));
        toolbox.list(soon()).await;
        let cancel = CancellationToken::new();
        let began = tokio::spawn({
            let (toolbox, cancel) = (Arc::clone(&toolbox), cancel.clone());
            async move { toolbox.call(request("slow", json!({"ms": 60_000})), cancel).await }
        });
        until("the call arrives", || seen.calls.load(Ordering::SeqCst) == 1).await;
        let at = Instant::now();
        cancel.cancel();
        let result = began.await.unwrap();
        assert!(at.elapsed() < Duration::from_millis(100), "{:?}", at.elapsed());
        assert!(matches!(result, Err(ToolError::Unknown(_))), "{result:?}");
        until("the server is told", || {
            seen.cancelled.load(Ordering::SeqCst) == 1
        })
        .await;
    }
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let result = toolbox(stdio())
        .call(request("add", json!({"a": 1, "b": 1})), cancelled)
        .await;
    assert!(matches!(result, Err(ToolError::NotSent(_))), "{result:?}");
}

#[tokio::test]
async fn deadlines_end_calls() {
    for (name, mut server, _stop) in every_transport().await {
        let key = if name == "stdio" { "stdio" } else { "http" };
        server[key]["timeout"] = json!("300ms");
        let toolbox = toolbox(server);
        toolbox.list(soon()).await;
        let result = call(&toolbox, "slow", json!({"ms": 60_000})).await;
        assert!(matches!(result, Err(ToolError::Unknown(_))), "{name} {result:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_down_holds_up_nobody_and_comes_back() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let toolbox = toolbox(http(&format!("http://{address}/mcp")));
    let listing = toolbox.list(soon()).await;
    assert_eq!(
        (listing.tools.len(), listing.unavailable[0].server.as_str()),
        (0, "s")
    );
    assert!(!listing.unavailable[0].reason.contains(TOKEN));
    let failed = call(&toolbox, "add", json!({"a": 1, "b": 1})).await;
    assert!(matches!(failed, Err(ToolError::NotSent(_))), "{failed:?}");
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    serve(listener, false, Arc::default(), CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(20), async {
        while call(&toolbox, "add", json!({"a": 1, "b": 1})).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it comes back");
}

#[tokio::test]
async fn a_silent_server_is_unavailable_at_the_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let toolbox = toolbox(http(&format!("http://{}/mcp", listener.local_addr().unwrap())));
    let began = Instant::now();
    let listing = toolbox.list(began + Duration::from_millis(200)).await;
    assert_eq!(listing.unavailable.len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_program_that_crashes_is_told_and_started_again() {
    let toolbox = toolbox(stdio());
    let crashed = call(&toolbox, "crash", json!({})).await;
    let Err(ToolError::Unknown(why)) = &crashed else {
        panic!("{crashed:?}")
    };
    assert!(!why.contains(TOKEN), "{why}");
    tokio::time::timeout(Duration::from_secs(20), async {
        while call(&toolbox, "add", json!({"a": 1, "b": 1})).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is started again");
}

#[tokio::test]
async fn a_program_has_a_clean_environment() {
    let toolbox = toolbox(stdio());
    let told = text(&call(&toolbox, "environment", json!({})).await.unwrap());
    let (_, names) = told.split_once(' ').unwrap();
    // The shell in between sets some of its own.
    let own = ["PWD", "OLDPWD", "SHLVL", "_"];
    let mut names: Vec<&str> = names.split(',').filter(|name| !own.contains(name)).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "PATH", "TOKEN"]);
}

fn alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[tokio::test]
async fn a_program_ends_with_its_last_revision_and_takes_its_children_along() {
    for guarded in [true, false] {
        let servers = if guarded {
            servers()
        } else {
            ToolServers::new(Arc::default(), None)
        };
        let bundle = bundle(stdio(), json!({"allow": ["*"]}));
        let toolbox = servers.load(&bundle, &secrets()).unwrap();
        let told = text(&call(&toolbox, "environment", json!({})).await.unwrap());
        let program = told.split(' ').next().unwrap().to_owned();
        let grandchild = text(&call(&toolbox, "grandchild", json!({})).await.unwrap());
        assert!(alive(&program) && alive(&grandchild));
        drop(toolbox);
        until("both end", || !alive(&program) && !alive(&grandchild)).await;
    }
}

#[tokio::test]
async fn the_guard_ends_everything_when_its_engine_is_gone() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    // Neither the shell nor its child reads its input: only the guard can end them.
    let mut guard = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead-engine"))
        .args(["tool-guard", "sh", "-c", "sleep 1000 & echo $! $$; wait"])
        .process_group(0)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(guard.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let pids: Vec<&str> = line.split(' ').collect();
    assert!(pids.iter().all(|pid| alive(pid)), "{line}");
    // What the kernel does when an engine is killed: its end of the pipe closes.
    drop(guard.stdin.take());
    tokio::time::timeout(Duration::from_secs(20), guard.wait())
        .await
        .unwrap()
        .unwrap();
    until("all are gone", || !pids.iter().any(|pid| alive(pid))).await;
}

#[tokio::test]
async fn the_guard_sees_its_engines_end_while_nobody_reads_what_it_passes_on() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let mut guard = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead-engine"))
        .args(["tool-guard", "sh", "-c", "echo $$; exec sleep 1000"])
        .process_group(0)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(guard.stdout.take().unwrap()).lines();
    let program = lines.next_line().await.unwrap().unwrap();
    let mut input = guard.stdin.take().unwrap();
    // Until both pipes are full: more goes into neither.
    let words = vec![b'x'; 256 * 1024];
    let written = tokio::time::timeout(Duration::from_secs(2), input.write_all(&words)).await;
    assert!(written.is_err(), "somebody read all of it");
    assert!(alive(&program));
    drop(input);
    tokio::time::timeout(Duration::from_secs(20), guard.wait())
        .await
        .expect("the guard ends")
        .unwrap();
    until("the program is gone", || !alive(&program)).await;
}

#[tokio::test]
async fn programs_that_cannot_start_say_why() {
    let table = [
        (
            json!({"stdio": {"command": ["no-such-program-7"]}}),
            "no-such-program-7",
        ),
        (
            json!({"stdio": {"command": ["sh", "-c", "echo broken pipe dream >&2; exit 1"]}}),
            "broken pipe dream",
        ),
        (
            json!({"stdio": {"command": ["sh", "-c", "echo $TOKEN >&2; exit 1"], "env": {"TOKEN": {"env": "TOKEN"}}}}),
            "[redacted]",
        ),
    ];
    for (server, expected) in table {
        let listing = toolbox(server).list(soon()).await;
        let reason = &listing.unavailable[0].reason;
        assert!(reason.contains(expected) || reason.contains("ended"), "{reason}");
        assert!(!reason.contains(TOKEN), "{reason}");
    }
}

#[tokio::test]
async fn packages_without_their_runner_say_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let server = json!({"stdio": {"command": ["uvx", "x"], "env": {"PATH": folder.path()}}});
    let reason = toolbox(server).list(soon()).await.unavailable[0].reason.clone();
    assert!(
        reason.contains("expected the program uvx") && reason.contains("install"),
        "{reason}"
    );
}

/// Ends without a word when the first message is not `initialize`, as servers of older protocols may.
const OLD_SERVER: &str = r#"
import json, sys
def answer(id, result): print(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), flush=True)
first = json.loads(sys.stdin.readline())
if first["method"] != "initialize": sys.exit(1)
answer(first["id"], {"protocolVersion": first["params"]["protocolVersion"], "capabilities": {"tools": {}},
    "serverInfo": {"name": "old", "version": "1"}})
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "tools/list":
        answer(message["id"], {"tools": [{"name": "old", "inputSchema": {"type": "object"}}]})
"#;

#[tokio::test]
async fn a_server_that_knows_the_older_greeting_alone_is_greeted_so() {
    let toolbox = toolbox(json!({"stdio": {"command": ["python3", "-c", OLD_SERVER]}}));
    let listing = toolbox.list(soon()).await;
    assert_eq!(names(&listing), ["old"], "{:?}", listing.unavailable);
}

/// A public server among the installed ones (`ROADSTEAD_TEST_TOOLS`, set by `tests/tools/install`).
fn public(command: &[&str]) -> Option<Arc<dyn Toolbox>> {
    let Some(tools) = std::env::var_os("ROADSTEAD_TEST_TOOLS") else {
        eprintln!("skipped: ROADSTEAD_TEST_TOOLS is not set");
        return None;
    };
    let path = std::env::var("PATH").expect("a PATH");
    let path = format!("{}:{path}", tools.to_string_lossy());
    Some(toolbox(
        json!({"stdio": {"command": command, "env": {"PATH": path}}}),
    ))
}

#[tokio::test]
async fn the_public_time_server_is_understood() {
    let Some(toolbox) = public(&["mcp-server-time"]) else {
        return;
    };
    let listing = toolbox.list(soon()).await;
    assert_eq!(
        names(&listing),
        ["get_current_time", "convert_time"],
        "{:?}",
        listing.unavailable
    );
    let result = call(&toolbox, "get_current_time", json!({"timezone": "UTC"}))
        .await
        .unwrap();
    assert!(!result.is_error && text(&result).contains("UTC"), "{result:?}");
    let wrong = call(&toolbox, "get_current_time", json!({"timezone": "Nowhere/Else"}))
        .await
        .unwrap();
    assert!(wrong.is_error, "{wrong:?}");
}

#[tokio::test]
async fn the_public_files_server_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    std::fs::write(folder.join("a.txt"), "seven\n").unwrap();
    let folder = folder.to_str().unwrap();
    let Some(toolbox) = public(&["mcp-server-filesystem", folder]) else {
        return;
    };
    let listing = toolbox.list(soon()).await;
    assert!(
        names(&listing).contains(&"read_text_file"),
        "{:?}",
        listing.unavailable
    );
    let read = |path: String| call(&toolbox, "read_text_file", json!({"path": path}));
    let result = read(format!("{folder}/a.txt")).await.unwrap();
    assert!(!result.is_error && text(&result).contains("seven"), "{result:?}");
    let outside = read("/etc/passwd".to_owned()).await.unwrap();
    assert!(
        outside.is_error && !text(&outside).contains("root:"),
        "{outside:?}"
    );
}

#[tokio::test]
async fn the_public_server_of_everything_is_understood() {
    let Some(toolbox) = public(&["mcp-server-everything", "stdio"]) else {
        return;
    };
    let listing = toolbox.list(soon()).await;
    assert!(names(&listing).contains(&"echo"), "{:?}", listing.unavailable);
    let result = call(&toolbox, "echo", json!({"message": "grüße"})).await.unwrap();
    assert!(text(&result).contains("grüße"), "{result:?}");
    let image = call(&toolbox, "get-tiny-image", json!({})).await.unwrap();
    assert!(
        image.parts.iter().any(|p| matches!(p, ResultPart::Blob { .. })),
        "{image:?}"
    );
    // It runs for seconds and can be cancelled.
    let mut long = request(
        "trigger-long-running-operation",
        json!({"duration": 30, "steps": 3}),
    );
    long.deadline = Instant::now() + Duration::from_millis(300);
    let result = toolbox.call(long, CancellationToken::new()).await;
    assert!(matches!(result, Err(ToolError::Unknown(_))), "{result:?}");
}

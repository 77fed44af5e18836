//! The official SDK of A2A 0.3 as a client: of an engine that runs alone, and of the hub's edge (S77).

use anyhow::{Context as _, Result, ensure};
use roadstead_end_to_end::{binary, dev::Dev, processes::Process, wait};
use std::{ffi::OsString, net::TcpListener, path::Path, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(60);
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/client.py");
const TRANSPORTS: [&str; 2] = ["JSONRPC", "HTTP+JSON"];

/// The Python that has the SDK; `None`, said aloud, where it is not installed.
fn python() -> Option<OsString> {
    let python = std::env::var_os("ROADSTEAD_TEST_A2A_PYTHON");
    if python.is_none() {
        assert!(
            std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
            "ROADSTEAD_TEST_A2A_PYTHON is not set"
        );
        eprintln!("skipped: the A2A SDK is not installed (make test-tools)");
    }
    python
}

async fn client(python: &OsString, url: &str, transport: &str, token: &str) -> Result<()> {
    let mut command = tokio::process::Command::new(python);
    command
        .args([CLIENT, url, transport])
        .env("TOKEN", token)
        .kill_on_drop(true);
    let output = tokio::time::timeout(2 * SOON, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout);
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim() == "ok",
        "{transport} at {url}: {said}\n{problem}"
    );
    Ok(())
}

/// A tool server of one tool; its address.
async fn tools(log: &Path) -> Result<(Process, String)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(binary("roadstead-tool-server"));
    command.args(["--listen", &address.to_string()]);
    let server = Process::start(&mut command, log)?;
    let connects = || async { tokio::net::TcpStream::connect(address).await.ok() };
    wait::until("the tool server", SOON, connects).await?;
    Ok((server, format!("http://{address}/mcp")))
}

/// An agent whose tool needs an approval.
fn documents(model: &str, tools: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: ToolServer\nmetadata: {{name: tools}}\nspec:\n  \
         http: {{url: \"{tools}\"}}\n---\n\
         apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: helper}}\nspec:\n  \
         instructions: Answer.\n  model: {model}\n  tools: [{{server: tools, allow: [echo], approve: [echo]}}]\n"
    )
}

#[tokio::test]
async fn s77_the_sdk_of_0_3_works_with_an_engine() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (_tools, tools) = tools(&path("tools.log")).await?;
    let model = Process::start(
        &mut Command::new(binary("roadstead-model-server")),
        &path("model.log"),
    )?;
    let found = || async {
        let said = model.output();
        said.lines()
            .find_map(|line| Some(format!("{}/v1", line.strip_prefix("listening on ")?)))
    };
    let model_url = wait::until("the model server", SOON, found).await?;
    let spec = format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: script}}\nspec:\n  \
         provider: openaiCompatible\n  model: script\n  endpoint: {model_url}\n---\n{}",
        documents("script", &tools)
    );
    let token = "0123456789abcdef";
    std::fs::write(path("agent.yaml"), spec)?;
    std::fs::write(path("token"), token)?;
    let mut command = Command::new(binary("roadstead-engine"));
    command.args(["run", "--listen", "127.0.0.1:0"]);
    for (option, name) in [
        ("--spec", "agent.yaml"),
        ("--state", "state"),
        ("--token-file", "token"),
    ] {
        command.arg(option).arg(path(name));
    }
    let engine = Process::start(&mut command, &path("engine.log"))?;
    let found = || async {
        let said = engine.output();
        said.split_whitespace()
            .find(|word| word.starts_with("http://127.0.0.1:"))
            .map(str::to_owned)
    };
    let url = wait::until("the engine", SOON, found).await?;
    for transport in TRANSPORTS {
        client(&python, &url, transport, token)
            .await
            .with_context(|| engine.output())?;
    }
    Ok(())
}

#[tokio::test]
async fn s77_the_sdk_of_0_3_works_through_the_hub() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    let mut dev = Dev::start().await?;
    let (_tools, tools) = tools(&dev.folder().join("tools.log")).await?;
    let documents = documents("default", &tools);
    dev.cli_with(&["apply", "-f", "-"], &documents)?.ok()?;
    // Until the agent runs.
    dev.cli(&["chat", "helper", "--message", "say Good morning."])?
        .ok()?;
    let url = format!("{}/a2a/local/default/helper", dev.api()?);
    let token = dev.token()?;
    for transport in TRANSPORTS {
        client(&python, &url, transport, &token).await?;
    }
    Ok(())
}

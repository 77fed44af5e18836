//! What other processes of the same user can read of an engine: not its memory, not its environment.

use crate::support::{Process, apply, bundle, send, text, trust};
use roadstead_contract::control::FromEngine;
use roadstead_model_server::{ModelServer, Script};
use roadstead_processes::{Id, Listing};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

/// Whoever runs the test, or, since root reads everything, somebody without rights.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

const NOBODY: u32 = 65534;

/// Whether that user can open a file of a process.
async fn opens(pid: i32, file: &str) -> bool {
    let mut shell = as_user(Path::new("/bin/sh"));
    shell.args(["-c", &format!(": < /proc/{pid}/{file}")]);
    shell.output().await.expect("a shell").status.success()
}

/// The engine's program and a folder for its state where that user gets at them.
fn place(folder: &Path) -> (PathBuf, PathBuf) {
    let (program, state) = (folder.join("roadstead-engine"), folder.join("state"));
    fs::copy(env!("CARGO_BIN_EXE_roadstead-engine"), &program).expect("copied");
    fs::create_dir(&state).expect("made");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("set");
        chown(&state, Some(NOBODY), Some(NOBODY)).expect("given");
    }
    (program, state)
}

/// The program of the engine's tool server, once it runs.
async fn tool_server(engine: i32) -> i32 {
    let is_sleep = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"/") && line.ends_with(b"sleep\x001000\0") && !line.starts_with(b"/tmp")
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let all = Listing::now()
                .expect("processes")
                .session(Id::of(engine).expect("it runs"));
            if let Some(found) = all.iter().find(|p| p.pid != engine && is_sleep(p.pid)) {
                return found.pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("a tool server")
}

#[tokio::test]
async fn memory_and_environment_are_hidden_from_the_same_user() {
    let model = ModelServer::start(Script::default()).await.expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let (program, state) = place(folder.path());
    let mut engine = Process::of(as_user(&program), &state).await;
    let pid = engine.child.id().expect("it runs").cast_signed();
    for file in ["environ", "mem", "maps", "auxv"] {
        assert!(!opens(pid, file).await, "{file}");
    }
    // What people look at stays.
    for file in ["stat", "status", "cmdline"] {
        assert!(opens(pid, file).await, "{file}");
    }
    let mut bundle = bundle(
        &model.openai_url(),
        json!({"tools": [{"server": "s", "allow": ["*"]}]}),
    );
    let server = serde_json::from_value(json!({"stdio": {"command": ["sleep", "1000"]}}));
    bundle
        .tool_servers
        .insert("s".to_owned(), server.expect("a tool server"));
    engine.tell(&apply(bundle, trust())).await;
    engine
        .until(|frame| matches!(frame, FromEngine::Applied { .. }))
        .await;
    let alice = engine.alice().await;
    let asked = tokio::spawn(async move { send(&alice, &text("say hi")).await });
    let program = tool_server(pid).await;
    assert!(
        opens(program, "environ").await,
        "the same user reads others: the checks above can fail, and programs inherit nothing"
    );
    asked.abort();
    engine.kill().await;
}

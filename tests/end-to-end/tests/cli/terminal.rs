//! A person at a terminal: the CLI under a pseudo-terminal of Python's.

use super::SOON;
use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    binary,
    dev::Dev,
    processes::{Process, descendants},
    wait,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a command under a terminal of its own and types each line when what comes before it is seen.
const PERSON: &str = r#"
import json, os, pty, select, sys, time
steps, argv = json.loads(sys.argv[1]), sys.argv[3:]
child, terminal = pty.fork()
if child == 0:
    os.execv(argv[0], argv)
seen, at, end = b"", 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if select.select([terminal], [], [], 0.5)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    while steps and (found := seen.find(steps[0][0].encode(), at)) >= 0:
        expected, typed = steps.pop(0)
        at = found + len(expected.encode())
        os.write(terminal, typed.encode())
else:
    os.kill(child, 9)
_, status = os.waitpid(child, 0)
sys.stdout.buffer.write(seen)
if steps:
    sys.exit(f"never seen: {steps[0][0]!r}")
sys.exit(max(os.waitstatus_to_exitcode(status), 0) if os.WIFEXITED(status) else 125)
"#;

struct Seen {
    code: Option<i32>,
    screen: String,
}

/// `(what is waited for, what is typed then)`.
fn at_terminal(dev: &Dev, arguments: &[&str], steps: &[(&str, &str)]) -> Result<Seen> {
    let output = Command::new("python3")
        .args([
            "-c",
            PERSON,
            &serde_json::to_string(steps)?,
            &SOON.as_secs().to_string(),
        ])
        .arg(binary("roadstead"))
        .args(arguments)
        .env("ROADSTEAD_CONFIG", dev.folder().join("config.toml"))
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .output()?;
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(complaint.is_empty(), "{complaint}\n{screen}");
    Ok(Seen {
        code: output.status.code(),
        screen,
    })
}

const ECHO: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                    instructions: Answer.\n  model: default\n";

#[tokio::test]
async fn s84_a_conversation_is_typed_and_obeys_no_model() -> Result<()> {
    let dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], ECHO)?.ok()?;
    // The scripted model repeats what it is told, clipboard, title and 8-bit codes included.
    let evil = "say harmless \u{9b}31m\u{9d}52;c;ZXZpbA==\u{9c}\u{202e} end\n";
    let seen = at_terminal(
        &dev,
        &["chat", "echo"],
        &[
            ("> ", "say Good morning.\n"),
            ("Good morning.\r\n> ", evil),
            ("end\r\n> ", "fail 401\n"),
            ("next: check endpoint", "\n"),
            ("> ", "\u{4}"),
            ("Go on with: roadstead chat default/echo --session", ""),
        ],
    )?;
    assert_eq!(seen.code, Some(0), "{}", seen.screen);
    // Once in the echo of what was typed, and not again in what the agent said.
    for active in ['\u{9b}', '\u{9d}', '\u{202e}'] {
        assert!(seen.screen.matches(active).count() <= 1, "{:?}", seen.screen);
    }
    assert!(
        seen.screen
            .contains("\\u{9b}31m\\u{9d}52;c;ZXZpbA==\\u{9c}\\u{202e}"),
        "{}",
        seen.screen
    );
    Ok(())
}

/// An answer that takes a minute, in a hundred pieces.
fn slowly() -> String {
    let words: Vec<String> = (0..100).map(|n| format!("word{n}")).collect();
    format!("think pondering\nchunks 100 600\nsay {}", words.join(" "))
}

#[tokio::test]
async fn ctrl_c_stops_an_answer_and_not_the_agent() -> Result<()> {
    let dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], ECHO)?.ok()?;
    let stops = [("word1", "\u{3}"), ("cancelling", "")];
    let seen = at_terminal(&dev, &["chat", "echo", "-m", &slowly()], &stops)?;
    assert_eq!(seen.code, Some(130), "{}", seen.screen);
    assert!(
        seen.screen.contains("the task canceled") && !seen.screen.contains("word99"),
        "{}",
        seen.screen
    );
    dev.cli(&["chat", "echo", "-m", "say hello"])?.ok()?;
    let runs = wait::until("both runs", SOON, || async {
        let runs = dev.cli(&["runs", "-o", "json"]).ok()?.json().ok()?;
        (runs.as_array()?.len() == 2).then_some(runs)
    });
    assert!(runs.await?.to_string().contains("CANCELED"));
    Ok(())
}

/// A terminal sends Ctrl-C to the whole group of processes in its foreground.
#[tokio::test]
async fn ctrl_c_where_dev_runs_ends_all_of_it_with_a_task_under_way() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], ECHO)?.ok()?;
    let mut chat = Command::new(binary("roadstead"));
    chat.args(["chat", "echo", "-m", &slowly()])
        .env("ROADSTEAD_CONFIG", dev.folder().join("config.toml"));
    let chat = Process::start(&mut chat, &dev.folder().join("chat.log"))?;
    let mut hub = dev.take_hub()?;
    wait::until("the task to be under way", SOON, || async {
        chat.output().contains("pondering").then_some(())
    })
    .await?;
    let children = descendants(hub.id())?;
    assert!(!children.is_empty(), "dev has an engine");
    let group = format!("-{}", hub.id());
    assert!(
        Command::new("kill")
            .args(["-INT", "--", &group])
            .status()?
            .success()
    );
    let status = wait::until("dev to end", SOON, || {
        let status = hub.exited();
        async move { status.ok().flatten() }
    });
    assert!(status.await?.success(), "{}", hub.output());
    for child in children {
        let state = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let runs = state
            .lines()
            .any(|line| line.starts_with("State:") && !line.contains('Z'));
        assert!(!runs, "left behind: {child}\n{state}");
    }
    drop(chat);
    Ok(())
}

/// The files example over a folder of the test's own.
fn notes(dev: &Dev) -> Result<(PathBuf, String)> {
    let folder = dev.folder().join("notes");
    std::fs::create_dir(&folder)?;
    let example = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/examples/files/agent.yaml"
    );
    let place = folder.to_str().context("a path of text")?;
    let text = std::fs::read_to_string(example)?.replace("/tmp/roadstead-examples/files", place);
    Ok((folder, text))
}

fn write(file: &Path, content: &str) -> String {
    format!(
        "call files/write_file {}",
        serde_json::json!({"path": file, "content": content})
    )
}

#[tokio::test]
async fn s82_a_file_is_written_after_a_yes_and_not_after_a_no() -> Result<()> {
    if super::tools().is_none() {
        return Ok(());
    }
    let dev = Dev::start().await?;
    let (folder, example) = notes(&dev)?;
    dev.cli_with(&["apply", "-f", "-"], &example)?.ok()?;

    let (denied, agreed) = (folder.join("denied.md"), folder.join("agreed.md"));
    let no = [
        ("The agent wants to call files/write_file", ""),
        ("\"content\": \"not this\"", ""),
        ("Approve this call? [yes/no] ", "maybe\n"),
        ("Approve this call? [yes/no] ", "no\n"),
        ("Why (the agent is told; may be empty)? ", "not today\n"),
    ];
    let seen = at_terminal(&dev, &["chat", "files", "-m", &write(&denied, "not this")], &no)?;
    assert!(!denied.exists(), "{}", seen.screen);
    assert!(seen.screen.contains("not today"), "{}", seen.screen);

    let yes = [("Approve this call? [yes/no] ", "yes\n")];
    let seen = at_terminal(&dev, &["chat", "files", "-m", &write(&agreed, "as agreed")], &yes)?;
    assert_eq!(seen.code, Some(0), "{}", seen.screen);
    assert_eq!(std::fs::read_to_string(&agreed)?, "as agreed", "{}", seen.screen);

    // Asked for in a script, answered later by a person.
    let later = folder.join("later.md");
    let waits = dev.cli(&["chat", "files", "-m", &write(&later, "later")])?;
    assert_eq!(waits.code, Some(9), "{waits:?}");
    let task = waits
        .err
        .rsplit("--task ")
        .next()
        .context("the task's id")?
        .trim()
        .to_owned();
    let seen = at_terminal(&dev, &["chat", "files", "--task", &task], &yes)?;
    assert_eq!(seen.code, Some(0), "{}", seen.screen);
    assert_eq!(std::fs::read_to_string(&later)?, "later");
    let again = dev.cli(&["chat", "files", "--task", &task, "-m", "and?"])?;
    assert_eq!(again.code, Some(6), "{again:?}");
    Ok(())
}

//! Documents, runs and logs: every verb against the real hub, in every format.

use super::laptop::ok;
use anyhow::{Context as _, Result};
use roadstead_end_to_end::{binary, dev::Dev, wait};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

fn agent(instructions: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: echo}}\nspec:\n  \
         instructions: {instructions}\n  model: default\n"
    )
}

fn prompt(text: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: style}}\nspec: {{text: {text}}}\n"
    )
}

fn text_of(dev: &Dev) -> Result<Value> {
    Ok(dev.cli(&["get", "prompt", "style", "-o", "json"])?.json()?["spec"]["text"].clone())
}

#[tokio::test]
async fn documents_are_written_shown_changed_and_deleted() -> Result<()> {
    let dev = Dev::start().await?;
    let set = format!("{}---\n{}", prompt("Be short."), agent("Answer."));
    // Neither of the two that only look writes.
    for look in ["--dry-run", "--diff"] {
        let looked = dev.cli_with(&["apply", "-f", "-", look], &set)?.ok()?;
        assert!(looked.contains("created (dry run)"), "{looked}");
        assert_eq!(dev.cli(&["get", "prompts", "-o", "json"])?.json()?, json!([]));
    }
    let applied = dev.cli_with(&["apply", "-f", "-", "-o", "json"], &set)?.json()?;
    let actions: Vec<&Value> = applied.as_array().unwrap().iter().map(|a| &a["action"]).collect();
    assert_eq!(actions, ["CREATED", "CREATED"], "{applied}");

    // What is read can be applied again, and changes nothing.
    for kind in ["prompts", "agents"] {
        let yaml = dev.cli(&["get", kind, "-o", "yaml"])?.ok()?;
        let again = dev.cli_with(&["apply", "-f", "-", "-o", "json"], &yaml)?.json()?;
        assert_eq!(again[0]["action"], "UNCHANGED", "{kind}: {again}");
    }
    let diff = dev
        .cli_with(&["apply", "-f", "-", "--diff"], &prompt("Be long."))?
        .ok()?;
    assert!(diff.contains("-  text: Be short.\n+  text: Be long.\n"), "{diff}");
    assert_eq!(text_of(&dev)?, "Be short.");

    dev.cli_with(&["apply", "-f", "-"], &prompt("Be long."))?.ok()?;
    let revisions = dev.cli(&["revisions", "prompt", "style"])?.ok()?;
    assert_eq!(revisions.lines().count(), 3, "{revisions}");
    let stale = dev.cli_with(
        &["apply", "-f", "-", "--expected-revision", "1"],
        &prompt("Mine."),
    )?;
    assert_eq!(stale.code, Some(6), "{stale:?}");
    assert!(
        stale.err.contains("  next: look at the current state"),
        "{stale:?}"
    );
    let back = dev.cli(&["rollback", "prompt", "style"])?.ok()?;
    assert_eq!(
        back,
        "Prompt default/style is at revision 3, with the content of revision 1\n"
    );
    assert_eq!(text_of(&dev)?, "Be short.");

    assert_eq!(
        dev.cli(&["delete", "prompt", "style"])?.ok()?,
        "Prompt default/style deleted\n"
    );
    let gone = dev.cli(&["get", "prompt", "style"])?;
    assert_eq!(gone.code, Some(4), "{gone:?}");
    assert!(
        gone.err.contains("next: roadstead get prompts --project default"),
        "{gone:?}"
    );
    let again = dev.cli(&["delete", "prompt", "style"])?;
    assert_eq!(again.code, Some(4), "{again:?}");
    // What something refers to stays.
    let used = dev.cli(&["delete", "model", "default"])?;
    assert!(matches!(used.code, Some(3 | 6)), "{used:?}");
    assert!(
        used.err.contains("echo") && used.err.contains("  next: "),
        "{used:?}"
    );
    Ok(())
}

#[tokio::test]
async fn agents_are_described_rolled_back_and_talked_to() -> Result<()> {
    let dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], &agent("Answer."))?.ok()?;
    dev.cli_with(&["apply", "-f", "-"], &agent("Answer at length."))?
        .ok()?;
    let back = dev.cli(&["rollback", "echo", "--to", "1"])?.ok()?;
    assert_eq!(
        back,
        "Agent default/echo is at revision 3, with the content of revision 1\n"
    );
    let ready = wait::until("the third revision to serve", super::SOON, || async {
        let described = dev
            .cli(&["describe", "agent", "echo", "-o", "json"])
            .ok()?
            .json()
            .ok()?;
        let running = &described["placements"][0]["running"];
        (running["phase"] == "READY" && running["revision"] == 3).then_some(described)
    });
    assert_eq!(ready.await?["object"]["json"]["spec"]["instructions"], "Answer.");
    let page = dev.cli(&["describe", "agent", "echo"])?.ok()?;
    for words in ["Status     ready", "local", "You may", "instructions: Answer."] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let table = dev.cli(&["get", "agents"])?.ok()?;
    assert!(
        table.lines().nth(1).context("a row")?.contains("ready"),
        "{table}"
    );
    let yaml = dev.cli(&["get", "agent", "echo", "-o", "yaml"])?.ok()?;
    assert!(yaml.contains("kind: Agent\n"), "{yaml}");

    let said = dev
        .cli(&["chat", "echo", "-m", "say one", "-o", "json"])?
        .json()?;
    assert_eq!(
        (&said["state"], &said["answer"]),
        (&json!("completed"), &json!("one")),
        "{said}"
    );
    let session = said["session"].as_str().unwrap();
    let more = dev
        .cli(&[
            "chat",
            "echo",
            "-m",
            "say two",
            "--session",
            session,
            "-o",
            "json",
        ])?
        .json()?;
    assert_eq!(more["session"], session);
    let failed = dev.cli(&["chat", "echo", "-m", "fail 401"])?;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(
        failed
            .err
            .contains("next: check endpoint, key and name of the agent's model"),
        "{failed:?}"
    );

    let runs = wait::until("three runs", super::SOON, || async {
        let runs = dev
            .cli(&["runs", "--agent", "echo", "-o", "json"])
            .ok()?
            .json()
            .ok()?;
        (runs.as_array()?.len() == 3).then_some(runs)
    });
    let runs = runs.await?;
    let id = runs[0]["id"].as_str().unwrap();
    let page = dev.cli(&["runs", "get", id])?.ok()?;
    assert!(
        page.contains("Outcome    failed") && page.contains("default/echo"),
        "{page}"
    );
    let yaml = dev.cli(&["runs", "get", id, "-o", "yaml"])?.ok()?;
    assert!(yaml.contains("outcome: FAILED\n"), "{yaml}");
    let table = dev.cli(&["runs", "--limit", "2"])?.ok()?;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(
        dev.cli(&["runs", "get", "run_00000000000000000000000000000000"])?
            .code,
        Some(4)
    );
    Ok(())
}

#[tokio::test]
async fn errors_say_what_to_do_next() -> Result<()> {
    let mut dev = Dev::start().await?;
    dev.cli_with(&["apply", "-f", "-"], &agent("Answer."))?.ok()?;
    dev.cli(&["chat", "echo", "-m", "say hello"])?.ok()?;
    let dangling = agent("Answer.").replace("model: default", "model: nowhere");
    for (arguments, input, code) in [
        (&["apply", "-f", "-"][..], dangling.as_str(), 3),
        (&["apply", "-f", "/no/such/file.yaml"], "", 2),
        (&["apply", "-f", "-"], "a: [", 3),
        (&["chat", "nobody", "-m", "hi"], "", 4),
        (&["chat", "echo", "-m", " "], "", 2),
        (&["chat", "echo", "--task", "none"], "", 4),
        (&["logs", "nobody"], "", 4),
        (&["describe", "prompt", "nobody"], "", 4),
        (&["rollback", "echo", "--to", "99"], "", 4),
        (&["runs", "get", "no-id"], "", 3),
        (&["explain", "agent.spec.no"], "", 4),
        (&["--context", "nowhere", "clusters"], "", 2),
    ] {
        let answer = dev.cli_with(arguments, input)?;
        assert_eq!(answer.code, Some(code), "{answer:?}");
        assert!(
            answer.err.contains("error: ") && answer.err.contains("\n  next: "),
            "{answer:?}"
        );
    }
    let mut hub = dev.take_hub()?;
    hub.kill()?;
    let away = dev.cli(&["get", "agents"])?;
    assert_eq!(away.code, Some(7), "{away:?}");
    assert!(
        away.err.contains("cannot be reached") && away.err.contains("next: check that the hub runs"),
        "{away:?}"
    );
    Ok(())
}

#[tokio::test]
async fn completion_scripts_are_what_shells_accept() -> Result<()> {
    let script = |shell: &str| -> Result<String> {
        let output = Command::new(binary("roadstead"))
            .args(["completion", shell])
            .output()?;
        Ok(ok(&output))
    };
    let mut checked = Vec::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = script(shell)?;
        // Not every machine has every shell; bash is there.
        let Ok(mut parser) = Command::new(shell)
            .arg("-n")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            continue;
        };
        parser.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
        let output = parser.wait_with_output()?;
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{shell}: {output:?}"
        );
        checked.push(shell);
    }
    assert!(checked.contains(&"bash"), "{checked:?}");
    // Bash completes with it: a verb, a verb's verb, a flag.
    let script = script("bash")?;
    for (line, expected) in [
        ("roadstead rollb", "rollback"),
        ("roadstead clusters app", "approve-deletes"),
        ("roadstead tokens create --tok", "--token-file"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let last = words.len() - 1;
        let program = format!(
            "{script}\nCOMP_WORDS=({}) COMP_CWORD={last}\n_roadstead roadstead {} {}\necho \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words[last],
            words[last - 1]
        );
        let output = Command::new("bash").args(["--norc", "-c", &program]).output()?;
        assert_eq!(ok(&output).trim(), expected, "{line}: {output:?}");
    }
    Ok(())
}

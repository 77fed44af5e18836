//! The examples of docs/examples, as they are, with their real MCP servers.

use anyhow::Result;
use roadstead_end_to_end::{dev::Dev, tools};
use std::{path::Path, process::Command};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples");
/// Where the documents say that the sample data is.
const DATA: &str = "/tmp/roadstead-examples";

fn sample_data() -> Result<()> {
    let made = Command::new(format!("{EXAMPLES}/setup")).output()?;
    anyhow::ensure!(made.status.success(), "{made:?}");
    Ok(())
}

#[tokio::test]
async fn files_are_read_and_nothing_is_written_without_a_yes() -> Result<()> {
    if tools().is_none() {
        return Ok(());
    }
    sample_data()?;
    let dev = Dev::start().await?;
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/files")])?.ok()?;
    let read = format!(r#"call files/read_text_file {{"path": "{DATA}/files/harbour.md"}}"#);
    let told = dev.cli(&["chat", "files", "--message", &read])?.ok()?;
    assert!(told.contains("North harbour"), "{told}");

    let note = format!("{DATA}/files/never-agreed-{}.md", std::process::id());
    let write = format!(r#"call files/write_file {{"path": "{note}", "content": "x"}}"#);
    let waits = dev.cli(&["chat", "files", "--message", &write])?;
    assert_eq!(waits.code, Some(9), "the task waits for a person: {waits:?}");
    assert!(!Path::new(&note).exists(), "written without a yes");

    let outside = r#"call files/read_text_file {"path": "/etc/passwd"}"#;
    let refused = dev.cli(&["chat", "files", "--message", outside])?.ok()?;
    assert!(!refused.contains("root:"), "{refused}");
    // S79: a tool that the server has and the agent was not given.
    let evil =
        format!(r#"evil files/move_file {{"source": "{DATA}/files/harbour.md", "destination": "{note}"}}"#);
    dev.cli(&["chat", "files", "--message", &evil])?;
    assert!(Path::new(&format!("{DATA}/files/harbour.md")).exists() && !Path::new(&note).exists());
    Ok(())
}

#[tokio::test]
async fn release_notes_come_from_a_real_repository() -> Result<()> {
    if tools().is_none() {
        return Ok(());
    }
    sample_data()?;
    let dev = Dev::start().await?;
    dev.cli(&["apply", "-f", &format!("{EXAMPLES}/release-notes")])?
        .ok()?;
    let log = format!(r#"call git/git_log {{"repo_path": "{DATA}/repository"}}"#);
    let told = dev.cli(&["chat", "release-notes", "--message", &log])?.ok()?;
    assert!(
        told.contains("Compute high water") && told.contains("Document the unit"),
        "{told}"
    );
    Ok(())
}

//! Operator verbs against the real hub.

use anyhow::Result;
use roadstead_end_to_end::dev::Dev;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;

fn cluster(dev: &Dev, name: &str) -> Result<Value> {
    let clusters = dev.cli(&["clusters", "-o", "json"])?.json()?;
    let found = clusters
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["name"] == name);
    Ok(found.cloned().unwrap_or(Value::Null))
}

#[tokio::test]
async fn clusters_come_and_go() -> Result<()> {
    let dev = Dev::start().await?;
    let table = dev.cli(&["clusters"])?.ok()?;
    assert!(
        table.contains("LAST SEEN") && table.contains("connected"),
        "{table}"
    );
    let file = dev.folder().join("edge-1.token");
    let file = file.to_str().unwrap();
    let create = [
        "clusters",
        "create",
        "edge-1",
        "--label",
        "region=eu",
        "--token-file",
        file,
    ];
    let made = dev.cli(&create)?;
    assert!(
        made.err.contains(&format!("--join-token-file {file}")),
        "{made:?}"
    );
    made.ok()?;
    let token = std::fs::read_to_string(file)?;
    assert_eq!(std::fs::metadata(file)?.permissions().mode() & 0o777, 0o600);
    let found = cluster(&dev, "edge-1")?;
    assert_eq!(
        (&found["state"], &found["labels"]),
        (&json!("NEVER_SEEN"), &json!({"region": "eu"})),
        "{found}"
    );
    // The name is taken; the file that would have held another token is gone again.
    let other = dev.folder().join("other.token");
    let again = dev.cli(&[
        "clusters",
        "create",
        "edge-1",
        "--token-file",
        other.to_str().unwrap(),
    ])?;
    assert_eq!((again.code, other.exists()), (Some(6), false), "{again:?}");
    assert!(again.err.contains("  next: "), "{again:?}");
    // A new token each time, alone on the output.
    let joined = dev.cli(&["clusters", "join", "edge-1"])?.ok()?;
    assert!(joined.lines().count() == 1 && joined.trim() != token, "{joined}");
    assert_eq!(
        dev.cli(&["clusters", "revoke", "edge-1"])?.ok()?,
        "0 certificates of edge-1 revoked\n"
    );
    assert_eq!(
        dev.cli(&["clusters", "delete", "edge-1"])?.ok()?,
        "cluster edge-1: deleted\n"
    );
    assert_eq!(cluster(&dev, "edge-1")?, Value::Null);
    assert_eq!(dev.cli(&["clusters", "join", "edge-1"])?.code, Some(4));
    Ok(())
}

#[tokio::test]
async fn a_token_is_good_for_its_role_until_it_is_revoked() -> Result<()> {
    let dev = Dev::start().await?;
    let file = dev.folder().join("viewer.token");
    let file = file.to_str().unwrap();
    let words = [
        "tokens", "create", "looker", "--role", "viewer", "--scope", "read", "--days", "1",
    ];
    dev.cli(&[&words[..], &["--token-file", file]].concat())?.ok()?;
    let contexts = dev.cli(&["context", "-o", "json"])?.json()?;
    let server = contexts[0]["server"].as_str().unwrap();
    let add = [
        "context",
        "add",
        "looker",
        "--server",
        server,
        "--tenant",
        "local",
        "--token-file",
        file,
    ];
    dev.cli(&add)?.ok()?;
    let prompt = "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: x}\nspec: {text: hi}\n";
    dev.cli(&["get", "prompts", "--context", "looker"])?.ok()?;
    let refused = dev.cli_with(&["apply", "-f", "-", "--context", "looker"], prompt)?;
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.err.contains("next: ask an administrator"), "{refused:?}");

    let listed = dev.cli(&["tokens", "-o", "json"])?.json()?;
    let looker = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "looker")
        .unwrap();
    let id = looker["id"].as_str().unwrap();
    dev.cli(&["tokens", "revoke", id])?.ok()?;
    let ended = dev.cli(&["get", "prompts", "--context", "looker"])?;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.err.contains("roadstead context add looker"), "{ended:?}");
    assert!(dev.cli(&["tokens"])?.ok()?.contains("revoked"));
    Ok(())
}

#[tokio::test]
async fn a_stolen_token_takes_what_it_made_with_it() -> Result<()> {
    let dev = Dev::start().await?;
    let contexts = dev.cli(&["context", "-o", "json"])?.json()?;
    let server = contexts[0]["server"].as_str().unwrap().to_owned();
    // A token made in `context`, and a context of the same name that uses it.
    let make = |context: &[&str], name: &str, role: &str| -> Result<String> {
        let file = dev.folder().join(format!("{name}.token")).display().to_string();
        let create = [
            "tokens",
            "create",
            name,
            "--role",
            role,
            "--scope",
            "admin",
            "--token-file",
            &file,
            "-o",
            "json",
        ];
        let made = dev.cli(&[&create[..], context].concat())?.json()?;
        let add = [
            "context",
            "add",
            name,
            "--server",
            &server,
            "--tenant",
            "local",
            "--token-file",
            &file,
        ];
        dev.cli(&add)?.ok()?;
        Ok(made["token"]["id"].as_str().unwrap().to_owned())
    };
    let stolen = make(&[], "stolen", "admin")?;
    make(&["--context", "stolen"], "hidden", "viewer")?;
    make(&[], "bystander", "viewer")?;
    let own = dev.cli(&["tokens", "revoke", &stolen, "--context", "stolen"])?;
    assert_eq!(own.code, Some(0), "one's own may be ended: {own:?}");
    assert!(own.out.contains("and 1 token that it issued"), "{own:?}");
    for (context, code) in [("stolen", 5), ("hidden", 5), ("bystander", 0)] {
        let asked = dev.cli(&["get", "prompts", "--context", context])?;
        assert_eq!(asked.code, Some(code), "{asked:?}");
    }
    // An old one is changed for a new one.
    let old = make(&[], "old", "admin")?;
    make(&["--context", "old"], "new", "admin")?;
    let refused = dev.cli(&["tokens", "revoke", &old, "--context", "new"])?;
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(refused.err.contains("--keep-issued"), "{refused:?}");
    dev.cli(&["tokens", "revoke", &old, "--keep-issued", "--context", "new"])?
        .ok()?;
    dev.cli(&["get", "prompts", "--context", "new"])?.ok()?;
    let audit = dev.cli(&["audit", "--limit", "100", "-o", "json"])?.ok()?;
    assert!(
        audit.contains(&format!("\"issued_by\": \"token:{stolen}\"")),
        "{audit}"
    );
    Ok(())
}

#[tokio::test]
async fn projects_hold_documents_and_the_audit_log_says_who_wrote_them() -> Result<()> {
    let dev = Dev::start().await?;
    assert_eq!(
        dev.cli(&["projects", "create", "web"])?.ok()?,
        "project web made\n"
    );
    assert_eq!(dev.cli(&["projects", "create", "web"])?.code, Some(6));
    assert!(dev.cli(&["projects"])?.ok()?.contains("web"));
    let prompt =
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: style}\nspec: {text: a secret}\n";
    dev.cli_with(&["apply", "-f", "-", "-p", "web"], prompt)?.ok()?;
    assert!(dev.cli(&["get", "prompts", "-A"])?.ok()?.contains("style"));
    let nowhere = dev.cli_with(&["apply", "-f", "-", "-p", "nowhere"], prompt)?;
    assert!(matches!(nowhere.code, Some(3 | 4)), "{nowhere:?}");
    assert!(nowhere.err.contains("  next: "), "{nowhere:?}");
    let audit = dev.cli(&["audit", "--limit", "3"])?.ok()?;
    assert_eq!(audit.lines().count(), 4, "{audit}");
    let records = dev.cli(&["audit", "-o", "json", "--limit", "100"])?.json()?;
    let text = records.to_string();
    assert!(text.contains("\"allow\"") && !text.contains("a secret"), "{text}");
    let sequence: Vec<u64> = records
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["sequence"].as_u64())
        .collect();
    assert!(
        sequence.is_sorted_by(|a, b| *a == b + 1),
        "newest first, without gaps: {sequence:?}"
    );
    Ok(())
}

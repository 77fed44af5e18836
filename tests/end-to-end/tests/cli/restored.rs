//! A hub whose database was put back from a backup: what was enrolled and written since waits for a person, who sees it
//! and decides with the CLI alone.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    wait,
};
use serde_json::Value;
use std::path::Path;

const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: NAME}\nspec: {model: default, \
                     instructions: TEXT}\n";

fn agent(name: &str, text: &str) -> String {
    AGENT.replace("NAME", name).replace("TEXT", text)
}

fn edge(apart: &Apart) -> Result<Value> {
    apart
        .cli
        .run(&["describe", "cluster", "edge", "-o", "json"])?
        .json()
}

async fn persisted(apart: &Apart) -> Result<()> {
    wait::until("everything on the cluster's disk", READY, || async {
        let cluster = edge(apart).ok()?;
        (cluster["persistedRevision"] == cluster["wantedRevision"]).then_some(())
    })
    .await
}

/// Puts the database of `backup` in the place of the one that is there. The hub is not running.
fn restore(folder: &Path, backup: &Path) -> Result<()> {
    for suffix in ["-wal", "-shm"] {
        let beside = folder.join(format!("hub.db{suffix}"));
        if beside.exists() {
            std::fs::remove_file(beside)?;
        }
    }
    std::fs::copy(backup, folder.join("hub.db"))?;
    Ok(())
}

async fn stop_hub(apart: &mut Apart) -> Result<()> {
    let hub = apart.hub()?;
    hub.signal("TERM")?;
    let started = std::time::Instant::now();
    while hub.exited()?.is_none() {
        anyhow::ensure!(started.elapsed() < READY, "the hub does not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The certificate is shown by the list with the next command, and compared with what the cluster says.
async fn the_certificate_is_admitted(apart: &Apart) -> Result<()> {
    let serial = wait::until("the certificate waits", READY, || async {
        let cluster = edge(apart).ok()?;
        cluster["unknownCertificates"][0]["serial"]
            .as_str()
            .map(str::to_owned)
    })
    .await?;
    let listed = apart.cli.run(&["clusters"])?;
    assert!(
        listed.out.contains("1 certificate") && listed.err.contains(&serial),
        "{listed:?}"
    );
    let page = apart.cli.run(&["describe", "cluster", "edge"])?.ok()?;
    assert!(
        page.contains(&format!(
            "roadstead clusters admit-certificate edge --serial {serial}"
        )),
        "{page}"
    );
    let cluster = apart.folder().join("cluster");
    let doctor = std::process::Command::new(roadstead_end_to_end::binary("roadstead-agent"))
        .args(["doctor", "--hub", "127.0.0.1:1", "--state"])
        .arg(&cluster)
        .output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        doctor.contains(&format!("certificate {serial} good for")),
        "{doctor}"
    );
    let wrong = apart
        .cli
        .run(&["clusters", "admit-certificate", "edge", "--serial", "00"])?;
    assert_eq!(wrong.code, Some(4), "{wrong:?}");
    assert!(
        wrong.err.contains("next: roadstead describe cluster edge"),
        "{wrong:?}"
    );
    let said = apart
        .cli
        .run(&["clusters", "admit-certificate", "edge", "--serial", &serial])?
        .ok()?;
    assert_eq!(said, format!("cluster edge: certificate {serial} admitted\n"));
    Ok(())
}

/// What the cluster holds is newer than what the hub does: shown, and taken by the number that was shown.
async fn the_timeline_is_accepted(apart: &Apart) -> Result<()> {
    let cursor = wait::until("how the cluster differs", READY, || async {
        let cluster = edge(apart).ok()?;
        let known = cluster["timeline"]["known"] == true;
        known.then(|| cluster["timeline"]["cursor"].as_u64()).flatten()
    })
    .await?;
    let listed = apart.cli.run(&["clusters"])?;
    assert!(
        listed.out.contains(&format!("revision {cursor}"))
            && listed.err.contains("roadstead describe cluster edge"),
        "{listed:?}"
    );
    let page = apart.cli.run(&["describe", "cluster", "edge"])?.ok()?;
    for shown in [
        "0 documents are sent, 1 deleted, 1 replaced".to_owned(),
        "replaced there: Agent default/old (agt_".to_owned(),
        "deleted there: agt_".to_owned(),
        format!("roadstead clusters accept-timeline edge --cursor {cursor}"),
    ] {
        assert!(page.contains(&shown), "{shown:?} in {page}");
    }
    let other = (cursor + 1).to_string();
    let wrong = apart
        .cli
        .run(&["clusters", "accept-timeline", "edge", "--cursor", &other])?;
    assert_eq!(wrong.code, Some(6), "{wrong:?}");
    assert!(wrong.err.contains(&format!("at revision {cursor}")), "{wrong:?}");
    let cursor = cursor.to_string();
    let accept = ["clusters", "accept-timeline", "edge", "--cursor", &cursor];
    let said = apart.cli.run(&accept)?.ok()?;
    assert!(
        said.contains("0 documents are sent, 1 deleted, 1 replaced"),
        "{said}"
    );
    let again = apart.cli.run(&accept)?;
    assert_eq!(
        again.code,
        Some(6),
        "there is nothing to accept any more: {again:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lets_a_restored_hub_go_on() -> Result<()> {
    let mut apart = Apart::start(Keep::Sqlite, Setup::default())
        .await?
        .context("SQLite")?;
    apart.apply(&agent("old", "one"))?;
    persisted(&apart).await?;
    stop_hub(&mut apart).await?;
    let backup = apart.folder().join("backup.db");
    std::fs::copy(apart.folder().join("hub.db"), &backup)?;

    // What the backup does not know: another installation of the cluster agent with its certificate, a newer revision,
    // a new agent.
    apart.start_hub()?;
    apart.hub_ready().await?;
    apart.agent()?.kill()?;
    std::fs::remove_dir_all(apart.folder().join("cluster"))?;
    let token = apart.folder().join("join-token");
    std::fs::remove_file(&token)?;
    let token = token.display().to_string();
    apart
        .cli
        .run(&["clusters", "join", "edge", "--token-file", &token])?
        .ok()?;
    apart.start_agent()?;
    apart.linked().await?;
    for text in ["two", "three"] {
        apart.apply(&agent("old", text))?;
    }
    apart.apply(&agent("new", "one"))?;
    persisted(&apart).await?;
    stop_hub(&mut apart).await?;
    restore(apart.folder(), &backup)?;
    apart.start_hub()?;
    apart.hub_ready().await?;

    the_certificate_is_admitted(&apart).await?;
    the_timeline_is_accepted(&apart).await?;

    // It goes on by itself: the backup's content, as a revision above the one that the cluster had.
    persisted(&apart).await?;
    let revisions = apart
        .cli
        .run(&["revisions", "agent", "old", "-o", "json"])?
        .json()?;
    assert_eq!(revisions[0]["revision"], 4, "{revisions}");
    apart.answers("old").await?;
    assert_eq!(apart.cli.run(&["clusters"])?.err, "", "nothing waits");
    assert_eq!(apart.cli.run(&["get", "agent", "new"])?.code, Some(4));
    apart.apply(&agent("old", "four"))?;
    persisted(&apart).await?;
    apart.database.verify_audit()?;
    let audit = apart.cli.run(&["audit", "--limit", "100", "-o", "json"])?.ok()?;
    assert!(
        audit.contains("accept timeline") && audit.contains("admit certificate"),
        "{audit}"
    );
    Ok(())
}

//! A way to the hub that breaks: followed logs go on, a write whose answer is lost is done once.

use super::laptop::{Laptop, ok};
use anyhow::Result;
use roadstead_end_to_end::{processes::Process, wait};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt as _, copy, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// A way to the hub that can be cut, and that can lose answers.
struct Relay {
    address: SocketAddr,
    cut: Arc<Notify>,
    /// So many connections break when the hub begins to answer.
    swallow: Arc<AtomicUsize>,
}

impl Relay {
    async fn to(hub: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let relay = Self {
            address: listener.local_addr()?,
            cut: Arc::default(),
            swallow: Arc::default(),
        };
        let (cut, swallow) = (Arc::clone(&relay.cut), Arc::clone(&relay.swallow));
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let less = |left: usize| left.checked_sub(1);
                let loses = swallow
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                    .is_ok();
                let cut = Arc::clone(&cut);
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(hub).await else {
                        return;
                    };
                    tokio::select! {
                        () = carry(from, to, loses) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        Ok(relay)
    }

    /// A context of the CLI that goes this way.
    fn context(&self, laptop: &Laptop) -> Result<()> {
        let add = format!(
            "roadstead context add relay --server http://{} --tenant local --token-file {}",
            self.address,
            laptop.path("state/token").display()
        );
        ok(&laptop.types(&add)?);
        Ok(())
    }
}

async fn carry(mut from: TcpStream, mut to: TcpStream, loses: bool) {
    if !loses {
        let _ = copy_bidirectional(&mut from, &mut to).await;
        return;
    }
    let (mut question, _lost) = from.split();
    let (mut answer, mut hub) = to.split();
    let mut first = [0; 1];
    tokio::select! {
        _ = copy(&mut question, &mut hub) => {}
        _ = answer.read(&mut first) => {}
    }
}

async fn ended_tasks(log: &Process, wanted: usize) -> Result<String> {
    wait::until(
        &format!("{wanted} ended tasks in the log"),
        super::SOON,
        || async {
            let text = log.output();
            (text.matches("a task ended").count() >= wanted).then_some(text)
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_survives_cuts_and_a_new_hub() -> Result<()> {
    let mut laptop = Laptop::new(&[("PATH", "/usr/bin:/bin")])?;
    laptop.up().await?;
    let file = laptop.path("state/examples/hello.yaml");
    ok(&laptop.types(&format!("roadstead apply -f {}", file.display()))?);
    let chat = "roadstead chat hello --message 'hello'";
    ok(&laptop.types(chat)?);
    let relay = Relay::to(laptop.listen()).await?;
    relay.context(&laptop)?;
    let mut follows = laptop.follows(&["logs", "hello", "-f", "--context", "relay"], "logs.txt")?;
    ended_tasks(&follows, 1).await?;
    for round in 2..5 {
        relay.cut.notify_waiters();
        ok(&laptop.types(chat)?);
        ended_tasks(&follows, round).await?;
    }
    laptop.down().await?;
    laptop.up().await?;
    ok(&laptop.types(chat)?);
    let text = ended_tasks(&follows, 5).await?;
    assert_eq!(text.matches("a task ended").count(), 5, "{text}");
    assert!(text.contains("connecting again"), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("note: ")).collect();
    let different: BTreeSet<&&str> = lines.iter().collect();
    assert_eq!(different.len(), lines.len(), "a line was repeated: {text}");

    follows.signal("INT")?;
    let ended = wait::until("the follower to end", super::SOON, || {
        let status = follows.exited();
        async move { status.ok().flatten() }
    });
    assert!(ended.await?.success());
    // Without -f the log ends; each format is what it says.
    let json = ok(&laptop.types("roadstead logs hello -o json")?);
    assert!(
        json.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok_and(|l| l["cluster"] == "local")),
        "{json}"
    );
    let yaml = ok(&laptop.types("roadstead logs hello -o yaml --tail 2")?);
    assert_eq!(yaml.matches("---\ncluster: local\n").count(), 2, "{yaml}");
    laptop.hub()?;
    laptop.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_done_once() -> Result<()> {
    let mut laptop = Laptop::new(&[("PATH", "/usr/bin:/bin")])?;
    laptop.up().await?;
    let relay = Relay::to(laptop.listen()).await?;
    relay.context(&laptop)?;
    let document =
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: once}\nspec: {text: hi}\n";
    std::fs::write(laptop.path("once.yaml"), document)?;
    let records = || -> Result<usize> {
        let all = ok(&laptop.types("roadstead audit --limit 100 -o json")?);
        let all: Value = serde_json::from_str(&all)?;
        Ok(all.as_array().map_or(0, Vec::len))
    };
    let before = records()?;
    relay.swallow.store(2, Ordering::SeqCst);
    let applied = ok(&laptop.types("roadstead apply --context relay -f once.yaml -o json")?);
    let applied: Value = serde_json::from_str(&applied)?;
    assert_eq!(
        applied[0]["action"], "CREATED",
        "the answer is the first one's: {applied}"
    );
    assert_eq!((&applied[0]["revision"], records()?), (&1.into(), before + 1));
    let revisions = ok(&laptop.types("roadstead revisions prompt once -o json")?);
    assert_eq!(
        serde_json::from_str::<Value>(&revisions)?
            .as_array()
            .map(Vec::len),
        Some(1)
    );

    // A secret is shown once: who did not get it is told how to go on, and nothing was done twice.
    relay.swallow.store(1, Ordering::SeqCst);
    ok(&laptop.types("roadstead projects create --context relay web")?);
    let before = records()?;
    relay.swallow.store(1, Ordering::SeqCst);
    let lost = laptop.types("roadstead tokens create ci --role viewer --scope read --context relay")?;
    let said = String::from_utf8_lossy(&lost.stderr);
    assert_eq!(
        (lost.status.code(), lost.stdout.is_empty()),
        (Some(1), true),
        "{said}"
    );
    let next = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("next: "))
        .unwrap_or_default();
    let revoke = next.split(',').next().unwrap_or_default();
    assert!(revoke.starts_with("roadstead tokens revoke tok_"), "{said}");
    assert_eq!(records()?, before + 1, "one token was made");
    ok(&laptop.types(revoke)?);

    // What is looked for in the audit log and the runs.
    let search = |words: &str| -> Result<Vec<Value>> {
        let found = ok(&laptop.types(&format!("roadstead audit --limit 100 -o json {words}"))?);
        Ok(serde_json::from_str(&found)?)
    };
    let made = search("--action 'issue token' --since 1h")?;
    assert!(
        !made.is_empty() && made.iter().all(|r| r["action"] == "issue token"),
        "{made:?}"
    );
    let object = made[0]["object"].as_str().unwrap_or_default();
    let of_it = search(&format!("--object {object} --decision allow"))?;
    let acts: Vec<&str> = of_it.iter().filter_map(|r| r["action"].as_str()).collect();
    assert_eq!(acts, ["revoke token", "issue token"]);
    let actor = of_it[0]["actor"].as_str().unwrap_or_default();
    assert!(
        search(&format!("--actor {actor}"))?
            .iter()
            .all(|r| r["actor"] == actor)
    );
    assert_eq!(search("--until 1h")?, Vec::<Value>::new());
    assert_eq!(search("--actor \"token:' OR '1'='1\"")?, Vec::<Value>::new());
    laptop.down().await
}

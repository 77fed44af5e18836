//! The hub is away: engines answer callers in the cluster all the while, and run records arrive when it is back.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    ask, counter, wait,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// A hub that says nothing is given up after an HTTP/2 ping without answer: 30 s to the ping and 10 s for the answer.
const GIVEN_UP: Duration = Duration::from_secs(90);

/// Longer than the longest wait between two attempts, 60 s.
const MET_AGAIN: Duration = Duration::from_secs(90);
/// For so long the hub is away, at least.
const AWAY: Duration = Duration::from_secs(60);
/// What the cluster agent logs of each attempt.
const DIALLED: &str = "no session with the hub";

struct Caller {
    url: String,
    token: String,
    asked: u32,
    tasks: BTreeSet<String>,
}

impl Caller {
    async fn of(apart: &Apart) -> Result<Self> {
        let (url, token) = apart.in_cluster("echo").await?;
        Ok(Self {
            url,
            token,
            asked: 0,
            tasks: BTreeSet::new(),
        })
    }

    async fn ask(&mut self) -> Result<()> {
        self.asked += 1;
        let text = format!("say without a hub {}", self.asked);
        let message = format!("m-{}-{}", self.url, self.asked);
        let task = ask::turn(&self.url, &self.token, &message, &text).await?;
        anyhow::ensure!(task["status"]["state"] == "TASK_STATE_COMPLETED", "{task}");
        anyhow::ensure!(task.to_string().contains(&text["say ".len()..]), "{task}");
        self.tasks
            .insert(task["id"].as_str().context("an id")?.to_owned());
        Ok(())
    }

    /// Asks again and again until the cluster agent's probe says so of its hub.
    async fn ask_until(&mut self, apart: &Apart, hub: &str, within: Duration) -> Result<Duration> {
        let (started, probe) = (Instant::now(), format!("{}/readyz", apart.agent_probe()));
        loop {
            self.ask().await?;
            let (status, text) = ask::get(&probe).await?;
            anyhow::ensure!(
                status == 200,
                "a cluster agent without a hub is ready all the same: {text}"
            );
            if text.contains(&format!("hub: {hub}")) {
                return Ok(started.elapsed());
            }
            anyhow::ensure!(
                started.elapsed() < within,
                "waited {within:?} for {hub:?}: {text}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn task_ids(runs: &Value) -> Vec<String> {
    let runs = runs.as_array().into_iter().flatten();
    runs.filter_map(|run| run["taskId"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_answer_while_the_hub_is_away_and_their_run_records_follow() -> Result<()> {
    let mut apart = Apart::start(Keep::Sqlite, Setup::default())
        .await?
        .context("SQLite")?;
    apart.apply(&counter::documents(apart.folder())?)?;
    apart.answers("echo").await?;
    let mut caller = Caller::of(&apart).await?;
    let (status, _) = ask::post(&caller.url, "nobody", &json!({})).await?;
    assert_eq!(status, 401, "S75: hub or no hub");

    // Silent: connections stay open, and nothing comes over them any more.
    let away = Instant::now();
    apart.hub()?.signal("STOP")?;
    let noticed = caller.ask_until(&apart, "away", GIVEN_UP).await?;
    // Gone: connections are refused. The cluster agent starts anew, alone.
    apart.hub()?.kill()?;
    apart.agent()?.kill()?;
    apart.start_agent()?;
    let probe = format!("{}/readyz", apart.agent_probe());
    wait::until("a cluster agent without a hub", READY, || async {
        let (status, text) = ask::get(&probe).await.ok()?;
        (status == 200 && text.contains("hub: away")).then_some(())
    })
    .await?;
    let mut again = Caller::of(&apart).await?;
    wait::until("an engine without a hub", READY, || async {
        let (url, token) = apart.in_cluster("echo").await.ok()?;
        let asked = ask::turn(&url, &token, "first", "say first").await;
        // Its address may be the one of the engine before.
        asked.inspect_err(|error| eprintln!("not yet: {error:#}")).ok()
    })
    .await?;
    (again.url, again.token) = apart.in_cluster("echo").await?;
    // Dialled in vain again and again, at growing distances.
    let dialled = |apart: &mut Apart| anyhow::Ok(apart.agent()?.output().matches(DIALLED).count());
    let before = dialled(&mut apart)?;
    while dialled(&mut apart)? < before + 4 || away.elapsed() < AWAY {
        again.ask().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    let absent = away.elapsed();
    assert!(absent >= AWAY, "the hub was away for {absent:?} only");
    assert!(again.asked > 0, "nobody asked while the hub was gone");
    apart.start_hub()?;
    apart.hub_ready().await?;
    let back = again.ask_until(&apart, "connected", MET_AGAIN).await?;
    let expected: BTreeSet<_> = caller.tasks.union(&again.tasks).cloned().collect();
    let runs = wait::until("the run records", READY, || async {
        let runs = apart
            .cli
            .run(&["runs", "--limit", "1000", "-o", "json"])
            .ok()?
            .json()
            .ok()?;
        let known: BTreeSet<_> = task_ids(&runs).into_iter().collect();
        expected.is_subset(&known).then_some(runs)
    })
    .await?;
    let ids = task_ids(&runs);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each once");
    eprintln!(
        "away for {absent:?} (silence noticed after {noticed:?}), connected {back:?} after it was back; {} answers \
         meanwhile",
        expected.len()
    );
    Ok(())
}

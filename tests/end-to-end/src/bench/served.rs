//! The cluster's own processes, as they run: how soon a changed document is served, and what they weigh.

use crate::{
    call::Caller,
    figures::{Figures, Samples, p50_p99},
    hub::{Hub, agent, model},
    procfs::{memory, proportional_mib},
};
use anyhow::Context as _;
use roadstead_end_to_end::{
    binary,
    processes::{Process, descendants},
    wait,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const WARM: usize = 5;
const DOCUMENTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at the card.
const LOOK: Duration = Duration::from_micros(500);
const READY: Duration = Duration::from_secs(60);
const AGENTS: usize = 50;
/// Until what a start used for a moment has been given back.
const SETTLED: Duration = Duration::from_secs(15);

/// Measures it all.
///
/// # Errors
/// When a process does not start, or a document is not served.
pub(crate) async fn measure(folder: &Path) -> anyhow::Result<Figures> {
    let folder = tempfile::tempdir_in(folder)?;
    let mut figures = Figures::new("Cluster agent and hub as processes");
    let hub = Hub::start(folder.path()).await?;
    tokio::time::sleep(SETTLED).await;
    let weight = memory(hub.process.id())?;
    figures.row("hub RSS, idle", weight.to_string(), "≤ 40 MiB");

    let cluster = Cluster::join(&hub, folder.path()).await?;
    let here = json!({"clusters": ["here"]});
    hub.apply(&[model(), agent("a0", "First.", &here)]).await?;
    served(&hub, &cluster, &here, &mut figures).await?;
    weigh(&hub, &cluster, &here, &mut figures).await?;
    Ok(figures)
}

/// A cluster agent as a process.
pub(crate) struct Cluster {
    pub(crate) process: Process,
    state: PathBuf,
}

impl Cluster {
    async fn join(hub: &Hub, folder: &Path) -> anyhow::Result<Self> {
        Self::join_as(Command::new(binary("roadstead-agent")), hub, folder).await
    }

    /// The same with another command in front of the cluster agent's arguments.
    pub(crate) async fn join_as(mut command: Command, hub: &Hub, folder: &Path) -> anyhow::Result<Self> {
        let token = folder.join("join-token");
        std::fs::write(&token, hub.cluster("here").await?)?;
        let state = folder.join("cluster");
        command
            .args(["run", "--hub", &hub.fleet, "--state"])
            .arg(&state)
            .arg("--join-token-file")
            .arg(token);
        let process = Process::start(&mut command, &folder.join("cluster.log"))?;
        Ok(Self { process, state })
    }

    /// Where an agent's engine serves, and a caller that it lets in.
    pub(crate) async fn engine(&self, name: &str) -> anyhow::Result<(String, Caller)> {
        let folder = self.state.join("engines").join(format!("bench.{name}"));
        let address = || async { std::fs::read_to_string(folder.join("address")).ok() };
        let address = wait::until(name, READY, address)
            .await
            .with_context(|| self.process.output())?;
        let token = std::fs::read_to_string(folder.join("token"))?;
        let caller = Caller::new().with("authorization", &format!("Bearer {}", token.trim()))?;
        let base = address.trim();
        let base = match base.contains("://") {
            true => base.to_owned(),
            false => format!("http://{base}"),
        };
        Ok((format!("{base}/.well-known/agent-card.json"), caller))
    }
}

/// An in-cluster caller looks at the engine's card until it is the new one.
async fn served(hub: &Hub, cluster: &Cluster, here: &Value, figures: &mut Figures) -> anyhow::Result<()> {
    let (card, caller) = cluster.engine("a0").await?;
    let (mut from_answer, mut from_request) = (Samples::default(), Samples::default());
    for n in 0..WARM + DOCUMENTS {
        tokio::time::sleep(PAUSE).await;
        let description = format!("Revision {n} of the measured agent.");
        let document = [agent("a0", &description, here)];
        let shown = async {
            let until = Instant::now() + READY;
            loop {
                let found: Value = serde_json::from_slice(&caller.get(&card).await?)?;
                if found["description"] == description.as_str() {
                    return anyhow::Ok(Instant::now());
                }
                anyhow::ensure!(Instant::now() < until, "not served: {found}");
                tokio::time::sleep(LOOK).await;
            }
        };
        let (accepted, end) = tokio::join!(hub.apply(&document), shown);
        let (accepted, end) = (accepted?, end?);
        if n >= WARM {
            from_answer.add(end.saturating_duration_since(accepted.answered));
            from_request.add(end - accepted.sent);
        }
    }
    figures.row(
        "accepted → served by the running engine, p50 / p99",
        p50_p99(&mut from_answer),
        "≤ 50 ms",
    );
    figures.row("… from sending the request", p50_p99(&mut from_request), "");
    Ok(())
}

/// With 50 agents, each with its engine.
async fn weigh(hub: &Hub, cluster: &Cluster, here: &Value, figures: &mut Figures) -> anyhow::Result<()> {
    let started = Instant::now();
    let agents: Vec<_> = (1..AGENTS)
        .map(|n| agent(&format!("a{n}"), "One of fifty.", here))
        .collect();
    hub.apply(&agents).await?;
    for n in 0..AGENTS {
        let (card, caller) = cluster.engine(&format!("a{n}")).await?;
        let serves = || async { caller.get(&card).await.ok() };
        wait::until("the card", READY, serves).await?;
    }
    let took = started.elapsed().as_secs_f64();
    figures.row(
        "49 more agents accepted → all their cards served",
        format!("{took:.1} s"),
        "",
    );
    tokio::time::sleep(SETTLED).await;
    let weight = memory(cluster.process.id())?;
    figures.row("cluster agent RSS with 50 agents", weight.to_string(), "≤ 15 MiB");
    figures.row(
        "each of the 50 engines: memory by its share (PSS)",
        format!("{:.1} MiB", share_of_each(cluster)?),
        "",
    );
    let weight = memory(hub.process.id())?;
    figures.row("hub RSS after all that, idle", weight.to_string(), "≤ 40 MiB");
    Ok(())
}

/// What one more engine costs a machine that runs fifty: their program's pages are there once.
fn share_of_each(cluster: &Cluster) -> anyhow::Result<f64> {
    let engines = descendants(cluster.process.id())?;
    let mut total = 0.0;
    for engine in &engines {
        total += proportional_mib(*engine)?;
    }
    let count = u32::try_from(engines.len())?;
    anyhow::ensure!(
        count as usize >= AGENTS,
        "{count} processes below the cluster agent"
    );
    Ok(total / f64::from(count))
}

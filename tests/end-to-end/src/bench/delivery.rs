//! From an accepted document to the cluster agents' disks and engines.

use crate::{
    clients::{Clients, Persisted},
    disk,
    figures::{Figures, Samples, p50_p99},
    hub::{Accepted, Hub, agent, model},
    procfs::cpu_time,
};
use anyhow::Context as _;
use roadstead_agent::{Agent, Config};
use roadstead_end_to_end::binary;
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Documents that warm up, and documents that count.
const WARM: usize = 10;
const DOCUMENTS: usize = 100;
/// Between two documents, so that each is alone: the acknowledgements of the one before are over.
const PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures with 1 and with 100 cluster agents, state in `folder`.
///
/// # Errors
/// When a process does not start, or a document does not arrive.
pub(crate) async fn measure(folder: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::new(&format!("Delivery, state in {}", folder.display()));
    let mut sync = disk::sync_times(folder)?;
    figures.row(
        "fdatasync of 4 KiB on that disk, p50 / p99",
        p50_p99(&mut sync),
        "",
    );
    for count in [1, 100] {
        persisted(folder, count, &mut figures).await?;
        applied(folder, count, &mut figures).await?;
    }
    let mut sync = disk::sync_times(folder)?;
    figures.row("fdatasync again, p50 / p99", p50_p99(&mut sync), "");
    Ok(figures)
}

/// Where the documents of a round belong.
fn everywhere() -> Value {
    json!({"selector": {"matchLabels": {"fleet": "bench"}}})
}

fn one(cluster: usize) -> Value {
    json!({"clusters": [name(cluster)]})
}

fn name(cluster: usize) -> String {
    format!("c{cluster}")
}

/// Durations of one kind of document, by where the clock starts and ends.
#[derive(Default)]
struct Times {
    accepting: Samples,
    from_answer: Samples,
    from_request: Samples,
}

impl Times {
    fn add(&mut self, accepted: &Accepted, ends: &[Instant]) {
        self.accepting.add(accepted.answered - accepted.sent);
        for end in ends {
            // Not rarely it is there before the caller has read the answer.
            self.from_answer
                .add(end.saturating_duration_since(accepted.answered));
            self.from_request.add(*end - accepted.sent);
        }
    }

    fn rows(&mut self, figures: &mut Figures, what: &str, aim: &str) {
        figures.row(what, p50_p99(&mut self.from_answer), aim);
        figures.row(
            "… from sending the request",
            format!(
                "{} (its answer after {})",
                p50_p99(&mut self.from_request),
                p50_p99(&mut self.accepting)
            ),
            "",
        );
    }
}

/// To the disks of `count` protocol clients: a document for one of them, then a document for all.
async fn persisted(folder: &Path, count: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let hub = Hub::start(folder.path()).await?;
    let tokens = tokens(&hub, count).await?;
    let mut clients = Clients::join(&hub.fleet, &tokens, folder.path()).await?;
    let what = format!("accepted → PERSISTED, {count} connected, p50 / p99");
    if count > 1 {
        let mut times = rounds(&hub, &mut clients.persisted, "one", &one(0), 1).await?;
        times.rows(figures, &format!("{what}, for one of them"), "≤ 2 / 5 ms");
    }
    let before = Cpu::now(&hub)?;
    let mut times = rounds(&hub, &mut clients.persisted, "all", &everywhere(), count).await?;
    let all = if count > 1 { ", for all of them, each" } else { "" };
    times.rows(figures, &format!("{what}{all}"), "≤ 2 / 5 ms");
    figures.row(
        "… processor time per document, acknowledgements included",
        before.per_document(&hub)?,
        "",
    );
    clients.stop().await;
    Ok(())
}

/// What both sides have used of the processors.
struct Cpu {
    hub: Duration,
    clients: Duration,
}

impl Cpu {
    fn now(hub: &Hub) -> anyhow::Result<Self> {
        Ok(Self {
            hub: cpu_time(hub.process.id())?,
            clients: cpu_time(std::process::id())?,
        })
    }

    fn per_document(&self, hub: &Hub) -> anyhow::Result<String> {
        let now = Self::now(hub)?;
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let each = |after: Duration, before: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1_000.0 / (WARM + DOCUMENTS) as f64
        };
        let (hub, clients) = (each(now.hub, self.hub), each(now.clients, self.clients));
        Ok(format!("{hub:.1} ms in the hub, {clients:.1} ms in the clients"))
    }
}

async fn tokens(hub: &Hub, count: usize) -> anyhow::Result<Vec<String>> {
    let mut tokens = Vec::with_capacity(count);
    for n in 0..count {
        tokens.push(hub.cluster(&name(n)).await?);
    }
    Ok(tokens)
}

async fn rounds(
    hub: &Hub,
    persisted: &mut Persisted,
    agent_name: &str,
    placement: &Value,
    receivers: usize,
) -> anyhow::Result<Times> {
    // The model comes to the clusters with the first agent there.
    hub.apply(&[model(), agent(agent_name, "Revision 0.", placement)])
        .await?;
    let mut times = Times::default();
    for n in 0..WARM + DOCUMENTS {
        tokio::time::sleep(PAUSE).await;
        while persisted.try_recv().is_ok() {}
        let document = agent(
            agent_name,
            &format!("Revision {n} of the measured agent."),
            placement,
        );
        let accepted = hub.apply(&[document]).await?;
        let mut ends = Vec::with_capacity(receivers);
        while ends.len() < receivers {
            let end = tokio::time::timeout(PATIENCE, persisted.recv()).await;
            ends.push(
                end.context("a document does not arrive")?
                    .context("the clients ended")?,
            );
        }
        if n >= WARM {
            times.add(&accepted, &ends);
        }
    }
    Ok(times)
}

/// To the engine of a whole cluster agent, `count - 1` protocol clients beside it.
async fn applied(folder: &Path, count: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let hub = Hub::start(folder.path()).await?;
    let tokens = tokens(&hub, count).await?;
    let clients = Clients::join(&hub.fleet, &tokens[1..], folder.path()).await?;
    let mut config = Config::new(
        hub.fleet.clone(),
        folder.path().join("whole"),
        binary("roadstead-engine"),
    );
    config.join = Some(tokens[0].parse()?);
    let whole = Agent::start(config).await?;
    let what = format!("accepted → APPLIED, {count} connected, p50 / p99");
    if count > 1 {
        let mut times = applied_rounds(&hub, &whole, "one", &one(0)).await?;
        times.rows(figures, &format!("{what}, for one of them"), "≤ 8 / 20 ms");
    }
    let mut times = applied_rounds(&hub, &whole, "all", &everywhere()).await?;
    let all = if count > 1 {
        ", for all of them, at one"
    } else {
        ""
    };
    times.rows(figures, &format!("{what}{all}"), "≤ 8 / 20 ms");
    whole.shutdown().await;
    clients.stop().await;
    Ok(())
}

async fn applied_rounds(
    hub: &Hub,
    whole: &Agent,
    agent_name: &str,
    placement: &Value,
) -> anyhow::Result<Times> {
    let first = hub
        .apply(&[model(), agent(agent_name, "Revision 0.", placement)])
        .await?;
    serves(whole, &first.uid, first.revision).await?;
    let mut times = Times::default();
    for n in 0..WARM + DOCUMENTS {
        tokio::time::sleep(PAUSE).await;
        let document = [agent(
            agent_name,
            &format!("Revision {n} of the measured agent."),
            placement,
        )];
        // Watched from before the request on: the engine may have it before the answer is read.
        let expected = first.revision + 1 + n as u64;
        let (accepted, end) = tokio::join!(hub.apply(&document), serves(whole, &first.uid, expected));
        let (accepted, end) = (accepted?, end?);
        anyhow::ensure!(accepted.revision == expected, "revision {}", accepted.revision);
        if n >= WARM {
            times.add(&accepted, &[end]);
        }
    }
    Ok(times)
}

/// When the engine of this agent serves the revision.
async fn serves(whole: &Agent, uid: &str, revision: u64) -> anyhow::Result<Instant> {
    let mut changes = whole.engine_changes();
    let applied = async {
        loop {
            changes.borrow_and_update();
            let engines = whole.engines();
            let applied = engines.get(uid).and_then(|engine| engine.applied.as_ref());
            if applied.is_some_and(|(generation, _)| *generation >= revision) {
                return anyhow::Ok(Instant::now());
            }
            changes.changed().await?;
        }
    };
    tokio::time::timeout(PATIENCE, applied)
        .await
        .with_context(|| format!("revision {revision} is not served"))?
}

//! The engine alone: start, memory, and the time it adds to its model's own.

use crate::{
    call::{Caller, completion},
    figures::{Figures, Samples},
    procfs::rss_mib,
};
use anyhow::Context as _;
use futures::future::try_join_all;
use roadstead_end_to_end::{binary, processes::Process};
use std::{
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const STARTS: usize = 30;
const TURNS: usize = 1_000;
const SESSIONS: usize = 50;
/// The engine has this core for itself, everything else shares the others.
const ENGINE_CORE: &str = "0";
const OTHER_CORES: &str = "1";

/// An engine with the echoing model server behind it.
struct Bench {
    folder: tempfile::TempDir,
    model: String,
    _model: Process,
}

struct Running {
    process: Process,
    url: String,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

impl Bench {
    async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = format!("127.0.0.1:{}", free_port()?);
        let mut command = pinned(OTHER_CORES, &binary("roadstead-model-server"));
        let process = Process::start(
            command.args(["--echo", "--listen", &model]),
            &folder.path().join("model.log"),
        )?;
        let bench = Self {
            folder,
            model: format!("http://{model}/v1"),
            _model: process,
        };
        let ready = || async { Caller::new().get(&format!("{}/models", bench.model)).await.ok() };
        roadstead_end_to_end::wait::until("the model server", Duration::from_secs(10), ready).await?;
        Ok(bench)
    }

    /// Starts an engine in a new folder; answers once the card is served, with the time since the start.
    async fn start(&self, n: usize) -> anyhow::Result<(Running, Duration)> {
        let spec = self.folder.path().join("agent.yaml");
        std::fs::write(&spec, document(&self.model))?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let state = self.folder.path().join(format!("state-{n}"));
        let mut command = pinned(ENGINE_CORE, &binary("roadstead-engine"));
        command
            .args(["run", "--listen", &address, "--spec"])
            .arg(spec)
            .arg("--state")
            .arg(state);
        let caller = Caller::new();
        let url = format!("http://{address}");
        let started = Instant::now();
        let process = Process::start(&mut command, &self.folder.path().join("engine.log"))?;
        let card = format!("{url}/.well-known/agent-card.json");
        while caller.get(&card).await.is_err() {
            anyhow::ensure!(
                started.elapsed() < Duration::from_secs(10),
                "no card: {}",
                process.output()
            );
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok((
            Running {
                process,
                url: format!("{url}/"),
            },
            started.elapsed(),
        ))
    }
}

fn document(model: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: echo}}\nspec:\n  provider: openaiCompatible\n  \
         model: echo\n  endpoint: {model}\n---\napiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: bench}}\n\
         spec:\n  instructions: Answer.\n  model: echo\n  limits: {{sessions: 1000}}\n"
    )
}

/// Measures it all.
///
/// # Errors
/// When a process does not start or a turn fails: a benchmark with failures is worth nothing.
pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Figures> {
    let bench = Bench::new().await?;
    let mut figures = Figures::new("Engine");
    let mut starts = Samples::default();
    for n in 0..STARTS {
        starts.add(bench.start(n).await?.1);
    }
    figures.row(
        "process start → card served, p50",
        format!("{:.1} ms", starts.quantile_ms(0.5)),
        "≤ 8 ms",
    );

    let (engine, _) = bench.start(STARTS).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    figures.row(
        "RSS idle",
        format!("{:.1} MiB", rss_mib(engine.process.id())?),
        "≤ 9 MiB",
    );
    plain_turns(&bench, &engine, &mut figures).await?;
    load(&engine, seconds, &mut figures).await?;
    Ok(figures)
}

/// One caller, one turn after the other: what the engine adds to the model server's own time.
async fn plain_turns(bench: &Bench, engine: &Running, figures: &mut Figures) -> anyhow::Result<()> {
    let caller = Caller::new();
    let completions = format!("{}/chat/completions", bench.model);
    let (mut own, mut whole) = (Samples::default(), Samples::default());
    for n in 0..TURNS {
        let text = format!("hello {n}");
        let started = Instant::now();
        caller.post(&completions, completion(&text)).await?;
        own.add(started.elapsed());
        let started = Instant::now();
        caller
            .turn(&engine.url, None, &text)
            .await
            .context("a plain turn")?;
        whole.add(started.elapsed());
    }
    let added = whole.quantile_ms(0.5) - own.quantile_ms(0.5);
    figures.row(
        "added per plain turn, journal included, p50",
        format!("{added:.2} ms"),
        "≤ 0.5 ms",
    );
    Ok(())
}

/// Many sessions at once, each turn as soon as the one before is answered.
async fn load(engine: &Running, seconds: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let started = Instant::now();
    let sessions = (0..SESSIONS).map(|_| async {
        let caller = Caller::new();
        let mut samples = Samples::default();
        while Instant::now() < until {
            let began = Instant::now();
            caller.turn(&engine.url, None, "hello").await?;
            samples.add(began.elapsed());
        }
        anyhow::Ok(samples)
    });
    let mut all = Samples::default();
    for samples in try_join_all(sessions).await? {
        all.extend(samples);
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    figures.row(
        "plain turns/s at 50 at once, engine on one core",
        format!("{rate:.0}"),
        "≥ 5,000",
    );
    figures.row("… p99", format!("{:.1} ms", all.quantile_ms(0.99)), "≤ 25 ms");
    figures.row(
        "RSS after that",
        format!("{:.1} MiB", rss_mib(engine.process.id())?),
        "",
    );
    Ok(())
}

//! `roadstead-agent`: the cluster agent.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use roadstead_agent::{Agent, Config, doctor};
use roadstead_contract::fleet::JoinToken;
use roadstead_link::{Clock as _, SystemClock};
use roadstead_plan::Programs;
use roadstead_runtime::find_engine;
use roadstead_telemetry::{Options, Telemetry};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// The Roadstead process of a workload cluster: dials the hub and runs what belongs there.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until SIGTERM or SIGINT.
    Run(Run),
    /// Says what is wrong, if anything is. Exit code 1 if so.
    Doctor(Place),
}

#[derive(Debug, Args)]
struct Place {
    /// The hub's fleet port.
    #[arg(long, value_name = "HOST:PORT", env = "ROADSTEAD_HUB", value_parser = hub)]
    hub: String,
    /// Folder of keys, inbox, journals and logs.
    #[arg(long, value_name = "DIR", env = "ROADSTEAD_STATE")]
    state: PathBuf,
    /// The engine's program; else `roadstead-engine` beside this one.
    #[arg(long, value_name = "FILE", env = "ROADSTEAD_ENGINE")]
    engine: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// File with the one-time join token that the hub showed; needed until this cluster has joined.
    #[arg(long, value_name = "FILE", env = "ROADSTEAD_JOIN_TOKEN_FILE")]
    join_token_file: Option<PathBuf>,
    /// Loopback address of /livez, /readyz and /metrics.
    #[arg(long, value_name = "ADDR", env = "ROADSTEAD_METRICS")]
    metrics: Option<SocketAddr>,
    /// An environment variable whose value documents may name ({env: NAME}). Repeat for more.
    #[arg(long = "env", value_name = "NAME")]
    offered: Vec<String>,
    /// A program that tool servers may be, exactly as documents name it (`spec.stdio.command[0]`). Repeat for more;
    /// `*` allows any: then whoever writes ToolServers has the rights of this process's user.
    #[arg(long = "allow-program", value_name = "PROGRAM")]
    programs: Vec<String>,
    /// Seconds that running tasks get when an engine is to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
}

/// `host:port`, with or without `https://` before it.
fn hub(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix("https://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let port = bare.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) if !bare.contains('/') => Ok(bare.to_owned()),
        _ => Err("expected the address of the hub's fleet port (hub.example.com:8443)".to_owned()),
    }
}

fn main() -> Result<ExitCode> {
    // The environment holds what documents may have of it.
    roadstead_processes::hide().context("making this process unreadable")?;
    let cli = Cli::parse();
    // Fails only when a provider was installed before, which this process does not do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // One thread: the work is waiting. Inbox and process lists have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Engines that end take some for seconds (`runtime::spawn`); names are resolved on them too. They come and go.
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(5))
        .build()
        .context("the runtime cannot start")?;
    match cli.command {
        Command::Run(run) => runtime.block_on(run_until_told(run)),
        Command::Doctor(place) => runtime.block_on(doctor(place)),
    }
}

async fn run_until_told(run: Run) -> Result<ExitCode> {
    let telemetry = Telemetry::start("roadstead-agent", &Options::server())?;
    if let Err(error) = roadstead_processes::adopt_orphans() {
        tracing::warn!(%error, "what engines leave behind is found by their session alone");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let engine = find_engine(run.place.engine.as_deref())?;
    if let Some(name) = run.offered.iter().find(|name| roadstead_plan::reserved(name)) {
        bail!("--env {name}: variables of Roadstead itself are not for documents");
    }
    let mut config = Config::new(run.place.hub, run.place.state, engine);
    config.join = run.join_token_file.as_deref().map(token).transpose()?;
    config.offered = run.offered.into_iter().collect();
    config.programs = Programs::of(run.programs);
    config.probe = run.metrics;
    config.metrics = telemetry.metrics();
    config.grace = Duration::from_secs(run.grace);
    let agent = Agent::start(config).await?;
    if let Some(address) = agent.probe() {
        tracing::info!(%address, "probes and metrics");
    }
    let code = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        error = agent.gave_up() => {
            // Engines go on until a person has read the log; without any there is nothing to go on with.
            if !agent.engines().is_empty() {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            tracing::error!(%error, "ended without a hub");
            ExitCode::FAILURE
        }
    };
    tracing::info!("ending");
    agent.shutdown().await;
    telemetry.shutdown().await;
    Ok(code)
}

fn token(file: &Path) -> Result<JoinToken> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    text.parse()
        .with_context(|| format!("{} holds no join token", file.display()))
}

#[expect(clippy::print_stdout, reason = "the command's output")]
async fn doctor(place: Place) -> Result<ExitCode> {
    let now = SystemClock.now_ms() / 1_000;
    let findings = doctor::examine(&place.hub, &place.state, place.engine.as_deref(), now).await;
    for finding in &findings {
        println!("{finding}");
    }
    let wrong = findings.iter().any(|finding| finding.outcome.is_err());
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

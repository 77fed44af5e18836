//! `roadstead-engine`: one agent's runtime.
//!
//! `run` serves an agent from a file, alone; `serve` is what a runtime starts, with its frames on standard input and
//! output. Both serve A2A on one port.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use roadstead_contract::control::Trust;
use roadstead_engine::{
    alone,
    auth::{Mode, token_hash},
    clock::SystemClock,
    control::{self, Left},
    engine::{Engine, Setup},
    journal::Options,
    model::{HttpClients, Providers},
    revision::Factories,
    tools::{ToolServers, guard},
};
use roadstead_telemetry::Telemetry;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// For what runs when the engine is told to stop; what then still runs goes on from the journal.
const GRACE: Duration = Duration::from_secs(2);

/// One agent's runtime: the conversation loop, served by A2A.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves one agent from a file, alone.
    Run(Run),
    /// Serves the agent that a runtime hands over on standard input.
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Run {
    /// YAML with one Agent and the Models, ToolServers and Prompts that it names.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8282")]
    listen: SocketAddr,
    /// Folder of the journal.
    #[arg(long, value_name = "DIR", default_value = ".roadstead-engine")]
    state: PathBuf,
    /// Holds the bearer token that callers must send. Without it the engine serves loopback only, to everybody there.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Journal with an fsync a commit: also survives the death of the machine.
    #[arg(long)]
    full_sync: bool,
}

#[derive(Debug, Args)]
struct Serve {
    /// Folder of the journal.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Journal with an fsync a commit: also survives the death of the machine.
    #[arg(long)]
    full_sync: bool,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode> {
    // As a tool server's guard the process has no arguments, runtime or log of its own.
    if let Some(code) = guard::intercept() {
        return Ok(code);
    }
    roadstead_processes::hide().context("making this process unreadable")?;
    let cli = Cli::parse();
    // An error says that somebody installed one before, which is just as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let telemetry = Telemetry::start("roadstead-engine", &roadstead_telemetry::Options::default())?;
        if let Err(error) = roadstead_processes::adopt_orphans() {
            tracing::warn!(%error, "what tool servers leave behind is ended by their guards alone");
        }
        let outcome = match cli.command {
            Command::Run(run) => run_alone(run).await,
            Command::Serve(serve) => serve_runtime(serve).await,
        };
        telemetry.shutdown().await;
        outcome
    });
    // A thread that reads standard input cannot be waited for.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn engine(folder: PathBuf, full_sync: bool, mode: Mode, collect_runs: bool) -> Result<Arc<Engine>> {
    let clients = Arc::new(HttpClients::default());
    let guard = std::env::current_exe().context("finding the engine's own program")?;
    let factories = Factories {
        models: Arc::new(Providers::new(Arc::clone(&clients))),
        tools: Arc::new(ToolServers::new(Arc::clone(&clients), Some(guard))),
    };
    let journal = Options {
        folder,
        full_sync,
        max_pages: None,
    };
    let setup = Setup {
        journal,
        clock: Arc::new(SystemClock),
        factories,
        clients,
        mode,
        collect_runs,
    };
    Engine::new(setup).context("starting the journal")
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

#[expect(
    clippy::print_stdout,
    reason = "where the engine serves is this command's output"
)]
async fn run_alone(run: Run) -> Result<()> {
    let mode = match &run.token_file {
        Some(file) => {
            let token =
                std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            if token.trim().len() < 16 {
                bail!("{}: expected a token of at least 16 bytes", file.display());
            }
            Mode::Token(token_hash(&token))
        }
        None if run.listen.ip().is_loopback() => Mode::Loopback,
        None => bail!(
            "--listen {}: without --token-file only a loopback address is served",
            run.listen
        ),
    };
    let listener = bind(run.listen).await?;
    let open = mode == Mode::Loopback;
    let engine = engine(run.state, run.full_sync, mode, false)?;
    let bundle = alone::read(&run.spec)?;
    let name = bundle.name.clone();
    let secrets = alone::secrets(&bundle);
    engine
        .apply(bundle, secrets, Trust::default())
        .map_err(|reason| anyhow::anyhow!(reason))?;
    println!("{name} serves A2A at http://{}", listener.local_addr()?);
    if !listener.local_addr()?.ip().is_loopback() {
        tracing::warn!("tokens and conversations cross the network in clear: put a proxy with TLS in front");
        println!("without TLS: put a proxy with TLS in front, the token crosses the network in clear");
    }
    if open {
        println!("without --token-file: loopback only, and every program of this machine may call");
    }
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (engine, stop) = (Arc::clone(&engine), stop.clone());
        async move { engine.serve(listener, stop).await }
    });
    signal().await?;
    leave(&engine, &stop, GRACE).await;
    drop(served);
    Ok(())
}

async fn serve_runtime(serve: Serve) -> Result<()> {
    let listener = bind(serve.listen).await?;
    let address = listener.local_addr()?.to_string();
    let engine = engine(serve.state, serve.full_sync, Mode::TrustOnly, true)?;
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (engine, stop) = (Arc::clone(&engine), stop.clone());
        async move { engine.serve(listener, stop).await }
    });
    let grace = tokio::select! {
        left = control::speak(&engine, address, tokio::io::stdin(), tokio::io::stdout()) => match left? {
            Left::EndOfInput => GRACE,
            Left::Drain(grace) => grace,
        },
        outcome = signal() => outcome.map(|()| GRACE)?,
    };
    leave(&engine, &stop, grace).await;
    drop(served);
    Ok(())
}

async fn leave(engine: &Arc<Engine>, stop: &CancellationToken, grace: Duration) {
    tracing::info!(active = engine.tasks.active(), "stopping");
    stop.cancel();
    engine.tasks.drain(grace).await;
}

/// Waits for the system to ask for the end.
async fn signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        outcome = tokio::signal::ctrl_c() => Ok(outcome?),
    }
}

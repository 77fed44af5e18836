//! `roadstead-hub`: the composition root of the control plane.

mod audit;
mod certificate;
mod composition;
mod dev;
mod doctor;
mod doors;
mod engines;
mod health;
mod housekeeping;
mod http_server;
mod keys;
mod limits;
mod lock;
mod observe;
mod proxy;
mod roots;
mod serve;
#[cfg(test)]
mod tests;

use clap::{Parser, Subcommand};
use roadstead_telemetry::{Options, Telemetry};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The control plane: documents, tenants and runs, and the way to the clusters.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process tree on this machine, for one person.
    Dev(dev::Args),
    /// The hub, as a server.
    Serve(serve::Serve),
    /// Brings the database's schema up to date, as the schema's owner.
    Migrate(serve::Migrate),
    /// Makes a tenant, with a project and an owner's API token in a file.
    CreateTenant(serve::CreateTenant),
    /// Issues an owner's API token in a tenant that is there, for when all of its owners' tokens are lost.
    IssueOwnerToken(serve::IssueOwnerToken),
    /// Looks at a deployment and says what is wrong with it. Changes nothing. Exit code 1 if anything is wrong.
    Doctor(doctor::Args),
    /// The root certificates of the fleet: which there are, and the steps by which a new one takes the place of the old.
    Roots {
        #[command(subcommand)]
        command: roots::Command,
    },
    /// The GraphQL schema, as SDL.
    Schema,
    /// The audit log.
    Audit {
        #[command(subcommand)]
        command: audit::Command,
    },
}

fn main() -> ExitCode {
    // Before anything is read: keys, and the environment with the credentials in it.
    if let Err(error) = roadstead_processes::hide() {
        return failed(&anyhow::Error::new(error).context("making this process unreadable"));
    }
    let cli = Cli::parse();
    // An error says that somebody installed one before, which is just as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match outcome {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let options = match &command {
        Command::Serve(_) => Options::server(),
        Command::Dev(_) => Options {
            filter: "warn",
            text: true,
            ..Options::server()
        },
        _ => Options::command_line(),
    };
    let telemetry = Telemetry::start("roadstead-hub", &options)?;
    let stop = stop_on_signals()?;
    let outcome = match command {
        Command::Dev(args) => dev::run(args, telemetry.metrics(), stop)
            .await
            .map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::run(args, telemetry.metrics(), stop)
            .await
            .map(|()| ExitCode::SUCCESS),
        Command::Migrate(args) => serve::migrate(args).await.map(|()| ExitCode::SUCCESS),
        Command::CreateTenant(args) => serve::create_tenant(args).await.map(|()| ExitCode::SUCCESS),
        Command::IssueOwnerToken(args) => serve::issue_owner_token(args).await.map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(args).await,
        Command::Roots { command } => roots::run(command).await.map(|()| ExitCode::SUCCESS),
        Command::Schema => {
            print_schema();
            Ok(ExitCode::SUCCESS)
        }
        Command::Audit { command } => audit::run(command).await,
    };
    telemetry.shutdown().await;
    outcome
}

#[expect(clippy::print_stdout, reason = "the output of this command")]
fn print_schema() {
    print!("{}", roadstead_graphql::sdl());
}

/// Cancelled by SIGINT or SIGTERM; a second one ends the process at once.
fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cancel = stop.clone();
    tokio::spawn(async move {
        for code in [None, Some(130)] {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            match code {
                None => cancel.cancel(),
                Some(code) => std::process::exit(code),
            }
        }
    });
    Ok(stop)
}

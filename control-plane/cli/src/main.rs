//! The process around [`roadstead_cli::run`].

use roadstead_cli::{Exit, Shell, run};
use roadstead_telemetry::{Options, Telemetry};
use std::{io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    // A second installation is no error: nothing else in this process installs one before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the runtime cannot start: {error}");
            return ExitCode::from(Exit::Failed as u8);
        }
    };
    let exit = runtime.block_on(work());
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(exit as u8)
}

async fn work() -> Exit {
    let telemetry = match Telemetry::start("roadstead", &Options::command_line()) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            return Exit::Usage;
        }
    };
    let exit = run(std::env::args_os().collect(), &mut Shell::of_process()).await;
    telemetry.shutdown().await;
    exit
}

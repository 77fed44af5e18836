//! The user's CLI: documents, agents, runs and conversations, over the hub's public interfaces.
//!
//! `args` says what can be typed; `commands` holds one file for each verb; `client`, `a2a` and `socket` speak GraphQL,
//! A2A and graphql-transport-ws. Everything that touches the process (terminal, environment, clock, signals) is in
//! [`Shell`], so that a test runs a whole command inside itself.
//!
//! What comes from the hub or from a model is text of strangers: it reaches a terminal only through `text::shown`, and
//! JSON only through `text::json`.

mod a2a;
mod api;
mod args;
mod client;
mod commands;
pub mod config;
mod diff;
mod failure;
mod files;
mod hints;
mod render;
mod secret_file;
mod shell;
mod socket;
mod text;
mod transport;
mod when;

pub use failure::{Exit, Failure};
pub use shell::{Input, Interrupt, Shell};

use clap::{CommandFactory as _, Parser as _};
use std::{ffi::OsString, io::Write as _};
use tracing::Instrument as _;

/// Runs one command line, program name first, and answers the exit code. Everything that goes wrong is said on the
/// shell's error stream.
pub async fn run(arguments: Vec<OsString>, shell: &mut Shell) -> Exit {
    let parsed = match args::Args::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, shell),
    };
    shell.colour = parsed.common.colour.wanted(shell);
    let span = tracing::info_span!("roadstead", command = parsed.command.name());
    let outcome = commands::run(parsed, shell).instrument(span).await;
    let outcome = outcome.and_then(|exit| shell.flush().map(|()| exit));
    match outcome {
        Ok(exit) => exit,
        Err(failure) if failure.is_broken_pipe() => Exit::Done,
        Err(failure) => {
            // Nobody is left to tell when the error stream is gone too.
            drop(failure.write(&mut shell.err));
            failure.exit
        }
    }
}

fn usage(error: &clap::Error, shell: &mut Shell) -> Exit {
    let text = error.render();
    if error.use_stderr() {
        drop(write!(shell.err, "{text}"));
        Exit::Usage
    } else {
        drop(write!(shell.out, "{text}").and_then(|()| shell.out.flush()));
        Exit::Done
    }
}

/// The command tree, for completion scripts.
fn command_tree() -> clap::Command {
    args::Args::command()
}

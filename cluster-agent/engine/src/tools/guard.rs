//! The process between the engine and a tool server's program: it ends the program, and everything that the program
//! started, when the engine is gone, however the engine went.
//!
//! The engine starts itself again with [`ARGUMENT`] as the leader of a process group of its own. The guard passes its
//! standard input on to the program; the end of that input means that the engine let go or died (kill -9 closes pipes
//! too). The program then has `GRACE` to end by itself, and the group is killed. Standard output is the program's
//! own, so answers pass through no one. The guard runs before the engine's runtime is made: it has two threads and
//! shares the program's pages.
//!
//! What a program moves to another process group or session by itself, the guard does not reach.

use rustix::process::{Signal, kill_current_process_group};
use std::{
    ffi::OsString,
    io,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

/// The first argument that makes a guard of the engine's program; the tool server's program and its arguments follow.
pub const ARGUMENT: &str = "tool-guard";

/// How long a program has to end after its standard input ended.
const GRACE: Duration = Duration::from_secs(1);

/// To be called first in `main`: if this process was started as a guard, does its work and returns the exit code.
#[must_use]
pub fn intercept() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    Some(run(arguments.collect()))
}

fn run(mut command: Vec<OsString>) -> ExitCode {
    if command.is_empty() {
        eprintln!("expected a program after {ARGUMENT}, found nothing");
        return ExitCode::from(2);
    }
    let program = command.remove(0);
    let started = Command::new(&program).args(command).stdin(Stdio::piped()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            eprintln!("{} does not start: {error}", program.to_string_lossy());
            return ExitCode::from(127);
        }
    };
    if let Some(mut input) = child.stdin.take() {
        thread::spawn(move || {
            // A program that closed its input early is no reason to end it.
            let passed = io::copy(&mut io::stdin().lock(), &mut input);
            drop(input);
            if passed.is_err() {
                // Wait for the engine's end without anybody to pass its words to.
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            }
            thread::sleep(GRACE);
            end_group();
        });
    }
    match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("the program ended with {status}"),
        Err(error) => eprintln!("the program's end was not seen: {error}"),
    }
    // What it started and left behind goes with it; so does the guard.
    end_group();
    ExitCode::FAILURE
}

fn end_group() {
    if let Err(error) = kill_current_process_group(Signal::KILL) {
        eprintln!("the process group was not ended: {error}");
    }
}

//! The process between the engine and a tool server's program: it ends the program, and everything that the program
//! started, when the engine is gone, however the engine went.
//!
//! The engine starts itself again with [`ARGUMENT`] as the leader of a process group of its own. The guard passes its
//! standard input on to the program; the end of that input means that the engine let go or died (kill -9 closes pipes
//! too). The program then has `GRACE` to end by itself, and what is left is killed. Standard output is the program's
//! own, so answers pass through no one. The guard runs before the engine's runtime is made: it has three threads and
//! shares the program's pages. One of them does nothing but wait for the engine's end: whoever passes the input on may
//! be stuck in a write to a program that reads nothing.
//!
//! The guard adopts what the program orphans, so that a program that makes itself a daemon (another session, nobody's
//! child) is still below it, is reaped, and ends with it. Should the guard be killed itself, the engine adopts what
//! it leaves, and the cluster agent what an engine leaves that is killed together with it.

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{WaitOptions, wait},
};
use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::Once,
    thread,
    time::Duration,
};

/// The first argument that makes a guard of the engine's program; the tool server's program and its arguments follow.
pub const ARGUMENT: &str = "tool-guard";

/// How long a program has to end after its standard input ended.
const GRACE: Duration = Duration::from_secs(1);
/// For what is killed to be gone, before the guard leaves it to the engine.
const GONE: Duration = Duration::from_secs(10);

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
    if let Err(error) = roadstead_processes::adopt_orphans() {
        eprintln!("what the program leaves behind is not adopted: {error}");
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
            follow();
        });
        thread::spawn(|| {
            if hung_up() {
                follow();
            }
        });
    }
    match ended(child.id().cast_signed()) {
        Some(status) if status.success() => {}
        Some(status) => eprintln!("the program ended with {status}"),
        None => eprintln!("the program's end was not seen"),
    }
    leave();
    ExitCode::FAILURE
}

/// Waits until nobody can write to the standard input any more, whatever is in it still. `false`: it is no pipe.
fn hung_up() -> bool {
    let input = io::stdin();
    let mut input = [PollFd::new(&input, PollFlags::empty())];
    loop {
        match poll(&mut input, None) {
            Ok(_) if input[0].revents().contains(PollFlags::HUP) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return false,
        }
    }
}

/// Ends after the engine.
fn follow() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::sleep(GRACE);
        leave();
        std::process::exit(1);
    });
}

/// Waits for the end of the program, and reaps what it orphaned meanwhile.
fn ended(program: i32) -> Option<ExitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_pid() == program => {
                return Some(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Ends the program with everything that it started and left behind: the guard has no other children.
fn leave() {
    match roadstead_processes::end(&[], GONE) {
        Ok(0) => {}
        Ok(left) => eprintln!("{left} processes that the program started cannot be killed"),
        Err(error) => eprintln!("what the program started was not looked for: {error}"),
    }
}

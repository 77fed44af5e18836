//! Tool servers that are programs: started in a process group of their own with a clean environment, their standard
//! error in the engine's log, ended with the engine (see [`super::guard`]).

use super::{config::ServerConfig, guard};
use parking_lot::Mutex;
use roadstead_contract::control::SecretText;
use roadstead_processes::Started;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::{BTreeMap, VecDeque},
    env,
    ffi::OsString,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::spawn_blocking,
};

/// Longest line of standard error that is logged, in bytes.
const MAX_LINE: u64 = 4096;
/// Lines kept to tell why a program ended: its own last one, and the guard's with the exit status.
const LAST_LINES: usize = 2;
/// For what a killed guard left to be gone.
const GONE: Duration = Duration::from_secs(10);

/// A program that runs.
#[derive(Debug)]
pub(super) struct Program {
    /// Of the process group; `None` once the guard, or nobody, is to end it.
    group: Option<Pid>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

/// The program's standard output and input.
pub(super) type Pipes = (ChildStdout, ChildStdin);

impl Program {
    /// Starts the program of a server; `guard` is the program that can stand between, if there is one.
    ///
    /// # Errors
    /// The program is not there or does not start, and what to do about it.
    pub(super) fn start(
        config: &Arc<ServerConfig>,
        (command, env, advice): (&[String], &BTreeMap<String, SecretText>, &str),
        guard: Option<&Path>,
    ) -> Result<(Self, Pipes), String> {
        let path = env
            .get("PATH")
            .map(|p| OsString::from(p.expose()))
            .or_else(|| env::var_os("PATH"));
        let (program, arguments) = command.split_first().ok_or("expected a program, found none")?;
        let Some(found) = find(program, path.as_ref()) else {
            return Err(format!(
                "expected the program {program}, found none on the PATH: {advice}"
            ));
        };
        let mut process = match guard {
            Some(guard) => {
                let mut process = Command::new(guard);
                process.arg(guard::ARGUMENT).arg(found);
                process
            }
            None => Command::new(found),
        };
        process
            .args(arguments)
            .env_clear()
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in [("PATH", path), ("HOME", env::var_os("HOME"))] {
            if let Some(value) = value {
                process.env(name, value);
            }
        }
        process.envs(env.iter().map(|(name, value)| (name, value.expose())));
        let (mut child, started) = roadstead_processes::start(|| {
            let child = process.spawn()?;
            let pid = child.id();
            Ok((child, pid))
        })
        .map_err(|e| format!("{program} does not start: {e}"))?;
        let pipes = child.stdout.take().zip(child.stdin.take());
        let pipes = pipes.ok_or("the program's pipes are not there")?;
        let last_words = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log(Arc::clone(config), stderr, Arc::clone(&last_words)));
        }
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let group = group.filter(|_| guard.is_none());
        tokio::spawn(reap(Arc::clone(config), child, started));
        Ok((Self { group, last_words }, pipes))
    }

    /// The last lines of standard error, cleaned; empty if there were none.
    pub(super) fn last_words(&self) -> String {
        let lines = self.last_words.lock();
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Already gone is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The file that `program` means: a path, or the first executable of that name on the PATH.
fn find(program: &str, path: Option<&OsString>) -> Option<PathBuf> {
    let executable = |file: &PathBuf| {
        file.metadata()
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(executable);
    }
    env::split_paths(path?)
        .map(|folder| folder.join(program))
        .find(executable)
}

async fn reap(config: Arc<ServerConfig>, mut child: Child, started: Started) {
    match child.wait().await {
        Ok(status) => tracing::debug!(server = config.reference, %status, "a tool server's program ended"),
        Err(error) => tracing::warn!(server = config.reference, %error, "a tool server's end was not seen"),
    }
    drop(started);
    // A guard that was killed left its program, and whatever that started, to the engine.
    match spawn_blocking(|| roadstead_processes::end(&[], GONE)).await {
        Ok(Ok(0)) | Err(_) => {}
        Ok(Ok(left)) => tracing::error!(
            server = config.reference,
            left,
            "processes that a tool server started cannot be killed"
        ),
        Ok(Err(error)) => tracing::error!(
            server = config.reference,
            %error,
            "what a tool server left was not looked for"
        ),
    }
}

/// Logs each line of standard error, without the server's secrets, and keeps the last ones.
async fn log(config: Arc<ServerConfig>, stderr: ChildStderr, last: Arc<Mutex<VecDeque<String>>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without end is cut into pieces.
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = config.shown(&String::from_utf8_lossy(&line));
        if !text.is_empty() {
            tracing::info!(server = config.reference, line = text, "tool server");
            let mut last = last.lock();
            last.push_back(text);
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
    }
}

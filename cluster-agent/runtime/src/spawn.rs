//! Starts an engine's process. See the crate's header for what is enforced on it.

use crate::{
    config::{Config, INHERITED},
    folder::Folder,
};
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use roadstead_processes::{Id, Started};
use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::Semaphore,
};

/// A process and its pipes.
pub(crate) struct Engine {
    pub(crate) process: Process,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

/// For everything that an engine leaves to be gone.
const CLEARED: Duration = Duration::from_secs(10);
/// Engines that are cleared at once: each takes a blocking thread for as long, and others need some too.
static CLEARING: Semaphore = Semaphore::const_new(8);

/// A running process. Dropping it kills the engine itself.
#[derive(Debug)]
pub(crate) struct Process {
    child: Box<dyn ChildWrapper>,
    id: Id,
    /// After the child, which may have to be reaped.
    _started: Started,
}

/// Milliseconds after which an engine's allocator gives freed pages back: it would keep them for a second, 1 MiB of
/// them after a load (docs/benchmarks.md).
const PURGE_DELAY: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10");

pub(crate) fn spawn(config: &Config, folder: &Folder) -> io::Result<Engine> {
    let mut command = CommandWrap::with_new(&config.engine, |command| {
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--state"])
            .arg(folder.journal())
            .current_dir(folder.own())
            .env_clear()
            .envs(
                INHERITED
                    .iter()
                    .filter_map(|name| Some((*name, (config.lookup)(name)?))),
            )
            .env(PURGE_DELAY.0, PURGE_DELAY.1)
            .envs(&config.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
    });
    command.wrap(ProcessSession);
    // The wrapper's own child waits for a whole group; here the engine's end is what counts, the rest is killed.
    let (mut child, started) = roadstead_processes::start(|| {
        let child = command.spawn()?.into_inner();
        let pid = child.id();
        Ok((child, pid))
    })?;
    let pipes = (child.stdin().take(), child.stdout().take(), child.stderr().take());
    let id = child.id().map(u32::cast_signed);
    let ((Some(stdin), Some(stdout), Some(stderr)), Some(pid)) = (pipes, id) else {
        return Err(io::Error::other("the process ended before it was seen"));
    };
    forbid_core_dumps(pid);
    // It is not reaped yet, so it is listed; where nothing is, nothing will be found below it either.
    let id = Id::of(pid).unwrap_or(Id { pid, started: 0 });
    Ok(Engine {
        process: Process {
            child,
            id,
            _started: started,
        },
        stdin,
        stdout,
        stderr,
    })
}

/// Before the engine holds any secret: none is sent until it was spawned and this was done.
#[cfg(target_os = "linux")]
fn forbid_core_dumps(pid: i32) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = prlimit(Pid::from_raw(pid), Resource::Core, none) {
        tracing::debug!(%error, pid, "core dumps of an engine could not be forbidden");
    }
}

#[cfg(not(target_os = "linux"))]
fn forbid_core_dumps(_: i32) {}

impl Process {
    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// Safe to cancel.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills the engine; what it started is for [`clear`]. Safe to repeat.
    pub(crate) fn kill(&mut self) {
        // It has ended by itself.
        let _ = self.child.start_kill();
    }
}

/// Kills everything of the engine's session, wherever it went, the engine too if it lives.
pub(crate) async fn clear(engine: Id) {
    // It is never closed.
    let _permit = CLEARING.acquire().await;
    clear_all(vec![engine]).await;
}

/// The same of many at once, in the time of one.
pub(crate) async fn clear_all(engines: Vec<Id>) {
    let pids: Vec<i32> = engines.iter().map(|engine| engine.pid).collect();
    let cleared = tokio::task::spawn_blocking(move || roadstead_processes::end(&engines, CLEARED)).await;
    match cleared.map_err(io::Error::from).flatten() {
        Ok(0) => {}
        Ok(left) => tracing::error!(
            engines = ?pids,
            left,
            "processes that engines started cannot be killed"
        ),
        Err(error) => tracing::error!(engines = ?pids, %error, "what engines left was not looked for"),
    }
}

/// How a process ended, for people.
pub(crate) fn ended(status: io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

//! Child processes that do not outlive the test.

use anyhow::Context as _;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// A child in a process group of its own, with its output in a file; killed, group and all, on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error in `log` (appended).
    ///
    /// # Errors
    /// When the program does not start or the log cannot be opened.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("{}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9 of this process alone; its children are left to notice.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends `signal` (`INT`, `TERM`, `STOP`, `CONT`).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.id().to_string())
            .status()?;
        anyhow::ensure!(sent.success(), "kill -{signal} {} failed", self.id());
        Ok(())
    }

    /// The exit status; `None` while it runs.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill")
            .args(["-9", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), tail(&self.output()));
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A process as the kernel tells of it (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub parent: u32,
    pub session: u32,
    /// It runs no more and waits to be reaped.
    pub ended: bool,
}

/// One process; `None` if there is none.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Stat {
        ended: *fields.first()? == "Z",
        parent: number(1)?,
        session: number(3)?,
    })
}

/// The processes below `root` (children, grandchildren, …) that still run, by /proc.
///
/// # Errors
/// When /proc cannot be read.
pub fn descendants(root: u32) -> anyhow::Result<Vec<u32>> {
    let parents = parents()?;
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// The processes that `parent` started itself and that still run.
///
/// # Errors
/// When /proc cannot be read.
pub fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let all = parents()?.into_iter();
    Ok(all.filter(|(_, p)| *p == parent).map(|(pid, _)| pid).collect())
}

/// Every process with its parent.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(stat) = stat(pid) {
            parents.push((pid, stat.parent));
        }
    }
    Ok(parents)
}

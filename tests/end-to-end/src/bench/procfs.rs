//! What /proc says of a process.

use anyhow::Context as _;
use std::{fmt, time::Duration};

/// Resident memory, as the tables show it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All of it, in MiB.
    rss: f64,
    /// What is the process's alone; the rest are pages of its program and libraries, which processes share.
    anonymous: f64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB ({:.1} anonymous)", self.rss, self.anonymous)
    }
}

/// Resident memory of a process.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name));
        let kib = line.and_then(|l| l.split_whitespace().nth(1));
        let kib: f64 = kib
            .with_context(|| format!("{name} in /proc/PID/status"))?
            .parse()?;
        anyhow::Ok(kib / 1024.0)
    };
    Ok(Memory {
        rss: mib("VmRSS:")?,
        anonymous: mib("RssAnon:")?,
    })
}

/// The most resident memory that a process has had so far, in MiB.
pub(crate) fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1));
    let kib: f64 = kib.context("VmHWM in /proc/PID/status")?.parse()?;
    Ok(kib / 1024.0)
}

/// Proportional memory in MiB: a page that several processes share counts as its share of it.
pub(crate) fn proportional_mib(pid: u32) -> anyhow::Result<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|l| l.starts_with("Pss:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1));
    let kib: f64 = kib.context("Pss in /proc/PID/smaps_rollup")?.parse()?;
    Ok(kib / 1024.0)
}

/// How long the process's threads have run so far, in user mode and in the kernel.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        if let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) {
            let nanos = text.split(' ').next().context("schedstat")?.parse()?;
            total += Duration::from_nanos(nanos);
        }
    }
    Ok(total)
}

//! Numbers, and the table they end in.

use anyhow::Context as _;
use std::time::Duration;

/// A Markdown table: what, measured.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<[String; 2]>);

impl Figures {
    pub(super) fn row(&mut self, what: &str, measured: String) {
        self.0.push([what.to_owned(), measured]);
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let rows = self
            .0
            .iter()
            .map(|[what, measured]| format!("| {what} | {measured} |\n"));
        format!("| what | measured |\n|---|---|\n{}", rows.collect::<String>())
    }
}

/// Seconds, as the table shows them.
#[must_use]
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// p50 and p99 in milliseconds.
#[must_use]
pub(super) fn p50_p99(mut samples: Vec<Duration>) -> String {
    samples.sort_unstable();
    let at = |percent: usize| {
        let position = samples.len().saturating_sub(1) * percent / 100;
        samples
            .get(position)
            .map_or(f64::NAN, |d| d.as_secs_f64() * 1_000.0)
    };
    format!("{:.1} / {:.1} ms", at(50), at(99))
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// It has ended, or /proc is not there.
pub(super) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("VmRSS in /proc/PID/status")?.parse()?)
}

/// How long a process has run so far, in user mode and in the kernel, ended threads too.
///
/// # Errors
/// It has ended, or /proc is not there.
pub(super) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program may hold anything; what follows it does not.
    let fields = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || ticks.next().context("/proc/PID/stat");
    let (user, system) = (next()??, next()??);
    // USER_HZ is 100 on every Linux that there is (man 5 proc).
    Ok(Duration::from_millis((user + system) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process_are_plausible() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 500);
        assert!(cpu(pid).is_ok());
        let samples = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(p50_p99(samples), "50.0 / 99.0 ms");
    }
}

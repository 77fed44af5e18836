//! Other processes, as the kernel lists them.
//!
//! Linux only: elsewhere the list is empty, so nothing is found, measured or killed by it. A session is named by the
//! pid of the process that began it, and the kernel gives that number to no other process while the session has
//! members (setsid(2)), so what is found by session belongs to the engine that was started.

use rustix::process::{Pid, Signal, kill_process};

/// One line of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) pid: i32,
    pub(crate) session: i32,
    /// Ticks since the machine started; with the pid it names a process for good.
    pub(crate) started: u64,
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    zombie: bool,
}

/// Every process that can be seen.
pub(crate) fn list() -> Vec<Listed> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    folder
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(look)
        .collect()
}

/// One process; `None` if it is gone.
pub(crate) fn look(pid: i32) -> Option<Listed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(pid, &stat, rustix::param::page_size() as u64)
}

/// `/proc/<pid>/stat`, proc_pid_stat(5): the name in brackets may hold anything, so fields count from its end.
fn parse(pid: i32, stat: &str, page: u64) -> Option<Listed> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Listed {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        resident: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(page),
    })
}

/// Kills every process of the session but zombies; returns how many there were.
pub(crate) fn kill_session(session: i32) -> usize {
    let members = list().into_iter().filter(|p| p.session == session && !p.zombie);
    members.filter(|member| kill(member.pid)).count()
}

fn kill(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// Whether any process of the session still runs.
pub(crate) fn session_lives(session: i32) -> bool {
    list().iter().any(|p| p.session == session && !p.zombie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat =
            "42 (a) b (c) S 1 42 7 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 4 0 12345 1000 30 18446744073709551615";
        let listed = parse(42, stat, 4096).unwrap();
        assert_eq!(
            (listed.session, listed.started, listed.resident),
            (7, 12345, 30 * 4096)
        );
        assert_eq!(parse(42, "42 (x", 4096), None);
        assert_eq!(parse(42, "42 (x) S 1", 4096), None);
    }
}

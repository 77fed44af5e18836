//! Processes as the kernel lists them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
};

/// How often a process is looked at again whose parent is not listed.
const RETOLD: u32 = 5;

/// Names a process for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub pid: i32,
    /// Ticks since the machine started.
    pub started: u64,
}

impl Id {
    /// The process that has the number now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        look(pid).map(|listed| listed.id())
    }
}

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub pid: i32,
    pub parent: i32,
    /// Process group.
    pub group: i32,
    pub session: i32,
    /// Ticks since the machine started.
    pub started: u64,
    /// Resident memory in bytes.
    pub resident: u64,
    /// It runs no more, none of its threads does, and it waits to be reaped.
    pub ended: bool,
}

impl Listed {
    #[must_use]
    pub fn id(&self) -> Id {
        Id {
            pid: self.pid,
            started: self.started,
        }
    }
}

/// One process; `None` if it is gone, or cannot be looked at.
#[must_use]
pub fn look(pid: i32) -> Option<Listed> {
    read(pid).ok().flatten()
}

/// One process; `None` if it is gone.
///
/// # Errors
/// It says nothing of it: no file can be opened, for example.
pub fn read(pid: i32) -> io::Result<Option<Listed>> {
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let page = rustix::param::page_size() as u64;
    // The name is whatever bytes the process gave itself.
    let parsed = parse(pid, &String::from_utf8_lossy(&stat), page);
    Ok(parsed.map(|(listed, headless)| match headless {
        true => Listed {
            resident: threads_resident(pid).saturating_mul(page),
            ..listed
        },
        false => listed,
    }))
}

/// What reading of a process says that ended meanwhile, or that belongs to others where they are hidden.
fn is_gone(error: &io::Error) -> bool {
    let ended = error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
    ended
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
        )
}

/// `/proc/<pid>/stat`, proc_pid_stat(5): the name in brackets may hold anything, so fields count from its end. And
/// whether its first thread has ended while others run: then it is shown as a zombie without memory, and is none.
fn parse(pid: i32, stat: &str, page: u64) -> Option<(Listed, bool)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    let state = *fields.first()?;
    let threads: i32 = number(17)?;
    let headless = state == "Z" && threads > 1;
    let listed = Listed {
        pid,
        ended: matches!(state, "Z" | "X") && !headless,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        started: fields.get(19)?.parse().ok()?,
        resident: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(page),
    };
    Some((listed, headless))
}

/// Resident pages of a process by its threads, which share them: those that have ended show none.
fn threads_resident(pid: i32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let pages = |task: fs::DirEntry| {
        let statm = fs::read_to_string(task.path().join("statm")).ok()?;
        statm.split_whitespace().nth(1)?.parse().ok()
    };
    tasks
        .flatten()
        .filter_map(pages)
        .find(|pages| *pages > 0)
        .unwrap_or(0)
}

/// The children of this process, quickly: by `/proc/self/task/<tid>/children`, proc_pid_task(5). `None` where the
/// kernel was built without.
pub(crate) fn own_children() -> Option<Vec<Listed>> {
    let mut pids: Vec<i32> = Vec::new();
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(list) => pids.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // The thread has ended meanwhile, and its children are another's.
            Err(_) if !task.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(pids.into_iter().filter_map(look).collect())
}

/// Every process that could be seen.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    all: Vec<Listed>,
    /// Places in `all`, by parent.
    children: BTreeMap<i32, Vec<usize>>,
}

impl Listing {
    /// # Errors
    /// They cannot be read, so nothing is known of them: no file can be opened, for example.
    pub fn now() -> io::Result<Self> {
        let mut all: BTreeMap<i32, Listed> = BTreeMap::new();
        if !cfg!(target_os = "linux") {
            return Ok(Self::default());
        }
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if let Some(listed) = read(pid)? {
                all.insert(pid, listed);
            }
        }
        // They are read one after another: whoever was read before its parent went has another one by now, and with
        // the one that is not listed it would be below nobody.
        for _ in 0..RETOLD {
            let lost: Vec<i32> = all
                .values()
                .filter(|p| p.parent != 0 && !all.contains_key(&p.parent))
                .map(|p| p.pid)
                .collect();
            if lost.is_empty() {
                break;
            }
            for pid in lost {
                match read(pid)? {
                    Some(now) => all.insert(pid, now),
                    None => all.remove(&pid),
                };
            }
        }
        Ok(Self::of(all.into_values().collect()))
    }

    fn of(all: Vec<Listed>) -> Self {
        let mut children: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (at, process) in all.iter().enumerate() {
            children.entry(process.parent).or_default().push(at);
        }
        Self { all, children }
    }

    pub(crate) fn all(&self) -> &[Listed] {
        &self.all
    }

    pub(crate) fn children(&self, parent: i32) -> impl Iterator<Item = &Listed> {
        let places = self.children.get(&parent).into_iter().flatten();
        places.filter_map(|at| self.all.get(*at))
    }

    /// `roots` and everything below them, nearest first, each once.
    pub(crate) fn below(&self, roots: Vec<Listed>) -> Vec<Listed> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        let mut next = VecDeque::from(roots);
        while let Some(process) = next.pop_front() {
            if seen.insert(process.pid) {
                found.push(process);
                next.extend(self.children(process.pid));
            }
        }
        found
    }

    /// The session that `leader` began and everything below its members, the leader first if it is there.
    ///
    /// The kernel gives the leader's number to no other process while the session has members (setsid(2)); when it has
    /// none any more, whoever has the number by then is not taken for it.
    #[must_use]
    pub fn session(&self, leader: Id) -> Vec<Listed> {
        let stranger = |p: &Listed| p.pid == leader.pid && p.started != leader.started;
        if self.all.iter().any(stranger) {
            return Vec::new();
        }
        let member = |p: &&Listed| p.session == leader.pid || p.pid == leader.pid;
        let mut roots: Vec<Listed> = self.all.iter().filter(member).copied().collect();
        roots.sort_by_key(|p| p.pid != leader.pid);
        self.below(roots)
    }

    /// Resident memory of [`Self::session`], in bytes.
    #[must_use]
    pub fn resident(&self, leader: Id) -> u64 {
        self.session(leader).iter().map(|p| p.resident).sum()
    }

    /// Of the members of a session those that the leader started as leaders of a group each, with somebody below: the
    /// guards of tool servers.
    pub(crate) fn leaders(&self, members: &[Listed], leader: Id) -> BTreeSet<i32> {
        let known: BTreeSet<i32> = members.iter().map(|p| p.pid).collect();
        let started_by_leader = |p: &&Listed| p.parent == leader.pid || !known.contains(&p.parent);
        let leads = |p: &&Listed| p.pid == p.group && p.session == leader.pid && p.pid != leader.pid;
        let above = |p: &&Listed| self.children(p.pid).any(|child| !child.ended);
        let guards = members
            .iter()
            .filter(leads)
            .filter(started_by_leader)
            .filter(above);
        guards.map(|p| p.pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat =
            "42 (a) b (c) S 1 41 7 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 4 0 12345 1000 30 18446744073709551615";
        let (listed, headless) = parse(42, stat, 4096).unwrap();
        assert!(!listed.ended && !headless);
        assert_eq!((listed.parent, listed.group, listed.session), (1, 41, 7));
        assert_eq!((listed.started, listed.resident), (12345, 30 * 4096));
        assert_eq!(parse(42, "42 (x", 4096), None);
        assert_eq!(parse(42, "42 (x) S 1", 4096), None);
    }

    #[test]
    fn a_zombie_with_threads_has_not_ended() {
        let with = |state: &str, threads: u32| {
            let stat = format!("42 (x) {state} 1 41 7 0 -1 0 9 0 0 0 1 2 0 0 20 0 {threads} 0 12345 0 0");
            let (listed, headless) = parse(42, &stat, 4096).unwrap();
            (listed.ended, headless)
        };
        assert_eq!(with("Z", 2), (false, true));
        // The last one may be counted or not while it goes.
        assert_eq!((with("Z", 1), with("Z", 0)), ((true, false), (true, false)));
        assert_eq!((with("X", 1), with("D", 1)), ((true, false), (false, false)));
    }

    /// (pid, parent, session), each started at ten times its pid.
    fn listing(processes: &[(i32, i32, i32)]) -> Listing {
        let listed = |&(pid, parent, session): &(i32, i32, i32)| Listed {
            pid,
            parent,
            group: pid,
            session,
            started: u64::from(pid.unsigned_abs()) * 10,
            resident: 1,
            ended: false,
        };
        Listing::of(processes.iter().map(listed).collect())
    }

    fn pids(found: &[Listed]) -> Vec<i32> {
        found.iter().map(|p| p.pid).collect()
    }

    #[test]
    fn a_session_is_its_members_and_all_below_them_wherever_they_went() {
        // An engine with a guard and its program, which has a daemon (70) that the guard adopted; then another engine.
        let all = listing(&[
            (1, 0, 1),
            (9, 1, 9),
            (30, 9, 30),
            (40, 30, 30),
            (50, 40, 30),
            (70, 40, 70),
            (71, 70, 71),
            (80, 9, 80),
        ]);
        let leader = Id {
            pid: 30,
            started: 300,
        };
        let found = all.session(leader);
        assert_eq!(pids(&found), [30, 40, 50, 70, 71]);
        assert_eq!(all.resident(leader), 5);
        assert_eq!(all.leaders(&found, leader), BTreeSet::from([40]));
        // The leader is gone and its guard came up: the rest is found by the session.
        let orphaned = listing(&[(9, 1, 9), (40, 9, 30), (70, 40, 70), (80, 9, 80)]);
        assert_eq!(pids(&orphaned.session(leader)), [40, 70]);
        // Somebody else has the number.
        let reused = listing(&[(30, 9, 30), (31, 30, 30)]);
        assert_eq!(pids(&reused.session(Id { pid: 30, started: 7 })), []);
    }

    #[test]
    fn parents_in_a_circle_end() {
        // Cannot be, but what was read at different moments may look so.
        let all = listing(&[(2, 3, 2), (3, 2, 2)]);
        assert_eq!(pids(&all.session(Id { pid: 2, started: 20 })), [2, 3]);
    }
}

//! Processes as the kernel lists them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often a process is looked at again whose parent is not listed.
const RETOLD: u32 = 5;

/// Names a process for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// It runs no more and waits to be reaped.
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

/// One process; `None` if it is gone.
#[must_use]
pub fn look(pid: i32) -> Option<Listed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(pid, &stat, rustix::param::page_size() as u64)
}

/// `/proc/<pid>/stat`, proc_pid_stat(5): the name in brackets may hold anything, so fields count from its end.
fn parse(pid: i32, stat: &str, page: u64) -> Option<Listed> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Listed {
        pid,
        ended: matches!(*fields.first()?, "Z" | "X"),
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        started: fields.get(19)?.parse().ok()?,
        resident: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(page),
    })
}

/// The children of this process, quickly: by `/proc/self/task/<tid>/children`, proc_pid_task(5). `None` where the
/// kernel was built without.
pub(crate) fn own_children() -> Option<Vec<Listed>> {
    let mut pids: Vec<i32> = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
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
    #[must_use]
    pub fn now() -> Self {
        let Ok(folder) = std::fs::read_dir("/proc") else {
            return Self::default();
        };
        let pids = folder
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut all: BTreeMap<i32, Listed> = pids.filter_map(look).map(|p| (p.pid, p)).collect();
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
                match look(pid) {
                    Some(now) => all.insert(pid, now),
                    None => all.remove(&pid),
                };
            }
        }
        Self::of(all.into_values().collect())
    }

    fn of(all: Vec<Listed>) -> Self {
        let mut children: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (at, process) in all.iter().enumerate() {
            children.entry(process.parent).or_default().push(at);
        }
        Self { all, children }
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
        let listed = parse(42, stat, 4096).unwrap();
        assert_eq!((listed.parent, listed.group, listed.session), (1, 41, 7));
        assert_eq!((listed.started, listed.resident), (12345, 30 * 4096));
        assert_eq!(parse(42, "42 (x", 4096), None);
        assert_eq!(parse(42, "42 (x) S 1", 4096), None);
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

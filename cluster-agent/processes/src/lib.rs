//! Processes below one of ours: found, measured and ended, also when they do not want to be.
//!
//! A program can leave its process group and its session (`setsid`), and let its parent die so that nobody is above it
//! (a daemon). It cannot leave the tree of parents below a process that adopts orphans ([`adopt_orphans`]): what is
//! orphaned there comes up to the next living process above that adopts. So cluster agent, engine and the guard of
//! each tool server adopt, and
//!
//! * what a living engine started is below it;
//! * what a dead one left is in its session, below a guard, or a *stray*: a child of the process above that this
//!   process did not start itself. For that each child is started by [`start`].
//!
//! [`end`] kills all of it, again and again until nothing is left: a program may fork while it is killed.
//!
//! Linux only: elsewhere nothing is found, measured or ended by it. `/proc` must show the user's own processes
//! (mounted with `hidepid=2` it hides those that made themselves unreadable, see [`hide`]).

mod listing;

use listing::own_children;
pub use listing::{Id, Listed, Listing, look};

use parking_lot::Mutex;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid,
};
use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant},
};

/// The children that this process started itself and has not reaped. One for the process, as the kernel's own list is.
static STARTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// Children that were there before: a script may have started them and then become this process (`helper & exec …`).
static EARLIER: Mutex<Vec<Id>> = Mutex::new(Vec::new());

/// For a killed process to be gone; it grows to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Rounds in which those who adopt orphans are spared while there is anything below them.
const SPARED: u32 = 50;
/// Looks in a row that must find nothing.
const EMPTY: u32 = 2;

/// Makes this process the parent of everything below it that loses its own. To be called before it starts any child;
/// children that it has by then are not touched by [`end`].
///
/// # Errors
/// The system does not know it.
#[cfg(target_os = "linux")]
pub fn adopt_orphans() -> io::Result<()> {
    let mut earlier = EARLIER.lock();
    if adopts_orphans() {
        return Ok(());
    }
    let own = std::process::id().cast_signed();
    // An engine's start has no time for a look at all processes.
    let there = own_children().unwrap_or_else(|| Listing::now().children(own).copied().collect());
    earlier.extend(there.iter().map(Listed::id));
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}

/// As on Linux, which this is not.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn adopt_orphans() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes memory and environment of this process unreadable for other processes of its user (root reads them all the
/// same), and forbids its core dumps; programs that it starts are as readable as ever. To be called before secrets are
/// read. `/proc/<pid>/stat` and `status` stay readable; debuggers and profilers then need root.
///
/// # Errors
/// The system refuses. Where there is no such thing it is no error.
pub fn hide() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Without that, whatever turns up as a child was started by other code of this process.
#[cfg(target_os = "linux")]
fn adopts_orphans() -> bool {
    rustix::process::child_subreaper().is_ok_and(|set| set.is_some())
}

#[cfg(not(target_os = "linux"))]
fn adopts_orphans() -> bool {
    false
}

/// A child that this process started. To be kept until the child is reaped.
#[derive(Debug)]
pub struct Started(i32);

impl Drop for Started {
    fn drop(&mut self) {
        STARTED.lock().remove(&self.0);
    }
}

/// Starts a child by `spawn`, which also tells its pid. What else turns up as a child is a stray.
///
/// # Errors
/// Those of `spawn`.
pub fn start<T>(spawn: impl FnOnce() -> io::Result<(T, Option<u32>)>) -> io::Result<(T, Started)> {
    // Held meanwhile: between the fork and the entry the child would be a stray.
    let mut started = STARTED.lock();
    let (child, pid) = spawn()?;
    // No pid: it has ended and was reaped.
    let pid = pid.map_or(0, u32::cast_signed);
    if pid != 0 {
        started.insert(pid);
    }
    Ok((child, Started(pid)))
}

/// Whether a child of this process is one that it started, or runs in the session of one.
fn ours(process: &Listed) -> bool {
    let started = STARTED.lock();
    started.contains(&process.pid)
        || (!process.ended && started.contains(&process.session))
        || EARLIER.lock().contains(&process.id())
}

/// What is to end. Strays are being killed already.
struct Tree {
    /// Nearest to the top first.
    members: Vec<Listed>,
    /// Of the members those that adopt what is orphaned below them, as far as can be told.
    keepers: BTreeSet<i32>,
    /// Strays that ended and wait to be reaped.
    ended: BTreeSet<i32>,
}

/// The children of this process that it did not start. Somebody who forks and ends again and again is here too at any
/// moment, and is hit: [`Listing::now`] takes long enough to miss them.
fn strays() -> Vec<Listed> {
    if !adopts_orphans() {
        return Vec::new();
    }
    let mut strays = own_children().unwrap_or_default();
    strays.retain(|p| !ours(p));
    strays
}

fn tree(session: Option<Id>) -> Tree {
    let mut strays = strays();
    strays.iter().filter(|p| !p.ended).for_each(kill);
    let all = Listing::now();
    let own = std::process::id().cast_signed();
    let mut members = session.map_or_else(Vec::new, |leader| all.session(leader));
    let keepers = session.map_or_else(BTreeSet::new, |leader| all.leaders(&members, leader));
    if adopts_orphans() {
        strays.extend(all.children(own).filter(|p| !ours(p)));
    }
    let ended = strays.iter().filter(|p| p.ended).map(|p| p.pid).collect();
    let known: BTreeSet<i32> = members.iter().map(|p| p.pid).collect();
    let strays = all.below(strays).into_iter().filter(|p| !known.contains(&p.pid));
    members.extend(strays);
    members.retain(|p| !p.ended && p.pid != own);
    Tree {
        members,
        keepers,
        ended,
    }
}

/// Kills everything of the session that `leader` began, the leader too, and every stray of this process with what is
/// below it; repeats that until nothing is left, at most for `within`. How many are left then: such as wait for a
/// broken disk, or became another user. Blocks.
pub fn end(leader: Option<Id>, within: Duration) -> usize {
    let (until, mut pause) = (Instant::now() + within, PAUSE);
    let (mut round, mut empty) = (0, 0);
    loop {
        let tree = tree(leader);
        tree.ended.iter().copied().for_each(reap);
        if tree.members.is_empty() && tree.ended.is_empty() {
            empty += 1;
            if empty == EMPTY {
                return 0;
            }
            continue;
        }
        empty = 0;
        if Instant::now() >= until {
            return tree.members.len();
        }
        // The leader first: it would start anew what it finds gone. Then from below, and those who adopt at last: what
        // loses its parent in between comes to them.
        round += 1;
        let spare = |p: &&Listed| round <= SPARED && tree.keepers.contains(&p.pid);
        let is_leader = |p: &&Listed| leader.is_some_and(|l| l == p.id());
        tree.members.iter().filter(is_leader).for_each(kill);
        tree.members.iter().rev().filter(|p| !spare(p)).for_each(kill);
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Kills exactly the process that was listed, whoever may have its number by now.
fn kill(process: &Listed) {
    let Some(pid) = Pid::from_raw(process.pid).filter(|pid| !pid.is_init()) else {
        return;
    };
    let same = || look(process.pid).is_some_and(|now| now.started == process.started);
    // Gone, or not to be killed by this user: whoever counts what is left sees it.
    let _ = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) if same() => pidfd_send_signal(fd, Signal::KILL),
        // An old kernel.
        Err(rustix::io::Errno::NOSYS) if same() => kill_process(pid, Signal::KILL),
        _ => Ok(()),
    };
}

fn reap(pid: i32) {
    // Held: what is reaped must not be a child that got the number a moment ago.
    let started = STARTED.lock();
    if !started.contains(&pid) {
        let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
    }
}

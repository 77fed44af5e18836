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
//! [`end`] kills all of it, again and again until nothing is left: a program may fork while it is killed. What does
//! not go (another user's, or waiting for a broken disk) is waited for once, remembered, and killed in passing from
//! then on: it must not hold up the end of others.
//!
//! Linux only: elsewhere nothing is found, measured or ended by it. `/proc` must show the user's own processes
//! (mounted with `hidepid=2` it hides those that made themselves unreadable, see [`hide`]).

mod listing;

use listing::own_children;
pub use listing::{Id, Listed, Listing, look, read};

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
static EARLIER: Mutex<Vec<Listed>> = Mutex::new(Vec::new());
/// What did not end when it was killed and waited for.
static GIVEN_UP: Mutex<BTreeSet<Id>> = Mutex::new(BTreeSet::new());

/// For a killed process to be gone; it grows to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Rounds in which those who adopt orphans are spared while there is anything below them.
const SPARED: u32 = 50;
/// Longest wait for strays where a session is to end: whose they are is not known.
const STRAYS: Duration = Duration::from_secs(3);
/// Looks in a row that must find nothing.
const EMPTY: u32 = 2;

/// Makes this process the parent of everything below it that loses its own. To be called before it starts any child;
/// children that it has by then are not touched by [`end`], nor are the sessions that they are in; what such a child
/// leaves in this process's own session is a stray like any other.
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
    let there = match own_children() {
        Some(there) => there,
        None => Listing::now()?.children(own).copied().collect(),
    };
    earlier.extend(there);
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

/// Whether a child of this process is one that it started, or runs in the session of one, or was there before.
fn ours(process: &Listed) -> bool {
    let started = STARTED.lock();
    started.contains(&process.pid)
        || (!process.ended && started.contains(&process.session))
        || EARLIER.lock().iter().any(|earlier| {
            let same_session = earlier.session == process.session && earlier.session != own_session();
            earlier.id() == process.id() || (same_session && !process.ended)
        })
}

/// 0 where it began outside of this PID namespace, pid_namespaces(7): in a container that was entered, for example.
/// `getsid` of rustix takes that for impossible.
fn own_session() -> i32 {
    look(std::process::id().cast_signed()).map_or(0, |own| own.session)
}

/// What is to end. Strays are being killed already.
struct Tree {
    /// Of the sessions and what is below them; nearest to the top first, as below.
    members: Vec<Listed>,
    /// Of the members those that adopt what is orphaned below them, as far as can be told.
    keepers: BTreeSet<i32>,
    /// Strays that run and what is below them.
    strays: Vec<Listed>,
    /// Such as were given up before and what is below them.
    given_up: Vec<Listed>,
    /// Strays that ended and wait to be reaped.
    ended: BTreeSet<i32>,
}

impl Tree {
    /// Remembers what is left, and counts it.
    fn give_up(&self, leaders: &[Id]) -> usize {
        let left = || self.members.iter().chain(&self.strays).map(Listed::id);
        // An engine is waited for as often as it takes: no other may run on its journal.
        GIVEN_UP.lock().extend(left().filter(|id| !leaders.contains(id)));
        left().count()
    }
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

fn tree(leaders: &[Id]) -> io::Result<Tree> {
    let mut strays = strays();
    strays.iter().filter(|p| !p.ended).for_each(kill);
    let all = Listing::now()?;
    forget_gone(&all);
    let own = std::process::id().cast_signed();
    let (mut members, mut keepers) = (Vec::new(), BTreeSet::new());
    for leader in leaders {
        let session = all.session(*leader);
        keepers.extend(all.leaders(&session, *leader));
        members.extend(session);
    }
    if adopts_orphans() {
        strays.extend(all.children(own).filter(|p| !ours(p)));
    }
    let ended = strays.iter().filter(|p| p.ended).map(|p| p.pid).collect();
    let mut known: BTreeSet<i32> = members.iter().map(|p| p.pid).collect();
    known.insert(own);
    members.retain(|p| !p.ended && p.pid != own);
    let mut strays = all.below(strays);
    strays.retain(|p| !p.ended && !known.contains(&p.pid));
    let before = GIVEN_UP.lock();
    let tops = strays.iter().filter(|p| before.contains(&p.id()));
    let mut given_up = all.below(tops.copied().collect());
    given_up.retain(|p| !p.ended && !known.contains(&p.pid));
    let without: BTreeSet<i32> = given_up.iter().map(|p| p.pid).collect();
    strays.retain(|p| !without.contains(&p.pid));
    Ok(Tree {
        members,
        keepers,
        strays,
        given_up,
        ended,
    })
}

/// Numbers are given again: what is no more must not speak for somebody else.
fn forget_gone(all: &Listing) {
    let listed: BTreeSet<Id> = all.all().iter().map(Listed::id).collect();
    let sessions: BTreeSet<i32> = all.all().iter().map(|p| p.session).collect();
    GIVEN_UP.lock().retain(|id| listed.contains(id));
    EARLIER
        .lock()
        .retain(|p| listed.contains(&p.id()) || sessions.contains(&p.session));
}

/// Kills everything of the sessions that `leaders` began, the leaders too, and every stray of this process with what
/// is below it; repeats that until nothing is left, at most for `within`, and for strays a short time where there are
/// leaders. How many are left then, which are given up: such as wait for a broken disk, or became another user. Those
/// that were given up before are killed too and neither waited for nor counted. Blocks.
///
/// # Errors
/// Processes could not be listed in that time: what is left is not known.
pub fn end(leaders: &[Id], within: Duration) -> io::Result<usize> {
    if !cfg!(target_os = "linux") {
        return Ok(0);
    }
    let begun = Instant::now();
    let patience = if leaders.is_empty() {
        within
    } else {
        within.min(STRAYS)
    };
    let (mut round, mut empty, mut pause) = (0, 0, PAUSE);
    while empty < EMPTY {
        let tree = match tree(leaders) {
            Ok(tree) => tree,
            Err(error) if begun.elapsed() >= within => return Err(error),
            Err(_) => {
                empty = 0;
                thread::sleep(LONGEST_PAUSE);
                continue;
            }
        };
        tree.given_up.iter().for_each(kill);
        // One that somebody traces is left to whoever does: it runs no more.
        let reaped = tree.ended.iter().filter(|pid| reap(**pid)).count();
        if tree.members.is_empty() && tree.strays.is_empty() {
            empty = if reaped == 0 { empty + 1 } else { 0 };
            if begun.elapsed() >= within {
                break;
            }
            continue;
        }
        empty = 0;
        let waited = begun.elapsed();
        let late = waited >= within || (tree.members.is_empty() && waited >= patience);
        round += 1;
        // What is given up was killed at least.
        kill_all(&tree, leaders, !late && round <= SPARED);
        if late {
            return Ok(tree.give_up(leaders));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(0)
}

/// The leaders first: they would start anew what they find gone. Then from below, and those who adopt at last: what
/// loses its parent in between comes to them.
fn kill_all(tree: &Tree, leaders: &[Id], spare_keepers: bool) {
    let spare = |p: &&Listed| spare_keepers && tree.keepers.contains(&p.pid);
    let leads = |p: &&Listed| leaders.contains(&p.id());
    tree.members.iter().filter(leads).for_each(kill);
    tree.strays.iter().rev().for_each(kill);
    tree.members.iter().rev().filter(|p| !spare(p)).for_each(kill);
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
        // An old kernel, or no file can be opened.
        Err(error) if error != rustix::io::Errno::SRCH && same() => kill_process(pid, Signal::KILL),
        _ => Ok(()),
    };
}

/// Whether it was there to be reaped.
fn reap(pid: i32) -> bool {
    // Held: what is reaped must not be a child that got the number a moment ago.
    let started = STARTED.lock();
    !started.contains(&pid) && matches!(waitpid(Pid::from_raw(pid), WaitOptions::NOHANG), Ok(Some(_)))
}

//! Real programs that do what they can to stay.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use roadstead_processes::{Id, Started, adopt_orphans, end, look, start};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Before each script: as an engine it adopts orphans (`prctl` 36). A daemon is nobody's child, in a session of its own,
/// deaf to whatever can be ignored.
const DAEMON: &str = "
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
folder = sys.argv[1]
def daemon():
    if os.fork(): return False
    os.setsid()
    if os.fork(): os._exit(0)
    for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)
    return True
def here(name):
    with open(folder + '/new', 'w') as file: file.write(str(os.getpid()))
    os.rename(folder + '/new', folder + '/' + name)
";

/// A child that leads a session, as an engine does.
struct Leader {
    child: Child,
    id: Id,
    folder: tempfile::TempDir,
    _started: Started,
}

impl Leader {
    fn start(script: &str) -> Self {
        adopt_orphans().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // `setsid` makes no other process where it leads no group yet, and `exec` keeps the number.
        let mut command = Command::new("setsid");
        command
            .args(["python3", "-c", &format!("{DAEMON}{script}")])
            .arg(folder.path())
            .stdin(Stdio::null());
        let spawn = || {
            let child = command.spawn()?;
            let pid = child.id();
            Ok((child, Some(pid)))
        };
        let (child, started) = start(spawn).unwrap();
        let pid = child.id().cast_signed();
        let leads = || look(pid).is_some_and(|p| p.session == pid);
        eventually("it leads its session", leads);
        Self {
            child,
            id: Id::of(pid).unwrap(),
            folder,
            _started: started,
        }
    }

    /// The process that wrote itself down under that name.
    fn noted(&self, name: &str) -> i32 {
        let file = self.folder.path().join(name);
        let read = || std::fs::read_to_string(&file).ok()?.parse().ok();
        eventually(name, || read().is_some());
        read().unwrap()
    }

    /// Everything that runs with this one's folder in its arguments.
    fn left(&self) -> Vec<i32> {
        running(self.folder.path())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.left() {
            kill(&pid.to_string());
        }
    }
}

fn kill(pid: &str) {
    let spawn = || {
        let child = Command::new("kill").args(["-9", pid]).spawn()?;
        let pid = child.id();
        Ok((child, Some(pid)))
    };
    if let Ok((mut child, _started)) = start(spawn) {
        let _ = child.wait();
    }
}

fn running(marker: &Path) -> Vec<i32> {
    let marker = marker.to_str().unwrap();
    let folder = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = folder.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    };
    pids.filter(has).filter(|pid| alive(*pid)).collect()
}

fn alive(pid: i32) -> bool {
    look(pid).is_some_and(|p| !p.ended)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether it is a child of this process that waits to be reaped.
fn zombie(pid: i32) -> bool {
    look(pid).is_some_and(|p| p.ended && p.parent == std::process::id().cast_signed())
}

#[test]
fn a_daemon_ends_with_the_session_that_it_left() {
    let leader = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let daemon = leader.noted("daemon");
    let listed = look(daemon).unwrap();
    assert_ne!(listed.session, leader.id.pid, "it left the session");
    assert_ne!(listed.group, leader.id.pid);
    assert_eq!(end(Some(leader.id), PATIENCE), 0);
    assert!(!alive(daemon) && !alive(leader.id.pid));
    eventually("it is reaped", || !zombie(daemon));
}

#[test]
fn a_daemon_whose_leader_died_first_is_found_as_a_stray() {
    let mut leader = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let daemon = leader.noted("daemon");
    leader.child.kill().unwrap();
    leader.child.wait().unwrap();
    assert_eq!(end(Some(leader.id), PATIENCE), 0);
    assert!(!alive(daemon));
    eventually("it is reaped", || !zombie(daemon));
}

#[test]
fn whoever_forks_and_goes_on_in_the_child_is_caught() {
    // Each of them lives for a moment and is in a session of its own.
    let script = "
if daemon():
    here('first')
    while True:
        if os.fork(): os._exit(0)
        os.setsid()
time.sleep(1000)";
    let leader = Leader::start(script);
    leader.noted("first");
    assert_eq!(end(Some(leader.id), PATIENCE), 0);
    assert_eq!(leader.left(), [], "nothing goes on");
}

#[test]
fn whoever_starts_anew_what_was_killed_is_caught() {
    let script = "
def keep(depth):
    while True:
        if os.fork() == 0:
            if depth: keep(depth - 1)
            time.sleep(1000)
        os.wait()
if daemon():
    for n in range(3):
        if os.fork() == 0:
            os.setsid()
            here('keeper')
            keep(2)
time.sleep(1000)";
    let leader = Leader::start(script);
    leader.noted("keeper");
    assert_eq!(end(Some(leader.id), PATIENCE), 0);
    assert_eq!(leader.left(), [], "nothing goes on");
}

#[test]
fn others_are_left_alone() {
    let first = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let second = Leader::start("here('second')\ntime.sleep(1000)");
    let daemon = first.noted("daemon");
    second.noted("second");
    assert_eq!(end(Some(second.id), PATIENCE), 0);
    assert!(!alive(second.id.pid));
    assert!(alive(first.id.pid) && alive(daemon));
    // A number that somebody else has now.
    let stale = Id {
        started: first.id.started + 1,
        ..first.id
    };
    assert_eq!(end(Some(stale), PATIENCE), 0);
    assert!(alive(first.id.pid) && alive(daemon));
}

/// A script may start a helper and then become the cluster agent: `helper & exec roadstead-agent …`.
#[test]
fn children_from_before_are_left_alone() {
    const ROLE: &str = "ROADSTEAD_TEST_HAS_A_HELPER";
    if let Ok(helper) = std::env::var(ROLE) {
        let helper: i32 = helper.parse().unwrap();
        assert_eq!(look(helper).unwrap().parent, std::process::id().cast_signed());
        adopt_orphans().unwrap();
        assert_eq!(end(None, PATIENCE), 0);
        assert!(alive(helper));
        return;
    }
    let own = std::env::current_exe().unwrap();
    let script = "sleep 1000 & export ROADSTEAD_TEST_HAS_A_HELPER=$!; echo $!; \
                  exec \"$0\" --exact children_from_before_are_left_alone >&2";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(own).stdout(Stdio::piped());
    let spawn = || {
        let child = command.spawn()?;
        let pid = child.id();
        Ok((child, Some(pid)))
    };
    let (mut child, _started) = start(spawn).unwrap();
    // Its helper holds the pipe too.
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    let ended = child.wait().unwrap();
    kill(line.trim());
    assert!(ended.success());
}

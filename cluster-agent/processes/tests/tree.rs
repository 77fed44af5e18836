//! Real programs that do what they can to stay.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use roadstead_processes::{Id, Listing, Started, adopt_orphans, end, look, start};
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
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
    assert!(!alive(daemon) && !alive(leader.id.pid));
    eventually("it is reaped", || !zombie(daemon));
}

#[test]
fn a_daemon_whose_leader_died_first_is_found_as_a_stray() {
    let mut leader = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let daemon = leader.noted("daemon");
    leader.child.kill().unwrap();
    leader.child.wait().unwrap();
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
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
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
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
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
    assert_eq!(leader.left(), [], "nothing goes on");
}

#[test]
fn others_are_left_alone() {
    let first = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let second = Leader::start("here('second')\ntime.sleep(1000)");
    let daemon = first.noted("daemon");
    second.noted("second");
    assert_eq!(end(&[second.id], PATIENCE).unwrap(), 0);
    assert!(!alive(second.id.pid));
    assert!(alive(first.id.pid) && alive(daemon));
    // A number that somebody else has now.
    let stale = Id {
        started: first.id.started + 1,
        ..first.id
    };
    assert_eq!(end(&[stale], PATIENCE).unwrap(), 0);
    assert!(alive(first.id.pid) && alive(daemon));
}

/// Its first thread is no more, and another holds memory: the kernel shows a zombie without any.
const HEADLESS: &str = "
import platform, threading
def hold():
    held = b'x' * (100 << 20)
    here('headless')
    time.sleep(1000)
def behead():
    threading.Thread(target=hold).start()
    ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)
";

fn headless(leader: &Leader) -> i32 {
    let pid = leader.noted("headless");
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    eventually("its first thread ends", || stat().contains(") Z "));
    pid
}

#[test]
fn who_lets_its_first_thread_end_is_measured_and_ended() {
    let leader = Leader::start(&format!("{HEADLESS}\nif daemon(): behead()\ntime.sleep(1000)"));
    let daemon = headless(&leader);
    let listed = look(daemon).unwrap();
    assert!(!listed.ended && listed.resident > 100 << 20, "{listed:?}");
    let all = Listing::now().unwrap();
    assert!(all.resident(leader.id) > 100 << 20);
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
    assert!(!alive(daemon));
    assert_eq!(leader.left(), []);
}

#[test]
fn who_lets_its_first_thread_end_is_ended_as_a_stray_and_as_a_leader() {
    let mut leader = Leader::start(&format!("{HEADLESS}\nif daemon(): behead()\ntime.sleep(1000)"));
    let daemon = headless(&leader);
    leader.child.kill().unwrap();
    leader.child.wait().unwrap();
    assert_eq!(end(&[], PATIENCE).unwrap(), 0);
    assert!(!alive(daemon));
    let leader = Leader::start(&format!("{HEADLESS}\nbehead()"));
    assert_eq!(headless(&leader), leader.id.pid);
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
    assert!(!alive(leader.id.pid));
}

#[test]
fn a_name_that_is_no_text_hides_nobody() {
    let script = "
if daemon():
    ctypes.CDLL(None).prctl(15, b'\\xff) Z \\xfe', 0, 0, 0)
    here('daemon')
time.sleep(1000)";
    let leader = Leader::start(script);
    let daemon = leader.noted("daemon");
    assert!(look(daemon).is_some_and(|p| !p.ended));
    assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
    assert!(!alive(daemon));
}

#[test]
fn many_sessions_end_at_once() {
    let leaders = [(); 3].map(|()| Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)"));
    let daemons = leaders.each_ref().map(|leader| leader.noted("daemon"));
    let ids = leaders.each_ref().map(|leader| leader.id);
    assert_eq!(end(&ids, PATIENCE).unwrap(), 0);
    assert!(!daemons.into_iter().any(alive) && !ids.iter().any(|id| alive(id.pid)));
}

/// It runs no more, but this process is not given its end.
#[test]
fn one_that_somebody_traces_is_not_waited_for() {
    let mut leader = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
    let daemon = leader.noted("daemon");
    // PTRACE_SEIZE.
    let script = format!(
        "seized = ctypes.CDLL(None).ptrace(0x4206, {daemon}, None, None) == 0\n\
         here('seized' if seized else 'refused')\ntime.sleep(1000)"
    );
    let tracer = Leader::start(&script);
    let there = |name: &str| tracer.folder.path().join(name).exists();
    eventually("it tries", || there("seized") || there("refused"));
    if there("refused") {
        return forbidden("to trace another process", SYS_PTRACE);
    }
    leader.child.kill().unwrap();
    leader.child.wait().unwrap();
    assert_eq!(within_patience(move || end(&[leader.id], LONG).unwrap()), 0);
    assert!(zombie(daemon) && alive(tracer.id.pid));
}

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

fn within_patience<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    waits.recv_timeout(PATIENCE).expect("it comes to an end")
}

/// For a test that cannot be made here.
fn left_out(needed: &str) {
    assert!(
        std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
        "a complete run needs {needed}"
    );
    eprintln!("left out: it takes {needed}");
}

/// For a test that this machine refuses, by the number of the capability that it takes (capabilities(7)). A complete run
/// goes on without it only where the machine's policy is what forbids it.
fn forbidden(needed: &str, capability: u32) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().trim().to_owned()
    };
    let capable = u64::from_str_radix(&field("CapEff:"), 16).unwrap() & (1 << capability) != 0;
    let setting = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    // Filters of system calls, a lock on tracing, no user namespaces.
    let policy = field("Seccomp:") != "0"
        || setting("kernel/yama/ptrace_scope").trim() == "3"
        || setting("user/max_user_namespaces").trim() == "0";
    if capable && !policy {
        return left_out(needed);
    }
    eprintln!("left out: this machine's policy forbids {needed}");
}

const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;

/// What a test of a whole process is told to be.
const ROLE: &str = "ROADSTEAD_TEST_ROLE";

/// Runs a test in a process of its own, which `script` becomes with `exec "$0" --exact {name}`. The variable [`ROLE`]
/// and `$1` are a folder that everybody may write to.
fn as_process(name: &str, script: &str, folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let own = folder.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &own).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!("{script} \"$0\" --exact {name} --nocapture >&2");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(own).arg(folder);
    command.env(ROLE, folder).env("TMPDIR", folder);
    let spawn = || {
        let child = command.spawn()?;
        let pid = child.id();
        Ok((child, Some(pid)))
    };
    let (mut child, _started) = start(spawn).unwrap();
    let mut ended = None;
    eventually("the process of the test ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    for pid in running(folder) {
        kill(&pid.to_string());
    }
    assert!(ended.unwrap().success());
}

/// The process whose number is in the file.
fn written(file: &Path) -> i32 {
    let read = || std::fs::read_to_string(file).ok()?.trim().parse().ok();
    eventually("a number is written", || read().is_some());
    read().unwrap()
}

/// A stray of root, whose end is not this user's to bring about.
#[test]
fn what_cannot_be_killed_is_waited_for_once() {
    // Root's stray comes when its parent goes: before that the process has become another user's.
    const SCRIPT: &str = "\
sh -c 'setsid tail -c 1 -f \"$0/test\" > /dev/null & echo $! > \"$0/stray\"; until [ -e \"$0/go\" ]; do sleep 0.05; done' \"$1\" &
exec python3 -c 'import os, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.execv(sys.argv[1], sys.argv[1:])'";
    if let Some(folder) = std::env::var_os(ROLE) {
        let folder = Path::new(&folder);
        let stray = written(&folder.join("stray"));
        adopt_orphans().unwrap();
        std::fs::write(folder.join("go"), "").unwrap();
        let own = std::process::id().cast_signed();
        eventually("a stray", || look(stray).is_some_and(|p| p.parent == own));
        let ends = || Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
        let (first, second) = (ends(), ends());
        let daemons = [&first, &second].map(|leader| leader.noted("daemon"));
        assert_eq!(end(&[first.id], LONG).unwrap(), 1, "it was waited for");
        assert_eq!(end(&[second.id], LONG).unwrap(), 0, "it is known");
        assert!(!daemons.into_iter().any(alive) && !alive(first.id.pid) && !alive(second.id.pid));
        assert!(alive(stray));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return left_out("root, who makes what this user cannot kill");
    }
    let folder = tempfile::tempdir().unwrap();
    // The folder is in its arguments: it ends with the others.
    as_process("what_cannot_be_killed_is_waited_for_once", SCRIPT, folder.path());
}

#[test]
fn processes_that_cannot_be_listed_are_not_taken_for_gone() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if std::env::var_os(ROLE).is_some() {
        let leader = Leader::start("here('up')\ntime.sleep(1000)");
        leader.noted("up");
        let before = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(3),
            ..before
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let (listed, ended) = (Listing::now(), end(&[leader.id], Duration::from_millis(50)));
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(listed.is_err() && ended.is_err(), "{ended:?}");
        assert!(alive(leader.id.pid));
        assert_eq!(end(&[leader.id], PATIENCE).unwrap(), 0);
        assert!(!alive(leader.id.pid));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    as_process(
        "processes_that_cannot_be_listed_are_not_taken_for_gone",
        "exec",
        folder.path(),
    );
}

/// A helper from before in a session of its own, whose parent goes.
#[test]
fn what_a_child_from_before_leaves_in_its_session_is_left_alone() {
    const SCRIPT: &str = "\
setsid sh -c 'tail -c 1 -f \"$0/test\" > /dev/null & echo $! > \"$0/orphan\"; echo $$ > \"$0/helper\"; wait' \"$1\" &
exec";
    if let Some(folder) = std::env::var_os(ROLE) {
        let folder = Path::new(&folder);
        let helper = written(&folder.join("helper"));
        let orphan = written(&folder.join("orphan"));
        let own = std::process::id().cast_signed();
        assert!(look(helper).is_some_and(|p| p.parent == own && p.session == helper));
        adopt_orphans().unwrap();
        kill(&helper.to_string());
        eventually("it is adopted", || look(orphan).is_some_and(|p| p.parent == own));
        let leader = Leader::start("if daemon(): here('daemon')\ntime.sleep(1000)");
        let daemon = leader.noted("daemon");
        kill(&leader.id.pid.to_string());
        eventually("it is a stray", || look(daemon).is_some_and(|p| p.parent == own));
        assert_eq!(end(&[], PATIENCE).unwrap(), 0);
        assert!(!alive(daemon) && alive(orphan));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    as_process(
        "what_a_child_from_before_leaves_in_its_session_is_left_alone",
        SCRIPT,
        folder.path(),
    );
}

/// As in a container that was entered (`docker exec`): the session's number is 0 in it. Where this runs in such a one
/// the other tests are that.
#[test]
fn a_session_may_have_begun_outside_of_the_namespace() {
    let own = look(std::process::id().cast_signed()).unwrap();
    if own.session == 0 {
        return;
    }
    let namespace = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let inside = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(namespace).arg(program).args(arguments);
        let (child, _started) = start(|| {
            let child = command.stderr(Stdio::piped()).spawn()?;
            let pid = child.id();
            Ok((child, Some(pid)))
        })
        .unwrap();
        let output = child.wait_with_output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (allowed, why) = inside(Path::new("true"), &[]);
    if !allowed {
        return forbidden(&format!("to make a PID namespace: {why}"), SYS_ADMIN);
    }
    let own = std::env::current_exe().unwrap();
    for test in [
        "children_from_before_are_left_alone",
        "what_a_child_from_before_leaves_in_its_session_is_left_alone",
    ] {
        let (passed, why) = inside(&own, &["--exact", test]);
        assert!(passed, "{test}: {why}");
    }
}

/// A script may start a helper and then become the cluster agent: `helper & exec roadstead-agent …`.
#[test]
fn children_from_before_are_left_alone() {
    if let Ok(helper) = std::env::var("ROADSTEAD_TEST_HAS_A_HELPER") {
        let helper: i32 = helper.parse().unwrap();
        assert_eq!(look(helper).unwrap().parent, std::process::id().cast_signed());
        adopt_orphans().unwrap();
        assert_eq!(end(&[], PATIENCE).unwrap(), 0);
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

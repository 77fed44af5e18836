//! Tool servers that make themselves daemons: nobody's child, in a session of their own, deaf to SIGTERM. They end with
//! their server, their guard, their engine and their cluster agent all the same.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    processes::{Stat, children, stat},
    stdio_server, wait,
};
use std::{path::Path, process::Command};

/// A tool server that starts a daemon first, which writes its number down in the folder that is the argument.
const ESCAPES: &str = r#"
tool = {"name": "nothing", "description": "Does nothing.", "inputSchema": {"type": "object"}}

def call(arguments):
    return "nothing"

def daemon(folder):
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in range(3):
        os.close(descriptor)
    with open(f"{folder}/new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{folder}/new", f"{folder}/daemon-{os.getpid()}")
    while True:
        time.sleep(1000)

daemon(sys.argv[1])
"#;

const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: escapes}\nspec:\n  \
                     instructions: Answer.\n  model: default\n";

fn documents(folder: &Path) -> Result<String> {
    let server = stdio_server::write(folder, "escape", ESCAPES, folder)?;
    Ok(format!(
        "{server}---\n{AGENT}  tools: [{{server: escape, allow: [nothing]}}]\n"
    ))
}

fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.ended)
}

fn kill(pids: &[u32]) -> Result<()> {
    let pids = pids.iter().map(u32::to_string);
    let killed = Command::new("kill").arg("-9").args(pids).status()?;
    anyhow::ensure!(killed.success());
    Ok(())
}

/// Where everything is of one daemon that runs.
#[derive(Debug)]
struct Escaped {
    daemon: u32,
    engine: u32,
    guard: u32,
}

/// Asks the agent until a daemon runs, and sees that it got away.
async fn escaped(apart: &Apart) -> Result<Escaped> {
    let found = || async {
        // What a tool server offers is remembered: a call starts one that is gone.
        let call = ["chat", "escapes", "--message", "call escape/nothing {}"];
        apart.cli.run(&call).ok()?.code.filter(|code| *code == 0)?;
        let folder = std::fs::read_dir(apart.folder()).ok()?;
        let names = folder.flatten().map(|entry| entry.file_name());
        let pids = names.filter_map(|name| name.to_str()?.strip_prefix("daemon-")?.parse().ok());
        pids.into_iter().find(|pid| alive(*pid))
    };
    let daemon: u32 = wait::until("a daemon", READY, found).await?;
    let engines = apart.engines()?;
    let [engine] = engines.as_slice() else {
        anyhow::bail!("one engine, found {engines:?}");
    };
    let place = stat(daemon).context("the daemon runs")?;
    anyhow::ensure!(place.session != *engine, "it left the session: {place:?}");
    let guards = children(*engine)?;
    let [guard] = guards.as_slice() else {
        anyhow::bail!("one guard, found {guards:?}");
    };
    Ok(Escaped {
        daemon,
        engine: *engine,
        guard: *guard,
    })
}

async fn gone(pid: u32) -> Result<()> {
    let gone = || async { (!alive(pid)).then_some(()) };
    wait::until(&format!("the end of process {pid}"), READY, gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_server_that_makes_itself_a_daemon_ends_with_whatever_is_above_it() -> Result<()> {
    let mut apart = Apart::start(Keep::Sqlite, Setup::default())
        .await?
        .context("SQLite")?;
    let documents = documents(apart.folder())?;
    apart.apply(&documents)?;

    let first = escaped(&apart).await?;
    // No revision uses the tool server any more.
    apart.apply(AGENT)?;
    gone(first.daemon).await?;
    assert!(alive(first.engine), "the engine was not to end");

    apart.apply(&documents)?;
    let second = escaped(&apart).await?;
    kill(&[second.guard])?;
    gone(second.daemon).await?;

    let third = escaped(&apart).await?;
    kill(&[third.engine])?;
    gone(third.daemon).await?;

    // Nobody is left below the cluster agent who could look for it.
    let fourth = escaped(&apart).await?;
    kill(&[fourth.engine, fourth.guard])?;
    gone(fourth.daemon).await?;

    let fifth = escaped(&apart).await?;
    let agent = apart.agent()?.id();
    let reaped = || async {
        let waiting = |pid: &u32| stat(*pid).is_some_and(|stat: Stat| stat.ended);
        (!children(agent).ok()?.iter().any(waiting)).then_some(())
    };
    wait::until("nothing that waits to be reaped", READY, reaped).await?;
    // End of file ends the engine, and the engine its tool servers.
    apart.agent()?.kill()?;
    gone(fifth.daemon).await?;
    gone(fifth.guard).await?;

    apart.start_agent()?;
    apart.linked().await?;
    let sixth = escaped(&apart).await?;
    apart.agent()?.kill()?;
    kill(&[sixth.engine])?;
    gone(sixth.daemon).await
}

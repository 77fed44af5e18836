//! Which functions run in every process: what a program's `build.rs` has the linker put side by side.
//!
//! Valgrind's callgrind counts every function that runs: at the start first, then at work. A sampling profiler would
//! miss most of them. The programs must have their symbols (`make layout` builds them so).

use crate::{
    alone::{Alone, Running},
    call::Caller,
    hub::{Hub, agent, model},
    own::asks_tool,
    served::Cluster,
};
use anyhow::Context as _;
use roadstead_end_to_end::{binary, processes::Process, wait};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Programs are some fifty times slower while they are watched.
const ENDS: Duration = Duration::from_secs(60);
const ROUNDS: usize = 3;
/// For what a start leaves for later: the journal, what is taken over.
const SETTLED: Duration = Duration::from_secs(3);

/// Writes the lists of the engine and of the cluster agent.
///
/// # Errors
/// Valgrind is not installed, a program does not start, or it has no symbols.
pub(crate) async fn write() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let alone = Alone::new().await?;
    let start = engine(&alone, folder.path(), "start").await?;
    let work = engine(&alone, folder.path(), "work").await?;
    list("engine", "roadstead-engine", &[start, work])?;
    let work = cluster_agent(folder.path()).await?;
    list("agent", "roadstead-agent", &[work])
}

/// `program` under callgrind, which writes to `profile` when it ends.
fn watched(program: &str, profile: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind", "--demangle=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(binary(program));
    command
}

async fn engine(alone: &Alone, folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let profile = folder.join(name);
    let number = usize::from(name == "work");
    let command = watched("roadstead-engine", &profile);
    let (mut engine, _) = alone.start_as(command, number).await.context("valgrind")?;
    if name == "work" {
        turns(&engine).await?;
    }
    tokio::time::sleep(SETTLED).await;
    end(&mut engine.process).await?;
    Ok(profile)
}

/// What callers do with an engine, by A2A's three ways of asking for it.
async fn turns(engine: &Running) -> anyhow::Result<()> {
    let caller = Caller::a2a()?;
    for n in 0..ROUNDS {
        let (text, answer) = asks_tool(n);
        caller.turn(&engine.url, "hello", "hello").await?;
        caller.turn(&engine.url, &text, &answer).await?;
        let message =
            json!({"messageId": format!("layout-{n}"), "role": "ROLE_USER", "parts": [{"text": text}]});
        let params = json!({"message": message});
        let body = json!({"jsonrpc": "2.0", "id": n, "method": "SendStreamingMessage", "params": params});
        caller.post(&engine.url, serde_json::to_vec(&body)?).await?;
        let body = json!({"jsonrpc": "2.0", "id": n, "method": "ListTasks", "params": {}});
        caller.post(&engine.url, serde_json::to_vec(&body)?).await?;
    }
    Ok(())
}

/// A cluster agent that enrols, runs an engine and hands revisions over.
async fn cluster_agent(folder: &Path) -> anyhow::Result<PathBuf> {
    let profile = folder.join("cluster-agent");
    let hub = Hub::start(folder).await?;
    let mut cluster = Cluster::join_as(watched("roadstead-agent", &profile), &hub, folder).await?;
    let here = json!({"clusters": ["here"]});
    for n in 0..ROUNDS {
        let description = format!("Revision {n}.");
        hub.apply(&[model(), agent("a0", &description, &here)]).await?;
        let (card, caller) = cluster.engine("a0").await?;
        let shown = || async {
            let found: Value = serde_json::from_slice(&caller.get(&card).await.ok()?).ok()?;
            (found["description"] == description.as_str()).then_some(())
        };
        wait::until("the revision", ENDS, shown).await?;
    }
    end(&mut cluster.process).await?;
    Ok(profile)
}

async fn end(process: &mut Process) -> anyhow::Result<()> {
    process.signal("INT")?;
    let process = std::cell::RefCell::new(process);
    let ended = || async { process.borrow_mut().exited().ok().flatten() };
    let status = wait::until("the end", ENDS, ended).await?;
    anyhow::ensure!(status.success(), "{status}: {}", process.borrow().output());
    Ok(())
}

/// Writes the functions of `program` that the profiles name, in their order, each once.
fn list(folder: &str, program: &str, profiles: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    let mut lines = String::new();
    for profile in profiles {
        let text = std::fs::read_to_string(profile)?;
        for name in functions(&text, program) {
            if seen.insert(name.clone()) {
                lines.push_str(&name);
                lines.push('\n');
            }
        }
    }
    let count = seen.len();
    anyhow::ensure!(count > 500, "{program}: {count} functions: it has no symbols");
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../cluster-agent")
        .join(folder)
        .join("build/order.txt");
    std::fs::write(&path, lines).with_context(|| path.display().to_string())?;
    eprintln!("{program}: {count} functions");
    Ok(())
}

/// The functions of `program` in a callgrind profile (its manual, "Callgrind Format Specification"): a name is given
/// once, with a number that stands for it from then on, by the function itself or by its callers.
fn functions(profile: &str, program: &str) -> Vec<String> {
    let (mut objects, mut names) = (HashMap::new(), HashMap::new());
    let (mut ours, mut found) = (false, Vec::new());
    for line in profile.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        match key {
            "ob" => ours = named(&mut objects, value).is_some_and(|object| object.ends_with(program)),
            "cob" => _ = named(&mut objects, value),
            "fn" => found.extend(named(&mut names, value).filter(|name| ours && symbol(name))),
            "cfn" => _ = named(&mut names, value),
            _ => {}
        }
    }
    // A function that calls itself is counted again under its name with a number.
    let plain = |name: String| match name.rsplit_once('\'') {
        Some((plain, n)) if n.bytes().all(|b| b.is_ascii_digit()) => plain.to_owned(),
        _ => name,
    };
    found.into_iter().map(plain).collect()
}

/// Whether this names a symbol, and not what callgrind says where there is none.
fn symbol(name: &str) -> bool {
    !name.starts_with("0x") && !name.contains(['?', '('])
}

/// Reads `(7) name`, or `(7)` for a name that was given before.
fn named(known: &mut HashMap<String, String>, value: &str) -> Option<String> {
    let (number, name) = value.split_once(')')?;
    match name.trim() {
        "" => known.get(number).cloned(),
        name => {
            known.insert(number.to_owned(), name.to_owned());
            Some(name.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_the_program_are_found_by_name_and_by_number() {
        let profile = "version: 1\nob=(1) /lib/libc.so.6\nfn=(1) malloc\n10 5\nob=(2) /bin/engine\nfn=(2) main\n\
                       cob=(1)\ncfn=(1)\ncalls=1 0\n0 5\ncfn=(3) walk\ncalls=1 0\n0 7\n\nfn=(3)\n0 7\nfn=(4) walk'2\n0 1\n\
                       fn=(5) ???\n0 1\n\
                       fn=(6) 0x0000000000b00230\n0 1\nfn=(7) (below main)\n0 1\n";
        assert_eq!(functions(profile, "engine"), ["main", "walk", "walk"]);
    }
}

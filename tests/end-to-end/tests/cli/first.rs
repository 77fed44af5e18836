//! The first minute: dev on a machine without a model, what it prints is typed as it stands.

use super::laptop::{Laptop, ok};
use anyhow::{Context as _, Result};
use roadstead_end_to_end::{processes::descendants, wait};
use std::{
    io::Read as _,
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Instant,
};

/// How every answer of the demo model begins.
const LABEL: &str = "[demo model] ";

/// The commands below `Next:`.
fn commands(greeting: &str) -> Result<Vec<String>> {
    let (_, rest) = greeting.split_once("Next:\n").context("no commands")?;
    let lines = rest.lines().take_while(|line| line.starts_with("  "));
    Ok(lines.map(|line| line.trim().to_owned()).collect())
}

/// `says`: what the answer to the printed question holds.
async fn type_what_is_printed(laptop: &mut Laptop, example: &str, says: &[&str]) -> Result<()> {
    let greeting = laptop.up().await?;
    assert!(greeting.contains("the scripted demo model"), "{greeting}");
    let commands = commands(&greeting)?;
    let [get, apply, chat] = commands.as_slice() else {
        anyhow::bail!("expected three commands: {greeting}")
    };
    assert_eq!(get, "roadstead get agents");
    ok(&laptop.types(get)?);
    ok(&laptop.types(apply)?);
    // A tool server that is slow to start on a busy machine is not there for the first answer.
    let (began, mut answers) = (Instant::now(), 0);
    loop {
        let said = laptop.types(chat)?;
        let answer = ok(&said);
        assert!(answer.starts_with(LABEL), "{said:?}");
        answers += 1;
        if says.iter().all(|words| answer.contains(words)) {
            break;
        }
        anyhow::ensure!(began.elapsed() < super::SOON, "no such answer: {answer}");
    }
    assert!(ok(&laptop.types(get)?).contains(example), "the agent is listed");
    // Every answer is labelled, whatever is asked and however it is read.
    for (ask, shown) in [
        (format!("roadstead chat {example} --message 'tell me a joke'"), ""),
        (
            format!("roadstead chat {example} --message 'tell me a joke' -o json"),
            "\"answer\": \"",
        ),
        (format!("echo 'who are you?' | roadstead chat {example}"), ""),
    ] {
        let answer = ok(&laptop.types(&ask)?);
        assert!(answer.contains(&format!("{shown}{LABEL}")), "{ask}: {answer}");
        answers += 1;
    }
    let runs = wait::until("the run records", super::SOON, || async {
        let runs = ok(&laptop.types("roadstead runs -o json").ok()?);
        let runs: serde_json::Value = serde_json::from_str(&runs).ok()?;
        (runs.as_array()?.len() == answers).then_some(runs)
    });
    assert!(runs.await?.to_string().contains("roadstead-demo"));
    Ok(())
}

#[tokio::test]
async fn the_printed_commands_work_without_the_tool_servers() -> Result<()> {
    let mut laptop = Laptop::new(&[("PATH", "/usr/bin:/bin")])?;
    type_what_is_printed(&mut laptop, "hello", &["I am a script"]).await?;
    laptop.down().await
}

/// A Model `default` with prices, and an agent whose cost limit needs them.
const PRICED: &str = "\
apiVersion: roadstead.dev/v1alpha1
kind: Model
metadata: {name: default}
spec:
  provider: openaiCompatible
  model: mine
  endpoint: http://127.0.0.1:9/v1
  prices: {currency: USD, inputPerMillion: \"1\", outputPerMillion: \"2\"}
---
apiVersion: roadstead.dev/v1alpha1
kind: Agent
metadata: {name: careful}
spec: {model: default, instructions: Be brief., limits: {cost: 1 USD}}
";

#[tokio::test]
async fn a_model_of_ones_own_stays_over_a_restart() -> Result<()> {
    let mut laptop = Laptop::new(&[("PATH", "/usr/bin:/bin")])?;
    laptop.up().await?;
    std::fs::write(laptop.path("own.yaml"), PRICED)?;
    ok(&laptop.types("roadstead apply -f own.yaml")?);
    laptop.down().await?;
    let greeting = laptop.up().await?;
    assert!(greeting.contains("somebody applied (revision 2)"), "{greeting}");
    assert!(ok(&laptop.types("roadstead get model default -o yaml")?).contains("mine"));
    // Back to what dev wrote: it is dev's again. The agent that needs prices goes first.
    ok(&laptop.types("roadstead delete agent careful")?);
    ok(&laptop.types("roadstead rollback model default --to 1")?);
    laptop.down().await?;
    let greeting = laptop.up().await?;
    assert!(!greeting.contains("somebody applied"), "{greeting}");
    assert!(ok(&laptop.types("roadstead get model default -o yaml")?).contains("roadstead-demo"));
    laptop.down().await
}

#[tokio::test]
async fn the_printed_commands_work_with_the_tool_servers() -> Result<()> {
    let Some(tools) = super::tools() else {
        return Ok(());
    };
    let path = format!("{tools}:{}", std::env::var("PATH")?);
    let mut laptop = Laptop::new(&[("PATH", &path)])?;
    type_what_is_printed(&mut laptop, "time", &["Europe/Berlin", "datetime"]).await?;
    laptop.down().await
}

/// The addresses on which a process listens (TCP), by /proc, as the kernel writes them.
fn listening(pid: u32) -> Result<Vec<String>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed by now.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let inode = target
            .to_str()
            .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned));
        sockets.extend(inode);
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        for row in std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?
            .lines()
            .skip(1)
        {
            let words: Vec<&str> = row.split_whitespace().collect();
            let [_, local, _, state, .., _] = words.as_slice() else {
                continue;
            };
            let inode = words.get(9).copied().unwrap_or_default();
            if *state == "0A" && sockets.iter().any(|own| own == inode) {
                found.push((*local).to_owned());
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn no_part_of_dev_is_reachable_from_another_machine() -> Result<()> {
    let mut laptop = Laptop::new(&[("PATH", "/usr/bin:/bin")])?;
    laptop.up().await?;
    let file = laptop.path("state/examples/hello.yaml");
    ok(&laptop.types(&format!("roadstead apply -f {}", file.display()))?);
    ok(&laptop.types("roadstead chat hello --message hello")?);
    let hub = laptop.hub()?.id();
    let mut all = descendants(hub)?;
    assert!(!all.is_empty(), "dev has an engine");
    all.push(hub);
    let mut addresses = Vec::new();
    for pid in all {
        addresses.extend(listening(pid)?);
    }
    // The API, the fleet port and the demo model at least, and the engine.
    assert!(addresses.len() >= 4, "{addresses:?}");
    for address in &addresses {
        let loopback =
            address.starts_with("0100007F:") || address.starts_with("00000000000000000000000001000000:");
        assert!(loopback, "{addresses:?}");
    }
    laptop.down().await
}

#[tokio::test]
async fn a_port_that_is_taken_says_what_to_do() -> Result<()> {
    let laptop = Laptop::new(&[])?;
    let _taken = TcpListener::bind(laptop.listen())?;
    let refused = laptop.dev().output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is taken by another program") && said.contains("next: "),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn ctrl_c_is_heard_while_dev_looks_for_a_model() -> Result<()> {
    // A model server that takes the question and never answers.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/v1", silent.local_addr()?);
    let laptop = Laptop::new(&[("ROADSTEAD_MODEL_URL", &url)])?;
    let mut hub =
        roadstead_end_to_end::processes::Process::start(&mut laptop.dev(), &laptop.path("dev.log"))?;
    let asked = tokio::task::spawn_blocking(move || silent.accept());
    let (_held, _) = tokio::time::timeout(super::SOON, asked).await???;
    hub.signal("INT")?;
    let status = wait::until("dev to end", super::SOON, || {
        let status = hub.exited();
        async move { status.ok().flatten() }
    });
    assert!(status.await?.success());
    Ok(())
}

#[tokio::test]
async fn s30_dev_asks_no_proxy_for_a_model_on_this_machine() -> Result<()> {
    let proxy = TcpListener::bind("127.0.0.1:0")?;
    let through = format!("http://{}", proxy.local_addr()?);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let words = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut connection in proxy.incoming().flatten() {
            let mut buffer = [0; 1024];
            let length = connection.read(&mut buffer).unwrap_or_default();
            words
                .lock()
                .unwrap()
                .push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut proxies = vec![("ROADSTEAD_MODEL_URL".to_owned(), format!("http://{nobody}/v1"))];
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        proxies.push((name.to_owned(), through.clone()));
    }
    let variables: Vec<(&str, &str)> = proxies.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    // The model's name is looked for at its address, and then an Ollama's: nobody is there.
    let refused = Laptop::new(&variables)?.dev().output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("set ROADSTEAD_MODEL_NAME"), "{said}");
    let mut laptop = Laptop::new(&variables[1..])?;
    laptop.up().await?;
    ok(&laptop.types("roadstead get agents")?);
    laptop.down().await?;
    assert_eq!(*heard.lock().unwrap(), Vec::<String>::new());
    Ok(())
}

//! Does what the hub commands, as the inbox's journal gives it out: each command once (protocol.md §3 rule 12).

use roadstead_contract::fleet::{CommandCode, RESTART_ENGINE};
use roadstead_inbox::{Act, Command, CommandResult, Inbox};
use roadstead_runtime::{EngineStatus, Local};
use std::time::Duration;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// What a new process gets until it has accepted a revision, beyond the grace that tasks have in the one before.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Before the journal is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// For the Hello.
pub(crate) fn capabilities() -> Vec<String> {
    vec![RESTART_ENGINE.to_owned()]
}

/// Begins commands as they come. One that runs when the cluster agent ends has a result at its next start.
pub(crate) async fn run(inbox: Inbox, local: Local, stop: CancellationToken) {
    let mut taken = inbox.watch_commands();
    let mut running = JoinSet::new();
    loop {
        taken.mark_unchanged();
        let again = match inbox.begin_commands().await {
            Ok(commands) => {
                for command in commands {
                    running.spawn(one(inbox.clone(), local.clone(), command));
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "the journal of commands cannot be read");
                Some(AGAIN)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = taken.changed() => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
        while running.try_join_next().is_some() {}
    }
}

async fn one(inbox: Inbox, local: Local, command: Command) {
    let (code, detail) = match &command.act {
        Act::RestartEngine { agent_uid } => restart(&local, agent_uid).await,
    };
    tracing::info!(
        command = command.id,
        code = code.as_str_name(),
        detail,
        "a command ended"
    );
    let result = CommandResult {
        id: command.id,
        code,
        detail,
    };
    // A result is never lost: while the disk is full it is tried again.
    while let Err(error) = inbox.conclude_command(result.clone()).await {
        tracing::error!(%error, "the result of a command cannot be kept yet");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Ends the engine's process and waits until another has accepted a revision.
async fn restart(local: &Local, agent: &str) -> (CommandCode, String) {
    let mut changes = local.changes();
    let Some(before) = local.restart(agent) else {
        let detail = "no such agent runs on this cluster".to_owned();
        return (CommandCode::Refused, detail);
    };
    let deadline = Instant::now() + local.grace() + STARTS_WITHIN;
    loop {
        changes.mark_unchanged();
        let now = local.status(agent);
        match &now {
            None => {
                let detail = "the agent was taken off this cluster meanwhile".to_owned();
                return (CommandCode::Failed, detail);
            }
            Some(now) if another(&before, now) => return (CommandCode::Succeeded, said(&before, now)),
            Some(_) => {}
        }
        if tokio::time::timeout_at(deadline, changes.changed())
            .await
            .is_err()
        {
            let reason = now.map(|now| now.reason).unwrap_or_default();
            let detail = format!("no new process of the engine has accepted a revision in time: {reason}");
            return (CommandCode::Failed, detail);
        }
    }
}

/// Another process than before listens, and what is wanted has its answer: it serves, or is refused as it was before. A
/// command that comes before the first process begins has that one for its new process.
fn another(before: &EngineStatus, now: &EngineStatus) -> bool {
    now.process.is_some() && now.process != before.process && now.address.is_some() && now.settled()
}

fn said(before: &EngineStatus, now: &EngineStatus) -> String {
    let pid = |status: &EngineStatus| {
        status
            .pid
            .map_or_else(|| "none".to_owned(), |pid| pid.to_string())
    };
    format!("the engine runs as process {}; before: {}", pid(now), pid(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, eventually};
    use roadstead_inbox::Taking;

    fn restarting(id: &str, agent: &str) -> Command {
        Command {
            id: id.to_owned(),
            expires_ms: 1_000,
            act: Act::RestartEngine {
                agent_uid: agent.to_owned(),
            },
        }
    }

    async fn results(inbox: &Inbox, count: usize) -> Vec<CommandResult> {
        let mut watch = inbox.watch_results();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            watch.mark_unchanged();
            let pending = inbox.pending_results().await.unwrap();
            if pending.len() >= count {
                return pending;
            }
            let next = tokio::time::timeout_at(deadline, watch.changed()).await;
            assert!(next.is_ok(), "no result: {pending:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_is_restarted_once_and_the_result_says_so() {
        let bench = Bench::new();
        let before = bench.ready("a").await;
        let folder = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(&folder.path().join("inbox.db")).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(inbox.clone(), bench.local.clone(), stop.clone()));
        for expected in [Taking::Taken, Taking::UnderWay] {
            let taking = inbox.take_command(restarting("one", "a"), 1).await.unwrap();
            // The second comes while the first is done, or once it is: it is done once in any case.
            assert!(taking == expected || taking == Taking::Concluded, "{taking:?}");
        }
        assert_eq!(
            inbox.take_command(restarting("two", "nobody"), 1).await.unwrap(),
            Taking::Taken
        );
        let results = results(&inbox, 2).await;
        let one = results.iter().find(|result| result.id == "one").unwrap();
        assert_eq!(one.code, CommandCode::Succeeded, "{}", one.detail);
        let two = results.iter().find(|result| result.id == "two").unwrap();
        assert_eq!(two.code, CommandCode::Refused);
        let after = bench.ready("a").await;
        assert_ne!(after.pid, before.pid);
        assert_eq!(after.restarts, before.restarts + 1);
        stop.cancel();
        running.await.unwrap();
        eventually("the engine is still the second", || {
            bench
                .local
                .status("a")
                .is_some_and(|now| now.restarts == after.restarts)
        })
        .await;
    }
}

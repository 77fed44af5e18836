//! Does what the hub commands, as the inbox's journal gives it out: each command once (protocol.md §3 rule 12).

use roadstead_contract::fleet::{CommandCode, RESTART_ENGINE};
use roadstead_inbox::{Act, Command, CommandResult, Inbox};
use roadstead_runtime::{EngineStatus, Local};
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// What a new process gets until it has accepted a revision, beyond the grace that tasks have in the one before.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// For an agent that is not here: a command may come before the document that it is about.
const PLACED_WITHIN: Duration = Duration::from_secs(30);
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
                    running.spawn(one(inbox.clone(), local.clone(), command, stop.clone()));
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

async fn one(inbox: Inbox, local: Local, command: Command, stop: CancellationToken) {
    let Act::RestartEngine { agent_uid } = command.act;
    let doing = ended(async move { restart(&local, &agent_uid, PLACED_WITHIN).await });
    let (code, detail) = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        ended = doing => ended,
    };
    // Engines end with the cluster agent, which is no failure of a command: the next start says that nobody knows.
    if stop.is_cancelled() && code != CommandCode::Succeeded {
        return;
    }
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

/// What came of it; whatever happens there is a result.
async fn ended(work: impl Future<Output = (CommandCode, String)> + Send + 'static) -> (CommandCode, String) {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%error, "a command broke off");
            let detail = "the cluster agent broke off in the middle of it".to_owned();
            (CommandCode::Failed, detail)
        }
    }
}

/// Begins to restart an engine, once its agent is here.
async fn begin(
    local: &Local,
    agent: &str,
    changes: &mut watch::Receiver<u64>,
    within: Duration,
) -> Option<EngineStatus> {
    let deadline = Instant::now() + within;
    loop {
        changes.mark_unchanged();
        if let Some(before) = local.restart(agent) {
            return Some(before);
        }
        timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
    }
}

/// Ends the engine's process and waits until another has accepted a revision.
async fn restart(local: &Local, agent: &str, within: Duration) -> (CommandCode, String) {
    let mut changes = local.changes();
    let Some(before) = begin(local, agent, &mut changes, within).await else {
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
        if timeout_at(deadline, changes.changed()).await.is_err() {
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
            let next = timeout_at(deadline, watch.changed()).await;
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
        let results = results(&inbox, 1).await;
        assert_eq!(results[0].code, CommandCode::Succeeded, "{}", results[0].detail);
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

    #[tokio::test]
    async fn a_command_that_comes_before_its_agent_waits_for_it() {
        let bench = Bench::new();
        let (code, detail) = restart(&bench.local, "nobody", Duration::from_millis(1)).await;
        assert_eq!(code, CommandCode::Refused, "{detail}");
        let local = bench.local.clone();
        let early = tokio::spawn(async move { restart(&local, "a", Duration::from_secs(30)).await });
        tokio::task::yield_now().await;
        bench.ready("a").await;
        let (code, detail) = early.await.unwrap();
        assert_eq!(code, CommandCode::Succeeded, "{detail}");
    }

    #[tokio::test]
    async fn at_its_end_the_cluster_agent_concludes_nothing() {
        let bench = Bench::new();
        bench.ready("a").await;
        let inbox = Inbox::in_memory().unwrap();
        let stop = CancellationToken::new();
        let mut doing = Vec::new();
        for command in [restarting("late", "nobody"), restarting("one", "a")] {
            let taking = inbox.take_command(command.clone(), 1).await.unwrap();
            assert_eq!(taking, Taking::Taken);
            let (inbox, local) = (inbox.clone(), bench.local.clone());
            doing.push(tokio::spawn(one(inbox, local, command, stop.clone())));
        }
        bench.until("a", "restarting", |now| !now.ready()).await;
        inbox.close_commands();
        stop.cancel();
        bench.local.shutdown(Duration::ZERO).await;
        for doing in doing {
            doing.await.unwrap();
        }
        assert_eq!(inbox.pending_results().await.unwrap(), []);
        let next = inbox.take_command(restarting("next", "a"), 1).await.unwrap();
        assert_eq!(next, Taking::Closed);
    }

    #[tokio::test]
    async fn a_command_that_breaks_off_has_failed() {
        let (code, _) = ended(async { panic!("on purpose") }).await;
        assert_eq!(code, CommandCode::Failed);
    }
}

//! Taking over the tasks of a process that died: each goes on, or ends with the truth about why it cannot.

use super::{
    Live, LiveIds, Open, Status, Tasks, Waiting,
    send::working,
    view::{files, shown},
};
use crate::{
    journal::{Approval, Entry, Finish, JournalError, OpenTask, Said, TaskState},
    revision::{Factories, Revision, Serving},
    turn::{self, Start, Turn, sentence},
};
use roadstead_contract::bundle::Bundle;
use std::{collections::HashMap, sync::Arc};

impl Tasks {
    /// Goes on with every open task of earlier incarnations. `serving` is what serves now; tasks that began on another
    /// revision get that one back, made again from the journal.
    ///
    /// # Errors
    /// The journal does not answer: nothing was taken over, call it again.
    pub async fn recover(
        self: &Arc<Self>,
        serving: &Serving,
        factories: &Factories,
    ) -> Result<usize, JournalError> {
        let found = self.services.journal.claim().await?;
        let count = found.len();
        let mut revisions =
            HashMap::from([(serving.revision.digest.clone(), Ok(Arc::clone(&serving.revision)))]);
        for open in found {
            if self.open.lock().contains_key(&open.task.uid) {
                continue;
            }
            if !revisions.contains_key(&open.revision) {
                let made = self.remake(&open.revision, serving, factories).await?;
                revisions.insert(open.revision.clone(), made);
            }
            let said = match self.services.journal.entries(open.task.uid.clone()).await {
                Ok(said) => said,
                // One task that cannot be read must not keep all others waiting; a journal that does not answer must.
                Err(error) => {
                    let (subject, uid) = (open.task.subject.clone(), open.task.uid.clone());
                    self.services.journal.task(subject, uid).await?;
                    tracing::error!(task = open.task.uid, %error, "a task's entries cannot be read");
                    let end = (
                        "journal.unreadable",
                        "what the journal holds of this task cannot be read",
                    );
                    self.give_up(open, serving, &[], end).await?;
                    continue;
                }
            };
            match &revisions[&open.revision] {
                Ok(revision) => self.take_over(open, Arc::clone(revision), &said),
                Err(why) => {
                    let detail = format!(
                        "the engine restarted and the revision that the task began on does not load: {why}"
                    );
                    self.give_up(open, serving, &said, ("revision.gone", &detail))
                        .await?;
                }
            }
        }
        Ok(count)
    }

    async fn remake(
        &self,
        digest: &str,
        serving: &Serving,
        factories: &Factories,
    ) -> Result<Result<Arc<Revision>, String>, JournalError> {
        let kept = self.services.journal.revision(digest.to_owned()).await?;
        let Some(kept) = kept else {
            return Ok(Err("it is not in the journal".to_owned()));
        };
        let bundle: Result<Bundle, String> = serde_json::from_str(&kept).map_err(|e| e.to_string());
        let made = bundle.and_then(|bundle| Revision::load(bundle, &serving.secrets, factories));
        Ok(made.map(Arc::new))
    }

    fn take_over(self: &Arc<Self>, open: OpenTask, revision: Arc<Revision>, said: &[Said]) {
        let undecided: Vec<&Approval> = open.approvals.iter().filter(|a| a.decision.is_none()).collect();
        let waits = open.task.state == TaskState::InputRequired && !undecided.is_empty();
        let status = if waits {
            waiting(&open, &undecided, said)
        } else {
            working(open.task.updated_ms)
        };
        tracing::info!(
            task = open.task.uid,
            waits,
            "a task of an earlier process goes on"
        );
        let live = live(&open, status, said);
        let entry = Open {
            live: Arc::clone(&live),
            revision,
        };
        self.open.lock().insert(live.uid.clone(), entry.clone());
        if waits {
            self.watch_expiry(&entry);
        } else if live.take_turn() {
            let turn = Turn::resume(self.services.clone(), Arc::clone(&entry.revision), live, &open);
            self.start(&entry, turn, Start::Resumed(Box::new(open)));
        }
    }

    async fn give_up(
        &self,
        open: OpenTask,
        serving: &Serving,
        said: &[Said],
        (reason, detail): (&'static str, &str),
    ) -> Result<(), JournalError> {
        let live = live(&open, working(open.task.updated_ms), said);
        let now_ms = self.services.clock.now_ms();
        let end = (TaskState::Failed, reason);
        let record = turn::record(&live, &serving.revision, &open.task.counters, end, now_ms);
        let finish = Finish {
            task: open.id,
            session: open.session,
            state: TaskState::Failed,
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            entry: None,
            step: None,
            counters: open.task.counters,
            record: self.services.runs.is_some().then_some(record),
            now_ms,
        };
        self.services.journal.finish(finish).await.map(drop)
    }
}

fn live(open: &OpenTask, status: Status, said: &[Said]) -> Arc<Live> {
    let ids = LiveIds {
        uid: open.task.uid.clone(),
        context: open.task.context.clone(),
        subject: open.task.subject.clone(),
        task: open.id,
        session: open.session,
        origin: open.origin.clone(),
        revision: open.revision.clone(),
    };
    let shown = (shown(said, 0).0, files(said));
    Arc::new(Live::new(ids, status, shown, open.task.created_ms))
}

/// What the task waits for, put together again from the calls that were asked about.
fn waiting(open: &OpenTask, undecided: &[&Approval], said: &[Said]) -> Status {
    let calls = said.iter().filter_map(|(entry, steps)| match entry {
        Entry::Assistant { tool_calls, .. } => Some(tool_calls.iter().zip(steps)),
        _ => None,
    });
    let waits_for: Vec<Waiting> = calls
        .flatten()
        .filter_map(|(call, step)| {
            let approval = undecided.iter().find(|a| a.step == step.id)?;
            Some(Waiting {
                approval: approval.uid.clone(),
                question: approval.question,
                server: step.server.clone(),
                tool: step.tool.clone(),
                arguments: call.arguments.clone(),
                digest: approval.digest.clone(),
                change: approval.change.clone(),
                expires_ms: approval.expires_ms,
            })
        })
        .collect();
    Status {
        state: TaskState::InputRequired,
        reason: String::new(),
        detail: sentence(&waits_for),
        waits_for,
        at_ms: open.task.updated_ms,
    }
}

//! Writes what is owed, beside the session: frames go out and come in while a transaction is under way.

use super::{
    owed::Said,
    session::{End, Session, answered},
};
use crate::store::{
    CommandResult, FleetStore, ResultVerdict, RunVerdict, Session as Fence, StoreError, What,
};
use roadstead_contract::{
    fleet::{CommandAck, CommandRefused, Drain, HeartbeatEcho, RunAck, RunRefused, hub_frame::Body as Hub},
    run::RunRecord,
};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tonic::Status;

/// For a cluster agent that is to come back now, in milliseconds.
const AT_ONCE: u32 = 10;

/// A write under way. It goes on when the session ends: its epoch says whether it may.
pub(super) type Settling = JoinHandle<Settled>;

/// What came of a write.
#[derive(Debug)]
pub(super) struct Settled {
    /// What was not written; without an error that is nothing.
    left: Said,
    /// Documents whose statuses are not the cluster's to make.
    foreign: Vec<String>,
    /// The run records that were asked about, and what became of each.
    runs: Vec<(RunRecord, RunVerdict)>,
    /// The results of commands, and what became of each.
    results: Vec<(CommandResult, ResultVerdict)>,
    error: Option<StoreError>,
}

/// The report in one transaction, then the run records and results in others: each is answered once it is committed.
async fn settle(store: Arc<dyn FleetStore>, fence: Fence, mut said: Said) -> Settled {
    let mut settled = Settled {
        left: Said::default(),
        foreign: Vec::new(),
        runs: Vec::new(),
        results: Vec::new(),
        error: None,
    };
    if !said.report.is_empty() {
        match store.report(&fence, said.report.clone()).await {
            Ok(foreign) => settled.foreign = foreign,
            Err(error) => settled.error = Some(error),
        }
    }
    if settled.error.is_none() {
        said.report = crate::store::Report::default();
        if !said.runs.is_empty() {
            match store.record_runs(&fence, said.runs.clone()).await {
                Ok(verdicts) => {
                    settled.runs = std::mem::take(&mut said.runs).into_iter().zip(verdicts).collect();
                }
                Err(error) => settled.error = Some(error),
            }
        }
    }
    if settled.error.is_none() && !said.results.is_empty() {
        match store.record_results(&fence, said.results.clone()).await {
            Ok(verdicts) => {
                settled.results = std::mem::take(&mut said.results)
                    .into_iter()
                    .zip(verdicts)
                    .collect();
            }
            Err(error) => settled.error = Some(error),
        }
    }
    settled.left = said;
    settled
}

/// About what a run record takes as JSON.
fn bytes_of(run: &RunRecord) -> usize {
    serde_json::to_vec(run).map_or(0, |json| json.len())
}

/// The end of a write; never without one.
pub(super) async fn settled(settling: &mut Option<Settling>) -> Result<Settled, End> {
    let Some(handle) = settling else {
        return std::future::pending().await;
    };
    let ended = handle.await;
    *settling = None;
    // It panicked, or the runtime ends.
    ended.map_err(|_| End::Status(Status::internal("a write ended without a result")))
}

impl Session {
    /// Begins to write what is owed. One write at a time: they are in order.
    pub(super) fn write_owed(&mut self) {
        if self.settling.is_some() || !self.owed.due() {
            return;
        }
        self.unwritten = 0;
        let said = self.owed.take();
        self.taking = said.report.taken.is_some();
        self.settling = Some(tokio::spawn(settle(
            self.hub.store.clone(),
            self.fence.clone(),
            said,
        )));
    }

    /// The session has ended; what was heard before is written all the same, if its epoch may still write.
    pub(super) fn write_rest(mut self) {
        if !self.owed.due() {
            return;
        }
        let (before, said) = (self.settling.take(), self.owed.take());
        let (store, fence) = (self.hub.store.clone(), self.fence.clone());
        tokio::spawn(async move {
            if let Some(before) = before {
                // In order; what came of it is nobody's any more.
                let _ = before.await;
            }
            settle(store, fence, said).await
        });
    }

    /// Takes in what came of a write.
    pub(super) async fn take_settled(&mut self, settled: Settled) -> Result<(), End> {
        let Settled {
            mut left,
            foreign,
            runs,
            results,
            error,
        } = settled;
        self.taking = false;
        if let Some(first) = foreign.first() {
            let count = foreign.len();
            let what = format!("a report of {first} is not this cluster's to make ({count} in all)");
            self.accuse(left.excused, what).await;
        }
        let mut echo = left.echo.take();
        let mut refused = Vec::new();
        match error {
            None => {
                refused = left.refused;
                if self.owed.answered() {
                    tracing::info!(cluster.id = %self.fence.peer.cluster, "the database answers again");
                }
            }
            Some(error @ StoreError::Unavailable(_)) => {
                self.owed.give_back(left, bytes_of);
                echo = self.owed.take_echo().or(echo);
                if self.owed.failed() {
                    tracing::warn!(
                        cluster.id = %self.fence.peer.cluster, %error,
                        "the database does not answer: the session stays, and what was said is written later"
                    );
                }
            }
            Some(error) => return Err(self.store(error).await),
        }
        self.answer_runs(runs, refused).await?;
        self.answer_results(results).await?;
        match echo {
            Some(sequence) => self.echo(sequence).await,
            None => Ok(()),
        }
    }

    pub(super) async fn echo(&self, sequence: u64) -> Result<(), End> {
        self.send(Hub::Heartbeat(HeartbeatEcho {
            sequence,
            reconnect_window_ms: self.hub.window_ms(),
            now_ms: self.hub.clock.now_ms(),
        }))
        .await
    }

    /// A report of a document that is not this cluster's is refused and audited, once a session (S45). The session
    /// lives: an inbox from a backup, or deletions that wait for a person, hold what the hub has forgotten, and only a
    /// session can mend that.
    async fn accuse(&mut self, excused: bool, what: String) {
        if !excused && !self.held && !std::mem::replace(&mut self.accused, true) {
            self.tell(What::Forged, what).await;
        }
    }

    /// Says what became of run records, which are committed or refused. One that the database did not take is not
    /// answered.
    async fn answer_runs(
        &mut self,
        runs: Vec<(RunRecord, RunVerdict)>,
        refused: Vec<RunRefused>,
    ) -> Result<(), End> {
        let mut ack = RunAck {
            refused,
            ..RunAck::default()
        };
        let mut foreign = Vec::new();
        for (record, verdict) in runs {
            match verdict {
                RunVerdict::Kept => ack.kept.push(record.id),
                // The agent may be newer than the backup that this database is: the record waits in the cluster.
                RunVerdict::Refused(_) if self.behind => {}
                RunVerdict::Refused(reason) => {
                    foreign.push(reason.clone());
                    let id = record.id;
                    ack.refused.push(RunRefused { id, reason });
                }
            }
        }
        // One event for a frame, however many records it holds.
        if let Some(first) = foreign.first() {
            let detail = format!("{} run records; the first: {first}", foreign.len());
            self.tell(What::Forged, detail).await;
        }
        if ack.kept.is_empty() && ack.refused.is_empty() {
            return Ok(());
        }
        self.send(Hub::RunAck(ack)).await
    }

    /// Says what became of results of commands, which are committed or refused.
    async fn answer_results(&mut self, results: Vec<(CommandResult, ResultVerdict)>) -> Result<(), End> {
        let (mut ack, mut foreign) = (CommandAck::default(), Vec::new());
        for (CommandResult { id, .. }, verdict) in results {
            match verdict {
                ResultVerdict::Kept => ack.kept.push(id),
                // The command may be newer than the backup that this database is: its result waits in the cluster.
                _ if self.behind => {}
                ResultVerdict::Late(reason) => ack.refused.push(CommandRefused { id, reason }),
                ResultVerdict::Foreign(reason) => {
                    foreign.push(reason.clone());
                    ack.refused.push(CommandRefused { id, reason });
                }
            }
        }
        // One event for all of them, however many there are.
        if let Some(first) = foreign.first() {
            let detail = format!("{} results of commands; the first: {first}", foreign.len());
            self.tell(What::Forged, detail).await;
        }
        if ack.kept.is_empty() && ack.refused.is_empty() {
            return Ok(());
        }
        self.send(Hub::CommandAck(ack)).await
    }

    /// A person may have decided: allowed the deletions that wait, whose snapshot begins at once, or let the hub's view
    /// go on, which a new session begins with.
    pub(super) async fn decided(&mut self) -> Result<(), End> {
        if !self.held && !self.ahead {
            return Ok(());
        }
        let peers = std::slice::from_ref(&self.fence.peer);
        let standing = answered(&self.seat.end, self.hub.store.standing(peers)).await;
        // Without an answer now the look around finds it within seconds.
        let Some(standing) = standing
            .and_then(Result::ok)
            .and_then(|standings| standings.into_iter().next().flatten())
        else {
            return Ok(());
        };
        if self.ahead && !standing.frozen {
            return Err(End::last(Hub::Drain(Drain { within_ms: AT_ONCE })));
        }
        if self.ahead {
            self.follow(standing.revision);
        }
        // An approval that a snapshot has used up stands until the database has heard of it.
        let used = self.taking || self.owed.takes();
        if self.held && !self.behind && !used && standing.approved_deletes > 0 {
            self.writer.approve(standing.approved_deletes);
        }
        Ok(())
    }

    pub(super) fn too_many() -> End {
        End::Status(Status::resource_exhausted("statuses of too many documents"))
    }
}

//! What the cluster agent said and the database has not taken yet.
//!
//! Sessions stay up without the database (protocol.md §4): the latest of everything is kept here, and written once it
//! answers again. What does not fit is said again by the cluster agent, which has not had an answer.

use super::session::{End, Session};
use crate::store::{Held, Observation, RunVerdict, Stage, StoreError, What};
use roadstead_contract::{
    fleet::{Drain, RunAck, RunRefused, hub_frame::Body as Hub},
    run::RunRecord,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use tonic::Status;

/// Between two attempts; doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// For a cluster agent that is to come back now, in milliseconds.
const AT_ONCE: u32 = 10;
/// Bytes of the statuses that are kept: one for each document, far more than an honest cluster has to say.
const OBSERVED_BYTES: usize = 16 * 1024 * 1024;
/// Statuses that are written in one transaction.
const WRITTEN: usize = 256;
/// Run records that are kept, by their bytes as JSON.
const RUN_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Owed {
    persisted: Option<u64>,
    applied: Option<u64>,
    held: Option<Held>,
    /// The approval that a snapshot carried, and whether it ended in a hold.
    taken: Option<(u64, bool)>,
    observations: BTreeMap<String, Observation>,
    observed_bytes: usize,
    runs: Vec<RunRecord>,
    run_bytes: usize,
    refused: Vec<RunRefused>,
    /// After a failure: when to try again, and how long after the next one.
    again: Option<(Instant, Duration)>,
}

impl Owed {
    pub(super) fn ack(&mut self, revision: u64, stage: Stage) {
        let mark = match stage {
            Stage::Persisted => &mut self.persisted,
            Stage::Applied => &mut self.applied,
        };
        *mark = (*mark).max(Some(revision));
    }

    pub(super) fn held(&mut self, held: Held) {
        self.held = Some(held);
        // It was said after that snapshot.
        if let Some((_, ended_held)) = &mut self.taken {
            *ended_held = true;
        }
    }

    pub(super) fn taken(&mut self, approved: u64, held: bool) {
        if !held {
            self.held = None;
        }
        self.taken = Some((approved, held));
    }

    /// `false` when there are too many.
    pub(super) fn observe(&mut self, observation: Observation) -> bool {
        self.observed_bytes += weight(&observation);
        if let Some(before) = self.observations.insert(observation.uid.clone(), observation) {
            self.observed_bytes -= weight(&before);
        }
        self.observed_bytes <= OBSERVED_BYTES
    }

    /// Run records of one frame, and those of it that are none.
    pub(super) fn runs(&mut self, records: Vec<(RunRecord, usize)>, refused: Vec<RunRefused>) {
        for (record, bytes) in records {
            let known = self.runs.iter().any(|known| known.id == record.id);
            // What does not fit stays unanswered, and comes again.
            if !known && self.run_bytes + bytes <= RUN_BYTES {
                self.run_bytes += bytes;
                self.runs.push(record);
            }
        }
        self.refused = refused;
    }

    /// When the database is asked again; `None` while it answers.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.again.map(|(at, _)| at)
    }

    fn failed(&mut self) {
        let wait = self.again.map_or(AGAIN.0, |(_, wait)| wait);
        self.again = Some((Instant::now() + wait, (wait * 2).min(AGAIN.1)));
    }
}

/// About what a status takes in memory.
fn weight(observation: &Observation) -> usize {
    let conditions = observation.conditions.iter().map(|condition| {
        condition.kind.len() + condition.status.len() + condition.reason.len() + condition.message.len() + 96
    });
    observation.uid.len() * 2 + observation.phase.len() + 128 + conditions.sum::<usize>()
}

impl Session {
    /// Writes what is owed, unless the database did not answer just now.
    pub(super) async fn settle_owed(&mut self) -> Result<(), End> {
        if self.owed.again_at().is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let away = self.owed.again.is_some();
        match self.write_owed().await {
            Ok(foreign) => {
                self.owed.again = None;
                if let Some(what) = foreign {
                    self.accuse(what).await;
                }
                if away {
                    tracing::info!(cluster.id = %self.fence.peer.cluster, "the database answers again");
                }
                Ok(())
            }
            Err(error @ StoreError::Unavailable(_)) => {
                if !away {
                    tracing::warn!(
                        cluster.id = %self.fence.peer.cluster, %error,
                        "the database does not answer: the session stays, and what was said is written later"
                    );
                }
                self.owed.failed();
                Ok(())
            }
            Err(error) => Err(self.store(error).await),
        }?;
        self.answer_runs().await
    }

    /// Answers with a report of a document that is not this cluster's, if there was one.
    async fn write_owed(&mut self) -> Result<Option<String>, StoreError> {
        let (store, fence) = (&self.hub.store, &self.fence);
        if let Some(revision) = self.owed.persisted {
            store.ack(fence, revision, Stage::Persisted).await?;
            self.owed.persisted = None;
        }
        if let Some(revision) = self.owed.applied {
            store.ack(fence, revision, Stage::Applied).await?;
            self.owed.applied = None;
        }
        if let Some(held) = self.owed.held {
            store.held(fence, held).await?;
            self.owed.held = None;
        }
        if let Some((approved, held)) = self.owed.taken {
            store.snapshot_taken(fence, approved, held).await?;
            self.owed.taken = None;
        }
        let mut foreign = None;
        while !self.owed.observations.is_empty() {
            let some: Vec<_> = self.owed.observations.values().take(WRITTEN).cloned().collect();
            match store.observe(fence, some.clone()).await {
                // All or none: then each by itself.
                Err(StoreError::Foreign(_)) => {
                    for observation in some.clone() {
                        match store.observe(fence, vec![observation]).await {
                            Err(StoreError::Foreign(what)) => foreign = Some(what),
                            other => other?,
                        }
                    }
                }
                other => other?,
            }
            for written in some {
                self.owed.observations.remove(&written.uid);
                self.owed.observed_bytes -= weight(&written);
            }
        }
        Ok(foreign)
    }

    /// A report of a document that is not this cluster's is refused and audited, once a session (S45). The session
    /// lives: an inbox from a backup, or deletions that wait for a person, hold what the hub has forgotten, and only a
    /// session can mend that.
    async fn accuse(&mut self, what: String) {
        if !self.held && !std::mem::replace(&mut self.accused, true) {
            self.tell(What::Forged, what).await;
        }
    }

    /// Commits run records and says what became of each. One that the database does not take now is not answered.
    async fn answer_runs(&mut self) -> Result<(), End> {
        if (self.owed.runs.is_empty() && self.owed.refused.is_empty()) || self.owed.again.is_some() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.owed.runs);
        let verdicts = match self.hub.store.record_runs(&self.fence, records.clone()).await {
            Ok(verdicts) => verdicts,
            Err(StoreError::Unavailable(_)) => {
                self.owed.runs = records;
                self.owed.failed();
                return Ok(());
            }
            Err(error) => return Err(self.store(error).await),
        };
        self.owed.run_bytes = 0;
        let mut ack = RunAck {
            refused: std::mem::take(&mut self.owed.refused),
            ..RunAck::default()
        };
        let mut foreign = Vec::new();
        for (record, verdict) in records.into_iter().zip(verdicts) {
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

    /// A person may have decided: allowed the deletions that wait, whose snapshot begins at once, or let the hub's view
    /// go on, which a new session begins with.
    pub(super) async fn decided(&mut self) -> Result<(), End> {
        if !self.held && !self.ahead {
            return Ok(());
        }
        let peers = std::slice::from_ref(&self.fence.peer);
        let standing = self.hub.store.standing(peers).await;
        // Without an answer now the look around finds it within seconds.
        let Some(standing) = standing
            .ok()
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
        if self.held && !self.behind && standing.approved_deletes > 0 {
            self.writer.approve(standing.approved_deletes);
        }
        Ok(())
    }

    pub(super) fn too_many() -> End {
        End::Status(Status::resource_exhausted("statuses of too many documents"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Held = Held {
        revision: 7,
        deletes: 20,
        documents: 30,
    };

    #[tokio::test]
    async fn the_latest_of_everything_is_owed() {
        let mut owed = Owed::default();
        for revision in [3, 5, 4] {
            owed.ack(revision, Stage::Persisted);
        }
        assert_eq!((owed.persisted, owed.applied), (Some(5), None));
        // A hold that is over before it was written is never written.
        owed.held(HELD);
        owed.taken(0, false);
        assert_eq!((owed.held, owed.taken), (None, Some((0, false))));
        owed.held(HELD);
        assert_eq!((owed.held, owed.taken), (Some(HELD), Some((0, true))));
    }

    #[test]
    fn s51_statuses_that_wait_for_the_database_are_bounded_by_their_bytes() {
        let status = |n: usize, message: usize| Observation {
            uid: format!("d{n}"),
            generation: 1,
            phase: "Ready".to_owned(),
            conditions: vec![crate::store::Condition {
                kind: "Ready".to_owned(),
                status: "False".to_owned(),
                reason: String::new(),
                message: "x".repeat(message),
            }],
        };
        let mut owed = Owed::default();
        // The same document again and again takes no more than once.
        assert!((0..100_000).all(|_| owed.observe(status(1, 1_000))));
        let taken = (0..100_000)
            .take_while(|n| owed.observe(status(*n, 1_000)))
            .count();
        assert!((10_000..16_384).contains(&taken), "{taken}");
        assert!(owed.observed_bytes <= OBSERVED_BYTES + 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_spread_and_never_given_up() {
        let mut owed = Owed::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            owed.failed();
            waits.push(owed.again_at().expect("later") - Instant::now());
        }
        assert_eq!((waits[0], waits[7]), AGAIN);
    }
}

//! What the cluster agent said and the database has not taken yet.
//!
//! Frames are joined here until they are written: the latest acknowledgement of a kind, the latest of a document, which
//! is all that a database that took them one by one would hold in the end. So what waits in a stream costs one
//! transaction, and sessions stay up without the database (protocol.md §4). What does not fit is said again by the
//! cluster agent, which has not had an answer.

use crate::store::{CommandResult, Held, Observation, Report, Taken};
use roadstead_contract::{fleet::RunRefused, run::RunRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Between two attempts; doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Bytes of the statuses that are kept: one for each document, far more than an honest cluster has to say.
const OBSERVED_BYTES: usize = 16 * 1024 * 1024;
/// While a write is under way no more than this is heard: the rest waits in the stream.
const OBSERVED_ROOM: usize = 1024 * 1024;
/// Statuses that are written in one transaction, and about their bytes.
const WRITTEN: (usize, usize) = (256, 512 * 1024);
/// Run records that are kept, by their bytes as JSON.
const RUN_BYTES: usize = 1024 * 1024;
/// Results of commands that are kept: the hub gives out fewer.
const RESULTS: usize = 256;
/// Run records that are refused and not answered yet.
const REFUSED: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Owed {
    persisted: Option<u64>,
    applied: Option<u64>,
    held: Option<Held>,
    taken: Option<Taken>,
    observations: BTreeMap<String, Observation>,
    observed_bytes: usize,
    /// Some of them were said while deletions waited for a person.
    excused: bool,
    runs: Vec<RunRecord>,
    run_bytes: usize,
    refused: Vec<RunRefused>,
    /// Of commands, the first of each.
    results: BTreeMap<String, CommandResult>,
    /// The heartbeat that is answered once what was said before it is written.
    echo: Option<u64>,
    /// After a failure: when to try again, and how long after the next one.
    again: Option<(Instant, Duration)>,
}

/// What is written together.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) report: Report,
    /// Foreign documents in it may be of a time that the hub has forgotten.
    pub(super) excused: bool,
    /// After it.
    pub(super) runs: Vec<RunRecord>,
    pub(super) refused: Vec<RunRefused>,
    pub(super) results: Vec<CommandResult>,
    pub(super) echo: Option<u64>,
}

impl Owed {
    pub(super) fn persisted(&mut self, revision: u64) {
        self.persisted = self.persisted.max(Some(revision));
    }

    pub(super) fn applied(&mut self, revision: u64) {
        self.applied = self.applied.max(Some(revision));
    }

    /// Written after the snapshot that was taken, if there is one.
    pub(super) fn held(&mut self, held: Held) {
        self.held = Some(held);
    }

    pub(super) fn taken(&mut self, mut taken: Taken) {
        if !taken.held {
            self.held = None;
        }
        if let Some(before) = self.taken {
            // One that carried none uses none up: that of the snapshot before still is.
            if taken.approved == 0 {
                taken.approved = before.approved;
            }
            // Nothing waited after that one: no approval of before stands.
            taken.held &= before.held;
        }
        self.taken = Some(taken);
    }

    /// `false` when there are too many. `excused`: deletions wait for a person.
    pub(super) fn observe(&mut self, observation: Observation, excused: bool) -> bool {
        self.excused |= excused;
        let known = self.observations.get(&observation.uid);
        // As the database does: an older one changes nothing.
        if known.is_none_or(|known| known.generation <= observation.generation) {
            self.observed_bytes += weight(&observation);
            if let Some(before) = self.observations.insert(observation.uid.clone(), observation) {
                self.observed_bytes -= weight(&before);
            }
        }
        self.observed_bytes <= OBSERVED_BYTES
    }

    /// Run records of one frame, and those of it that are none.
    pub(super) fn runs(&mut self, records: Vec<(RunRecord, usize)>, refused: Vec<RunRefused>) {
        let mut known: BTreeSet<String> = self.runs.iter().map(|known| known.id.clone()).collect();
        for (record, bytes) in records {
            // What does not fit stays unanswered, and comes again.
            if self.run_bytes + bytes <= RUN_BYTES && known.insert(record.id.clone()) {
                self.run_bytes += bytes;
                self.runs.push(record);
            }
        }
        self.refused.extend(refused);
        self.refused.truncate(REFUSED);
    }

    /// What came of a command. What does not fit stays unanswered, and comes again.
    pub(super) fn result(&mut self, result: CommandResult) {
        if self.results.len() < RESULTS {
            self.results.entry(result.id.clone()).or_insert(result);
        }
    }

    /// A heartbeat is to be answered: not before what was said before it, unless the database is away.
    pub(super) fn echo(&mut self, sequence: u64) {
        self.echo = Some(sequence);
    }

    /// Nothing is to be said to the database.
    fn is_settled(&self) -> bool {
        self.persisted.is_none()
            && self.applied.is_none()
            && self.held.is_none()
            && self.taken.is_none()
            && self.observations.is_empty()
            && self.runs.is_empty()
            && self.refused.is_empty()
            && self.results.is_empty()
    }

    /// Something is owed, and the database may be asked.
    pub(super) fn due(&self) -> bool {
        (!self.is_settled() || self.echo.is_some()) && self.again.is_none_or(|(at, _)| Instant::now() >= at)
    }

    /// Whether another frame is joined to what waits. Without room it stays in the stream until a write has begun; so
    /// each frame of run records has its own answer.
    pub(super) fn has_room(&self) -> bool {
        self.observed_bytes <= OBSERVED_ROOM && self.runs.is_empty() && self.refused.is_empty()
    }

    /// When the database is asked again; `None` while it answers, and for nothing.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.again.filter(|_| !self.is_settled()).map(|(at, _)| at)
    }

    /// A snapshot was taken, and the database may not know it yet.
    pub(super) fn takes(&self) -> bool {
        self.taken.is_some()
    }

    /// The heartbeat to answer at once, since the database is away.
    pub(super) fn take_echo(&mut self) -> Option<u64> {
        self.echo.take()
    }

    /// What goes into the next transaction.
    pub(super) fn take(&mut self) -> Said {
        let (mut observations, mut bytes) = (Vec::new(), 0);
        while observations.len() < WRITTEN.0
            && bytes < WRITTEN.1
            && let Some((_, observation)) = self.observations.pop_first()
        {
            bytes += weight(&observation);
            observations.push(observation);
        }
        self.observed_bytes -= bytes;
        let excused = match self.observations.is_empty() {
            true => std::mem::take(&mut self.excused),
            false => self.excused,
        };
        // What was said before it is not all in here yet.
        let echo = self.observations.is_empty().then(|| self.echo.take()).flatten();
        self.run_bytes = 0;
        Said {
            report: Report {
                persisted: self.persisted.take(),
                applied: self.applied.take(),
                held: self.held.take(),
                taken: self.taken.take(),
                observations,
            },
            excused,
            runs: std::mem::take(&mut self.runs),
            refused: std::mem::take(&mut self.refused),
            results: std::mem::take(&mut self.results).into_values().collect(),
            echo,
        }
    }

    /// The database did not take it: it is owed again, below what was said meanwhile.
    pub(super) fn give_back(&mut self, said: Said, bytes_of: impl Fn(&RunRecord) -> usize) {
        let newer = std::mem::take(self);
        let Report {
            persisted,
            applied,
            held,
            taken,
            observations,
        } = said.report;
        (self.persisted, self.applied, self.held, self.taken) = (persisted, applied, held, taken);
        for observation in observations {
            self.observe(observation, said.excused);
        }
        let sized = |runs: Vec<RunRecord>| -> Vec<(RunRecord, usize)> {
            let sized = runs.into_iter().map(|run| {
                let bytes = bytes_of(&run);
                (run, bytes)
            });
            sized.collect()
        };
        self.runs(sized(said.runs), said.refused);
        said.results.into_iter().for_each(|result| self.result(result));
        self.join(newer, sized);
    }

    /// What was said after this.
    fn join(&mut self, newer: Self, sized: impl Fn(Vec<RunRecord>) -> Vec<(RunRecord, usize)>) {
        self.persisted = self.persisted.max(newer.persisted);
        self.applied = self.applied.max(newer.applied);
        if let Some(taken) = newer.taken {
            self.taken(taken);
        }
        if let Some(held) = newer.held {
            self.held(held);
        }
        for observation in newer.observations.into_values() {
            self.observe(observation, newer.excused);
        }
        self.excused |= newer.excused;
        self.runs(sized(newer.runs), newer.refused);
        newer.results.into_values().for_each(|result| self.result(result));
        (self.echo, self.again) = (newer.echo, newer.again);
    }

    /// The database did not answer; `true` when it did before.
    pub(super) fn failed(&mut self) -> bool {
        let wait = self.again.map_or(AGAIN.0, |(_, wait)| wait);
        let first = self.again.is_none();
        self.again = Some((Instant::now() + wait, (wait * 2).min(AGAIN.1)));
        first
    }

    /// The database has answered; `true` when it had not before.
    pub(super) fn answered(&mut self) -> bool {
        self.again.take().is_some()
    }
}

/// About what a status takes in memory.
fn weight(observation: &Observation) -> usize {
    let conditions = observation.conditions.iter().map(|condition| {
        condition.kind.len() + condition.status.len() + condition.reason.len() + condition.message.len() + 96
    });
    observation.uid.len() * 2 + observation.phase.len() + 128 + conditions.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use roadstead_contract::run::Outcome;

    const HELD: Held = Held {
        revision: 7,
        deletes: 20,
        documents: 30,
    };

    fn taken(approved: u64, held: bool) -> Taken {
        Taken { approved, held }
    }

    fn observation(uid: &str, generation: u64, phase: &str) -> Observation {
        Observation {
            uid: uid.to_owned(),
            generation,
            phase: phase.to_owned(),
            conditions: Vec::new(),
        }
    }

    #[test]
    fn the_latest_of_everything_is_owed() {
        let mut owed = Owed::default();
        for revision in [3, 5, 4] {
            owed.persisted(revision);
        }
        assert_eq!((owed.persisted, owed.applied), (Some(5), None));
        // A hold that is over before it was written is never written.
        owed.held(HELD);
        owed.taken(taken(0, false));
        assert_eq!((owed.held, owed.taken), (None, Some(taken(0, false))));
        // A later one is, and what stood before is over all the same.
        owed.held(HELD);
        owed.taken(taken(0, true));
        assert_eq!((owed.held, owed.taken), (Some(HELD), Some(taken(0, false))));
        // An approval that a snapshot carried is used up, whatever a later one carried.
        let mut owed = Owed::default();
        owed.taken(taken(20, true));
        owed.taken(taken(0, true));
        assert_eq!(owed.taken, Some(taken(20, true)));
    }

    /// What a cluster agent may say, in the order of its frames.
    #[derive(Clone, Debug)]
    enum Frame {
        Persisted(u64),
        Applied(u64),
        Held(u64),
        /// Whether it carried the approval that the database has, and ended in a hold.
        Taken(bool, bool),
        Status(u8, u64, u8),
        Run(u8),
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (0u64..9).prop_map(Frame::Persisted),
            (0u64..9).prop_map(Frame::Applied),
            (1u64..4).prop_map(Frame::Held),
            any::<(bool, bool)>().prop_map(|(carried, held)| Frame::Taken(carried, held)),
            (0u8..3, 1u64..4, any::<u8>()).prop_map(|(uid, generation, n)| Frame::Status(uid, generation, n)),
            (0u8..6).prop_map(Frame::Run),
        ]
    }

    /// A database, as far as it knows of this.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Database {
        persisted: Option<u64>,
        applied: Option<u64>,
        held: Option<Held>,
        approved: u64,
        observations: BTreeMap<String, Observation>,
        runs: BTreeSet<String>,
    }

    impl Database {
        fn write(&mut self, said: &Said) {
            self.persisted = self.persisted.max(said.report.persisted);
            self.applied = self.applied.max(said.report.applied);
            if let Some(taken) = said.report.taken {
                if !taken.held {
                    self.held = None;
                }
                if !taken.held || self.approved == taken.approved {
                    self.approved = 0;
                }
            }
            self.held = said.report.held.or(self.held);
            for seen in &said.report.observations {
                let known = self.observations.get(&seen.uid);
                if known.is_none_or(|known| known.generation <= seen.generation) {
                    self.observations.insert(seen.uid.clone(), seen.clone());
                }
            }
            self.runs.extend(said.runs.iter().map(|run| run.id.clone()));
        }
    }

    fn hear(owed: &mut Owed, frame: &Frame, approved: u64) {
        match frame {
            Frame::Persisted(revision) => owed.persisted(*revision),
            Frame::Applied(revision) => owed.applied(*revision),
            Frame::Held(deletes) => owed.held(Held {
                deletes: *deletes,
                ..HELD
            }),
            Frame::Taken(carried, held) => owed.taken(taken(if *carried { approved } else { 0 }, *held)),
            Frame::Status(uid, generation, n) => {
                let phase = format!("p{n}");
                assert!(owed.observe(observation(&format!("d{uid}"), *generation, &phase), false));
            }
            Frame::Run(n) => owed.runs(vec![(run(&format!("r{n}")), 1)], Vec::new()),
        }
    }

    fn run(id: &str) -> RunRecord {
        RunRecord {
            id: id.to_owned(),
            sequence: 1,
            agent_uid: "agent".to_owned(),
            generation: 1,
            task_id: String::new(),
            session_id: String::new(),
            subject: String::new(),
            started_at_ms: 1,
            ended_at_ms: 2,
            outcome: Outcome::Completed,
            reason: String::new(),
            model: String::new(),
            model_calls: 0,
            input_tokens: 0,
            output_tokens: 0,
            cached_input_tokens: 0,
            estimated: false,
            cost_micros: 0,
            currency: String::new(),
            tools: BTreeMap::new(),
            trace_id: String::new(),
        }
    }

    proptest! {
        /// Frames that are joined leave the database as frames that are written one by one, wherever a write begins and
        /// whichever of them the database does not take.
        #[test]
        fn joined_frames_leave_what_single_ones_leave(
            frames in proptest::collection::vec((frame(), 0u8..8), 1..60),
            approved in 0u64..4,
        ) {
            let mut single = Database { approved, ..Database::default() };
            let mut joined = single.clone();
            let mut owed = Owed::default();
            let mut writing: Option<Said> = None;
            for (frame, chance) in &frames {
                let mut one = Owed::default();
                hear(&mut one, frame, approved);
                single.write(&one.take());
                hear(&mut owed, frame, approved);
                match (writing.take(), chance) {
                    (Some(said), 0..2) => owed.give_back(said, |_| 1),
                    (Some(said), 2..5) => joined.write(&said),
                    (None, 0..4) => writing = Some(owed.take()),
                    (other, _) => writing = other,
                }
            }
            if let Some(said) = writing {
                joined.write(&said);
            }
            joined.write(&owed.take());
            prop_assert!(!owed.due());
            prop_assert_eq!(joined, single);
        }
    }

    #[test]
    fn s51_statuses_that_wait_for_the_database_are_bounded_by_their_bytes() {
        let status = |n: usize, message: usize| Observation {
            conditions: vec![crate::store::Condition {
                kind: "Ready".to_owned(),
                status: "False".to_owned(),
                reason: String::new(),
                message: "x".repeat(message),
            }],
            ..observation(&format!("d{n}"), 1, "Ready")
        };
        let mut owed = Owed::default();
        // The same document again and again takes no more than once.
        assert!((0..100_000).all(|_| owed.observe(status(1, 1_000), false)));
        assert!(owed.has_room());
        let taken = (0..100_000)
            .take_while(|n| owed.observe(status(*n, 1_000), false))
            .count();
        assert!((10_000..16_384).contains(&taken), "{taken}");
        assert!(owed.observed_bytes <= OBSERVED_BYTES + 2_000);
        assert!(!owed.has_room());
        // A transaction takes a part of them, and the heartbeat waits for the rest.
        owed.echo(1);
        let mut written = 0;
        loop {
            let said = owed.take();
            let count = said.report.observations.len();
            assert!(
                count <= WRITTEN.0
                    && said.report.observations.iter().map(weight).sum::<usize>() < WRITTEN.1 + 2_000
            );
            written += count;
            if said.echo.is_some() {
                break;
            }
        }
        assert_eq!((written, owed.observed_bytes, owed.due()), (taken + 1, 0, false));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_spread_and_never_given_up() {
        let mut owed = Owed::default();
        let mut waits = Vec::new();
        owed.persisted(1);
        for n in 0..8 {
            assert_eq!(owed.failed(), n == 0);
            waits.push(owed.again_at().expect("later") - Instant::now());
            assert!(!owed.due());
        }
        assert_eq!((waits[0], waits[7]), AGAIN);
        tokio::time::advance(AGAIN.1).await;
        assert!(owed.due() && owed.answered() && !owed.answered());
    }
}

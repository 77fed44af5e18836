//! Taking a snapshot: its documents are written as they come, under the same rule of generations; what it lacks is
//! deleted at its end, if it is complete, verified and within the budget.

use crate::{
    Change, Held, InboxError, SnapshotOutcome,
    apply::bury,
    core::{Core, write_held},
    schema,
};
use roadstead_contract::fleet::{Digest, StateSum, delete_budget};
use std::collections::BTreeMap;

/// What a snapshot under way has shown so far.
pub(crate) struct Staging {
    pub(crate) revision: u64,
    seen: BTreeMap<String, (u64, Digest)>,
}

/// How a snapshot ends; see `SnapshotEnd` in fleet.proto.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEnd {
    pub revision: u64,
    pub count: u64,
    pub root: Digest,
    pub complete: bool,
    /// Deletions beyond the budget that a person allowed.
    pub approved_deletes: u64,
}

impl Staging {
    pub(crate) fn note(&mut self, change: &Change) {
        if let Change::Upsert { document, .. } | Change::Missing { document, .. } = change {
            self.seen
                .insert(document.uid.clone(), (document.generation, document.digest));
        }
    }
}

impl Core {
    pub(crate) fn begin_snapshot(&mut self, revision: u64) {
        self.staging = Some(Staging {
            revision,
            seen: BTreeMap::new(),
        });
    }

    pub(crate) fn end_snapshot(&mut self, end: &SnapshotEnd) -> Result<SnapshotOutcome, InboxError> {
        let Some(staging) = self.staging.take() else {
            return Ok(unverified("no snapshot is under way"));
        };
        if let Some(detail) = staging.differs(end) {
            return Ok(SnapshotOutcome::Unverified { detail });
        }
        let extra = self.not_in(&staging)?;
        let deletes = extra.len() as u64;
        let budget = delete_budget(self.facts.documents).max(end.approved_deletes);
        let mut facts = self.facts;
        facts.cursor = end.revision;
        facts.held = (deletes > budget).then_some(Held {
            revision: end.revision,
            deletes,
            documents: self.facts.documents,
        });
        let transaction = self.connection.transaction()?;
        match facts.held {
            Some(held) => schema::set_meta(&transaction, "held", &write_held(held))?,
            None => {
                schema::clear_meta(&transaction, "held")?;
                for (uid, generation) in &extra {
                    bury(&transaction, &mut facts, uid, *generation, end.revision)?;
                }
            }
        }
        schema::set_meta(&transaction, "cursor", &facts.cursor.to_string())?;
        transaction.commit()?;
        self.settle(facts);
        let position = self.position();
        Ok(match facts.held {
            Some(held) => SnapshotOutcome::Held { position, held },
            None => SnapshotOutcome::Taken {
                position,
                deleted: deletes,
            },
        })
    }

    /// The documents here that the snapshot does not show.
    fn not_in(&self, staging: &Staging) -> Result<Vec<(String, u64)>, InboxError> {
        let (_, here) = self.have(None, usize::MAX)?;
        let extra = here
            .into_iter()
            .filter(|entry| !staging.seen.contains_key(&entry.uid));
        Ok(extra.map(|entry| (entry.uid, entry.generation)).collect())
    }
}

impl Staging {
    /// How the snapshot's end contradicts what came; `None` when it verifies.
    fn differs(&self, end: &SnapshotEnd) -> Option<String> {
        let count = self.seen.len() as u64;
        let sum = StateSum::of(
            self.seen
                .iter()
                .map(|(uid, (generation, digest))| (uid.as_str(), *generation, *digest)),
        );
        if !end.complete {
            Some("the snapshot is not complete".to_owned())
        } else if end.revision != self.revision {
            Some(format!(
                "expected the end of revision {}, found {}",
                self.revision, end.revision
            ))
        } else if end.count != count {
            Some(format!("expected {} documents, found {count}", end.count))
        } else if end.root != sum.root() {
            Some("the root is not that of the documents".to_owned())
        } else {
            None
        }
    }
}

fn unverified(detail: &str) -> SnapshotOutcome {
    SnapshotOutcome::Unverified {
        detail: detail.to_owned(),
    }
}

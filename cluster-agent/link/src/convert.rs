//! Frames of the hub as the inbox understands them.

use roadstead_contract::fleet::{self, Digest, NackCode, change::What};
use roadstead_inbox::{Change, Document, Purpose};

/// A batch whose large documents are not here yet.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) batch: roadstead_inbox::Batch,
    pub(crate) root: Option<Digest>,
    /// Places in `batch.changes` whose document must be fetched, with its size.
    pub(crate) absent: Vec<(usize, u64)>,
}

/// # Errors
/// What the frame lacks: the hub speaks another protocol, the session ends.
pub(crate) fn batch(frame: fleet::Batch) -> Result<Parsed, String> {
    let purpose = match frame.purpose() {
        fleet::batch::Purpose::Delta => Purpose::Delta,
        fleet::batch::Purpose::Repair => Purpose::Repair,
        fleet::batch::Purpose::Snapshot => Purpose::Snapshot,
    };
    let root = match frame.root.as_slice() {
        [] => None,
        bytes => Some(Digest::try_from(bytes).map_err(|error| format!("batch root: {error}"))?),
    };
    let mut changes = Vec::with_capacity(frame.changes.len());
    let mut absent = Vec::new();
    for change in frame.changes {
        match change.what {
            Some(What::Tombstone(gone)) => changes.push(Change::Tombstone {
                revision: gone.revision,
                uid: gone.uid,
                generation: gone.generation,
            }),
            Some(What::Upsert(upsert)) => {
                if upsert.inline.is_none() {
                    absent.push((changes.len(), upsert.size));
                }
                changes.push(document(upsert)?);
            }
            None => return Err("a change of a kind that this version does not know".to_owned()),
        }
    }
    let batch = roadstead_inbox::Batch {
        from: frame.from,
        through: frame.through,
        purpose,
        changes,
    };
    Ok(Parsed { batch, root, absent })
}

fn document(upsert: fleet::Upsert) -> Result<Change, String> {
    let digest = Digest::try_from(upsert.digest.as_slice())
        .map_err(|error| format!("digest of {}: {error}", upsert.uid))?;
    let document = Document {
        uid: upsert.uid,
        generation: upsert.generation,
        digest,
        kind: upsert.kind,
        project: upsert.project,
        name: upsert.name,
        json: upsert.inline.map(Into::into).unwrap_or_default(),
    };
    Ok(Change::Upsert {
        revision: upsert.revision,
        document,
    })
}

impl Parsed {
    /// Bytes of the documents that must be fetched before anything of this batch is on disk.
    pub(crate) fn weight(&self) -> u64 {
        self.absent
            .iter()
            .fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Puts a fetched document in its place, or notes that it cannot be had.
    pub(crate) fn fill(&mut self, place: usize, content: Result<Vec<u8>, String>) {
        let Some(change) = self.batch.changes.get_mut(place) else {
            return;
        };
        let Change::Upsert { revision, document } = change else {
            return;
        };
        match content {
            Ok(json) => document.json = json,
            Err(detail) => {
                let (revision, document) = (*revision, document.clone());
                *change = Change::Missing {
                    revision,
                    document,
                    code: NackCode::NackBlob,
                    detail,
                };
            }
        }
    }

    /// The digest of the document at `place`.
    pub(crate) fn digest(&self, place: usize) -> Option<Digest> {
        match self.batch.changes.get(place)? {
            Change::Upsert { document, .. } | Change::Missing { document, .. } => Some(document.digest),
            Change::Tombstone { .. } => None,
        }
    }

    /// The documents that this batch deletes.
    pub(crate) fn gone(&self) -> Vec<String> {
        let uid = |change: &Change| match change {
            Change::Tombstone { uid, .. } => Some(uid.clone()),
            _ => None,
        };
        self.batch.changes.iter().filter_map(uid).collect()
    }
}

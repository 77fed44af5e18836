//! Rows as frames.

use crate::store::{Body, Content, Row};
use prost::Message as _;
use roadstead_contract::fleet::{
    self, Change, HubFrame, MAX_FRAME, Tombstone, Upsert, change::What, hub_frame,
};

/// Bytes of changes in one frame. A document inside is at most a quarter of a frame, so that the rest of a frame has
/// room for at least three more and for the frame's own fields.
const FRAME_BYTES: usize = MAX_FRAME - 16 * 1024;

/// Bytes of documents that one frame refers to without holding them: the cluster agent fetches those of a frame
/// together.
const REFERRED: u64 = 16 * 1024 * 1024;

/// What a row weighs outside its frame.
fn referred(row: &Row) -> u64 {
    match &row.content {
        Content::Document {
            size,
            body: Body::Large,
            ..
        } => *size,
        _ => 0,
    }
}

pub(super) fn change(row: Row) -> Change {
    let (revision, uid, generation) = (row.revision, row.uid, row.generation);
    let what = match row.content {
        Content::Gone => What::Tombstone(Tombstone {
            revision,
            uid,
            generation,
        }),
        Content::Document {
            kind,
            project,
            name,
            digest,
            size,
            body,
        } => {
            let inline = match body {
                Body::Inline(bytes) => Some(bytes),
                Body::Large => None,
            };
            let digest = digest.to_vec();
            What::Upsert(Upsert {
                revision,
                uid,
                generation,
                kind,
                project,
                name,
                digest,
                size,
                inline,
            })
        }
    };
    Change { what: Some(what) }
}

/// Rows in ascending revision as batches from `from` on: each fits a frame, and the cursor moves only with the last
/// frame of a revision.
pub(super) fn deltas(from: u64, rows: Vec<Row>) -> Vec<fleet::Batch> {
    let mut batches = Vec::new();
    let mut open = fleet::Batch {
        from,
        through: from,
        ..fleet::Batch::default()
    };
    let mut bytes = 0;
    let mut weight = 0;
    let mut rows = rows.into_iter().peekable();
    while let Some(row) = rows.next() {
        let revision = row.revision;
        let heavy = referred(&row);
        let change = change(row);
        let size = change.encoded_len() + 8;
        if (bytes + size > FRAME_BYTES || weight + heavy > REFERRED) && !open.changes.is_empty() {
            let cursor = open.through;
            batches.push(std::mem::replace(
                &mut open,
                fleet::Batch {
                    from: cursor,
                    through: cursor,
                    ..fleet::Batch::default()
                },
            ));
            (bytes, weight) = (0, 0);
        }
        open.changes.push(change);
        bytes += size;
        weight += heavy;
        // While more of this revision follows, the batch stays where it is.
        if rows.peek().is_none_or(|next| next.revision > revision) {
            open.through = revision;
        }
    }
    if !open.changes.is_empty() {
        batches.push(open);
    }
    batches
}

/// Rows as batches that move no cursor.
pub(super) fn parts(cursor: u64, purpose: fleet::batch::Purpose, rows: Vec<Row>) -> Vec<fleet::Batch> {
    let fresh = || fleet::Batch {
        from: cursor,
        through: cursor,
        purpose: purpose.into(),
        ..fleet::Batch::default()
    };
    let mut batches = Vec::new();
    let mut open = fresh();
    let mut bytes = 0;
    let mut weight = 0;
    for row in rows {
        let heavy = referred(&row);
        let change = change(row);
        let size = change.encoded_len() + 8;
        if (bytes + size > FRAME_BYTES || weight + heavy > REFERRED) && !open.changes.is_empty() {
            batches.push(std::mem::replace(&mut open, fresh()));
            (bytes, weight) = (0, 0);
        }
        open.changes.push(change);
        bytes += size;
        weight += heavy;
    }
    if !open.changes.is_empty() {
        batches.push(open);
    }
    batches
}

pub(super) fn hub(body: hub_frame::Body) -> HubFrame {
    HubFrame { body: Some(body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use roadstead_contract::fleet::{MAX_INLINE, document_digest};

    fn row(revision: u64, uid: usize, size: usize) -> Row {
        let json = Bytes::from(vec![b'x'; size]);
        let content = Content::Document {
            kind: "Prompt".to_owned(),
            project: "p".to_owned(),
            name: "n".to_owned(),
            digest: document_digest(&json),
            size: json.len() as u64,
            body: Body::Inline(json),
        };
        Row {
            revision,
            uid: format!("uid-{uid}"),
            generation: 1,
            content,
        }
    }

    proptest! {
        #[test]
        fn s51_batches_fit_frames_chain_and_lose_nothing(
            sizes in proptest::collection::vec((0u64..3, 0usize..=MAX_INLINE), 1..30),
            from in 0u64..5,
        ) {
            let mut revision = from + 1;
            let rows: Vec<_> = sizes.iter().enumerate().map(|(n, (step, size))| {
                revision += if n == 0 { 0 } else { *step };
                row(revision, n, *size)
            }).collect();
            let sent: Vec<_> = rows.iter().map(|row| (row.revision, row.uid.clone())).collect();
            let batches = deltas(from, rows);
            let mut cursor = from;
            let mut got = Vec::new();
            for batch in batches {
                prop_assert!(batch.encoded_len() < MAX_FRAME);
                prop_assert_eq!(batch.from, cursor);
                for change in &batch.changes {
                    let Some(What::Upsert(upsert)) = &change.what else { panic!() };
                    prop_assert!(upsert.revision > batch.from);
                    got.push((upsert.revision, upsert.uid.clone()));
                }
                cursor = batch.through;
                // Everything through the new cursor has come.
                let due = sent.iter().filter(|(revision, _)| *revision <= cursor).count();
                prop_assert!(got.len() >= due);
            }
            prop_assert_eq!(cursor, revision);
            prop_assert_eq!(got, sent);
        }
    }
}

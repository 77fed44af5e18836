//! A difference of roots, looked into: the cluster agent lists what it has, the hub sends what differs.
//!
//! Nothing is deleted for being unknown here: a document that the hub has no row of, living or tombstone, leads to a
//! snapshot, whose deletions are verified and budgeted.

use super::session::{End, Session};
use crate::store::{Content, Desired, DesiredEntry};
use roadstead_contract::fleet::{Digest, Have, HaveRequest, hub_frame::Body};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Between two differences of one session: a root that never agrees must not keep both sides busy.
const AGAIN: Duration = Duration::from_secs(5);
/// Documents of one cluster; more is no honest inbox.
const MAX_ENTRIES: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Diff {
    request: u64,
    pages: Option<Pages>,
    last: Option<Instant>,
    /// Repairs in a row that did not bring the roots together.
    futile: u32,
}

#[derive(Debug, Default)]
struct Pages {
    next: u32,
    entries: BTreeMap<String, (u64, Digest)>,
}

impl Diff {
    /// The list is on its way.
    pub(super) fn pending(&self) -> bool {
        self.pages.is_some()
    }
}

/// What is to be done about a difference.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Documents to send again.
    pub(super) send: Vec<String>,
    /// Documents that the desired set does not hold: tombstones, if there are any.
    pub(super) extra: Vec<String>,
    /// Documents of a later generation than the hub's.
    pub(super) ahead: Vec<String>,
}

/// Compares what is to be with what is.
pub(super) fn compare(desired: &[DesiredEntry], have: &BTreeMap<String, (u64, Digest)>) -> Verdict {
    let mut verdict = Verdict {
        send: Vec::new(),
        extra: Vec::new(),
        ahead: Vec::new(),
    };
    let mut unseen: BTreeMap<&str, u64> = have
        .iter()
        .map(|(uid, (generation, _))| (uid.as_str(), *generation))
        .collect();
    for entry in desired {
        unseen.remove(entry.uid.as_str());
        match have.get(&entry.uid) {
            Some((generation, digest)) if *generation == entry.generation && *digest == entry.digest => {}
            Some((generation, _)) if *generation > entry.generation => verdict.ahead.push(entry.uid.clone()),
            _ => verdict.send.push(entry.uid.clone()),
        }
    }
    verdict.extra = unseen.into_keys().map(str::to_owned).collect();
    verdict
}

impl Session {
    /// Asks for the inbox's list, unless that was done just now.
    pub(super) async fn ask_difference(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let lately = self.diff.last.is_some_and(|last| now < last + AGAIN);
        if lately || self.diff.pages.is_some() || self.writer.holds() {
            return Ok(());
        }
        self.diff.last = Some(now);
        self.diff.request += 1;
        self.diff.pages = Some(Pages::default());
        tracing::info!(cluster.id = %self.fence.peer.cluster, "state roots differ: asking for the inbox's list");
        self.send(Body::HaveRequest(HaveRequest {
            request: self.diff.request,
        }))
        .await
    }

    pub(super) async fn have(&mut self, have: Have) -> Result<(), End> {
        let Some(pages) = &mut self.diff.pages else {
            return Ok(());
        };
        if have.request != self.diff.request || have.page < pages.next {
            return Ok(());
        }
        if have.page > pages.next || pages.entries.len() + have.entries.len() > MAX_ENTRIES {
            return Err(self.abuse("Have pages out of order, or too many").await);
        }
        pages.next += 1;
        for entry in have.entries {
            let Ok(digest) = Digest::try_from(entry.digest.as_slice()) else {
                return Err(self.abuse("a Have entry without a digest").await);
            };
            pages.entries.insert(entry.uid, (entry.generation, digest));
        }
        if !have.last {
            return Ok(());
        }
        let entries = self
            .diff
            .pages
            .take()
            .map(|pages| pages.entries)
            .unwrap_or_default();
        self.settle(have.cursor, &entries).await
    }

    async fn settle(&mut self, cursor: u64, have: &BTreeMap<String, (u64, Digest)>) -> Result<(), End> {
        let desired = match self.hub.store.desired(&self.fence.peer).await {
            Ok(desired) => desired,
            Err(error) => return Err(self.store(error).await),
        };
        let Desired { entries, .. } = &desired;
        let verdict = compare(entries, have);
        let asked: Vec<String> = verdict.send.iter().chain(&verdict.extra).cloned().collect();
        let rows = match self.hub.store.rows(&self.fence.peer, &asked).await {
            Ok(rows) => rows,
            Err(error) => return Err(self.store(error).await),
        };
        let buried = rows.iter().filter(|row| row.content == Content::Gone).count();
        let unexplained = verdict.extra.len() > buried;
        tracing::info!(
            cluster.id = %self.fence.peer.cluster,
            send = verdict.send.len(), extra = verdict.extra.len(), ahead = verdict.ahead.len(), unexplained,
            "a difference is known"
        );
        self.diff.futile += 1;
        // Only rows that the cursor covers: the rest comes with the delta in its order.
        let rows: Vec<_> = rows.into_iter().filter(|row| row.revision <= cursor).collect();
        if unexplained || self.diff.futile > 3 {
            self.writer.begin_snapshot();
            return Ok(());
        }
        self.repair(cursor, rows, desired.root()).await
    }

    /// The roots agree.
    pub(super) fn agreed(&mut self) {
        self.diff.futile = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str, generation: u64, digest: u8) -> DesiredEntry {
        DesiredEntry {
            uid: uid.to_owned(),
            generation,
            digest: Digest([digest; 32]),
        }
    }

    #[test]
    fn only_what_differs_is_sent_and_nothing_is_deleted_for_being_unknown() {
        let desired = [
            entry("same", 1, 1),
            entry("older", 2, 2),
            entry("other", 1, 3),
            entry("missing", 1, 4),
            entry("ahead", 1, 5),
        ];
        let have = [
            ("same", 1, 1),
            ("older", 1, 2),
            ("other", 1, 9),
            ("ahead", 2, 5),
            ("extra", 1, 1),
        ];
        let have = have.map(|(uid, generation, digest)| (uid.to_owned(), (generation, Digest([digest; 32]))));
        let verdict = compare(&desired, &BTreeMap::from(have));
        assert_eq!(verdict.send, ["older", "other", "missing"]);
        assert_eq!(verdict.extra, ["extra"]);
        assert_eq!(verdict.ahead, ["ahead"]);
    }
}

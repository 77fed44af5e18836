//! A difference of roots, looked into: the cluster agent lists what it has, the hub sends what differs.
//!
//! Nothing is deleted for being unknown here: a document that the hub has no row of, living or tombstone, leads to a
//! snapshot, whose deletions are verified and budgeted.

use super::{
    begin::MAX_NUMBER,
    session::{End, Session},
};
use crate::store::{Ahead, Content, Desired, DesiredEntry, Difference, Row, StoreError};
use roadstead_contract::fleet::{Digest, HAVE_PAGE, Have, HaveRequest, hub_frame::Body};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Between two differences of one session: a root that never agrees must not keep both sides busy.
const AGAIN: Duration = Duration::from_secs(5);
/// Documents of one cluster; more is no honest inbox.
const MAX_ENTRIES: usize = 100_000;
/// Ids that the hub gives are shorter.
const MAX_UID: usize = 64;
/// For the whole list.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// Documents that are read and sent at once.
const PAGE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Diff {
    request: u64,
    pages: Option<Pages>,
    last: Option<Instant>,
    /// Repairs in a row that did not bring the roots together.
    futile: u32,
    /// The list is asked for again: the database did not answer, or what a person is to see has changed.
    again: Option<Instant>,
    /// The hub's revision with which a cluster that is ahead was compared.
    compared: Option<u64>,
}

#[derive(Debug)]
struct Pages {
    since: Instant,
    next: u32,
    entries: BTreeMap<String, (u64, Digest)>,
}

impl Diff {
    /// The list is on its way.
    pub(super) fn pending(&self) -> bool {
        self.pages.is_some()
    }

    /// When the list is asked for again.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.again
    }

    /// When the list takes too long; `None` without one.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.pages.as_ref().map(|pages| pages.since + LIST_WITHIN)
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

/// What a person is to see of a cluster that is ahead.
fn ahead(cursor: u64, verdict: Verdict, have: &BTreeMap<String, (u64, Digest)>) -> Ahead {
    let generation = |uid: String| {
        let generation = have.get(&uid).map_or(0, |(generation, _)| *generation);
        (uid, generation)
    };
    Ahead {
        cursor,
        difference: Some(Difference {
            sent: verdict.send.len() as u64,
            deleted: verdict.extra,
            replaced: verdict.ahead.into_iter().map(generation).collect(),
        }),
    }
}

impl Session {
    /// Asks for the inbox's list, unless that was done just now.
    pub(super) async fn ask_difference(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let lately = self.diff.last.is_some_and(|last| now < last + AGAIN);
        if lately || self.diff.pages.is_some() || self.writer.holds() {
            return Ok(());
        }
        tracing::info!(cluster.id = %self.fence.peer.cluster, "state roots differ: asking for the inbox's list");
        self.list().await
    }

    async fn list(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.diff.last = Some(now);
        self.diff.request += 1;
        self.diff.pages = Some(Pages {
            since: now,
            next: 0,
            entries: BTreeMap::new(),
        });
        self.send(Body::HaveRequest(HaveRequest {
            request: self.diff.request,
        }))
        .await
    }

    /// Notes that the cluster is ahead, and has its inbox listed so that a person sees how it differs; or that it is not
    /// ahead any more, because its inbox is new.
    pub(super) async fn note_timeline(&mut self, cursor: u64, frozen: bool) -> Result<(), End> {
        if !self.behind {
            return match frozen && cursor == 0 {
                true => self.write_timeline(None).await,
                false => Ok(()),
            };
        }
        self.ahead = true;
        let difference = None;
        self.write_timeline(Some(Ahead { cursor, difference })).await?;
        self.list().await
    }

    async fn write_timeline(&self, ahead: Option<Ahead>) -> Result<(), End> {
        match self.hub.store.timeline(&self.fence, ahead).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.store(error).await),
        }
    }

    pub(super) async fn have(&mut self, have: Have) -> Result<(), End> {
        let Some(pages) = &mut self.diff.pages else {
            return Ok(());
        };
        if have.request != self.diff.request || have.page < pages.next {
            return Ok(());
        }
        let too_many =
            have.entries.len() > HAVE_PAGE || pages.entries.len() + have.entries.len() > MAX_ENTRIES;
        let too_long = have.entries.iter().any(|entry| entry.uid.len() > MAX_UID);
        if have.page > pages.next || too_many || too_long {
            return Err(self
                .abuse("Have pages out of order, too many, or too large")
                .await);
        }
        pages.next += 1;
        for entry in have.entries {
            let Ok(digest) = Digest::try_from(entry.digest.as_slice()) else {
                return Err(self.abuse("a Have entry without a digest").await);
            };
            if entry.generation > MAX_NUMBER {
                return Err(self.forged("a generation that no hub has given out").await);
            }
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
            Err(error) => return self.postponed(error).await,
        };
        let Desired { entries, .. } = &desired;
        let verdict = compare(entries, have);
        if self.ahead {
            self.diff.compared = Some(desired.revision);
            return self.write_timeline(Some(ahead(cursor, verdict, have))).await;
        }
        let buried = match self.hub.store.rows(&self.fence.peer, &verdict.extra).await {
            Ok(rows) => rows,
            Err(error) => return self.postponed(error).await,
        };
        let buried: Vec<_> = buried
            .into_iter()
            .filter(|row| row.content == Content::Gone)
            .collect();
        let unexplained = verdict.extra.len() > buried.len();
        tracing::info!(
            cluster.id = %self.fence.peer.cluster,
            send = verdict.send.len(), extra = verdict.extra.len(), ahead = verdict.ahead.len(), unexplained,
            "a difference is known"
        );
        self.diff.futile += 1;
        if unexplained || self.diff.futile > 3 {
            self.writer.begin_snapshot();
            return Ok(());
        }
        // Only rows that the cursor covers: the rest comes with the delta in its order.
        let covered = |rows: Vec<Row>| rows.into_iter().filter(|row| row.revision <= cursor).collect();
        let mut page: Vec<Row> = covered(buried);
        for uids in verdict.send.chunks(PAGE) {
            self.repair(cursor, std::mem::take(&mut page), None).await?;
            page = match self.hub.store.rows(&self.fence.peer, uids).await {
                Ok(rows) => covered(rows),
                Err(error) => return self.postponed(error).await,
            };
        }
        self.repair(cursor, page, Some(desired.root())).await
    }

    /// The hub stands at `revision` now: where a person is to see how the cluster differs, that follows.
    pub(super) fn follow(&mut self, revision: u64) {
        let other = self.diff.compared.is_some_and(|compared| compared != revision);
        if other && self.diff.again.is_none() && self.diff.pages.is_none() {
            let last = self.diff.last.unwrap_or_else(Instant::now);
            self.diff.again = Some(last + AGAIN);
        }
    }

    /// Sessions stay up without the database: the difference is looked into again in a while.
    async fn postponed(&mut self, error: StoreError) -> Result<(), End> {
        if let StoreError::Unavailable(_) = error {
            self.diff.again = Some(Instant::now() + AGAIN);
            return Ok(());
        }
        Err(self.store(error).await)
    }

    /// Asks for the list again if that is due.
    pub(super) async fn resume_difference(&mut self) -> Result<(), End> {
        if self.diff.again.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        (self.diff.again, self.diff.last) = (None, None);
        // Of a cluster that is ahead the list is for a person, and nothing is sent.
        match self.behind {
            true => self.list().await,
            false => self.ask_difference().await,
        }
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

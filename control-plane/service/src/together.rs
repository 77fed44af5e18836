//! What cluster agents of one tenant say and ask at the same moment, in one transaction: the cost of a transaction is
//! then shared by all of them. Every act is of the own cluster of a context; a tenant's are never mixed with another's.
//!
//! One that may not write (superseded, deleted, beyond what was given out) writes nothing and keeps nobody else from
//! writing. When the transaction fails, nothing of anybody is kept, and the caller asks for each alone.

use crate::fleet::{REPORT, cut, own};
use roadstead_authz::TenantContext;
use roadstead_domain::{Error, ObjectId, Problem};
use roadstead_store::{Fence, Fenced, Marks, NewStatus, Since, Standing, Store};

/// What a cluster agent has said since it was written down last.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// It holds everything through these revisions, or runs it. Never goes back.
    pub marks: Marks,
    /// A snapshot that carried this approval was taken, which is used up; without a hold nothing waits any more.
    pub taken: Option<(u64, bool)>,
    /// After that: the deletions of a snapshot of this revision, so many, wait for a person.
    pub held: Option<(u64, u64)>,
    /// How documents are, one for each; refused ones (Nack) come as phase `Failed` or `Rejected`.
    pub statuses: Vec<NewStatus>,
}

/// A session that says something.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub ctx: &'a TenantContext,
    pub epoch: u64,
    pub report: &'a Report,
}

/// What became of a report: the documents whose statuses are not the cluster's to make, which are not kept.
pub type Heard = Result<Vec<ObjectId>, Error>;

/// Writes one report: all of it, but for foreign statuses, or nothing.
///
/// # Errors
/// [`Error::Conflict`] (superseded); [`Error::NotFound`] for a deleted cluster; [`Error::Invalid`] for a revision that
/// was never given out.
pub async fn report(ctx: &TenantContext, store: &Store, epoch: u64, report: &Report) -> Heard {
    let said = Said { ctx, epoch, report };
    let mut heard = write(store, &[said], true).await?;
    heard.pop().flatten().unwrap_or_else(|| Err(nobody()))
}

/// Writes the reports of several clusters of one tenant in one transaction; what became of each, in the same order.
/// `None` for one that is to be asked for alone ([`report`]): its cluster is being written to by somebody else, or is
/// deleted.
///
/// # Errors
/// The transaction's: then nothing of anybody is kept.
pub async fn reports(store: &Store, said: &[Said<'_>]) -> Result<Vec<Option<Heard>>, Error> {
    write(store, said, false).await
}

fn nobody() -> Error {
    Error::internal("a report without an answer")
}

/// A session that writes, with the statuses that it may say.
type Writer = (Fenced, Vec<NewStatus>);

async fn write(store: &Store, said: &[Said<'_>], wait: bool) -> Result<Vec<Option<Heard>>, Error> {
    let Some(first) = said.first() else {
        return Ok(Vec::new());
    };
    for one in said {
        own(one.ctx)?;
    }
    let tx = store.tenant(first.ctx).write().await?;
    let sessions: Vec<_> = said.iter().map(|one| (one.ctx, one.epoch)).collect();
    let fences = tx.fence_together(&sessions, wait).await?;
    // Of each: the proof that it writes, or what became of it already.
    let mut writers: Vec<Result<Writer, Option<Heard>>> = Vec::with_capacity(said.len());
    for (fence, one) in fences.into_iter().zip(said) {
        writers.push(match fence {
            Fence::Absent if !wait => Err(None),
            fence => fence
                .writes(one.ctx)
                .and_then(|fenced| given_out(fenced, one.report.marks))
                .map(|fenced| (fenced, statuses(one.report)))
                .map_err(|error| Some(Err(error))),
        });
    }
    let writing = || {
        let writers = writers.iter().zip(said);
        writers.filter_map(|(writer, one)| Some((writer.as_ref().ok()?, one.report)))
    };
    let acks: Vec<_> = writing()
        .filter(|(_, report)| report.marks != Marks::default())
        .map(|((fenced, _), report)| (fenced, report.marks))
        .collect();
    tx.ack_together(&acks).await?;
    for ((fenced, _), report) in writing() {
        if let Some((approved, held)) = report.taken {
            tx.snapshot_taken(fenced, approved, held).await?;
        }
        if let Some((revision, deletes)) = report.held {
            tx.record_held(fenced, revision, deletes).await?;
        }
    }
    let reports: Vec<_> = writing()
        .map(|((fenced, statuses), _)| (fenced, statuses.as_slice()))
        .collect();
    let mut foreign = tx.record_statuses(&reports).await?;
    tx.commit().await?;
    let heard = writers.into_iter().zip(said).map(|(writer, one)| match writer {
        Ok(_) => {
            let cluster = own(one.ctx);
            Some(cluster.map(|cluster| foreign.remove(&cluster).unwrap_or_default()))
        }
        Err(heard) => heard,
    });
    Ok(heard.collect())
}

fn given_out(fenced: Fenced, marks: Marks) -> Result<Fenced, Error> {
    let revision = marks.persisted.max(marks.applied);
    if revision <= fenced.revision() {
        return Ok(fenced);
    }
    Err(Error::invalid(Problem::new(
        "revision",
        "a revision that the hub has given out",
        revision.to_string(),
        "acknowledged from the future",
    )))
}

fn statuses(report: &Report) -> Vec<NewStatus> {
    let cut = report.statuses.iter().map(|status| NewStatus {
        phase: cut(&status.phase, 32),
        reason: cut(&status.reason, 128),
        message: cut(&status.message, REPORT),
        ..status.clone()
    });
    cut.collect()
}

/// What has changed on each of these clusters of one tenant after the revision beside it, in the same order: by one
/// statement. `None` for one that is to be asked for alone ([`crate::fleet::changes_since`]): it is deleted, or this is
/// not the place for so much.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn changes(
    store: &Store,
    asked: &[(&TenantContext, u64)],
    rows: u32,
    longest: usize,
) -> Result<Vec<Option<Since>>, Error> {
    let Some((first, _)) = asked.first() else {
        return Ok(Vec::new());
    };
    for (ctx, _) in asked {
        own(ctx)?;
    }
    let tx = store.tenant(first).read().await?;
    let found = tx.changes_together(asked, rows, longest).await?;
    let each = asked
        .iter()
        .map(|(ctx, _)| Ok(found.get(&own(ctx)?).cloned().flatten()));
    each.collect()
}

/// How live clusters of one tenant stand in the database, each asked with the serial of a certificate; in the same
/// order, `None` for a deleted one.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn standing(
    store: &Store,
    asked: &[(&TenantContext, &str)],
) -> Result<Vec<Option<Standing>>, Error> {
    let Some((first, _)) = asked.first() else {
        return Ok(Vec::new());
    };
    for (ctx, _) in asked {
        own(ctx)?;
    }
    store.tenant(first).read().await?.standing_together(asked).await
}

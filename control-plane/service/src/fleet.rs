//! What cluster agents ask of the hub and report to it. Every act is of the caller's own cluster, which its context
//! carries; every write of a session carries the session's epoch and fails once a newer session has begun.

use crate::authenticate;
use crate::observe;
use crate::platform;
use crate::stop::record;
use roadstead_authz::{
    PeerIdentity, Presented, RequestInfo, SecretKind, SystemContext, SystemTask, TenantContext, act,
};
use roadstead_contract::fleet::Digest;
use roadstead_contract::run::{Outcome as RunOutcome, RunRecord};
use roadstead_domain::{AgentId, ClusterId, Error, ObjectId, RunId, TenantId};
use roadstead_store::{
    AuditEntry, Change, DesiredEntry, JoinRecord, NewRun, NewStatus, Outcome, Reported, Session, Stage,
    Store, Timeline,
};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Entries of a desired set that are read at once.
const PAGE: u32 = 1_000;
/// The longest text of a report that is kept, in characters.
const REPORT: usize = 1_024;

/// Changes of a cluster's desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The cluster's revision when this was read; greater than the last change's when there is more.
    pub revision: u64,
    /// Ascending, whole revisions.
    pub changes: Vec<Change>,
}

/// A cluster's whole desired set, without content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The cluster's revision of exactly this set.
    pub revision: u64,
    pub entries: Vec<DesiredEntry>,
}

/// What became of a run record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunVerdict {
    /// Committed, now or before.
    Kept,
    /// Never to be accepted, and why.
    Refused(String),
}

/// How a cluster stands, whoever changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub revision: u64,
    pub epoch: u64,
    /// The certificate is revoked or unknown.
    pub revoked: bool,
    /// Deletions beyond the budget that a person allowed.
    pub approved_deletes: u64,
    /// The cluster is ahead, and a person has not decided yet.
    pub frozen: bool,
}

fn own(ctx: &TenantContext) -> Result<ClusterId, Error> {
    let foreign = || Error::forbidden("only the cluster agent of a cluster may do this");
    let cluster = ctx.cluster().ok_or_else(foreign)?;
    let place = roadstead_authz::Place {
        tenant: ctx.tenant(),
        object: roadstead_authz::Object::Cluster(cluster),
    };
    ctx.authorize::<act::Synchronise, _>(place)
        .map_err(|denied| Error::forbidden(denied.reason()))?;
    Ok(cluster)
}

/// Uses up a join token, once and for ever; says whose cluster it is for. The cluster's certificates before are
/// revoked.
///
/// # Errors
/// [`Error::Unauthenticated`], alike for unknown, used and expired. A refusal is recorded: in the log of the token's
/// tenant, or in the platform's.
pub async fn consume_join_token(
    store: &Store,
    secret: &str,
    version: &str,
    request: RequestInfo,
) -> Result<(TenantId, ClusterId), Error> {
    let consumed = consume(store, secret, version, request).await;
    if matches!(consumed, Ok(_) | Err(Error::Unauthenticated { .. })) {
        observe::enrolment(consumed.is_ok());
    }
    consumed
}

async fn consume(
    store: &Store,
    secret: &str,
    version: &str,
    request: RequestInfo,
) -> Result<(TenantId, ClusterId), Error> {
    let refused = || SecretKind::JoinToken.refused();
    let system = SystemContext::new(SystemTask::Authenticate);
    let Some(join) = find_join_token(store, &system, secret).await? else {
        platform::record(store, "enrol", "an unknown join token", request).await?;
        return Err(refused());
    };
    let ctx = authenticate::system(&system, join.tenant.clone(), request);
    let mut tx = store.tenant(&ctx).write_audited().await?;
    if tx.consume_join_token(&join, version).await? {
        let entry =
            AuditEntry::allowed("enrol", join.cluster, "join token").with("token", join.id.to_string());
        tx.audit(entry).await?;
        tx.commit().await?;
        return Ok((join.tenant.id, join.cluster));
    }
    drop(tx);
    let entry =
        AuditEntry::refused(Outcome::Refused, "enrol", join.cluster).with("token", join.id.to_string());
    record(&ctx, store, entry).await?;
    Err(refused())
}

async fn find_join_token(
    store: &Store,
    system: &SystemContext,
    secret: &str,
) -> Result<Option<JoinRecord>, Error> {
    match Presented::parse(SecretKind::JoinToken, secret) {
        Ok(presented) => store.system(system).find_join_token(&presented).await,
        // A text that cannot be a token is nobody's.
        Err(_) => Ok(None),
    }
}

/// Records that an enrolment was refused for something else than its token, which is not used up: in the log of the
/// token's tenant, or in the platform's where the token is unknown.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn enrolment_refused(
    store: &Store,
    secret: &str,
    why: &str,
    request: RequestInfo,
) -> Result<(), Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let Some(join) = find_join_token(store, &system, secret).await? else {
        return platform::record(store, "enrol", why, request).await;
    };
    let ctx = authenticate::system(&system, join.tenant.clone(), request);
    let entry = AuditEntry::refused(Outcome::Refused, "enrol", join.cluster)
        .with("token", join.id.to_string())
        .with("detail", cut(why, REPORT));
    record(&ctx, store, entry).await
}

/// Notes a certificate before it is handed out.
///
/// # Errors
/// [`Error::Unauthenticated`] for a deleted or unknown cluster.
pub async fn certificate_issued(
    store: &Store,
    peer: &PeerIdentity,
    not_after_ms: i64,
    request: RequestInfo,
) -> Result<(), Error> {
    let refused = || Error::unauthenticated("the cluster is not there any more");
    let system = SystemContext::new(SystemTask::Authenticate);
    let tenant = store
        .system(&system)
        .tenant(peer.tenant)
        .await?
        .ok_or_else(refused)?;
    let ctx = authenticate::system(&system, tenant, request);
    let mut tx = store.tenant(&ctx).write_audited().await?;
    if !tx
        .insert_certificate(peer.cluster, &peer.serial, not_after_ms)
        .await?
    {
        return Err(refused());
    }
    let entry = AuditEntry::allowed("issue certificate", peer.cluster, "the hub's authority")
        .with("serial", peer.serial.as_str())
        .with("not_after_ms", not_after_ms);
    tx.audit(entry).await?;
    tx.commit().await?;
    observe::certificate();
    Ok(())
}

/// Whether a certificate that is not good here is merely unknown: of the hub's own authority, of a cluster that is
/// there, and neither issued nor revoked as far as this database knows. So it is after a restore from a backup; it
/// waits for a person ([`crate::clusters::admit_certificate`]).
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn is_unknown(
    store: &Store,
    peer: &PeerIdentity,
    not_after_ms: i64,
    request: RequestInfo,
) -> Result<bool, Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let Some(tenant) = store.system(&system).tenant(peer.tenant).await? else {
        return Ok(false);
    };
    let ctx = authenticate::system(&system, tenant, request);
    let known = store.tenant(&ctx).read().await?;
    if let Some(waits) = known.waits_for_admission(peer.cluster, &peer.serial).await? {
        return Ok(waits);
    }
    drop(known);
    let tx = store.tenant(&ctx).write().await?;
    let noted = tx
        .note_unknown_certificate(peer.cluster, &peer.serial, not_after_ms)
        .await?;
    tx.commit().await?;
    if noted {
        return Ok(true);
    }
    // Somebody noted it in between, or the cluster is deleted.
    let known = store.tenant(&ctx).read().await?;
    let waits = known.waits_for_admission(peer.cluster, &peer.serial).await?;
    Ok(waits.unwrap_or(false))
}

/// Notes that the cluster is ahead of this database, which is of an older time, and how it differs; with `None` that
/// it is not.
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn record_timeline(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    timeline: Option<&Timeline>,
) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.record_timeline(epoch, timeline).await?;
    tx.commit().await
}

/// Begins a session: raises the epoch, so that older sessions write no more.
///
/// # Errors
/// [`Error::NotFound`] for a deleted cluster.
pub async fn begin_session(
    ctx: &TenantContext,
    store: &Store,
    incarnation: &str,
    version: &str,
) -> Result<Session, Error> {
    own(ctx)?;
    let mut tx = store.tenant(ctx).write().await?;
    let session = tx
        .begin_session(&cut(incarnation, 128), &cut(version, 64))
        .await?;
    tx.commit().await?;
    observe::session();
    Ok(session)
}

/// Changes after `after`: about `limit`, whole revisions, at least one where there is one.
///
/// # Errors
/// [`Error::NotFound`] for a deleted cluster.
pub async fn changes_since(
    ctx: &TenantContext,
    store: &Store,
    after: u64,
    limit: u32,
) -> Result<Changes, Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).read().await?;
    // The rows first: on PostgreSQL each statement sees its own moment, and a revision must not be ahead of its rows.
    let changes = tx.changes_since(after, limit).await?;
    let last = changes.last().map_or(after, Change::revision);
    let revision = tx.cluster_revision().await?.max(last);
    Ok(Changes { revision, changes })
}

/// The whole desired set.
///
/// # Errors
/// [`Error::NotFound`] for a deleted cluster; [`Error::Unavailable`] when it keeps changing while it is read.
pub async fn desired_set(ctx: &TenantContext, store: &Store) -> Result<Desired, Error> {
    own(ctx)?;
    // On PostgreSQL each statement sees its own moment: the set belongs to the revision if that has not moved.
    for _ in 0..16 {
        let tx = store.tenant(ctx).read().await?;
        let revision = tx.cluster_revision().await?;
        let mut entries: Vec<DesiredEntry> = Vec::new();
        loop {
            let page = tx.desired_set(entries.last().map(|e| e.uid), PAGE).await?;
            let full = page.len() == PAGE as usize;
            entries.extend(page);
            if !full {
                break;
            }
        }
        if tx.cluster_revision().await? == revision {
            return Ok(Desired { revision, entries });
        }
    }
    Err(Error::Unavailable {
        message: "the cluster's set keeps changing while it is read; try again".to_owned(),
        detail: None,
    })
}

/// These documents as they are now for the cluster, tombstones too; what never belonged there is left out.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn rows(ctx: &TenantContext, store: &Store, uids: &[ObjectId]) -> Result<Vec<Change>, Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).read().await?;
    let mut rows = Vec::new();
    for uid in uids {
        rows.extend(tx.desired_change(*uid).await?);
    }
    Ok(rows)
}

/// The bytes of a document of this cluster; `None` where no document of it has the digest.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn blob(ctx: &TenantContext, store: &Store, digest: Digest) -> Result<Option<String>, Error> {
    own(ctx)?;
    store.tenant(ctx).read().await?.desired_document(digest).await
}

/// The cluster holds (or runs) everything through `revision`. Never goes back.
///
/// # Errors
/// [`Error::Conflict`] (superseded); [`Error::Invalid`] for a revision that was never given out.
pub async fn ack(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    stage: Stage,
    revision: u64,
) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.ack(epoch, stage, revision).await?;
    tx.commit().await
}

/// The cluster keeps the trust bundle of this generation; `root` is the root of the certificate with which it says so.
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn trust_kept(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    generation: u64,
    root: &str,
) -> Result<(), Error> {
    own(ctx)?;
    // It says so at the beginning of each session, and hardly ever anything new.
    let known = store.tenant(ctx).read().await?.trust_kept().await?;
    if known == (generation, root.to_owned()) {
        return Ok(());
    }
    let tx = store.tenant(ctx).write().await?;
    tx.record_trust(epoch, generation, root).await?;
    tx.commit().await
}

/// Starts the cluster's cursors over (a wiped inbox).
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn reset_cursors(ctx: &TenantContext, store: &Store, epoch: u64) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.reset_cursors(epoch).await?;
    tx.commit().await
}

/// How documents are on the cluster; refused ones (Nack) come as phase `Failed` or `Rejected`. All or none are kept;
/// reports that are older than what is known are passed over.
///
/// # Errors
/// [`Error::Conflict`] (superseded); [`Error::Forbidden`] when a document never belonged to the cluster, or when the
/// generation does not exist: then none is kept.
pub async fn observe(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    reports: &[NewStatus],
) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.fence(epoch).await?;
    for report in reports {
        let report = NewStatus {
            phase: cut(&report.phase, 32),
            reason: cut(&report.reason, 128),
            message: cut(&report.message, REPORT),
            ..report.clone()
        };
        if tx.record_status(&report).await? == Reported::Foreign {
            let message = format!("a report of {} is not this cluster's to make", report.object);
            return Err(Error::forbidden(message));
        }
    }
    tx.commit().await
}

/// A snapshot's deletions wait for a person.
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn held(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    revision: u64,
    deletes: u64,
) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.record_held(epoch, revision, deletes).await?;
    tx.commit().await
}

/// A snapshot that carried `approved` was taken: that approval is used up; without a hold nothing waits any more.
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn snapshot_taken(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    approved: u64,
    held: bool,
) -> Result<(), Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.snapshot_taken(epoch, approved, held).await?;
    tx.commit().await
}

/// Commits run records, each once, and says what became of each, in the same order.
///
/// # Errors
/// [`Error::Conflict`] (superseded). A record of a foreign agent is no error but a refusal: the caller, who knows what
/// becomes of it, records that ([`audit_event`]).
pub async fn record_runs(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    records: &[RunRecord],
) -> Result<Vec<RunVerdict>, Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.fence(epoch).await?;
    let mut verdicts = Vec::new();
    for run in records {
        let ids = RunId::from_record(&run.id).and_then(|id| Ok((id, run.agent_uid.parse::<AgentId>()?)));
        let verdict = match ids {
            Err(error) => RunVerdict::Refused(error.to_string()),
            Ok((id, agent)) => {
                let new = NewRun {
                    id,
                    agent,
                    outcome: outcome(run.outcome),
                    record: run,
                };
                match tx.insert_run(&new).await? {
                    Ok(()) => RunVerdict::Kept,
                    Err(why) => RunVerdict::Refused(why.to_owned()),
                }
            }
        };
        verdicts.push(verdict);
    }
    tx.commit().await?;
    let refused = verdicts
        .iter()
        .filter(|v| matches!(v, RunVerdict::Refused(_)))
        .count();
    observe::runs((verdicts.len() - refused) as u64, refused as u64);
    Ok(verdicts)
}

fn outcome(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Completed => "completed",
        RunOutcome::Failed => "failed",
        RunOutcome::Canceled => "canceled",
        RunOutcome::Rejected => "rejected",
    }
}

/// When clusters were last heard, in milliseconds since the Unix epoch: one transaction per tenant. A tenant whose
/// turns at the database are taken keeps no other's times from being written.
///
/// # Errors
/// The first of [`Error::Unavailable`], [`Error::Internal`].
pub async fn touch_last_seen(store: &Store, seen: &[(TenantId, ClusterId, i64)]) -> Result<(), Error> {
    let system = SystemContext::new(SystemTask::LastSeen);
    let mut tenants: BTreeMap<TenantId, Vec<(ClusterId, i64)>> = BTreeMap::new();
    for (tenant, cluster, at_ms) in seen {
        tenants.entry(*tenant).or_default().push((*cluster, *at_ms));
    }
    let mut ended = Ok(());
    for (tenant, clusters) in tenants {
        let Some(tenant) = store.system(&system).tenant(tenant).await? else {
            continue;
        };
        let ctx = authenticate::system(&system, tenant, RequestInfo::default());
        let written = async {
            let tx = store.tenant(&ctx).write().await?;
            tx.touch_last_seen(&clusters).await?;
            tx.commit().await
        };
        ended = ended.and(written.await);
    }
    ended
}

/// How a live cluster stands in the database; `None` when the cluster is deleted.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn standing(ctx: &TenantContext, store: &Store, serial: &str) -> Result<Option<Standing>, Error> {
    let id = own(ctx)?;
    let tx = store.tenant(ctx).read().await?;
    let Some(cluster) = tx.cluster(id).await? else {
        return Ok(None);
    };
    Ok(Some(Standing {
        revision: cluster.revision,
        epoch: cluster.epoch,
        revoked: tx.is_revoked(serial).await?,
        approved_deletes: cluster.approved_deletes,
        frozen: cluster.timeline.is_some(),
    }))
}

/// Writes something that the fleet noticed to the tenant's audit log: a forged message, a suspected clone, a refused
/// certificate. `accepted`: it was an act; else a refusal. Detail: names, counts and digests only.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn audit_event(
    store: &Store,
    peer: &PeerIdentity,
    accepted: bool,
    action: &str,
    detail: Map<String, Json>,
    request: RequestInfo,
) -> Result<(), Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let Some(tenant) = store.system(&system).tenant(peer.tenant).await? else {
        let what = format!("a certificate of {}, which is not here", peer.cluster);
        return platform::record(store, action, &what, request).await;
    };
    let ctx = authenticate::system(&system, tenant, request);
    let outcome = if accepted {
        Outcome::Allowed
    } else {
        Outcome::Refused
    };
    observe::event(accepted);
    let mut entry = AuditEntry::refused(outcome, action, peer.cluster);
    entry.detail = detail;
    record(&ctx, store, entry).await
}

fn cut(text: &str, longest: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(longest).collect()
}

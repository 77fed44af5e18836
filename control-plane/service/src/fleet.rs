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
use roadstead_domain::{AgentId, ClusterId, CommandId, EnrolmentTokenId, Error, ObjectId, RunId, TenantId};
use roadstead_store::{
    AuditEntry, Change, CommandCode, DesiredEntry, DueCommand, JoinRecord, NewRun, Outcome, ResultVerdict,
    Session, Store, Timeline,
};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Entries of a desired set that are read at once.
const PAGE: u32 = 1_000;
/// The longest text of a report that is kept, in characters.
pub(crate) const REPORT: usize = 1_024;

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

pub(crate) fn own(ctx: &TenantContext) -> Result<ClusterId, Error> {
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

/// Counts a client certificate that TLS refused: of each there is a number, of many one record.
pub fn refused_at_the_door() {
    observe::refused();
}

/// Whose a join token is, good or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinOwner {
    pub tenant: TenantId,
    pub cluster: ClusterId,
    pub token: EnrolmentTokenId,
}

/// Uses up a join token, once and for ever; says whose cluster it is for. The cluster's certificates before are
/// revoked.
///
/// # Errors
/// [`Error::Unauthenticated`], alike for unknown, used and expired. A refusal is not recorded here: whoever is refused
/// can come again and again, and the fleet's port limits what of it is written ([`join_token_owner`] says to which log).
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
    let join = find_join_token(store, &system, secret)
        .await?
        .ok_or_else(refused)?;
    let ctx = authenticate::system(&system, join.tenant.clone(), request);
    let mut tx = store.tenant(&ctx).write_audited().await?;
    if !tx.consume_join_token(&join, version).await? {
        return Err(refused());
    }
    let entry = AuditEntry::allowed("enrol", join.cluster, "join token")
        .with("token", join.id.to_string())
        .with("made_by", join.created_by.as_str());
    tx.audit(entry).await?;
    tx.commit().await?;
    Ok((join.tenant.id, join.cluster))
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

/// Whose join token this is; `None` for nobody's.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn join_token_owner(store: &Store, secret: &str) -> Result<Option<JoinOwner>, Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let join = find_join_token(store, &system, secret).await?;
    Ok(join.map(|join| JoinOwner {
        tenant: join.tenant.id,
        cluster: join.cluster,
        token: join.id,
    }))
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
    capabilities: &[String],
) -> Result<Session, Error> {
    own(ctx)?;
    let mut tx = store.tenant(ctx).write().await?;
    let session = tx
        .begin_session(&cut(incarnation, 128), &cut(version, 64), &capabilities.join(" "))
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

/// Commands of the cluster without a result, oldest first; from now on they count as sent. Nothing is written for none.
///
/// # Errors
/// [`Error::Conflict`] (superseded).
pub async fn due_commands(ctx: &TenantContext, store: &Store, epoch: u64) -> Result<Vec<DueCommand>, Error> {
    own(ctx)?;
    if !store.tenant(ctx).read().await?.has_commands().await? {
        return Ok(Vec::new());
    }
    let tx = store.tenant(ctx).write().await?;
    let due = tx.send_commands(epoch).await?;
    tx.commit().await?;
    Ok(due)
}

/// Keeps results of commands, the first of each, and says what became of each, in the same order.
///
/// # Errors
/// [`Error::Conflict`] (superseded). A result that is not this cluster's to give is no error but a refusal: the caller
/// records that ([`audit_event`]).
pub async fn record_results(
    ctx: &TenantContext,
    store: &Store,
    epoch: u64,
    results: &[(CommandId, CommandCode, String)],
) -> Result<Vec<ResultVerdict>, Error> {
    own(ctx)?;
    let tx = store.tenant(ctx).write().await?;
    tx.fence(epoch).await?;
    let mut verdicts = Vec::with_capacity(results.len());
    for (id, code, detail) in results {
        verdicts.push(tx.record_result(*id, *code, &cut(detail, REPORT)).await?);
    }
    tx.commit().await?;
    Ok(verdicts)
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

pub(crate) fn cut(text: &str, longest: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(longest).collect()
}

//! Clusters: registered by an owner, joined by a single-use token, shut out at once.

use crate::idempotency::{Idempotency, recall, remember};
use crate::placement;
use crate::stop::{Stop, allow, first, settle, viewing};
use crate::tokens;
use roadstead_authz::{Authorized, Object, SecretKind, TenantContext, act, mint};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, ConflictReason, Error, Page, PageRequest, Problem};
use roadstead_store::{AuditEntry, Certificate, Cluster, NewCluster, NewJoinToken, Store, Tx};
use secrecy::SecretString;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest life of a join token (protocol.md §1).
pub const JOIN_WITHIN: Duration = Duration::from_secs(60 * 60);

/// A cluster to register.
#[derive(Clone, Debug)]
pub struct CreateInput {
    pub name: Name,
    pub labels: BTreeMap<String, String>,
    /// Under this key the answer, without the join token, is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

/// The secret part of a join token, shown once; `fleet` completes it with the pin of the hub's authority.
#[derive(Debug)]
pub struct Joinable {
    pub cluster: Cluster,
    pub secret: SecretString,
    /// Milliseconds since the Unix epoch, UTC.
    pub expires_ms: i64,
}

/// What came of making a join token.
#[derive(Debug)]
pub enum Joining {
    Done(Joinable),
    /// It was made before, under the same key, and its secret is shown once: whoever did not get it makes another,
    /// under another key.
    Before(Cluster),
}

/// A cluster with its certificates.
#[derive(Clone, Debug)]
pub struct Detail {
    pub cluster: Cluster,
    /// Newest first.
    pub certificates: Vec<Certificate>,
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    let fits = |text: &str, least: usize| {
        (least..=128).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
    };
    let wrong = labels
        .iter()
        .find(|(key, value)| !fits(key, 1) || !fits(value, 0));
    if labels.len() > 64 {
        let message = "too many labels";
        return Err(Error::invalid(Problem::new(
            "labels",
            "at most 64",
            labels.len().to_string(),
            message,
        )));
    }
    match wrong {
        None => Ok(()),
        Some((key, _)) => Err(Error::invalid(Problem::new(
            format!("labels.{}", key.chars().take(40).collect::<String>()),
            "letters, digits, - _ . /, at most 128",
            "other characters, or more",
            "wrong label",
        ))),
    }
}

/// Registers a cluster; agents whose placement fits it are placed there at once.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken, or for a used key; [`Error::Invalid`] for labels; [`Error::Forbidden`].
pub async fn create(ctx: &TenantContext, store: &Store, input: CreateInput) -> Result<Cluster, Error> {
    let made = register(ctx, store, input, false).await;
    match settle(ctx, store, made).await? {
        Registered::Plain(cluster) => Ok(cluster),
        Registered::Joining(Joining::Done(joinable)) => Ok(joinable.cluster),
        Registered::Joining(Joining::Before(cluster)) => Ok(cluster),
    }
}

/// Registers a cluster with a join token for its cluster agent, both or neither.
///
/// # Errors
/// As [`create`].
pub async fn create_joinable(
    ctx: &TenantContext,
    store: &Store,
    input: CreateInput,
) -> Result<Joining, Error> {
    let made = register(ctx, store, input, true).await;
    match settle(ctx, store, made).await? {
        Registered::Joining(joining) => Ok(joining),
        Registered::Plain(cluster) => Ok(Joining::Before(cluster)),
    }
}

enum Registered {
    Plain(Cluster),
    Joining(Joining),
}

async fn register(
    ctx: &TenantContext,
    store: &Store,
    input: CreateInput,
    joinable: bool,
) -> Result<Registered, Stop> {
    let proof = allow::<act::ManageClusters, _>(ctx, ctx.tenant(), || "it".to_owned())?;
    check_labels(&input.labels)?;
    let digest = json!(["create cluster", input.name.as_str(), input.labels, joinable]);
    let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
    let new = NewCluster {
        name: input.name,
        labels: input.labels,
    };
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
        return Ok(Registered::Joining(Joining::Before(before)));
    }
    let cluster = tx.insert_cluster(&proof, &new).await?;
    placement::recompute(&mut tx, None).await?;
    tx.audit(AuditEntry::allowed("create cluster", cluster.id, proof.grant()))
        .await?;
    let cluster = tx.cluster(cluster.id).await?.unwrap_or(cluster);
    remember(idempotency.as_ref(), &tx, &cluster).await?;
    let registered = if joinable {
        let id = cluster.id;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        Registered::Joining(Joining::Done(join_in(ctx, &mut tx, store, cluster).await?))
    } else {
        Registered::Plain(cluster)
    };
    tx.commit().await?;
    Ok(registered)
}

/// Makes a join token for the cluster; its unused ones before end.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`]; [`Error::Conflict`] when it was made before under this key
/// ([`join_token_once`] tells).
pub async fn join_token(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    idempotency_key: Option<&str>,
) -> Result<Joinable, Error> {
    match join_token_once(ctx, store, id, idempotency_key).await? {
        Joining::Done(joinable) => Ok(joinable),
        Joining::Before(_) => {
            let message = "a join token was made under this key before; it is shown once: choose a new key";
            Err(Error::conflict(ConflictReason::IdempotencyKey, message))
        }
    }
}

/// Makes a join token for the cluster, once for each key.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`]; [`Error::Conflict`] for a key that was used for other input.
pub async fn join_token_once(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    idempotency_key: Option<&str>,
) -> Result<Joining, Error> {
    let made = async {
        first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
        let idempotency = Idempotency::new(idempotency_key, &json!(["make join token", id]))?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(Joining::Before(before));
        }
        let cluster = find(&tx, id).await?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        remember(idempotency.as_ref(), &tx, &*cluster).await?;
        let joinable = join_in(ctx, &mut tx, store, cluster).await?;
        tx.commit().await?;
        Ok::<_, Stop>(Joining::Done(joinable))
    };
    let made = made.await;
    settle(ctx, store, made).await
}

async fn join_in(
    ctx: &TenantContext,
    tx: &mut Tx<'_>,
    store: &Store,
    cluster: Authorized<Cluster, act::ManageClusters>,
) -> Result<Joinable, Error> {
    // What a token makes ends with it, so one that has ended meanwhile makes nothing.
    tokens::still_good(ctx, tx).await?;
    let (secret, hash) = mint(SecretKind::JoinToken, &**store.random());
    let lifetime = i64::try_from(JOIN_WITHIN.as_millis()).unwrap_or(i64::MAX);
    let expires_ms = store.clock().now_ms().saturating_add(lifetime);
    let token = tx
        .insert_join_token(&cluster, NewJoinToken { hash, expires_ms })
        .await?;
    let entry =
        AuditEntry::allowed("make join token", cluster.id, cluster.grant()).with("token", token.to_string());
    tx.audit(entry).await?;
    Ok(Joinable {
        cluster: cluster.into_inner(),
        secret,
        expires_ms,
    })
}

async fn find(tx: &Tx<'_>, id: ClusterId) -> Result<Cluster, Error> {
    let found = tx.cluster(id).await?;
    found.ok_or_else(|| Error::not_found(id.to_string()))
}

/// The tenant's clusters, by name.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(ctx: &TenantContext, store: &Store, page: &PageRequest) -> Result<Page<Cluster>, Error> {
    viewing(ctx, store).await?.clusters(page).await
}

/// One cluster with its certificates.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn get(ctx: &TenantContext, store: &Store, id: ClusterId) -> Result<Detail, Error> {
    let tx = viewing(ctx, store).await?;
    let cluster = tx
        .cluster(id)
        .await?
        .ok_or_else(|| Error::not_found(id.to_string()))?;
    let certificates = tx.certificates(&cluster).await?;
    Ok(Detail {
        cluster,
        certificates,
    })
}

/// The cluster of that name, with its certificates.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn by_name(ctx: &TenantContext, store: &Store, name: &Name) -> Result<Detail, Error> {
    let tx = viewing(ctx, store).await?;
    let found = tx.cluster_by_name(name).await?;
    let cluster = found.ok_or_else(|| Error::not_found(format!("cluster {name}")))?;
    let certificates = tx.certificates(&cluster).await?;
    Ok(Detail {
        cluster,
        certificates,
    })
}

/// Revokes one certificate (by serial), or all of the cluster's; returns how many. Live sessions hear of it at once
/// on this replica, and by polling on others.
///
/// # Errors
/// [`Error::NotFound`], also for an unknown serial; [`Error::Forbidden`]; [`Error::Conflict`] for a key that was used
/// for other input.
pub async fn revoke_certificates(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    serial: Option<&str>,
    idempotency_key: Option<&str>,
) -> Result<u64, Error> {
    let revoked = async {
        first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
        let digest = json!(["revoke certificate", id, serial]);
        let idempotency = Idempotency::new(idempotency_key, &digest)?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(count) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(count);
        }
        let cluster = find(&tx, id).await?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        if let Some(serial) = serial {
            let known = tx.certificates(&cluster).await?;
            if !known.iter().any(|c| c.serial == serial) {
                return Err(Error::not_found(format!("certificate {serial} of {id}")).into());
            }
        }
        let count = tx.revoke_certificates(&cluster, serial).await?;
        let entry = AuditEntry::allowed("revoke certificate", id, cluster.grant())
            .with("serial", serial.unwrap_or("all"))
            .with("count", count);
        tx.audit(entry).await?;
        remember(idempotency.as_ref(), &tx, &count).await?;
        tx.commit().await?;
        Ok::<_, Stop>(count)
    };
    let revoked = revoked.await;
    settle(ctx, store, revoked).await
}

/// Allows the deletions that a held snapshot asks for, once: exactly as many as the person saw. A live session acts
/// at once.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when not that many wait, or for a used key; [`Error::Forbidden`].
pub async fn approve_deletes(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    deletes: u64,
    idempotency_key: Option<&str>,
) -> Result<Cluster, Error> {
    let approved = async {
        first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
        let idempotency = Idempotency::new(idempotency_key, &json!(["approve deletes", id, deletes]))?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(before);
        }
        let cluster = find(&tx, id).await?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        if deletes == 0 || !tx.approve_deletes(&cluster, deletes).await? {
            return Err(not_held(&cluster, deletes).into());
        }
        let entry = AuditEntry::allowed("approve deletes", id, cluster.grant()).with("deletes", deletes);
        tx.audit(entry).await?;
        let after = find(&tx, id).await?;
        remember(idempotency.as_ref(), &tx, &after).await?;
        tx.commit().await?;
        Ok::<_, Stop>(after)
    };
    let approved = approved.await;
    settle(ctx, store, approved).await
}

/// Lets the hub's view of a cluster go on that is ahead of its database: what the hub wants is sent, documents that
/// are newer there get a generation above theirs, and what the hub does not know is deleted there, within the budget
/// or by another decision. `cursor` is what the person saw.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when the cluster is not ahead by that much, when it is not known yet how it
/// differs, or for a used key; [`Error::Forbidden`].
pub async fn accept_timeline(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    cursor: u64,
    idempotency_key: Option<&str>,
) -> Result<Cluster, Error> {
    let accepted = accept(ctx, store, id, cursor, idempotency_key).await;
    settle(ctx, store, accepted).await
}

async fn accept(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    cursor: u64,
    idempotency_key: Option<&str>,
) -> Result<Cluster, Stop> {
    first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
    let idempotency = Idempotency::new(idempotency_key, &json!(["accept timeline", id, cursor]))?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
        return Ok(before);
    }
    let cluster = find(&tx, id).await?;
    let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
    let ahead = cluster
        .timeline
        .clone()
        .filter(|timeline| timeline.cursor == cursor);
    let difference = ahead.and_then(|timeline| timeline.difference);
    let difference = difference.ok_or_else(|| not_ahead(&cluster, cursor))?;
    if !tx.accept_timeline(&cluster, cursor).await? {
        return Err(not_ahead(&cluster, cursor).into());
    }
    for (uid, generation) in &difference.replaced {
        let Ok(object) = uid.parse() else { continue };
        let message = format!(
            "as the hub holds it, over revision {generation} on {}",
            cluster.name
        );
        tx.raise_generation(object, *generation, &message).await?;
    }
    let entry = AuditEntry::allowed("accept timeline", id, cluster.grant())
        .with("cursor", cursor)
        .with("sent", difference.sent)
        .with("deletes", difference.deletes)
        .with("replaced", difference.replaced.len());
    tx.audit(entry).await?;
    let after = find(&tx, id).await?;
    remember(idempotency.as_ref(), &tx, &after).await?;
    tx.commit().await?;
    Ok(after)
}

fn not_ahead(cluster: &Cluster, cursor: u64) -> Error {
    let message = match &cluster.timeline {
        None => format!("the cluster {} is not ahead of the hub", cluster.name),
        Some(timeline) if timeline.difference.is_none() => {
            format!(
                "how the cluster {} differs is not known yet: wait until it is connected",
                cluster.name
            )
        }
        Some(timeline) => format!(
            "the cluster {} is at revision {}, not {cursor}: look again and accept that",
            cluster.name, timeline.cursor
        ),
    };
    Error::conflict(ConflictReason::Revision, message)
}

/// Makes a certificate good that the hub's own authority signed and this database does not know: the cluster was
/// enrolled, or renewed it, after the backup that the database is.
///
/// # Errors
/// [`Error::NotFound`] for a certificate that does not wait for this; [`Error::Forbidden`]; [`Error::Conflict`] for a
/// key that was used for other input.
pub async fn admit_certificate(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    serial: &str,
    idempotency_key: Option<&str>,
) -> Result<Cluster, Error> {
    let admitted = async {
        first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
        let idempotency = Idempotency::new(idempotency_key, &json!(["admit certificate", id, serial]))?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(before);
        }
        let cluster = find(&tx, id).await?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        if !tx.admit_certificate(&cluster, serial).await? {
            return Err(Error::not_found(format!("an unknown certificate {serial} of {id}")).into());
        }
        let entry = AuditEntry::allowed("admit certificate", id, cluster.grant()).with("serial", serial);
        tx.audit(entry).await?;
        let after = find(&tx, id).await?;
        remember(idempotency.as_ref(), &tx, &after).await?;
        tx.commit().await?;
        Ok::<_, Stop>(after)
    };
    let admitted = admitted.await;
    settle(ctx, store, admitted).await
}

fn not_held(cluster: &Cluster, deletes: u64) -> Error {
    let message = match cluster.held {
        None => format!("no deletions wait on the cluster {}", cluster.name),
        Some((_, held)) => format!(
            "{held} deletions wait on the cluster {}, not {deletes}: look again and approve that number",
            cluster.name
        ),
    };
    Error::conflict(ConflictReason::Revision, message)
}

/// Deletes a cluster: its certificates are revoked, its sessions fenced off, its desired set forgotten; its runs
/// stay. Answers with the cluster as it was.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`]; [`Error::Conflict`] for a key that was used for other input.
pub async fn delete(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    idempotency_key: Option<&str>,
) -> Result<Cluster, Error> {
    let deleted = async {
        first::<act::ManageClusters>(ctx, Object::Cluster(id), &id.to_string())?;
        let idempotency = Idempotency::new(idempotency_key, &json!(["delete cluster", id]))?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(before) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(before);
        }
        let cluster = find(&tx, id).await?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        tx.delete_cluster(&cluster).await?;
        tx.audit(AuditEntry::allowed("delete cluster", id, cluster.grant()))
            .await?;
        remember(idempotency.as_ref(), &tx, &*cluster).await?;
        tx.commit().await?;
        Ok::<_, Stop>(cluster.into_inner())
    };
    let deleted = deleted.await;
    settle(ctx, store, deleted).await
}

/// How many agents should run on each cluster; clusters without one are not in it.
///
/// # Errors
/// [`Error::Forbidden`].
pub async fn agent_counts(ctx: &TenantContext, store: &Store) -> Result<BTreeMap<ClusterId, u64>, Error> {
    let rows = viewing(ctx, store).await?.desired_of_project(None).await?;
    let mut counts = BTreeMap::new();
    for row in rows.iter().filter(|row| row.object.agent().is_some()) {
        *counts.entry(row.cluster).or_insert(0) += 1;
    }
    Ok(counts)
}

//! Clusters: registered by an owner, joined by a single-use token, shut out at once.

use crate::documents::Idempotency;
use crate::placement;
use crate::stop::{Stop, allow, settle, viewing};
use roadstead_authz::{SecretKind, TenantContext, act, mint};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, ConflictReason, Error, Page, PageRequest, Problem};
use roadstead_store::{AuditEntry, Certificate, Cluster, NewCluster, NewJoinToken, Store};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest life of a join token (protocol.md §1).
pub const JOIN_WITHIN: Duration = Duration::from_secs(60 * 60);

/// A cluster to register.
#[derive(Clone, Debug)]
pub struct CreateInput {
    pub name: Name,
    pub labels: BTreeMap<String, String>,
}

/// The secret part of a join token, shown once; `fleet` completes it with the pin of the hub's authority.
#[derive(Debug)]
pub struct Joinable {
    pub cluster: Cluster,
    pub secret: SecretString,
    /// Milliseconds since the Unix epoch, UTC.
    pub expires_ms: i64,
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
/// [`Error::Conflict`] when the name is taken; [`Error::Invalid`] for labels; [`Error::Forbidden`].
pub async fn create(ctx: &TenantContext, store: &Store, input: CreateInput) -> Result<Cluster, Error> {
    let made = async {
        let proof = allow::<act::ManageClusters, _>(ctx, ctx.tenant(), || "it".to_owned())?;
        check_labels(&input.labels)?;
        let new = NewCluster {
            name: input.name,
            labels: input.labels,
        };
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx.insert_cluster(&proof, &new).await?;
        placement::recompute(&mut tx, None).await?;
        tx.audit(AuditEntry::allowed("create cluster", cluster.id, proof.grant()))
            .await?;
        let cluster = tx.cluster(cluster.id).await?.unwrap_or(cluster);
        tx.commit().await?;
        Ok::<_, Stop>(cluster)
    };
    let made = made.await;
    settle(ctx, store, made).await
}

/// Makes a join token for the cluster; its unused ones before end.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`].
pub async fn join_token(ctx: &TenantContext, store: &Store, id: ClusterId) -> Result<Joinable, Error> {
    let made = async {
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx
            .cluster(id)
            .await?
            .ok_or_else(|| Error::not_found(id.to_string()))?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        let (secret, hash) = mint(SecretKind::JoinToken, &**store.random());
        let lifetime = i64::try_from(JOIN_WITHIN.as_millis()).unwrap_or(i64::MAX);
        let expires_ms = store.clock().now_ms().saturating_add(lifetime);
        let token = tx
            .insert_join_token(&cluster, NewJoinToken { hash, expires_ms })
            .await?;
        let entry =
            AuditEntry::allowed("make join token", id, cluster.grant()).with("token", token.to_string());
        tx.audit(entry).await?;
        tx.commit().await?;
        Ok::<_, Stop>(Joinable {
            cluster: cluster.into_inner(),
            secret,
            expires_ms,
        })
    };
    let made = made.await;
    settle(ctx, store, made).await
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
/// [`Error::NotFound`], also for an unknown serial; [`Error::Forbidden`].
pub async fn revoke_certificates(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    serial: Option<&str>,
) -> Result<u64, Error> {
    let revoked = async {
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx
            .cluster(id)
            .await?
            .ok_or_else(|| Error::not_found(id.to_string()))?;
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
        let input = serde_json::json!(["approve deletes", id, deletes]);
        let idempotency = Idempotency::new(idempotency_key, &input)?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx
            .cluster(id)
            .await?
            .ok_or_else(|| Error::not_found(id.to_string()))?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        if let Some(idempotency) = &idempotency
            && let Some(()) = idempotency.answer(&tx).await?
        {
            return Ok(cluster.into_inner());
        }
        if deletes == 0 || !tx.approve_deletes(&cluster, deletes).await? {
            return Err(not_held(&cluster, deletes).into());
        }
        let entry = AuditEntry::allowed("approve deletes", id, cluster.grant()).with("deletes", deletes);
        tx.audit(entry).await?;
        if let Some(idempotency) = &idempotency {
            idempotency.remember(&tx, &()).await?;
        }
        let cluster = cluster.into_inner();
        let cluster = tx.cluster(id).await?.unwrap_or(cluster);
        tx.commit().await?;
        Ok::<_, Stop>(cluster)
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
    let input = serde_json::json!(["accept timeline", id, cursor]);
    let idempotency = Idempotency::new(idempotency_key, &input)?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    let cluster = tx
        .cluster(id)
        .await?
        .ok_or_else(|| Error::not_found(id.to_string()))?;
    let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
    if let Some(idempotency) = &idempotency
        && let Some(()) = idempotency.answer(&tx).await?
    {
        return Ok(cluster.into_inner());
    }
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
    if let Some(idempotency) = &idempotency {
        idempotency.remember(&tx, &()).await?;
    }
    let cluster = cluster.into_inner();
    let cluster = tx.cluster(id).await?.unwrap_or(cluster);
    tx.commit().await?;
    Ok(cluster)
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
/// [`Error::NotFound`] for a certificate that does not wait for this; [`Error::Forbidden`].
pub async fn admit_certificate(
    ctx: &TenantContext,
    store: &Store,
    id: ClusterId,
    serial: &str,
) -> Result<Cluster, Error> {
    let admitted = async {
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx
            .cluster(id)
            .await?
            .ok_or_else(|| Error::not_found(id.to_string()))?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        if !tx.admit_certificate(&cluster, serial).await? {
            return Err(Error::not_found(format!("an unknown certificate {serial} of {id}")).into());
        }
        let entry = AuditEntry::allowed("admit certificate", id, cluster.grant()).with("serial", serial);
        tx.audit(entry).await?;
        tx.commit().await?;
        Ok::<_, Stop>(cluster.into_inner())
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
/// stay.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`].
pub async fn delete(ctx: &TenantContext, store: &Store, id: ClusterId) -> Result<(), Error> {
    let deleted = async {
        let mut tx = store.tenant(ctx).write_audited().await?;
        let cluster = tx
            .cluster(id)
            .await?
            .ok_or_else(|| Error::not_found(id.to_string()))?;
        let cluster = allow::<act::ManageClusters, _>(ctx, cluster, || id.to_string())?;
        tx.delete_cluster(&cluster).await?;
        tx.audit(AuditEntry::allowed("delete cluster", id, cluster.grant()))
            .await?;
        tx.commit().await?;
        Ok::<_, Stop>(())
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

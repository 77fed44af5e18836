//! Commands: something that a cluster agent does once, with one result (protocol.md §3 rule 12).

use crate::documents::Target;
use crate::idempotency::{Idempotency, recall, remember};
use crate::stop::{Stop, allow, settle, viewing};
use roadstead_authz::{TenantContext, act};
use roadstead_contract::{
    documents::{Kind, Name},
    fleet::MAX_COMMANDS,
};
use roadstead_domain::{ClusterId, CommandId, ConflictReason, Error, ObjectId, Page, PageRequest, Problem};
use roadstead_store::{AuditEntry, Command, CommandFilter, CommandKind, Store, Tx};
use serde_json::json;
use std::time::Duration;

/// How long a command may wait for its cluster agent where nothing else is asked for.
pub const EXPIRES_IN: Duration = Duration::from_secs(5 * 60);
/// The longest that it may.
pub const MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Clusters that one call commands: each takes a few statements of its transaction, which holds the tenant's turn to write.
pub const CLUSTERS: u32 = 100;

/// An agent whose engine is to be restarted.
#[derive(Clone, Debug)]
pub struct RestartInput {
    /// An agent.
    pub target: Target,
    /// On this cluster; `None`: on every one that the agent is placed on.
    pub cluster: Option<Name>,
    /// How long the command may wait for the cluster agent; [`EXPIRES_IN`] where it is left out.
    pub expires_in: Option<Duration>,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

/// Restarts an agent's engine on its clusters: one command for each, or none at all. Running tasks go on from the
/// engine's journal.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`]; [`Error::Conflict`] for an agent that runs nowhere, for a cluster agent that
/// does not know the command, or for a used key; [`Error::Limit`] when too many commands wait for a cluster, and for more
/// than [`CLUSTERS`] clusters at once.
pub async fn restart_agent(
    ctx: &TenantContext,
    store: &Store,
    input: &RestartInput,
) -> Result<Vec<Command>, Error> {
    let made = restart(ctx, store, input).await;
    settle(ctx, store, made).await
}

async fn restart(ctx: &TenantContext, store: &Store, input: &RestartInput) -> Result<Vec<Command>, Stop> {
    let what = input.target.to_string();
    input.target.first::<act::Write>(ctx)?;
    let expires_in = check_expiry(input.expires_in)?;
    let digest = json!(["restart agent", what, input.cluster, expires_in.as_secs()]);
    let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(before) = recall::<Vec<CommandId>>(idempotency.as_ref(), &tx).await? {
        return Ok(found(&tx, &before).await?);
    }
    let agent = input.target.find(&tx).await?;
    if agent.id.kind() != Kind::Agent {
        return Err(Error::not_found(what).into());
    }
    let agent = allow::<act::Write, _>(ctx, agent, || what.clone())?;
    let kind = CommandKind::RestartEngine;
    let lasting = i64::try_from(expires_in.as_millis()).unwrap_or(i64::MAX);
    let expires_ms = tx.now_ms().saturating_add(lasting);
    let mut ids = Vec::new();
    for (cluster, name) in places(&tx, agent.id, input.cluster.as_ref(), &what).await? {
        check_cluster(&tx, cluster, &name, kind).await?;
        let id = tx.insert_command(&agent, kind, cluster, expires_ms).await?;
        let entry = AuditEntry::allowed("restart agent", agent.id, agent.grant())
            .with("command", id.to_string())
            .with("cluster", cluster.to_string())
            .with("project", agent.project_name.as_str())
            .with("name", agent.name.as_str());
        tx.audit(entry).await?;
        ids.push(id);
    }
    let commands = found(&tx, &ids).await?;
    remember(idempotency.as_ref(), &tx, &ids).await?;
    tx.commit().await?;
    Ok(commands)
}

fn check_expiry(wanted: Option<Duration>) -> Result<Duration, Error> {
    let wanted = wanted.unwrap_or(EXPIRES_IN);
    if (Duration::from_secs(1)..=MOST).contains(&wanted) {
        return Ok(wanted);
    }
    let (expected, found) = (format!("1 to {}", MOST.as_secs()), wanted.as_secs().to_string());
    Err(Error::invalid(Problem::new(
        "expiresInSeconds",
        expected,
        found,
        "a command cannot wait for so long",
    )))
}

/// Where the agent is to be restarted.
async fn places(
    tx: &Tx<'_>,
    agent: ObjectId,
    wanted: Option<&Name>,
    what: &str,
) -> Result<Vec<(ClusterId, String)>, Error> {
    let on = tx
        .placed_on(agent, wanted.map(Name::as_str), CLUSTERS + 1)
        .await?;
    if on.len() > CLUSTERS as usize {
        return Err(Error::Limit {
            message: format!("{what} runs on more than {CLUSTERS} clusters: name a cluster"),
            current: on.len() as u64,
            allowed: u64::from(CLUSTERS),
        });
    }
    if !on.is_empty() {
        return Ok(on);
    }
    let message = match wanted {
        Some(cluster) => format!("{what} does not run on a cluster {cluster}"),
        None => format!("{what} runs on no cluster: its placement fits none"),
    };
    Err(Error::conflict(ConflictReason::State, message))
}

/// Nothing is kept waiting for a cluster agent that would never do it.
async fn check_cluster(tx: &Tx<'_>, cluster: ClusterId, name: &str, kind: CommandKind) -> Result<(), Error> {
    let able = tx.abilities(cluster).await?;
    let able = able.ok_or_else(|| Error::not_found(format!("cluster {name}")))?;
    if !able.known {
        let message =
            format!("the cluster agent of {name} has never been connected: there is no engine there");
        return Err(Error::conflict(ConflictReason::State, message));
    }
    if !able.capabilities.contains(kind.capability()) {
        let message = format!(
            "the cluster agent of {name}, version {}, does not know this command: upgrade it, or choose another cluster",
            able.version
        );
        return Err(Error::conflict(ConflictReason::State, message));
    }
    let open = tx.open_commands(cluster).await?;
    if open >= MAX_COMMANDS as u64 {
        return Err(Error::Limit {
            message: format!("too many commands wait for the cluster {name}"),
            current: open,
            allowed: MAX_COMMANDS as u64,
        });
    }
    Ok(())
}

async fn found(tx: &Tx<'_>, ids: &[CommandId]) -> Result<Vec<Command>, Error> {
    let mut commands = Vec::with_capacity(ids.len());
    for id in ids {
        commands.extend(tx.find_command(*id).await?);
    }
    Ok(commands)
}

/// Commands, newest first.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(
    ctx: &TenantContext,
    store: &Store,
    filter: &CommandFilter,
    page: &PageRequest,
) -> Result<Page<Command>, Error> {
    viewing(ctx, store).await?.commands(filter, page).await
}

/// One command.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn get(ctx: &TenantContext, store: &Store, id: CommandId) -> Result<Command, Error> {
    let found = viewing(ctx, store).await?.find_command(id).await?;
    found.ok_or_else(|| Error::not_found(id.to_string()))
}

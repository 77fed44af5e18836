//! The hub's database: the only crate besides migrations that names sea-orm.
//!
//! There is no way to a row without a tenant. [`Store::tenant`] takes a proven [`TenantContext`] and gives
//! transactions whose every statement is a constant text that is bound to that tenant as `$1`; a text that is not is
//! refused before it runs. On PostgreSQL row-level security is the second lock. What has no tenant yet (whose token
//! is this?) goes through [`Store::system`], whose tasks are a closed list. Writes about an object take the proof
//! that the actor may ([`roadstead_authz::Authorized`]).
//!
//! SQLite has one writer: its one connection is the queue, so that writers never see SQLITE_BUSY. PostgreSQL keeps
//! acts of one tenant in order by the lock on its audit head.

mod audit;
mod audit_search;
mod certificates;
mod clusters;
mod commands;
mod cursor;
#[cfg(test)]
mod cut_tests;
mod desired;
mod error;
mod examine;
mod faults;
mod idempotency;
mod objects;
mod observe;
mod open;
mod probe;
mod projects;
mod repeats;
mod revisions;
mod runs;
mod signal;
mod sql;
mod status;
mod system;
pub mod testing;
mod timeline;
mod together;
mod tokens;
mod trust;
mod turns;
mod tx;
#[cfg(test)]
mod upgrade_tests;

pub use audit::{AuditEntry, AuditRecord, AuditReport, Broken, Outcome, canonical_json};
pub use audit_search::AuditFilter;
pub use certificates::{Certificate, NewJoinToken};
pub use clusters::{Cluster, NewCluster, Session};
pub use commands::{
    Abilities, Command, CommandCode, CommandFilter, CommandKind, CommandResult, DueCommand, ResultVerdict,
};
pub use desired::{Change, DesiredEntry, DesiredRow, Placed, Wanted};
pub use examine::{Finding, examine};
pub use faults::Faults;
pub use idempotency::Remembered;
pub use objects::{Links, NewObject, NewRevision, Node, Object, ObjectFilter, Revises};
pub use open::migrate;
pub use projects::Project;
pub use repeats::{Repeated, Use};
pub use revisions::{Revision, RevisionHead};
pub use runs::{NewRun, Run, RunFilter};
pub use signal::ClusterHint;
pub use status::{NewStatus, Status};
pub use system::{JoinRecord, SystemStore};
pub use timeline::{Difference, Timeline};
pub use together::{Fence, Fenced, Marks, Since, Standing};
pub use tokens::{ApiToken, NewToken, RevokedIssued};
pub use trust::{ClusterTrust, HubReplica};
pub use tx::{TenantStore, Tx};

use roadstead_authz::{SystemContext, TenantContext};
use roadstead_domain::{Clock, ClusterId, Error, OsRandom, Random, SystemClock, TenantId, TokenId};
use sea_orm::DatabaseConnection;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};

/// How to open a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// `sqlite:<path>` or `postgres://…`; may hold a password.
    pub url: String,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Only what is there, and only to look at it: nothing is made, migrated or written. For evidence.
    pub read_only: bool,
    /// What one tenant may have at once.
    pub places: TenantPlaces,
    /// For tests only.
    pub faults: Option<Arc<Faults>>,
}

/// Transactions of one tenant at once, of one replica; the usual numbers where they are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantPlaces {
    /// At most the readers that there are.
    pub reading: Option<usize>,
    /// On SQLite in the queue of its one writer.
    pub writing: Option<usize>,
}

impl StoreOptions {
    /// The machine's clock and randomness, no faults.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            clock: Arc::new(SystemClock),
            random: Arc::new(OsRandom),
            read_only: false,
            places: TenantPlaces::default(),
            faults: None,
        }
    }
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions").finish_non_exhaustive()
    }
}

/// The hub's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    write: DatabaseConnection,
    read: DatabaseConnection,
    file: Option<open::File>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    faults: Option<Arc<Faults>>,
    signals: Arc<signal::Signals>,
    turns: Arc<turns::Turns>,
    repeats: Arc<repeats::Repeats>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("backend", &self.backend())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The store as `ctx`'s tenant sees it.
    #[must_use]
    pub fn tenant<'s>(&'s self, ctx: &'s TenantContext) -> TenantStore<'s> {
        TenantStore { store: self, ctx }
    }

    /// The few acts before any tenant is known.
    #[must_use]
    pub fn system<'s>(&'s self, system: &'s SystemContext) -> SystemStore<'s> {
        SystemStore { store: self, system }
    }

    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    #[must_use]
    pub fn random(&self) -> &Arc<dyn Random> {
        &self.random
    }

    /// `true` when the same actor was denied the same within the last minute: then it is counted, and
    /// [`Store::take_denials`] tells how often.
    #[must_use]
    pub fn denied_again(&self, ctx: &TenantContext, action: &str, object: &str) -> bool {
        self.repeats.again(ctx, action, object, self.clock.now_ms())
    }

    /// The denials that were counted since this was asked last.
    #[must_use]
    pub fn take_denials(&self) -> Vec<Repeated> {
        self.repeats.take(self.clock.now_ms())
    }

    /// Remembers that the token was used just now, until [`Store::take_uses`].
    pub fn used(&self, tenant: TenantId, token: TokenId) {
        self.repeats.used(tenant, token, self.clock.now_ms());
    }

    /// The last uses of tokens since this was asked last, by tenant.
    #[must_use]
    pub fn take_uses(&self) -> HashMap<TenantId, Vec<Use>> {
        self.repeats.take_uses()
    }

    /// Clusters that have just changed, of all tenants: for whoever holds many sessions. A hint; lost ones cost a
    /// poll's time.
    #[must_use]
    pub fn changed(&self) -> broadcast::Receiver<ClusterId> {
        self.signals.subscribe_all()
    }

    /// Hints that the cluster of `ctx` (a cluster agent's) has changed; the current value counts as seen.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for any other actor.
    pub fn watch(&self, ctx: &TenantContext) -> Result<watch::Receiver<ClusterHint>, Error> {
        let cluster = own_cluster(ctx)?;
        Ok(self.signals.subscribe(ctx.tenant(), cluster))
    }
}

/// The cluster of a cluster agent.
fn own_cluster(ctx: &TenantContext) -> Result<ClusterId, Error> {
    ctx.cluster()
        .ok_or_else(|| Error::forbidden("only the cluster agent of a cluster may do this"))
}

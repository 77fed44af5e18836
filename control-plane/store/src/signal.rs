//! Hints inside one hub process: something of this cluster has changed, look.
//!
//! A hint is sent after the commit and carries nothing that is trusted: whoever wakes reads the database. Losing one
//! costs a poll's time, never correctness; other replicas learn by polling.

use parking_lot::Mutex;
use roadstead_domain::{ClusterId, TenantId};
use std::collections::HashMap;
use tokio::sync::{broadcast, watch};

/// Hints that a slow listener may have waiting; one that misses some is told so and looks at everything.
const WAITING: usize = 1024;

/// Counts that move with each change of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterHint {
    /// Its desired set, its session's epoch, its certificates.
    pub changes: u64,
    /// New commands.
    pub commands: u64,
}

/// Keyed by tenant and cluster (S37).
#[derive(Debug)]
pub(crate) struct Signals {
    clusters: Mutex<HashMap<(TenantId, ClusterId), watch::Sender<ClusterHint>>>,
    /// For whoever holds sessions of many clusters. The ids are opaque and carry nothing of a tenant.
    all: broadcast::Sender<ClusterId>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            clusters: Mutex::default(),
            all: broadcast::Sender::new(WAITING),
        }
    }
}

impl Signals {
    pub(crate) fn subscribe(&self, tenant: TenantId, cluster: ClusterId) -> watch::Receiver<ClusterHint> {
        let mut clusters = self.clusters.lock();
        clusters.retain(|key, sender| sender.receiver_count() > 0 || *key == (tenant, cluster));
        clusters.entry((tenant, cluster)).or_default().subscribe()
    }

    pub(crate) fn subscribe_all(&self) -> broadcast::Receiver<ClusterId> {
        self.all.subscribe()
    }

    pub(crate) fn fire(&self, tenant: TenantId, clusters: impl IntoIterator<Item = ClusterId>) {
        let senders = self.clusters.lock();
        for cluster in clusters {
            // Nobody listening is no failure.
            let _ = self.all.send(cluster);
            if let Some(sender) = senders.get(&(tenant, cluster)) {
                sender.send_modify(|hint| hint.changes += 1);
            }
        }
    }

    /// These clusters have new commands.
    pub(crate) fn command(&self, tenant: TenantId, clusters: impl IntoIterator<Item = ClusterId>) {
        let senders = self.clusters.lock();
        for cluster in clusters {
            if let Some(sender) = senders.get(&(tenant, cluster)) {
                sender.send_modify(|hint| hint.commands += 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn s37_a_hint_reaches_the_cluster_of_that_tenant_alone() {
        let signals = Signals::default();
        let tenants = [1, 2].map(|n| TenantId::from_uuid(Uuid::from_u128(n)));
        let cluster = ClusterId::from_uuid(Uuid::from_u128(3));
        let mut heard = signals.subscribe(tenants[0], cluster);
        let mut foreign = signals.subscribe(tenants[1], cluster);
        signals.fire(tenants[0], [cluster]);
        assert!(heard.has_changed().expect("open"));
        assert!(!foreign.has_changed().expect("open"));
        assert_eq!(heard.borrow_and_update().changes, 1);
        signals.command(tenants[0], [cluster]);
        assert!(!foreign.has_changed().expect("open"));
        assert_eq!(heard.borrow_and_update().commands, 1);
        foreign.mark_unchanged();
    }
}

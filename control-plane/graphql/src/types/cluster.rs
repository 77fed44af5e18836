//! Workload clusters.

use super::{Action, document::action, moment};
use crate::{calls, error::Result};
use async_graphql::{Context, Enum, ID, Json, Object, SimpleObject};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Whether the hub hears of a cluster.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClusterState {
    Connected,
    Unreachable,
    /// Its cluster agent has not enrolled, or has not opened a session.
    NeverSeen,
}

/// How long a cluster may be silent before it counts as unreachable: four heartbeats of 30 s, and the half minute
/// that the store may be behind (protocol.md §3.8).
const SILENCE_MS: i64 = 150_000;

/// A workload cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(pub(crate) roadstead_store::Cluster);

impl Cluster {
    /// The state, and since when.
    fn seen(&self, ctx: &Context<'_>) -> (ClusterState, i64) {
        let cluster = &self.0;
        let Some(last) = cluster.last_seen_ms else {
            return (ClusterState::NeverSeen, cluster.created_ms);
        };
        let app = calls::app(ctx);
        let silent = app.store.clock().now_ms() - last > SILENCE_MS;
        if app.fleet.connected(cluster.id).unwrap_or(!silent) {
            (ClusterState::Connected, last)
        } else {
            (ClusterState::Unreachable, last)
        }
    }
}

#[Object]
impl Cluster {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn labels(&self) -> Json<BTreeMap<String, String>> {
        Json(self.0.labels.clone())
    }
    async fn state(&self, ctx: &Context<'_>) -> ClusterState {
        self.seen(ctx).0
    }
    /// When it was last heard of; of one that never was, when it was made.
    async fn since(&self, ctx: &Context<'_>) -> DateTime<Utc> {
        moment(self.seen(ctx).1)
    }
    async fn last_seen_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_seen_ms.map(moment)
    }
    /// Of the cluster agent; null before its first session.
    async fn version(&self) -> Option<&str> {
        (!self.0.version.is_empty()).then_some(self.0.version.as_str())
    }
    /// Who made the join token by which it joined last, as the audit log names them; null before that. Revoking that token
    /// leaves the cluster as it is.
    async fn enrolled_by(&self) -> Option<&str> {
        (!self.0.enrolled_by.is_empty()).then_some(self.0.enrolled_by.as_str())
    }
    /// Counts the changes of what should be on the cluster.
    async fn wanted_revision(&self) -> u64 {
        self.0.revision
    }
    /// Up to here the cluster agent has it on disk.
    async fn persisted_revision(&self) -> u64 {
        self.0.persisted
    }
    /// Up to here it runs.
    async fn applied_revision(&self) -> u64 {
        self.0.applied
    }
    /// Deletions that wait for a person, because they are more than the budget.
    async fn held_deletes(&self) -> Option<u64> {
        self.0.held.map(|(_, deletes)| deletes)
    }
    /// Set when the cluster is ahead of the hub, whose database is of an older time: nothing is sent and nothing deleted
    /// until a person accepts the hub's view (`acceptTimeline`).
    async fn timeline(&self) -> Option<Timeline> {
        self.0.timeline.clone().map(Timeline::from)
    }
    /// Certificates that the hub's authority signed and its database does not know; each waits for a person
    /// (`admitClusterCertificate`).
    #[graphql(complexity = "5 + child_complexity")]
    async fn unknown_certificates(&self, ctx: &Context<'_>) -> Result<Vec<UnknownCertificate>> {
        let certificates = calls::certificates(ctx, self.0.id).await?;
        let unknown = certificates.iter().filter_map(|known| {
            Some(UnknownCertificate {
                serial: known.serial.clone(),
                seen_at: moment(known.unknown_ms?),
                expires_at: moment(known.not_after_ms),
            })
        });
        Ok(unknown.collect())
    }
    /// How many agents should run there.
    #[graphql(complexity = "5")]
    async fn agent_count(&self, ctx: &Context<'_>) -> Result<u64> {
        calls::agents_on(ctx, self.0.id).await
    }
    /// When the newest certificate of its cluster agent ends; null without one that is good.
    #[graphql(complexity = "5")]
    async fn certificate_expires_at(&self, ctx: &Context<'_>) -> Result<Option<DateTime<Utc>>> {
        let certificates = calls::certificates(ctx, self.0.id).await?;
        let valid = certificates.iter().filter(|c| c.revoked_ms.is_none());
        Ok(valid.map(|c| c.not_after_ms).max().map(moment))
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.created_ms)
    }
    /// What the caller may do with it.
    async fn actions(&self, ctx: &Context<'_>) -> Vec<Action> {
        use roadstead_authz::Action as Act;
        let acts = [Act::View, Act::ManageClusters];
        acts.into_iter()
            .map(|act| action(calls::context(ctx), act, &self.0))
            .collect()
    }
}

/// With this a cluster agent enrols, once. Shown once.
#[derive(SimpleObject)]
pub(crate) struct JoinToken {
    /// Secret: works once.
    pub(crate) token: String,
    pub(crate) expires_at: DateTime<Utc>,
}

/// A certificate that the hub's authority signed and its database does not know, as after a restore from a backup.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct UnknownCertificate {
    /// Hexadecimal; `roadstead-agent doctor` on the cluster names the one that is in use there.
    serial: String,
    /// When it was first presented.
    seen_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

/// How a cluster is ahead of the hub.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Timeline {
    /// The revision that the cluster has seen; the hub's own is `Cluster.wantedRevision`.
    cursor: u64,
    /// Whether the cluster has said what it holds; the numbers below are 0 until then.
    known: bool,
    /// Documents that it would get, since it lacks them or has an older revision.
    sent: u64,
    /// Documents that would be deleted there, since the hub does not know them there.
    deletes: u64,
    /// Ids of those, at most 100.
    deleted: Vec<String>,
    /// Documents that are newer there than in the hub, and would be replaced by what the hub holds.
    replaced: Vec<Replaced>,
}

/// A document that is newer on a cluster than in the hub.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Replaced {
    document: String,
    /// Its revision there.
    revision: u64,
}

impl From<roadstead_store::Timeline> for Timeline {
    fn from(timeline: roadstead_store::Timeline) -> Self {
        let known = timeline.difference.is_some();
        let difference = timeline.difference.unwrap_or_default();
        let replaced = difference.replaced.into_iter();
        Self {
            cursor: timeline.cursor,
            known,
            sent: difference.sent,
            deletes: difference.deletes,
            deleted: difference.deleted,
            replaced: replaced
                .map(|(document, revision)| Replaced { document, revision })
                .collect(),
        }
    }
}

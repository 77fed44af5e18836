//! Clusters that are ahead of a database that was restored from a backup (protocol.md §4).
//!
//! Such a cluster gets nothing and loses nothing until a person has seen how it differs and lets the hub's view go on.
//! Then the cluster's revision counts on from what the cluster agent has seen, and documents that are newer there get
//! a generation above it, so that generations never go back.

use crate::clusters::Cluster;
use crate::error::corrupt;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{Authorized, act};
use roadstead_domain::{Error, ObjectId, RevisionId};
use serde::{Deserialize, Serialize};

/// A cluster that is ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// What its cluster agent has seen.
    pub cursor: u64,
    /// `None` until its inbox was listed.
    pub difference: Option<Difference>,
}

/// How its inbox differs from what the hub wants there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Documents that it lacks or has in an older generation.
    pub sent: u64,
    /// Ids of documents that it holds and the hub does not want there, at most [`Difference::LISTED`] of them: deleted
    /// within the budget, else by another decision.
    pub deleted: Vec<String>,
    /// How many those are.
    pub deletes: u64,
    /// Documents of a later generation than the hub's, with that: replaced by what the hub holds.
    pub replaced: Vec<(String, u64)>,
}

impl Difference {
    /// Ids that are listed; numbers are kept of the rest.
    pub const LISTED: usize = 100;
}

impl Timeline {
    pub(crate) fn read(cursor: Option<i64>, difference: Option<&str>) -> Result<Option<Self>, Error> {
        let Some(cursor) = cursor else { return Ok(None) };
        let difference = difference.map(serde_json::from_str).transpose();
        Ok(Some(Self {
            cursor: cursor.cast_unsigned(),
            difference: difference.map_err(|_| corrupt("a cluster's timeline"))?,
        }))
    }
}

impl Tx<'_> {
    /// Notes that the context's cluster is ahead, or with `None` that it is not: its inbox is new.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded).
    pub async fn record_timeline(&self, epoch: u64, timeline: Option<&Timeline>) -> Result<(), Error> {
        let id = self.fence(epoch).await?;
        let cursor = timeline.map(|timeline| i64::try_from(timeline.cursor).unwrap_or(i64::MAX));
        let difference = timeline.and_then(|timeline| timeline.difference.as_ref());
        let difference = difference
            .map(serde_json::to_string)
            .transpose()
            .map_err(Error::internal)?;
        let sql = "UPDATE cluster SET timeline_cursor = $3, timeline = $4 WHERE tenant_id = $1 AND id = $2";
        self.run(sql, values![id.as_uuid(), cursor, difference]).await?;
        Ok(())
    }

    /// Lets the hub's view of the cluster go on from `cursor`; `false` when the cluster is not ahead by that much (any
    /// more): what a person saw may have changed since.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn accept_timeline(
        &mut self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
        cursor: u64,
    ) -> Result<bool, Error> {
        let sql = "UPDATE cluster SET timeline_cursor = NULL, timeline = NULL,
            revision = 1 + CASE WHEN revision > $3 THEN revision ELSE $3 END
            WHERE tenant_id = $1 AND id = $2 AND timeline_cursor = $3 AND deleted_ms IS NULL";
        let cursor = i64::try_from(cursor).unwrap_or(i64::MAX);
        let accepted = self.run(sql, values![cluster.id.as_uuid(), cursor]).await? > 0;
        // Everything is said anew: the cluster agent may hold a tombstone of what came back with the backup.
        let again = "UPDATE desired SET revision =
            (SELECT c.revision FROM cluster c WHERE c.tenant_id = $1 AND c.id = $2)
            WHERE tenant_id = $1 AND cluster_id = $2 AND deleted = 0";
        if accepted {
            self.run(again, values![cluster.id.as_uuid()]).await?;
        }
        self.touch(cluster.id);
        Ok(accepted)
    }

    /// Gives a document a revision above `generation` with the content that it has; every cluster that holds it gets
    /// it. Nothing happens to one that is deleted, or is beyond that already.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn raise_generation(
        &mut self,
        object: ObjectId,
        generation: u64,
        message: &str,
    ) -> Result<(), Error> {
        let next = i64::try_from(generation.saturating_add(1)).unwrap_or(i64::MAX);
        let copy = "INSERT INTO revision (tenant_id, object_id, number, id, document, digest, author, author_name, at_ms,
            message) SELECT r.tenant_id, r.object_id, $3, $4, r.document, r.digest, $5, $6, $7, $8
            FROM revision r JOIN object o ON o.tenant_id = r.tenant_id AND o.id = r.object_id AND o.revision = r.number
            WHERE r.tenant_id = $1 AND r.object_id = $2 AND o.revision < $3 AND o.deleted_ms IS NULL";
        let values = values![
            object.as_uuid(),
            next,
            RevisionId::generate(&*self.store.clock, &*self.store.random).as_uuid(),
            self.ctx.actor().label(),
            self.ctx.actor().name(),
            self.now_ms(),
            message
        ];
        if self.run(copy, values).await? == 0 {
            return Ok(());
        }
        let raise = "UPDATE object SET revision = $3, updated_ms = $4 WHERE tenant_id = $1 AND id = $2";
        self.run(raise, values![object.as_uuid(), next, self.now_ms()])
            .await?;
        match self.object(object).await? {
            Some(raised) => self.refresh_desired(&raised).await,
            None => Ok(()),
        }
    }
}

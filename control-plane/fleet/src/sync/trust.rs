//! What a session does while the fleet's root certificate is rotated (protocol.md §3 rule 10): it carries the bundle
//! down, hears that it is kept, and tells the cluster agent to renew when another root signs than that of its certificate.

use super::{
    hear::cut,
    session::{End, Session},
};
use crate::{
    bucket::Bucket,
    pki::Authority,
    roots::FOREIGN,
    serve::RETIRED,
    store::{Reported, StoreError, What},
};
use roadstead_contract::fleet::{RenewNow, Revoked, TrustKept, hub_frame::Body};
use std::time::Duration;
use tokio::{sync::broadcast, time::Instant};

/// Before it is told again: the renewal may have failed.
const AGAIN: Duration = Duration::from_secs(60);
/// However many there are, so long and no longer is the time over which they are told.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Before the database is asked again to keep what the cluster said.
const RETRY: Duration = Duration::from_secs(5);

/// How long this replica may be behind what another has already told the cluster agent.
const BEHIND: Duration = Duration::from_secs(10);
/// What a cluster agent may say of trust bundles, a second and at once: each may be a write.
const SAID: (f64, f64) = (0.2, 10.0);

/// Where a session is in a rotation.
#[derive(Debug)]
pub(super) struct Trust {
    /// The roots have changed.
    pub(super) changed: broadcast::Receiver<()>,
    /// When the cluster agent is told to renew.
    renew_at: Option<Instant>,
    /// The generation that it keeps, while the database does not know it, and when that is tried again.
    owed: Option<(u64, Instant)>,
    /// A bundle that is not this replica's, and when the others are asked whether it is theirs.
    foreign: Option<(Reported, Instant)>,
    pub(super) said: Bucket,
}

/// The last word to a certificate whose root is not trusted any more.
pub(super) fn retired() -> End {
    End::last(Body::Revoked(Revoked {
        reason: RETIRED.to_owned(),
    }))
}

impl Trust {
    /// Before the certificate is looked at and the Welcome is made: what changes after it is heard.
    pub(super) fn new(authority: &Authority) -> Self {
        Self {
            changed: authority.changes(),
            renew_at: None,
            owed: None,
            foreign: None,
            said: Bucket::new(SAID.0, SAID.1),
        }
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        let owed = self.owed.map(|(_, at)| at);
        let foreign = self.foreign.as_ref().map(|(_, at)| *at);
        [self.renew_at, owed, foreign].into_iter().flatten().min()
    }
}

impl Session {
    /// The roots have changed: the cluster agent gets the bundle, unless its own certificate has lost its root.
    pub(super) async fn trust_changed(&mut self) -> Result<(), End> {
        let ring = self.hub.authority.ring();
        if !self.peer.root().is_some_and(|root| ring.trusts(root)) {
            return Err(retired());
        }
        self.plan_renewal();
        // It answers to this bundle.
        self.trust.foreign = None;
        let bundle = self.hub.trust();
        self.send(Body::Trust(bundle)).await
    }

    /// Another root signs than that of the certificate: at a random moment of a time that grows with the fleet the
    /// cluster agent is told to renew.
    pub(super) fn plan_renewal(&mut self) {
        let signs = self.hub.authority.loaded().ring.signer().id();
        self.trust.renew_at = match self.peer.root() {
            Some(root) if *root != signs => {
                let fleet = self.hub.registry.count() as f64 / self.hub.settings.renewals;
                let over = Duration::try_from_secs_f64(fleet).unwrap_or(LONGEST).min(LONGEST);
                Some(Instant::now() + self.hub.authority.part_of(over))
            }
            _ => None,
        };
    }

    /// What is due is done: the word to renew, what the database did not take.
    pub(super) async fn trust_due(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if let Some((generation, at)) = self.trust.owed
            && now >= at
        {
            self.keep_trust(generation).await?;
        }
        if let Some((kept, _)) = self.trust.foreign.take_if(|(_, at)| now >= *at) {
            self.trust_foreign(kept).await?;
        }
        if self.trust.renew_at.is_some_and(|at| now >= at) {
            // The moment is random; the bucket holds if chance puts too many into one.
            let told = self.hub.renewals.take();
            let wait = match &told {
                Ok(()) => AGAIN,
                Err(wait) => *wait,
            };
            let spread = self.hub.authority.part_of(wait);
            self.trust.renew_at = Some(now + wait + spread);
            if told.is_ok() {
                self.send(Body::RenewNow(RenewNow {})).await?;
            }
        }
        Ok(())
    }

    /// The cluster agent has a bundle on disk. This hub's own is noted, and one that it cannot have made: with that the
    /// cluster agent takes none of this hub's, and whoever made it may have the key of a root. An earlier one says nothing
    /// new.
    pub(super) async fn trust_kept(&mut self, kept: &TrustKept) -> Result<(), End> {
        let cluster = self.fence.peer.cluster;
        if !kept.refused.is_empty() {
            let reason = cut(kept.refused.clone());
            tracing::warn!(cluster.id = %cluster, reason, "a cluster agent does not take the trust bundle");
        }
        let ring = self.hub.authority.ring();
        if kept.generation != ring.generation || kept.digest != ring.digest().0 {
            let (generation, ours) = (kept.generation, ring.generation);
            tracing::debug!(cluster.id = %cluster, generation, ours, "a cluster agent keeps another trust bundle");
            if generation >= ours {
                let digest = hex::encode(&kept.digest);
                // The moment stays that of the first word of it.
                let at = self.trust.foreign.take().map(|(_, at)| at);
                let at = at.unwrap_or_else(|| Instant::now() + BEHIND);
                self.trust.foreign = Some((Reported { generation, digest }, at));
            }
            return Ok(());
        }
        self.trust.foreign = None;
        self.keep_trust(kept.generation).await
    }

    /// After a while it still is. That may be a rotation which this replica has not followed, because its copy of the folder
    /// of keys comes late: then another replica has said that it works with this bundle. A replica that has followed sends
    /// its bundle, and hears again.
    async fn trust_foreign(&mut self, kept: Reported) -> Result<(), End> {
        let (ours, generation) = (self.hub.authority.ring().generation, kept.generation);
        if generation < ours {
            return Ok(());
        }
        let again = match self.hub.store.replicas().await {
            Ok(reported) if !reported.contains(&kept) => None,
            Ok(_) => {
                tracing::error!(
                    ours,
                    generation,
                    "this replica's folder of keys is behind that of others: clusters have their roots already"
                );
                Some(BEHIND)
            }
            Err(error) => {
                tracing::debug!(%error, "which roots other replicas have is not known");
                Some(RETRY)
            }
        };
        if let Some(again) = again {
            self.trust.foreign = Some((kept, Instant::now() + again));
            return Ok(());
        }
        let detail = format!(
            "it keeps a trust bundle of generation {generation} that this hub (generation {ours}) never made, and takes no \
             other: somebody may have the key of a root. It must join anew"
        );
        self.tell(What::TrustForeign, detail).await;
        self.keep_trust(FOREIGN).await
    }

    async fn keep_trust(&mut self, generation: u64) -> Result<(), End> {
        let Some(root) = self.peer.root().cloned() else {
            return Ok(());
        };
        self.trust.owed = None;
        match self
            .hub
            .store
            .trust_kept(&self.fence, generation, root.as_str())
            .await
        {
            Ok(()) => Ok(()),
            // It is said again at the next session in any case.
            Err(StoreError::Unavailable(_)) => {
                self.trust.owed = Some((generation, Instant::now() + RETRY));
                Ok(())
            }
            Err(error) => Err(self.store(error).await),
        }
    }
}

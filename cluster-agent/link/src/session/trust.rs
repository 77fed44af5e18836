//! What a session does with the hub's trust bundle (protocol.md §3 rule 10): on disk first, then acknowledged.

use super::{End, Renewal, Session};
use crate::{
    clock::between,
    tls::mutual,
    trust::{Kept, Verdict, judge},
};
use roadstead_contract::fleet::{TrustBundle, TrustKept, cluster_frame::Body, roots_digest};
use std::time::Duration;
use tokio::time::Instant;

/// Connections that are made for one bundle to prove itself on.
const PROOFS: u32 = 3;
/// Within this time, by chance.
const PROOF_WITHIN: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// Takes over a newer bundle, and says what is kept. A bundle that is not taken changes nothing: the session, and the
    /// roots that are kept, stay.
    pub(super) async fn trust(&mut self, offered: &TrustBundle) -> Result<(), End> {
        let refused = match self.judged(offered) {
            Verdict::Newer => self.take_trust(offered).err().unwrap_or_default(),
            Verdict::Refused(why) => why,
            Verdict::Unproven(why) => {
                self.prove_again(offered.generation);
                why
            }
            Verdict::Older => {
                tracing::info!(
                    offered = offered.generation,
                    kept = self.line.identity.trust_generation(),
                    "a trust bundle of an earlier time changes nothing"
                );
                String::new()
            }
            Verdict::Same => String::new(),
        };
        if !refused.is_empty() {
            tracing::warn!(
                reason = refused,
                "the hub's trust bundle is not taken; the one before stays"
            );
        }
        let generation = self.line.identity.trust_generation();
        // Before the first rotation there is nothing to tell.
        if generation == 0 && offered.generation == 0 && refused.is_empty() {
            return Ok(());
        }
        let digest = roots_digest(&self.line.identity.roots_der()).to_vec();
        self.send(Body::Trust(TrustKept {
            generation,
            digest,
            refused,
        }))
        .await
    }

    /// A renewal goes over a connection of its own, on which the hub proves itself anew; a few times for one bundle.
    fn prove_again(&mut self, generation: u64) {
        let mut proofs = self.context.proofs.lock();
        if proofs.0 != generation {
            *proofs = (generation, 0);
        }
        if proofs.1 < PROOFS && matches!(self.renewal, Renewal::Idle) {
            proofs.1 += 1;
            self.timers.renew_at =
                Instant::now() + between(&*self.context.random, Duration::ZERO, PROOF_WITHIN);
        }
    }

    fn judged(&self, offered: &TrustBundle) -> Verdict {
        let identity = &self.line.identity;
        let roots = identity.roots_der();
        let kept = Kept {
            roots: &roots,
            generation: identity.trust_generation(),
            trust_domain: &identity.trust_domain,
        };
        judge(&kept, offered, &self.line.hub, &*self.context.clock)
    }

    /// On disk, then in use. What cannot be kept is not used either: the hub must not count on it.
    fn take_trust(&mut self, offered: &TrustBundle) -> Result<(), String> {
        let identity = self.line.identity.trusting(offered);
        let tls = mutual(&identity, self.context.clock.clone()).map_err(|error| error.to_string())?;
        identity
            .save(&self.context.folder)
            .map_err(|error| error.to_string())?;
        tracing::info!(
            generation = offered.generation,
            roots = offered.roots.len(),
            "the hub's trust bundle is taken over"
        );
        (self.line.identity, self.line.tls) = (identity, tls);
        // Connections from now on accept what the bundle says; calls that run go on where they are.
        self.park();
        Ok(())
    }
}

//! The roots of the fleet's trust, and how one takes the place of another: a pure function of what is known.
//!
//! One root signs everything. To replace it a second one is *announced*: cluster agents get both in their trust bundle,
//! and the old one goes on signing. Once they have it on disk the hub *switches*: the new root signs, cluster agents are
//! told to renew, and whoever has missed the announcement still finds its way by a certificate of the new root that the
//! old one signed. Once nobody depends on the old root any more it is *retired*: it leaves the bundle, and what it has
//! signed is worth nothing. Each step is a person's; none happens by itself.

use roadstead_contract::fleet::{Digest, document_digest, roots_digest};
pub use roadstead_service::roots::Holders;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Retired roots that are remembered, so that their certificates are recognised when they are refused. Without that
/// they are refused all the same.
const REMEMBERED: usize = 8;
/// A replica that was not heard for so long has ended: three reports.
pub const REPLICA_ENDED: Duration = Duration::from_secs(60);

/// The generation by which the database says of a cluster that it keeps a trust bundle which this hub never made. No hub
/// reaches it.
pub const FOREIGN: u64 = 1 << 53;

/// A root by the SHA-256 of its certificate, lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(String);

impl RootId {
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(document_digest(der).to_hex())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it for people and for names of files.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The certificate of a root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Root {
    #[serde(with = "as_hex")]
    der: Vec<u8>,
}

impl Root {
    #[must_use]
    pub fn new(der: Vec<u8>) -> Self {
        Self { der }
    }

    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    #[must_use]
    pub fn id(&self) -> RootId {
        RootId::of(&self.der)
    }

    /// When its time is over, in seconds since the Unix epoch; `None` for what is no certificate.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.id().short())
    }
}

mod as_hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Phase {
    /// No rotation.
    One { root: Root },
    /// `root` signs; `next` is in the bundle too.
    Announced { root: Root, next: Root },
    /// `root` signs; certificates of `previous` are still good.
    Switched {
        root: Root,
        previous: Root,
        /// The generation of the bundle in which `root` was announced.
        announced: u64,
    },
}

/// A root that is worth nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    pub root: Root,
    /// Somebody else may have its key: what its certificates say is believed by nobody.
    pub compromised: bool,
}

/// The roots at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ring {
    /// Grows by one with each step; 0 until the first.
    pub generation: u64,
    pub phase: Phase,
    #[serde(default)]
    pub retired: Vec<Retired>,
}

/// Why a step is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{act}: expected {expected}, found {found}")]
    Phase {
        act: &'static str,
        expected: &'static str,
        found: String,
    },
    #[error(
        "{} of the hub's replicas do not work with generation {generation} of the roots: {}. Each takes it up within \
         seconds once its folder of keys has it; a replica that has ended counts for a minute more",
        .replicas.len(), .replicas.join("; ")
    )]
    Replicas { generation: u64, replicas: Vec<String> },
    #[error("{what}: {} of {all} clusters: {}", .clusters.len(), .clusters.join("; "))]
    Clusters {
        what: &'static str,
        all: usize,
        clusters: Vec<String>,
    },
    #[error("expected {expected} clusters, as was seen before, found {}: {}", .clusters.len(), .clusters.join("; "))]
    Number { expected: usize, clusters: Vec<String> },
    #[error("the root {0} is or was one of the hub's")]
    Again(String),
}

/// What follows from a step that can be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub ring: Ring,
    /// Clusters that the step leaves behind, as `tenant/cluster: why`: the person has named their number.
    pub behind: Vec<String>,
}

impl Ring {
    /// The roots of a hub that has never rotated.
    #[must_use]
    pub fn first(root: Root) -> Self {
        Self {
            generation: 0,
            phase: Phase::One { root },
            retired: Vec::new(),
        }
    }

    /// The root that signs.
    #[must_use]
    pub fn signer(&self) -> &Root {
        match &self.phase {
            Phase::One { root } | Phase::Announced { root, .. } | Phase::Switched { root, .. } => root,
        }
    }

    /// The root that signed before, while its certificates are still good.
    #[must_use]
    pub fn previous(&self) -> Option<&Root> {
        match &self.phase {
            Phase::Switched { previous, .. } => Some(previous),
            _ => None,
        }
    }

    /// The root that will sign.
    #[must_use]
    pub fn next(&self) -> Option<&Root> {
        match &self.phase {
            Phase::Announced { next, .. } => Some(next),
            _ => None,
        }
    }

    /// Every root that is trusted, the signing one first.
    #[must_use]
    pub fn trusted(&self) -> Vec<&Root> {
        let others = self.next().into_iter().chain(self.previous());
        std::iter::once(self.signer()).chain(others).collect()
    }

    #[must_use]
    pub fn trusts(&self, id: &RootId) -> bool {
        self.trusted().iter().any(|root| root.id() == *id)
    }

    /// Over the trusted roots as a set.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let roots: Vec<_> = self.trusted().iter().map(|root| root.der.clone()).collect();
        roots_digest(&roots)
    }

    /// Where it is, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.phase {
            Phase::One { root } => format!("one root, {}", root.id().short()),
            Phase::Announced { root, next } => {
                let (root, next) = (root.id(), next.id());
                format!("{} signs, {} is announced", root.short(), next.short())
            }
            Phase::Switched { root, previous, .. } => {
                let (root, previous) = (root.id(), previous.id());
                format!("{} signs, {} is still trusted", root.short(), previous.short())
            }
        }
    }

    /// Announces a new root. Nothing depends on it yet.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn add(&self, next: Root) -> Result<Step, Refusal> {
        let Phase::One { root } = &self.phase else {
            let expected = "one root (first switch to the announced one, abort, or retire the old one)";
            return Err(self.out_of_turn("add", expected));
        };
        self.unused(&next)?;
        let root = root.clone();
        Ok(self.then(Phase::Announced { root, next }, Vec::new()))
    }

    /// Takes the announcement back.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn abort(&self) -> Result<Step, Refusal> {
        let Phase::Announced { root, next } = &self.phase else {
            let expected = "an announced root (after the switch: retire the old root, then rotate again)";
            return Err(self.out_of_turn("abort", expected));
        };
        let mut step = self.then(Phase::One { root: root.clone() }, Vec::new());
        step.ring.retire_root(next.clone(), false);
        Ok(step)
    }

    /// Lets the announced root sign. `behind`: how many clusters the person knows not to have it on disk; they find the
    /// hub all the same until the old root is retired.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn switch(&self, holders: &Holders, now_ms: i64, behind: usize) -> Result<Step, Refusal> {
        let Phase::Announced { root, next } = &self.phase else {
            return Err(self.out_of_turn("switch", "an announced root (add one first)"));
        };
        self.replicas_agree(holders, now_ms)?;
        let without = self.without_bundle(holders);
        numbered(
            "the announced root is not yet on the disk of",
            holders,
            &without,
            behind,
        )?;
        let phase = Phase::Switched {
            root: next.clone(),
            previous: root.clone(),
            announced: self.generation,
        };
        Ok(self.then(phase, without))
    }

    /// Ends the trust in the root that signed before. `cut_off`: how many clusters the person knows to depend on it;
    /// they must join anew.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn retire(&self, holders: &Holders, now_ms: i64, cut_off: usize) -> Result<Step, Refusal> {
        let Phase::Switched { root, previous, .. } = &self.phase else {
            return Err(self.out_of_turn("retire", "a root that signed before (add one and switch first)"));
        };
        self.replicas_agree(holders, now_ms)?;
        let dependent = self.dependent(holders);
        numbered("still dependent on the old root", holders, &dependent, cut_off)?;
        let mut step = self.then(Phase::One { root: root.clone() }, dependent);
        step.ring.retire_root(previous.clone(), false);
        Ok(step)
    }

    /// Somebody else may have the keys of the trusted roots, which lie in one folder: from now on only `fresh` counts.
    /// `cut_off`: how many clusters at most the person knows to lose the hub by it; they must join anew. At most: it must
    /// not wait for a number that changes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn replace_now(&self, fresh: Root, holders: &Holders, cut_off: usize) -> Result<Step, Refusal> {
        self.unused(&fresh)?;
        let lost = behind_of(holders, |_| {
            Some("its certificate is of a root that ends now".to_owned())
        });
        at_most(holders, &lost, cut_off)?;
        let mut step = self.then(Phase::One { root: fresh }, lost);
        for compromised in self.trusted() {
            step.ring.retire_root(compromised.clone(), true);
        }
        Ok(step)
    }

    /// As [`Self::replace_now`], where the key of the older root alone is lost: the announced root stays, or after the
    /// switch the signing one, and with it the clusters that have renewed.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn keep_new_now(&self, holders: &Holders, cut_off: usize) -> Result<Step, Refusal> {
        let (root, compromised) = match &self.phase {
            Phase::One { .. } => return Err(self.out_of_turn("retire --now --keep-new", "a newer root")),
            Phase::Announced { root, next } => (next, root),
            Phase::Switched { root, previous, .. } => (root, previous),
        };
        let lost = self.dependent(holders);
        at_most(holders, &lost, cut_off)?;
        let mut step = self.then(Phase::One { root: root.clone() }, lost);
        step.ring.retire_root(compromised.clone(), true);
        Ok(step)
    }

    /// Clusters that lose the hub when the root that is to go is gone. Before the switch these are all: their
    /// certificates are of that root. After it those that did not say, with a certificate of the signing root, that they
    /// keep it.
    #[must_use]
    pub fn dependent(&self, holders: &Holders) -> Vec<String> {
        let Phase::Switched { root, announced, .. } = &self.phase else {
            return behind_of(holders, |_| Some("its certificate is of that root".to_owned()));
        };
        let id = root.id();
        behind_of(holders, |cluster| match lacks(cluster.generation, *announced) {
            true => Some(kept(cluster.generation)),
            false if cluster.root != id.as_str() => Some("has not renewed its certificate".to_owned()),
            false => None,
        })
    }

    /// Clusters that do not have the newest bundle on disk.
    #[must_use]
    pub fn without_bundle(&self, holders: &Holders) -> Vec<String> {
        behind_of(holders, |cluster| {
            lacks(cluster.generation, self.generation).then(|| kept(cluster.generation))
        })
    }

    fn replicas_agree(&self, holders: &Holders, now_ms: i64) -> Result<(), Refusal> {
        let replicas = self.other_replicas(holders, now_ms);
        match replicas.is_empty() {
            true => Ok(()),
            false => Err(Refusal::Replicas {
                generation: self.generation,
                replicas,
            }),
        }
    }

    /// Replicas that live and do not work with these roots.
    #[must_use]
    pub fn other_replicas(&self, holders: &Holders, now_ms: i64) -> Vec<String> {
        let digest = self.digest().to_hex();
        let ended = i64::try_from(REPLICA_ENDED.as_millis()).unwrap_or(i64::MAX);
        let others = holders.replicas.iter().filter(|replica| {
            now_ms.saturating_sub(replica.seen_ms) <= ended
                && (replica.generation != self.generation || replica.digest != digest)
        });
        others
            .map(|replica| match replica.generation == self.generation {
                true => format!("{}: other roots of the same generation", replica.id),
                false => format!("{}: generation {}", replica.id, replica.generation),
            })
            .collect()
    }

    fn unused(&self, root: &Root) -> Result<(), Refusal> {
        let known = self.trusts(&root.id()) || self.retired.iter().any(|retired| retired.root == *root);
        match known {
            true => Err(Refusal::Again(root.id().short().to_owned())),
            false => Ok(()),
        }
    }

    fn out_of_turn(&self, act: &'static str, expected: &'static str) -> Refusal {
        Refusal::Phase {
            act,
            expected,
            found: self.describe(),
        }
    }

    fn then(&self, phase: Phase, behind: Vec<String>) -> Step {
        let ring = Self {
            generation: self.generation + 1,
            phase,
            retired: self.retired.clone(),
        };
        Step { ring, behind }
    }

    fn retire_root(&mut self, root: Root, compromised: bool) {
        self.retired.push(Retired { root, compromised });
        if self.retired.len() > REMEMBERED {
            self.retired.remove(0);
        }
    }
}

/// The bundle of that generation, or a later one of this hub, is not what the cluster keeps.
fn lacks(kept: u64, wanted: u64) -> bool {
    kept < wanted || kept >= FOREIGN
}

fn kept(generation: u64) -> String {
    match generation {
        FOREIGN.. => "keeps a bundle that this hub never made: must join anew".to_owned(),
        0 => "has not said that it keeps any bundle of this rotation".to_owned(),
        _ => format!("keeps the bundle of generation {generation}"),
    }
}

fn behind_of(
    holders: &Holders,
    why: impl Fn(&roadstead_store::ClusterTrust) -> Option<String>,
) -> Vec<String> {
    let clusters = holders.clusters.iter();
    clusters
        .filter_map(|(tenant, cluster)| why(cluster).map(|why| format!("{tenant}/{}: {why}", cluster.name)))
        .collect()
}

/// What a person accepts to lose, when it must be done now.
fn at_most(holders: &Holders, lost: &[String], accepted: usize) -> Result<(), Refusal> {
    match lost.len() <= accepted {
        true => Ok(()),
        false => Err(Refusal::Clusters {
            what: "dependent on what ends now",
            all: holders.clusters.len(),
            clusters: lost.to_vec(),
        }),
    }
}

/// What a person was shown and accepted is exactly what there is: an allowance is for that number and no other.
fn numbered(
    what: &'static str,
    holders: &Holders,
    clusters: &[String],
    accepted: usize,
) -> Result<(), Refusal> {
    match accepted {
        _ if clusters.len() == accepted => Ok(()),
        0 => Err(Refusal::Clusters {
            what,
            all: holders.clusters.len(),
            clusters: clusters.to_vec(),
        }),
        expected => Err(Refusal::Number {
            expected,
            clusters: clusters.to_vec(),
        }),
    }
}

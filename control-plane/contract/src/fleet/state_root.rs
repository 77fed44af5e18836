//! Digests and state roots.
//!
//! A state root is a hash of the set of (uid, generation, digest) that does not depend on order and can be brought up
//! to date by one addition and one subtraction: the sum of the entries' SHA-256, modulo 2²⁵⁶. Both sides hold the set
//! in good faith, and a tenant who searched for a collision could only mislead the comparison of their own cluster;
//! against accidents 256 bits are ample.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Bytes or text that are no SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a SHA-256 (32 bytes, 64 hex digits), found {0} bytes")]
pub struct DigestError(usize);

impl Digest {
    /// The digest as 64 hex digits, lower case.
    #[must_use]
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// Reads 64 hex digits.
    ///
    /// # Errors
    /// Any other text.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError(text.len()))?;
        Ok(Self(bytes))
    }

    /// The bytes as they stand in messages.
    #[must_use]
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = DigestError;
    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes.try_into().map(Self).map_err(|_| DigestError(bytes.len()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex::encode(&self.0[..6]))
    }
}

/// The digest of a document: SHA-256 of its bytes as they travel.
#[must_use]
pub fn document_digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// The running state root of a set of documents.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSum([u64; 4]);

impl StateSum {
    /// Adds an entry. An entry that is already in counts twice: the caller keeps a set.
    pub fn add(&mut self, uid: &str, generation: u64, digest: Digest) {
        let mut carry = false;
        for (limb, term) in self.0.iter_mut().zip(term(uid, generation, digest)) {
            let (sum, first) = limb.overflowing_add(term);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = first || second;
        }
    }

    /// Takes an entry out that was added before.
    pub fn remove(&mut self, uid: &str, generation: u64, digest: Digest) {
        let mut borrow = false;
        for (limb, term) in self.0.iter_mut().zip(term(uid, generation, digest)) {
            let (rest, first) = limb.overflowing_sub(term);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            *limb = rest;
            borrow = first || second;
        }
    }

    /// The root over these entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a str, u64, Digest)>) -> Self {
        let mut sum = Self::default();
        for (uid, generation, digest) in entries {
            sum.add(uid, generation, digest);
        }
        sum
    }

    /// As it stands in messages.
    #[must_use]
    pub fn root(self) -> Digest {
        let mut bytes = [0; 32];
        for (chunk, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        Digest(bytes)
    }
}

impl fmt::Debug for StateSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateSum({:?})", self.root())
    }
}

/// SHA-256 over the entry, the uid's length first so that no two entries share an encoding; least limb first.
fn term(uid: &str, generation: u64, digest: Digest) -> [u64; 4] {
    let mut hash = Sha256::new();
    hash.update((uid.len() as u64).to_be_bytes());
    hash.update(uid.as_bytes());
    hash.update(generation.to_be_bytes());
    hash.update(digest.0);
    let bytes: [u8; 32] = hash.finalize().into();
    let mut limbs = [0; 4];
    for (limb, chunk) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
        *limb = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
    }
    limbs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(
            entries in proptest::collection::vec(("[a-z]{1,8}", 1u64..9, any::<[u8; 32]>()), 0..20),
            split in 0usize..20,
        ) {
            let all = StateSum::of(entries.iter().map(|(u, g, d)| (u.as_str(), *g, Digest(*d))));
            let mut reversed = StateSum::of(entries.iter().rev().map(|(u, g, d)| (u.as_str(), *g, Digest(*d))));
            prop_assert_eq!(all, reversed);
            let split = split.min(entries.len());
            for (u, g, d) in &entries[split..] {
                reversed.remove(u, *g, Digest(*d));
            }
            let kept = StateSum::of(entries[..split].iter().map(|(u, g, d)| (u.as_str(), *g, Digest(*d))));
            prop_assert_eq!(kept, reversed);
        }
    }

    #[test]
    fn every_part_of_an_entry_counts() {
        let root = |u, g, d| StateSum::of([(u, g, Digest([d; 32]))]).root();
        let base = root("a", 1, 1);
        for other in [root("b", 1, 1), root("a", 2, 1), root("a", 1, 2)] {
            assert_ne!(base, other);
        }
    }
}

//! What both sides compute alike of a trust bundle.

use super::{Digest, TrustBundle, document_digest};

impl TrustBundle {
    /// Over the roots as a set: their order says nothing.
    #[must_use]
    pub fn digest(&self) -> Digest {
        roots_digest(&self.roots)
    }
}

/// As [`TrustBundle::digest`], over DER.
#[must_use]
pub fn roots_digest(roots: &[Vec<u8>]) -> Digest {
    let mut each: Vec<_> = roots.iter().map(|root| document_digest(root).0).collect();
    each.sort_unstable();
    document_digest(&each.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_the_set() {
        let bundle = |roots: &[&[u8]]| TrustBundle {
            roots: roots.iter().map(|root| root.to_vec()).collect(),
            ..TrustBundle::default()
        };
        let both = bundle(&[b"a", b"b"]).digest();
        assert_eq!(both, bundle(&[b"b", b"a"]).digest());
        // What one root ends with is not what the next begins with.
        assert_ne!(both, bundle(&[b"ab"]).digest());
        assert_ne!(both, bundle(&[b"a"]).digest());
    }
}

//! Whether a trust bundle may take the place of the kept one. Only the hub of a live session is asked, and what it says
//! must not leave this cluster without a way back to it.

use crate::{Clock, channel::Presented, identity::MOST_AHEAD};
use roadstead_contract::fleet::{MAX_ROOT, MAX_ROOTS, TrustBundle, roots_digest};
use rustls::{
    Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime},
};
use std::{sync::Arc, time::Duration};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Larger generations are nobody's count.
const MOST: u64 = 1 << 53;

/// What is kept now.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    pub(crate) roots: &'a [Vec<u8>],
    pub(crate) generation: u64,
    pub(crate) trust_domain: &'a str,
}

/// What becomes of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is kept already.
    Same,
    /// It is of an earlier time: by another replica, or repeated by somebody.
    Older,
    /// It takes the place of the kept one.
    Newer,
    /// It must not; why, for people.
    Refused(String),
    /// It may be right, but the hub has proved itself on this connection by none of its roots: another connection, to a
    /// hub that has followed its own rotation, can show it.
    Unproven(String),
}

/// Judges a bundle that came over a connection on which the hub has proved itself with `hub`.
pub(crate) fn judge(kept: &Kept<'_>, offered: &TrustBundle, hub: &Presented, clock: &dyn Clock) -> Verdict {
    if offered.trust_domain != kept.trust_domain {
        return Verdict::Refused("it is of another trust domain".to_owned());
    }
    if offered.generation < kept.generation {
        return Verdict::Older;
    }
    if offered.generation == kept.generation {
        return match roots_digest(kept.roots) == offered.digest() {
            true => Verdict::Same,
            false => Verdict::Refused(format!(
                "expected the roots that are kept of generation {}, found others",
                kept.generation
            )),
        };
    }
    let roots = match well_formed(offered) {
        Ok(roots) => roots,
        Err(why) => return Verdict::Refused(why),
    };
    // From such a number the hub itself could never bring this cluster back.
    if offered.generation - kept.generation > MOST_AHEAD {
        let (kept, found) = (kept.generation, offered.generation);
        return Verdict::Refused(format!(
            "expected a generation at most {MOST_AHEAD} after {kept}, found {found}"
        ));
    }
    match proven(roots, hub, clock) {
        Ok(()) => Verdict::Newer,
        Err(why) => Verdict::Unproven(why),
    }
}

/// A bundle by itself: a few roots, of which one verifies the hub that sent it.
pub(crate) fn usable(offered: &TrustBundle, hub: &Presented, clock: &dyn Clock) -> Result<(), String> {
    proven(well_formed(offered)?, hub, clock)
}

/// Whether the hub has proved itself by one of these roots: those that are kept now, not those of when it connected.
pub(crate) fn certified(roots: Vec<Vec<u8>>, hub: &Presented, clock: &dyn Clock) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    for der in roots {
        let added = store.add(CertificateDer::from(der));
        added.map_err(|error| error.to_string())?;
    }
    verifies(store, hub, clock).map_err(|error| error.to_string())
}

fn proven(roots: RootCertStore, hub: &Presented, clock: &dyn Clock) -> Result<(), String> {
    verifies(roots, hub, clock)
        .map_err(|error| format!("none of its roots has certified the hub that sent it ({error})"))
}

fn well_formed(offered: &TrustBundle) -> Result<RootCertStore, String> {
    let count = offered.roots.len();
    if !(1..=MAX_ROOTS).contains(&count) {
        return Err(format!("expected one to {MAX_ROOTS} roots, found {count}"));
    }
    if offered.generation > MOST {
        return Err("its generation is none that a hub could have reached".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for der in &offered.roots {
        if der.len() > MAX_ROOT || !is_authority(der) {
            return Err("one of its roots is no certificate of an authority".to_owned());
        }
        let der = CertificateDer::from(der.clone());
        roots
            .add(der)
            .map_err(|error| format!("one of its roots is not usable: {error}"))?;
    }
    Ok(roots)
}

fn is_authority(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, certificate)| rest.is_empty() && certificate.is_ca())
}

fn verifies(roots: RootCertStore, hub: &Presented, clock: &dyn Clock) -> Result<(), Error> {
    let nothing = || Error::General("it showed no certificate".to_owned());
    let (leaf, intermediates) = hub.chain.split_first().ok_or_else(nothing)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let now = Duration::from_millis(u64::try_from(clock.now_ms()).unwrap_or(0));
    let now = UnixTime::since_unix_epoch(now);
    verifier
        .verify_server_cert(leaf, intermediates, &hub.name, &[], now)
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::pki_types::ServerName;

    struct Ca {
        der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Ca {
            der,
            issuer: Issuer::new(params, key),
        }
    }

    /// A hub that shows a certificate of this authority.
    fn hub(of: &Ca) -> Presented {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["hub.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &of.issuer).unwrap();
        Presented {
            name: ServerName::try_from("hub.test").unwrap(),
            chain: Arc::from([leaf.der().clone(), CertificateDer::from(of.der.clone())]),
        }
    }

    fn bundle(generation: u64, roots: &[&Ca]) -> TrustBundle {
        TrustBundle {
            roots: roots.iter().map(|ca| ca.der.clone()).collect(),
            trust_domain: "test".to_owned(),
            generation,
        }
    }

    fn judged(kept: &TrustBundle, offered: &TrustBundle, hub: &Presented) -> Verdict {
        let kept = Kept {
            roots: &kept.roots,
            generation: kept.generation,
            trust_domain: &kept.trust_domain,
        };
        judge(&kept, offered, hub, &SystemClock)
    }

    fn refused(verdict: Verdict) -> String {
        match verdict {
            Verdict::Refused(why) | Verdict::Unproven(why) => why,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    #[test]
    fn a_rotation_is_followed_and_what_came_before_is_not() {
        let (old, new) = (ca("old"), ca("new"));
        let first = bundle(0, &[&old]);
        let both = bundle(1, &[&old, &new]);
        assert_eq!(judged(&first, &first, &hub(&old)), Verdict::Same);
        assert_eq!(judged(&first, &both, &hub(&old)), Verdict::Newer);
        let last = bundle(3, &[&new]);
        assert_eq!(judged(&both, &last, &hub(&new)), Verdict::Newer);
        // S50: repeated later, the bundles before bring no retired root back.
        for earlier in [&first, &both] {
            assert_eq!(judged(&last, earlier, &hub(&new)), Verdict::Older);
        }
    }

    #[test]
    fn a_bundle_that_would_lose_the_hub_is_refused() {
        let (old, new) = (ca("old"), ca("new"));
        let kept = bundle(1, &[&old, &new]);
        // The connection was verified by the old root, and the bundle drops it.
        let why = refused(judged(&kept, &bundle(2, &[&new]), &hub(&old)));
        assert!(why.contains("none of its roots has certified the hub"), "{why}");
        assert!(refused(judged(&kept, &bundle(2, &[]), &hub(&old))).contains("found 0"));
        let five = bundle(2, &[&old, &new, &old, &new, &old]);
        assert!(refused(judged(&kept, &five, &hub(&old))).contains("found 5"));
        assert!(refused(judged(&kept, &bundle(u64::MAX, &[&old]), &hub(&old))).contains("generation"));
        let why = refused(judged(&kept, &bundle(1_002, &[&old, &new]), &hub(&old)));
        assert!(why.contains("at most 1000 after 1"), "{why}");
        assert_eq!(
            judged(&kept, &bundle(1_001, &[&old, &new]), &hub(&old)),
            Verdict::Newer
        );
        let other = bundle(1, &[&old]);
        assert!(refused(judged(&kept, &other, &hub(&old))).contains("found others"));
        let mut foreign = bundle(2, &[&old]);
        foreign.trust_domain = "other".to_owned();
        assert!(refused(judged(&kept, &foreign, &hub(&old))).contains("trust domain"));
    }

    #[test]
    fn s50_a_connection_that_a_dropped_root_has_certified_is_told_from_the_others() {
        let (old, new) = (ca("old"), ca("new"));
        let good = |roots: &[&Ca], by: &Ca| {
            let roots = roots.iter().map(|ca| ca.der.clone()).collect();
            certified(roots, &hub(by), &SystemClock).is_ok()
        };
        assert!(good(&[&old, &new], &old) && good(&[&new], &new));
        assert!(!good(&[&new], &old));
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let old = ca("old");
        let kept = bundle(0, &[&old]);
        let mut garbage = bundle(1, &[&old]);
        garbage.roots.push(b"no certificate".to_vec());
        assert!(refused(judged(&kept, &garbage, &hub(&old))).contains("no certificate of an authority"));
        // A leaf is none, whoever signed it.
        let mut leaf = bundle(1, &[&old]);
        leaf.roots.push(hub(&old).chain[0].to_vec());
        assert!(refused(judged(&kept, &leaf, &hub(&old))).contains("no certificate of an authority"));
        let mut long = bundle(1, &[&old]);
        long.roots.push(vec![0; MAX_ROOT + 1]);
        assert!(matches!(judged(&kept, &long, &hub(&old)), Verdict::Refused(_)));
        let nobody = Presented {
            name: ServerName::try_from("hub.test").unwrap(),
            chain: Arc::default(),
        };
        assert!(refused(judged(&kept, &bundle(1, &[&old]), &nobody)).contains("no certificate"));
    }
}

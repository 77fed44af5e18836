//! The authority of every hub replica, kept in memory.

use crate::simulated::{Seeded, SimulatedClock};
use roadstead_domain::Clock as _;
use roadstead_fleet::{
    Authority, KeyStore, StoredRoots,
    roots::{Holders, Phase},
};
use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

#[derive(Clone, Default)]
pub(super) struct Keys(Arc<Mutex<Option<StoredRoots>>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl KeyStore for Keys {
    fn load(&self) -> io::Result<Option<StoredRoots>> {
        Ok(self.0.lock().expect("no panic holds it").clone())
    }
    fn save(&self, roots: &StoredRoots) -> io::Result<()> {
        *self.0.lock().expect("no panic holds it") = Some(roots.clone());
        Ok(())
    }
    fn tidy(&self, _: &StoredRoots) -> io::Result<()> {
        Ok(())
    }
}

impl Keys {
    /// The next step of a rotation, if everybody is ready for it; its name.
    pub(super) fn rotate(&self, random: &Seeded, holders: &Holders) -> Option<&'static str> {
        let mut stored = self.load().ok().flatten()?;
        let now = SimulatedClock.now_ms();
        let (name, step) = match (&stored.ring.phase, stored.ring.generation) {
            (Phase::One { .. }, 0) => {
                let made = Authority::generate_root("simulated", &SimulatedClock, random);
                let (root, key) = made.expect("a root");
                stored.keys.insert(root.id(), key);
                ("add", stored.ring.add(root))
            }
            (Phase::One { .. }, _) => return None,
            (Phase::Announced { .. }, _) => ("switch", stored.ring.switch(holders, now, 0)),
            (Phase::Switched { .. }, _) => ("retire", stored.ring.retire(holders, now, 0)),
        };
        stored.ring = step.ok()?.ring;
        stored.keys.retain(|id, _| stored.ring.trusts(id));
        self.save(&stored).ok()?;
        Some(name)
    }

    /// Generation and id of the root that signs.
    pub(super) fn signer(&self) -> (u64, String) {
        let ring = self.load().ok().flatten().expect("the authority exists").ring;
        (ring.generation, ring.signer().id().to_string())
    }

    /// A certificate of a host of this name with its key, DER: what only a stolen authority can make.
    pub(super) fn certify(&self, host: &str) -> (Vec<u8>, Vec<u8>) {
        let stored = self.load().ok().flatten().expect("the authority exists");
        let root = stored.ring.signer();
        let key = rcgen::KeyPair::from_pem(&stored.keys[&root.id()]).expect("a key");
        let issuer = rcgen::Issuer::from_ca_cert_der(&root.der().into(), key).expect("an authority");
        let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let now = SimulatedClock.now_ms() / 1_000;
        let at = |seconds: i64| {
            let since = std::time::Duration::from_secs(u64::try_from(now + seconds).expect("after 1970"));
            (std::time::UNIX_EPOCH + since).into()
        };
        (params.not_before, params.not_after) = (at(-3_600), at(86_400));
        let own = rcgen::KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&own, &issuer).expect("a certificate");
        (leaf.der().to_vec(), own.serialize_der())
    }
}

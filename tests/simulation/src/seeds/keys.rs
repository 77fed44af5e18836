//! The authority of every hub replica, kept in memory.

use crate::simulated::SimulatedClock;
use roadstead_domain::Clock as _;
use roadstead_fleet::{KeyStore, StoredAuthority};
use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

#[derive(Clone, Default)]
pub(super) struct Keys(Arc<Mutex<Option<StoredAuthority>>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl KeyStore for Keys {
    fn load(&self) -> io::Result<Option<StoredAuthority>> {
        Ok(self.0.lock().expect("no panic holds it").clone())
    }
    fn save(&self, authority: &StoredAuthority) -> io::Result<()> {
        *self.0.lock().expect("no panic holds it") = Some(authority.clone());
        Ok(())
    }
}

impl Keys {
    /// A certificate of a host of this name with its key, DER: what only a stolen authority can make.
    pub(super) fn certify(&self, host: &str) -> (Vec<u8>, Vec<u8>) {
        let stored = self.load().ok().flatten().expect("the authority exists");
        let key = rcgen::KeyPair::from_pem(&stored.key_pem).expect("a key");
        let issuer = rcgen::Issuer::from_ca_cert_pem(&stored.certificate_pem, key).expect("an authority");
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

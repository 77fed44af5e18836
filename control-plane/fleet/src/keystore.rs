//! Where the roots and their keys rest.
//!
//! A hub that never rotated has `ca.pem` and `ca-key.pem`. With the first rotation `roots.json` says which roots there
//! are and how far the rotation is, and each key lies in a file named after its root. `roots.json` is replaced as a whole,
//! after the keys that it needs and before those that it does not need any more go: a reader finds one state or the next,
//! and a crash in between costs nothing. `ca.pem` and `ca-key.pem` go on holding the root that signs, so that a hub of
//! the version before does not take an empty folder for a first start.

use crate::roots::{Ring, Root, RootId};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

const RING: &str = "roots.json";
const FIRST: &str = "ca.pem";
const FIRST_KEY: &str = "ca-key.pem";

/// The roots at rest. `Debug` shows no key.
#[derive(Clone)]
pub struct StoredRoots {
    pub ring: Ring,
    /// PKCS#8 PEM of each trusted root.
    pub keys: BTreeMap<RootId, Zeroizing<String>>,
}

impl fmt::Debug for StoredRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredRoots")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

/// Keeps the roots.
pub trait KeyStore {
    /// What was saved; `None` at first.
    ///
    /// # Errors
    /// It cannot be read.
    fn load(&self) -> io::Result<Option<StoredRoots>>;
    /// Keeps it for good.
    ///
    /// # Errors
    /// It cannot be written; then what was there before still is.
    fn save(&self, roots: &StoredRoots) -> io::Result<()>;
    /// Forgets the keys of roots that are not trusted any more, and what a step that was cut short has left. May be
    /// repeated at any time: what was saved counts, whatever comes of this.
    ///
    /// # Errors
    /// It cannot be written.
    fn tidy(&self, roots: &StoredRoots) -> io::Result<()>;
}

/// A folder. Keys are for its owner alone.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// The generation of the roots that the folder holds; 0 before the first rotation. Reads no key.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn generation(&self) -> io::Result<u64> {
        Ok(self.ring()?.map_or(0, |ring| ring.generation))
    }

    fn ring(&self) -> io::Result<Option<Ring>> {
        let Some(text) = found(&self.0.join(RING))? else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| damaged(RING, &error))
    }

    fn key_file(id: &RootId) -> String {
        format!("root-{}-key.pem", id.short())
    }

    /// The files that hold the keys of the trusted roots.
    ///
    /// # Errors
    /// As [`Self::generation`].
    pub fn private_files(&self) -> io::Result<Vec<String>> {
        let mut files = vec![FIRST_KEY.to_owned()];
        if let Some(ring) = self.ring()? {
            files.extend(ring.trusted().iter().map(|root| Self::key_file(&root.id())));
        }
        Ok(files)
    }

    fn first(&self) -> io::Result<Option<StoredRoots>> {
        let Some(key) = found(&self.0.join(FIRST_KEY))? else {
            return Ok(None);
        };
        // The certificate is written first: a key without one is damage, not a first start.
        let pem = fs::read_to_string(self.0.join(FIRST))?;
        let (_, parsed) = parse_x509_pem(pem.as_bytes()).map_err(|error| damaged(FIRST, &error))?;
        let root = Root::new(parsed.contents);
        let keys = BTreeMap::from([(root.id(), key)]);
        Ok(Some(StoredRoots {
            ring: Ring::first(root),
            keys,
        }))
    }

    /// Replaces a file as a whole.
    fn write(&self, name: &str, text: &str, mode: u32) -> io::Result<()> {
        let fresh = self.0.join(format!("{name}.new"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }

    /// The root that signs, as the version before looks for it.
    fn write_first(&self, roots: &StoredRoots) -> io::Result<()> {
        let signer = roots.ring.signer();
        let key = roots.keys.get(&signer.id());
        let key = key.ok_or_else(|| io::Error::other("the root that signs has no key"))?;
        let certificate = pem(signer.der());
        if found(&self.0.join(FIRST))?.is_none_or(|text| *text != certificate) {
            self.write(FIRST, &certificate, 0o644)?;
        }
        if found(&self.0.join(FIRST_KEY))?.is_none_or(|text| text != *key) {
            self.write(FIRST_KEY, key, 0o600)?;
        }
        self.sync()
    }

    /// Keys of other roots, and what was written halfway.
    fn forget_all_but(&self, kept: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let goes = name.to_str().is_some_and(|name| {
                let whole = name.strip_suffix(".new").unwrap_or(name);
                let key = whole.starts_with("root-") && whole.ends_with("-key.pem");
                let ours = key || [RING, FIRST, FIRST_KEY].contains(&whole);
                ours && (whole != name || (key && !kept.contains(name)))
            });
            if goes {
                fs::remove_file(self.0.join(name))?;
            }
        }
        Ok(())
    }
}

impl KeyStore for Folder {
    fn load(&self) -> io::Result<Option<StoredRoots>> {
        let Some(ring) = self.ring()? else {
            return self.first();
        };
        let mut keys = BTreeMap::new();
        for root in ring.trusted() {
            let (id, file) = (root.id(), Self::key_file(&root.id()));
            let key = found(&self.0.join(&file))?;
            let missing = || {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("{RING} needs {file}, which is not here"),
                )
            };
            keys.insert(id, key.ok_or_else(missing)?);
        }
        Ok(Some(StoredRoots { ring, keys }))
    }

    fn save(&self, roots: &StoredRoots) -> io::Result<()> {
        let ring = &roots.ring;
        if ring.generation == 0 {
            return self.write_first(roots);
        }
        let kept = kept(ring);
        for (id, key) in &roots.keys {
            let file = Self::key_file(id);
            if kept.contains(&file) && !self.0.join(&file).exists() {
                self.write(&file, key, 0o600)?;
            }
        }
        let text = serde_json::to_string_pretty(ring).map_err(|error| damaged(RING, &error))?;
        self.sync()?;
        // The last that can fail: with it the step is done.
        self.write(RING, &text, 0o644)
    }

    fn tidy(&self, roots: &StoredRoots) -> io::Result<()> {
        self.sync()?;
        self.write_first(roots)?;
        self.forget_all_but(&kept(&roots.ring))?;
        self.sync()
    }
}

/// The files of keys that these roots need.
fn kept(ring: &Ring) -> BTreeSet<String> {
    let roots = ring.trusted().into_iter();
    roots.map(|root| Folder::key_file(&root.id())).collect()
}

/// The text of a file; `None` where there is none.
fn found(path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    }
}

fn damaged(name: &str, error: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} is damaged: {error}"))
}

/// A certificate as text (RFC 7468).
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes make a line of 64 characters.
    for line in der.chunks(48) {
        text.push_str(&STANDARD.encode(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use roadstead_domain::{OsRandom, SystemClock};
    use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        (dir, folder)
    }

    fn fresh() -> (Root, Zeroizing<String>) {
        Authority::generate_root("test", &SystemClock, &OsRandom).unwrap()
    }

    fn opened(folder: &Folder) -> StoredRoots {
        Authority::open(folder, "test", Arc::new(SystemClock), Arc::new(OsRandom)).unwrap();
        folder.load().unwrap().unwrap()
    }

    #[test]
    fn s66_a_key_that_cannot_be_read_is_not_repeated() {
        let (_dir, folder) = folder();
        opened(&folder);
        let file = folder.0.join(FIRST_KEY);
        let key = fs::read_to_string(&file).unwrap();
        let line = key.lines().nth(1).unwrap();
        // An empty line makes a header of what stands before it.
        for broken in [
            key.replace('\n', "\n\n"),
            key.replace('\n', " "),
            key.replace('\n', "\\n"),
        ] {
            fs::write(&file, broken).unwrap();
            let opened = Authority::open(&folder, "test", Arc::new(SystemClock), Arc::new(OsRandom));
            if let Err(error) = opened {
                let error = format!("{error} {error:?}");
                assert!(!error.contains(line), "{error}");
            }
        }
    }

    #[test]
    fn a_certificate_as_text_is_the_one_that_went_in() {
        let (root, _) = fresh();
        for cut in 0..4 {
            let der = &root.der()[..root.der().len() - cut];
            let (_, parsed) = parse_x509_pem(pem(der).as_bytes()).unwrap();
            assert_eq!(parsed.contents, der);
        }
    }

    #[test]
    fn each_state_of_a_rotation_is_read_as_it_was_saved() {
        let (_dir, folder) = folder();
        assert!(folder.load().unwrap().is_none());
        let mut stored = opened(&folder);
        assert_eq!(folder.generation().unwrap(), 0);
        assert!(!folder.0.join(RING).exists());
        let (next, key) = fresh();
        stored.keys.insert(next.id(), key);
        let steps = [
            |ring: &Ring, next: &Root| ring.add(next.clone()),
            |ring: &Ring, _: &Root| ring.switch(&Default::default(), 0, 0),
            |ring: &Ring, _: &Root| ring.retire(&Default::default(), 0, 0),
        ];
        for step in steps {
            stored.ring = step(&stored.ring, &next).unwrap().ring;
            folder.save(&stored).unwrap();
            folder.tidy(&stored).unwrap();
            let read = folder.load().unwrap().unwrap();
            assert_eq!(read.ring, stored.ring);
            assert_eq!(read.keys.len(), stored.ring.trusted().len());
            for file in folder.private_files().unwrap() {
                let mode = fs::metadata(folder.0.join(&file)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{file}");
            }
            // A hub of the version before finds the root that signs.
            let first = folder.first().unwrap().unwrap();
            assert_eq!(first.ring.signer(), stored.ring.signer());
            assert_eq!(
                first.keys.values().next(),
                read.keys.get(&stored.ring.signer().id())
            );
        }
        let names = fs::read_dir(&folder.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let keys = names
            .filter(|name| name.to_str().unwrap().starts_with("root-"))
            .count();
        assert_eq!(keys, 1, "the key of the retired root is gone");
    }

    #[test]
    fn s49_what_fails_after_the_ring_is_replaced_fails_tidying_up_and_is_made_up_for() {
        let (_dir, folder) = folder();
        let mut stored = opened(&folder);
        let (old, (next, key)) = (stored.ring.signer().id(), fresh());
        stored.keys.insert(next.id(), key);
        stored.ring = stored.ring.add(next.clone()).unwrap().ring;
        folder.save(&stored).unwrap();
        folder.tidy(&stored).unwrap();
        stored.ring = stored.ring.switch(&Default::default(), 0, 0).unwrap().ring;
        stored.ring = stored.ring.retire(&Default::default(), 0, 0).unwrap().ring;
        // In the way of `ca.pem`: what is written first after the ring.
        fs::remove_file(folder.0.join(FIRST)).unwrap();
        fs::create_dir(folder.0.join(FIRST)).unwrap();
        folder.save(&stored).unwrap();
        assert_eq!(folder.load().unwrap().unwrap().ring, stored.ring, "it is done");
        assert!(folder.tidy(&stored).is_err());
        assert!(folder.0.join(Folder::key_file(&old)).exists());
        fs::remove_dir(folder.0.join(FIRST)).unwrap();
        folder.tidy(&folder.load().unwrap().unwrap()).unwrap();
        assert!(!folder.0.join(Folder::key_file(&old)).exists());
        assert_eq!(folder.first().unwrap().unwrap().ring.signer(), &next);
    }

    #[test]
    fn s44_a_retired_root_is_asked_for_and_the_one_that_signs_gives_nothing() {
        let (_dir, folder) = folder();
        let mut stored = opened(&folder);
        let authority = Authority::open(&folder, "test", Arc::new(SystemClock), Arc::new(OsRandom)).unwrap();
        let random = &OsRandom;
        let tenant = roadstead_domain::TenantId::generate(&SystemClock, random);
        let cluster = roadstead_domain::ClusterId::generate(&SystemClock, random);
        let sign = |of: &RootId| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let request = params.serialize_request(&key).unwrap();
            let request = crate::pki::CheckedRequest::parse(request.der()).unwrap();
            authority.sign(request, tenant, cluster, Some(of))
        };
        let old = stored.ring.signer().id();
        assert!(sign(&old).is_ok());
        let (next, key) = fresh();
        stored.keys.insert(next.id(), key);
        stored.ring = stored
            .ring
            .replace_now(next.clone(), &Default::default(), 0)
            .unwrap()
            .ring;
        assert!(authority.adopt(&stored).unwrap());
        assert!(matches!(sign(&old), Err(crate::pki::PkiError::Retired)));
        assert!(sign(&next.id()).is_ok());
    }

    #[test]
    fn a_missing_key_is_damage_and_no_first_start() {
        let (_dir, folder) = folder();
        let mut stored = opened(&folder);
        let (next, key) = fresh();
        stored.ring = stored.ring.add(next.clone()).unwrap().ring;
        stored.keys.insert(next.id(), key);
        folder.save(&stored).unwrap();
        fs::remove_file(folder.0.join(Folder::key_file(&next.id()))).unwrap();
        let error = folder.load().unwrap_err();
        assert!(
            error.to_string().contains("-key.pem, which is not here"),
            "{error}"
        );
        let opened = Authority::open(&folder, "test", Arc::new(SystemClock), Arc::new(OsRandom));
        assert!(opened.is_err());
        fs::write(folder.0.join(RING), "{").unwrap();
        assert!(
            folder
                .load()
                .unwrap_err()
                .to_string()
                .contains("roots.json is damaged")
        );
    }

    #[test]
    fn a_crash_between_keys_and_ring_leaves_the_state_before() {
        let (_dir, folder) = folder();
        let stored = opened(&folder);
        let (next, key) = fresh();
        // As far as a save comes before it replaces the ring.
        folder.write(&Folder::key_file(&next.id()), &key, 0o600).unwrap();
        fs::write(folder.0.join("roots.json.new"), "half").unwrap();
        assert_eq!(folder.load().unwrap().unwrap().ring, stored.ring);
        // The next step goes through, and sweeps up.
        let mut again = stored;
        let (other, key) = fresh();
        again.ring = again.ring.add(other.clone()).unwrap().ring;
        again.keys.insert(other.id(), key);
        folder
            .write(&format!("{}.new", Folder::key_file(&next.id())), "half", 0o600)
            .unwrap();
        folder.save(&again).unwrap();
        folder.tidy(&again).unwrap();
        let names = fs::read_dir(&folder.0).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: BTreeSet<_> = names.filter(|name| name.ends_with(".new")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!folder.0.join(Folder::key_file(&next.id())).exists());
        assert_eq!(folder.load().unwrap().unwrap().ring, again.ring);
    }
}

//! RustSec advisories against Cargo.lock, offline.
//!
//! The data is a checkout of the advisory database (`crates/NAME/RUSTSEC-*.md`, TOML in a fenced block first). Its
//! place is `ROADSTEAD_ADVISORY_DB`, else `advisory-db` beside the repository or in the `shared` folder beside it.
//! Format: <https://github.com/rustsec/advisory-db/blob/main/EXAMPLE_ADVISORY.md>.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use semver::{Version, VersionReq};
use serde::Deserialize;

/// One advisory.
#[derive(Clone, Debug, Deserialize)]
pub struct Advisory {
    advisory: Header,
    #[serde(default)]
    versions: Versions,
}

#[derive(Clone, Debug, Deserialize)]
struct Header {
    id: String,
    package: String,
    date: String,
    #[serde(default)]
    withdrawn: Option<String>,
    /// `unmaintained`, `unsound` or `notice`: worth knowing, no vulnerability of its own.
    #[serde(default)]
    informational: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Versions {
    #[serde(default)]
    patched: Vec<String>,
    #[serde(default)]
    unaffected: Vec<String>,
}

/// A locked package that an advisory names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub id: String,
    pub package: String,
    pub version: String,
    /// `None` for a vulnerability.
    pub informational: Option<String>,
}

impl Advisory {
    /// Reads the TOML block of an advisory file.
    ///
    /// # Errors
    /// There is no such block, or it lacks a field.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (_, rest) = text.split_once("```toml").context("no TOML block")?;
        let (block, _) = rest.split_once("```").context("the TOML block does not end")?;
        Ok(toml::from_str(block)?)
    }

    /// Whether `version` is one that the advisory warns of.
    ///
    /// # Errors
    /// A requirement in the advisory cannot be read.
    pub fn affects(&self, version: &Version) -> anyhow::Result<bool> {
        for requirement in self.versions.patched.iter().chain(&self.versions.unaffected) {
            if VersionReq::parse(requirement)
                .with_context(|| self.advisory.id.clone())?
                .matches(version)
            {
                return Ok(false);
            }
        }
        Ok(self.advisory.withdrawn.is_none())
    }
}

/// Where the data is; `None` when this machine has none.
#[must_use]
pub fn database() -> Option<PathBuf> {
    let root = crate::root();
    let named = std::env::var_os("ROADSTEAD_ADVISORY_DB").map(PathBuf::from);
    let beside = root.parent().map(|p| p.join("advisory-db"));
    let shared = root.parent().map(|p| p.join("shared/advisory-db"));
    [named, beside, shared]
        .into_iter()
        .flatten()
        .find(|path| path.join("crates").is_dir())
}

/// Every locked package that an advisory in `database` names, and the date of the newest advisory read.
///
/// # Errors
/// The data or Cargo.lock cannot be read.
pub fn findings(database: &Path, locked: &[(String, Version)]) -> anyhow::Result<(Vec<Finding>, String)> {
    let mut found = Vec::new();
    let mut newest = String::new();
    for (name, version) in locked {
        let Ok(folder) = std::fs::read_dir(database.join("crates").join(name)) else {
            continue;
        };
        for file in folder {
            let path = file?.path();
            let advisory = Advisory::parse(&std::fs::read_to_string(&path)?)
                .with_context(|| path.display().to_string())?;
            newest = newest.max(advisory.advisory.date.clone());
            if advisory.advisory.package == *name && advisory.affects(version)? {
                found.push(Finding {
                    id: advisory.advisory.id,
                    package: name.clone(),
                    version: version.to_string(),
                    informational: advisory.advisory.informational,
                });
            }
        }
    }
    Ok((found, newest))
}

/// Names and versions in Cargo.lock.
///
/// # Errors
/// Cargo.lock cannot be read.
pub fn locked() -> anyhow::Result<Vec<(String, Version)>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: Version,
        /// Our own crates have none.
        source: Option<String>,
    }
    let lock: Lock = toml::from_str(&std::fs::read_to_string(crate::root().join("Cargo.lock"))?)?;
    Ok(lock
        .package
        .into_iter()
        .filter(|p| p.source.is_some())
        .map(|p| (p.name, p.version))
        .collect())
}

#[cfg(test)]
mod unit {
    use super::*;

    const TEXT: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2020-0001\"\npackage = \"boat\"\ndate = \"2020-01-02\"\n\
                        [versions]\npatched = [\">= 1.2.3\", \"^1.1.9\"]\nunaffected = [\"< 1.0.0\"]\n```\n# It sinks\n";

    #[test]
    fn versions_are_judged() {
        let advisory = Advisory::parse(TEXT).unwrap();
        for (version, affected) in [
            ("0.9.0", false),
            ("1.0.0", true),
            ("1.1.8", true),
            ("1.1.9", false),
            ("1.2.3", false),
        ] {
            assert_eq!(
                advisory.affects(&version.parse().unwrap()).unwrap(),
                affected,
                "{version}"
            );
        }
        assert!(Advisory::parse("# no block").is_err());
    }

    #[test]
    fn s60_a_locked_package_with_an_advisory_is_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("crates/boat")).unwrap();
        std::fs::write(folder.path().join("crates/boat/RUSTSEC-2020-0001.md"), TEXT).unwrap();
        let locked = [
            ("boat".to_owned(), Version::new(1, 0, 0)),
            ("oar".to_owned(), Version::new(1, 0, 0)),
        ];
        let (found, newest) = findings(folder.path(), &locked).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].id.as_str(), found[0].informational.as_deref()),
            ("RUSTSEC-2020-0001", None)
        );
        assert_eq!(newest, "2020-01-02");
    }
}

//! Licences, banned and doubled packages, advisories (S60).

use std::collections::{BTreeMap, BTreeSet};

use roadstead_house::{advisories, cargo, licences};
use serde_json::Value;

/// Licences that may be part of what we ship, besides our own Apache-2.0: permissive, or weak copyleft by file.
const LICENCES: [&str; 16] = [
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that must not be built into a program, and why.
const BANNED: [(&str, &str); 4] = [
    ("ring", "one TLS provider: aws-lc-rs"),
    ("openssl-sys", "one TLS provider: aws-lc-rs"),
    ("native-tls", "one TLS provider: aws-lc-rs"),
    ("rustls-pemfile", "unmaintained: rustls reads PEM itself"),
];

/// Packages of which two versions would mean two of something that must be one: pools, runtimes, certificates, types
/// that cross crates.
const SINGLE: [&str; 14] = [
    "tokio",
    "hyper",
    "http",
    "axum",
    "tonic",
    "prost",
    "reqwest",
    "rustls",
    "sqlx-core",
    "sea-orm",
    "libsqlite3-sys",
    "opentelemetry",
    "tracing-core",
    "serde_json",
];

/// Advisories that were read and do not touch us, with the reason. None today.
const ACCEPTED: [(&str, &str); 0] = [];

/// Names and versions that are built into our programs on this machine, tests left out.
fn built() -> BTreeMap<String, BTreeSet<String>> {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ])
    .unwrap();
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            found
                .entry(name.to_owned())
                .or_default()
                .insert(version.to_owned());
        }
    }
    assert!(found.len() > 100, "cargo tree printed something else: {tree}");
    found
}

#[test]
fn s60_licences_are_permissive() {
    // Packages of other platforms are neither built nor, on a machine that has only built this, here to be read.
    let version = cargo(&["-vV"]).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let arguments = [
        "metadata",
        "--format-version",
        "1",
        "--filter-platform",
        host.expect("cargo names its host"),
    ];
    let metadata: Value = serde_json::from_str(&cargo(&arguments).unwrap()).unwrap();
    assert!(metadata["packages"].as_array().unwrap().len() > 100);
    let mut refused = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        match package["license"]
            .as_str()
            .map(|expression| licences::permits(expression, &LICENCES))
        {
            Some(Ok(true)) => {}
            other => refused.push(format!("{name}: {:?} ({other:?})", package["license"])),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn s60_banned_packages_are_absent() {
    let built = built();
    for (name, reason) in BANNED {
        assert!(
            !built.contains_key(name),
            "{name} is built in ({reason}); see cargo tree --workspace -e normal,build -i {name}"
        );
    }
}

#[test]
fn packages_that_must_be_one_are_one() {
    let built = built();
    for name in SINGLE {
        if let Some(versions) = built.get(name) {
            assert!(
                versions.len() == 1,
                "{name} is built in {} versions: {versions:?}",
                versions.len()
            );
        }
    }
}

#[test]
fn s60_no_locked_package_has_an_advisory() {
    let Some(database) = advisories::database() else {
        eprintln!("no advisory data on this machine (ROADSTEAD_ADVISORY_DB): nothing was compared");
        return;
    };
    let (found, newest) = advisories::findings(&database, &advisories::locked().unwrap()).unwrap();
    eprintln!("compared with advisories whose newest for our packages is of {newest}");
    let (notices, vulnerabilities): (Vec<_>, Vec<_>) = found
        .into_iter()
        .filter(|finding| !ACCEPTED.iter().any(|(id, _)| *id == finding.id))
        .partition(|finding| finding.informational.is_some());
    for notice in notices {
        eprintln!("notice: {notice:?}");
    }
    assert!(vulnerabilities.is_empty(), "{vulnerabilities:#?}");
}

//! Who may name what: frameworks stay in their crates, dependencies point one way.

use std::collections::BTreeSet;

use roadstead_house::manifests::{Crate, crates, workspace_dependencies};
use roadstead_house::{text, tracked};

/// A framework, the crates that may name it, the crates whose tests alone may, and why.
struct Framework {
    packages: &'static [&'static str],
    crates: &'static [&'static str],
    tests: &'static [&'static str],
    reason: &'static str,
}

const FRAMEWORKS: [Framework; 11] = [
    Framework {
        packages: &["sea-orm", "sqlx"],
        crates: &["store"],
        tests: &[],
        reason: "queries are scoped in one place",
    },
    Framework {
        packages: &["sea-orm-migration"],
        crates: &["migrations", "store"],
        tests: &[],
        reason: "migrations own the schema; the store runs them",
    },
    Framework {
        packages: &["rusqlite"],
        crates: &["inbox", "engine"],
        tests: &["runtime", "link", "agent", "end-to-end"],
        reason: "the cluster agent's inbox and outbox, the engine's journal; tests look into them",
    },
    Framework {
        packages: &["async-graphql"],
        crates: &["graphql"],
        tests: &[],
        reason: "resolvers are thin",
    },
    Framework {
        packages: &["tonic", "tonic-prost", "prost", "prost-types"],
        // Exceptions: A2A has a gRPC binding, and the engine is its server; simulation's library is a test's harness.
        crates: &["contract", "fleet", "link", "engine", "simulation"],
        // telemetry's tests are an OTLP receiver; simulation and end-to-end speak to both ends of the wire.
        tests: &["telemetry", "simulation", "end-to-end", "hub", "agent"],
        reason: "the wire between hub and cluster agent has two ends",
    },
    Framework {
        packages: &["kube", "k8s-openapi"],
        crates: &[],
        tests: &[],
        reason: "the Kubernetes runtime is not built yet",
    },
    Framework {
        packages: &["vaultrs"],
        crates: &[],
        tests: &[],
        reason: "the secrets crate is not built yet",
    },
    Framework {
        packages: &["rmcp"],
        // end-to-end: the benchmarks' tool server.
        crates: &["engine", "end-to-end"],
        tests: &[],
        reason: "the engine is the MCP client",
    },
    Framework {
        packages: &[
            "opentelemetry",
            "opentelemetry_sdk",
            "opentelemetry-otlp",
            "opentelemetry-prometheus",
            "opentelemetry-proto",
            "prometheus",
            "tracing-opentelemetry",
            "tracing-appender",
        ],
        crates: &["telemetry"],
        tests: &["end-to-end", "simulation"],
        reason: "one set-up for every binary; others use what roadstead-telemetry re-exports",
    },
    Framework {
        packages: &["tracing-subscriber"],
        crates: &["telemetry", "simulation"],
        tests: &["end-to-end"],
        reason: "as above; lines of a simulation's replay carry the simulation's time",
    },
    Framework {
        packages: &["axum", "tower-http"],
        crates: &[
            "http",
            "graphql",
            "gateway",
            "login",
            "hub",
            "agent",
            "engine",
            "model-server",
            "end-to-end",
        ],
        tests: &["cli"],
        reason: "HTTP is spoken at the edges",
    },
];

/// What each crate may depend on among ours, as architecture.md §3 points, with docs/plan.md's exceptions.
const DIRECTION: [(&str, &[&str]); 25] = [
    ("contract", &[]),
    ("telemetry", &[]),
    ("domain", &["contract"]),
    ("authz", &["contract", "domain"]),
    ("migrations", &[]),
    (
        "store",
        &["contract", "domain", "authz", "migrations", "telemetry"],
    ),
    ("service", &["contract", "domain", "authz", "store", "telemetry"]),
    ("http", &["domain", "authz", "telemetry"]),
    // Edges: never each other.
    (
        "login",
        &[
            "contract",
            "domain",
            "authz",
            "store",
            "service",
            "http",
            "telemetry",
        ],
    ),
    (
        "graphql",
        &[
            "contract",
            "domain",
            "authz",
            "store",
            "service",
            "http",
            "telemetry",
        ],
    ),
    (
        "fleet",
        &["contract", "domain", "authz", "store", "service", "telemetry"],
    ),
    (
        "gateway",
        &[
            "contract",
            "domain",
            "authz",
            "store",
            "service",
            "http",
            "telemetry",
        ],
    ),
    // The one crossing of sides besides contract and telemetry: `dev` has a cluster agent in its process (docs/plan.md).
    (
        "hub",
        &[
            "contract",
            "domain",
            "authz",
            "migrations",
            "store",
            "service",
            "http",
            "login",
            "graphql",
            "fleet",
            "gateway",
            "telemetry",
            "agent",
            "processes",
        ],
    ),
    ("cli", &["contract", "telemetry"]),
    ("inbox", &["contract"]),
    ("plan", &["contract", "inbox"]),
    ("processes", &[]),
    (
        "runtime",
        &["contract", "inbox", "plan", "processes", "telemetry"],
    ),
    ("link", &["contract", "inbox", "plan", "telemetry"]),
    ("engine", &["contract", "processes", "telemetry"]),
    (
        "agent",
        &[
            "contract",
            "inbox",
            "plan",
            "processes",
            "runtime",
            "link",
            "telemetry",
        ],
    ),
    ("model-server", &[]),
    ("house", &[]),
    (
        // The fleet simulator's hub may be over its database, into which people write by use cases.
        "simulation",
        &[
            "contract", "domain", "authz", "store", "service", "fleet", "inbox", "link",
        ],
    ),
    // The benchmarks' cluster agents are inbox and link, and whole ones, in one process.
    (
        "end-to-end",
        &["model-server", "contract", "inbox", "link", "agent"],
    ),
];

/// Our crates that tests of any crate may use.
const TEST_HELPERS: [&str; 1] = ["model-server"];

fn ours(names: &BTreeSet<String>) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix("roadstead-"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn frameworks_are_named_in_their_crates_only() {
    for member in crates().unwrap() {
        for framework in &FRAMEWORKS {
            for package in framework.packages {
                let tests = framework.tests.contains(&member.name.as_str());
                let allowed = framework.crates.contains(&member.name.as_str());
                assert!(
                    allowed || !member.dependencies.contains(*package),
                    "{}: names {package}, which belongs to {:?}: {}",
                    member.folder,
                    framework.crates,
                    framework.reason
                );
                assert!(
                    allowed || tests || !member.dev_dependencies.contains(*package),
                    "{}: its tests name {package}, which belongs to {:?}: {}",
                    member.folder,
                    framework.crates,
                    framework.reason
                );
            }
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    for member in crates().unwrap() {
        let (_, allowed) = DIRECTION
            .iter()
            .find(|(name, _)| *name == member.name)
            .unwrap_or_else(|| panic!("{}: say here what it may depend on", member.folder));
        for target in ours(&member.dependencies) {
            assert!(
                allowed.contains(&target.as_str()),
                "{} may depend on {allowed:?}, found {target}: see architecture.md, \"The house\"",
                member.folder
            );
        }
    }
}

#[test]
fn tests_of_a_crate_reach_no_further_up_than_the_crate() {
    for member in crates()
        .unwrap()
        .iter()
        .filter(|c| !c.folder.starts_with("tests/"))
    {
        let allowed = DIRECTION
            .iter()
            .find(|(name, _)| *name == member.name)
            .map_or(&[][..], |(_, allowed)| *allowed);
        for target in ours(&member.dev_dependencies) {
            let known = allowed.contains(&target.as_str())
                || TEST_HELPERS.contains(&target.as_str())
                || target == member.name;
            assert!(known, "{}: its tests use {target}", member.folder);
        }
    }
}

#[test]
fn every_crate_inherits_lints_and_versions() {
    for member in crates().unwrap() {
        assert!(
            member.inherits_lints,
            "{}: `[lints] workspace = true` is missing",
            member.folder
        );
        assert!(
            member.own_versions.is_empty(),
            "{}: versions and features stand in the root Cargo.toml, but {:?} have their own",
            member.folder,
            member.own_versions
        );
    }
}

/// Named in manifests for what generated code or a feature needs, not in sources.
const USED_UNSEEN: [(&str, &str); 6] = [
    ("contract", "prost"),
    ("contract", "prost-types"),
    ("contract", "tonic-prost"),
    ("contract", "tonic"),
    // Their presence switches features on for the whole workspace.
    ("link", "tonic-prost"),
    ("fleet", "tonic-prost"),
];

fn sources(member: &Crate) -> String {
    let own = |path: &String| path.starts_with(&format!("{}/", member.folder));
    let paths = tracked(&[".rs"]).unwrap();
    paths
        .iter()
        .filter(|p| own(p))
        .filter_map(|p| text(p).unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a source speaks of a crate: in a path (`name::`), an import or an attribute's string, as a whole word.
fn names(text: &str, krate: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(krate).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + krate.len()..]);
        let whole = !before.ends_with(word) && !after.starts_with(word);
        let path = after.starts_with("::") && !before.ends_with("::") && !before.ends_with('.');
        let import = before.ends_with("use ") && (after.starts_with(';') || after.starts_with(" as "));
        whole && (path || import)
    })
}

#[test]
fn a_crate_is_named_by_its_paths() {
    for text in ["use http::Uri;", "use http;", "http::status()", "use http as h;"] {
        assert!(names(text, "http"), "{text}");
    }
    for text in [
        "http://hub",
        "self.http.get()",
        "axum::http::Uri",
        "http_body::Body",
        "x.http::<u8>()",
    ] {
        assert!(!names(text, "http"), "{text}");
    }
}

#[test]
fn no_dependency_is_unused() {
    let mut used_somewhere = BTreeSet::new();
    let mut unused = Vec::new();
    for member in crates().unwrap() {
        let text = sources(&member);
        for name in member.all() {
            used_somewhere.insert(name.clone());
            let unseen = USED_UNSEEN.contains(&(member.name.as_str(), name.as_str()));
            if !unseen && !names(&text, &name.replace('-', "_")) {
                unused.push(format!("{}: {name}", member.folder));
            }
        }
    }
    for name in workspace_dependencies().unwrap() {
        if !used_somewhere.contains(&name) {
            unused.push(format!("Cargo.toml: {name}"));
        }
    }
    assert!(
        unused.is_empty(),
        "named in a manifest and used nowhere:\n{}",
        unused.join("\n")
    );
}

#[test]
fn every_direct_dependency_is_explained() {
    let page = text("docs/dependencies.md").unwrap().unwrap();
    let missing: Vec<_> = workspace_dependencies()
        .unwrap()
        .into_iter()
        .filter(|n| !page.contains(&format!("`{n}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/dependencies.md says nothing about {missing:?}"
    );
}

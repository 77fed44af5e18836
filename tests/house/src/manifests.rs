//! The workspace's manifests as plain data.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde::Deserialize;

/// One member of the workspace.
#[derive(Clone, Debug)]
pub struct Crate {
    /// The package's name without `roadstead-`: the word used in the tables.
    pub name: String,
    /// Its folder, relative to the top.
    pub folder: String,
    /// What it is built from and with.
    pub dependencies: BTreeSet<String>,
    /// What only its tests need.
    pub dev_dependencies: BTreeSet<String>,
    /// Whether `[lints] workspace = true` stands in it.
    pub inherits_lints: bool,
    /// Dependencies that name a version or features of their own instead of the workspace's.
    pub own_versions: Vec<String>,
}

impl Crate {
    /// Normal, build and dev dependencies together.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.dependencies.union(&self.dev_dependencies)
    }
}

#[derive(Deserialize)]
struct Root {
    workspace: Workspace,
}

#[derive(Deserialize)]
struct Workspace {
    members: Vec<String>,
    dependencies: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Manifest {
    package: Package,
    #[serde(default)]
    lints: toml::Table,
    #[serde(default)]
    dependencies: toml::Table,
    #[serde(default)]
    dev_dependencies: toml::Table,
    #[serde(default)]
    build_dependencies: toml::Table,
    #[serde(default)]
    target: BTreeMap<String, Target>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Target {
    #[serde(default)]
    dependencies: toml::Table,
    #[serde(default)]
    dev_dependencies: toml::Table,
}

fn read_root() -> anyhow::Result<Workspace> {
    let text = std::fs::read_to_string(crate::root().join("Cargo.toml"))?;
    Ok(toml::from_str::<Root>(&text).context("Cargo.toml")?.workspace)
}

/// The names under `[workspace.dependencies]` that are not our own crates.
///
/// # Errors
/// The root manifest cannot be read.
pub fn workspace_dependencies() -> anyhow::Result<BTreeSet<String>> {
    Ok(read_root()?
        .dependencies
        .into_keys()
        .filter(|name| !name.starts_with("roadstead-"))
        .collect())
}

/// Every member, in the order of the root manifest.
///
/// # Errors
/// A manifest cannot be read.
pub fn crates() -> anyhow::Result<Vec<Crate>> {
    read_root()?
        .members
        .into_iter()
        .map(|folder| read(&folder).with_context(|| folder.clone()))
        .collect()
}

fn read(folder: &str) -> anyhow::Result<Crate> {
    let path = crate::root().join(folder).join("Cargo.toml");
    let manifest: Manifest = toml::from_str(&std::fs::read_to_string(path)?)?;
    let mut normal = vec![&manifest.dependencies, &manifest.build_dependencies];
    let mut dev = vec![&manifest.dev_dependencies];
    for target in manifest.target.values() {
        normal.push(&target.dependencies);
        dev.push(&target.dev_dependencies);
    }
    let inherited = |value: &toml::Value| {
        value.get("workspace").and_then(toml::Value::as_bool) == Some(true) && value.get("features").is_none()
    };
    let own_versions = normal
        .iter()
        .chain(&dev)
        .flat_map(|table| table.iter())
        .filter(|(_, value)| !inherited(value))
        .map(|(name, _)| name.clone())
        .collect();
    let names = |tables: &[&toml::Table]| {
        tables
            .iter()
            .flat_map(|t| t.keys().cloned())
            .collect::<BTreeSet<_>>()
    };
    Ok(Crate {
        name: manifest.package.name.trim_start_matches("roadstead-").to_owned(),
        folder: folder.to_owned(),
        dependencies: names(&normal),
        dev_dependencies: names(&dev),
        inherits_lints: manifest.lints.get("workspace").and_then(toml::Value::as_bool) == Some(true),
        own_versions,
    })
}

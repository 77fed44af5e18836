//! An agent from a file, without hub and cluster agent: what `run --spec` serves.

use crate::secrets::Secrets;
use anyhow::{Context as _, Result, bail};
use roadstead_contract::{
    bundle::Bundle,
    control::SecretText,
    documents::{
        Body, Document, HeaderValue, Kind, Name, Reference, SecretRef, Source, ToolServerSpec, check_costs,
        parse_files,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Reads the file's agent with everything it refers to.
///
/// # Errors
/// The file cannot be read, holds a wrong document, no agent or several, or a reference leads nowhere.
pub fn read(path: &Path) -> Result<Bundle> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    bundle(&path.display().to_string(), &text)
}

fn bundle(name: &str, text: &str) -> Result<Bundle> {
    let project: Name = "default".parse().context("the default project's name")?;
    let parsed = parse_files(&[Source { name, text }], &project).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(lines.join("\n"))
    })?;
    let unmeasured = check_costs(&parsed, |_, _| None);
    if !unmeasured.is_empty() {
        let lines: Vec<String> = unmeasured.iter().map(ToString::to_string).collect();
        bail!(lines.join("\n"));
    }
    let documents: Vec<Document> = parsed.into_iter().map(|p| p.document).collect();
    let agents: Vec<_> = documents
        .iter()
        .filter_map(|d| match &d.body {
            Body::Agent(spec) => Some((d, spec)),
            _ => None,
        })
        .collect();
    let [(document, spec)] = agents.as_slice() else {
        bail!("{name}: expected one Agent, found {}", agents.len());
    };
    let own = document.metadata.project.clone().unwrap_or(project);
    let uid = document.metadata.name.to_string();
    let find = |kind: Kind, reference: &Reference| {
        documents.iter().find(|d| {
            d.kind() == kind
                && d.metadata.name == reference.name
                && (reference.project.is_none() || d.metadata.project == reference.project)
        })
    };
    Bundle::resolve(&own, (&document.metadata.name, &uid, 1, spec), find).map_err(|dangling| {
        let lines: Vec<String> = dangling.iter().map(|d| format!("{name}: {d}")).collect();
        anyhow::anyhow!(lines.join("\n"))
    })
}

/// The environment's values of the variables that a bundle names.
#[must_use]
pub fn secrets(bundle: &Bundle) -> Secrets {
    let models = bundle.models.values().filter_map(|m| m.key.as_ref());
    let servers = bundle.tool_servers.values().flat_map(server_refs);
    let names: BTreeSet<&str> = models
        .chain(servers)
        .filter_map(|reference| match reference {
            SecretRef::Env(key) => Some(key.env.as_str()),
            SecretRef::Binding(_) => None,
        })
        .collect();
    let values: BTreeMap<String, SecretText> = names
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), SecretText::new(std::env::var(name).ok()?))))
        .collect();
    Secrets::new(values)
}

fn server_refs(spec: &ToolServerSpec) -> Vec<&SecretRef> {
    let headers = spec.http.iter().flat_map(|s| s.headers.values());
    let env = spec.stdio.iter().flat_map(|s| s.env.values());
    headers
        .chain(env)
        .filter_map(|value| match value {
            HeaderValue::Secret(reference) => Some(reference),
            HeaderValue::Text(_) => None,
        })
        .collect()
}

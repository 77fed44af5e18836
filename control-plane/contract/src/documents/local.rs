//! What the `local` runtime cannot run: valid documents that need Kubernetes or Vault.

use super::{Body, Document, HeaderValue, SecretRef};

/// A part of a document that the local runtime refuses, with the reason in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: the local runtime has no {needs}")]
pub struct BeyondLocal {
    pub path: String,
    /// What it would need.
    pub needs: &'static str,
}

/// Everything in `document` that needs more than child processes on one machine; empty: it can run.
#[must_use]
pub fn beyond_local(document: &Document) -> Vec<BeyondLocal> {
    let mut found = Vec::new();
    let mut needs = |path: String, needs| found.push(BeyondLocal { path, needs });
    match &document.body {
        Body::Agent(spec) => {
            if spec.runtime.replicas > 1 {
                needs(
                    "spec.runtime.replicas".to_owned(),
                    "replicas: it starts one process for each agent",
                );
            }
            if spec.runtime.engine.image.is_some() {
                needs("spec.runtime.engine.image".to_owned(), CONTAINERS);
            }
        }
        Body::Model(spec) => {
            if let Some(SecretRef::Binding(_)) = spec.key {
                needs("spec.key".to_owned(), BINDINGS);
            }
        }
        Body::ToolServer(spec) => {
            if spec.image.is_some() {
                needs("spec.image".to_owned(), CONTAINERS);
            }
            let headers = spec
                .http
                .iter()
                .flat_map(|s| &s.headers)
                .map(|h| ("spec.http.headers", h));
            let env = spec
                .stdio
                .iter()
                .flat_map(|s| &s.env)
                .map(|e| ("spec.stdio.env", e));
            for (path, (name, value)) in headers.chain(env) {
                if let HeaderValue::Secret(SecretRef::Binding(_)) = value {
                    needs(super::tree::join(path, &super::tree::segment(name)), BINDINGS);
                }
            }
        }
        Body::Prompt(_) => {}
    }
    found
}

const CONTAINERS: &str = "containers: use stdio, package or http, and Roadstead's own engine";
const BINDINGS: &str = "secret bindings: use {env: NAME}, read from the environment of the cluster agent";

//! What a document asks of a runtime, checked before anything is planned with it.

use crate::{Code, quantity};
use roadstead_contract::{
    bundle::Bundle,
    documents::{AgentSpec, Body, HeaderValue, ModelSpec, SecretRef, ToolServerSpec, Transport},
};
use std::collections::BTreeSet;

/// What the runtime of this cluster can do. Everything else is refused: a wish that is silently dropped would be a
/// document that says one thing and runs another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Runs container images (own engines, tool servers).
    pub images: bool,
    /// Resolves SecretBindings.
    pub secret_bindings: bool,
    /// Environment variables of the cluster agent that documents may name.
    pub environment: BTreeSet<String>,
    /// Most processes of one agent.
    pub replicas: u32,
}

impl Abilities {
    /// The local runtime: one process of Roadstead's own engine for each agent, keys from the named variables.
    /// Variables whose name begins with `ROADSTEAD_` are never offered: they configure Roadstead itself.
    #[must_use]
    pub fn local(environment: impl IntoIterator<Item = String>) -> Self {
        Self {
            images: false,
            secret_bindings: false,
            environment: environment.into_iter().filter(|name| !reserved(name)).collect(),
            replicas: 1,
        }
    }
}

fn reserved(variable: &str) -> bool {
    variable.to_ascii_uppercase().starts_with("ROADSTEAD_")
}

/// The first thing in `body` that a runtime with these abilities cannot do.
pub(crate) fn body(body: &Body, abilities: &Abilities) -> Result<(), (Code, String)> {
    match body {
        Body::Agent(spec) => agent(spec, abilities),
        Body::Model(spec) => model(spec, abilities),
        Body::ToolServer(spec) => tool_server(spec, abilities),
        Body::Prompt(_) => Ok(()),
    }
}

fn agent(spec: &AgentSpec, abilities: &Abilities) -> Result<(), (Code, String)> {
    let runtime = &spec.runtime;
    if let Some(image) = runtime.engine.image.as_ref().filter(|_| !abilities.images) {
        return unsupported(format!(
            "spec.runtime.engine.image: expected no image, because the local runtime starts Roadstead's own engine; \
             found {image:?}"
        ));
    }
    if runtime.replicas > abilities.replicas {
        return unsupported(format!(
            "spec.runtime.replicas: expected at most {}, because the local runtime runs one process for each agent; \
             found {}",
            abilities.replicas, runtime.replicas
        ));
    }
    for (path, quantities) in [
        ("requests", &runtime.resources.requests),
        ("limits", &runtime.resources.limits),
    ] {
        let cpu = quantities.cpu.as_deref().map(quantity::millicores).transpose();
        let memory = quantities.memory.as_deref().map(quantity::bytes).transpose();
        for (field, checked) in [("cpu", cpu), ("memory", memory)] {
            if let Err(error) = checked {
                return unsupported(format!("spec.runtime.resources.{path}.{field}: {error}"));
            }
        }
    }
    Ok(())
}

fn model(spec: &ModelSpec, abilities: &Abilities) -> Result<(), (Code, String)> {
    spec.key
        .as_ref()
        .map_or(Ok(()), |key| secret("spec.key", key, abilities))
}

fn tool_server(spec: &ToolServerSpec, abilities: &Abilities) -> Result<(), (Code, String)> {
    let (field, values) = match spec.transport() {
        Some(Transport::Http(http)) => ("http.headers", Some(&http.headers)),
        Some(Transport::Stdio(stdio)) => ("stdio.env", Some(&stdio.env)),
        Some(Transport::Package(_)) => ("package", None),
        Some(Transport::Image(image)) if !abilities.images => {
            return unsupported(format!(
                "spec.image: expected http, stdio or package, because the local runtime runs no containers; found \
                 the image {:?}",
                image.name
            ));
        }
        Some(Transport::Image(_)) => ("image", None),
        None => {
            return unsupported("spec: expected exactly one of http, stdio, package and image".to_owned());
        }
    };
    for (name, value) in values.into_iter().flatten() {
        if let HeaderValue::Secret(reference) = value {
            secret(&format!("spec.{field}.{name}"), reference, abilities)?;
        }
    }
    Ok(())
}

fn secret(path: &str, reference: &SecretRef, abilities: &Abilities) -> Result<(), (Code, String)> {
    match reference {
        SecretRef::Binding(_) if abilities.secret_bindings => Ok(()),
        SecretRef::Binding(binding) => unsupported(format!(
            "{path}: expected {{env: NAME}}, because the local runtime has no SecretBindings; found {{secret: {}, \
             key: …}}",
            binding.secret
        )),
        SecretRef::Env(env) if reserved(&env.env) => Err((
            Code::Environment,
            format!(
                "{path}: expected a variable of the user's own, found {:?}, which belongs to Roadstead",
                env.env
            ),
        )),
        SecretRef::Env(env) if abilities.environment.contains(&env.env) => Ok(()),
        SecretRef::Env(env) => Err((
            Code::Environment,
            format!(
                "{path}: expected a variable that this cluster agent offers ({}), found {:?}; offer it by starting \
                 the cluster agent with --env {}",
                offered(abilities),
                env.env,
                env.env
            ),
        )),
    }
}

fn offered(abilities: &Abilities) -> String {
    if abilities.environment.is_empty() {
        return "none is offered".to_owned();
    }
    let names: Vec<&str> = abilities.environment.iter().map(String::as_str).collect();
    names.join(", ")
}

fn unsupported<T>(detail: String) -> Result<T, (Code, String)> {
    Err((Code::Unsupported, detail))
}

/// The environment variables that a bundle names.
#[must_use]
pub fn environment(bundle: &Bundle) -> BTreeSet<String> {
    let keys = bundle.models.values().filter_map(|model| model.key.as_ref());
    let servers = bundle.tool_servers.values();
    let values = servers.flat_map(|server| {
        let headers = server.http.iter().flat_map(|http| http.headers.values());
        let env = server.stdio.iter().flat_map(|stdio| stdio.env.values());
        headers.chain(env).filter_map(|value| match value {
            HeaderValue::Secret(reference) => Some(reference),
            HeaderValue::Text(_) => None,
        })
    });
    keys.chain(values)
        .filter_map(|reference| match reference {
            SecretRef::Env(env) => Some(env.env.clone()),
            SecretRef::Binding(_) => None,
        })
        .collect()
}

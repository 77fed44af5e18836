//! What a document asks of a runtime, checked before anything is planned with it.

use crate::Code;
use roadstead_contract::{
    bundle::Bundle,
    documents::{Body, Document, HeaderValue, SecretRef, ToolServerSpec, beyond_local},
};
use std::collections::BTreeSet;

/// What the runtime of this cluster can do. Everything else is refused: a wish that is silently dropped would be a
/// document that says one thing and runs another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Only child processes on one machine: no images, no replicas, no SecretBindings.
    pub local: bool,
    /// Environment variables of the cluster agent that documents may name.
    pub environment: BTreeSet<String>,
    /// Programs that documents may have run beside their engines.
    pub programs: Programs,
}

/// Programs that documents may have run. Whoever writes a ToolServer, and the hub itself, has the rights of the
/// cluster agent's user with any program of its choice: so the cluster decides, and by itself it allows none (S47).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Programs {
    /// None.
    #[default]
    None,
    /// Those whose name or path is exactly one of these.
    Only(BTreeSet<String>),
    /// Whatever a document names.
    Any,
}

impl Programs {
    /// From the words of a command line, where `*` is any.
    #[must_use]
    pub fn of(named: impl IntoIterator<Item = String>) -> Self {
        let named: BTreeSet<String> = named.into_iter().collect();
        match named.is_empty() {
            true => Self::None,
            false if named.contains("*") => Self::Any,
            false => Self::Only(named),
        }
    }

    fn allow(&self, program: &str) -> bool {
        match self {
            Self::None => false,
            Self::Only(named) => named.contains(program),
            Self::Any => true,
        }
    }
}

impl Abilities {
    /// The local runtime without any program, with these variables offered to documents. Those whose name begins with `ROADSTEAD_` are
    /// never offered: they configure Roadstead itself. The one exception is [`MODEL_KEY`].
    #[must_use]
    pub fn local(environment: impl IntoIterator<Item = String>) -> Self {
        Self {
            local: true,
            environment: environment.into_iter().filter(|name| !reserved(name)).collect(),
            programs: Programs::None,
        }
    }

    /// With these programs allowed.
    #[must_use]
    pub fn with_programs(self, programs: Programs) -> Self {
        Self { programs, ..self }
    }
}

/// The key of the model that `roadstead-hub dev` is pointed at: Roadstead's name for it, but a document's to use.
pub const MODEL_KEY: &str = "ROADSTEAD_MODEL_KEY";

/// Whether a variable belongs to Roadstead itself and must not reach a document.
#[must_use]
pub fn reserved(variable: &str) -> bool {
    variable.to_ascii_uppercase().starts_with("ROADSTEAD_") && variable != MODEL_KEY
}

/// Everything in `document` that a runtime with these abilities cannot do.
pub(crate) fn document(document: &Document, abilities: &Abilities) -> Vec<(Code, String)> {
    let mut faults = Vec::new();
    if abilities.local {
        let beyond = beyond_local(document).into_iter();
        faults.extend(beyond.map(|beyond| (Code::Unsupported, beyond.to_string())));
    }
    for (path, variable) in variables(&document.body) {
        if let Some(detail) = refused(&path, variable, abilities) {
            faults.push((Code::Environment, detail));
        }
    }
    if let Some(program) = program(&document.body).filter(|program| !abilities.programs.allow(program)) {
        let allowed = match &abilities.programs {
            Programs::Only(named) => named.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            Programs::None | Programs::Any => "none".to_owned(),
        };
        faults.push((
            Code::Program,
            format!(
                "spec.stdio.command: expected a program that this cluster allows ({allowed}), found {program:?}: \
                 start the cluster agent with --allow-program {program}"
            ),
        ));
    }
    faults
}

/// The program that a document has run in the cluster.
fn program(body: &Body) -> Option<&str> {
    match body {
        Body::ToolServer(spec) => spec.stdio.as_ref()?.command.first().map(String::as_str),
        Body::Agent(_) | Body::Model(_) | Body::Prompt(_) => None,
    }
}

fn refused(path: &str, variable: &str, abilities: &Abilities) -> Option<String> {
    if reserved(variable) {
        return Some(format!(
            "{path}: expected a variable of your own, found {variable:?}, which belongs to Roadstead"
        ));
    }
    if abilities.environment.contains(variable) {
        return None;
    }
    let names: Vec<&str> = abilities.environment.iter().map(String::as_str).collect();
    let offered = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Some(format!(
        "{path}: expected a variable that the cluster agent offers to documents ({offered}), found {variable:?}: \
         start the cluster agent with --env {variable}"
    ))
}

/// The environment variables that a document names, with the place of each.
fn variables(body: &Body) -> Vec<(String, &str)> {
    match body {
        Body::Model(spec) => spec
            .key
            .iter()
            .filter_map(|key| named("spec.key".to_owned(), key))
            .collect(),
        Body::ToolServer(spec) => in_server(spec),
        Body::Agent(_) | Body::Prompt(_) => Vec::new(),
    }
}

fn in_server(spec: &ToolServerSpec) -> Vec<(String, &str)> {
    let headers = spec.http.iter().flat_map(|http| &http.headers);
    let env = spec.stdio.iter().flat_map(|stdio| &stdio.env);
    let placed = headers
        .map(|header| ("spec.http.headers", header))
        .chain(env.map(|entry| ("spec.stdio.env", entry)));
    placed
        .filter_map(|(path, (name, value))| match value {
            HeaderValue::Secret(reference) => named(format!("{path}.{name}"), reference),
            HeaderValue::Text(_) => None,
        })
        .collect()
}

fn named(path: String, reference: &SecretRef) -> Option<(String, &str)> {
    match reference {
        SecretRef::Env(env) => Some((path, &env.env)),
        SecretRef::Binding(_) => None,
    }
}

/// The environment variables that a bundle names.
#[must_use]
pub fn environment(bundle: &Bundle) -> BTreeSet<String> {
    let keys = bundle.models.values().filter_map(|model| model.key.as_ref());
    let keys = keys.filter_map(|key| named(String::new(), key));
    let servers = bundle.tool_servers.values().flat_map(in_server);
    keys.chain(servers).map(|(_, name)| name.to_owned()).collect()
}

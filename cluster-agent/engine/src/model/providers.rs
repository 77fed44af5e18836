//! From documents to models: checks what a document asks for, and makes what calls it.

use super::{
    LoadError, Model, ModelFactory, anthropic,
    call::{HttpModel, Target, Wire},
    clients::{HttpClients, parse_url},
};
use crate::secrets::Secrets;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::Url;
use roadstead_contract::{
    bundle::Bundle,
    control::SecretText,
    documents::{ModelList, ModelSpec, Provider, ReasoningEffort},
};
use std::sync::Arc;

/// The providers that are built, over one set of HTTP clients.
#[derive(Debug)]
pub struct Providers {
    clients: Arc<HttpClients>,
}

impl Providers {
    /// Providers that call through `clients`.
    #[must_use]
    pub fn new(clients: Arc<HttpClients>) -> Self {
        Self { clients }
    }
}

impl ModelFactory for Providers {
    fn load(&self, bundle: &Bundle, secrets: &Secrets) -> Result<Vec<Arc<dyn Model>>, LoadError> {
        let references = match &bundle.agent.model {
            ModelList::One(reference) => std::slice::from_ref(reference),
            ModelList::Several(list) => list,
        };
        let mut models: Vec<Arc<dyn Model>> = Vec::with_capacity(references.len());
        for reference in references {
            let name = reference.to_string();
            let spec = bundle.models.get(&name).ok_or_else(|| LoadError {
                path: "Agent: spec.model".to_owned(),
                reason: format!("expected the model {name} in the bundle, found none"),
            })?;
            models.push(Arc::new(HttpModel(Arc::new(self.target(name, spec, secrets)?))));
        }
        Ok(models)
    }
}

impl Providers {
    fn target(&self, reference: String, spec: &ModelSpec, secrets: &Secrets) -> Result<Target, LoadError> {
        let wrong = |path: &str, reason: String| LoadError {
            path: format!("Model {reference}: {path}"),
            reason,
        };
        if let Some((path, reason)) = refused_option(spec) {
            return Err(wrong(path, reason.to_owned()));
        }
        let (wire, provider, default) = match spec.provider {
            Provider::Openai => (Wire::OpenAi, "openai", "https://api.openai.com/v1"),
            Provider::OpenaiCompatible => (Wire::OpenAi, "openai_compatible", ""),
            Provider::Anthropic => (Wire::Anthropic, anthropic::NAME, "https://api.anthropic.com"),
            Provider::Ollama => (Wire::Ollama, "ollama", "http://127.0.0.1:11434"),
            Provider::AzureOpenai
            | Provider::Gemini
            | Provider::VertexGemini
            | Provider::VertexAnthropic
            | Provider::Bedrock => {
                let reason = format!(
                    "expected openai, openaiCompatible, anthropic or ollama, found {:?}",
                    spec.provider
                );
                return Err(wrong("spec.provider", reason));
            }
        };
        if spec.endpoint.is_none() && default.is_empty() {
            let reason =
                "expected the base URL of the server (http://llm.internal/v1), found none".to_owned();
            return Err(wrong("spec.endpoint", reason));
        }
        let url = endpoint(wire, spec.endpoint.as_deref().unwrap_or(default))
            .map_err(|reason| wrong("spec.endpoint", reason))?;
        let key = match &spec.key {
            Some(key) => {
                let value = secrets
                    .resolve(key)
                    .map_err(|e| wrong("spec.key", e.to_string()))?;
                // Files and variables often end with a line end that no key has.
                Some(SecretText::new(value.expose().trim().to_owned()))
            }
            None => None,
        };
        let headers = headers(wire, spec, key.as_ref()).map_err(|(path, reason)| wrong(&path, reason))?;
        Ok(Target {
            spec: spec.clone(),
            wire,
            provider,
            url,
            headers,
            key,
            clients: Arc::clone(&self.clients),
            reference,
        })
    }
}

/// Headers that the engine sets itself, or that belong in `spec.key`.
const RESERVED: [&str; 7] = [
    "authorization",
    "x-api-key",
    "proxy-authorization",
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
];

/// The first option that the provider cannot be told, with the reason: options are sent or refused, never dropped.
/// The hub refuses the same when the document is written.
fn refused_option(spec: &ModelSpec) -> Option<(&'static str, &'static str)> {
    let options = &spec.options;
    let levels = matches!(spec.provider, Provider::Anthropic | Provider::Ollama);
    if spec.provider == Provider::Anthropic && options.seed.is_some() {
        return Some((
            "spec.options.seed",
            "expected none, since anthropic has no such option, found one",
        ));
    }
    if levels && options.reasoning_effort == Some(ReasoningEffort::Minimal) {
        let reason = "expected low, medium or high, since this provider has no less, found minimal";
        return Some(("spec.options.reasoningEffort", reason));
    }
    None
}

/// The address that requests go to: the base URL with the format's own path, written as the providers' documentation
/// writes it (OpenAI's with `/v1`, Anthropic's with or without it, Ollama's without).
fn endpoint(wire: Wire, base: &str) -> Result<Url, String> {
    let mut url = parse_url(base)?;
    if url.query().is_some() {
        return Err("expected a URL without a query, found one with it".to_owned());
    }
    let base = url.path().trim_end_matches('/').to_owned();
    let path = match wire {
        Wire::OpenAi => format!("{base}/chat/completions"),
        Wire::Anthropic => format!("{}/v1/messages", base.trim_end_matches("/v1")),
        Wire::Ollama => format!("{base}/api/chat"),
    };
    url.set_path(&path);
    Ok(url)
}

/// Everything but what changes with a request. Errors are path and reason.
fn headers(wire: Wire, spec: &ModelSpec, key: Option<&SecretText>) -> Result<HeaderMap, (String, String)> {
    let mut headers = HeaderMap::new();
    for (name, value) in &spec.headers {
        let path = || format!("spec.headers.{name}");
        let parsed: HeaderName = name.parse().map_err(|_| {
            (
                path(),
                format!("expected the name of an HTTP header, found {name:?}"),
            )
        })?;
        if RESERVED.contains(&parsed.as_str()) {
            let reason = format!("expected a header that the engine does not set itself, found {parsed}");
            return Err((path(), reason));
        }
        let value = HeaderValue::from_str(value).map_err(|_| {
            (
                path(),
                "expected printable ASCII, found something else".to_owned(),
            )
        })?;
        headers.insert(parsed, value);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let accept = if wire == Wire::Ollama {
        "application/x-ndjson"
    } else {
        "text/event-stream"
    };
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    if wire == Wire::Anthropic {
        headers.insert("anthropic-version", HeaderValue::from_static(anthropic::VERSION));
    }
    if let Some(key) = key {
        let text = match wire {
            Wire::Anthropic => key.expose().to_owned(),
            Wire::OpenAi | Wire::Ollama => format!("Bearer {}", key.expose()),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            let reason = "expected a key of printable ASCII, found other characters in it".to_owned();
            ("spec.key".to_owned(), reason)
        })?;
        value.set_sensitive(true);
        let name = if wire == Wire::Anthropic {
            HeaderName::from_static("x-api-key")
        } else {
            header::AUTHORIZATION
        };
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_the_documentation_writes_them() {
        let table = [
            (Wire::OpenAi, "http://h/v1", "http://h/v1/chat/completions"),
            (Wire::OpenAi, "http://h:8/v1/", "http://h:8/v1/chat/completions"),
            (Wire::Anthropic, "https://h", "https://h/v1/messages"),
            (Wire::Anthropic, "https://h/v1", "https://h/v1/messages"),
            (Wire::Anthropic, "https://h/proxy/", "https://h/proxy/v1/messages"),
            (Wire::Ollama, "http://h:11434", "http://h:11434/api/chat"),
        ];
        for (wire, base, expected) in table {
            assert_eq!(endpoint(wire, base).unwrap().as_str(), expected);
        }
        assert!(endpoint(Wire::OpenAi, "http://h/v1?api-key=x").is_err());
    }
}

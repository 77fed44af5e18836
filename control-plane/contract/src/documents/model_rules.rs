//! Rules of `kind: Model`.

use super::{
    ModelOptions, ModelSpec, Provider, ReasoningEffort, SecretRef,
    problem::ProblemCode,
    rules::{Report, header_name, is_credential, quoted, url, variable_name},
    tree::{join, segment},
};

pub(super) fn check(spec: &ModelSpec, report: &mut Report<'_>) {
    report.not_blank("spec.model", &spec.model);
    if !spec.provider.is_available() {
        let written = report
            .node
            .get("spec")
            .and_then(|s| s.get("provider"))
            .and_then(|p| p.text());
        let found = written.unwrap_or("another").to_owned();
        let expected = "one of openai, openaiCompatible, anthropic, ollama";
        report
            .say(ProblemCode::NotAvailable, "spec.provider", expected, &found)
            .hint = Some(format!("{found} is planned and not available yet"));
    }
    match &spec.endpoint {
        Some(endpoint) => url(endpoint, "spec.endpoint", report),
        None if spec.provider == Provider::OpenaiCompatible => {
            report.missing(
                "spec.endpoint",
                "the server's base URL, which openaiCompatible needs",
            );
        }
        None => {}
    }
    let own_service =
        matches!(spec.provider, Provider::Openai | Provider::Anthropic) && spec.endpoint.is_none();
    match &spec.key {
        Some(key) => secret_ref(key, "spec.key", report),
        None if own_service => {
            report.missing(
                "spec.key",
                "a reference to the provider's key ({secret, key} or {env})",
            );
        }
        None => {}
    }
    options(spec.provider, &spec.options, report);
    for (name, value) in &spec.headers {
        let path = join("spec.headers", &segment(name));
        header_name(name, &path, report);
        header_text(value, &path, report);
        if is_credential(name) {
            report.wrong(
                &path,
                "no credential here: use spec.key",
                format!("the header {}", quoted(name)),
            );
        }
    }
}

/// A reference's inner names.
pub(super) fn secret_ref(reference: &SecretRef, path: &str, report: &mut Report<'_>) {
    match reference {
        SecretRef::Env(env) => variable_name(&env.env, &join(path, "env"), report),
        SecretRef::Binding(binding) => report.not_blank(&join(path, "key"), &binding.key),
    }
}

pub(super) fn header_text(value: &str, path: &str, report: &mut Report<'_>) {
    if value.parse::<http::HeaderValue>().is_err() {
        report.wrong(
            path,
            "a header's value, without line breaks and control characters",
            "other characters",
        );
    }
}

/// Each option that is accepted here is sent; what a provider does not know is refused.
fn options(provider: Provider, options: &ModelOptions, report: &mut Report<'_>) {
    let anthropic = provider == Provider::Anthropic;
    let hottest = if anthropic { 1.0 } else { 2.0 };
    if let Some(t) = options.temperature.filter(|t| !(0.0..=hottest).contains(t)) {
        report.wrong(
            "spec.options.temperature",
            format!("a number from 0 to {hottest}"),
            t.to_string(),
        );
    }
    if let Some(p) = options.top_p.filter(|p| *p <= 0.0 || *p > 1.0) {
        report.wrong("spec.options.topP", "a number above 0, at most 1", p.to_string());
    }
    if options.seed.is_some() && anthropic {
        report.wrong(
            "spec.options.seed",
            "no seed: anthropic has no such option",
            "a seed",
        );
    }
    if options.reasoning_effort == Some(ReasoningEffort::Minimal)
        && matches!(provider, Provider::Anthropic | Provider::Ollama)
    {
        let expected = "low, medium or high: this provider has no less";
        report.wrong("spec.options.reasoningEffort", expected, "minimal");
    }
    if options.stop.len() > 4 && matches!(provider, Provider::Openai | Provider::OpenaiCompatible) {
        report.wrong(
            "spec.options.stop",
            "at most 4 texts",
            options.stop.len().to_string(),
        );
    }
    for (i, stop) in options.stop.iter().enumerate().filter(|(_, s)| s.is_empty()) {
        report.wrong(
            &format!("spec.options.stop[{i}]"),
            "a text that is not empty",
            quoted(stop),
        );
    }
    if options.max_output_tokens == Some(0) {
        report.wrong("spec.options.maxOutputTokens", "a whole number from 1", "0");
    }
    if options.timeout.is_some_and(|t| t.get().is_zero()) {
        report.wrong("spec.options.timeout", "a duration above zero", "0s");
    }
}

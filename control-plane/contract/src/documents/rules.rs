//! What a schema cannot say of a single document: fields that depend on each other, texts with an inner form.

use super::{
    Body, Document, Metadata, PromptSpec, agent_rules, model_rules,
    problem::{Finding, ProblemCode},
    tool_server_rules,
    tree::{Node, join, segment, shorten},
};
use std::collections::BTreeSet;

/// Everything that is wrong with a document which fits its schema.
pub(super) fn check(document: &Document, node: &Node) -> Vec<Finding> {
    let mut report = Report {
        node,
        findings: Vec::new(),
    };
    metadata(&document.metadata, &mut report);
    match &document.body {
        Body::Agent(spec) => agent_rules::check(&document.metadata, spec, &mut report),
        Body::Model(spec) => model_rules::check(spec, &mut report),
        Body::ToolServer(spec) => tool_server_rules::check(spec, &mut report),
        Body::Prompt(PromptSpec { text }) => report.not_blank("spec.text", text),
    }
    report.findings
}

/// Collects findings, with the places of the document they are about.
pub(super) struct Report<'a> {
    pub(super) node: &'a Node,
    pub(super) findings: Vec<Finding>,
}

impl Report<'_> {
    pub(super) fn say(
        &mut self,
        code: ProblemCode,
        path: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> &mut Finding {
        let at = self.node.locate(path);
        self.findings.push(Finding {
            code,
            at,
            path: path.to_owned(),
            expected: expected.into(),
            found: found.into(),
            hint: None,
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// A value that its own type allows and its neighbours do not.
    pub(super) fn wrong(&mut self, path: &str, expected: impl Into<String>, found: impl Into<String>) {
        self.say(ProblemCode::WrongValue, path, expected, found);
    }

    pub(super) fn missing(&mut self, path: &str, expected: impl Into<String>) {
        self.say(ProblemCode::MissingField, path, expected, "no such field");
    }

    pub(super) fn not_blank(&mut self, path: &str, text: &str) {
        if text.trim().is_empty() {
            self.wrong(path, "a text that is not empty", quoted(text));
        }
    }

    /// Each item of a list once.
    pub(super) fn distinct<T: Ord + std::fmt::Display>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        path: impl Fn(usize) -> String,
    ) {
        let mut seen = BTreeSet::new();
        for (i, item) in items.into_iter().enumerate() {
            let shown = item.to_string();
            if !seen.insert(item) {
                self.wrong(
                    &path(i),
                    "each item once",
                    format!("{} a second time", quoted(&shown)),
                );
            }
        }
    }
}

pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shorten(text))
}

fn metadata(metadata: &Metadata, report: &mut Report<'_>) {
    labels(&metadata.labels, "metadata.labels", report);
    let size: usize = metadata.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAX_ANNOTATIONS {
        let expected = format!("at most {MAX_ANNOTATIONS} bytes of annotations");
        report.say(
            ProblemCode::TooLarge,
            "metadata.annotations",
            expected,
            format!("{size} bytes"),
        );
    }
}

/// As Kubernetes caps them, so that a document fits a custom resource.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Labels as Kubernetes has them: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>,
/// "Syntax and character set".
pub(super) fn labels(
    labels: &std::collections::BTreeMap<String, String>,
    path: &str,
    report: &mut Report<'_>,
) {
    for (key, value) in labels {
        let (prefix, name) = key
            .split_once('/')
            .map_or((None, key.as_str()), |(p, n)| (Some(p), n));
        let prefix_fits = prefix
            .is_none_or(|p| p.len() <= 253 && p.split('.').all(|part| part.parse::<super::Name>().is_ok()));
        let here = join(path, &segment(key));
        if name.is_empty() || !label_text(name) || !prefix_fits {
            let expected = "a label key: 1 to 63 letters, digits, -, _ and ., a letter or digit at both ends, after an optional DNS name and /";
            report.wrong(&here, expected, quoted(key));
        }
        if !label_text(value) {
            let expected =
                "a label value: at most 63 letters, digits, -, _ and ., a letter or digit at both ends";
            report.wrong(&here, expected, quoted(value));
        }
    }
}

fn label_text(text: &str) -> bool {
    let edge = |c: Option<&u8>| c.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// An address of a server: `http` or `https`, a host, no user information, no query and no fragment.
pub(super) fn url(text: &str, path: &str, report: &mut Report<'_>) {
    let parsed = text.parse::<http::Uri>().ok();
    let fits = parsed.as_ref().is_some_and(|uri| {
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        let host = uri.host().is_some_and(|h| !h.is_empty());
        let authority = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        scheme && host && authority && uri.query().is_none() && !text.contains('#')
    });
    if !fits {
        // What stands there may hold a credential: only its harmless beginning is repeated.
        let shown = text.split(['@', '?', '#']).next().unwrap_or_default();
        let found = if shown.len() == text.len() {
            quoted(text)
        } else {
            "another address".to_owned()
        };
        let expected = "an http or https URL without user information, query and fragment";
        report.wrong(path, expected, found);
    }
}

/// The name of an HTTP header.
pub(super) fn header_name(name: &str, path: &str, report: &mut Report<'_>) {
    if name.parse::<http::HeaderName>().is_err() {
        report.wrong(path, "the name of an HTTP header", quoted(name));
    }
}

/// Whether a header of this name carries a credential: such a header must be a reference.
pub(super) fn is_credential(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-auth-token",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The name of an environment variable (POSIX.1-2024, XBD 8.1).
pub(super) fn variable_name(name: &str, path: &str, report: &mut Report<'_>) {
    let start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !start || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
        report.wrong(
            path,
            "the name of an environment variable: letters, digits and _",
            quoted(name),
        );
    }
}

//! Rules of `kind: ToolServer`.

use super::{
    Duration, HeaderValue, ImageServer, PackageServer, StdioServer, ToolServerSpec,
    model_rules::{header_text, secret_ref},
    problem::ProblemCode,
    rules::{Report, header_name, is_credential, quoted, url, variable_name},
    tree::{join, segment},
};

pub(super) fn check(spec: &ToolServerSpec, report: &mut Report<'_>) {
    let given: Vec<&str> = [
        ("http", spec.http.is_some()),
        ("stdio", spec.stdio.is_some()),
        ("package", spec.package.is_some()),
        ("image", spec.image.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, is)| is.then_some(name))
    .collect();
    if given.len() != 1 {
        let found = if given.is_empty() {
            "none of them".to_owned()
        } else {
            given.join(" and ")
        };
        let code = if given.is_empty() {
            ProblemCode::MissingField
        } else {
            ProblemCode::WrongValue
        };
        report.say(code, "spec", "exactly one of http, stdio, package, image", found);
    }
    if let Some(http) = &spec.http {
        url(&http.url, "spec.http.url", report);
        for (name, value) in &http.headers {
            header(name, value, report);
        }
        timeout(http.timeout, "spec.http.timeout", report);
    }
    if let Some(stdio) = &spec.stdio {
        program(stdio, report);
    }
    if let Some(package) = &spec.package {
        published(package, report);
    }
    if let Some(image) = &spec.image {
        container(image, report);
    }
}

fn timeout(timeout: Option<Duration>, path: &str, report: &mut Report<'_>) {
    if timeout.is_some_and(|t| t.get().is_zero()) {
        report.wrong(path, "a duration above zero", "0s");
    }
}

fn header(name: &str, value: &HeaderValue, report: &mut Report<'_>) {
    let path = join("spec.http.headers", &segment(name));
    header_name(name, &path, report);
    match value {
        HeaderValue::Secret(reference) => secret_ref(reference, &path, report),
        HeaderValue::Text(_) if is_credential(name) => {
            // The value may be a secret and is not repeated.
            report.wrong(
                &path,
                "a reference, {secret, key} or {env}: no document holds a credential",
                "a plain text",
            );
        }
        HeaderValue::Text(text) => header_text(text, &path, report),
    }
}

fn program(stdio: &StdioServer, report: &mut Report<'_>) {
    match stdio.command.first() {
        Some(program) => report.not_blank("spec.stdio.command[0]", program),
        None => report.wrong(
            "spec.stdio.command",
            "a program and its arguments",
            "an empty list",
        ),
    }
    for (i, argument) in stdio.command.iter().enumerate().filter(|(_, a)| a.contains('\0')) {
        report.wrong(
            &format!("spec.stdio.command[{i}]"),
            "a text without NUL",
            quoted(argument),
        );
    }
    for (name, value) in &stdio.env {
        let path = join("spec.stdio.env", &segment(name));
        variable_name(name, &path, report);
        match value {
            HeaderValue::Secret(reference) => secret_ref(reference, &path, report),
            HeaderValue::Text(text) if text.contains('\0') => {
                report.wrong(&path, "a text without NUL", "a text with NUL");
            }
            HeaderValue::Text(_) => {}
        }
    }
    timeout(stdio.timeout, "spec.stdio.timeout", report);
}

fn published(package: &PackageServer, report: &mut Report<'_>) {
    match (&package.npx, &package.uvx) {
        (Some(npx), None) => pinned(
            npx,
            &["@"],
            "spec.package.npx",
            "an npm package with its exact version (name@1.2.3)",
            report,
        ),
        (None, Some(uvx)) => {
            pinned(
                uvx,
                &["==", "@"],
                "spec.package.uvx",
                "a PyPI package with its exact version (name==1.2.3)",
                report,
            );
        }
        (Some(_), Some(_)) => report.wrong("spec.package", "exactly one of npx, uvx", "npx and uvx"),
        (None, None) => report.missing("spec.package", "exactly one of npx, uvx"),
    }
}

/// A package that moves by itself is another program tomorrow: ranges and tags are refused.
fn pinned(text: &str, separators: &[&str], path: &str, expected: &str, report: &mut Report<'_>) {
    let split = separators.iter().find_map(|s| text.rsplit_once(s));
    let fits = split.is_some_and(|(name, version)| {
        let name_fits = !name.is_empty()
            && name
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"@/._-[],".contains(&c))
            && !name.starts_with('-');
        let version_fits = version.starts_with(|c: char| c.is_ascii_digit())
            && version
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b".+-!".contains(&c))
            && !version.split('.').any(|part| part == "x");
        name_fits && version_fits
    });
    if !fits {
        report.wrong(path, expected, quoted(text));
    }
}

fn container(image: &ImageServer, report: &mut Report<'_>) {
    image_name(&image.name, "spec.image.name", report);
    if image.port == 0 {
        report.wrong("spec.image.port", "a whole number from 1 to 65535", "0");
    }
    if !image.path.starts_with('/') {
        report.wrong(
            "spec.image.path",
            "a path that begins with /",
            quoted(&image.path),
        );
    }
}

/// An image by digest (S55): `name[:tag]@sha256:` and 64 hexadecimal digits.
pub(super) fn image_name(name: &str, path: &str, report: &mut Report<'_>) {
    let fits = name.split_once("@sha256:").is_some_and(|(name, digest)| {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        !name.is_empty()
            && !name.contains(char::is_whitespace)
            && digest.len() == 64
            && digest.bytes().all(hex)
    });
    if !fits {
        report.wrong(
            path,
            "an image by digest (registry.example.com/name:tag@sha256:…)",
            quoted(name),
        );
    }
}

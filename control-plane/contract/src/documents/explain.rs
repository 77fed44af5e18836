//! A field of a kind in words, from its schema: for `roadstead explain agent.spec.limits`.

use super::{
    Kind,
    problem::nearest,
    schema::{alternatives, choices, description, expectation, is_scalar, resolved, schema},
    tree::shorten,
};
use serde_json::Value;
use std::fmt::Write as _;

/// A path that leads to no field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found:?}{}", .hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct ExplainError {
    /// The part that was understood.
    pub path: String,
    pub expected: String,
    pub found: String,
    pub hint: Option<String>,
}

/// Text about `kind`, `kind.field`, `kind.field.field`…; the kind in any case, singular or plural.
///
/// # Errors
/// The step of the path that is not there, with what could stand there.
pub fn explain(path: &str) -> Result<String, ExplainError> {
    let mut steps = path
        .split('.')
        .map(|step| step.split('[').next().unwrap_or_default());
    let first = steps.next().unwrap_or_default();
    let kind = kind_named(first).ok_or_else(|| {
        let names = Kind::ALL.map(Kind::as_str);
        ExplainError {
            path: String::new(),
            expected: format!("a kind, one of {}", names.join(", ")),
            found: shorten(first),
            hint: nearest(first, names),
        }
    })?;
    let root = schema(kind);
    let mut at = (root, root, kind.as_str().to_owned(), true);
    for step in steps.filter(|s| !s.is_empty()) {
        at = below(root, at.1, &at.2, step)?;
    }
    Ok(page(root, kind, &at))
}

/// The kind that a person means: `agent`, `Agents`, `toolserver`.
fn kind_named(text: &str) -> Option<Kind> {
    let lower = text.to_lowercase();
    let singular = lower.strip_suffix('s').unwrap_or(&lower);
    Kind::ALL
        .into_iter()
        .find(|k| k.as_str().to_lowercase() == singular)
}

/// The field as its parent says it, what it refers to, its path, and whether it must be given.
type Place<'a> = (&'a Value, &'a Value, String, bool);

fn below<'a>(root: &'a Value, parent: &'a Value, path: &str, step: &str) -> Result<Place<'a>, ExplainError> {
    let mut known: Vec<&str> = Vec::new();
    for map in maps(root, parent) {
        let Some(fields) = map.get("properties").and_then(Value::as_object) else {
            if let Some(any) = map.get("additionalProperties").filter(|a| a.is_object()) {
                return Ok((any, any, format!("{path}.{step}"), false));
            }
            continue;
        };
        if let Some((name, field)) = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(step)) {
            let required = map.get("required").and_then(Value::as_array);
            let must = required.is_some_and(|r| r.iter().any(|v| v == name));
            return Ok((field, field, format!("{path}.{name}"), must));
        }
        known.extend(fields.keys().map(String::as_str));
    }
    let expected = if known.is_empty() {
        "no further field".to_owned()
    } else {
        format!("one of {}", known.join(", "))
    };
    Err(ExplainError {
        path: path.to_owned(),
        expected,
        found: shorten(step),
        hint: nearest(step, known),
    })
}

/// The mappings that a schema may be, through references, choices and lists.
fn maps<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let mut found = Vec::new();
    for (target, name) in alternatives(root, schema) {
        if name.is_some_and(is_scalar) {
            continue;
        }
        match target.get("items") {
            Some(items) => found.extend(maps(root, items)),
            None if target.get("type").is_some_and(|t| t == "object") => found.push(target),
            None => {}
        }
    }
    found
}

fn page(root: &Value, kind: Kind, (field, _, path, required): &Place<'_>) -> String {
    let mut text = format!("{path}\n");
    let target = resolved(root, field).0;
    let own = description(field);
    let own = if own.is_empty() && *path == kind.as_str() {
        description(resolved(root, &root["properties"]["spec"]).0)
    } else {
        own
    };
    for about in [own, description(target)] {
        if !about.is_empty() && !text.contains(about) {
            let _ = writeln!(text, "  {}", about.replace('\n', "\n  "));
        }
    }
    let _ = writeln!(text, "\n  expects   {}", kind_of_value(root, field));
    if *path != kind.as_str() {
        let _ = writeln!(text, "  required  {}", if *required { "yes" } else { "no" });
    }
    if let Some(default) = default_of(field) {
        let _ = writeln!(text, "  default   {default}");
    }
    let listed: Vec<_> = choices(target);
    if listed.iter().any(|(_, about)| !about.is_empty()) {
        text.push_str("\nvalues\n");
        for (value, about) in listed {
            let _ = writeln!(text, "  {value:<20} {}", first_sentence(about));
        }
    }
    for map in maps(root, field) {
        fields(root, map, &mut text);
    }
    text
}

fn fields(root: &Value, map: &Value, text: &mut String) {
    let Some(properties) = map.get("properties").and_then(Value::as_object) else {
        return;
    };
    text.push_str("\nfields\n");
    let required = map.get("required").and_then(Value::as_array);
    for (name, field) in properties {
        let must = required.is_some_and(|r| r.iter().any(|v| v == name));
        let own = description(field);
        let about = [own, description(resolved(root, field).0)]
            .into_iter()
            .find(|text| !text.is_empty());
        let about = about.map_or_else(
            || expectation(root, field),
            |text| first_sentence(text).to_owned(),
        );
        let default = default_of(field).map(|d| format!(" [{d}]")).unwrap_or_default();
        let mark = if must { " (required)" } else { "" };
        let _ = writeln!(text, "  {name:<20} {about}{mark}{default}");
    }
}

fn kind_of_value(root: &Value, field: &Value) -> String {
    let named = maps(root, field)
        .iter()
        .any(|map| map.get("properties").is_some());
    let plain = named && alternatives(root, field).len() == 1;
    match resolved(root, field).0.get("type").and_then(Value::as_str) {
        Some("object") if plain => "a mapping".to_owned(),
        Some("array") if plain => "a list of mappings".to_owned(),
        _ => expectation(root, field),
    }
}

/// A default worth showing: not an empty mapping.
fn default_of(field: &Value) -> Option<String> {
    let default = field.get("default")?;
    let empty = default.as_object().is_some_and(serde_json::Map::is_empty);
    (!empty).then(|| default.to_string())
}

fn first_sentence(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(first, _)| first)
}

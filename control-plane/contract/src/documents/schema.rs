//! JSON Schema of each kind, made from the types; the truth that files, editor and [`super::check`] share.

use super::{API_VERSION, AgentSpec, Kind, Metadata, ModelSpec, PromptSpec, ToolServerSpec};
use schemars::{
    Schema, SchemaGenerator,
    generate::SchemaSettings,
    json_schema,
    transform::{RecursiveTransform, Transform},
};
use serde_json::Value;
use std::sync::OnceLock;

/// The schema of a kind (JSON Schema 2020-12), made once per process.
#[must_use]
pub fn schema(kind: Kind) -> &'static Value {
    static SCHEMAS: OnceLock<[Value; 4]> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| Kind::ALL.map(generate));
    let index = Kind::ALL.iter().position(|k| *k == kind);
    &schemas[index.expect("Kind::ALL holds every kind")]
}

fn generate(kind: Kind) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .for_deserialize()
        .with_transform(RecursiveTransform(without_null as fn(&mut Schema)))
        .into_generator();
    let metadata = generator.subschema_for::<Metadata>();
    let spec = spec_of(kind, &mut generator);
    let mut root = json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.as_str(),
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string", "const": API_VERSION,
                "description": "The version of the format; in a file, later documents may leave it out."},
            "kind": {"type": "string", "const": kind.as_str(), "description": "The kind of document."},
            "metadata": metadata,
            "spec": spec,
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
    });
    let definitions = generator.take_definitions(true);
    RecursiveTransform(without_null as fn(&mut Schema)).transform(&mut root);
    root.insert("$defs".to_owned(), Value::Object(definitions));
    root.to_value()
}

fn spec_of(kind: Kind, generator: &mut SchemaGenerator) -> Schema {
    match kind {
        Kind::Agent => generator.subschema_for::<AgentSpec>(),
        Kind::Model => generator.subschema_for::<ModelSpec>(),
        Kind::ToolServer => generator.subschema_for::<ToolServerSpec>(),
        Kind::Prompt => generator.subschema_for::<PromptSpec>(),
    }
}

/// A field that is not given is left out: `null` is not another way to say so.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|t| t != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(variants)) = schema.get_mut("anyOf") {
        variants.retain(|v| v.get("type").is_none_or(|t| t != "null"));
        if let [Value::Object(one)] = variants.as_slice() {
            let one = one.clone();
            schema.remove("anyOf");
            for (key, value) in one {
                schema.ensure_object().entry(key).or_insert(value);
            }
        }
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Object(defaults)) = schema.get_mut("default") {
        defaults.retain(|_, value| !value.is_null());
    }
}

/// The schema that `$ref` points to, with its name; `schema` itself where it is no reference.
pub(super) fn resolved<'a>(root: &'a Value, schema: &'a Value) -> (&'a Value, Option<&'a str>) {
    let name = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix("#/$defs/"));
    match name.and_then(|name| root.get("$defs")?.get(name).map(|s| (s, name))) {
        Some((target, name)) => (target, Some(name)),
        None => (schema, None),
    }
}

/// The alternatives of a schema, references and nested `anyOf` followed: one where there is no choice.
pub(super) fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> Vec<(&'a Value, Option<&'a str>)> {
    let (target, name) = resolved(root, schema);
    if name.is_some_and(is_scalar) {
        return vec![(target, name)];
    }
    match target.get("anyOf").and_then(Value::as_array) {
        Some(variants) => variants.iter().flat_map(|v| alternatives(root, v)).collect(),
        None => vec![(target, name)],
    }
}

/// Whether a definition is a text form with a parser of its own.
pub(super) fn is_scalar(name: &str) -> bool {
    matches!(
        name,
        "Name" | "Reference" | "Duration" | "Count" | "Decimal" | "Currency" | "Money" | "Quantity"
    )
}

/// The texts that a schema allows, where it lists them, each with its description.
pub(super) fn choices(schema: &Value) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    if let Some(one) = schema.get("const").and_then(Value::as_str) {
        found.push((one, description(schema)));
    }
    for text in schema.get("enum").and_then(Value::as_array).into_iter().flatten() {
        found.extend(text.as_str().map(|t| (t, "")));
    }
    for variant in schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        found.extend(choices(variant));
    }
    found
}

/// A schema's description; empty where it has none.
pub(super) fn description(schema: &Value) -> &str {
    schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// What a schema expects, in words for a message.
pub(super) fn expectation(root: &Value, schema: &Value) -> String {
    let words: Vec<String> = alternatives(root, schema)
        .into_iter()
        .map(|(target, name)| match name {
            Some(name) if is_scalar(name) => description(target).to_owned(),
            _ => one_expectation(root, target),
        })
        .collect();
    words.join(", or ")
}

fn one_expectation(root: &Value, schema: &Value) -> String {
    let choices = choices(schema);
    if !choices.is_empty() {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        return if names.len() == 1 {
            names[0].to_owned()
        } else {
            format!("one of {}", names.join(", "))
        };
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => "a text".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some("number") => "a number".to_owned(),
        Some("array") => match schema.get("items") {
            Some(items) => format!("a list, each item {}", expectation(root, items)),
            None => "a list".to_owned(),
        },
        Some("object") => match schema.get("properties").and_then(Value::as_object) {
            Some(fields) => {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                format!("a mapping with {}", names.join(", "))
            }
            None => match schema.get("additionalProperties").filter(|a| a.is_object()) {
                Some(any) => format!("a mapping, each value {}", expectation(root, any)),
                None => "a mapping".to_owned(),
            },
        },
        _ => "any value".to_owned(),
    }
}

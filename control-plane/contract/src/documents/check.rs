//! The walk over a document with its schema: reports every unknown field, wrong type, missing field and bad value.
//!
//! It is driven by the schema, so a field added to a type is checked without a line here. What a schema cannot say is
//! in [`super::rules`].

use super::{
    Count, Currency, Decimal, Duration, Kind, Money, Name, Quantity, Reference, ScalarError,
    problem::{Finding, ProblemCode, nearest},
    schema::{alternatives, choices, expectation, is_scalar, resolved},
    tree::{Node, Position, Value, join, segment, shorten},
};
use serde_json::Value as Json;

/// Fields that people know from the design and that do not exist yet.
const LATER: [(Kind, &str); 2] = [(Kind::Agent, "spec.skills"), (Kind::Agent, "spec.memory")];

/// Everything of `node` that does not fit the schema of `kind`.
pub(super) fn check(kind: Kind, node: &Node) -> Vec<Finding> {
    let root = super::schema::schema(kind);
    let mut walk = Walk {
        root,
        kind,
        findings: Vec::new(),
    };
    walk.node(root, None, node, "");
    walk.findings
}

struct Walk<'a> {
    root: &'a Json,
    kind: Kind,
    findings: Vec<Finding>,
}

impl Walk<'_> {
    fn report(
        &mut self,
        code: ProblemCode,
        at: Option<Position>,
        path: &str,
        expected: String,
        found: String,
    ) {
        self.findings.push(Finding {
            code,
            at,
            path: path.to_owned(),
            expected,
            found,
            hint: None,
        });
    }

    fn hint(&mut self, hint: Option<String>) {
        if let Some(finding) = self.findings.last_mut() {
            finding.hint = hint;
        }
    }

    fn value(&mut self, schema: &Json, node: &Node, path: &str) {
        let all = alternatives(self.root, schema);
        let mut fitting: Vec<_> = all.iter().filter(|(s, name)| fits(s, *name, node)).collect();
        if fitting.len() > 1 {
            // Several mappings: the one that shares most fields with what stands there is meant.
            fitting.sort_by_key(|(s, _)| std::cmp::Reverse(shared_fields(s, node)));
        }
        match fitting.first() {
            Some((target, name)) => self.node(target, *name, node, path),
            None => self.wrong_type(schema, node, path),
        }
    }

    fn wrong_type(&mut self, schema: &Json, node: &Node, path: &str) {
        let expected = expectation(self.root, schema);
        // Where a reference to a secret belongs, people paste the secret: it is not repeated.
        let secret = resolved(self.root, schema).1 == Some("SecretRef");
        let found = match &node.value {
            Value::Text { .. } | Value::Number(..) if secret => "a value".to_owned(),
            _ => node.describe(),
        };
        self.report(ProblemCode::WrongType, node.at, path, expected, found);
        if secret {
            return self.hint(Some(
                "a document refers to a secret and never holds one".to_owned(),
            ));
        }
        let wants = |kind: &str| {
            alternatives(self.root, schema).iter().any(|(s, name)| {
                s.get("type").is_some_and(|t| t == kind) || (kind == "string" && name.is_some_and(is_scalar))
            })
        };
        let hint = match &node.value {
            Value::Number(_, written) if wants("string") => Some(format!("put it in quotes: \"{written}\"")),
            Value::Bool(b) if wants("string") => Some(format!("put it in quotes: \"{b}\"")),
            Value::Text { text, .. } if wants("boolean") && is_yes_or_no(text) => {
                Some("YAML 1.2 knows only true and false".to_owned())
            }
            Value::Text { text, .. }
                if (wants("integer") || wants("number")) && text.parse::<f64>().is_ok() =>
            {
                Some("remove the quotes".to_owned())
            }
            Value::Null => Some("leave the field out, or give it a value".to_owned()),
            _ => None,
        };
        self.hint(hint);
    }

    fn node(&mut self, schema: &Json, name: Option<&str>, node: &Node, path: &str) {
        if let Some(name) = name.filter(|n| is_scalar(n)) {
            return self.scalar(name, schema, node, path);
        }
        match &node.value {
            Value::Text { text, .. } => self.text(schema, text, node, path),
            Value::Number(number, _) => self.number(schema, number, node, path),
            Value::List(items) => {
                if let Some(item_schema) = schema.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.value(item_schema, item, &format!("{path}[{i}]"));
                    }
                }
            }
            Value::Map(_) => self.map(schema, node, path),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn text(&mut self, schema: &Json, text: &str, node: &Node, path: &str) {
        let choices = choices(schema);
        if choices.is_empty() || choices.iter().any(|(choice, _)| *choice == text) {
            return;
        }
        let expected = expectation(self.root, schema);
        let found = format!("{:?}", shorten(text));
        self.report(ProblemCode::WrongValue, node.at, path, expected, found);
        self.hint(nearest(text, choices.into_iter().map(|(choice, _)| choice)));
    }

    fn number(&mut self, schema: &Json, number: &serde_json::Number, node: &Node, path: &str) {
        let limit = |key: &str| schema.get(key).and_then(Json::as_u64);
        let most = limit("maximum").or(match schema.get("format").and_then(Json::as_str) {
            Some("uint8") => Some(u64::from(u8::MAX)),
            Some("uint16") => Some(u64::from(u16::MAX)),
            Some("uint32") => Some(u64::from(u32::MAX)),
            Some("uint64") => Some(u64::MAX),
            _ => None,
        });
        let Some(most) = most else { return };
        let least = limit("minimum").unwrap_or(0);
        if number.as_u64().is_none_or(|n| n < least || n > most) {
            let expected = format!("a whole number from {least} to {most}");
            self.report(
                ProblemCode::WrongValue,
                node.at,
                path,
                expected,
                number.to_string(),
            );
        }
    }

    fn map(&mut self, schema: &Json, node: &Node, path: &str) {
        let Value::Map(entries) = &node.value else { return };
        let fields = schema.get("properties").and_then(Json::as_object);
        for entry in entries {
            let here = join(path, &segment(&entry.key));
            match (
                fields.and_then(|f| f.get(&entry.key)),
                schema.get("additionalProperties"),
            ) {
                (Some(field), _) => self.value(field, &entry.value, &here),
                (None, Some(Json::Bool(false))) => {
                    let known = fields
                        .map(|f| f.keys().map(String::as_str).collect())
                        .unwrap_or_default();
                    self.unknown(&entry.key, entry.at.or(node.at), &here, known);
                }
                (None, Some(any)) => self.value(any, &entry.value, &here),
                (None, None) => {}
            }
        }
        let required = schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten();
        for name in required.filter_map(Json::as_str) {
            if !entries.iter().any(|e| e.key == name) {
                let field = fields.and_then(|f| f.get(name)).unwrap_or(&Json::Bool(true));
                let expected = expectation(self.root, field);
                let here = join(path, name);
                self.report(
                    ProblemCode::MissingField,
                    node.at,
                    &here,
                    expected,
                    "no such field".to_owned(),
                );
            }
        }
    }

    fn unknown(&mut self, key: &str, at: Option<Position>, path: &str, known: Vec<&str>) {
        if LATER.contains(&(self.kind, path)) {
            let expected = "no such field yet".to_owned();
            self.report(ProblemCode::NotAvailable, at, path, expected, format!("{key:?}"));
            return self.hint(Some(format!(
                "{key} is planned and not available yet; leave it out"
            )));
        }
        let expected = if known.len() == 1 {
            known[0].to_owned()
        } else {
            format!("one of {}", known.join(", "))
        };
        let found = format!("the unknown field {:?}", shorten(key));
        self.report(ProblemCode::UnknownField, at, path, expected, found);
        self.hint(nearest(key, known));
    }

    fn scalar(&mut self, name: &str, schema: &Json, node: &Node, path: &str) {
        let whole = match &node.value {
            Value::Number(number, _) => number.as_u64().is_some_and(|n| i64::try_from(n).is_ok()),
            _ => false,
        };
        let text = match (&node.value, name) {
            (Value::Text { text, .. }, _) => text,
            (Value::Number(..), "Count" | "Quantity") if whole => return,
            _ => return self.wrong_type(schema, node, path),
        };
        let parsed: Result<(), ScalarError> = match name {
            "Name" => text.parse::<Name>().map(drop),
            "Reference" => text.parse::<Reference>().map(drop),
            "Duration" => text.parse::<Duration>().map(drop),
            "Count" => text.parse::<Count>().map(drop),
            "Decimal" => text.parse::<Decimal>().map(drop),
            "Currency" => text.parse::<Currency>().map(drop),
            "Money" => text.parse::<Money>().map(drop),
            "Quantity" => text.parse::<Quantity>().map(drop),
            _ => Ok(()),
        };
        if let Err(error) = parsed {
            self.report(
                ProblemCode::WrongValue,
                node.at,
                path,
                error.expected.into_owned(),
                error.found,
            );
        }
    }
}

fn is_yes_or_no(text: &str) -> bool {
    matches!(
        text.to_lowercase().as_str(),
        "yes" | "no" | "on" | "off" | "y" | "n"
    )
}

/// Whether the value has the JSON type of the schema; what it holds is looked at later.
fn fits(schema: &Json, name: Option<&str>, node: &Node) -> bool {
    if name.is_some_and(is_scalar) {
        let number = matches!(name, Some("Count" | "Quantity")) && matches!(node.value, Value::Number(..));
        return number || matches!(node.value, Value::Text { .. });
    }
    let types = match schema.get("type") {
        Some(Json::String(one)) => vec![one.as_str()],
        Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
        _ if !choices(schema).is_empty() => vec!["string"],
        _ => return true,
    };
    types.into_iter().any(|t| match (&node.value, t) {
        (Value::Text { .. }, "string")
        | (Value::Bool(_), "boolean")
        | (Value::Number(..), "number")
        | (Value::List(_), "array")
        | (Value::Map(_), "object") => true,
        (Value::Number(number, _), "integer") => number.is_u64() || number.is_i64(),
        _ => false,
    })
}

fn shared_fields(schema: &Json, node: &Node) -> usize {
    let (Value::Map(entries), Some(fields)) =
        (&node.value, schema.get("properties").and_then(Json::as_object))
    else {
        return 0;
    };
    entries.iter().filter(|e| fields.contains_key(&e.key)).count()
}

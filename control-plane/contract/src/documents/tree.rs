//! A document as it was written: every value with its place, keys in their order.
//!
//! YAML and JSON end here before anything looks at types, so that one walk reports every problem with its line.

use serde_json::{Map, Number, Value as Json};

/// Deepest nesting of a document. The kinds need 8; an output schema of people's own may need more.
pub(super) const MAX_DEPTH: usize = 64;
/// Most values (keys not counted) in one set of documents: bounds memory at about 15 MB.
pub(super) const MAX_NODES: usize = 50_000;

/// Longest key of a mapping, in bytes. Every path to a value below it repeats it.
pub(super) const MAX_KEY: usize = 256;

/// A place in a text: both count from 1; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// A value and where it begins; `at` is `None` when it did not come from a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub at: Option<Position>,
    pub value: Value,
}

/// What stands there. `Number` and `Bool` keep the author's spelling for messages.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number, Box<str>),
    /// `block`: written with `|` or `>`, so that `at` is its first line.
    Text {
        text: String,
        block: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its place, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub at: Option<Position>,
    pub value: Node,
}

impl Node {
    /// The value under `key`, where this is a map that has it.
    #[must_use]
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// The text, where this is one.
    #[must_use]
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The same as JSON, keys in their order.
    #[must_use]
    pub(super) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Number(number, _) => Json::Number(number.clone()),
            Value::Text { text, .. } => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                let pairs = entries.iter().map(|e| (e.key.clone(), e.value.to_json()));
                Json::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// A tree without places.
    ///
    /// # Errors
    /// The limit that was passed, in words.
    pub(super) fn from_json(json: &Json, budget: &mut usize) -> Result<Self, String> {
        Self::from_json_at(json, budget, 0)
    }

    fn from_json_at(json: &Json, budget: &mut usize, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err(format!("at most {MAX_DEPTH} levels of nesting"));
        }
        *budget = budget
            .checked_sub(1)
            .ok_or_else(|| format!("at most {MAX_NODES} values in one set"))?;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(number) => Value::Number(number.clone(), number.to_string().into()),
            Json::String(text) => Value::Text {
                text: text.clone(),
                block: false,
            },
            Json::Array(items) => {
                let nodes = items
                    .iter()
                    .map(|item| Self::from_json_at(item, budget, depth + 1));
                Value::List(nodes.collect::<Result<_, _>>()?)
            }
            Json::Object(map) => {
                let entries = map.iter().map(|(key, value)| {
                    if key.len() > MAX_KEY {
                        return Err(format!("at most {MAX_KEY} bytes in one key"));
                    }
                    Ok(Entry {
                        key: key.clone(),
                        at: None,
                        value: Self::from_json_at(value, budget, depth + 1)?,
                    })
                });
                Value::Map(entries.collect::<Result<_, String>>()?)
            }
        };
        Ok(Self { at: None, value })
    }

    /// Where the value at `path` (`spec.tools[0].allow`) begins; of its nearest ancestor if it is not there.
    #[must_use]
    pub(super) fn locate(&self, path: &str) -> Option<Position> {
        let deeper = match &self.value {
            _ if path.is_empty() => None,
            Value::Map(entries) => entries.iter().find_map(|entry| {
                let rest = strip(path, &segment(&entry.key))?;
                entry.value.locate(rest)
            }),
            Value::List(items) => items.iter().enumerate().find_map(|(i, item)| {
                let rest = strip(path, &format!("[{i}]"))?;
                item.locate(rest)
            }),
            _ => None,
        };
        deeper.or(self.at)
    }

    /// What stands here, for a message: kind and value, shortened.
    #[must_use]
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing (null)".to_owned(),
            Value::Bool(b) => format!("{b}"),
            Value::Number(_, written) => format!("the number {}", shorten(written)),
            Value::Text { text, .. } => format!("the text {:?}", shorten(text)),
            Value::List(items) if items.is_empty() => "an empty list".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// At most 80 characters of `text`.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A key as a step of a path: `name`, or `["a.key"]` where the key has other characters.
#[must_use]
pub(super) fn segment(key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
    if plain {
        key.to_owned()
    } else {
        format!("[{:?}]", shorten(key))
    }
}

/// `path` joined with a further step.
#[must_use]
pub(super) fn join(path: &str, step: &str) -> String {
    if path.is_empty() || step.starts_with('[') {
        format!("{path}{step}")
    } else {
        format!("{path}.{step}")
    }
}

fn strip<'a>(path: &'a str, step: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(step)?;
    if rest.is_empty() || rest.starts_with('[') {
        Some(rest)
    } else {
        rest.strip_prefix('.')
    }
}

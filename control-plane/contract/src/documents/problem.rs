//! What is wrong with a document: where, what was expected, what was found.

use super::tree::{Position, shorten};
use serde::Serialize;
use std::fmt;

/// Most problems reported of one set; the rest is counted.
pub const MAX_PROBLEMS: usize = 100;

/// The sort of a problem, stable for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemCode {
    /// Not YAML or JSON, or a YAML feature that documents do not have.
    Syntax,
    /// Too large, too deep, too many.
    TooLarge,
    UnknownKind,
    UnknownField,
    MissingField,
    WrongType,
    /// The right type, a value that is not one of those allowed.
    WrongValue,
    DuplicateKey,
    DuplicateDocument,
    /// A reference to a document that is not there.
    Dangling,
    /// Known, and not built yet.
    NotAvailable,
    Template,
}

/// One problem of one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub code: ProblemCode,
    /// The file or source name as the caller gave it.
    pub file: String,
    /// `None` when the document did not come from a text.
    #[serde(flatten)]
    pub at: Option<Position>,
    /// Index of the document among those given, over all files; `None` when a file as a whole is meant.
    pub document: Option<usize>,
    /// Path in the document (`spec.tools[0].allow`); empty for the document itself.
    pub path: String,
    pub expected: String,
    pub found: String,
    /// What to do, where that is not plain from the rest.
    pub hint: Option<String>,
}

impl Problem {
    /// The sentence without the place: `expected …, found … (…)`.
    #[must_use]
    pub fn message(&self) -> String {
        let hint = self.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        format!("expected {}, found {}{hint}", self.expected, self.found)
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: path: expected …, found … (hint)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(at) = self.at {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message())
    }
}

impl std::error::Error for Problem {}

/// A problem before file and document are known.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) code: ProblemCode,
    pub(super) at: Option<Position>,
    pub(super) path: String,
    pub(super) expected: String,
    pub(super) found: String,
    pub(super) hint: Option<String>,
}

impl Finding {
    pub(super) fn in_file(self, file: &str, document: Option<usize>) -> Problem {
        Problem {
            code: self.code,
            file: file.to_owned(),
            at: self.at,
            document,
            path: self.path,
            expected: self.expected,
            found: self.found,
            hint: self.hint,
        }
    }
}

/// `did you mean x?`: the known name nearest to `found`, if one is near enough to be meant.
pub(super) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let found_lower = shorten(found).to_lowercase();
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&found_lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| {
            *distance <= 1 + name.chars().count() / 4 && *distance < name.chars().count()
        })
        .min()
        .map(|(_, name)| format!("did you mean {name}?"))
}

//! From texts and JSON values to documents, or to everything that is wrong with them.

use super::{
    API_VERSION, Body, Document, Kind, Metadata, Name, Reference, check,
    problem::{Finding, MAX_PROBLEMS, Problem, ProblemCode, nearest},
    rules,
    tree::{MAX_NODES, Node, Position, Value, shorten},
    yaml,
};
use crate::bundle::references;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Longest texts of one set together, in bytes.
pub const MAX_SET: usize = 8 * 1024 * 1024;

/// Longest document as compact JSON, in bytes: what is kept, shown and sent is that. As much as one file may have.
pub const MAX_JSON: usize = super::MAX_FILE;

/// A text and the name to use for it in messages (a file's path, `-` for standard input).
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// A document that holds, with what it was made from.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// `metadata.project` is always set here.
    pub document: Document,
    /// As the author wrote it: key order and annotations kept, nothing added but an inherited `apiVersion`.
    pub json: Json,
    /// The file or source name as the caller gave it.
    pub file: String,
    /// Where the document begins; `None` when it did not come from a text.
    pub at: Option<Position>,
    pub(super) node: Node,
}

impl Parsed {
    /// Where the value at `path` begins, or its nearest ancestor.
    #[must_use]
    pub fn locate(&self, path: &str) -> Option<Position> {
        self.node.locate(path)
    }

    /// Kind, project and name.
    #[must_use]
    pub fn key(&self) -> Key {
        let metadata = &self.document.metadata;
        Key {
            kind: self.document.kind(),
            project: metadata.project.clone(),
            name: metadata.name.clone(),
        }
    }
}

/// What names a document in a tenant: `Agent support/release-notes`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub project: Option<Name>,
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = Reference {
            project: self.project.clone(),
            name: self.name.clone(),
        };
        write!(f, "{} {reference}", self.kind)
    }
}

/// Reads YAML or JSON texts, each with any number of documents. Documents without a project belong to `project`.
///
/// # Errors
/// Every problem of every document (at most [`MAX_PROBLEMS`]); nothing is returned of a set with one.
/// References are not followed: see [`check_references`].
pub fn parse_files(sources: &[Source<'_>], project: &Name) -> Result<Vec<Parsed>, Vec<Problem>> {
    let mut set = Set::new(project);
    let total: usize = sources.iter().map(|s| s.text.len()).sum();
    if total > MAX_SET {
        let finding = too_large(
            format!("at most {MAX_SET} bytes in one set"),
            format!("{total} bytes"),
        );
        let first = sources.first().map_or("", |s| s.name);
        return Err(vec![finding.in_file(first, None)]);
    }
    for source in sources {
        match yaml::read(source.text, &mut set.budget) {
            Ok(nodes) => {
                let mut inherited = None;
                for node in nodes {
                    let node = inherit_version(node, &mut inherited);
                    set.add(source.name, node);
                }
            }
            Err(findings) => set
                .problems
                .extend(findings.into_iter().map(|f| f.in_file(source.name, None))),
        }
    }
    set.finish()
}

/// Reads documents that are JSON values already (GraphQL input, stored rows): the same checks, without places.
///
/// # Errors
/// As [`parse_files`]; [`Problem::document`] is the index in `values`.
pub fn parse_values(values: &[(&str, &Json)], project: &Name) -> Result<Vec<Parsed>, Vec<Problem>> {
    let mut set = Set::new(project);
    let total = values.iter().map(|(_, value)| compact_size(value));
    let total = total.fold(0, usize::saturating_add);
    if total > MAX_SET {
        let finding = too_large(
            format!("at most {MAX_SET} bytes in one set"),
            format!("{total} bytes"),
        );
        let first = values.first().map_or("", |(name, _)| name);
        return Err(vec![finding.in_file(first, None)]);
    }
    for (name, value) in values {
        match Node::from_json(value, &mut set.budget) {
            Ok(node) => set.add(name, node),
            Err(limit) => {
                let finding = too_large(limit, "more".to_owned());
                set.problems.push(finding.in_file(name, Some(set.count)));
                set.count += 1;
            }
        }
    }
    set.finish()
}

/// Reads one document of a known good place (a stored row, a received custom resource).
///
/// # Errors
/// As [`parse_values`].
pub fn parse_value(name: &str, value: &Json, project: &Name) -> Result<Parsed, Vec<Problem>> {
    let mut parsed = parse_values(&[(name, value)], project)?;
    parsed.pop().ok_or_else(Vec::new)
}

/// Every reference of the set's agents to something that is neither in the set nor `known` elsewhere.
///
/// `known` is asked with the project filled in. Where all prompts of a template are known, the caller should render
/// it too ([`super::render_instructions`]): only then its length is known.
pub fn check_references(parsed: &[Parsed], known: impl Fn(Kind, &Reference) -> bool) -> Vec<Problem> {
    let own: BTreeSet<Key> = parsed.iter().map(Parsed::key).collect();
    let mut problems = Vec::new();
    for (index, item) in parsed.iter().enumerate() {
        let Body::Agent(spec) = &item.document.body else {
            continue;
        };
        for (path, kind, reference) in references(spec) {
            let project = reference
                .project
                .clone()
                .or_else(|| item.document.metadata.project.clone());
            let key = Key {
                kind,
                project,
                name: reference.name.clone(),
            };
            let qualified = Reference {
                project: key.project.clone(),
                name: key.name.clone(),
            };
            if own.contains(&key) || known(kind, &qualified) {
                continue;
            }
            let near = own.iter().filter(|k| k.kind == kind && k.project == key.project);
            let finding = Finding {
                code: ProblemCode::Dangling,
                at: item.node.locate(&path),
                hint: nearest(reference.name.as_str(), near.map(|k| k.name.as_str())),
                expected: format!("the name of {} {kind} in the set or the project", article(kind)),
                found: format!("{:?}, which is neither", reference.to_string()),
                path,
            };
            problems.push(finding.in_file(&item.file, Some(index)));
        }
    }
    problems
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::Agent { "an" } else { "a" }
}

fn too_large(expected: String, found: String) -> Finding {
    Finding {
        code: ProblemCode::TooLarge,
        at: None,
        path: String::new(),
        expected,
        found,
        hint: None,
    }
}

/// How long the JSON is when it is written without spaces.
fn compact_size(json: &Json) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0 += text.len();
            Ok(text.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither the values nor the counting can fail; if one did, the document would be too large.
    match serde_json::to_writer(&mut count, json) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

/// Later documents of a file may leave out the `apiVersion`: it is the one of the document before.
fn inherit_version(mut node: Node, inherited: &mut Option<super::tree::Entry>) -> Node {
    if let Value::Map(entries) = &mut node.value {
        match (entries.iter().find(|e| e.key == "apiVersion"), &*inherited) {
            (Some(own), _) => *inherited = Some(own.clone()),
            (None, Some(before)) => entries.insert(
                0,
                super::tree::Entry {
                    at: node.at,
                    ..before.clone()
                },
            ),
            (None, None) => {}
        }
    }
    node
}

struct Set<'a> {
    project: &'a Name,
    budget: usize,
    count: usize,
    parsed: Vec<Parsed>,
    problems: Vec<Problem>,
    seen: BTreeMap<Key, String>,
}

impl<'a> Set<'a> {
    fn new(project: &'a Name) -> Self {
        Self {
            project,
            budget: MAX_NODES,
            count: 0,
            parsed: Vec::new(),
            problems: Vec::new(),
            seen: BTreeMap::new(),
        }
    }

    fn add(&mut self, file: &str, node: Node) {
        let index = self.count;
        self.count += 1;
        if self.problems.len() > MAX_PROBLEMS {
            return;
        }
        let json = node.to_json();
        let size = compact_size(&json);
        if size > MAX_JSON {
            let expected = format!("at most {MAX_JSON} bytes in one document as JSON");
            let finding = too_large(expected, format!("{size} bytes"));
            self.problems.push(finding.in_file(file, Some(index)));
            return;
        }
        match document(&node, self.project) {
            Ok(document) => {
                let parsed = Parsed {
                    document,
                    json,
                    file: file.to_owned(),
                    at: node.at,
                    node,
                };
                self.keep(index, parsed);
            }
            Err(findings) => {
                self.problems
                    .extend(findings.into_iter().map(|f| f.in_file(file, Some(index))));
            }
        }
    }

    fn keep(&mut self, index: usize, parsed: Parsed) {
        let key = parsed.key();
        let place = match parsed.at {
            Some(at) => format!("{}:{}", parsed.file, at.line),
            None => format!("document {index}"),
        };
        if let Some(first) = self.seen.get(&key) {
            let finding = Finding {
                code: ProblemCode::DuplicateDocument,
                at: parsed.node.locate("metadata.name"),
                path: "metadata.name".to_owned(),
                expected: "each document once".to_owned(),
                found: format!("{key} a second time"),
                hint: Some(format!("the first is at {first}")),
            };
            self.problems.push(finding.in_file(&parsed.file, Some(index)));
        } else {
            self.seen.insert(key, place);
        }
        self.parsed.push(parsed);
    }

    fn finish(mut self) -> Result<Vec<Parsed>, Vec<Problem>> {
        if self.problems.is_empty() {
            return Ok(self.parsed);
        }
        self.problems.truncate(MAX_PROBLEMS);
        Err(self.problems)
    }
}

/// One tree to one document.
fn document(node: &Node, project: &Name) -> Result<Document, Vec<Finding>> {
    let kind = kind_of(node)?;
    let mut findings = check::check(kind, node);
    if !findings.is_empty() {
        sort(&mut findings);
        return Err(findings);
    }
    let mut document = typed(node).map_err(|finding| vec![*finding])?;
    document.metadata.project.get_or_insert_with(|| project.clone());
    let mut findings = rules::check(&document, node);
    sort(&mut findings);
    if findings.is_empty() {
        Ok(document)
    } else {
        Err(findings)
    }
}

fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
}

/// The kind, once `apiVersion` and `kind` are known to be right: without them no schema applies.
fn kind_of(node: &Node) -> Result<Kind, Vec<Finding>> {
    let finding = |code, at, path: &str, expected: String, found: String, hint| Finding {
        code,
        at,
        path: path.to_owned(),
        expected,
        found,
        hint,
    };
    let Value::Map(_) = node.value else {
        let expected = "a document: a mapping with apiVersion, kind, metadata, spec".to_owned();
        return Err(vec![finding(
            ProblemCode::WrongType,
            node.at,
            "",
            expected,
            node.describe(),
            None,
        )]);
    };
    let mut findings = Vec::new();
    match node.get("apiVersion") {
        Some(version) if version.text() == Some(API_VERSION) => {}
        Some(other) => {
            let (expected, found) = (API_VERSION.to_owned(), other.describe());
            findings.push(finding(
                ProblemCode::UnknownKind,
                other.at,
                "apiVersion",
                expected,
                found,
                None,
            ));
        }
        None => {
            let (expected, found) = (API_VERSION.to_owned(), "no such field".to_owned());
            findings.push(finding(
                ProblemCode::MissingField,
                node.at,
                "apiVersion",
                expected,
                found,
                None,
            ));
        }
    }
    let names = Kind::ALL.map(Kind::as_str);
    let expected = format!("one of {}", names.join(", "));
    let kind = match node.get("kind").map(|k| (k, k.text())) {
        Some((_, Some(text))) if Kind::parse(text).is_some() => Kind::parse(text),
        Some((other, text)) => {
            let (code, hint) = match text {
                Some("SecretBinding") => (
                    ProblemCode::NotAvailable,
                    Some("SecretBinding is planned and not available yet".to_owned()),
                ),
                Some(text) => (ProblemCode::UnknownKind, nearest(text, names)),
                None => (ProblemCode::WrongType, None),
            };
            findings.push(finding(code, other.at, "kind", expected, other.describe(), hint));
            None
        }
        None => {
            let found = "no such field".to_owned();
            findings.push(finding(
                ProblemCode::MissingField,
                node.at,
                "kind",
                expected,
                found,
                None,
            ));
            None
        }
    };
    match kind {
        Some(kind) if findings.is_empty() => Ok(kind),
        _ => Err(findings),
    }
}

/// The typed document. The walk has found nothing, so an error here means that schema and types disagree.
fn typed(node: &Node) -> Result<Document, Box<Finding>> {
    #[derive(serde::Deserialize)]
    struct Whole {
        metadata: Metadata,
        #[serde(flatten)]
        body: Body,
    }
    let json = node.to_json();
    let whole: Whole = serde_path_to_error::deserialize(&json).map_err(|error| {
        let path = error.path().to_string();
        Box::new(Finding {
            code: ProblemCode::WrongValue,
            at: node.locate(&path),
            expected: "a value of the documented type".to_owned(),
            found: shorten(&error.inner().to_string()),
            path,
            hint: None,
        })
    })?;
    Ok(Document {
        api_version: API_VERSION,
        metadata: whole.metadata,
        body: whole.body,
    })
}

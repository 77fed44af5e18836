//! What a document may cost before anybody parses or runs it (S20).
//!
//! The library's parser is recursive and its own limits come after it, so length, number of tokens and nesting are
//! counted first, by a scan that allocates nothing. Depth and cost are the schema's (see `cost.rs`).

use crate::expanded::{Unbounded, expanded};
use async_graphql::{
    Variables,
    parser::types::{ExecutableDocument, Selection, SelectionSet},
};
use std::{collections::HashMap, time::Duration};

/// Limits of one request. A batch is one request: its operations share them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the HTTP body: above 4 MiB of documents, with room for their escapes.
    pub body_bytes: usize,
    /// Bytes of all GraphQL documents, without variables.
    pub document_bytes: usize,
    /// Brackets, colons and commas of the HTTP body's JSON, see [`roadstead_http::json_tokens`].
    pub json_tokens: usize,
    /// Lexical tokens of all documents.
    pub tokens: usize,
    /// Fields, arguments and values of all documents once their fragments are written out.
    pub expanded: usize,
    /// Bytes of variables, as often as the documents use them.
    pub copied: usize,
    /// Brackets open at once.
    pub nesting: usize,
    /// Levels of fields.
    pub depth: usize,
    /// Points, see `cost.rs`.
    pub cost: usize,
    /// Bytes of the documents that the answer needs, see `cost.rs`.
    pub answer_bytes: usize,
    /// Such bytes of all answers that are on their way, of all tenants and of one.
    pub answers: (usize, usize),
    /// Aliases of one field.
    pub aliases: usize,
    /// Directives on one field.
    pub directives: usize,
    /// Operations in a batch.
    pub batch: usize,
    /// For the whole request.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 * 1024 * 1024,
            document_bytes: 64 * 1024,
            json_tokens: roadstead_http::MAX_JSON_TOKENS,
            tokens: 8 * 1024,
            expanded: 8 * 1024,
            copied: 64 * 1024 * 1024,
            nesting: 64,
            depth: 12,
            cost: 10_000,
            answer_bytes: 32 * 1024 * 1024,
            answers: (256 * 1024 * 1024, 64 * 1024 * 1024),
            aliases: 15,
            directives: 8,
            batch: 10,
            time: Duration::from_secs(30),
        }
    }
}

/// A limit that a request exceeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request has more than {allowed} {what}")]
pub struct Exceeded {
    pub what: &'static str,
    pub allowed: usize,
}

fn within(what: &'static str, found: usize, allowed: usize) -> Result<(), Exceeded> {
    if found > allowed {
        Err(Exceeded { what, allowed })
    } else {
        Ok(())
    }
}

impl Limits {
    /// Checks the texts of one request, unparsed.
    ///
    /// # Errors
    /// The first limit that is exceeded.
    pub fn check_text<'a>(&self, documents: impl Iterator<Item = &'a str>) -> Result<(), Exceeded> {
        let (mut bytes, mut tokens) = (0, 0);
        for document in documents {
            bytes += document.len();
            within("bytes of GraphQL", bytes, self.document_bytes)?;
            let scanned = scan(document);
            tokens += scanned.tokens;
            within("tokens", tokens, self.tokens)?;
            within("nested brackets", scanned.nesting, self.nesting)?;
        }
        Ok(())
    }

    /// Checks what the documents of one request come to, with their fragments written out and their variables put in.
    ///
    /// # Errors
    /// Where that is too much, or without end.
    pub fn check_expanded<'a>(
        &self,
        documents: impl Iterator<Item = (&'a ExecutableDocument, &'a Variables)>,
    ) -> Result<(), Exceeded> {
        let (mut nodes, mut copied) = (0_usize, 0_usize);
        for (document, variables) in documents {
            let found = expanded(document, variables, self.nesting).map_err(|unbounded| match unbounded {
                Unbounded::Cycle => Exceeded {
                    what: "fragments that spread themselves",
                    allowed: 0,
                },
                Unbounded::Levels => Exceeded {
                    what: "levels with its fragments written out",
                    allowed: self.nesting,
                },
            })?;
            nodes = nodes.saturating_add(found.nodes);
            within(
                "fields and values with its fragments written out",
                nodes,
                self.expanded,
            )?;
            copied = copied.saturating_add(found.copied);
            within(
                "bytes of variables, as often as they are used",
                copied,
                self.copied,
            )?;
        }
        Ok(())
    }

    /// Checks how often one field is asked for under other names, over all documents of one request.
    ///
    /// # Errors
    /// Where that is too often.
    pub fn check_aliases<'a>(
        &self,
        documents: impl Iterator<Item = &'a ExecutableDocument>,
    ) -> Result<(), Exceeded> {
        let mut counted = HashMap::new();
        for document in documents {
            for (_, operation) in document.operations.iter() {
                count_aliases(&operation.node.selection_set.node, &mut counted);
            }
            for fragment in document.fragments.values() {
                count_aliases(&fragment.node.selection_set.node, &mut counted);
            }
        }
        let most = counted.values().copied().max().unwrap_or(0);
        within("aliases of one field", most, self.aliases)
    }
}

fn count_aliases<'a>(set: &'a SelectionSet, counted: &mut HashMap<&'a str, usize>) {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => {
                if field.node.alias.is_some() {
                    *counted.entry(field.node.name.node.as_str()).or_default() += 1;
                }
                count_aliases(&field.node.selection_set.node, counted);
            }
            Selection::InlineFragment(fragment) => {
                count_aliases(&fragment.node.selection_set.node, counted);
            }
            Selection::FragmentSpread(_) => {}
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Scanned {
    tokens: usize,
    /// Most brackets open at once.
    nesting: usize,
}

/// Counts lexical tokens (GraphQL, October 2021, §2.1) and open brackets. Text that is no GraphQL gets some number,
/// never fewer tokens than a parser would read from it.
fn scan(text: &str) -> Scanned {
    let mut found = Scanned::default();
    let mut open = 0_usize;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        at += match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b',' => 1,
            b'#' => run(rest, |c| c != b'\n' && c != b'\r'),
            other => {
                found.tokens += 1;
                match other {
                    b'{' | b'[' | b'(' => {
                        open += 1;
                        found.nesting = found.nesting.max(open);
                        1
                    }
                    b'}' | b']' | b')' => {
                        open = open.saturating_sub(1);
                        1
                    }
                    b'"' if rest.starts_with(b"\"\"\"") => block_string(rest),
                    b'"' => string(rest),
                    c if is_word(c) => run(rest, is_word),
                    _ => 1,
                }
            }
        };
    }
    found
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// How many bytes from the first on are `wanted`; at least one.
fn run(bytes: &[u8], wanted: fn(u8) -> bool) -> usize {
    bytes
        .iter()
        .position(|c| !wanted(*c))
        .unwrap_or(bytes.len())
        .max(1)
}

/// The length of a string with its quotes; of an unclosed one, up to the end of its line.
fn string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\n' | b'\r' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of a block string with its quotes.
fn block_string(bytes: &[u8]) -> usize {
    let mut at = 3;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"\\\"\"\"") {
            at += 4;
        } else if bytes[at..].starts_with(b"\"\"\"") {
            return at + 3;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;

    fn tokens(text: &str) -> usize {
        scan(text).tokens
    }

    #[test]
    fn tokens_are_counted_as_the_grammar_has_them() {
        assert_eq!(tokens("{ a }"), 3);
        assert_eq!(tokens("query Q($a: Int! = 3) { b(c: $a) }"), 20);
        assert_eq!(tokens("# only a comment { { {\n,,, a"), 1);
        assert_eq!(tokens(r#"{ a(b: "x { y \" z") }"#), 8);
        assert_eq!(tokens("{ a(b: \"\"\"x \" \\\"\"\" { y\"\"\") }"), 8);
    }

    #[test]
    fn brackets_inside_strings_are_not_nesting() {
        assert_eq!(scan(r#"{ a(b: "{{{{[[[[") }"#).nesting, 2);
        assert_eq!(scan("{ a { b } c { d } }").nesting, 2);
    }

    #[test]
    fn s20_a_document_too_deep_for_a_recursive_parser_is_refused_before_it() {
        let limits = Limits::default();
        let bomb = "{a".repeat(3_000);
        let refused = limits.check_text([bomb.as_str()].into_iter()).unwrap_err();
        assert_eq!(refused.what, "nested brackets");
        let list = format!("{{ a(b: {}) }}", "[".repeat(3_000));
        assert_eq!(
            limits.check_text([list.as_str()].into_iter()).unwrap_err().what,
            "nested brackets"
        );
    }

    #[test]
    fn s20_tokens_and_bytes_are_shared_by_a_batch() {
        let limits = Limits::default();
        let many = format!("{{ {} }}", "a ".repeat(5_000));
        limits.check_text([many.as_str()].into_iter()).unwrap();
        let refused = limits.check_text([many.as_str(); 2].into_iter()).unwrap_err();
        assert_eq!(refused.what, "tokens");
        let long = format!("# {}", "x".repeat(40_000));
        let refused = limits.check_text([long.as_str(); 2].into_iter()).unwrap_err();
        assert_eq!(refused.what, "bytes of GraphQL");
    }

    #[test]
    fn s20_aliases_of_one_field_are_counted_wherever_they_hide() {
        let limits = Limits::default();
        let aliased = |from: usize, n: usize| -> String {
            (from..from + n)
                .map(|i| format!("a{i}: agent(id: 1) {{ id }} "))
                .collect()
        };
        let parse = |text: &str| parse_query(text).unwrap();
        let fine = parse(&format!("{{ {} }}", aliased(0, 15)));
        limits.check_aliases([&fine].into_iter()).unwrap();
        let plain = parse(&format!("{{ {} }}", aliased(0, 16)));
        limits.check_aliases([&plain].into_iter()).unwrap_err();
        let hidden = parse(&format!(
            "{{ {} ... on Query {{ {} }} ...F }} fragment F on Query {{ {} }}",
            aliased(0, 6),
            aliased(6, 5),
            aliased(11, 5)
        ));
        limits.check_aliases([&hidden].into_iter()).unwrap_err();
        limits.check_aliases([&fine, &fine].into_iter()).unwrap_err();
    }
}

//! How large a document is once its fragments are written out (S20).
//!
//! The library's checks follow every spread of every fragment, so a document of 1.5 kB can ask for more steps than
//! there are atoms; and they copy a variable wherever it is used. Here each fragment is measured once and its measure
//! is used wherever it is spread: the work is that of the document as it stands, whatever it expands to.

use async_graphql::{
    Positioned, Value, Variables,
    parser::types::{Directive, ExecutableDocument, Field, FragmentDefinition, Selection, SelectionSet},
};
use std::{collections::HashMap, convert::Infallible};

/// What a selection set, or a whole document, comes to. Everything saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    /// Fields, spreads, directives, arguments and the values in them.
    pub(crate) nodes: usize,
    /// Bytes of variables, as often as they are used.
    pub(crate) copied: usize,
    /// Selection sets inside each other, those of fragments too.
    pub(crate) levels: usize,
}

impl Expanded {
    fn add(&mut self, nodes: usize) {
        self.nodes = self.nodes.saturating_add(nodes);
    }

    /// Takes what hangs below a node.
    fn hang(&mut self, below: Self) {
        self.add(below.nodes);
        self.copied = self.copied.saturating_add(below.copied);
        self.levels = self.levels.max(below.levels);
    }
}

/// Why a document has no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unbounded {
    /// A fragment spreads itself, by way of others perhaps.
    Cycle,
    /// More levels than are allowed.
    Levels,
}

/// The size of all operations of `document`, fragments written out, and of the fragments that none of them uses.
///
/// # Errors
/// A cycle, or more levels than `deepest`, which also bounds the recursion here.
pub(crate) fn expanded(
    document: &ExecutableDocument,
    variables: &Variables,
    deepest: usize,
) -> Result<Expanded, Unbounded> {
    let mut weights: HashMap<String, usize> = HashMap::new();
    for (name, value) in variables.iter() {
        weights.insert(name.to_string(), weight(value));
    }
    let mut whole = Expanded::default();
    for (_, operation) in document.operations.iter() {
        for variable in &operation.node.variable_definitions {
            let name = variable.node.name.node.to_string();
            let default = variable.node.default_value.as_ref();
            whole.add(1 + default.map_or(0, |d| nodes(&d.node)));
            let known = weights.entry(name).or_default();
            *known = default.map_or(0, |d| weight(&d.node)).max(*known);
        }
    }
    let mut measure = Measure {
        document,
        weights,
        deepest,
        known: HashMap::new(),
    };
    for (_, operation) in document.operations.iter() {
        whole.hang(measure.directives(&operation.node.directives));
        whole.hang(measure.set(&operation.node.selection_set.node, 1)?);
    }
    // Those that nobody spreads are validated too.
    for (name, fragment) in &document.fragments {
        if !measure.known.contains_key(name.as_str()) {
            whole.hang(measure.fragment(name, fragment, 1)?);
        }
    }
    Ok(whole)
}

/// The size of a list of arguments: of a field's and of a directive's alike. A macro, because the library does not
/// give a name to the type of their values.
macro_rules! arguments {
    ($measure:expr, $arguments:expr) => {{
        let mut found = Expanded::default();
        for (_, argument) in $arguments {
            let mut copied = 0_usize;
            let plain = argument.node.clone().into_const_with(|name| {
                let weight = $measure.weights.get(name.as_str()).copied().unwrap_or(0);
                copied = copied.saturating_add(weight);
                Ok::<_, Infallible>(Value::Null)
            });
            let Ok(plain) = plain;
            found.add(nodes(&plain));
            found.copied = found.copied.saturating_add(copied);
        }
        found
    }};
}

struct Measure<'a> {
    document: &'a ExecutableDocument,
    weights: HashMap<String, usize>,
    deepest: usize,
    /// `None` while it is being measured: meeting it again is a cycle.
    known: HashMap<&'a str, Option<Expanded>>,
}

impl<'a> Measure<'a> {
    /// `level` counts the sets around, this one included.
    fn set(&mut self, set: &'a SelectionSet, level: usize) -> Result<Expanded, Unbounded> {
        if level > self.deepest {
            return Err(Unbounded::Levels);
        }
        let mut found = Expanded::default();
        for selection in &set.items {
            found.add(1);
            match &selection.node {
                Selection::Field(field) => found.hang(self.field(&field.node, level)?),
                Selection::InlineFragment(inline) => {
                    found.hang(self.directives(&inline.node.directives));
                    found.hang(self.set(&inline.node.selection_set.node, level + 1)?);
                }
                Selection::FragmentSpread(spread) => {
                    found.hang(self.directives(&spread.node.directives));
                    let name = spread.node.fragment_name.node.as_str();
                    // One that is not defined is the validation's to refuse, in its words.
                    if let Some((name, fragment)) = self.document.fragments.get_key_value(name) {
                        let below = self.fragment(name, fragment, level + 1)?;
                        if level + below.levels > self.deepest {
                            return Err(Unbounded::Levels);
                        }
                        found.hang(below);
                    }
                }
            }
        }
        found.levels += 1;
        Ok(found)
    }

    fn field(&mut self, field: &'a Field, level: usize) -> Result<Expanded, Unbounded> {
        let mut found = self.directives(&field.directives);
        found.hang(arguments!(self, &field.arguments));
        if !field.selection_set.node.items.is_empty() {
            found.hang(self.set(&field.selection_set.node, level + 1)?);
        }
        Ok(found)
    }

    fn fragment(
        &mut self,
        name: &'a str,
        fragment: &'a Positioned<FragmentDefinition>,
        level: usize,
    ) -> Result<Expanded, Unbounded> {
        match self.known.get(name) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => return Err(Unbounded::Cycle),
            None => {}
        }
        self.known.insert(name, None);
        let mut found = self.set(&fragment.node.selection_set.node, level)?;
        found.hang(self.directives(&fragment.node.directives));
        self.known.insert(name, Some(found));
        Ok(found)
    }

    fn directives(&self, directives: &[Positioned<Directive>]) -> Expanded {
        let mut found = Expanded::default();
        for directive in directives {
            found.add(1);
            found.hang(arguments!(self, &directive.node.arguments));
        }
        found
    }
}

/// How many values there are. The parser has bounded their nesting.
fn nodes(value: &Value) -> usize {
    match value {
        Value::List(items) => items.iter().map(nodes).fold(1, usize::saturating_add),
        Value::Object(fields) => fields.values().map(nodes).fold(1, usize::saturating_add),
        _ => 1,
    }
}

/// What a copy costs, about, in bytes.
fn weight(value: &Value) -> usize {
    let own = size_of::<Value>();
    let each: usize = match value {
        Value::String(text) => text.len(),
        Value::List(items) => items.iter().map(weight).fold(0, usize::saturating_add),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| key.len() + 64 + weight(value))
            .fold(0, usize::saturating_add),
        _ => 0,
    };
    own.saturating_add(each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;
    use serde_json::json;

    fn of(text: &str) -> Result<Expanded, Unbounded> {
        expanded(&parse_query(text).unwrap(), &Variables::default(), 64)
    }

    /// `{...f0}` with `depth` fragments, each spreading the next `fan` times.
    fn bomb(depth: usize, fan: usize) -> String {
        let mut text = "{...f0}".to_owned();
        for n in 0..depth {
            let spreads = format!("...f{} ", n + 1).repeat(fan);
            text += &format!(" fragment f{n} on Query{{{spreads}}}");
        }
        text + &format!(" fragment f{depth} on Query{{__typename}}")
    }

    #[test]
    fn a_document_without_fragments_has_the_size_that_it_shows() {
        let found =
            of(r#"query($a: Int = 3) { x(a: $a, b: [1, {c: 2}]) { y @skip(if: true) } ... on Query { z } }"#);
        // $a and its default; x, $a, the list, 1, the object, 2; y, @skip, true; the inline fragment, z.
        let found = found.unwrap();
        assert_eq!((found.nodes, found.levels), (2 + 6 + 3 + 2, 2));
    }

    #[test]
    fn s20_a_fragment_counts_wherever_it_is_spread() {
        let found = of("{ a { ...F } b { ...F } } fragment F on Query { c d }").unwrap();
        assert_eq!((found.nodes, found.levels), (2 + 2 + 4, 3));
        assert_eq!(
            of(&bomb(31, 3)).unwrap().nodes,
            (0..=31).map(|n| 3_usize.pow(n)).sum::<usize>() + 3_usize.pow(31)
        );
        assert_eq!(of(&bomb(60, 1_000)).unwrap().nodes, usize::MAX);
    }

    #[test]
    fn s20_a_fragment_that_spreads_itself_is_refused() {
        for text in [
            "{ ...A } fragment A on Query { ...A }",
            "{ ...A } fragment A on Query { ...B } fragment B on Query { x { ...A } }",
            "{ x } fragment A on Query { ...B } fragment B on Query { ...A }",
        ] {
            assert_eq!(of(text), Err(Unbounded::Cycle), "{text}");
        }
    }

    #[test]
    fn s20_levels_are_counted_through_fragments_in_any_order() {
        assert_eq!(of(&bomb(80, 1)), Err(Unbounded::Levels));
        // The chain may have been measured on its own before it is hung below others.
        let below = |levels: usize| {
            bomb(40, 1).replace(
                "{...f0}",
                &format!(
                    "query P {{...f0}} query Q {}...f0{}",
                    "{a".repeat(levels),
                    "}".repeat(levels)
                ),
            )
        };
        assert_eq!(of(&below(20)).unwrap().levels, 20 + 41);
        assert_eq!(of(&below(30)), Err(Unbounded::Levels));
    }

    #[test]
    fn s20_a_variable_weighs_wherever_it_is_used() {
        let document =
            parse_query("query($v: [Int!]) { ...F ...F } fragment F on Query { a(v: $v) b(v: [$v]) }");
        let variables = Variables::from_json(json!({"v": vec![1; 1_000]}));
        let found = expanded(&document.unwrap(), &variables, 64).unwrap();
        assert!(found.copied > 4 * 1_000 * 8, "{found:?}");
        let default = "query($v: [Int!] = [1, 2, 3]) { a(v: $v) b(v: $v) }";
        assert!(of(default).unwrap().copied >= 6 * size_of::<Value>());
    }
}

//! Instructions with prompts and variables put in.
//!
//! The language is the smallest useful part of Jinja: `{{ variable }}`, `{{ include("prompt") }}`, `{{ "literal" }}`,
//! `{# comment #}`, and `-` inside the braces to trim white space on that side. Nothing can be computed: with string
//! operators and loops a template of a hundred bytes makes gigabytes, which no instruction budget notices. What is
//! included is text and not read as a template again.

use super::{Instructions, Reference, tree::shorten};
use crate::bundle::Bundle;
use std::collections::BTreeMap;

/// Longest rendered instructions, in bytes.
pub const MAX_INSTRUCTIONS: usize = 1024 * 1024;

/// Why instructions do not render; `line` counts from 1 in the template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the template: expected {expected}, found {found}")]
pub struct TemplateError {
    pub line: u32,
    pub expected: String,
    pub found: String,
}

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
    Include(&'a str),
}

/// The pieces in order, each with its line.
///
/// # Errors
/// The first place that is not part of the language.
pub(crate) fn pieces(template: &str) -> Result<Vec<(u32, Piece<'_>)>, TemplateError> {
    let (mut found, mut rest, mut trim_next) = (Vec::new(), template, false);
    let mut line = 1;
    while let Some(at) = opening(rest) {
        let (text, tag) = rest.split_at(at);
        let tag_line = line + count_lines(text);
        let fail = |expected: &str, what: &str| TemplateError {
            line: tag_line,
            expected: expected.to_owned(),
            found: what.to_owned(),
        };
        let close = if tag.starts_with("{#") { "#}" } else { "}}" };
        if tag.starts_with("{%") {
            let expected = "{{ variable }} or {{ include(\"prompt\") }}: templates have no statements";
            return Err(fail(expected, &first_line(tag)));
        }
        let Some((inside, after)) = tag[2..].split_once(close) else {
            return Err(fail(&format!("{close} on the way to the end"), &first_line(tag)));
        };
        let text = if trim_next { text.trim_start() } else { text };
        let text = if inside.starts_with('-') {
            text.trim_end()
        } else {
            text
        };
        found.push((line, Piece::Text(text)));
        trim_next = inside.ends_with('-');
        if close == "}}" {
            let inner = inside.strip_prefix('-').unwrap_or(inside);
            let inner = inner.strip_suffix('-').unwrap_or(inner).trim();
            let piece = expression(inner).ok_or_else(|| {
                let expected = "{{ variable }}, {{ include(\"prompt\") }} or {{ \"literal\" }}";
                fail(expected, &format!("{{{{ {} }}}}", shorten(inner)))
            })?;
            found.push((tag_line, piece));
        }
        line = tag_line + count_lines(&tag[..tag.len() - after.len()]);
        rest = after;
    }
    found.push((
        line,
        Piece::Text(if trim_next { rest.trim_start() } else { rest }),
    ));
    Ok(found)
}

fn opening(text: &str) -> Option<usize> {
    let braces = text.match_indices('{').map(|(at, _)| at);
    braces
        .into_iter()
        .find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

fn count_lines(text: &str) -> u32 {
    u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX)
}

fn first_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or_default())
}

fn expression(inner: &str) -> Option<Piece<'_>> {
    if let Some(text) = literal(inner) {
        return Some(Piece::Text(text));
    }
    if let Some(arguments) = inner.strip_prefix("include") {
        let argument = arguments
            .trim_start()
            .strip_prefix('(')
            .and_then(|a| a.strip_suffix(')'));
        return argument.and_then(|a| literal(a.trim())).map(Piece::Include);
    }
    is_variable(inner).then_some(Piece::Variable(inner))
}

/// A variable's name: a letter or `_`, then letters, digits and `_`.
pub(super) fn is_variable(name: &str) -> bool {
    let start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    start && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') && name != "include"
}

fn literal(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = text[1..].strip_suffix(quote)?;
    (!inner.contains([quote, '\\'])).then_some(inner)
}

/// The instructions of a bundle's agent as the model gets them.
///
/// # Errors
/// Where the template is no template, names an unknown variable or prompt, or gives more than
/// [`MAX_INSTRUCTIONS`] bytes.
pub fn render_instructions(bundle: &Bundle) -> Result<String, TemplateError> {
    match &bundle.agent.instructions {
        Instructions::Text(text) => Ok(text.clone()),
        Instructions::Template(template) => render(&template.template, &template.variables, |name| {
            bundle.prompts.get(name).map(|prompt| prompt.text.as_str())
        }),
    }
}

fn render<'a>(
    template: &str,
    variables: &BTreeMap<String, String>,
    prompt: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, TemplateError> {
    let mut out = String::new();
    for (line, piece) in pieces(template)? {
        let unknown = |expected: String, found: &str| TemplateError {
            line,
            expected,
            found: format!("{:?}", shorten(found)),
        };
        let text = match piece {
            Piece::Text(text) => text,
            Piece::Variable(name) => variables
                .get(name)
                .ok_or_else(|| unknown(known_variables(variables), name))?,
            Piece::Include(name) => {
                prompt(&spelled(name)).ok_or_else(|| unknown("the name of a Prompt".to_owned(), name))?
            }
        };
        if out.len() + text.len() > MAX_INSTRUCTIONS {
            return Err(TemplateError {
                line,
                expected: format!("at most {MAX_INSTRUCTIONS} bytes of rendered instructions"),
                found: "more".to_owned(),
            });
        }
        out.push_str(text);
    }
    Ok(out)
}

/// A reference as a bundle's maps spell it.
fn spelled(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |r| r.to_string())
}

/// What a template may name, in words.
pub(super) fn known_variables(variables: &BTreeMap<String, String>) -> String {
    if variables.is_empty() {
        return "a name from variables, which is empty".to_owned();
    }
    let names: Vec<&str> = variables
        .keys()
        .map(String::as_str)
        .filter(|name| is_variable(name))
        .collect();
    format!("a name from variables ({})", names.join(", "))
}

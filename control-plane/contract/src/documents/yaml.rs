//! YAML (and JSON, which is a part of it) to trees.
//!
//! YAML 1.2 with the core schema and without what makes documents surprising or explosive: anchors, aliases, tags,
//! merge keys. Sizes are checked before parsing, depth and number of values while events come, so that a bomb costs
//! no more than its own bytes.

use super::{
    problem::{Finding, ProblemCode},
    tree::{Entry, MAX_DEPTH, MAX_KEY, MAX_NODES, Node, Position, Value, join, segment, shorten},
};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::Number;
use std::{borrow::Cow, collections::HashSet};

/// Longest text of one file, in bytes.
pub const MAX_FILE: usize = 1024 * 1024;

/// The documents of one text; empty ones (`---` alone) are left out. Takes the values it makes from `budget`.
pub(super) fn read(text: &str, budget: &mut usize) -> Result<Vec<Node>, Vec<Finding>> {
    if text.len() > MAX_FILE {
        let found = format!("{} bytes", text.len());
        return Err(vec![whole(
            ProblemCode::TooLarge,
            format!("at most {MAX_FILE} bytes in one file"),
            found,
        )]);
    }
    let text = pairs_to_scalars(text);
    let mut reader = Reader {
        parser: Parser::new_from_str(&text),
        steps: Vec::new(),
        budget,
        findings: Vec::new(),
    };
    match reader.documents() {
        Ok(documents) if reader.findings.is_empty() => Ok(documents),
        Ok(_) => Err(reader.findings),
        Err(fatal) => {
            reader.findings.push(*fatal);
            Err(reader.findings)
        }
    }
}

fn whole(code: ProblemCode, expected: String, found: String) -> Finding {
    Finding {
        code,
        at: None,
        path: String::new(),
        expected,
        found,
        hint: None,
    }
}

/// JSON writes characters beyond the basic plane as two `\u` escapes (RFC 8259 §7), which YAML has not: they become
/// YAML's `\U` escape. Only for texts that are JSON, where a backslash can stand in strings only.
fn pairs_to_scalars(text: &str) -> Cow<'_, str> {
    let suspect = text.contains("\\ud") || text.contains("\\uD");
    if !suspect || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return Cow::Borrowed(text);
    }
    let unit = |at: usize| {
        let hex = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(hex, 16).ok()
    };
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(c) = text[at..].chars().next() {
        let pair = unit(at).zip(unit(at + 6)).and_then(|(high, low)| {
            char::decode_utf16([high, low])
                .next()
                .and_then(Result::ok)
                .filter(|c| u32::from(*c) > 0xFFFF)
        });
        if let Some(scalar) = pair {
            out.push_str(&format!("\\U{:08X}", u32::from(scalar)));
            at += 12;
        } else if c == '\\' {
            let escaped = text[at + 1..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&text[at..at + 1 + escaped]);
            at += 1 + escaped;
        } else {
            out.push(c);
            at += c.len_utf8();
        }
    }
    Cow::Owned(out)
}

type Fatal = Box<Finding>;

/// A step down into a document.
enum Step {
    Key(String),
    Index(usize),
}

struct Reader<'a, 'b> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Where the reader is. A path is written only when something is wrong there: written at each value, a long key
    /// above many values would be copied as often.
    steps: Vec<Step>,
    budget: &'b mut usize,
    findings: Vec<Finding>,
}

fn position(marker: &Marker) -> Position {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position {
        line: small(marker.line()),
        column: small(marker.col() + 1),
    }
}

impl<'a> Reader<'a, '_> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fatal> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(Box::new(Finding {
                at: Some(position(error.marker())),
                ..whole(
                    ProblemCode::Syntax,
                    "YAML or JSON".to_owned(),
                    format!("a syntax error: {}", error.info()),
                )
            })),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn documents(&mut self) -> Result<Vec<Node>, Fatal> {
        let mut documents = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(documents),
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
                event => {
                    let node = self.node(event, &span)?;
                    if node.value != Value::Null {
                        documents.push(node);
                    }
                }
            }
        }
    }

    /// The path to here.
    fn path(&self) -> String {
        let mut path = String::new();
        for step in &self.steps {
            path = match step {
                Step::Key(key) => join(&path, &segment(key)),
                Step::Index(index) => format!("{path}[{index}]"),
            };
        }
        path
    }

    /// Refuses what would be surprising: the rest of the file cannot be trusted to mean what it says.
    fn refuse<T>(&self, code: ProblemCode, span: &Span, expected: &str, found: &str) -> Result<T, Fatal> {
        Err(Box::new(Finding {
            at: Some(position(&span.start)),
            path: self.path(),
            ..whole(code, expected.to_owned(), found.to_owned())
        }))
    }

    /// As [`Self::refuse`], of the document as a whole.
    fn too_large<T>(span: &Span, expected: String) -> Result<T, Fatal> {
        Err(Box::new(Finding {
            at: Some(position(&span.start)),
            ..whole(ProblemCode::TooLarge, expected, "more".to_owned())
        }))
    }

    fn node(&mut self, event: Event<'a>, span: &Span) -> Result<Node, Fatal> {
        use ProblemCode::Syntax;
        if self.steps.len() > MAX_DEPTH {
            return Self::too_large(span, format!("at most {MAX_DEPTH} levels of nesting"));
        }
        let Some(left) = self.budget.checked_sub(1) else {
            return Self::too_large(span, format!("at most {MAX_NODES} values in one set"));
        };
        *self.budget = left;
        let anchored = match &event {
            Event::Alias(_) => true,
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _) => *anchor > 0,
            _ => false,
        };
        if anchored {
            return self.refuse(
                Syntax,
                span,
                "the value itself, written out",
                "an anchor or alias",
            );
        }
        if let Event::Scalar(_, _, _, Some(tag))
        | Event::SequenceStart(_, Some(tag))
        | Event::MappingStart(_, Some(tag)) = &event
        {
            let found = format!("the tag {}", shorten(&tag.to_string()));
            return self.refuse(Syntax, span, "a value without a tag", &found);
        }
        let at = Some(position(&span.start));
        let value = match event {
            Event::Scalar(text, style, ..) => self.scalar(text.into_owned(), style, at),
            Event::SequenceStart(..) => self.list()?,
            Event::MappingStart(..) => self.map()?,
            _ => return self.refuse(Syntax, span, "a value", "the end of the document"),
        };
        Ok(Node { at, value })
    }

    /// The value one step down.
    fn below(&mut self, step: Step, event: Event<'a>, span: &Span) -> Result<Node, Fatal> {
        self.steps.push(step);
        let node = self.node(event, span)?;
        self.steps.pop();
        Ok(node)
    }

    fn list(&mut self) -> Result<Value, Fatal> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::List(items));
            }
            items.push(self.below(Step::Index(items.len()), event, &span)?);
        }
    }

    fn map(&mut self) -> Result<Value, Fatal> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(Value::Map(entries));
            }
            let key = self.key(&event, &span)?;
            let at = Some(position(&span.start));
            if !seen.insert(key.clone()) {
                self.findings.push(Finding {
                    at,
                    path: join(&self.path(), &segment(&key)),
                    ..whole(
                        ProblemCode::DuplicateKey,
                        "each key once".to_owned(),
                        format!("{:?} a second time", shorten(&key)),
                    )
                });
            }
            let (event, span) = self.next()?;
            let value = self.below(Step::Key(key.clone()), event, &span)?;
            entries.push(Entry { key, at, value });
        }
    }

    fn key(&mut self, event: &Event<'a>, span: &Span) -> Result<String, Fatal> {
        let Event::Scalar(text, style, 0, None) = event else {
            let found = "an anchor, an alias, a tag, a list or a mapping";
            return self.refuse(ProblemCode::Syntax, span, "a text as a key", found);
        };
        if text.len() > MAX_KEY {
            let expected = format!("at most {MAX_KEY} bytes in one key");
            let found = format!("{} bytes", text.len());
            return self.refuse(ProblemCode::TooLarge, span, &expected, &found);
        }
        let plain = *style == ScalarStyle::Plain;
        if plain && text == "<<" {
            return self.refuse(
                ProblemCode::Syntax,
                span,
                "the fields themselves",
                "a merge key (<<)",
            );
        }
        if plain && !matches!(resolve(text), Plain::Text) {
            self.findings.push(Finding {
                at: Some(position(&span.start)),
                path: self.path(),
                hint: Some(format!("put it in quotes: {:?}", shorten(text))),
                ..whole(
                    ProblemCode::WrongType,
                    "a text as a key".to_owned(),
                    shorten(text),
                )
            });
        }
        Ok(text.to_string())
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, at: Option<Position>) -> Value {
        let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        if style != ScalarStyle::Plain {
            return Value::Text { text, block };
        }
        match resolve(&text) {
            Plain::Null => Value::Null,
            Plain::Bool(b) => Value::Bool(b),
            Plain::Number(number) => Value::Number(number, text.into()),
            Plain::Text => Value::Text { text, block },
            Plain::Unusable => {
                self.findings.push(Finding {
                    at,
                    path: self.path(),
                    hint: Some(format!("a text is put in quotes: {:?}", shorten(&text))),
                    ..whole(
                        ProblemCode::WrongType,
                        "a number that JSON can hold".to_owned(),
                        shorten(&text),
                    )
                });
                Value::Null
            }
        }
    }
}

/// What an unquoted scalar means.
enum Plain {
    Null,
    Bool(bool),
    Number(Number),
    Text,
    /// A number that is none in JSON: infinity, not-a-number, beyond 64 bits.
    Unusable,
}

/// The core schema of YAML 1.2.2, §10.3.2.
fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Plain::Unusable;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        let digits = text.strip_prefix(prefix).filter(|d| !d.is_empty());
        if let Some(digits) = digits.filter(|d| d.chars().all(|c| c.is_digit(radix))) {
            return u64::from_str_radix(digits, radix).map_or(Plain::Unusable, |n| Plain::Number(n.into()));
        }
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|c| c.is_ascii_digit()) {
        let positive = text.strip_prefix('+').unwrap_or(text);
        let number = positive.parse::<u64>().map(Number::from);
        let number = number.or_else(|_| positive.parse::<i64>().map(Number::from));
        return number.map_or(Plain::Unusable, Plain::Number);
    }
    if is_float(unsigned) {
        let number = text.parse::<f64>().ok().and_then(Number::from_f64);
        return number.map_or(Plain::Unusable, Plain::Number);
    }
    Plain::Text
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (
            mantissa,
            Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)),
        ),
        None => (unsigned, None),
    };
    let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let some = !before.is_empty() || !after.is_empty();
    some && digits(before) && digits(after) && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

//! docs/security/statements.md: every security statement with the tests that carry its id.
//!
//! A test covers a statement by its name: `s34_every_tenant_table_…`, or `s34_s36_…` for two. A statement that no
//! test carries is *absent*, whatever the code may do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// Where the statements' texts are.
pub const SOURCE: &str = "docs/security/statements.toml";
/// The generated list.
pub const LIST: &str = "docs/security/statements.md";

/// One statement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// `S01` to `S92`.
    pub id: String,
    /// What must hold.
    pub text: String,
}

/// Statements on one subject.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The subject.
    pub title: String,
    /// Its statements.
    pub statements: Vec<Statement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    sections: Vec<Section>,
}

/// The statements as committed.
///
/// # Errors
/// The file cannot be read, or the ids are not S01, S02, … without a gap.
pub fn sections() -> anyhow::Result<Vec<Section>> {
    let text = crate::text(SOURCE)?.context("not UTF-8")?;
    let sections = toml::from_str::<Source>(&text).context(SOURCE)?.sections;
    let ids: Vec<_> = sections
        .iter()
        .flat_map(|s| &s.statements)
        .map(|s| s.id.clone())
        .collect();
    let expected: Vec<_> = (1..=ids.len()).map(|n| format!("S{n:02}")).collect();
    ensure!(
        ids == expected,
        "{SOURCE}: the ids are not S01, S02, … without a gap: {ids:?}"
    );
    Ok(sections)
}

/// Statement id → names of tests with their file, sorted.
pub type Tests = BTreeMap<String, Vec<String>>;

/// Every function in tracked Rust and TypeScript files whose name begins with statement ids.
///
/// # Errors
/// A file cannot be read.
pub fn tests() -> anyhow::Result<Tests> {
    let mut found = Tests::new();
    for path in crate::tracked(&[".rs", ".ts", ".tsx"])? {
        let Some(text) = crate::text(&path)? else { continue };
        for name in text.lines().filter_map(test_name) {
            for id in ids(name) {
                found.entry(id).or_default().push(format!("`{name}` ({path})"));
            }
        }
    }
    for names in found.values_mut() {
        names.sort();
        names.dedup();
    }
    Ok(found)
}

/// The name in `fn s34_…(`, `pub(super) async fn s34_…(` or `test("s34_…"`.
fn test_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        // `pub(super)`: tests that a macro calls, once for each database.
        Some(rest) => match rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((_, rest)) => rest.trim_start(),
            None => rest.trim_start(),
        },
        None => line,
    };
    let line = line.strip_prefix("async ").unwrap_or(line);
    let rest = line.strip_prefix("fn ").or_else(|| {
        ["test(\"", "it(\"", "test('", "it('"]
            .iter()
            .find_map(|open| line.strip_prefix(open))
    })?;
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    Some(&rest[..end]).filter(|name| !ids(name).is_empty())
}

/// The statement ids that a name begins with: `s34_s36_x` → S34, S36.
fn ids(name: &str) -> Vec<String> {
    name.split('_')
        .map_while(|part| {
            let digits = part.strip_prefix('s')?;
            (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| format!("S{digits}"))
        })
        .collect()
}

/// The text of [`LIST`].
#[must_use]
pub fn render(sections: &[Section], tests: &Tests) -> String {
    let all: Vec<_> = sections.iter().flat_map(|s| &s.statements).collect();
    let covered = all.iter().filter(|s| tests.contains_key(&s.id)).count();
    let mut out = format!(
        "# Security statements and their tests\n\n\
         Generated from {SOURCE} and the tests' names by the house tests; `make generate` rewrites it. A statement is a\n\
         promise only as far as its tests go: *absent* means that no test carries its id.\n\n\
         {covered} of {} statements are carried by tests.\n",
        all.len()
    );
    for section in sections {
        let _ = write!(
            out,
            "\n## {}\n\n| id | statement | tests |\n|---|---|---|\n",
            section.title
        );
        for statement in &section.statements {
            let tests = tests
                .get(&statement.id)
                .map_or_else(|| "*absent*".to_owned(), |names| names.join("<br>"));
            let _ = writeln!(
                out,
                "| {} | {} | {tests} |",
                statement.id,
                statement.text.replace('|', "\\|")
            );
        }
    }
    out
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn names_carry_ids_at_their_beginning_only() {
        assert_eq!(
            test_name("    async fn s34_s36_rows(store: &Store) {"),
            Some("s34_s36_rows")
        );
        assert_eq!(ids("s34_s36_rows"), ["S34", "S36"]);
        for visible in ["pub", "pub(super)", "pub(crate)", "pub(in crate::tests)"] {
            let line = format!("    {visible} async fn s35_rows(world: World) {{");
            assert_eq!(test_name(&line), Some("s35_rows"), "{line}");
        }
        assert_eq!(
            test_name("test(\"s02_cookie\", async () => {"),
            Some("s02_cookie")
        );
        assert_eq!(test_name("fn rows_s34() {"), None);
        assert_eq!(test_name("fn s3_bucket() {"), None);
        assert_eq!(test_name("// fn s34_x() {"), None);
    }

    #[test]
    fn a_statement_without_a_test_is_absent() {
        let section = Section {
            title: "T".to_owned(),
            statements: vec![
                Statement {
                    id: "S01".to_owned(),
                    text: "a | b".to_owned(),
                },
                Statement {
                    id: "S02".to_owned(),
                    text: "c".to_owned(),
                },
            ],
        };
        let tests = Tests::from([("S02".to_owned(), vec!["`s02_x` (f.rs)".to_owned()])]);
        let out = render(&[section], &tests);
        assert!(
            out.contains("| S01 | a \\| b | *absent* |") && out.contains("| S02 | c | `s02_x` (f.rs) |"),
            "{out}"
        );
        assert!(out.contains("1 of 2 statements"), "{out}");
    }
}

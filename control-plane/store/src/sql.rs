//! Statements: constant texts with parameters, and the check that each names its tenant.

use sea_orm::Value;

/// A statement's text: a constant, so that nothing is ever pasted into it (S32). Both databases read `$1`, `$2`, ….
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl Sql {
    /// One text for both databases.
    pub(crate) const fn both(text: &'static str) -> Self {
        Self {
            sqlite: text,
            postgres: text,
        }
    }
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::both(text)
    }
}

/// The same text, with PostgreSQL's row lock behind it: SQLite has one writer and needs none.
macro_rules! locking {
    ($text:literal, $lock:literal) => {
        $crate::sql::Sql {
            sqlite: $text,
            postgres: concat!($text, " ", $lock),
        }
    };
}
pub(crate) use locking;

/// Values of a statement, in order.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        vec![$(::sea_orm::Value::from($value)),*]
    };
}
pub(crate) use values;

/// `true` when a statement of a tenant's transaction is bound to that tenant: it must compare or fill the tenant's
/// column with `$1`, which the transaction itself binds, and the comparison must not be one of several alternatives.
pub(crate) fn is_scoped(text: &str) -> bool {
    let compares = COMPARED.iter().any(|c| has_word(text, c));
    let fills = text.contains("(tenant_id,") && text.contains("VALUES ($1,");
    (compares || fills) && !has_alternative(text)
}

const COMPARED: [&str; 2] = ["tenant_id = $1", "tenant.id = $1"];

/// What stands between two brackets, or in one clause of it.
#[derive(Clone, Copy, Default)]
struct Group {
    compares: bool,
    or: bool,
}

/// `true` where an OR stands beside a comparison with the tenant, in the same condition and the same brackets, however the
/// text is broken into lines: AND binds more tightly, so that whatever stands on the OR's other side goes without a tenant.
fn has_alternative(text: &str) -> bool {
    let is_of_word = |c: char| !c.is_whitespace() && c != '(' && c != ')';
    let mut outer: Vec<Group> = Vec::new();
    let mut group = Group::default();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        if length == 0 {
            match first {
                '(' => outer.push(std::mem::take(&mut group)),
                // A condition in brackets is a part of the one around it.
                ')' => {
                    let inner = std::mem::replace(&mut group, outer.pop().unwrap_or_default());
                    group.compares |= inner.compares;
                }
                _ => {}
            }
            rest = &rest[first.len_utf8()..];
        } else {
            let (word, after) = rest.split_at(length);
            if CLAUSES.iter().any(|clause| word.eq_ignore_ascii_case(clause)) {
                group = Group::default();
            }
            group.or |= word.eq_ignore_ascii_case("or");
            group.compares |= ["tenant_id", "tenant.id"]
                .iter()
                .any(|column| word.contains(column));
            rest = after;
        }
        if group.or && group.compares {
            return true;
        }
    }
    false
}

/// With each a condition ends.
const CLAUSES: [&str; 12] = [
    "SELECT",
    "FROM",
    "JOIN",
    "ON",
    "WHERE",
    "GROUP",
    "ORDER",
    "UNION",
    "SET",
    "VALUES",
    "RETURNING",
    "LIMIT",
];

/// `true` when `word` stands in the text and no digit follows it: `$1` is not `$10`.
fn has_word(text: &str, word: &str) -> bool {
    let mut places = text.match_indices(word);
    places.any(|(at, _)| !text[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

/// `true` when each joined table is bound to the tenant of another one, by its alias. For debug builds, so that every
/// test of a statement is a test of this.
pub(crate) fn joins_are_scoped(text: &str) -> bool {
    let mut joins = text.split("JOIN ").skip(1);
    joins.all(|join| {
        let mut words = join.split_whitespace();
        let alias = words.nth(1).unwrap_or_default();
        let condition = join.split_once(" ON").map_or("", |(_, rest)| rest);
        condition.contains(&format!("{alias}.tenant_id = "))
            || condition.contains(&format!("= {alias}.tenant_id"))
            || condition.contains(&format!("{alias}.id = ")) && join.starts_with("tenant ")
    })
}

/// The values of a tenant's statement: the tenant first.
pub(crate) fn scoped(tenant: uuid::Uuid, mut values: Vec<Value>) -> Vec<Value> {
    values.insert(0, tenant.into());
    values
}

#[cfg(test)]
mod tests {
    use super::{is_scoped, joins_are_scoped};

    #[test]
    fn a_statement_that_forgets_the_tenant_is_not_scoped() {
        assert!(is_scoped("SELECT x FROM object WHERE tenant_id = $1 AND id = $2"));
        assert!(is_scoped("INSERT INTO object (tenant_id, id) VALUES ($1, $2)"));
        assert!(!is_scoped("SELECT x FROM object WHERE id = $1"));
        assert!(!is_scoped("INSERT INTO object (id, tenant_id) VALUES ($1, $2)"));
        assert!(!is_scoped("SELECT x FROM object WHERE tenant_id = $10"));
        assert!(is_scoped("SELECT $10 FROM object WHERE tenant_id = $1"));
        for or in ["tenant_id = $2 OR tenant_id = $1", "tenant_id = $1 OR id = $2"] {
            assert!(!is_scoped(&format!("SELECT x FROM object WHERE {or}")), "{or}");
        }
    }

    #[test]
    fn s33_an_alternative_to_the_tenant_is_seen_however_it_is_written() {
        for or in [
            "tenant_id = $1\n            OR id = $2",
            "tenant_id = $1  OR  id = $2",
            "tenant_id = $1\tor id = $2",
            "(tenant_id = $1)OR(id = $2)",
            "(tenant_id = $1) OR id = $2",
            "id = $2 OR\n tenant_id = $1",
            "id = $2 OR (tenant_id = $1)",
            "id = $2 OR o.tenant_id = $1",
            // AND binds more tightly.
            "tenant_id = $1 AND id = $2 OR name = $3",
            "name = $3 OR id = $2 AND tenant_id = $1",
            "(name = $3 OR tenant_id = $1 AND id = $2)",
            "EXISTS (SELECT 1 FROM a WHERE a.id = $2 OR a.tenant_id = $1)",
            "tenant_id = $1 OR EXISTS (SELECT 1 FROM a WHERE a.tenant_id = $1)",
        ] {
            assert!(!is_scoped(&format!("SELECT x FROM object WHERE {or}")), "{or}");
        }
        for good in [
            "tenant_id = $1 AND (id = $2 OR name = $3)",
            "tenant_id = $1\n AND ($2 IS NULL OR\n id = $2) ORDER BY id",
            "(id = $2 OR name = $3) AND tenant_id = $1",
            "tenant_id = $1 AND EXISTS (SELECT 1 FROM a WHERE a.tenant_id = $1 AND (a.x OR a.y))",
        ] {
            assert!(is_scoped(&format!("SELECT x FROM object WHERE {good}")), "{good}");
        }
        assert!(is_scoped("SELECT (a OR b) AS c FROM object WHERE tenant_id = $1"));
    }

    #[test]
    fn a_join_that_forgets_the_tenant_is_not_scoped() {
        let join = |on: &str| {
            joins_are_scoped(&format!(
                "SELECT 1 FROM a JOIN b x ON {on} WHERE a.tenant_id = $1"
            ))
        };
        assert!(join("x.tenant_id = a.tenant_id AND x.id = a.b"));
        assert!(!join("x.id = a.b"));
        assert!(!join("a.tenant_id = a.tenant_id AND x.id = a.b"));
    }
}

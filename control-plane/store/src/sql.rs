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
    let alternative = [
        "OR tenant_id = $",
        "OR tenant.id = $",
        "tenant_id = $1 OR ",
        "tenant.id = $1 OR ",
    ];
    if alternative.iter().any(|or| text.contains(or)) {
        return false;
    }
    let compares = ["tenant_id = $1", "tenant.id = $1"]
        .iter()
        .any(|c| has_word(text, c));
    let fills = text.contains("(tenant_id,") && text.contains("VALUES ($1,");
    compares || fills
}

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

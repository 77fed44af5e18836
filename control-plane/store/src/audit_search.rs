//! Searching the audit log: each filter by an index of its own (`m0007_audit_indexes`), so that what fits little is found
//! without reading what does not.

use crate::audit::{AuditRecord, Row};
use crate::cursor::Listing;
use crate::sql::{Sql, values};
use crate::tx::Tx;
use roadstead_domain::{Error, Page, PageRequest};
use sea_orm::Value;

/// What a list of records is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub actor: Option<String>,
    pub action: Option<String>,
    pub object: Option<String>,
    /// `allow`, `deny`, `refuse`.
    pub decision: Option<String>,
    /// Written at this moment or later; milliseconds since the Unix epoch, UTC.
    pub since_ms: Option<i64>,
    /// Written before this moment.
    pub until_ms: Option<i64>,
}

/// In the order of the chain. `$lead` is the condition that `$index` serves; the others only leave out. SQLite, which keeps
/// no statistics here, would take the primary key: it is told. The index has the order of the chain too, so that it costs
/// nothing where much fits.
macro_rules! by_number {
    ($index:literal, $lead:literal) => {
        Sql {
            sqlite: by_number!(text concat!("INDEXED BY ", $index), $lead),
            postgres: by_number!(text "", $lead),
        }
    };
    (text $from:expr, $lead:literal) => {
        concat!(
            "SELECT seq, id, at_ms, actor, on_behalf_of, action, object, revision, decision, grant_by, source_ip,
            source_client, trace_id, request_id, detail, prev_hash, hash
            FROM audit ",
            $from,
            " WHERE tenant_id = $1 AND seq < $2 ",
            $lead,
            " AND ($3 IS NULL OR actor = $3) AND ($4 IS NULL OR action = $4) AND ($5 IS NULL OR object = $5)
            AND ($6 IS NULL OR decision = $6) AND at_ms >= $7 AND at_ms < $8 ORDER BY seq DESC LIMIT $9"
        )
    };
}

const ANY: Sql = Sql::both(by_number!(text "", ""));
const OBJECT: Sql = by_number!("audit_by_object", "AND object = $5");
const ACTOR: Sql = by_number!("audit_by_actor", "AND actor = $3");
const ACTION: Sql = by_number!("audit_by_action", "AND action = $4");
/// Both databases use a part of an index only where its condition stands in the statement.
const REFUSAL: Sql = by_number!("audit_by_refusal", "AND decision <> 'allow' AND decision = $6");

/// By time: in the order of time, which is that of the chain but for replicas whose clocks differ.
macro_rules! by_time {
    ($from:literal) => {
        concat!(
            "SELECT seq, id, at_ms, actor, on_behalf_of, action, object, revision, decision, grant_by, source_ip,
            source_client, trace_id, request_id, detail, prev_hash, hash
            FROM audit ",
            $from,
            " WHERE tenant_id = $1 AND at_ms >= $2 AND at_ms <= $3 AND (at_ms < $3 OR seq < $4)
            AND ($6 IS NULL OR decision = $6) ORDER BY at_ms DESC, seq DESC LIMIT $5"
        )
    };
}

const TIME: Sql = Sql {
    sqlite: by_time!("INDEXED BY audit_by_time"),
    postgres: by_time!(""),
};

impl AuditFilter {
    /// The statement whose index leaves least to look at: of an object there are few records, of an action many. Refusals are
    /// rarer than whatever one actor does.
    fn statement(&self) -> Sql {
        match self {
            Self { object: Some(_), .. } => OBJECT,
            Self {
                decision: Some(decision),
                ..
            } if decision != "allow" => REFUSAL,
            Self { actor: Some(_), .. } => ACTOR,
            Self { action: Some(_), .. } => ACTION,
            _ => ANY,
        }
    }

    /// A moment alone narrows it; that a record is an `allow`, as nearly all are, does not.
    fn is_time(&self) -> bool {
        let Self {
            actor,
            action,
            object,
            decision,
            since_ms,
            until_ms,
        } = self;
        let bounded = since_ms.is_some() || until_ms.is_some();
        let allowed = decision.as_deref().is_none_or(|decision| decision == "allow");
        bounded && allowed && [actor, action, object].iter().all(|text| text.is_none())
    }

    fn values(&self, before: i64, limit: i64) -> Vec<Value> {
        values![
            before,
            self.actor.clone(),
            self.action.clone(),
            self.object.clone(),
            self.decision.clone(),
            self.since_ms.unwrap_or(i64::MIN),
            self.until_ms.unwrap_or(i64::MAX),
            limit
        ]
    }
}

impl Tx<'_> {
    /// The tenant's records that fit, newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn audit_records(
        &self,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<AuditRecord>, Error> {
        let listing = Listing::new(self.tenant(), "audit", filter);
        let size = page.size()?;
        let limit = i64::from(size) + 1;
        if filter.is_time() {
            let before: Option<(i64, i64)> = listing.open(page.after.as_deref())?;
            let last = filter.until_ms.map_or(i64::MAX, |until| until.saturating_sub(1));
            let (at_ms, seq) = before.unwrap_or((last, i64::MAX));
            let values = values![
                filter.since_ms.unwrap_or(i64::MIN),
                at_ms,
                seq,
                limit,
                filter.decision.clone()
            ];
            let records = self.searched(TIME, values).await?;
            return Ok(listing.page(records, size, |r: &AuditRecord| (r.at_ms, r.seq)));
        }
        let before: Option<i64> = listing.open(page.after.as_deref())?;
        let values = filter.values(before.unwrap_or(i64::MAX), limit);
        let records = self.searched(filter.statement(), values).await?;
        Ok(listing.page(records, size, |r: &AuditRecord| r.seq))
    }

    async fn searched(&self, sql: Sql, values: Vec<Value>) -> Result<Vec<AuditRecord>, Error> {
        let rows: Vec<Row> = self.all(sql, values).await?;
        rows.into_iter().map(Row::record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;
    use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DbBackend, Statement};

    const TENANT: &str = "01890000-0000-7000-8000-000000000001";

    /// Each statement with the index that must serve it, and how much of it SQLite must use.
    fn cases() -> Vec<(Sql, &'static str, &'static str, AuditFilter)> {
        let some = |text: &str| Some(text.to_owned());
        let none = AuditFilter::default;
        let filters = [
            (
                "audit_by_object",
                "object=? AND seq<?",
                AuditFilter {
                    object: some("obj 7"),
                    ..none()
                },
            ),
            (
                "audit_by_actor",
                "actor=? AND seq<?",
                AuditFilter {
                    actor: some("token:7"),
                    ..none()
                },
            ),
            (
                "audit_by_action",
                "action=? AND seq<?",
                AuditFilter {
                    action: some("act 7"),
                    ..none()
                },
            ),
            (
                "audit_by_refusal",
                "decision=? AND seq<?",
                AuditFilter {
                    decision: some("deny"),
                    ..none()
                },
            ),
            (
                "audit_by_object",
                "object=? AND seq<?",
                AuditFilter {
                    object: some("obj 7"),
                    actor: some("token:7"),
                    since_ms: Some(5),
                    ..none()
                },
            ),
        ];
        filters
            .map(|(index, used, filter)| (filter.statement(), index, used, filter))
            .into()
    }

    #[test]
    fn a_filter_that_fits_nearly_all_is_left_to_what_time_leaves() {
        let filter = |decision: &str, since_ms| AuditFilter {
            decision: Some(decision.to_owned()),
            since_ms,
            ..AuditFilter::default()
        };
        assert!(filter("allow", Some(5)).is_time());
        assert!(!filter("allow", None).is_time());
        assert!(!filter("deny", Some(5)).is_time());
        let of_one = AuditFilter {
            actor: Some("token:7".to_owned()),
            ..filter("allow", Some(5))
        };
        assert!(!of_one.is_time());
    }

    /// The statement with its values in it.
    fn filled(sql: &str, backend: DbBackend, values: Vec<Value>) -> String {
        let tenant = match backend {
            DbBackend::Postgres => format!("'{TENANT}'"),
            _ => format!("x'{}'", TENANT.replace('-', "")),
        };
        let mut text = sql.to_owned();
        for (n, value) in values.iter().enumerate().rev() {
            let literal = match value {
                Value::String(Some(text)) => format!("'{text}'"),
                Value::BigInt(Some(number)) => format!("({number})"),
                _ => "NULL".to_owned(),
            };
            text = text.replace(&format!("${}", n + 2), &literal);
        }
        text.replace("$1", &tenant)
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a test that looks at plans")]
    async fn sqlite_finds_by_an_index_and_sorts_nothing() {
        let database = TestDatabase::sqlite();
        crate::migrate(database.url(), None).await.expect("migrated");
        let connection = Database::connect(ConnectOptions::new(database.url()))
            .await
            .expect("opened");
        let time = (
            TIME,
            "audit_by_time",
            "at_ms>? AND at_ms<?",
            AuditFilter::default(),
        );
        // PostgreSQL goes by its statistics here.
        let refused = AuditFilter {
            decision: Some("deny".to_owned()),
            actor: Some("token:7".to_owned()),
            ..AuditFilter::default()
        };
        let refusal = (
            refused.statement(),
            "audit_by_refusal",
            "decision=? AND seq<?",
            refused,
        );
        for (sql, index, used, filter) in cases().into_iter().chain([time, refusal]) {
            let text = format!("EXPLAIN QUERY PLAN {}", sql.sqlite);
            let mut values = filter.values(i64::MAX, 11);
            values.insert(0, vec![0_u8; 16].into());
            values.truncate((1..=9).filter(|n| sql.sqlite.contains(&format!("${n}"))).count());
            let statement = Statement::from_sql_and_values(DbBackend::Sqlite, text, values);
            let rows = connection.query_all_raw(statement).await.expect("a plan");
            let plan: Vec<String> = rows
                .iter()
                .map(|row| row.try_get("", "detail").expect("a step"))
                .collect();
            let expected = format!("SEARCH audit USING INDEX {index} (tenant_id=? AND {used})");
            assert_eq!(plan, [expected]);
        }
    }

    #[tokio::test]
    async fn postgres_finds_by_an_index_and_sorts_nothing() {
        let Some(database) = TestDatabase::postgres().await else {
            return;
        };
        database
            .tamper(&format!(
                "INSERT INTO tenant (id, name, created_ms) VALUES ('{TENANT}', 'acme', 1);
                INSERT INTO audit SELECT '{TENANT}', n, gen_random_uuid(), n, 'token:' || n % 1000, '',
                'act ' || n % 500, 'obj ' || n % 5000, NULL, CASE WHEN n % 400 = 0 THEN 'deny' ELSE 'allow' END,
                '', '', '', '', '', '{{}}', ''::bytea, ''::bytea FROM generate_series(1, 40000) n;
                ANALYZE audit"
            ))
            .await;
        let plan_of = async |sql: Sql, values: Vec<Value>| {
            let text = filled(sql.postgres, DbBackend::Postgres, values);
            database.ask_all(&format!("EXPLAIN {text}")).await.join("\n")
        };
        let indexed = |plan: &str, index: &str| {
            assert!(
                plan.contains(&format!("using {index} on audit")),
                "{index}: {plan}"
            );
            assert!(
                !plan.contains("Sort") && !plan.contains("Seq Scan"),
                "{index}: {plan}"
            );
        };
        for (sql, index, _, filter) in cases() {
            let plan = plan_of(sql, filter.values(i64::MAX, 11)).await;
            indexed(&plan, index);
        }
        // A moment in the middle of the log, and a page deep in it.
        let plan = plan_of(
            TIME,
            values![100_i64, 20_000_i64, 20_000_i64, 11_i64, Some("allow".to_owned())],
        )
        .await;
        indexed(&plan, "audit_by_time");
        let plan = plan_of(ANY, AuditFilter::default().values(i64::MAX, 11)).await;
        indexed(&plan, "audit_pkey");
    }
}

//! The audit log: one chain of hashes per tenant.
//!
//! `hash = SHA-256(prev_hash ‖ canonical JSON of the record (RFC 8785))` (tenancy.md §6), appended in the transaction
//! of the act, under one row lock per tenant that also orders the tenant's accepted writes. The head is kept apart,
//! so that a cut end is seen as well. Whoever can rewrite the whole chain and its head is beyond this check: exports
//! with a signed head are the answer to that.

use crate::error::corrupt;
use crate::sql::{locking, values};
use crate::tx::Tx;
use roadstead_domain::{AuditId, Error, TenantId};
use sea_orm::FromQueryResult;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Hash before the first record.
const BEGINNING: [u8; 32] = [0; 32];
/// Rows that a check reads at once.
const PAGE: i64 = 500;

/// What came of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted and done, in the same transaction.
    Allowed,
    /// The actor may not.
    Denied,
    /// Something forged, used up or revoked was presented.
    Refused,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allow",
            Self::Denied => "deny",
            Self::Refused => "refuse",
        }
    }
}

/// A record to append; time, actor, source and ids come from the context.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// `apply document`, `enrol`, ….
    pub action: String,
    /// The object's id in text.
    pub object: String,
    /// The revision that the act made, where it made one.
    pub revision: Option<u64>,
    pub outcome: Outcome,
    /// By what it was allowed.
    pub grant: String,
    /// Field names, digests, counts; never content or secrets.
    pub detail: Map<String, Json>,
}

impl AuditEntry {
    /// An accepted act.
    pub fn allowed(
        action: impl Into<String>,
        object: impl std::fmt::Display,
        grant: impl Into<String>,
    ) -> Self {
        Self {
            action: action.into(),
            object: object.to_string(),
            revision: None,
            outcome: Outcome::Allowed,
            grant: grant.into(),
            detail: Map::new(),
        }
    }

    /// An act that was refused.
    pub fn refused(outcome: Outcome, action: impl Into<String>, object: impl std::fmt::Display) -> Self {
        Self {
            outcome,
            ..Self::allowed(action, object, "")
        }
    }

    #[must_use]
    pub fn revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.detail.insert(key.to_owned(), value.into());
        self
    }
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    pub seq: u64,
    pub id: AuditId,
    pub at_ms: i64,
    pub actor: String,
    pub on_behalf_of: String,
    pub action: String,
    pub object: String,
    pub revision: Option<u64>,
    /// `allow`, `deny`, `refuse`.
    pub decision: String,
    pub grant: String,
    pub source_ip: String,
    pub source_client: String,
    pub trace_id: String,
    pub request_id: String,
    pub detail: Json,
    pub hash: [u8; 32],
}

/// One tenant's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditReport {
    pub tenant: TenantId,
    pub tenant_name: String,
    /// Records that hold.
    pub records: u64,
    /// The first thing that is wrong.
    pub broken: Option<Broken>,
}

/// Where a chain breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("record {seq} was changed, or moved here from another place")]
    Changed { seq: u64 },
    #[error("record {seq} is missing")]
    Missing { seq: u64 },
    #[error("record {seq} was added behind the log's back")]
    Added { seq: u64 },
    #[error("the head says {head} records, the log ends at {last}")]
    Head { head: u64, last: u64 },
}

impl Broken {
    /// The first sequence number that cannot be trusted.
    #[must_use]
    pub fn seq(&self) -> u64 {
        match self {
            Self::Changed { seq } | Self::Missing { seq } | Self::Added { seq } => *seq,
            Self::Head { last, .. } => last + 1,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Head {
    seq: i64,
    hash: [u8; 32],
    changed: bool,
}

#[derive(Debug, FromQueryResult)]
struct HeadRow {
    seq: i64,
    hash: Vec<u8>,
}

#[derive(Debug, FromQueryResult)]
pub(crate) struct Row {
    seq: i64,
    id: Uuid,
    at_ms: i64,
    actor: String,
    on_behalf_of: String,
    action: String,
    object: String,
    revision: Option<i64>,
    decision: String,
    grant_by: String,
    source_ip: String,
    source_client: String,
    trace_id: String,
    request_id: String,
    detail: String,
    prev_hash: Vec<u8>,
    hash: Vec<u8>,
}

impl Row {
    /// What is hashed. The detail goes in as the text it is kept as, so that no change of it passes.
    fn canonical(&self, tenant: TenantId) -> String {
        canonical_json(&json!({
            "seq": self.seq,
            "id": AuditId::from_uuid(self.id),
            "time": self.at_ms,
            "tenant": tenant,
            "actor": self.actor,
            "on_behalf_of": self.on_behalf_of,
            "action": self.action,
            "object": self.object,
            "revision": self.revision,
            "decision": self.decision,
            "grant": self.grant_by,
            "source": {"ip": self.source_ip, "client": self.source_client},
            "trace_id": self.trace_id,
            "request_id": self.request_id,
            "detail": self.detail,
        }))
    }

    fn chain(&self, tenant: TenantId, prev: &[u8; 32]) -> [u8; 32] {
        let canonical = self.canonical(tenant);
        Sha256::new()
            .chain_update(prev)
            .chain_update(canonical)
            .finalize()
            .into()
    }

    pub(crate) fn record(self) -> Result<AuditRecord, Error> {
        Ok(AuditRecord {
            seq: self.seq.cast_unsigned(),
            id: AuditId::from_uuid(self.id),
            at_ms: self.at_ms,
            actor: self.actor,
            on_behalf_of: self.on_behalf_of,
            action: self.action,
            object: self.object,
            revision: self.revision.map(i64::cast_unsigned),
            decision: self.decision,
            grant: self.grant_by,
            source_ip: self.source_ip,
            source_client: self.source_client,
            trace_id: self.trace_id,
            request_id: self.request_id,
            detail: serde_json::from_str(&self.detail).map_err(|_| corrupt("an audit record's detail"))?,
            hash: hash32(&self.hash)?,
        })
    }
}

pub(crate) fn hash32(bytes: &[u8]) -> Result<[u8; 32], Error> {
    bytes
        .try_into()
        .map_err(|_| corrupt("a hash of the wrong length"))
}

impl Tx<'_> {
    /// Takes the tenant's audit lock, once.
    pub(crate) async fn lock_audit(&mut self) -> Result<(), Error> {
        if self.head.is_some() {
            return Ok(());
        }
        let sql = locking!(
            "SELECT seq, hash FROM audit_head WHERE tenant_id = $1",
            "FOR UPDATE"
        );
        let row: HeadRow = self
            .one(sql, values![])
            .await?
            .ok_or_else(|| corrupt("a tenant without an audit head"))?;
        self.head = Some(Head {
            seq: row.seq,
            hash: hash32(&row.hash)?,
            changed: false,
        });
        Ok(())
    }

    /// Appends a record; it is kept if, and only if, the transaction is.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn audit(&mut self, entry: AuditEntry) -> Result<(), Error> {
        self.lock_audit().await?;
        let head = self
            .head
            .clone()
            .ok_or_else(|| corrupt("a tenant without an audit head"))?;
        let request = self.ctx.request();
        let row = Row {
            seq: head.seq + 1,
            id: AuditId::generate(&*self.store.clock, &*self.store.random).as_uuid(),
            at_ms: self.now_ms(),
            actor: self.ctx.actor().label(),
            on_behalf_of: String::new(),
            action: entry.action,
            object: entry.object,
            revision: entry.revision.map(u64::cast_signed),
            decision: entry.outcome.as_str().to_owned(),
            grant_by: entry.grant,
            source_ip: request.source.ip.map(|ip| ip.to_string()).unwrap_or_default(),
            source_client: request.source.client.clone(),
            trace_id: request.trace_id.clone(),
            request_id: request.request_id.clone(),
            detail: canonical_json(&Json::Object(entry.detail)),
            prev_hash: head.hash.to_vec(),
            hash: Vec::new(),
        };
        let hash = row.chain(self.tenant(), &head.hash);
        let sql = "INSERT INTO audit (tenant_id, seq, id, at_ms, actor, on_behalf_of, action, object, revision, decision,
            grant_by, source_ip, source_client, trace_id, request_id, detail, prev_hash, hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)";
        let values = values![
            row.seq,
            row.id,
            row.at_ms,
            row.actor,
            row.on_behalf_of,
            row.action,
            row.object,
            row.revision,
            row.decision,
            row.grant_by,
            row.source_ip,
            row.source_client,
            row.trace_id,
            row.request_id,
            row.detail,
            row.prev_hash,
            hash.to_vec()
        ];
        self.run(sql, values).await?;
        self.audited.push(entry.outcome.as_str());
        self.head = Some(Head {
            seq: head.seq + 1,
            hash,
            changed: true,
        });
        Ok(())
    }

    /// Writes the head back before a commit.
    pub(crate) async fn write_head(&mut self) -> Result<(), Error> {
        let Some(head) = self.head.as_ref().filter(|head| head.changed) else {
            return Ok(());
        };
        let sql = "UPDATE audit_head SET seq = $2, hash = $3 WHERE tenant_id = $1";
        self.run(sql, values![head.seq, head.hash.to_vec()]).await?;
        Ok(())
    }

    async fn audit_rows(&self, after: i64, limit: i64) -> Result<Vec<Row>, Error> {
        let sql = "SELECT seq, id, at_ms, actor, on_behalf_of, action, object, revision, decision, grant_by, source_ip,
            source_client, trace_id, request_id, detail, prev_hash, hash
            FROM audit WHERE tenant_id = $1 AND seq > $2 ORDER BY seq LIMIT $3";
        self.all(sql, values![after, limit]).await
    }

    /// Walks the whole chain. In a transaction of [`crate::TenantStore::snapshot`], so that a writer in between is not
    /// taken for a forger.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`]; a broken chain is no error but part of the report.
    pub async fn verify_audit(&self) -> Result<AuditReport, Error> {
        let sql = "SELECT seq, hash FROM audit_head WHERE tenant_id = $1";
        let head: Option<HeadRow> = self.one(sql, values![]).await?;
        let (head_seq, head_hash) = head.map_or((0, Vec::new()), |h| (h.seq, h.hash));
        let mut report = AuditReport {
            tenant: self.tenant(),
            tenant_name: self.ctx.tenant_name().to_owned(),
            records: 0,
            broken: None,
        };
        let (mut seq, mut hash) = (0_i64, BEGINNING);
        let mut beginning = i64::MIN;
        loop {
            let rows = self.audit_rows(beginning, PAGE).await?;
            let Some(last) = rows.last() else { break };
            beginning = last.seq;
            for row in &rows {
                if let Some(broken) = check(row, self.tenant(), (seq + 1, &hash), head_seq) {
                    report.broken = Some(broken);
                    return Ok(report);
                }
                (seq, hash) = (row.seq, hash32(&row.hash)?);
                report.records += 1;
            }
        }
        if head_seq != seq || head_hash != hash {
            report.broken = Some(Broken::Head {
                head: head_seq.cast_unsigned(),
                last: seq.cast_unsigned(),
            });
        }
        Ok(report)
    }
}

/// What is wrong with `row`, which should be number `expected.0` after the hash `expected.1`.
fn check(row: &Row, tenant: TenantId, expected: (i64, &[u8; 32]), head: i64) -> Option<Broken> {
    let (seq, prev) = expected;
    if row.seq < seq || row.seq > head {
        return Some(Broken::Added {
            seq: row.seq.cast_unsigned(),
        });
    }
    if row.seq > seq {
        return Some(Broken::Missing {
            seq: seq.cast_unsigned(),
        });
    }
    let holds = row.prev_hash == prev && row.hash == row.chain(tenant, prev);
    (!holds).then_some(Broken::Changed {
        seq: seq.cast_unsigned(),
    })
}

/// Canonical JSON (RFC 8785) of a value without fractions: members sorted by UTF-16 code units, no white space,
/// shortest escapes (which are `serde_json`'s). The hub's records hold texts and whole numbers only.
#[must_use]
pub fn canonical_json(value: &Json) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Json, text: &mut String) {
    match value {
        Json::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
            text.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Json::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(&members[key], text);
            }
            text.push('}');
        }
        Json::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_is_rfc_8785() {
        // Section 3.2.3's own example of sorting, and 3.2.2.2's of escapes.
        let value: Json = serde_json::from_str(
            r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",
                "\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#,
        )
        .expect("JSON");
        let canonical = canonical_json(&value);
        let order: Vec<usize> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
            .iter()
            .map(|word| canonical.find(word).expect("there"))
            .collect();
        assert!(order.is_sorted(), "{canonical}");
        let text = json!({"string": "\u{20ac}$\u{f}\nA'B\"\\\\\"/", "list": [1, null, true]});
        assert_eq!(
            canonical_json(&text),
            "{\"list\":[1,null,true],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
    }
}

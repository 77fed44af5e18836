//! What was done.

use super::moment;
use async_graphql::{ID, Json, SimpleObject};
use chrono::{DateTime, Utc};
use serde_json::Value;

/// One record of the audit log: an accepted write, a denial, a login. Each holds the hash of the one before.
#[derive(SimpleObject, Debug)]
pub(crate) struct AuditRecord {
    id: ID,
    /// From 1, without gaps.
    sequence: u64,
    time: DateTime<Utc>,
    actor: String,
    on_behalf_of: Option<String>,
    action: String,
    object: String,
    revision: Option<u64>,
    decision: String,
    grant: Option<String>,
    source_ip: Option<String>,
    source_client: Option<String>,
    trace_id: Option<String>,
    request_id: Option<String>,
    /// Names of fields and digests; never content or secrets.
    detail: Json<Value>,
    /// SHA-256 over the hash of the record before and this record, in hex.
    hash: String,
}

fn text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<roadstead_store::AuditRecord> for AuditRecord {
    fn from(record: roadstead_store::AuditRecord) -> Self {
        Self {
            id: record.id.to_string().into(),
            sequence: record.seq,
            time: moment(record.at_ms),
            actor: record.actor,
            on_behalf_of: text(record.on_behalf_of),
            action: record.action,
            object: record.object,
            revision: record.revision,
            decision: record.decision,
            grant: text(record.grant),
            source_ip: text(record.source_ip),
            source_client: text(record.source_client),
            trace_id: text(record.trace_id),
            request_id: text(record.request_id),
            detail: Json(record.detail),
            hash: record.hash.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

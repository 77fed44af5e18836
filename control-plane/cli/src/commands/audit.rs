//! `audit`: who did what, and who was not let.

use crate::{
    api::AuditRecord,
    args::{Audit, Common},
    client::Client,
    failure::Outcome,
    render::{self, Table, time},
    shell::Shell,
};
use serde_json::{Value, json};

pub(super) async fn run(client: &Client, common: &Common, args: &Audit, shell: &mut Shell) -> Outcome<()> {
    let records: Vec<AuditRecord> = client
        .list("AuditRecords", "auditRecords", json!({}), args.limit)
        .await?;
    render::list(shell, common.output, &records, "no audit records", |records| {
        let mut table = Table::new(&[
            "SEQUENCE", "TIME", "ACTOR", "ACTION", "OBJECT", "DECISION", "FROM", "DETAIL",
        ]);
        for r in records {
            let actor = match r.on_behalf_of.as_deref().filter(|other| !other.is_empty()) {
                Some(other) => format!("{} for {other}", r.actor),
                None => r.actor.clone(),
            };
            let from = [r.source_ip.as_deref(), r.source_client.as_deref()];
            let from: Vec<&str> = from.into_iter().flatten().filter(|f| !f.is_empty()).collect();
            table.row([
                r.sequence.to_string(),
                time(r.time),
                actor,
                r.action.clone(),
                r.object.clone(),
                r.decision.clone(),
                from.join(" "),
                detail(&r.detail),
            ]);
        }
        table
    })
}

/// `name=value`, in the record's order.
fn detail(detail: &Value) -> String {
    let Some(fields) = detail.as_object() else {
        return String::new();
    };
    let shown = fields.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

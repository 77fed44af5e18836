//! `audit`: who did what, and who was not let.

use crate::{
    api::AuditRecord,
    args::{Audit, Common},
    client::Client,
    failure::Outcome,
    render::{self, Table, time},
    shell::Shell,
    when,
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

pub(super) async fn run(client: &Client, common: &Common, args: &Audit, shell: &mut Shell) -> Outcome<()> {
    let variables = json!({"filter": filter(args, (shell.now)())});
    let records: Vec<AuditRecord> = client
        .list("AuditRecords", "auditRecords", variables, args.limit)
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

/// What was asked for; null for everything.
fn filter(args: &Audit, now: DateTime<Utc>) -> Value {
    let texts = [
        ("actor", &args.actor),
        ("action", &args.action),
        ("object", &args.object),
        ("decision", &args.decision),
    ];
    let mut filter = Map::new();
    for (field, text) in texts {
        if let Some(text) = text {
            filter.insert(field.to_owned(), json!({"eq": text}));
        }
    }
    let time = when::filter(args.span.since, args.span.until, now);
    if !time.is_null() {
        filter.insert("time".to_owned(), time);
    }
    match filter.is_empty() {
        true => Value::Null,
        false => filter.into(),
    }
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

//! `rollback`: an earlier revision becomes the newest one.

use crate::{
    api::{ApplyPayload, Document, Payload, Revision, UserError, kind_name},
    args::{Common, Format, Rollback},
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    render,
    shell::Shell,
};
use roadstead_contract::documents::{Kind, Reference};
use serde_json::json;

pub(super) async fn run(client: &Client, common: &Common, args: &Rollback, shell: &mut Shell) -> Outcome<()> {
    let (kind, reference) = args.target().map_err(|why| {
        Failure::new(Exit::Usage, why).next("roadstead rollback [KIND] NAME [--to REVISION]")
    })?;
    let now = client.document(kind, &reference).await?;
    let name = format!("{kind} {}/{}", now.project, now.name);
    let to = match args.to {
        Some(revision) => revision,
        None if now.revision > 1 => now.revision - 1,
        None => {
            let message = format!("{name} has one revision: there is nothing to go back to");
            return Err(Failure::new(Exit::Invalid, message).next(format!(
                "roadstead revisions {} {}/{}",
                kind.as_str().to_lowercase(),
                now.project,
                now.name
            )));
        }
    };
    let (object, errors) = match kind {
        Kind::Agent => agent(client, &now, to).await?,
        _ => other(client, kind, &reference, &now, to).await?,
    };
    let what = format!("{name} was not rolled back");
    if let Some(failure) = client.user_errors(&errors, &what, error_line) {
        return Err(failure);
    }
    let object = object.ok_or_else(super::secret::neither_yes_nor_no)?;
    if common.output != Format::Table {
        return render::value(shell, common.output, &object);
    }
    shell.say(&format!(
        "{name} is at revision {}, with the content of revision {to}\n",
        object.revision
    ))
}

type Written = (Option<Document>, Vec<UserError>);

/// The API's own operation. What was looked at is what is rolled back: somebody else's write in between is a conflict.
async fn agent(client: &Client, now: &Document, to: u64) -> Outcome<Written> {
    let input = json!({
        "project": now.project,
        "name": now.name,
        "toRevision": to,
        "expectedRevision": now.revision,
        "idempotencyKey": super::idempotency_key(),
    });
    let payload: Payload = client
        .call("RollBackAgent", "rollBackAgent", json!({"input": input}))
        .await?;
    Ok((payload.object, payload.errors))
}

/// The old content written anew, under the same condition: the API has no operation of its own for the other kinds.
async fn other(
    client: &Client,
    kind: Kind,
    reference: &Reference,
    now: &Document,
    to: u64,
) -> Outcome<Written> {
    let (project, name) = client.place(reference);
    let variables = json!({"kind": kind_name(kind), "project": project, "name": name, "json": true});
    // Newest first and without gaps: the wanted one is the last of so many.
    let until = now.revision.saturating_sub(to).saturating_add(1);
    let until = usize::try_from(until).unwrap_or(usize::MAX);
    let found: Vec<Revision> = client.list("Revisions", "revisions", variables, until).await?;
    let old = found.into_iter().find(|revision| revision.revision == to);
    let content = old.and_then(|revision| revision.json).ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("{kind} {project}/{name} has no revision {to}"),
        )
        .next(format!(
            "roadstead revisions {} {project}/{name}",
            kind.as_str().to_lowercase()
        ))
    })?;
    let input = json!({
        "documents": [{"json": content, "expectedRevision": now.revision}],
        "project": now.project,
        "message": format!("roll back to revision {to}"),
        "idempotencyKey": super::idempotency_key(),
    });
    let payload: ApplyPayload = client
        .call(
            "ApplyDocuments",
            "applyDocuments",
            json!({"input": input, "diff": false}),
        )
        .await?;
    let object = payload.results.into_iter().next().map(|result| result.object);
    Ok((object, payload.errors))
}

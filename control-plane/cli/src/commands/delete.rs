//! `delete`: one document by name, or those of files (agents first, so that nothing is left without what it refers to).

use crate::{
    api::{Payload, kind_name},
    args::{Common, Delete, Format},
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    files, render,
    shell::Shell,
};
use roadstead_contract::documents::{Kind, Reference};
use serde_json::{Value, json};

pub(super) async fn run(client: &Client, common: &Common, args: &Delete, shell: &mut Shell) -> Outcome<()> {
    let targets = targets(client, args, shell)?;
    let mut deleted = Vec::new();
    for (kind, reference) in &targets {
        let (project, name) = client.place(reference);
        let mut input = json!({
            "kind": kind_name(*kind),
            "project": project,
            "name": name,
            "idempotencyKey": super::idempotency_key(),
        });
        if let Some(revision) = args.expected_revision {
            input["expectedRevision"] = revision.into();
        }
        let payload: Payload = client
            .call("DeleteDocument", "deleteDocument", json!({"input": input}))
            .await?;
        let what = format!("{kind} {project}/{name} was not deleted");
        if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
            return Err(failure);
        }
        if common.output == Format::Table {
            shell.say(&format!("{kind} {project}/{name} deleted\n"))?;
        } else {
            deleted
                .push(json!({"kind": kind.as_str(), "project": project, "name": name, "action": "DELETED"}));
        }
    }
    if common.output == Format::Table {
        Ok(())
    } else {
        render::value(shell, common.output, &Value::from(deleted))
    }
}

fn targets(client: &Client, args: &Delete, shell: &mut Shell) -> Outcome<Vec<(Kind, Reference)>> {
    if let (Some(kind), Some(name)) = (args.kind, &args.name) {
        if !args.files.files.is_empty() {
            return Err(Failure::new(Exit::Usage, "name a document or files, not both"));
        }
        return Ok(vec![(kind, name.clone())]);
    }
    let parsed = files::documents(&args.files, &client.project, shell)?;
    let mut targets: Vec<(Kind, Reference)> = parsed
        .into_iter()
        .map(|p| {
            let metadata = p.document.metadata.clone();
            let reference = Reference {
                project: metadata.project,
                name: metadata.name,
            };
            (p.document.kind(), reference)
        })
        .collect();
    targets.sort_by_key(|(kind, _)| std::cmp::Reverse(Kind::ALL.iter().position(|k| k == kind)));
    Ok(targets)
}

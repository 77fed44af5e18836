//! `apply`: every document, or none.

use crate::{
    api::{Applied, ApplyPayload, UserError, kind_shown},
    args::{Apply, Common, Format},
    client::{Client, error_line},
    diff,
    failure::{Exit, Failure, Outcome},
    files,
    render::{self, Table},
    shell::Shell,
};
use roadstead_contract::documents::Parsed;
use serde_json::{Value, json};
use std::io::Write as _;

pub(super) async fn run(client: &Client, common: &Common, args: &Apply, shell: &mut Shell) -> Outcome<()> {
    // What is asked for with --diff is to see.
    let dry_run = args.dry_run || args.diff;
    let parsed = files::documents(&args.files, &client.project, shell)?;
    if args.expected_revision.is_some() && parsed.len() != 1 {
        let message = format!(
            "--expected-revision is for one document, and there are {}",
            parsed.len()
        );
        return Err(Failure::new(Exit::Usage, message).next("apply that document alone"));
    }
    let documents: Vec<Value> = parsed
        .iter()
        .map(|p| {
            let mut document = json!({"json": p.json, "source": p.file});
            if let Some(revision) = args.expected_revision {
                document["expectedRevision"] = revision.into();
            }
            document
        })
        .collect();
    let input = json!({
        "documents": documents,
        "project": client.project,
        "dryRun": dry_run,
        "idempotencyKey": super::idempotency_key(),
    });
    let payload: ApplyPayload = client
        .call(
            "ApplyDocuments",
            "applyDocuments",
            json!({"input": input, "diff": args.diff}),
        )
        .await?;
    let what = format!(
        "{} of {} documents refused; nothing was written",
        refused(&payload.errors),
        parsed.len()
    );
    if let Some(failure) = client.user_errors(&payload.errors, &what, |error| in_file(error, &parsed)) {
        return Err(failure);
    }
    if args.diff && common.output == Format::Table {
        for result in &payload.results {
            let text = diff::unified(
                &name(result),
                result.before.as_ref(),
                result.after.as_ref(),
                shell.colour,
            )?;
            // Coloured by us and made harmless line by line there.
            shell.out.write_all(text.as_bytes())?;
        }
        writeln!(
            shell.err,
            "note: nothing was written; apply without --diff to write"
        )?;
    }
    report(&payload.results, common, args, shell)
}

/// How many documents the errors are about.
fn refused(errors: &[UserError]) -> usize {
    let documents: std::collections::BTreeSet<_> =
        errors.iter().map(|e| index(e).map(|(index, _)| index)).collect();
    documents.len()
}

/// The document that an error is about, and the path in it: of `documents[2].json.spec.model`, 2 and `spec.model`.
fn index(error: &UserError) -> Option<(usize, &str)> {
    let path = error.path.as_deref()?;
    let path = path
        .strip_prefix("input.")
        .unwrap_or(path)
        .strip_prefix("documents[")?;
    let (index, rest) = path.split_once(']')?;
    let rest = rest.trim_start_matches('.');
    let inner = if rest == "json" {
        ""
    } else {
        rest.strip_prefix("json.").unwrap_or(rest)
    };
    Some((index.parse().ok()?, inner))
}

/// An error as a line that names file, line and path, like those found before sending.
fn in_file(error: &UserError, parsed: &[Parsed]) -> String {
    let Some((document, path)) = index(error).and_then(|(index, path)| Some((parsed.get(index)?, path)))
    else {
        return error_line(error);
    };
    let place = document
        .locate(path)
        .map(|at| format!(":{}:{}", at.line, at.column))
        .unwrap_or_default();
    let inner = UserError {
        path: Some(path.to_owned()),
        ..error.clone()
    };
    format!("{}{place}: {}", document.file, error_line(&inner))
}

fn name(result: &Applied) -> String {
    let object = &result.object;
    format!("{} {}/{}", kind_shown(&object.kind), object.project, object.name)
}

fn report(results: &[Applied], common: &Common, args: &Apply, shell: &mut Shell) -> Outcome<()> {
    let dry_run = args.dry_run || args.diff;
    if common.output != Format::Table {
        let items: Vec<Value> = results
            .iter()
            .map(|r| {
                let mut item = json!({"action": r.action, "dryRun": dry_run, "clusters": r.clusters,
                    "kind": kind_shown(&r.object.kind), "project": r.object.project, "name": r.object.name,
                    "id": r.object.id, "revision": r.object.revision, "digest": r.object.digest});
                if args.diff {
                    item["before"] = json!(r.before);
                    item["after"] = json!(r.after);
                }
                item
            })
            .collect();
        return render::value(shell, common.output, &items);
    }
    let mut table = Table::new(&["DOCUMENT", "ACTION", "REVISION"]);
    for result in results {
        let action = result.action.to_lowercase();
        let action = if dry_run {
            format!("{action} (dry run)")
        } else {
            action
        };
        table.row([name(result), action, result.object.revision.to_string()]);
    }
    shell.say(&table.text())?;
    let nowhere = results
        .iter()
        .filter(|r| r.object.kind == "AGENT" && r.clusters.is_empty());
    for result in nowhere {
        let note = format!(
            "note: {} is placed on no cluster and runs nowhere (spec.placement)",
            name(result)
        );
        writeln!(shell.err, "{}", crate::text::line(&note))?;
    }
    Ok(())
}

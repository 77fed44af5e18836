//! `applyDocuments`: from texts or JSON values to what was written, and every problem with its place.

use crate::{
    calls,
    error::{ErrorCode, Result, UserError, expected},
    mutation::{ApplyAction, ApplyDocumentsInput, ApplyDocumentsPayload, ApplyResult},
    types::Document,
};
use async_graphql::Context;
use roadstead_authz::TenantContext;
use roadstead_contract::{
    documents::{self, Parsed, ProblemCode, Source, parse_files, parse_values},
    fleet::document_digest,
};
use roadstead_domain::{Error, ObjectId, Problem, ProjectId};
use roadstead_service::{
    Applied, ApplyDocument, ApplyInput, Change, Target, apply_documents, lookup, may_write_documents,
};
use roadstead_store::{Links, Object, Store};
use serde_json::Value;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Parses, applies, and tells what happened.
pub(crate) async fn apply(ctx: &Context<'_>, input: ApplyDocumentsInput) -> Result<ApplyDocumentsPayload> {
    let (caller, store) = calls::both(ctx);
    let refuse = |errors| {
        Ok(ApplyDocumentsPayload {
            errors,
            ..ApplyDocumentsPayload::default()
        })
    };
    // Parsing is work: not for who may not write anyway.
    if let Err(error) = may_write_documents(caller, store).await {
        return refuse(expected(error)?);
    }
    let span = tracing::Span::current();
    let parsing = move || {
        let parsed = span.in_scope(|| parse(&input));
        (input, parsed)
    };
    let (input, parsed) = spawn_blocking(parsing).await.map_err(Error::internal)?;
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(errors) => return refuse(errors),
    };
    if let Err(error) = calls::budget(ctx).results(parsed.len()) {
        return refuse(expected(error)?);
    }
    let revisions = input.documents.iter().map(|d| d.expected_revision);
    let revisions = revisions.chain(std::iter::repeat(None));
    let set = ApplyInput {
        documents: parsed
            .iter()
            .zip(revisions)
            .map(|(parsed, expected_revision)| ApplyDocument {
                parsed: parsed.clone(),
                expected_revision,
            })
            .collect(),
        idempotency_key: Some(input.idempotency_key.clone()),
        dry_run: input.dry_run,
        message: input.message.clone().unwrap_or_default(),
    };
    match apply_documents(caller, store, &set).await {
        Err(error) => refuse(located(expected(error)?, &parsed)),
        Ok(answer) => {
            let mut results = Vec::with_capacity(parsed.len());
            for (applied, parsed) in answer.documents.into_iter().zip(parsed) {
                results.push(result(caller, store, applied, &parsed.json).await?);
            }
            Ok(ApplyDocumentsPayload {
                results,
                errors: Vec::new(),
            })
        }
    }
}

/// Parses what was given, in one of the two forms.
fn parse(input: &ApplyDocumentsInput) -> std::result::Result<Vec<Parsed>, Vec<UserError>> {
    let invalid = |path: &str, expected: &str, found: &str, message: &str| {
        vec![UserError::from(&Problem::new(path, expected, found, message))]
    };
    let project = match calls::name(&input.project, "project") {
        Ok(project) => project,
        Err(error) => return Err(expected(error).unwrap_or_default()),
    };
    let parsed = match (input.documents.is_empty(), input.sources.is_empty()) {
        (true, true) => {
            let message = "there is nothing to apply";
            return Err(invalid("documents", "documents or sources", "neither", message));
        }
        (false, false) => {
            let message = "documents come as values or as texts, not both";
            return Err(invalid("sources", "documents or sources", "both", message));
        }
        (false, true) => {
            let named = input
                .documents
                .iter()
                .map(|d| (d.source.as_deref().unwrap_or(""), &d.json.0));
            parse_values(&named.collect::<Vec<_>>(), &project)
        }
        (true, false) => {
            let sources = input.sources.iter().map(|s| Source {
                name: &s.name,
                text: &s.text,
            });
            parse_files(&sources.collect::<Vec<_>>(), &project)
        }
    };
    parsed.map_err(|problems| problems.into_iter().map(of_contract).collect())
}

/// A problem that parsing found.
fn of_contract(problem: documents::Problem) -> UserError {
    let message = problem.message();
    let path = match (problem.document, problem.path.as_str()) {
        (Some(index), "") => format!("documents[{index}]"),
        (Some(index), path) => format!("documents[{index}].{path}"),
        (None, path) => path.to_owned(),
    };
    let code = match problem.code {
        ProblemCode::TooLarge => ErrorCode::Limit,
        _ => ErrorCode::Invalid,
    };
    UserError {
        code,
        file: (!problem.file.is_empty()).then_some(problem.file),
        line: problem.at.map(|at| at.line),
        column: problem.at.map(|at| at.column),
        message,
        ..UserError::from(&Problem::new(path, problem.expected, problem.found, ""))
    }
}

/// Adds the place in the text to errors that name a document by its index.
fn located(mut errors: Vec<UserError>, parsed: &[Parsed]) -> Vec<UserError> {
    for error in &mut errors {
        let Some((document, path)) = error.path.as_deref().and_then(|path| indexed(path, parsed)) else {
            continue;
        };
        let at = document.locate(path);
        error.line = at.map(|at| at.line);
        error.column = at.map(|at| at.column);
        error.file = (!document.file.is_empty()).then(|| document.file.clone());
    }
    errors
}

/// The document, and the path inside it, of `documents[2].spec.model`.
fn indexed<'a, 'p>(path: &'p str, parsed: &'a [Parsed]) -> Option<(&'a Parsed, &'p str)> {
    let (index, rest) = path.strip_prefix("documents[")?.split_once(']')?;
    let document = parsed.get(index.parse::<usize>().ok()?)?;
    Some((document, rest.trim_start_matches('.')))
}

async fn result(
    caller: &TenantContext,
    store: &Store,
    applied: Applied,
    after: &Value,
) -> Result<ApplyResult> {
    let after: Arc<str> = after.to_string().into();
    Ok(ApplyResult {
        action: match applied.change {
            Change::Created => ApplyAction::Created,
            Change::Unchanged => ApplyAction::Unchanged,
            _ => ApplyAction::Updated,
        },
        object: document(caller, store, &applied, after.clone()).await?,
        before: applied.previous,
        after,
        clusters: applied.clusters,
    })
}

/// The document as the write left it, whatever others have done since. Of a dry run: as it would be, with the id of
/// zeros where it does not exist yet.
pub(crate) async fn document(
    caller: &TenantContext,
    store: &Store,
    applied: &Applied,
    text: Arc<str>,
) -> Result<Document> {
    let known = match applied.uid {
        Some(id) => calls::found(lookup(caller, store, &Target::Id(id)).await)?,
        None => None,
    };
    let object = known.unwrap_or_else(|| unknown(caller, store, applied));
    Ok(Document {
        object: Object {
            revision: applied.revision,
            digest: document_digest(text.as_bytes()),
            ..object
        },
        json: Some(text),
    })
}

/// A document that is not there: not yet, or not any more.
fn unknown(caller: &TenantContext, store: &Store, applied: &Applied) -> Object {
    let now = store.clock().now_ms();
    let nil = ObjectId::from_uuid(applied.kind, Default::default());
    Object {
        tenant: caller.tenant(),
        id: applied.uid.unwrap_or(nil),
        project: ProjectId::from_uuid(Default::default()),
        project_name: applied.project.clone(),
        name: applied.name.clone(),
        revision: applied.revision,
        digest: document_digest(b""),
        labels: std::collections::BTreeMap::new(),
        links: Links::default(),
        created_ms: now,
        updated_ms: now,
    }
}

/// The one document of an answer to a write of one.
pub(crate) async fn only(
    caller: &TenantContext,
    store: &Store,
    answer: roadstead_service::Answer,
    json: impl FnOnce(&Applied) -> Option<String>,
) -> Result<Option<Document>> {
    let Some(applied) = answer.documents.into_iter().next() else {
        return Err(Error::internal("a write of one document answered with none").into());
    };
    match json(&applied) {
        Some(text) => Ok(Some(document(caller, store, &applied, text.into()).await?)),
        None => Ok(None),
    }
}

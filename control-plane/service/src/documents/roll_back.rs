//! Making an older revision the current one: a new revision with the old one's document.

use super::costs;
use super::write::{self, Planned};
use super::{Answer, Applied, Change, Target, apply::Changed, check_expected, check_message, recalled};
use crate::idempotency::{Idempotency, remember};
use crate::stop::{Stop, allow, settle};
use roadstead_authz::{TenantContext, act};
use roadstead_contract::documents::{Kind, Reference, check_references};
use roadstead_domain::{Error, Problem};
use roadstead_store::Store;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Where to roll back.
#[derive(Clone, Debug)]
pub struct RollBackInput {
    pub target: Target,
    /// The revision whose document is wanted again.
    pub to_revision: u64,
    /// The revision that the caller knows as the current one; `None`: whatever it is.
    pub expected_revision: Option<u64>,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
    /// Why, for the revision.
    pub message: String,
}

/// Rolls a document back. It is checked as if it were applied now: what it refers to must still be there.
///
/// # Errors
/// [`Error::NotFound`] for the document or the revision; [`Error::Invalid`] where the old document does not hold any
/// more; [`Error::Conflict`] for an expected revision or a used key; [`Error::Forbidden`].
pub async fn roll_back(ctx: &TenantContext, store: &Store, input: &RollBackInput) -> Result<Answer, Error> {
    let rolled = roll(ctx, store, input).await;
    settle(ctx, store, rolled).await
}

async fn roll(ctx: &TenantContext, store: &Store, input: &RollBackInput) -> Result<Answer, Stop> {
    check_message(&input.message)?;
    let what = input.target.to_string();
    input.target.first::<act::RollBack>(ctx)?;
    let digest = json!([
        "roll back",
        what,
        input.to_revision,
        input.expected_revision,
        input.message
    ]);
    let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(answer) = recalled(idempotency.as_ref(), &tx).await? {
        return Ok(answer);
    }
    let object = input.target.find(&tx).await?;
    let object = allow::<act::RollBack, _>(ctx, object, || what.clone())?;
    check_expected(&what, input.expected_revision, object.revision)?;
    let missing = || Error::not_found(format!("revision {} of {what}", input.to_revision));
    let old = tx
        .revision(&object, input.to_revision)
        .await?
        .ok_or_else(missing)?;
    let previous = tx.revision(&object, object.revision).await?.map(|r| r.document);
    let project = tx.project(object.project).await?;
    let project = project.ok_or_else(|| Error::internal("an object without its project"))?;
    let project = allow::<act::Write, _>(ctx, project, || what.clone())?;
    let parsed = write::reparse(&object, &old.document).map_err(|problems| Error::Invalid {
        problems: problems.into_iter().map(write::outward).collect(),
    })?;
    let plan = Planned::new(0, &project, &parsed, Some((*object).clone()));
    let mut change = Change::Unchanged;
    let mut revision = object.revision;
    if plan.digest != object.digest {
        check(&tx, &plan).await?;
        let written = write::revise(&mut tx, &plan, &object, &input.message, Change::RolledBack).await?;
        (change, revision) = (written.change, written.object.revision);
        write::place(&mut tx, &Changed::from([(0, written)])).await?;
    }
    let clusters = tx.placed(object.id).await?;
    let answer = Answer {
        dry_run: false,
        documents: vec![Applied {
            change,
            uid: Some(object.id),
            kind: object.id.kind(),
            project: object.project_name.clone(),
            name: object.name.clone(),
            revision,
            previous,
            clusters: clusters.into_iter().map(|p| p.cluster_name).collect(),
        }],
    };
    remember(idempotency.as_ref(), &tx, &answer.to_remember()).await?;
    tx.commit().await?;
    Ok(answer)
}

async fn check(tx: &roadstead_store::Tx<'_>, plan: &Planned<'_>) -> Result<(), Error> {
    let mut problems: Vec<Problem> = Vec::new();
    write::check_own_project(plan, &mut problems);
    write::check_clusters(tx, plan, &mut problems).await?;
    let name = plan.parsed.document.metadata.project.clone();
    let projects = name
        .map(|name| BTreeMap::from([(name, plan.project.clone())]))
        .unwrap_or_default();
    let known = write::known(tx, &projects, std::slice::from_ref(plan)).await?;
    let exists = |kind: Kind, reference: &Reference| {
        known.contains_key(&(kind, reference.project.clone(), reference.name.clone()))
    };
    let found = check_references(std::slice::from_ref(plan.parsed), exists);
    problems.extend(found.into_iter().map(write::outward));
    if problems.is_empty() {
        let own = BTreeSet::from([plan.parsed.key()]);
        write::check_rendering(tx, std::slice::from_ref(plan), &known, &own, &mut problems).await?;
        costs::check(tx, std::slice::from_ref(plan), &known, &mut problems).await?;
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid { problems })
    }
}

//! The Model document that the examples refer to: dev keeps it true to what it found, until a person writes another.

use super::{
    PROJECT,
    model_choice::{Choice, DOCUMENT},
};
use crate::composition::Hub;
use anyhow::Context as _;
use roadstead_authz::TenantContext;
use roadstead_contract::documents::{Kind, parse_value};
use roadstead_domain::{Error, PageRequest};
use roadstead_service::{ApplyDocument, ApplyInput, Target, describe, list_revisions};
use std::net::SocketAddr;

/// The message of the revisions that dev writes, by which it knows them again.
const MESSAGE: &str = "the model that dev found";

/// Whose document there is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// What dev found; the same as last time makes no revision.
    ByDev,
    /// Somebody applied another, which is this revision and stays.
    ByPerson { revision: u64 },
}

/// Applies the Model document of the choice, unless the one that is there is none that dev ever wrote.
///
/// # Errors
/// Those of the store.
pub(super) async fn write(
    hub: &Hub,
    caller: &TenantContext,
    choice: &Choice,
    demo: SocketAddr,
) -> anyhow::Result<Written> {
    if let Some(revision) = persons(hub, caller).await? {
        return Ok(Written::ByPerson { revision });
    }
    let document = choice.document(PROJECT, &format!("http://{demo}/v1"));
    let parsed = parse_value("dev", &document, &PROJECT.parse()?);
    let parsed = parsed.map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", problems.join("; "))
    })?;
    let input = ApplyInput {
        documents: vec![ApplyDocument {
            parsed,
            expected_revision: None,
        }],
        message: MESSAGE.to_owned(),
        ..ApplyInput::default()
    };
    roadstead_service::apply_documents(caller, &hub.store, &input)
        .await
        .context("the Model document of dev")?;
    Ok(Written::ByDev)
}

/// The current revision, if a person wrote it; one that is rolled back to what dev wrote is dev's.
async fn persons(hub: &Hub, caller: &TenantContext) -> anyhow::Result<Option<u64>> {
    let target = Target::Name {
        project: PROJECT.parse()?,
        kind: Kind::Model,
        name: DOCUMENT.parse()?,
    };
    let current = match describe(caller, &hub.store, &target).await {
        Ok(found) => found.revision,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error).context("the Model document of dev"),
    };
    let mut page = PageRequest::default();
    loop {
        let revisions = list_revisions(caller, &hub.store, &target, &page).await?;
        let mut own = revisions.items.iter().filter(|r| r.message == MESSAGE);
        if own.any(|r| r.digest == current.digest) {
            return Ok(None);
        }
        match revisions.next {
            Some(next) => page.after = Some(next),
            None => return Ok(Some(current.number)),
        }
    }
}

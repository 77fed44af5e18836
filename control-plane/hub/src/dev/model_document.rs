//! The Model document that the examples refer to: dev keeps it true to what it found, until a person writes another.

use super::{
    PROJECT,
    model_choice::{Choice, DOCUMENT},
};
use crate::composition::Hub;
use anyhow::Context as _;
use roadstead_authz::TenantContext;
use roadstead_contract::documents::{Kind, Parsed, parse_value};
use roadstead_domain::{Error, PageRequest};
use roadstead_service::{ApplyDocument, ApplyInput, Target, describe, list_revisions};
use roadstead_store::Store;
use serde_json::Value;
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

/// How often it is looked again where somebody applies at the same time.
const TRIES: usize = 3;

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
    let document = choice.document(PROJECT, &format!("http://{demo}/v1"));
    let mut tries = 1..=TRIES;
    loop {
        let found = look(&hub.store, caller).await?;
        if let Found::Persons { revision } = found {
            return Ok(Written::ByPerson { revision });
        }
        match apply(&hub.store, caller, parsed(&document)?, found).await {
            // Whose it is now is looked at again.
            Err(Error::Conflict { .. }) if tries.next().is_some() => {}
            applied => {
                applied.context("the Model document of dev")?;
                return Ok(Written::ByDev);
            }
        }
    }
}

fn parsed(document: &Value) -> anyhow::Result<Parsed> {
    parse_value("dev", document, &PROJECT.parse()?).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", problems.join("; "))
    })
}

/// Replaces what was found, and nothing that came since.
async fn apply(store: &Store, caller: &TenantContext, parsed: Parsed, found: Found) -> Result<(), Error> {
    let input = ApplyInput {
        documents: vec![ApplyDocument {
            parsed,
            expected_revision: Some(found.revision()),
        }],
        message: MESSAGE.to_owned(),
        ..ApplyInput::default()
    };
    roadstead_service::apply_documents(caller, store, &input)
        .await
        .map(drop)
}

/// What there is before dev writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Dev's own; one that is rolled back to what dev wrote is that too.
    Devs {
        revision: u64,
    },
    Persons {
        revision: u64,
    },
}

impl Found {
    /// 0 where there is none.
    fn revision(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Devs { revision } | Self::Persons { revision } => revision,
        }
    }
}

async fn look(store: &Store, caller: &TenantContext) -> anyhow::Result<Found> {
    let target = Target::Name {
        project: PROJECT.parse()?,
        kind: Kind::Model,
        name: DOCUMENT.parse()?,
    };
    let current = match describe(caller, store, &target).await {
        Ok(found) => found.revision,
        Err(Error::NotFound { .. }) => return Ok(Found::Nothing),
        Err(error) => return Err(error).context("the Model document of dev"),
    };
    let revision = current.number;
    let mut page = PageRequest::default();
    loop {
        let revisions = list_revisions(caller, store, &target, &page).await?;
        let mut own = revisions.items.iter().filter(|r| r.message == MESSAGE);
        if own.any(|r| r.digest == current.digest) {
            return Ok(Found::Devs { revision });
        }
        match revisions.next {
            Some(next) => page.after = Some(next),
            None => return Ok(Found::Persons { revision }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_authz::{Presented, RequestInfo, SecretKind};
    use roadstead_domain::{OsRandom, SystemClock};
    use roadstead_service::{authenticate, bootstrap};
    use roadstead_store::testing::TestDatabase;
    use secrecy::ExposeSecret as _;
    use serde_json::json;
    use std::sync::Arc;

    fn model(name: &str) -> Parsed {
        let spec = json!({"provider": "ollama", "model": name, "endpoint": "http://127.0.0.1:11434"});
        let document = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Model",
            "metadata": {"name": DOCUMENT, "project": PROJECT}, "spec": spec});
        parsed(&document).expect("a document")
    }

    async fn by_person(store: &Store, caller: &TenantContext, name: &str) {
        let input = ApplyInput {
            documents: vec![ApplyDocument {
                parsed: model(name),
                expected_revision: None,
            }],
            ..ApplyInput::default()
        };
        let applied = roadstead_service::apply_documents(caller, store, &input).await;
        applied.expect("applied");
    }

    #[tokio::test]
    async fn what_a_person_applies_in_between_is_not_replaced() -> anyhow::Result<()> {
        let database = TestDatabase::sqlite();
        let store = database
            .open(Arc::new(SystemClock), Arc::new(OsRandom), None)
            .await;
        let (tenant, cluster) = ("acme".parse()?, "edge".parse()?);
        let dev = bootstrap::dev(&store, &tenant, &PROJECT.parse()?, &cluster).await?;
        let issued = dev.owner.issue_token(&store, "dev").await?;
        let presented = Presented::parse(SecretKind::ApiToken, issued.secret.expose_secret())?;
        let caller = &authenticate::api_token(&store, &presented, RequestInfo::default()).await?;
        let conflict = |applied: Result<(), Error>| matches!(applied, Err(Error::Conflict { .. }));
        let nothing = look(&store, caller).await?;
        assert_eq!(nothing, Found::Nothing);
        apply(&store, caller, model("found"), nothing).await?;
        let found = look(&store, caller).await?;
        assert_eq!(found, Found::Devs { revision: 1 });
        // Dev has looked, and now a person applies before it writes.
        by_person(&store, caller, "theirs").await;
        for before in [nothing, found] {
            assert!(
                conflict(apply(&store, caller, model("other"), before).await),
                "{before:?}"
            );
        }
        assert_eq!(look(&store, caller).await?, Found::Persons { revision: 2 });
        Ok(())
    }
}

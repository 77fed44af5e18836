//! The loop from the inbox to the runtime and back to the hub.
//!
//! Level-triggered: whatever wakes it, it reads the whole inbox, plans, gives the steps, and tells what is. A wake
//! that is missed costs at most [`RESYNC`].

use crate::{
    documents::Reader,
    report::{Report, report},
};
use roadstead_inbox::{Inbox, InboxError, Seen};
use roadstead_link::{HubKeys, Reports};
use roadstead_plan::{Abilities, Plan, actions, desired};
use roadstead_runtime::{HubTrust, Local};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Everything is looked at again after this long, for what no signal tells (a folder that could not be made).
const RESYNC: Duration = Duration::from_secs(30);

/// How the controller is, for probes and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Set after the first plan; then why the last one failed, if it did.
    pub(crate) planned: bool,
    pub(crate) trouble: Option<String>,
    pub(crate) documents: usize,
    pub(crate) refused: usize,
    pub(crate) revision: u64,
    pub(crate) applied: u64,
}

pub(crate) struct Controller {
    pub(crate) inbox: Inbox,
    pub(crate) local: Local,
    pub(crate) reports: Reports,
    pub(crate) abilities: Abilities,
    pub(crate) health: watch::Sender<Health>,
    state: State,
}

#[derive(Default)]
struct State {
    reader: Reader,
    plan: Plan,
    seen: Seen,
    /// What the hub was told last.
    told: Report,
}

impl Controller {
    pub(crate) fn new(
        inbox: Inbox,
        local: Local,
        reports: Reports,
        abilities: Abilities,
        health: watch::Sender<Health>,
    ) -> Self {
        Self {
            inbox,
            local,
            reports,
            abilities,
            health,
            state: State::default(),
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut documents = self.inbox.watch();
        let mut engines = self.local.changes();
        let mut keys = self.reports.keys();
        loop {
            documents.mark_unchanged();
            engines.mark_unchanged();
            self.trust(keys.borrow_and_update().clone());
            let trouble = self.plan().await.err().map(|error| error.to_string());
            if let Some(trouble) = &trouble {
                tracing::error!(
                    error = trouble,
                    "the inbox cannot be read; engines go on as they are"
                );
            }
            self.health.send_modify(|health| {
                health.planned |= trouble.is_none();
                health.trouble = trouble;
            });
            // While only engines change, there is nothing to plan.
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RESYNC) => break,
                    Ok(()) = documents.changed() => break,
                    Ok(()) = keys.changed() => self.trust(keys.borrow_and_update().clone()),
                    Ok(()) = engines.changed() => self.tell(),
                }
            }
        }
    }

    fn trust(&self, keys: Option<HubKeys>) {
        if let Some(keys) = keys {
            self.local.trust(HubTrust {
                jwks: Some(keys.jwks),
                issuer: Some(keys.issuer),
            });
        }
    }

    async fn plan(&mut self) -> Result<(), InboxError> {
        let (seen, documents) = self.inbox.documents().await?;
        let items = self.state.reader.items(documents);
        let observed = self.local.observed();
        let plan = desired(items.iter().copied(), &observed, &self.abilities);
        let steps = actions(&plan, &observed);
        for step in &steps {
            tracing::info!(agent = step.uid(), step = name(step), "a step of the plan");
        }
        self.local.take(steps);
        let told = report(&items, &plan, &self.local.statuses());
        self.state.plan = plan;
        self.state.seen = seen;
        self.say(told);
        Ok(())
    }

    /// Tells what changed since the hub was told last.
    fn tell(&mut self) {
        let told = report(&self.state.reader.all(), &self.state.plan, &self.local.statuses());
        self.say(told);
    }

    fn say(&mut self, next: Report) {
        let before = std::mem::take(&mut self.state.told);
        withdraw(&self.reports, &before, &next);
        for (uid, nack) in &next.nacks {
            if before.nacks.get(uid) != Some(nack) {
                tracing::warn!(
                    document = uid,
                    generation = nack.generation,
                    detail = nack.detail,
                    "refused"
                );
                self.reports.nack(nack.clone());
            }
        }
        for status in next.statuses.values() {
            self.reports.status(status.clone());
        }
        let revision = self.state.seen.revision;
        if next.settled {
            self.reports.applied(revision);
        }
        self.health.send_modify(|health| {
            health.documents = next.statuses.len();
            health.refused = next.nacks.len();
            health.revision = revision;
            if next.settled {
                health.applied = revision;
            }
        });
        self.state.told = next;
    }
}

/// Takes back what is no longer so: documents that are gone, refusals that are over.
fn withdraw(reports: &Reports, before: &Report, next: &Report) {
    let gone = before
        .statuses
        .keys()
        .filter(|uid| !next.statuses.contains_key(*uid));
    let over = before.nacks.keys().filter(|uid| !next.nacks.contains_key(*uid));
    for uid in gone.chain(over) {
        reports.forget(uid);
    }
}

fn name(step: &roadstead_plan::Action) -> &'static str {
    use roadstead_plan::Action;
    match step {
        Action::Start(_) => "start",
        Action::HandOver(_) => "hand over",
        Action::Restart(_) => "restart",
        Action::Stop { .. } => "stop",
    }
}

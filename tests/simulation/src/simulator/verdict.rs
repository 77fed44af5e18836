//! What must hold in the end (protocol.md §5).

use super::{
    Report,
    world::{CLONED, World},
};
use roadstead_fleet::store::What;

/// Accusations: of whoever says what cannot be, or too much.
const ACCUSED: [What; 2] = [What::Forged, What::Abuse];

impl World<'_> {
    /// Looks at everything. A document that is gone without a tombstone, or went back, was found by the ledgers already.
    ///
    /// # Errors
    /// The hub's truth cannot be read.
    pub(super) async fn verdict(mut self) -> anyhow::Result<Report> {
        let mut wrong = self.witness.violations();
        for agent in &self.agents {
            wrong.append(&mut agent.ledger.lock().violations);
        }
        self.roots(&mut wrong).await?;
        self.accusations(&mut wrong);
        self.liars_gained_nothing(&mut wrong);
        let sessions = self
            .enrolled
            .iter()
            .map(|one| self.witness.seen(one.peer.cluster).sessions)
            .sum();
        self.row("violations", wrong.len().to_string());
        Ok(Report {
            figures: self.figures,
            violations: wrong,
            sessions,
        })
    }

    /// Both sides agree about every document of every cluster but the liars'.
    async fn roots(&self, wrong: &mut Vec<String>) -> anyhow::Result<()> {
        let store = self.truth.store();
        for agent in &self.agents {
            let desired = store.desired(&self.enrolled[agent.n].peer).await?;
            let position = agent.inbox.position().await?;
            let (wanted, found) = (desired.entries.len() as u64, position.documents);
            if desired.root() != position.root {
                let at = (desired.revision, position.cursor);
                wrong.push(format!(
                    "cluster {}: roots differ; {wanted} documents are wanted, {found} found, at {at:?}",
                    agent.n
                ));
            }
        }
        Ok(())
    }

    /// Liars are accused and nobody else; of clones somebody was told.
    fn accusations(&mut self, wrong: &mut Vec<String>) {
        if self.plan.faults == 0 {
            return;
        }
        let (honest, cloned) = (self.agents.len(), self.of(CLONED));
        let [mut lies, mut alarms] = [0, 0];
        for (n, one) in self.enrolled.iter().enumerate() {
            let seen = self.witness.seen(one.peer.cluster);
            let count = |what: &What| seen.events.get(what).copied().unwrap_or(0);
            let accused: u64 = ACCUSED.iter().map(count).sum();
            let clones = count(&What::CloneSuspected);
            match (n >= honest, accused) {
                (true, 0) => wrong.push(format!("cluster {n} lied and was not accused: {:?}", seen.events)),
                (false, 1..) => wrong.push(format!(
                    "cluster {n} is honest and was accused: {:?}",
                    seen.events
                )),
                _ => lies += accused,
            }
            match (cloned.contains(&n), n >= honest, clones) {
                (true, _, 0) => wrong.push(format!("cluster {n} was cloned and nobody was told")),
                (false, false, 1..) => wrong.push(format!("cluster {n} has no clone and was suspected")),
                (true, _, told) => alarms += told,
                _ => {}
            }
        }
        self.row(
            "accusations of liars in the audit log; alarms of clones",
            format!("{lies}; {alarms}"),
        );
    }

    /// What a liar said is in the model only where it is its own to say.
    fn liars_gained_nothing(&self, wrong: &mut Vec<String>) {
        let Some(model) = self.truth.model() else { return };
        for (n, one) in self.enrolled.iter().enumerate().skip(self.agents.len()) {
            let Some(cluster) = model.cluster(one.peer.cluster) else {
                continue;
            };
            if cluster.persisted.max(cluster.applied) > cluster.revision {
                wrong.push(format!("cluster {n} acknowledged what it was not given"));
            }
            for (uid, observation) in &cluster.observations {
                let row = cluster.rows.get(uid);
                if row.is_none_or(|row| observation.generation > row.generation) {
                    wrong.push(format!(
                        "cluster {n} has a status of {uid} that is not its to make"
                    ));
                }
            }
        }
    }
}

//! What a session does with each frame of the cluster agent. Every number and id in a frame is a claim: what the hub
//! did not send, or does not know as this cluster's, is refused and audited (S45).

use super::{
    session::{End, Session},
    trust::retired,
};
use crate::{
    enrolment::certificate,
    pki::CheckedRequest,
    store::{CommandResult, Condition, Event, Held, Observation, StoreError, Taken, What},
};
use roadstead_contract::{
    fleet::{
        self, Ack, DocumentStatus, Heartbeat, Nack, NackCode, RenewRequest, Renewed, RunRecords, RunRefused,
        Stage, StateRoot, cluster_frame::Body, hub_frame::Body as Hub,
    },
    run::RunRecord,
};
use tonic::Status;

/// Longest text of a status or a refusal; longer ones are cut.
const MAX_TEXT: usize = 1_024;
const MAX_CONDITIONS: usize = 16;
/// Ids that the hub gives are shorter.
const MAX_UID: usize = 64;
/// Records in one frame; the Welcome says 64.
const MAX_RUNS: usize = 256;

impl Session {
    pub(super) async fn hear(&mut self, body: Option<Body>) -> Result<(), End> {
        match body {
            Some(Body::Ack(_) | Body::Nack(_) | Body::Status(_) | Body::StateRoot(_)) if self.behind => {
                Ok(())
            }
            Some(Body::Ack(ack)) => self.ack(&ack).await,
            Some(Body::Nack(nack)) => self.nack(nack).await,
            Some(Body::Status(status)) => self.status(status).await,
            Some(Body::StateRoot(root)) => self.root(&root).await,
            Some(Body::Have(have)) => self.have(have).await,
            Some(Body::Heartbeat(beat)) => self.heartbeat(&beat).await,
            Some(Body::Renew(request)) => self.renew(&request).await,
            Some(Body::Runs(runs)) => self.runs(runs).await,
            Some(Body::Resume(resume)) => self.resume(resume.cursor).await,
            Some(Body::Trust(_)) if self.trust.said.take().is_err() => {
                Err(self.abuse("too many words on trust bundles").await)
            }
            Some(Body::Trust(kept)) => self.trust_kept(&kept).await,
            Some(Body::CommandResult(result)) => self.result(result).await,
            Some(Body::Held(held)) => {
                (self.held, self.held_at) = (true, held.revision);
                self.owed.held(waiting(&held));
                Ok(())
            }
            Some(Body::Goodbye(goodbye)) => {
                tracing::debug!(cluster.id = %self.fence.peer.cluster, reason = cut(goodbye.reason), "goodbye");
                Err(End::Gone)
            }
            Some(Body::Hello(_)) => Err(End::Status(Status::invalid_argument("a second Hello"))),
            // A frame of a newer cluster agent: it does without an answer.
            None => Ok(()),
        }
    }

    async fn ack(&mut self, ack: &Ack) -> Result<(), End> {
        let before = self.writer.acked;
        if ack.stage() == Stage::Unspecified {
            return Ok(());
        }
        if !self.writer.acknowledge(ack.revision) {
            let what = "an acknowledgement of a revision that was not sent";
            return Err(self.forged(what).await);
        }
        // What runs is on disk: that acknowledgement may overtake the other.
        if ack.stage() == Stage::Persisted || ack.revision > before {
            self.owed.persisted(ack.revision);
        }
        if ack.stage() == Stage::Applied {
            self.owed.applied(ack.revision);
        }
        if let Some(approved) = self.writer.taken.take() {
            // A hold is said before the acknowledgement of its snapshot.
            self.held &= self.held_at == ack.revision;
            let held = self.held;
            self.owed.taken(Taken { approved, held });
        }
        Ok(())
    }

    async fn nack(&mut self, nack: Nack) -> Result<(), End> {
        let reason = match nack.code() {
            NackCode::NackDigest => "Digest",
            NackCode::NackKind => "Kind",
            NackCode::NackInvalid => "Invalid",
            NackCode::NackRefused | NackCode::NackUnspecified => "Refused",
            NackCode::NackBlob => "Blob",
        };
        let condition = Condition {
            kind: "Accepted".to_owned(),
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message: cut(nack.detail),
        };
        self.observe(Observation {
            uid: nack.uid,
            generation: nack.generation,
            phase: "Failed".to_owned(),
            conditions: vec![condition],
        })
        .await
    }

    async fn status(&mut self, status: DocumentStatus) -> Result<(), End> {
        let conditions = status
            .conditions
            .into_iter()
            .take(MAX_CONDITIONS)
            .map(|condition| Condition {
                kind: cut(condition.r#type),
                status: cut(condition.status),
                reason: cut(condition.reason),
                message: cut(condition.message),
            });
        self.observe(Observation {
            uid: status.uid,
            generation: status.observed_generation,
            phase: cut(status.phase),
            conditions: conditions.collect(),
        })
        .await
    }

    async fn observe(&mut self, observation: Observation) -> Result<(), End> {
        if observation.uid.len() > MAX_UID {
            return Err(self.forged("a document id that the hub never gave").await);
        }
        match self.owed.observe(observation, self.held) {
            true => Ok(()),
            false => Err(Self::too_many()),
        }
    }

    /// Compares, if both sides are at the same revision and nothing is on its way.
    async fn root(&mut self, root: &StateRoot) -> Result<(), End> {
        if self.held || !self.writer.idle_at(root.cursor) || self.roots.take().is_err() {
            return Ok(());
        }
        let desired = match self.hub.store.desired(&self.fence.peer).await {
            Ok(desired) => desired,
            // They are compared again, in ten minutes at the latest.
            Err(StoreError::Unavailable(_)) => return Ok(()),
            Err(error) => return Err(self.store(error).await),
        };
        if desired.revision != root.cursor {
            return Ok(());
        }
        if desired.root().0 == root.root.as_slice() {
            self.agreed();
            return Ok(());
        }
        self.ask_difference().await
    }

    async fn heartbeat(&mut self, beat: &Heartbeat) -> Result<(), End> {
        self.expired()?;
        self.hub.registry.heard(&self.fence.peer, self.hub.clock.now_ms());
        // After what was said before, unless the database is away.
        if self.settling.is_some() || self.owed.due() {
            self.owed.echo(beat.sequence);
            return Ok(());
        }
        self.echo(beat.sequence).await
    }

    /// A new certificate for the same cluster, whatever the request may wish for (S43).
    async fn renew(&mut self, request: &RenewRequest) -> Result<(), End> {
        if self.renewals.take().is_err() {
            return Err(self.abuse("too many renewals").await);
        }
        self.expired()?;
        let checked = match CheckedRequest::parse(&request.csr) {
            Ok(checked) => checked,
            Err(error) => return Err(self.forged(&error.to_string()).await),
        };
        let (tenant, cluster) = (self.fence.peer.tenant, self.fence.peer.cluster);
        // A connection whose root is not known has none that is trusted.
        let Some(root) = self.peer.root().cloned() else {
            return Err(retired());
        };
        let issued = self.hub.issue(checked, tenant, cluster, Some(&root)).await;
        let (issued, peer) = match issued {
            Ok(issued) => issued,
            // Without an answer it asks again; there is time.
            Err(status) if status.code() == tonic::Code::Unavailable => return Ok(()),
            Err(_) if !self.hub.authority.loaded().ring.trusts(&root) => return Err(retired()),
            Err(status) => return Err(End::Status(status)),
        };
        let detail = format!("until {}", issued.not_after);
        self.hub
            .audit(Event {
                peer: Some(peer),
                source: self.peer.source,
                what: What::Renewed,
                detail,
            })
            .await;
        let renewed = Renewed {
            certificate: Some(certificate(issued)),
            trust: Some(self.hub.trust()),
        };
        self.send(Hub::Renewed(renewed)).await
    }

    async fn runs(&mut self, runs: RunRecords) -> Result<(), End> {
        if runs.records.len() > MAX_RUNS {
            return Err(self.abuse("too many run records in a frame").await);
        }
        let mut refused = Vec::new();
        let mut records = Vec::with_capacity(runs.records.len());
        for run in runs.records {
            let bytes = run.json.len();
            match serde_json::from_slice::<RunRecord>(&run.json) {
                Ok(record) if record.id == run.id => records.push((record, bytes)),
                Ok(_) => refused.push(refuse(run.id, "the record has another id")),
                Err(_) => refused.push(refuse(run.id, "no run record")),
            }
        }
        self.owed.runs(records, refused);
        Ok(())
    }

    /// What came of a command; the database says whether it is this cluster's to give.
    async fn result(&mut self, result: fleet::CommandResult) -> Result<(), End> {
        if result.id.len() > MAX_UID {
            return Err(self.forged("a command that the hub never gave").await);
        }
        self.owed.result(CommandResult {
            code: result.code(),
            id: result.id,
            detail: cut(result.detail),
        });
        Ok(())
    }

    async fn resume(&mut self, cursor: u64) -> Result<(), End> {
        if self.resumes.take().is_err() {
            return Err(self.abuse("too many resumptions").await);
        }
        match self.writer.resume(cursor) {
            true => Ok(()),
            false => Err(self.forged("a cursor that was not sent").await),
        }
    }
}

fn refuse(id: String, reason: &str) -> RunRefused {
    RunRefused {
        id,
        reason: reason.to_owned(),
    }
}

/// Deletions that wait, as the store keeps them.
pub(super) fn waiting(held: &fleet::Held) -> Held {
    Held {
        revision: held.revision,
        deletes: held.deletes,
        documents: held.documents,
    }
}

/// At most [`MAX_TEXT`] bytes of a text, whole characters.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

//! What a session does with each frame of the cluster agent. Every number and id in a frame is a claim: what the hub
//! did not send, or does not know as this cluster's, is refused and audited (S45).

use super::session::{End, Session};
use crate::{
    enrolment::certificate,
    pki::CheckedRequest,
    store::{Condition, Event, Held, Observation, RunVerdict, Stage, StoreError, What},
};
use roadstead_contract::{
    fleet::{
        Ack, DocumentStatus, Heartbeat, HeartbeatEcho, Nack, NackCode, RenewRequest, Renewed, RunAck,
        RunRecords, RunRefused, StateRoot, cluster_frame::Body, hub_frame::Body as Hub,
    },
    run::RunRecord,
};
use tonic::Status;

/// Longest text of a status or a refusal; longer ones are cut.
const MAX_TEXT: usize = 1_024;
const MAX_CONDITIONS: usize = 16;
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
            Some(Body::Held(held)) => {
                self.held = true;
                let held = Held {
                    revision: held.revision,
                    deletes: held.deletes,
                    documents: held.documents,
                };
                match self.hub.store.held(&self.fence, held).await {
                    Ok(()) => Ok(()),
                    Err(error) => Err(self.store(error).await),
                }
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
        use roadstead_contract::fleet::Stage as Wire;
        let before = self.writer.acked;
        let stages: &[Stage] = match ack.stage() {
            Wire::Persisted => &[Stage::Persisted],
            // What runs is on disk: this acknowledgement may overtake the other.
            Wire::Applied if ack.revision > before => &[Stage::Persisted, Stage::Applied],
            Wire::Applied => &[Stage::Applied],
            Wire::Unspecified => return Ok(()),
        };
        if !self.writer.acknowledge(ack.revision) {
            let what = "an acknowledgement of a revision that was not sent";
            return Err(self.forged(what).await);
        }
        for stage in stages {
            if let Err(error) = self.hub.store.ack(&self.fence, ack.revision, *stage).await {
                return Err(self.store(error).await);
            }
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

    /// A report of a document that is not this cluster's is refused and audited, once a session (S45). The session
    /// lives: an inbox from a backup, or deletions that wait for a person, hold what the hub has forgotten, and only a
    /// session can mend that.
    async fn observe(&mut self, observation: Observation) -> Result<(), End> {
        match self.hub.store.observe(&self.fence, vec![observation]).await {
            Ok(()) => Ok(()),
            Err(StoreError::Foreign(what)) => {
                if !self.held && !std::mem::replace(&mut self.accused, true) {
                    self.tell(What::Forged, cut(what)).await;
                }
                Ok(())
            }
            Err(error) => Err(self.store(error).await),
        }
    }

    /// Compares, if both sides are at the same revision and nothing is on its way.
    async fn root(&mut self, root: &StateRoot) -> Result<(), End> {
        if self.held || !self.writer.idle_at(root.cursor) {
            return Ok(());
        }
        let desired = match self.hub.store.desired(&self.fence.peer).await {
            Ok(desired) => desired,
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
        self.send(Hub::Heartbeat(HeartbeatEcho {
            sequence: beat.sequence,
        }))
        .await
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
        let (issued, peer) = self
            .hub
            .issue(checked, tenant, cluster)
            .await
            .map_err(End::Status)?;
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
        let mut ack = RunAck::default();
        let mut records = Vec::with_capacity(runs.records.len());
        for run in runs.records {
            match serde_json::from_slice::<RunRecord>(&run.json) {
                Ok(record) if record.id == run.id => records.push(record),
                Ok(_) => ack.refused.push(refuse(run.id, "the record has another id")),
                Err(_) => ack.refused.push(refuse(run.id, "no run record")),
            }
        }
        let ids: Vec<_> = records.iter().map(|record| record.id.clone()).collect();
        let verdicts = match self.hub.store.record_runs(&self.fence, records).await {
            Ok(verdicts) => verdicts,
            Err(error) => return Err(self.store(error).await),
        };
        for (id, verdict) in ids.into_iter().zip(verdicts) {
            match verdict {
                RunVerdict::Kept => ack.kept.push(id),
                RunVerdict::Refused(reason) => {
                    self.tell(What::Forged, format!("run record {}: {reason}", cut(id.clone())))
                        .await;
                    ack.refused.push(refuse(id, &reason));
                }
            }
        }
        self.send(Hub::RunAck(ack)).await
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

/// At most [`MAX_TEXT`] bytes of a text, whole characters.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

//! What a session does with each frame, timer and report.

use super::{End, Line, Renewal, Session, Step, attempt, beside, lost, ms, open};
use crate::{HubKeys, bulk, convert, identity::Request, tls::mutual, trust::certified};
use roadstead_contract::fleet::{
    Ack, Batch, Digest, HAVE_PAGE, Have, HaveEntry, Heartbeat, Held, Nack, RenewRequest, Renewed, Resume,
    RunAck, RunRecord, RunRecords, SnapshotEnd, Stage, StateRoot, cluster_frame::Body, hub_frame,
};
use roadstead_inbox::{Outcome, Position, Purpose, SnapshotOutcome};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Run records in one frame, where the hub names no number.
const RUNS: usize = 64;
/// Documents of one frame that come by Bulk, in bytes: they are in memory at once. The hub sends a quarter of it.
const FETCHED: u64 = 64 * 1024 * 1024;

impl Session<'_> {
    pub(super) async fn handle(&mut self, body: Option<hub_frame::Body>) -> Result<(), End> {
        use hub_frame::Body as Hub;
        match body {
            Some(Hub::Batch(batch)) => self.batch(batch).await,
            Some(Hub::SnapshotBegin(begin)) => self
                .context
                .inbox
                .begin_snapshot(begin.revision)
                .await
                .map_err(End::Inbox),
            Some(Hub::SnapshotEnd(end)) => self.snapshot_end(end).await,
            Some(Hub::HaveRequest(request)) => self.have(request.request).await,
            Some(Hub::RunAck(ack)) => self.runs_kept(ack).await,
            Some(Hub::RenewNow(_)) => {
                // One that is under way is what the hub asks for; one that had no answer is asked for again.
                if matches!(self.renewal, Renewal::Idle | Renewal::Asked(_)) {
                    self.timers.renew_at = Instant::now();
                }
                Ok(())
            }
            Some(Hub::Renewed(renewed)) => self.try_renewed(&renewed).await,
            Some(Hub::Trust(trust)) => self.trust(&trust).await,
            Some(Hub::Keys(keys)) => {
                self.keys(&keys);
                Ok(())
            }
            Some(Hub::Command(command)) => self.command(command).await,
            Some(Hub::CommandAck(ack)) => self.results_kept(ack).await,
            Some(Hub::Drain(drain)) => Err(End::Drained(ms(drain.within_ms))),
            Some(Hub::Throttle(throttle)) => Err(End::Throttled(ms(throttle.retry_after_ms))),
            Some(Hub::Revoked(revoked)) => Err(End::Revoked(revoked.reason)),
            Some(Hub::Heartbeat(echo)) => {
                if echo.reconnect_window_ms > 0 {
                    self.window = ms(echo.reconnect_window_ms);
                }
                self.hub_clock.told(echo.now_ms);
                Ok(())
            }
            Some(Hub::Welcome(_)) => Err(lost("a second Welcome")),
            // A frame of a newer hub: it does without an answer.
            None => Ok(()),
        }
    }

    async fn batch(&mut self, batch: Batch) -> Result<(), End> {
        let mut parsed = convert::batch(batch).map_err(End::Lost)?;
        if parsed.absent.is_empty() {
            return self.apply(parsed).await;
        }
        if parsed.weight() > FETCHED {
            return Err(lost("a frame refers to more documents than fit into memory"));
        }
        let (route, tls) = (self.context.route.clone(), self.line.tls.clone());
        let fetch = async move {
            for (place, size) in std::mem::take(&mut parsed.absent) {
                let Some(digest) = parsed.digest(place) else {
                    continue;
                };
                match bulk::fetch(&route, &tls, digest, size).await {
                    Ok(bytes) => parsed.fill(place, Ok(bytes)),
                    Err(bulk::Missing::Never(detail)) => parsed.fill(place, Err(detail)),
                    Err(bulk::Missing::Lost(detail)) => return Err(format!("bulk: {detail}")),
                }
            }
            Ok(parsed)
        };
        self.fetching = Some(beside(fetch));
        Ok(())
    }

    pub(super) async fn apply(&mut self, parsed: convert::Parsed) -> Result<(), End> {
        let gone = parsed.gone();
        let moves = parsed.batch.through > parsed.batch.from && parsed.batch.purpose != Purpose::Snapshot;
        let outcome = self.context.inbox.apply(parsed.batch).await.map_err(End::Inbox)?;
        match outcome {
            Outcome::Taken { position, refused } => {
                self.resumed_at = None;
                for uid in gone {
                    self.context.shared.forget(&uid);
                }
                for refusal in refused {
                    let (uid, generation) = (refusal.uid, refusal.generation);
                    tracing::warn!(
                        document = uid,
                        generation,
                        reason = refusal.detail,
                        "a document is refused"
                    );
                    let code = refusal.code.into();
                    self.send(Body::Nack(Nack {
                        uid,
                        generation,
                        code,
                        detail: refusal.detail,
                    }))
                    .await?;
                }
                if moves {
                    self.acknowledge(position.cursor).await?;
                }
                let differs = parsed.root.is_some_and(|root| root != position.root);
                let caught_up = self.compare_at.is_some_and(|at| position.cursor >= at);
                if caught_up {
                    self.compare_at = None;
                }
                if differs || caught_up {
                    self.send_root(&position).await
                } else {
                    Ok(())
                }
            }
            Outcome::Repeated { cursor } => self.acknowledge(cursor).await,
            Outcome::Gap { cursor } if self.resumed_at == Some(cursor) => Ok(()),
            Outcome::Gap { cursor } => {
                self.resumed_at = Some(cursor);
                self.send(Body::Resume(Resume { cursor })).await
            }
        }
    }

    async fn acknowledge(&mut self, revision: u64) -> Result<(), End> {
        self.send(Body::Ack(Ack {
            revision,
            stage: Stage::Persisted.into(),
        }))
        .await
    }

    async fn send_root(&mut self, position: &Position) -> Result<(), End> {
        let root = StateRoot {
            cursor: position.cursor,
            root: position.root.to_vec(),
        };
        self.send(Body::StateRoot(root)).await
    }

    async fn snapshot_end(&mut self, end: SnapshotEnd) -> Result<(), End> {
        let root =
            Digest::try_from(end.root.as_slice()).map_err(|error| End::Lost(format!("root: {error}")))?;
        let end = roadstead_inbox::SnapshotEnd {
            revision: end.revision,
            count: end.count,
            root,
            complete: end.complete,
            approved_deletes: end.approved_deletes,
        };
        let outcome = self.context.inbox.end_snapshot(end).await.map_err(End::Inbox)?;
        self.snapshot_due = false;
        match outcome {
            SnapshotOutcome::Taken { position, deleted } => {
                tracing::info!(revision = position.cursor, deleted, "a snapshot is taken");
                self.resumed_at = None;
                self.acknowledge(position.cursor).await?;
                self.tell().await
            }
            SnapshotOutcome::Held {
                position,
                held: waiting,
            } => {
                tracing::warn!(
                    deletes = waiting.deletes,
                    documents = waiting.documents,
                    "a snapshot would delete more than the budget: nothing is deleted until a person allows it"
                );
                // Before the acknowledgement: without it, that would say that nothing waits any more.
                self.send(Body::Held(held(waiting))).await?;
                self.acknowledge(position.cursor).await?;
                self.tell().await
            }
            // A new session begins anew; nothing was deleted.
            SnapshotOutcome::Unverified { detail } => Err(End::Lost(format!("snapshot: {detail}"))),
        }
    }

    async fn have(&mut self, request: u64) -> Result<(), End> {
        let limit = usize::try_from(self.limits.have_page).unwrap_or(0);
        let limit = if limit == 0 {
            HAVE_PAGE
        } else {
            limit.min(HAVE_PAGE)
        };
        let mut after = None;
        for page in 0.. {
            let (cursor, entries) = self
                .context
                .inbox
                .have(after.clone(), limit)
                .await
                .map_err(End::Inbox)?;
            let last = entries.len() < limit;
            after = entries.last().map(|entry| entry.uid.clone()).or(after);
            let entries = entries.into_iter().map(|entry| HaveEntry {
                uid: entry.uid,
                generation: entry.generation,
                digest: entry.digest.to_vec(),
            });
            let entries = entries.collect();
            self.send(Body::Have(Have {
                request,
                page,
                last,
                cursor,
                entries,
            }))
            .await?;
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Says what is new of revisions, refusals and statuses. Of documents that are not in the inbox (any more) nothing
    /// is said: the runtime may be behind, and the hub may have forgotten them. While a snapshot is on its way the
    /// inbox itself may be behind like that.
    pub(super) async fn tell(&mut self) -> Result<(), End> {
        if self.snapshot_due {
            return Ok(());
        }
        let news = self.context.shared.news(self.told);
        self.told = news.version;
        let named = news.nacks.iter().map(|nack| &nack.uid);
        let named = named.chain(news.statuses.iter().map(|status| &status.uid));
        let named = named.cloned().collect();
        let known = self.context.inbox.known(named).await.map_err(End::Inbox)?;
        for nack in news.nacks.into_iter().filter(|nack| known.contains(&nack.uid)) {
            self.send(Body::Nack(nack)).await?;
        }
        for status in news.statuses {
            if known.contains(&status.uid) {
                self.send(Body::Status(status)).await?;
            } else {
                self.context.shared.forget(&status.uid);
            }
        }
        match news.applied {
            Some(revision) => {
                self.send(Body::Ack(Ack {
                    revision,
                    stage: Stage::Applied.into(),
                }))
                .await
            }
            None => Ok(()),
        }
    }

    pub(super) async fn send_runs(&mut self) -> Result<(), End> {
        let frame = usize::try_from(self.limits.runs)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(RUNS);
        while let Some((after, room)) = self.runs.room() {
            let pending = self
                .context
                .inbox
                .pending_runs(after, room.min(frame))
                .await
                .map_err(End::Inbox)?;
            if pending.is_empty() {
                break;
            }
            self.runs.sent(&pending, Instant::now());
            let records = pending.into_iter().map(|run| RunRecord {
                id: run.id,
                json: run.json,
            });
            self.send(Body::Runs(RunRecords {
                records: records.collect(),
            }))
            .await?;
        }
        Ok(())
    }

    async fn runs_kept(&mut self, ack: RunAck) -> Result<(), End> {
        for refused in &ack.refused {
            tracing::warn!(
                run = refused.id,
                reason = refused.reason,
                "the hub refuses a run record"
            );
        }
        let count = ack.kept.len() + ack.refused.len();
        let refused = ack
            .refused
            .into_iter()
            .map(|refused| (refused.id, refused.reason));
        let refused: Vec<_> = refused.collect();
        let inbox = &self.context.inbox;
        if !refused.is_empty() {
            inbox.set_runs_aside(refused).await.map_err(End::Inbox)?;
        }
        inbox.forget_runs(ack.kept).await.map_err(End::Inbox)?;
        self.runs.acknowledged(count, Instant::now());
        self.send_runs().await
    }

    pub(super) async fn tick(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let reading = !matches!(self.renewal, Renewal::Greeting(_));
        if reading && self.timers.silent(now) {
            return Err(lost("the hub is silent"));
        }
        if now >= self.timers.beat_at {
            self.timers.beaten(self.context);
            self.heartbeats += 1;
            let cursor = self.context.inbox.position().await.map_err(End::Inbox)?.cursor;
            self.send(Body::Heartbeat(Heartbeat {
                sequence: self.heartbeats,
                cursor,
            }))
            .await?;
        }
        if now >= self.timers.root_at {
            self.timers.compared(self.context);
            let position = self.context.inbox.position().await.map_err(End::Inbox)?;
            self.send_root(&position).await?;
        }
        if now >= self.timers.renew_at {
            self.timers.renew_again(&self.line.identity, self.context);
            self.ask_renewal().await?;
        }
        if self.runs.again_at().is_some_and(|at| now >= at) {
            self.runs.rewind(now);
            self.send_runs().await?;
        }
        if self.results_again.is_some_and(|at| now >= at) {
            self.send_results().await?;
        }
        Ok(())
    }

    async fn ask_renewal(&mut self) -> Result<(), End> {
        match Request::generate() {
            Ok(request) => {
                let csr = request.csr.clone();
                self.renewal = Renewal::Asked(Box::new(request));
                self.send(Body::Renew(RenewRequest { csr })).await
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate cannot be renewed now");
                Ok(())
            }
        }
    }

    /// The hub signed: see whether the new certificate connects. Without that the old one stays.
    async fn try_renewed(&mut self, renewed: &Renewed) -> Result<(), End> {
        if !matches!(self.renewal, Renewal::Asked(_)) {
            return Ok(());
        }
        let Renewal::Asked(request) = std::mem::replace(&mut self.renewal, Renewal::Idle) else {
            return Ok(());
        };
        if let Some(trust) = &renewed.trust {
            self.trust(trust).await?;
        }
        let Some(certificate) = &renewed.certificate else {
            return Ok(());
        };
        match self.line.identity.renewed(request.key, certificate) {
            Ok(identity) => {
                let attempt = attempt(self.context.route.clone(), &identity, self.context.clock.clone());
                self.renewal = Renewal::Trying(Box::new(identity), attempt);
            }
            Err(error) => tracing::warn!(%error, "the renewed certificate is not usable"),
        }
        Ok(())
    }

    /// The new certificate connects, is welcomed: the session goes on there. Whatever fails before: the old one goes on
    /// here, also when the hub says that the new one is worth nothing.
    pub(super) fn renewed(&mut self, step: Step) -> Result<(), End> {
        match (std::mem::replace(&mut self.renewal, Renewal::Idle), step) {
            (Renewal::Trying(identity, _), Step::Tried(Ok((tls, connection)))) => {
                self.renewal = Renewal::Connected(Box::new(Line {
                    identity: *identity,
                    tls,
                    channel: connection.channel,
                    hub: connection.hub,
                    fresh: true,
                }));
                Ok(())
            }
            (_, Step::Tried(Err(error))) => {
                tracing::warn!(
                    error,
                    "the renewed certificate does not connect; the old one stays"
                );
                Ok(())
            }
            (_, Step::Opened(Ok(opened))) => {
                tracing::info!("the certificate is renewed");
                Err(End::Handover(opened))
            }
            (_, Step::Opened(Err(end))) => {
                let reason = end.reason();
                tracing::warn!(
                    reason,
                    "the renewed certificate is not welcomed; the old one stays"
                );
                self.timers.heard();
                Ok(())
            }
            (before, Step::Tried(Ok(_))) => {
                self.renewal = before;
                Ok(())
            }
        }
    }

    /// Says Hello with the renewed identity, once nothing of this session is half done.
    pub(super) fn greet(&mut self) {
        if self.fetching.is_some() || !matches!(self.renewal, Renewal::Connected(_)) {
            return;
        }
        if let Renewal::Connected(line) = std::mem::replace(&mut self.renewal, Renewal::Idle) {
            let Some(line) = self.as_trusted_now(*line) else {
                return;
            };
            let context = self.context.clone();
            let opening = tokio::spawn(async move { open(&context, line).await });
            self.renewal = Renewal::Greeting(AbortOnDropHandle::new(opening));
        }
    }

    /// A bundle may have come since the renewal was asked for, or since its connection was made: the line is of the roots
    /// that are kept now, and `None` when the hub has proved itself by none of them there.
    fn as_trusted_now(&self, line: Line) -> Option<Line> {
        let clock = &self.context.clock;
        let identity = line.identity.trusting_as(&self.line.identity);
        let tls = certified(identity.roots_der(), &line.hub, &**clock)
            .and_then(|()| mutual(&identity, clock.clone()).map_err(|error| error.to_string()));
        match tls {
            Ok(tls) => Some(Line {
                identity,
                tls,
                ..line
            }),
            Err(error) => {
                tracing::warn!(
                    error,
                    "the renewed certificate's connection is of a root that is trusted no more; the old one stays"
                );
                None
            }
        }
    }

    pub(super) fn keep_identity(&self) -> Result<(), End> {
        let kept = self.line.identity.save(&self.context.folder);
        kept.map_err(|error| End::Lost(error.to_string()))
    }

    pub(super) fn keys(&self, keys: &roadstead_contract::fleet::HubKeys) {
        match serde_json::from_str(&keys.jwks) {
            Ok(jwks) => {
                let keys = HubKeys {
                    jwks,
                    issuer: keys.issuer.clone(),
                };
                self.context.shared.keys.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&keys);
                    *known = Some(keys);
                    changed
                });
            }
            Err(error) => tracing::warn!(%error, "the hub's keys are no JWK set; the ones before stay"),
        }
    }
}

pub(super) fn held(held: roadstead_inbox::Held) -> Held {
    Held {
        revision: held.revision,
        deletes: held.deletes,
        documents: held.documents,
    }
}

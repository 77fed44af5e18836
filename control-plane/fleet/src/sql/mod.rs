//! [`FleetStore`] over the hub's database, by the use cases of `roadstead-service`.
//!
//! A certificate is looked up when a stream opens; the context that this proves is kept and used by the stream's
//! reads and writes, so that a message costs no further query. A revocation is seen by [`FleetStore::standing`].

mod served;

use crate::pki::CLIENT_LIFE;
use crate::store::{
    Ahead, Begun, Body, Changes, CommandResult, Content, Desired, DesiredEntry, Difference, Event,
    FleetStore, Hello, Hint, Hints, Observation, Report, Reported, ResultVerdict, Row, RunVerdict, Session,
    Standing, StoreError, What,
};
use crate::together::Together;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use parking_lot::Mutex;
use roadstead_authz::{PeerIdentity, RequestInfo, Source, TenantContext};
use roadstead_contract::{
    fleet::{Command, CommandCode, Digest, MAX_INLINE, RestartEngine, command::Act},
    run::RunRecord,
};
use roadstead_domain::{ClusterId, CommandId, ConflictReason, Error, ObjectId, TenantId};
use roadstead_service::{authenticate, fleet, platform, roots, together};
use roadstead_store::{Change, CommandKind, DueCommand, Marks, NewStatus, Store, Timeline};
use served::{Asks, Reads, Says, Writes};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use tokio_stream::wrappers::WatchStream;

/// Certificates of one cluster whose contexts are kept: the one in use, and one or two around a renewal.
const CONTEXTS: usize = 3;

/// Clusters that one statement looks up.
const STANDINGS: usize = 500;

/// The adapter. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sql {
    store: Store,
    /// Newest last.
    contexts: Arc<Mutex<BTreeMap<ClusterId, Vec<Proven>>>>,
    /// Clusters that have pages of changes before them: theirs are read alone, for a read together would go through
    /// all of what each has before it.
    behind: Arc<Mutex<BTreeSet<ClusterId>>>,
    reads: Arc<Together<Reads>>,
    writes: Arc<Together<Writes>>,
}

#[derive(Clone, Debug)]
struct Proven {
    peer: PeerIdentity,
    context: Arc<TenantContext>,
}

impl Sql {
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            contexts: Arc::default(),
            behind: Arc::default(),
            reads: Together::new(Reads(store.clone())),
            writes: Together::new(Writes(store.clone())),
            store,
        }
    }

    /// Looks the certificate up and keeps the context that it proves.
    async fn prove(&self, peer: &PeerIdentity) -> Result<Arc<TenantContext>, StoreError> {
        let proven = authenticate::cluster(&self.store, peer, request(None)).await;
        match self.keep(peer, proven) {
            Ok(context) => Ok(context),
            Err(error) => Err(self.unproven(peer, &error).await),
        }
    }

    /// Keeps the context; a certificate that is not good (any more) loses the one it had.
    fn keep(
        &self,
        peer: &PeerIdentity,
        proven: Result<TenantContext, Error>,
    ) -> Result<Arc<TenantContext>, Error> {
        let mut contexts = self.contexts.lock();
        let own = contexts.entry(peer.cluster).or_default();
        own.retain(|kept| kept.peer != *peer);
        let context = Arc::new(proven?);
        own.push(Proven {
            peer: peer.clone(),
            context: context.clone(),
        });
        if own.len() > CONTEXTS {
            own.remove(0);
        }
        Ok(context)
    }

    /// A refusal may be of a certificate that this database does not know yet, or not any more.
    async fn unproven(&self, peer: &PeerIdentity, error: &Error) -> StoreError {
        if !matches!(error, Error::Unauthenticated { .. }) {
            return wire(error);
        }
        // TLS looks at the certificate's own end; this is only how long it could be good at most.
        let longest = i64::try_from(CLIENT_LIFE.as_millis()).unwrap_or(i64::MAX);
        let not_after_ms = self.store.clock().now_ms().saturating_add(longest);
        match fleet::is_unknown(&self.store, peer, not_after_ms, request(None)).await {
            Ok(true) => StoreError::Unknown(format!(
                "certificate {} is not in this database, which may be of an older time; a person may admit it",
                peer.serial
            )),
            Ok(false) => wire(error),
            Err(error) => wire(&error),
        }
    }

    async fn context(&self, peer: &PeerIdentity) -> Result<Arc<TenantContext>, StoreError> {
        match self.kept(peer) {
            Some(context) => Ok(context),
            None => self.prove(peer).await,
        }
    }

    fn kept(&self, peer: &PeerIdentity) -> Option<Arc<TenantContext>> {
        let contexts = self.contexts.lock();
        let kept = contexts
            .get(&peer.cluster)?
            .iter()
            .find(|kept| kept.peer == *peer)?;
        Some(kept.context.clone())
    }
}

fn request(source: Option<IpAddr>) -> RequestInfo {
    let source = Source {
        ip: source,
        client: "fleet".to_owned(),
    };
    RequestInfo {
        source,
        ..RequestInfo::default()
    }
}

/// What an error of a use case means to a session.
fn wire(error: &Error) -> StoreError {
    match error {
        Error::Unauthenticated { message } => StoreError::Refused(message.clone()),
        Error::NotFound { .. } => StoreError::Refused("the cluster is not there any more".to_owned()),
        Error::Conflict {
            reason: ConflictReason::Superseded,
            ..
        } => StoreError::Superseded,
        Error::Forbidden { .. } | Error::Invalid { .. } => StoreError::Foreign(error.to_string()),
        other => {
            let detail = std::error::Error::source(other)
                .map(ToString::to_string)
                .unwrap_or_default();
            StoreError::Unavailable(format!("{other} {detail}"))
        }
    }
}

fn row(change: Change) -> Row {
    match change {
        Change::Tombstone {
            revision,
            uid,
            generation,
        } => Row {
            revision,
            uid: uid.to_string(),
            generation,
            content: Content::Gone,
        },
        Change::Upsert {
            revision,
            uid,
            generation,
            kind,
            project,
            name,
            digest,
            document,
        } => {
            let size = document.len() as u64;
            let body = match document.len() > MAX_INLINE {
                true => Body::Large,
                false => Body::Inline(Bytes::from(document)),
            };
            let kind = kind.as_str().to_owned();
            let content = Content::Document {
                kind,
                project,
                name,
                digest,
                size,
                body,
            };
            Row {
                revision,
                uid: uid.to_string(),
                generation,
                content,
            }
        }
    }
}

fn unanswered() -> StoreError {
    StoreError::Unavailable("what was asked ended without an answer".to_owned())
}

/// Observations as the database keeps them, and the uids that are no id.
fn statuses(observations: Vec<Observation>) -> (Vec<NewStatus>, Vec<String>) {
    let (mut statuses, mut nameless) = (Vec::with_capacity(observations.len()), Vec::new());
    let mut seen = BTreeSet::new();
    for observation in observations {
        match observation.uid.parse::<ObjectId>() {
            // One object has one kind: the same id with another prefix is nothing that the hub ever said.
            Ok(object) if seen.insert(object.as_uuid()) => statuses.push(status(object, observation)),
            _ => nameless.push(observation.uid),
        }
    }
    (statuses, nameless)
}

fn status(object: ObjectId, observation: Observation) -> NewStatus {
    let telling = observation
        .conditions
        .iter()
        .find(|condition| condition.status != "True");
    let (reason, message) = telling
        .map(|condition| (condition.reason.clone(), condition.message.clone()))
        .unwrap_or_default();
    let conditions = observation.conditions.iter().map(|condition| {
        serde_json::json!({
            "type": condition.kind, "status": condition.status,
            "reason": condition.reason, "message": condition.message,
        })
    });
    NewStatus {
        object,
        observed_generation: observation.generation,
        phase: observation.phase,
        reason,
        message,
        conditions: conditions.collect(),
    }
}

#[async_trait]
impl FleetStore for Sql {
    async fn consume_token(
        &self,
        secret: &str,
        version: &str,
        source: Option<IpAddr>,
    ) -> Result<(TenantId, ClusterId), StoreError> {
        let consumed = fleet::consume_join_token(&self.store, secret, version, request(source)).await;
        consumed.map_err(|error| wire(&error))
    }

    async fn token_owner(&self, secret: &str) -> Result<Option<PeerIdentity>, StoreError> {
        let owner = fleet::join_token_owner(&self.store, secret).await;
        let owner = owner.map_err(|error| wire(&error))?;
        Ok(owner.map(|owner| PeerIdentity {
            tenant: owner.tenant,
            cluster: owner.cluster,
            serial: owner.token.to_string(),
        }))
    }

    async fn certificate_issued(&self, peer: &PeerIdentity, not_after_ms: i64) -> Result<(), StoreError> {
        let noted = fleet::certificate_issued(&self.store, peer, not_after_ms, request(None)).await;
        noted.map_err(|error| wire(&error))
    }

    async fn authenticate(&self, peer: &PeerIdentity) -> Result<(), StoreError> {
        self.prove(peer).await.map(|_| ())
    }

    async fn begin_session(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Begun, StoreError> {
        let context = self.prove(peer).await?;
        let (incarnation, capabilities) = (&hello.incarnation, &hello.capabilities);
        let begun = fleet::begin_session(&context, &self.store, incarnation, &hello.version, capabilities);
        let begun = begun.await.map_err(|error| wire(&error))?;
        let previous = Some(begun.previous_incarnation).filter(|before| !before.is_empty());
        if previous
            .as_ref()
            .is_some_and(|before| *before != hello.incarnation)
        {
            // Another inbox: what the one before had on disk says nothing of this one.
            let reset = fleet::reset_cursors(&context, &self.store, begun.cluster.epoch).await;
            reset.map_err(|error| wire(&error))?;
        }
        Ok(Begun {
            epoch: begun.cluster.epoch,
            revision: begun.cluster.revision,
            tombstone_floor: begun.cluster.tombstone_floor,
            previous_incarnation: previous,
            approved_deletes: begun.cluster.approved_deletes,
            held: begun.cluster.held.is_some(),
            frozen: begun.cluster.timeline.is_some(),
            commands: begun.commands,
        })
    }

    async fn changes(&self, peer: &PeerIdentity, after: u64, limit: usize) -> Result<Changes, StoreError> {
        let asks = Asks {
            cluster: peer.cluster,
            context: self.context(peer).await?,
            after,
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let behind = self.behind.lock().contains(&peer.cluster);
        let read = match behind {
            true => Some(self.reads.alone(asks).await),
            false => self.reads.ask(peer.tenant, asks).await,
        };
        let changes = read.unwrap_or_else(|| Err(unanswered()))?;
        match changes.rows.len() < limit {
            true => self.behind.lock().remove(&peer.cluster),
            false => self.behind.lock().insert(peer.cluster),
        };
        Ok(changes)
    }

    async fn desired(&self, peer: &PeerIdentity) -> Result<Desired, StoreError> {
        let context = self.context(peer).await?;
        let read = fleet::desired_set(&context, &self.store)
            .await
            .map_err(|error| wire(&error))?;
        let entries = read.entries.into_iter().map(|entry| DesiredEntry {
            uid: entry.uid.to_string(),
            generation: entry.generation,
            digest: entry.digest,
        });
        Ok(Desired {
            revision: read.revision,
            entries: entries.collect(),
        })
    }

    async fn rows(&self, peer: &PeerIdentity, uids: &[String]) -> Result<Vec<Row>, StoreError> {
        let context = self.context(peer).await?;
        // A text that is no id names nothing here.
        let ids: Vec<ObjectId> = uids.iter().filter_map(|uid| uid.parse().ok()).collect();
        let rows = fleet::rows(&context, &self.store, &ids)
            .await
            .map_err(|error| wire(&error))?;
        Ok(rows.into_iter().map(row).collect())
    }

    async fn blob(&self, peer: &PeerIdentity, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        let context = self.context(peer).await?;
        let blob = fleet::blob(&context, &self.store, digest)
            .await
            .map_err(|error| wire(&error))?;
        Ok(blob.map(Bytes::from))
    }

    async fn report(&self, session: &Session, report: Report) -> Result<Vec<String>, StoreError> {
        let context = self.context(&session.peer).await?;
        // A text that is no id names nothing here.
        let (statuses, nameless) = statuses(report.observations);
        let says = Says {
            cluster: session.peer.cluster,
            context,
            epoch: session.epoch,
            report: together::Report {
                marks: Marks {
                    persisted: report.persisted.unwrap_or(0),
                    applied: report.applied.unwrap_or(0),
                },
                held: report.held.map(|held| (held.revision, held.deletes)),
                taken: report.taken.map(|taken| (taken.approved, taken.held)),
                statuses,
            },
        };
        let heard = self.writes.ask(session.peer.tenant, says).await;
        let foreign = heard.unwrap_or_else(|| Err(unanswered()))?;
        let foreign = foreign.into_iter().map(|object| object.to_string());
        Ok(nameless.into_iter().chain(foreign).collect())
    }

    async fn timeline(&self, session: &Session, ahead: Option<Ahead>) -> Result<(), StoreError> {
        let context = self.context(&session.peer).await?;
        let listed = roadstead_store::Difference::LISTED;
        let difference = |difference: Difference| roadstead_store::Difference {
            sent: difference.sent,
            deletes: difference.deleted.len() as u64,
            deleted: difference.deleted.into_iter().take(listed).collect(),
            replaced: difference.replaced,
        };
        let timeline = ahead.map(|ahead| Timeline {
            cursor: ahead.cursor,
            difference: ahead.difference.map(difference),
        });
        let kept = fleet::record_timeline(&context, &self.store, session.epoch, timeline.as_ref()).await;
        kept.map_err(|error| wire(&error))
    }

    async fn trust_kept(&self, session: &Session, generation: u64, root: &str) -> Result<(), StoreError> {
        let context = self.context(&session.peer).await?;
        let kept = fleet::trust_kept(&context, &self.store, session.epoch, generation, root).await;
        kept.map_err(|error| wire(&error))
    }

    async fn replicas(&self) -> Result<Vec<Reported>, StoreError> {
        let replicas = roots::replicas(&self.store).await.map_err(|error| wire(&error))?;
        let reported = replicas.into_iter().map(|replica| Reported {
            generation: replica.generation,
            digest: replica.digest,
        });
        Ok(reported.collect())
    }

    async fn record_runs(
        &self,
        session: &Session,
        records: Vec<RunRecord>,
    ) -> Result<Vec<RunVerdict>, StoreError> {
        let context = self.context(&session.peer).await?;
        let verdicts = fleet::record_runs(&context, &self.store, session.epoch, &records).await;
        let verdicts = verdicts.map_err(|error| wire(&error))?;
        let verdict = |verdict| match verdict {
            fleet::RunVerdict::Kept => RunVerdict::Kept,
            fleet::RunVerdict::Refused(why) => RunVerdict::Refused(why),
        };
        Ok(verdicts.into_iter().map(verdict).collect())
    }

    async fn commands(&self, session: &Session) -> Result<Vec<Command>, StoreError> {
        let context = self.context(&session.peer).await?;
        let due = fleet::due_commands(&context, &self.store, session.epoch).await;
        let due = due.map_err(|error| wire(&error))?;
        Ok(due.into_iter().map(command).collect())
    }

    async fn record_results(
        &self,
        session: &Session,
        results: Vec<CommandResult>,
    ) -> Result<Vec<ResultVerdict>, StoreError> {
        let context = self.context(&session.peer).await?;
        // A text that is no id names nothing here.
        let ids: Vec<Option<CommandId>> = results.iter().map(|result| result.id.parse().ok()).collect();
        let known = results.into_iter().zip(&ids);
        let known = known.filter_map(|(result, id)| Some(((*id)?, code(result.code), result.detail)));
        let known: Vec<_> = known.collect();
        let verdicts = fleet::record_results(&context, &self.store, session.epoch, &known).await;
        let mut verdicts = verdicts.map_err(|error| wire(&error))?.into_iter();
        let verdict = |id: Option<CommandId>| match id {
            Some(_) => match verdicts.next() {
                Some(roadstead_store::ResultVerdict::Kept) => ResultVerdict::Kept,
                Some(roadstead_store::ResultVerdict::Late(why)) => ResultVerdict::Late(why.to_owned()),
                Some(roadstead_store::ResultVerdict::Foreign(why)) => ResultVerdict::Foreign(why.to_owned()),
                None => ResultVerdict::Late("there is no answer".to_owned()),
            },
            None => ResultVerdict::Foreign("there is no such command".to_owned()),
        };
        Ok(ids.into_iter().map(verdict).collect())
    }

    async fn seen(&self, clusters: Vec<(PeerIdentity, i64)>) -> Result<(), StoreError> {
        let seen: Vec<_> = clusters
            .into_iter()
            .map(|(peer, at)| (peer.tenant, peer.cluster, at))
            .collect();
        fleet::touch_last_seen(&self.store, &seen)
            .await
            .map_err(|error| wire(&error))
    }

    async fn standing(&self, peers: &[PeerIdentity]) -> Result<Vec<Option<Standing>>, StoreError> {
        let mut tenants: BTreeMap<TenantId, Vec<(usize, Arc<TenantContext>)>> = BTreeMap::new();
        for (n, peer) in peers.iter().enumerate() {
            match self.context(peer).await {
                Ok(context) => tenants.entry(peer.tenant).or_default().push((n, context)),
                // Not kept any more, and refused when looked up.
                Err(StoreError::Refused(_) | StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut standings = vec![None; peers.len()];
        for own in tenants.values() {
            for page in own.chunks(STANDINGS) {
                let asked: Vec<_> = page
                    .iter()
                    .map(|(n, context)| (&**context, peers[*n].serial.as_str()))
                    .collect();
                let found = together::standing(&self.store, &asked).await;
                let found = found.map_err(|error| wire(&error))?;
                for ((n, _), standing) in page.iter().zip(found) {
                    standings[*n] = standing.map(stands);
                }
            }
        }
        Ok(standings)
    }

    async fn audit(&self, event: Event) -> Result<(), StoreError> {
        // The use cases of enrolment and renewal have recorded these themselves, in the transaction of the act.
        if matches!(event.what, What::Enrolled | What::Renewed) {
            return Ok(());
        }
        // An enrolment is called the same whether it was granted or not.
        let (action, proof) = match event.what {
            What::EnrolmentRefused => ("enrol", "token"),
            what => (what.action(), "serial"),
        };
        let Some(peer) = &event.peer else {
            let source = request(event.source);
            let kept = platform::record(&self.store, action, &event.detail, source).await;
            return kept.map_err(|error| wire(&error));
        };
        let mut detail = serde_json::Map::new();
        detail.insert("detail".to_owned(), event.detail.into());
        detail.insert(proof.to_owned(), peer.serial.clone().into());
        let source = request(event.source);
        let kept = fleet::audit_event(&self.store, peer, false, action, detail, source).await;
        kept.map_err(|error| wire(&error))
    }

    fn hints(&self, peer: &PeerIdentity) -> Hints {
        let watch = self
            .kept(peer)
            .and_then(|context| self.store.watch(&context).ok());
        match watch {
            Some(watch) => {
                let first = *watch.borrow();
                let hints = WatchStream::from_changes(watch).scan(first, |before, now| {
                    let hint = Hint {
                        desired: now.changes != before.changes,
                        commands: now.commands != before.commands,
                    };
                    *before = now;
                    future::ready(Some(hint))
                });
                Box::pin(hints)
            }
            // The look around every two seconds does without.
            None => Box::pin(stream::pending()),
        }
    }
}

fn stands(standing: roadstead_store::Standing) -> Standing {
    Standing {
        revision: standing.revision,
        epoch: standing.epoch,
        revoked: standing.revoked,
        approved_deletes: standing.approved_deletes,
        frozen: standing.frozen,
        commands: standing.commands,
    }
}

fn command(due: DueCommand) -> Command {
    let act = match due.kind {
        CommandKind::RestartEngine => Act::RestartEngine(RestartEngine {
            agent_uid: due.agent.to_string(),
        }),
    };
    Command {
        id: due.id.to_string(),
        expires_at_ms: due.expires_ms,
        act: Some(act),
    }
}

/// A code of a newer cluster agent says nothing.
fn code(code: CommandCode) -> roadstead_store::CommandCode {
    use roadstead_store::CommandCode as Kept;
    match code {
        CommandCode::Succeeded => Kept::Succeeded,
        CommandCode::Failed => Kept::Failed,
        CommandCode::Refused => Kept::Refused,
        CommandCode::Expired => Kept::Expired,
        CommandCode::Unknown | CommandCode::Unspecified => Kept::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s45_one_object_under_two_names_is_one_status_and_one_that_is_foreign() {
        let id = "01a21f54537871e94953339df39e726b";
        let observation = |uid: String| Observation {
            uid,
            generation: 1,
            phase: "Ready".to_owned(),
            conditions: Vec::new(),
        };
        let (own, again, odd) = (format!("agt_{id}"), format!("mdl_{id}"), "nothing".to_owned());
        let (statuses, nameless) = statuses([&own, &again, &odd].map(|uid| observation(uid.clone())).into());
        assert_eq!(
            statuses.iter().map(|s| s.object.to_string()).collect::<Vec<_>>(),
            [own]
        );
        assert_eq!(nameless, [again, odd]);
    }
}

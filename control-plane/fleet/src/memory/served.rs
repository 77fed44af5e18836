//! The model as a store: what the SQL does, in memory.

use super::{Commanded, Memory, unknown};
use crate::store::{
    Ahead, Begun, Changes, CommandResult, Desired, Event, FleetStore, Hello, Hint, Hints, Report, Reported,
    ResultVerdict, Row, RunVerdict, Session, Standing, StoreError,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, future};
use roadstead_authz::PeerIdentity;
use roadstead_contract::{
    fleet::{Command, Digest, document_digest},
    run::RunRecord,
};
use roadstead_domain::{ClusterId, TenantId};
use std::{collections::BTreeSet, net::IpAddr};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

#[async_trait]
impl FleetStore for Memory {
    async fn consume_token(
        &self,
        secret: &str,
        _version: &str,
        _source: Option<IpAddr>,
    ) -> Result<(TenantId, ClusterId), StoreError> {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        state.answers()?;
        let good = state
            .tokens
            .get_mut(secret)
            .filter(|token| !token.used && now < token.expires_ms);
        let token = good.ok_or_else(|| StoreError::Refused("unknown, used or expired".to_owned()))?;
        token.used = true;
        Ok((token.tenant, token.cluster))
    }

    async fn token_owner(&self, secret: &str) -> Result<Option<PeerIdentity>, StoreError> {
        let state = self.state.lock();
        state.answers()?;
        Ok(state.tokens.get(secret).map(|token| PeerIdentity {
            tenant: token.tenant,
            cluster: token.cluster,
            serial: "token".to_owned(),
        }))
    }

    async fn certificate_issued(&self, peer: &PeerIdentity, not_after_ms: i64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.answers()?;
        let cluster = state
            .clusters
            .get_mut(&peer.cluster)
            .filter(|cluster| !cluster.deleted)
            .ok_or_else(unknown)?;
        cluster
            .certificates
            .insert(peer.serial.clone(), (not_after_ms, cluster.revokes_new));
        Ok(())
    }

    async fn authenticate(&self, peer: &PeerIdentity) -> Result<(), StoreError> {
        let now = self.clock.now_ms();
        self.read(peer, |cluster| cluster.good(peer, now))
    }

    async fn begin_session(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Begun, StoreError> {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        state.answers()?;
        let cluster = state.clusters.get_mut(&peer.cluster).ok_or_else(unknown)?;
        cluster.good(peer, now)?;
        cluster.epoch += 1;
        cluster.last_seen_ms = Some(now);
        cluster.capabilities.clone_from(&hello.capabilities);
        let previous_incarnation = cluster.incarnation.replace(hello.incarnation.clone());
        if previous_incarnation
            .as_ref()
            .is_some_and(|before| *before != hello.incarnation)
        {
            (cluster.persisted, cluster.applied) = (0, 0);
        }
        Ok(Begun {
            epoch: cluster.epoch,
            revision: cluster.revision,
            tombstone_floor: cluster.tombstone_floor,
            previous_incarnation,
            approved_deletes: cluster.approved_deletes,
            held: cluster.held.is_some(),
            frozen: cluster.ahead.is_some(),
            commands: cluster.commands.iter().any(Commanded::is_open),
        })
    }

    async fn changes(&self, peer: &PeerIdentity, after: u64, limit: usize) -> Result<Changes, StoreError> {
        self.read(peer, |cluster| {
            let mut rows: Vec<_> = cluster
                .rows
                .iter()
                .filter(|(_, row)| row.revision > after)
                .collect();
            rows.sort_by_key(|(uid, row)| (row.revision, (*uid).clone()));
            // Whole revisions: the one that the limit falls into is left for the next read, unless it is the first.
            if let Some(cut) = rows.get(limit).map(|(_, row)| row.revision) {
                let first = rows[0].1.revision;
                rows.retain(|(_, row)| row.revision < cut || (cut == first && row.revision == first));
            }
            let rows = rows.into_iter().map(|(uid, row)| row.row(uid)).collect();
            Ok(Changes {
                revision: cluster.revision,
                rows,
            })
        })
    }

    async fn desired(&self, peer: &PeerIdentity) -> Result<Desired, StoreError> {
        self.read(peer, |cluster| Ok(cluster.desired()))
    }

    async fn rows(&self, peer: &PeerIdentity, uids: &[String]) -> Result<Vec<Row>, StoreError> {
        self.read(peer, |cluster| {
            Ok(uids
                .iter()
                .filter_map(|uid| Some(cluster.rows.get(uid)?.row(uid)))
                .collect())
        })
    }

    async fn blob(&self, peer: &PeerIdentity, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.read(peer, |cluster| {
            let mut documents = cluster.rows.values().filter_map(|row| row.document.as_ref());
            Ok(documents
                .find(|document| document_digest(&document.json) == digest)
                .map(|document| document.json.clone()))
        })
    }

    async fn report(&self, session: &Session, report: Report) -> Result<Vec<String>, StoreError> {
        self.write(session, |cluster| {
            let revision = report.persisted.max(report.applied).unwrap_or(0);
            if revision > cluster.revision {
                return Err(StoreError::Foreign(format!("revision {revision}")));
            }
            cluster.persisted = cluster.persisted.max(report.persisted.unwrap_or(0));
            cluster.applied = cluster.applied.max(report.applied.unwrap_or(0));
            if let Some(taken) = report.taken {
                cluster.taken(taken);
            }
            cluster.held = report.held.or(cluster.held);
            let mut foreign = Vec::new();
            for observation in report.observations {
                if !cluster.observe(&observation) {
                    foreign.push(observation.uid);
                }
            }
            Ok(foreign)
        })
    }

    async fn timeline(&self, session: &Session, ahead: Option<Ahead>) -> Result<(), StoreError> {
        self.write(session, |cluster| {
            cluster.ahead = ahead;
            Ok(())
        })
    }

    async fn trust_kept(&self, session: &Session, generation: u64, root: &str) -> Result<(), StoreError> {
        self.write(session, |cluster| {
            cluster.trust = (generation, root.to_owned());
            Ok(())
        })
    }

    async fn replicas(&self) -> Result<Vec<Reported>, StoreError> {
        let mut state = self.state.lock();
        state.answers()?;
        state.replicas_asked += 1;
        Ok(state.replicas.clone())
    }

    async fn record_runs(
        &self,
        session: &Session,
        records: Vec<RunRecord>,
    ) -> Result<Vec<RunVerdict>, StoreError> {
        let own = self.write(session, |cluster| {
            Ok(cluster.rows.keys().cloned().collect::<BTreeSet<_>>())
        })?;
        let mut state = self.state.lock();
        let mut verdicts = Vec::with_capacity(records.len());
        for record in records {
            let known = state.runs.iter().find(|(_, run)| run.id == record.id);
            verdicts.push(match known {
                Some((cluster, _)) if *cluster == session.peer.cluster => RunVerdict::Kept,
                Some(_) => RunVerdict::Refused("the run belongs to another cluster".to_owned()),
                None if own.contains(&record.agent_uid) => {
                    state.runs.push((session.peer.cluster, record));
                    RunVerdict::Kept
                }
                None => RunVerdict::Refused("the agent is not this cluster's".to_owned()),
            });
        }
        Ok(verdicts)
    }

    async fn commands(&self, session: &Session) -> Result<Vec<Command>, StoreError> {
        if self.commands_hang() {
            return std::future::pending().await;
        }
        let now = self.clock.now_ms();
        // Nothing is written for none.
        let open = self.read(&session.peer, |cluster| {
            Ok(cluster.commands.iter().any(Commanded::is_open))
        })?;
        match open {
            true => self.write(session, |cluster| Ok(cluster.send_commands(session.epoch, now))),
            false => Ok(Vec::new()),
        }
    }

    async fn record_results(
        &self,
        session: &Session,
        results: Vec<CommandResult>,
    ) -> Result<Vec<ResultVerdict>, StoreError> {
        self.write(session, |cluster| {
            Ok(results
                .iter()
                .map(|result| cluster.record_result(result))
                .collect())
        })
    }

    async fn seen(&self, clusters: Vec<(PeerIdentity, i64)>) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.answers()?;
        for (peer, at) in clusters {
            if let Some(cluster) = state.clusters.get_mut(&peer.cluster) {
                cluster.last_seen_ms = cluster.last_seen_ms.max(Some(at));
            }
        }
        Ok(())
    }

    async fn standing(&self, peers: &[PeerIdentity]) -> Result<Vec<Option<Standing>>, StoreError> {
        if let Some(_hanging) = self.hangs(peers) {
            return std::future::pending().await;
        }
        let now = self.clock.now_ms();
        let state = self.state.lock();
        state.answers()?;
        let standing = |peer: &PeerIdentity| {
            let cluster = state.clusters.get(&peer.cluster)?;
            // An expired certificate ends with its own grace; here only a revocation counts.
            let (end, _) = cluster.certificates.get(&peer.serial)?;
            let revoked = cluster.good(peer, now.min(end.saturating_sub(1))).is_err();
            Some(Standing {
                revision: cluster.revision,
                epoch: cluster.epoch,
                revoked,
                approved_deletes: cluster.approved_deletes,
                frozen: cluster.ahead.is_some(),
                commands: cluster
                    .commands
                    .iter()
                    .any(|command| command.is_untold(cluster.epoch)),
            })
        };
        Ok(peers.iter().map(standing).collect())
    }

    async fn audit(&self, event: Event) -> Result<(), StoreError> {
        self.state.lock().audit.push(event);
        Ok(())
    }

    fn hints(&self, peer: &PeerIdentity) -> Hints {
        let mut state = self.state.lock();
        let sender = state
            .hints
            .entry(peer.cluster)
            .or_insert_with(|| watch::channel((0, 0)).0);
        let watch = sender.subscribe();
        let first = *watch.borrow();
        let hints = WatchStream::from_changes(watch).scan(first, |before, now| {
            let hint = Hint {
                desired: now.0 != before.0,
                commands: now.1 != before.1,
            };
            *before = now;
            future::ready(Some(hint))
        });
        Box::pin(hints)
    }
}

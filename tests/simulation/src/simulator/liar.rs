//! Cluster agents that lie, with a good certificate: they name what is not theirs, acknowledge what they were not given,
//! and say that they hold what they do not.

use super::{
    enrol::{Enrolled, channel},
    network::Line,
};
use crate::{raw, run, simulated::Seeded};
use roadstead_contract::fleet::{
    Ack, ClusterFrame, DocumentStatus, Have, HaveEntry, Hello, Resume, RunRecord, RunRecords, Stage,
    StateRoot, cluster_frame::Body, hub_frame::Body as Hub, sync_client::SyncClient,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// For the hub to say something.
const LISTENS: Duration = Duration::from_secs(5);
/// Between two sessions.
const RESTS: (u64, u64) = (1_000, 4_000);

/// A liar.
pub(super) struct Liar {
    pub(super) own: Enrolled,
    /// A document that another cluster has.
    pub(super) foreign: String,
    /// A document that it has itself.
    pub(super) shared: String,
    pub(super) root: Vec<u8>,
    pub(super) line: Arc<Line>,
    pub(super) random: Arc<Seeded>,
}

impl Liar {
    /// Lies for as long as it is let.
    pub(super) async fn lie(self) {
        for session in 0u64.. {
            // The first lie is one that must be audited.
            let lie = if session == 0 { 0 } else { self.random.below(LIES) };
            if let Err(error) = self.session(lie).await {
                tracing::debug!(%error, "a liar's session ended");
            }
            let rest = RESTS.0 + self.random.below(RESTS.1);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    async fn session(&self, lie: u64) -> anyhow::Result<()> {
        let tls = raw::tls(&self.root, Some(&self.own.credentials), &rustls::version::TLS13);
        let channel = channel(self.line.connect()?, tls).await?;
        let (up, outgoing) = mpsc::channel(64);
        let hello = Hello {
            instance_id: "liar".to_owned(),
            incarnation: format!("liar-{}", self.random.below(2)),
            // Beyond what any hub has given out, or with a root that is nothing's.
            cursor: if lie == AHEAD { 1 << 40 } else { 0 },
            state_root: vec![7; 32],
            ..raw::hello(0)
        };
        up.send(frame(Body::Hello(hello))).await?;
        let mut down = timeout(
            LISTENS,
            SyncClient::new(channel).session(ReceiverStream::new(outgoing)),
        )
        .await??
        .into_inner();
        let given = listen(&mut down, &up).await;
        for body in self.lies(lie, given) {
            up.send(frame(body)).await?;
        }
        listen(&mut down, &up).await;
        Ok(())
    }

    /// What is said; `given` is the revision that the hub has given out.
    fn lies(&self, lie: u64, given: u64) -> Vec<Body> {
        let ack = |revision, stage: Stage| {
            let stage = stage.into();
            Body::Ack(Ack { revision, stage })
        };
        match lie {
            0 => vec![ack(given + 1_000, Stage::Persisted)],
            1 => vec![ack(given + 1, Stage::Applied)],
            2 => vec![status("never", 1), status(&self.foreign, 1)],
            3 => vec![status(&self.shared, 1 << 50)],
            4 => vec![Body::Resume(Resume { cursor: given + 7 })],
            5 => vec![
                ack(given, Stage::Persisted),
                Body::StateRoot(StateRoot {
                    cursor: given,
                    root: vec![9; 32],
                }),
            ],
            6 => vec![runs(&self.foreign)],
            7 => (0..9_000).map(|_| status(&self.shared, 1)).collect(),
            _ => Vec::new(),
        }
    }
}

/// Kinds of lies; the last is in the Hello.
const LIES: u64 = 9;
const AHEAD: u64 = 8;

fn frame(body: Body) -> ClusterFrame {
    ClusterFrame { body: Some(body) }
}

fn status(uid: &str, generation: u64) -> Body {
    Body::Status(DocumentStatus {
        uid: uid.to_owned(),
        observed_generation: generation,
        phase: "Ready".to_owned(),
        conditions: Vec::new(),
    })
}

fn runs(agent: &str) -> Body {
    let record = run("run-of-another", agent, 1);
    let json = serde_json::to_vec(&record).unwrap_or_default();
    let id = record.id;
    Body::Runs(RunRecords {
        records: vec![RunRecord { id, json }],
    })
}

/// Hears the hub until it is silent, and says what it has given out. When asked for its inbox it makes one up.
async fn listen(
    down: &mut Streaming<roadstead_contract::fleet::HubFrame>,
    up: &mpsc::Sender<ClusterFrame>,
) -> u64 {
    let mut given = 0;
    while let Ok(Ok(Some(said))) = timeout(LISTENS, down.message()).await {
        match said.body {
            Some(Hub::Batch(batch)) => given = given.max(batch.through),
            Some(Hub::SnapshotEnd(end)) => {
                given = given.max(end.revision);
                return given;
            }
            Some(Hub::HaveRequest(asked)) => {
                let entry = HaveEntry {
                    uid: "made-up".to_owned(),
                    generation: 1 << 50,
                    digest: vec![1; 32],
                };
                let have = Have {
                    request: asked.request,
                    page: 0,
                    last: true,
                    cursor: given,
                    entries: vec![entry],
                };
                let _ = up.send(frame(Body::Have(have))).await;
            }
            _ => {}
        }
    }
    given
}

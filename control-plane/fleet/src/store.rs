//! What the fleet needs of the hub's truth: one small trait, so that a simulation runs the shipped sessions over a
//! model in memory, and the hub runs them over SQL. A test compares the two on random histories.

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use roadstead_authz::PeerIdentity;
use roadstead_contract::{
    fleet::{Command, CommandCode, Digest, StateSum},
    run::RunRecord,
};
use roadstead_domain::{ClusterId, TenantId};
use std::{fmt, net::IpAddr, pin::Pin};

/// Yields when something of a cluster may have changed.
pub type Hints = Pin<Box<dyn Stream<Item = Hint> + Send + Sync>>;

/// What may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The desired set, or what a person decided.
    pub desired: bool,
    /// There are new commands.
    pub commands: bool,
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The certificate, or the token, is unknown, used, expired or revoked.
    #[error("refused: {0}")]
    Refused(String),
    /// The hub's authority signed the certificate, and the database does not know it: it is of an older time. A person
    /// may admit it; until then it is worth nothing.
    #[error("unknown here: {0}")]
    Unknown(String),
    /// The message names something that is not this cluster's, or cannot be so (rule: PERMISSION_DENIED and audit).
    #[error("not this cluster's: {0}")]
    Foreign(String),
    /// A newer session of the cluster writes now.
    #[error("a newer session of this cluster has begun")]
    Superseded,
    /// The database is away or full; nothing was written.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
}

/// What a cluster agent says of itself when a session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version: String,
    pub instance: String,
    pub incarnation: String,
    pub cursor: u64,
    /// What the cluster agent can do beyond the protocol's version.
    pub capabilities: Vec<String>,
}

/// What the store answers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// One more than the epoch of any session before.
    pub epoch: u64,
    /// The cluster's revision now.
    pub revision: u64,
    /// Tombstones of this revision and before may be gone: a cursor below it cannot be served by a delta.
    pub tombstone_floor: u64,
    /// The incarnation of the session before; `None` for the first.
    pub previous_incarnation: Option<String>,
    /// Deletions of a snapshot beyond the budget that a person allowed.
    pub approved_deletes: u64,
    /// Deletions wait for a person, as far as the database knows.
    pub held: bool,
    /// The cluster was ahead of the database, and a person has not decided yet.
    pub frozen: bool,
    /// Commands wait that have no result.
    pub commands: bool,
}

/// A session that writes: every write fails once a newer epoch has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub peer: PeerIdentity,
    pub epoch: u64,
}

/// A row of a cluster's desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The revision of its last change.
    pub revision: u64,
    pub uid: String,
    pub generation: u64,
    pub content: Content,
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Document {
        kind: String,
        project: String,
        name: String,
        digest: Digest,
        size: u64,
        body: Body,
    },
    /// A tombstone.
    Gone,
}

/// The bytes of a document.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    Inline(Bytes),
    /// More than `fleet::MAX_INLINE`: by [`FleetStore::blob`].
    Large,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Large => f.write_str("Large"),
        }
    }
}

/// Rows that changed after a revision, ascending, whole revisions only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The cluster's revision when this was read; greater than the last row's when there is more.
    pub revision: u64,
    pub rows: Vec<Row>,
}

/// What a cluster is to hold, without content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub revision: u64,
    pub entries: Vec<DesiredEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredEntry {
    pub uid: String,
    pub generation: u64,
    pub digest: Digest,
}

impl Desired {
    /// The state root over it.
    #[must_use]
    pub fn root(&self) -> Digest {
        StateSum::of(
            self.entries
                .iter()
                .map(|entry| (entry.uid.as_str(), entry.generation, entry.digest)),
        )
        .root()
    }
}

/// What a cluster says of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub uid: String,
    /// Never greater than the desired one, else the observation is not this cluster's to make.
    pub generation: u64,
    pub phase: String,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

/// Deletions that wait for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub revision: u64,
    pub deletes: u64,
    pub documents: u64,
}

/// A snapshot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The approval that it carried: used up, whatever came of it.
    pub approved: u64,
    /// Deletions are held again. Else nothing waits for a person any more, and no approval stands.
    pub held: bool,
}

/// What a cluster agent has said since it was written down last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The cluster holds everything through this revision. Never goes back.
    pub persisted: Option<u64>,
    /// It runs everything through this revision. Never goes back.
    pub applied: Option<u64>,
    /// Written before `held`.
    pub taken: Option<Taken>,
    /// Deletions wait for a person: they do until a snapshot is taken without a hold.
    pub held: Option<Held>,
    /// How documents are, one for each. Refused ones (Nack) come as phase `Failed`.
    pub observations: Vec<Observation>,
}

impl Report {
    /// Nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What became of a run record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunVerdict {
    /// Committed, now or before.
    Kept,
    /// Never to be accepted.
    Refused(String),
}

/// What became of a result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultVerdict {
    /// Committed, now or before.
    Kept,
    /// Never to be committed, and no fault of the cluster's: the hub has given the command up, or its database was
    /// restored from a backup.
    Late(String),
    /// Not the cluster's to give.
    Foreign(String),
}

/// What came of a command, as its cluster agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    pub id: String,
    pub code: CommandCode,
    pub detail: String,
}

/// How a live cluster stands in the database, whoever changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub revision: u64,
    pub epoch: u64,
    /// Certificate revoked, or cluster deleted.
    pub revoked: bool,
    /// Deletions of a snapshot beyond the budget that a person allowed.
    pub approved_deletes: u64,
    /// The cluster is ahead of the database, and a person has not decided yet.
    pub frozen: bool,
    /// Commands wait that its newest session was not told of.
    pub commands: bool,
}

/// A cluster that is ahead of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    pub cursor: u64,
    /// `None` until its inbox was listed.
    pub difference: Option<Difference>,
}

/// How the inbox of a cluster that is ahead differs from what the hub wants there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Documents that it lacks, or has in an older generation.
    pub sent: u64,
    /// Documents that the hub does not want there.
    pub deleted: Vec<String>,
    /// Documents of a later generation than the hub's, with that.
    pub replaced: Vec<(String, u64)>,
}

/// Something that the audit log must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `None` where nobody could be identified. Of a refused enrolment: whose the join token is, and its id as serial.
    pub peer: Option<PeerIdentity>,
    pub source: Option<IpAddr>,
    pub what: What,
    /// For people; no secret.
    pub detail: String,
}

/// The kinds of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    Enrolled,
    EnrolmentRefused,
    Renewed,
    /// TLS: expired, foreign or malformed certificate.
    CertificateRefused,
    /// A certificate that TLS accepts and the store does not: revoked, unknown, of a deleted cluster.
    IdentityRefused,
    /// A message named a foreign id, a revision that was never sent, a generation that does not exist.
    Forged,
    /// Two cluster agents seem to share one identity.
    CloneSuspected,
    /// The cluster agent's cursor is beyond the hub's revision: the database is of an older time.
    TimelineBehind,
    /// The cluster agent keeps a trust bundle that this hub never made.
    TrustForeign,
    /// A message that breaks the protocol or its limits.
    Abuse,
}

impl What {
    /// The action's name in the audit log.
    #[must_use]
    pub const fn action(self) -> &'static str {
        match self {
            Self::Enrolled => "fleet.enrol",
            Self::EnrolmentRefused => "fleet.enrol.refused",
            Self::Renewed => "fleet.renew",
            Self::CertificateRefused => "fleet.certificate.refused",
            Self::IdentityRefused => "fleet.identity.refused",
            Self::Forged => "fleet.message.forged",
            Self::CloneSuspected => "fleet.clone.suspected",
            Self::TimelineBehind => "fleet.timeline.behind",
            Self::TrustForeign => "fleet.trust.foreign",
            Self::Abuse => "fleet.message.abuse",
        }
    }
}

/// The roots that a replica of the hub works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub generation: u64,
    /// Of the ring, in lower-case hex.
    pub digest: String,
}

/// The hub's truth as sessions see it. Every read and write is of the peer's own cluster.
#[async_trait]
pub trait FleetStore: Send + Sync + fmt::Debug + 'static {
    /// Uses up a join token, once and for ever, and says whose cluster it is for. A refusal is not recorded: see
    /// [`Self::token_owner`] and [`Self::audit`].
    ///
    /// # Errors
    /// [`StoreError::Refused`], alike for unknown, used and expired.
    async fn consume_token(
        &self,
        secret: &str,
        version: &str,
        source: Option<IpAddr>,
    ) -> Result<(TenantId, ClusterId), StoreError>;

    /// Whose join token this is, good or not, for the record of a refusal; the token's own id as `serial`. `None` for
    /// nobody's.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn token_owner(&self, secret: &str) -> Result<Option<PeerIdentity>, StoreError>;

    /// Notes a certificate before it is handed out.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a deleted cluster.
    async fn certificate_issued(&self, peer: &PeerIdentity, not_after_ms: i64) -> Result<(), StoreError>;

    /// Whether the certificate is good here.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for one that is expired or revoked, and for a deleted cluster; [`StoreError::Unknown`].
    async fn authenticate(&self, peer: &PeerIdentity) -> Result<(), StoreError>;

    /// Begins a session: raises the epoch, so that older sessions write no more.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    async fn begin_session(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Begun, StoreError>;

    /// Rows changed after `after`: about `limit`, at least one whole revision when there is one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; so for every read below.
    async fn changes(&self, peer: &PeerIdentity, after: u64, limit: usize) -> Result<Changes, StoreError>;

    /// The whole set without content.
    ///
    /// # Errors
    /// See above.
    async fn desired(&self, peer: &PeerIdentity) -> Result<Desired, StoreError>;

    /// The rows of these documents as they are now, tombstones too; documents without a row are left out.
    ///
    /// # Errors
    /// See above.
    async fn rows(&self, peer: &PeerIdentity, uids: &[String]) -> Result<Vec<Row>, StoreError>;

    /// The bytes of a document of this cluster; `None` where no document of it has the digest.
    ///
    /// # Errors
    /// See above.
    async fn blob(&self, peer: &PeerIdentity, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Writes a report, all of it in one transaction or nothing. Observations that are not this cluster's to make (of a
    /// document that is not, and was not lately, of this cluster, or of a generation that does not exist yet) are left
    /// out, and their uids returned.
    ///
    /// # Errors
    /// [`StoreError::Superseded`], as for every write below; [`StoreError::Foreign`] for a revision that was never given
    /// out.
    async fn report(&self, session: &Session, report: Report) -> Result<Vec<String>, StoreError>;

    /// The cluster is ahead of the database, or with `None` it is not: its inbox is new.
    ///
    /// # Errors
    /// See above.
    async fn timeline(&self, session: &Session, ahead: Option<Ahead>) -> Result<(), StoreError>;

    /// The cluster keeps the trust bundle of this generation on its disk, and says so with a certificate of this root.
    ///
    /// # Errors
    /// See above.
    async fn trust_kept(&self, session: &Session, generation: u64, root: &str) -> Result<(), StoreError>;

    /// The roots that replicas of the hub say they work with, this one too, within the last hour. Empty where nobody says.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn replicas(&self) -> Result<Vec<Reported>, StoreError>;

    /// Commits run records, each once, and says what became of each, in the same order.
    ///
    /// # Errors
    /// See above. A record of a foreign agent is no error but a [`RunVerdict::Refused`].
    async fn record_runs(
        &self,
        session: &Session,
        records: Vec<RunRecord>,
    ) -> Result<Vec<RunVerdict>, StoreError>;

    /// The cluster's commands that have no result, oldest first; from now on they count as sent. Those that are not to be
    /// sent any more get their result: never sent and over; sent, and the journal is another.
    ///
    /// # Errors
    /// See above.
    async fn commands(&self, session: &Session) -> Result<Vec<Command>, StoreError>;

    /// Commits results of commands, the first of each, and says what became of each, in the same order.
    ///
    /// # Errors
    /// See above. A result that is not this cluster's to give is no error.
    async fn record_results(
        &self,
        session: &Session,
        results: Vec<CommandResult>,
    ) -> Result<Vec<ResultVerdict>, StoreError>;

    /// When clusters were last heard; milliseconds since the Unix epoch. One write for all.
    ///
    /// # Errors
    /// See above.
    async fn seen(&self, clusters: Vec<(PeerIdentity, i64)>) -> Result<(), StoreError>;

    /// How these stand, in the same order; `None` for one that is not in the database any more. One look for all of a
    /// tenant.
    ///
    /// # Errors
    /// See above; the first tenant's that cannot be asked.
    async fn standing(&self, peers: &[PeerIdentity]) -> Result<Vec<Option<Standing>>, StoreError>;

    /// Writes to the audit log.
    ///
    /// # Errors
    /// See above.
    async fn audit(&self, event: Event) -> Result<(), StoreError>;

    /// Yields when something of the cluster may have changed. A hint: lost ones cost seconds.
    fn hints(&self, peer: &PeerIdentity) -> Hints;
}

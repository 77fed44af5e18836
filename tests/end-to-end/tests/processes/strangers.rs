//! Who comes to a hub's port with a certificate, a token or an id that is not theirs: refused, found in the audit log by
//! what a user has for it, and the hub goes on serving the honest cluster beside. The hub is the shipped program; who
//! comes is the shipped cluster agent, or a client that says what the test wants.

use anyhow::{Context as _, Result, ensure};
use roadstead_contract::fleet::{
    DocumentStatus, EnrolResponse, JoinToken, RunRecord, RunRecords, StateRoot, cluster_frame::Body,
    hub_frame,
};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    ask,
    callers::Api,
    returns::AIM,
    wait,
};
use roadstead_simulation::raw::{self, Credentials, RawSession};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};
use tonic::{Code, Status};

const AGENT: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: echo}\nspec:\n  \
                     instructions: Answer.\n  model: default\n";
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A hub with the honest cluster `edge`, whose cluster agent is connected.
struct Site {
    apart: Apart,
    /// Of the hub's authority, DER.
    root: Vec<u8>,
    /// SPIFFE id of `edge`.
    edge: String,
}

impl Site {
    async fn start() -> Result<Self> {
        let setup = Setup::default();
        let apart = Apart::start(Keep::Sqlite, setup).await?.context("SQLite")?;
        apart.apply(AGENT)?;
        apart.answers("echo").await?;
        let identity = fs::read_to_string(apart.folder().join("cluster/link/identity.json"))?;
        let identity: Value = serde_json::from_str(&identity)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
        let (domain, tenant) = (text(&identity["trust_domain"])?, text(&identity["tenant"])?);
        let cluster = text(&identity["cluster"])?;
        Ok(Self {
            root: bytes(&text(&identity["roots"][0])?)?,
            edge: format!("spiffe://{domain}/tenant/{tenant}/cluster/{cluster}"),
            apart,
        })
    }

    /// Registers the cluster `other`; the secret of its join token, which is in the file `other-token`.
    fn register(&self) -> Result<String> {
        let file = self.apart.folder().join("other-token").display().to_string();
        let create = ["clusters", "create", "other", "--token-file", &file];
        self.apart.cli.run(&create)?.ok()?;
        let token: JoinToken = fs::read_to_string(&file)?.trim().parse()?;
        Ok(token.expose_secret().to_owned())
    }

    async fn enrol(&self, secret: &str, csr: Vec<u8>) -> Result<EnrolResponse, Status> {
        raw::enrol_at(self.apart.fleet(), &self.root, secret, csr).await
    }

    /// The cluster `other` with a certificate of its own.
    async fn other(&self) -> Result<Credentials> {
        let (csr, key) = raw::request(&raw::modest());
        let answer = self.enrol(&self.register()?, csr).await?;
        let chain = answer.certificate.context("a certificate")?.chain;
        Ok(Credentials { key, chain })
    }

    async fn session(&self, credentials: &Credentials) -> Result<RawSession, Status> {
        let tls = raw::tls(&self.root, Some(credentials), &rustls::version::TLS13);
        let channel = raw::channel(self.apart.fleet(), tls).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        RawSession::open(channel, Body::Hello(raw::hello(0))).await
    }

    /// A session that the hub has welcomed.
    async fn welcomed(&self, credentials: &Credentials) -> Result<RawSession> {
        let mut session = self.session(credentials).await?;
        let first = session.next().await?;
        ensure!(matches!(first, Some(hub_frame::Body::Welcome(_))), "{first:?}");
        Ok(session)
    }

    /// A certificate of the cluster `edge` that `issuer` has signed, good until `until`.
    fn certificate(
        &self,
        issuer: &rcgen::Issuer<'_, rcgen::KeyPair>,
        until: SystemTime,
    ) -> Result<Credentials> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = raw::modest();
        params.subject_alt_names = vec![rcgen::SanType::URI(self.edge.as_str().try_into()?)];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.not_before = (until - 3 * DAY).into();
        params.not_after = until.into();
        let leaf = params.signed_by(&key, issuer)?;
        Ok(Credentials {
            key: key.serialize_der(),
            chain: vec![leaf.der().to_vec()],
        })
    }

    /// Nothing of a session comes about.
    async fn refused(&self, credentials: &Credentials) -> Result<()> {
        let tried = async {
            let mut session = self.session(credentials).await?;
            session.next().await
        };
        let found = tried.await;
        ensure!(found.is_err(), "{found:?}");
        Ok(())
    }

    /// Refusals of this name as the tenant's owner finds them, once there are any.
    async fn audited(&self, action: &str) -> Result<Vec<Value>> {
        let list = ["audit", "--decision", "refuse", "--action", action, "-o", "json"];
        wait::until(&format!("{action} in the audit log"), READY, || async {
            let records = self.apart.cli.run(&list).ok()?.json().ok()?;
            records.as_array().filter(|found| !found.is_empty()).cloned()
        })
        .await
    }

    /// The honest cluster is served as before, and the chain of audit records is whole.
    async fn honest(&mut self) -> Result<()> {
        self.apart.apply(&AGENT.replace("Answer.", "Answer still."))?;
        self.apart.linked().await?;
        self.apart.answers("echo").await?;
        self.apart.database.verify_audit().map(drop)
    }

    /// No secret of a token has come into a log or the audit.
    fn kept_secret(&self, secret: &str) -> Result<()> {
        let audit = self
            .apart
            .cli
            .run(&["audit", "--limit", "1000", "-o", "json"])?
            .ok()?;
        ensure!(!audit.contains(secret), "a join token in the audit log");
        ensure!(!self.apart.logs().contains(secret), "a join token in a log");
        Ok(())
    }
}

/// Of hexadecimal text.
fn bytes(hex: &str) -> Result<Vec<u8>> {
    let pair = |at: usize| hex.get(at..at + 2).context("two digits");
    (0..hex.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(pair(at)?, 16)?))
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "what real programs hold a certificate's time against"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_join_token_that_was_used_is_refused_and_audited() -> Result<()> {
    let mut site = Site::start().await?;
    // What `edge` has joined with lies in its file still.
    let mut second = site.apart.another_agent("second", "join-token")?;
    let ended = wait::until("the end of the cluster agent", READY, || {
        let ended = second.exited().ok().flatten();
        async move { ended }
    });
    let ended = ended.await?;
    ensure!(!ended.success(), "{ended}: {}", second.output());
    ensure!(
        second.output().contains("refused the join token"),
        "{}",
        second.output()
    );
    let records = site.audited("enrol").await?;
    ensure!(records.len() == 1, "{records:?}");
    let token = records[0]["detail"]["token"].as_str().unwrap_or_default();
    ensure!(token.starts_with("enr_"), "{records:?}");
    let token: JoinToken = fs::read_to_string(site.apart.folder().join("join-token"))?
        .trim()
        .parse()?;
    site.kept_secret(token.expose_secret())?;
    site.honest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn s43_a_request_for_another_clusters_identity_is_refused_and_audited() -> Result<()> {
    let mut site = Site::start().await?;
    let secret = site.register()?;
    let mut params = raw::modest();
    params.subject_alt_names = vec![rcgen::SanType::URI(site.edge.as_str().try_into()?)];
    let refused = site.enrol(&secret, raw::request(&params).0).await;
    let refused = refused.err().context("the hub has certified it")?;
    ensure!(refused.code() == Code::InvalidArgument, "{refused}");
    let records = site.audited("enrol").await?;
    ensure!(records.len() == 1, "{records:?}");
    site.kept_secret(&secret)?;
    // The token was not used up: the cluster whose it is joins with it, the shipped program.
    let other = site.apart.another_agent("other", "other-token")?;
    let connected = || async {
        let clusters = site
            .apart
            .cli
            .run(&["clusters", "-o", "json"])
            .ok()?
            .json()
            .ok()?;
        let other = clusters
            .as_array()?
            .iter()
            .find(|c| c["name"] == "other")?
            .clone();
        (other["state"] == "CONNECTED").then_some(())
    };
    wait::until("the other cluster", READY, connected)
        .await
        .with_context(|| other.output())?;
    site.honest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_foreign_certificate_is_refused_and_audited() -> Result<()> {
    let mut site = Site::start().await?;
    let (mut authority, key) = (raw::modest(), rcgen::KeyPair::generate()?);
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let issuer = rcgen::Issuer::new(authority, key);
    let foreign = site.certificate(&issuer, now() + DAY)?;
    site.refused(&foreign).await?;
    // Nobody was identified, so no tenant is told: the record is in the platform's own chain, which `audit verify`
    // counts and walks; what it says is in the database alone.
    let count = |name: &str| -> Result<i64> {
        let database = site.apart.folder().join("hub.db");
        let database = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        database.busy_timeout(READY)?;
        let sql = "SELECT count(*) FROM audit WHERE action = ?1 AND decision = 'refuse'";
        Ok(database.query_row(sql, [name], |row| row.get(0))?)
    };
    wait::until("the platform's record", READY, || async {
        count("fleet.certificate.refused").ok().filter(|found| *found > 0)
    })
    .await?;
    let verified = site.apart.database.verify_audit()?;
    let platform = verified
        .lines()
        .find_map(|line| line.strip_prefix("roadstead-platform: whole, "));
    let records = platform
        .and_then(|rest| rest.split(' ').next())
        .context(verified.clone())?;
    ensure!(records.parse::<u64>()? > 0, "{verified}");
    let told = site
        .apart
        .cli
        .run(&["audit", "--limit", "1000", "-o", "json"])?
        .json()?;
    let told = told.to_string();
    ensure!(
        !told.contains("fleet.certificate.refused"),
        "a stranger wrote into a tenant's log: {told}"
    );
    site.honest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_an_expired_certificate_is_refused_and_audited_for_its_cluster() -> Result<()> {
    let mut site = Site::start().await?;
    let key = fs::read_to_string(site.apart.folder().join("keys/ca-key.pem"))?;
    let key = rcgen::KeyPair::from_pem(&key)?;
    let issuer = rcgen::Issuer::from_ca_cert_der(&site.root.as_slice().into(), key)?;
    // The hub's own authority has signed it, and it ended yesterday: only its time is wrong.
    let expired = site.certificate(&issuer, now() - DAY)?;
    site.refused(&expired).await?;
    let records = site.audited("fleet.certificate.refused").await?;
    let (_, edge) = site.edge.rsplit_once('/').context("an id")?;
    let says = |record: &Value, what: &str| record.to_string().to_lowercase().contains(what);
    let right = records
        .iter()
        .all(|record| says(record, edge) && says(record, "expired"));
    ensure!(right, "{records:?}");
    // One that differs in its time alone passes TLS, and no further: the hub has not handed it out.
    let invented = site.certificate(&issuer, now() + DAY)?;
    let tried = async {
        let mut session = site.session(&invented).await?;
        session.next().await
    };
    let refused = tried.await.err().context("the hub has taken it")?;
    ensure!(refused.code() == Code::Unauthenticated, "{refused}");
    site.audited("fleet.identity.refused").await?;
    site.honest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_revocation_ends_a_live_session_within_5_s_and_what_comes_after_is_audited() -> Result<()> {
    let mut site = Site::start().await?;
    let other = site.other().await?;
    let mut session = site.welcomed(&other).await?;
    let revoked = Instant::now();
    site.apart.cli.run(&["clusters", "revoke", "other"])?.ok()?;
    let told = async {
        loop {
            match session.next().await {
                Ok(Some(hub_frame::Body::Revoked(_))) => break Ok(session.end().await),
                Ok(Some(_)) => {}
                ended => anyhow::bail!("ended without a word: {ended:?}"),
            }
        }
    };
    told.await?;
    let took = revoked.elapsed();
    // The command that revokes is in it; a busy machine is allowed what its own start took.
    let within = AIM + site.apart.first_start;
    ensure!(
        took <= within,
        "the session went on for {took:?}, expected {within:?}"
    );
    // TLS takes the certificate, whose time is not over; the hub does not.
    let mut again = site.session(&other).await?;
    let first = again.next().await?;
    ensure!(matches!(first, Some(hub_frame::Body::Revoked(_))), "{first:?}");
    let records = site.audited("fleet.identity.refused").await?;
    ensure!(records.len() == 1, "{records:?}");
    site.honest().await?;

    // The same to the shipped cluster agent: its session ends, its engines go on.
    let (url, token) = site.apart.in_cluster("echo").await?;
    site.apart.cli.run(&["clusters", "revoke", "edge"])?.ok()?;
    let revoked = Instant::now();
    let probe = format!("{}/readyz", site.apart.agent_probe());
    wait::until("the end of the session", within, || async {
        let (_, text) = ask::get(&probe).await.ok()?;
        (!text.contains("hub: connected")).then_some(())
    })
    .await?;
    eprintln!(
        "revoked: {took:?} to a client's end, {:?} to the cluster agent's",
        revoked.elapsed()
    );
    let task = ask::turn(&url, &token, "after", "say after").await?;
    ensure!(task["status"]["state"] == "TASK_STATE_COMPLETED", "{task}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_forged_ids_in_messages_are_refused_and_audited() -> Result<()> {
    let mut site = Site::start().await?;
    let api = Api {
        url: site.apart.api(),
        token: site.apart.token()?,
    };
    let agents = "{ documents(first: 10, kind: AGENT) { nodes { id } } }";
    let found = api.graphql(agents, json!({})).await?;
    let uid = found["documents"]["nodes"][0]["id"]
        .as_str()
        .context("an agent")?;
    let other = site.other().await?;
    let mut session = site.welcomed(&other).await?;
    // An agent that runs on `edge`: said to have failed, and said to have run here.
    session
        .say(Body::Status(DocumentStatus {
            uid: uid.to_owned(),
            observed_generation: 1,
            phase: "Forged".to_owned(),
            conditions: Vec::new(),
        }))
        .await;
    let id = "01890000-0000-7000-8000-000000000001";
    let run = roadstead_simulation::run(id, uid, 1);
    let record = RunRecord {
        id: id.to_owned(),
        json: serde_json::to_vec(&run)?,
    };
    session
        .say(Body::Runs(RunRecords {
            records: vec![record],
        }))
        .await;
    let ack = loop {
        match session.next().await? {
            Some(hub_frame::Body::RunAck(ack)) => break ack,
            Some(_) => {}
            None => anyhow::bail!("the session ended"),
        }
    };
    ensure!(ack.kept.is_empty() && ack.refused.len() == 1, "{ack:?}");
    let records = site.audited("fleet.message.forged").await?;
    let whole = serde_json::to_string(&records)?;
    ensure!(whole.len() < 4_000, "{whole}");
    let runs = site.apart.cli.run(&["runs", "-o", "json"])?.ok()?;
    ensure!(!runs.contains(id), "{runs}");
    let described = site
        .apart
        .cli
        .run(&["describe", "agent", "echo", "-o", "json"])?
        .ok()?;
    ensure!(!described.contains("Forged"), "{described}");
    site.honest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_an_oversize_message_ends_its_session_and_the_hub_lives() -> Result<()> {
    let mut site = Site::start().await?;
    let other = site.other().await?;
    let mut session = site.welcomed(&other).await?;
    session
        .say(Body::StateRoot(StateRoot {
            cursor: 0,
            root: vec![0; 300 * 1024],
        }))
        .await;
    let ended = session.end().await;
    ensure!(ended.code() == Code::OutOfRange, "{ended}");
    // It is no ban: the next one that keeps to the limits is served.
    site.welcomed(&other).await?;
    site.honest().await
}

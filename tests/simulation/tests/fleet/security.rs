//! Attacks on the hub's port, over real connections.

use bytes::Bytes;
use roadstead_contract::fleet::{
    self, Ack, DocumentStatus, EnrolRequest, GetBlobRequest, Heartbeat, Mode, RenewRequest, Resume,
    RunRecord, RunRecords, Stage, bulk_client::BulkClient, cluster_frame::Body, document_digest,
    enrolment_client::EnrolmentClient, hub_frame, tunnel_client::TunnelClient,
};
use roadstead_domain::{FakeClock, SystemClock};
use roadstead_fleet::store::What;
use roadstead_simulation::{
    cluster, eventually,
    hub::{Hub, Wishes},
    prompt, raw,
    raw::{Credentials, RawSession},
    run, tenant,
};
use std::{sync::Arc, time::Duration};
use tonic::{Code, Status, transport::Channel};

async fn welcomed(hub: &Hub, credentials: &Credentials, cursor: u64) -> (RawSession, fleet::Welcome) {
    let channel = raw::connect(hub, credentials).await.expect("a connection");
    let mut session = RawSession::open(channel, Body::Hello(raw::hello(cursor)))
        .await
        .expect("a session");
    match session.next().await {
        Ok(Some(hub_frame::Body::Welcome(welcome))) => (session, welcome),
        other => panic!("expected a Welcome, found {other:?}"),
    }
}

/// What comes of a session over `channel`.
async fn tried(channel: Result<Channel, tonic::transport::Error>) -> Result<Option<hub_frame::Body>, Status> {
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    RawSession::open(channel, Body::Hello(raw::hello(0)))
        .await?
        .next()
        .await
}

async fn alive(hub: &Hub) {
    let credentials = raw::credentials(hub, 1).await;
    welcomed(hub, &credentials, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_plaintext_and_old_tls_are_refused() {
    let hub = Hub::start().await;
    let channel = raw::plaintext(hub.address).await;
    assert!(tried(channel).await.is_err());
    let credentials = raw::credentials(&hub, 1).await;
    let old = raw::tls(
        &hub.authority.root_der(),
        Some(&credentials),
        &rustls::version::TLS12,
    );
    assert!(tried(raw::channel(hub.address, old).await).await.is_err());
    alive(&hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_without_a_certificate_only_enrolment_answers() {
    let hub = Hub::start().await;
    let tls = raw::tls(&hub.authority.root_der(), None, &rustls::version::TLS13);
    let channel = raw::channel(hub.address, tls).await.unwrap();
    let session = RawSession::open(channel.clone(), Body::Hello(raw::hello(0)))
        .await
        .map(|_| ());
    assert_eq!(session.unwrap_err().code(), Code::Unauthenticated);
    let blob = BulkClient::new(channel.clone())
        .get_blob(GetBlobRequest::default())
        .await
        .map(|_| ());
    assert_eq!(blob.unwrap_err().code(), Code::Unauthenticated);
    let tunnel = TunnelClient::new(channel.clone())
        .open(tokio_stream::pending())
        .await
        .map(|_| ());
    assert_eq!(tunnel.unwrap_err().code(), Code::Unauthenticated);
    let enrol = EnrolmentClient::new(channel)
        .enrol(EnrolRequest::default())
        .await
        .map(|_| ());
    assert_eq!(enrol.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_foreign_authority_is_refused_and_audited() {
    let (hub, other) = (Hub::start().await, Hub::start().await);
    // The same ids, certified by somebody else.
    let foreign = raw::credentials(&other, 1).await;
    assert!(tried(raw::connect(&hub, &foreign).await).await.is_err());
    eventually("the audit record", || async {
        (hub.audited(What::CertificateRefused) > 0).then_some(())
    })
    .await;
    assert!(
        hub.store
            .events()
            .iter()
            .all(|event| event.peer.is_none() || event.what == What::Enrolled)
    );
    assert_eq!(hub.store.cluster(cluster(1)).unwrap().epoch, 0);
    alive(&hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_an_expired_certificate_is_refused_and_audited_for_its_cluster() {
    let now = roadstead_domain::Clock::now_ms(&SystemClock);
    // The hub's clock stands; the client's own checks need a certificate that is good by the real clock too.
    let clock = Arc::new(FakeClock::at(now));
    let hub = Hub::with(Wishes {
        clock: clock.clone(),
        client_life: Duration::from_secs(600),
        ..Wishes::default()
    })
    .await;
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, _) = welcomed(&hub, &credentials, 0).await;
    clock.advance(Duration::from_secs(601));
    assert!(tried(raw::connect(&hub, &credentials).await).await.is_err());
    let event = eventually("the audit record", || async {
        hub.store
            .events()
            .into_iter()
            .find(|event| event.what == What::CertificateRefused)
    })
    .await;
    assert_eq!(event.peer.unwrap().cluster, cluster(1));
    // A live session does not outlive its certificate by more than the skew of clocks.
    clock.advance(Duration::from_secs(301));
    session.say(Body::Heartbeat(Heartbeat::default())).await;
    assert_eq!(session.end().await.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_revoked_certificate_opens_nothing() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    hub.store.revoke(cluster(1));
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let first = tried(Ok(channel.clone())).await;
    assert!(
        matches!(first, Ok(Some(hub_frame::Body::Revoked(_)))),
        "{first:?}"
    );
    let blob = BulkClient::new(channel.clone())
        .get_blob(GetBlobRequest::default())
        .await
        .map(|_| ());
    assert_eq!(blob.unwrap_err().code(), Code::Unauthenticated);
    let tunnel = TunnelClient::new(channel)
        .open(tokio_stream::pending())
        .await
        .map(|_| ());
    assert_eq!(tunnel.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(hub.audited(What::IdentityRefused), 3);
}

/// A fresh session that is at rest.
async fn at_rest(hub: &Hub, credentials: &Credentials) -> RawSession {
    let (mut session, welcome) = welcomed(hub, credentials, 0).await;
    assert_eq!(welcome.mode(), Mode::Snapshot);
    // The snapshot is taken, so that the session is at rest.
    loop {
        if let Ok(Some(hub_frame::Body::SnapshotEnd(end))) = session.next().await {
            let ack = Ack {
                revision: end.revision,
                stage: Stage::Persisted.into(),
            };
            session.say(Body::Ack(ack)).await;
            return session;
        }
    }
}

/// Sends one frame in a fresh session; says how the session ended.
async fn after(hub: &Hub, credentials: &Credentials, body: Body) -> Status {
    let mut session = at_rest(hub, credentials).await;
    session.say(body).await;
    session.end().await
}

/// Asks for an echo and waits for it: everything said before has been heard.
async fn heard(session: &mut RawSession, sequence: u64) {
    session
        .say(Body::Heartbeat(Heartbeat { sequence, cursor: 0 }))
        .await;
    loop {
        match session.next().await.expect("the session lives") {
            Some(hub_frame::Body::Heartbeat(echo)) if echo.sequence == sequence => return,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

fn status_of(uid: &str, observed_generation: u64) -> Body {
    let phase = "Ready".to_owned();
    Body::Status(DocumentStatus {
        uid: uid.to_owned(),
        observed_generation,
        phase,
        conditions: Vec::new(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_forged_ids_and_numbers_are_refused_and_audited() {
    let hub = Hub::start().await;
    hub.store.add_cluster(tenant(2), cluster(2));
    hub.store
        .place(cluster(2), &[("theirs".to_owned(), Some(prompt("theirs", "x")))]);
    hub.store
        .place(cluster(1), &[("ours".to_owned(), Some(prompt("ours", "x")))]);
    let credentials = raw::credentials(&hub, 1).await;
    let persisted = Ack {
        revision: 9,
        stage: Stage::Persisted.into(),
    };
    let applied = Ack {
        revision: 9,
        stage: Stage::Applied.into(),
    };
    let forgeries = [
        Body::Ack(persisted),
        Body::Ack(applied),
        Body::Resume(Resume { cursor: 9 }),
        Body::Renew(RenewRequest {
            csr: b"no request".to_vec(),
        }),
    ];
    for (n, body) in forgeries.into_iter().enumerate() {
        let ended = after(&hub, &credentials, body).await;
        assert_eq!(ended.code(), Code::PermissionDenied, "forgery {n}: {ended}");
        assert_eq!(hub.audited(What::Forged), n + 1, "forgery {n}");
    }
    let other = hub.store.cluster(cluster(2)).unwrap();
    assert!(other.observations.is_empty() && other.persisted == 0);
    assert!(
        hub.store
            .events()
            .iter()
            .all(|event| event.peer.as_ref().is_none_or(|peer| peer.cluster == cluster(1)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_reports_of_foreign_documents_are_refused_and_audited_once_a_session() {
    let hub = Hub::start().await;
    hub.store.add_cluster(tenant(2), cluster(2));
    for (n, uid) in [(1, "ours"), (2, "theirs")] {
        hub.store
            .place(cluster(n), &[(uid.to_owned(), Some(prompt(uid, "x")))]);
    }
    let credentials = raw::credentials(&hub, 1).await;
    let nack = fleet::Nack {
        uid: "theirs".to_owned(),
        generation: 1,
        ..fleet::Nack::default()
    };
    let forgeries = [
        status_of("theirs", 1),
        status_of("ours", 2),
        status_of("nobody's", 1),
        Body::Nack(nack),
    ];
    for (n, body) in forgeries.into_iter().enumerate() {
        let mut session = at_rest(&hub, &credentials).await;
        for _ in 0..3 {
            session.say(body.clone()).await;
        }
        heard(&mut session, 7).await;
        assert_eq!(hub.audited(What::Forged), n + 1, "forgery {n}");
        // The session of a liar is still one: its own documents are heard.
        session.say(status_of("ours", 1)).await;
        heard(&mut session, 8).await;
        let own = hub.store.cluster(cluster(1)).unwrap().observations;
        assert_eq!(own.keys().collect::<Vec<_>>(), ["ours"], "forgery {n}");
        assert_eq!(own["ours"].generation, 1, "forgery {n}");
    }
    assert!(hub.store.cluster(cluster(2)).unwrap().observations.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_run_records_of_foreign_agents_are_refused_one_by_one() {
    let hub = Hub::start().await;
    hub.store
        .place(cluster(1), &[("ours".to_owned(), Some(prompt("ours", "x")))]);
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, _) = welcomed(&hub, &credentials, 0).await;
    let record = |id: &str, said: &str, uid: &str| RunRecord {
        id: said.to_owned(),
        json: serde_json::to_vec(&run(id, uid, 1)).unwrap(),
    };
    let junk = RunRecord {
        id: "r4".to_owned(),
        json: b"{}".to_vec(),
    };
    let records = vec![
        record("r1", "r1", "ours"),
        record("r2", "r2", "theirs"),
        record("r3", "other", "ours"),
        junk,
    ];
    session
        .say(Body::Runs(RunRecords {
            records: records.clone(),
        }))
        .await;
    session.say(Body::Runs(RunRecords { records })).await;
    for _ in 0..2 {
        let ack = loop {
            if let Some(hub_frame::Body::RunAck(ack)) = session.next().await.unwrap() {
                break ack;
            }
        };
        assert_eq!(ack.kept, ["r1"]);
        assert_eq!(ack.refused.len(), 3);
    }
    assert_eq!(hub.store.runs().len(), 1);
    assert_eq!(hub.audited(What::Forged), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_a_blob_of_another_cluster_is_not_there() {
    let hub = Hub::start().await;
    hub.store.add_cluster(tenant(2), cluster(2));
    let theirs = prompt("theirs", &"secret ".repeat(20_000));
    hub.store
        .place(cluster(2), &[("theirs".to_owned(), Some(theirs.clone()))]);
    let credentials = raw::credentials(&hub, 1).await;
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let digest = document_digest(&theirs.json).to_vec();
    let asked = BulkClient::new(channel)
        .get_blob(GetBlobRequest { digest, offset: 0 })
        .await
        .map(|_| ());
    assert_eq!(asked.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_resumes_at_an_offset() {
    let hub = Hub::start().await;
    let large = prompt("large", &"x".repeat(600_000));
    hub.store
        .place(cluster(1), &[("l".to_owned(), Some(large.clone()))]);
    let credentials = raw::credentials(&hub, 1).await;
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let digest = document_digest(&large.json).to_vec();
    for offset in [0, 1, 300_000, large.json.len()] {
        let request = GetBlobRequest {
            digest: digest.clone(),
            offset: offset as u64,
        };
        let mut chunks = BulkClient::new(channel.clone())
            .get_blob(request)
            .await
            .unwrap()
            .into_inner();
        let mut got = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            assert_eq!(chunk.offset as usize, offset + got.len());
            assert_eq!(chunk.total as usize, large.json.len());
            got.extend_from_slice(&chunk.data);
        }
        assert_eq!(Bytes::from(got), large.json.slice(offset..));
    }
    let beyond = GetBlobRequest {
        digest,
        offset: large.json.len() as u64 + 1,
    };
    let asked = BulkClient::new(channel).get_blob(beyond).await.map(|_| ());
    assert_eq!(asked.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_oversize_frames_and_floods_end_one_session_and_the_hub_lives() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, _) = welcomed(&hub, &credentials, 0).await;
    let record = RunRecord {
        id: "r".to_owned(),
        json: vec![b' '; 300 * 1024],
    };
    session
        .say(Body::Runs(RunRecords {
            records: vec![record],
        }))
        .await;
    assert_eq!(session.end().await.code(), Code::OutOfRange);

    let (mut session, _) = welcomed(&hub, &credentials, 0).await;
    let flood = async {
        for sequence in 0..50_000 {
            // Costs the hub no answer.
            session
                .say(Body::StateRoot(fleet::StateRoot {
                    cursor: sequence,
                    root: Vec::new(),
                }))
                .await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), flood).await.ok();
    assert_eq!(session.end().await.code(), Code::ResourceExhausted);
    eventually("the audit record", || async {
        (hub.audited(What::Abuse) == 1).then_some(())
    })
    .await;
    alive(&hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_many_streams_on_one_connection_are_bounded() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    // Opened and dropped at once: resets.
    for _ in 0..2_000 {
        let mut client = TunnelClient::new(channel.clone());
        let open = client.open(tokio_stream::pending());
        let _ = tokio::time::timeout(Duration::from_micros(50), open).await;
    }
    alive(&hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_malformed_hellos_are_refused() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let refused = |body: Body| {
        let (hub, credentials) = (&hub, &credentials);
        async move {
            let channel = raw::connect(hub, credentials).await.unwrap();
            RawSession::open(channel, body).await.unwrap().end().await.code()
        }
    };
    let long = fleet::Hello {
        instance_id: "x".repeat(1_000),
        ..raw::hello(0)
    };
    assert_eq!(refused(Body::Hello(long)).await, Code::InvalidArgument);
    let nameless = fleet::Hello {
        incarnation: String::new(),
        ..raw::hello(0)
    };
    assert_eq!(refused(Body::Hello(nameless)).await, Code::InvalidArgument);
    let future = fleet::Hello {
        protocol_min: 90,
        protocol_max: 99,
        ..raw::hello(0)
    };
    assert_eq!(refused(Body::Hello(future)).await, Code::FailedPrecondition);
    assert_eq!(
        refused(Body::Heartbeat(Heartbeat::default())).await,
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_with_one_identity_raise_an_alarm_and_fence_each_other() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let mut last: Option<RawSession> = None;
    for turn in 0..6 {
        let channel = raw::connect(&hub, &credentials).await.unwrap();
        let instance_id = ["one", "two"][turn % 2].to_owned();
        let hello = fleet::Hello {
            instance_id,
            ..raw::hello(0)
        };
        let mut session = RawSession::open(channel, Body::Hello(hello)).await.unwrap();
        assert!(matches!(
            session.next().await,
            Ok(Some(hub_frame::Body::Welcome(_)))
        ));
        if let Some(mut older) = last.replace(session) {
            assert_eq!(older.end().await.code(), Code::Aborted);
        }
    }
    assert_eq!(hub.audited(What::CloneSuspected), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_agent_far_behind_is_held_not_refused() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let hello = fleet::Hello {
        version: "9.0.0".to_owned(),
        ..raw::hello(0)
    };
    let mut session = RawSession::open(channel, Body::Hello(hello)).await.unwrap();
    let Ok(Some(hub_frame::Body::Welcome(welcome))) = session.next().await else {
        panic!()
    };
    assert_eq!(welcome.mode(), Mode::Hold);
    assert!(welcome.reason.contains("upgrade"));
}

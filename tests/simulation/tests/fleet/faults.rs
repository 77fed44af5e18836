//! What goes wrong on one side, or is done by one cluster, and what it costs the others: time.

use roadstead_contract::fleet::{
    self, Ack, GetBlobRequest, Have, HaveEntry, Mode, Stage, StateRoot, Throttle, bulk_client::BulkClient,
    cluster_frame::Body, document_digest, hub_frame,
};
use roadstead_domain::{Clock as _, FakeClock, SystemClock};
use roadstead_fleet::store::What;
use roadstead_link::LinkState;
use roadstead_simulation::{
    agent::ClusterAgent,
    cluster, eventually,
    hub::{Hub, Wishes},
    prompt, raw,
    raw::{Credentials, RawSession},
    scripted::ScriptedHub,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::Code;

async fn opened(hub: &Hub, credentials: &Credentials, hello: fleet::Hello) -> RawSession {
    let channel = raw::connect(hub, credentials).await.expect("a connection");
    RawSession::open(channel, Body::Hello(hello))
        .await
        .expect("a session")
}

/// A session whose snapshot is taken, and the revision of that.
async fn at_rest(hub: &Hub, credentials: &Credentials) -> (RawSession, u64) {
    let mut session = opened(hub, credentials, raw::hello(0)).await;
    loop {
        if let Some(hub_frame::Body::SnapshotEnd(end)) = session.next().await.expect("a frame") {
            let (revision, stage) = (end.revision, Stage::Persisted.into());
            session.say(Body::Ack(Ack { revision, stage })).await;
            return (session, revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_time_and_is_over_when_there_is_room() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "join"));
    agent.connected().await;
    agent.inbox.limit_pages(Some(1)).await.unwrap();
    let text = "x".repeat(40 * 1024);
    let documents: Vec<_> = (0..20)
        .map(|n| (format!("d{n}"), Some(prompt("d", &text))))
        .collect();
    hub.store.place(cluster(1), &documents);
    let (state, trouble) = (agent.reports.state(), agent.reports.trouble());
    eventually("away for the inbox, and not ready", || async {
        let away = matches!(&*state.borrow(), LinkState::Away { reason } if reason.contains("inbox"));
        (away && trouble.borrow().is_some()).then_some(())
    })
    .await;
    agent.inbox.limit_pages(None).await.unwrap();
    agent.counts(20).await;
    assert_eq!(*trouble.borrow(), None);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_cluster_agent_is_let_go_and_goes_on_where_it_was() {
    let hub = Hub::with(Wishes {
        stall: Duration::from_millis(200),
        ..Wishes::default()
    })
    .await;
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, revision) = at_rest(&hub, &credentials).await;
    let next = hub
        .store
        .place(cluster(1), &[("b".to_owned(), Some(prompt("b", "one")))]);
    // It takes the batch and never acknowledges it.
    let ended = session.end().await;
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    eventually("the cluster is away", || async {
        hub.fleet.live().is_empty().then_some(())
    })
    .await;
    let mut session = opened(&hub, &credentials, raw::hello(revision)).await;
    let batch = loop {
        match session.next().await.expect("a frame") {
            Some(hub_frame::Body::Welcome(welcome)) => assert_eq!(welcome.mode(), Mode::Delta),
            Some(hub_frame::Body::Batch(batch)) => break batch,
            _ => {}
        }
    };
    assert_eq!(
        (batch.from, batch.through, batch.changes.len()),
        (revision, next, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn four_missed_heartbeats_end_a_session_on_both_sides() {
    let hub = Hub::with(Wishes {
        heartbeat: Duration::from_millis(100),
        ..Wishes::default()
    })
    .await;
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, _) = at_rest(&hub, &credentials).await;
    let ended = session.end().await;
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::DeadlineExceeded, "no heartbeat")
    );

    // A hub that says nothing after its Welcome.
    let mut silent = ScriptedHub::start().await;
    let agent = ClusterAgent::join(&silent.address.to_string(), &silent.token);
    let mut first = silent.session().await;
    first.welcome_beating(Mode::Delta, 0, 100).await;
    let mut second = silent.session().await;
    second.welcome_beating(Mode::Delta, 0, 60_000).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_honoured() {
    let mut hub = ScriptedHub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token);
    let mut first = hub.session().await;
    first.hear().await.expect("a Hello");
    let least = Duration::from_millis(1_200);
    let said = Instant::now();
    let retry_after_ms = u32::try_from(least.as_millis()).unwrap();
    first
        .say(hub_frame::Body::Throttle(Throttle { retry_after_ms }))
        .await;
    let mut second = hub.session().await;
    assert!(said.elapsed() >= least);
    second.welcome(Mode::Delta, 0).await;
    agent.connected().await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_one_cluster_uses_up_its_own_admission_alone() {
    let hub = Hub::start().await;
    hub.store.add_cluster(roadstead_simulation::tenant(1), cluster(2));
    let (one, two) = (raw::credentials(&hub, 1).await, raw::credentials(&hub, 2).await);
    let channel = raw::connect(&hub, &one).await.unwrap();
    let mut throttled = None;
    for _ in 0..40 {
        let hello = Body::Hello(raw::hello(0));
        let mut session = RawSession::open(channel.clone(), hello).await.expect("a stream");
        if let Ok(Some(hub_frame::Body::Throttle(throttle))) = session.next().await {
            throttled = Some(throttle.retry_after_ms);
            break;
        }
    }
    assert!(throttled.is_some_and(|wait| wait > 0));
    at_rest(&hub, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_documents_that_nobody_reads_give_their_place_back() {
    let hub = Hub::with(Wishes {
        stall: Duration::from_secs(3),
        ..Wishes::default()
    })
    .await;
    let large = prompt("large", &"x".repeat(4 * 1024 * 1024));
    hub.store
        .place(cluster(1), &[("l".to_owned(), Some(large.clone()))]);
    let credentials = raw::credentials(&hub, 1).await;
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let request = GetBlobRequest {
        digest: document_digest(&large.json).to_vec(),
        offset: 0,
    };
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut bulk = BulkClient::new(channel.clone());
        unread.push(bulk.get_blob(request.clone()).await.expect("a place"));
    }
    let mut bulk = BulkClient::new(channel.clone());
    let third = bulk.get_blob(request.clone()).await.map(|_| ());
    assert_eq!(third.unwrap_err().code(), Code::Unavailable);
    eventually("a place again", || async {
        BulkClient::new(channel.clone())
            .get_blob(request.clone())
            .await
            .ok()
            .map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_list_of_the_inbox_has_limits() {
    let hub = Hub::start().await;
    let revision = hub
        .store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    let credentials = raw::credentials(&hub, 1).await;
    drop(at_rest(&hub, &credentials).await);
    let entry = |uid: String| HaveEntry {
        uid,
        generation: 1,
        digest: vec![0; 32],
    };
    let pages = [
        vec![entry("x".repeat(200 * 1024))],
        (0..1_001).map(|n| entry(format!("d{n}"))).collect(),
    ];
    for (n, entries) in pages.into_iter().enumerate() {
        // At the hub's revision with another root: the hub asks for the list.
        let mut session = opened(&hub, &credentials, raw::hello(revision)).await;
        let request = loop {
            if let Some(hub_frame::Body::HaveRequest(request)) = session.next().await.expect("a frame") {
                break request.request;
            }
        };
        let have = Have {
            request,
            page: 0,
            last: false,
            cursor: revision,
            entries,
        };
        session.say(Body::Have(have)).await;
        assert_eq!(session.end().await.code(), Code::ResourceExhausted);
        eventually("the audit record", || async {
            (hub.audited(What::Abuse) == n + 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_session_without_heartbeats_does_not_outlive_its_certificate() {
    let clock = Arc::new(FakeClock::at(SystemClock.now_ms()));
    let hub = Hub::with(Wishes {
        clock: clock.clone(),
        client_life: Duration::from_secs(600),
        ..Wishes::default()
    })
    .await;
    let credentials = raw::credentials(&hub, 1).await;
    let (mut session, cursor) = at_rest(&hub, &credentials).await;
    clock.advance(Duration::from_secs(902));
    let root = StateRoot {
        cursor,
        root: Vec::new(),
    };
    session.say(Body::StateRoot(root)).await;
    assert_eq!(session.end().await.code(), Code::Unauthenticated);
}

//! The fleet's root certificate is replaced under live sessions, and attacks on that.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use roadstead_contract::fleet::{
    Heartbeat, Mode, RenewNow, Renewed, TrustBundle, TrustKept, cluster_frame::Body, hub_frame::Body as Down,
};
use roadstead_fleet::{
    TunnelKind, TunnelRequest,
    roots::{FOREIGN, Refusal},
    store::{Event, Reported, What},
};
use roadstead_link::Identity;
use roadstead_simulation::{
    agent::ClusterAgent,
    cluster, eventually,
    hub::{Hub, Wishes},
    prompt,
    raw::{self, Credentials, RawSession},
    scripted::{Script, ScriptedHub},
    tenant,
};
use std::{sync::Arc, time::Duration};

/// Answers a call a byte at a time, until the caller goes.
struct Endless;

#[async_trait::async_trait]
impl roadstead_link::TunnelHandler for Endless {
    async fn call(
        &self,
        _: roadstead_link::TunnelCall,
        _: roadstead_link::TunnelBody,
    ) -> Result<roadstead_link::TunnelReply, roadstead_link::TunnelFailure> {
        let bytes = stream::iter(0_u64..).then(|n| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(Bytes::copy_from_slice(&n.to_be_bytes()))
        });
        Ok(roadstead_link::TunnelReply {
            status: 200,
            headers: Default::default(),
            body: bytes.boxed(),
        })
    }
}

fn request() -> TunnelRequest {
    TunnelRequest {
        kind: TunnelKind::Logs,
        agent_uid: "a".to_owned(),
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
    }
}

pub(super) fn add(hub: &Hub) {
    hub.roots(|ring, root| ring.add(root)).expect("announced");
}

pub(super) fn switch(hub: &Hub, behind: usize) -> Result<(), Refusal> {
    hub.roots(|ring, _| ring.switch(&hub.store.trust(), 0, behind))
        .map(drop)
}

pub(super) fn retire(hub: &Hub, cut_off: usize) -> Result<(), Refusal> {
    hub.roots(|ring, _| ring.retire(&hub.store.trust(), 0, cut_off))
        .map(drop)
}

/// Waits until the step is possible without leaving anybody behind.
async fn once_ready(what: &str, mut step: impl FnMut() -> Result<(), Refusal>) {
    eventually(what, || {
        let done = step().ok();
        async move { done }
    })
    .await;
}

pub(super) async fn rotate(hub: &Hub) {
    add(hub);
    once_ready("everybody keeps the new root", || switch(hub, 0)).await;
    once_ready("nobody depends on the old root", || retire(hub, 0)).await;
}

pub(super) async fn has_roots(agent: &ClusterAgent, wanted: (u64, usize)) {
    eventually(&format!("roots {wanted:?} on disk"), || async {
        (agent.roots() == wanted).then_some(())
    })
    .await;
}

pub(super) async fn raw_session(hub: &Hub, credentials: &Credentials) -> RawSession {
    let channel = raw::connect(hub, credentials).await.expect("a connection");
    let mut session = RawSession::open(channel, Body::Hello(raw::hello(0)))
        .await
        .expect("a session");
    assert!(matches!(session.next().await, Ok(Some(Down::Welcome(_)))));
    session
}

/// The next bundle, whatever comes before it.
async fn bundle(session: &mut RawSession) -> TrustBundle {
    loop {
        match session.next().await.expect("the session lives") {
            Some(Down::Trust(bundle)) => return bundle,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

async fn is_refused(hub: &Hub, credentials: &Credentials) -> bool {
    let Ok(channel) = raw::connect(hub, credentials).await else {
        return true;
    };
    match RawSession::open(channel, Body::Hello(raw::hello(0))).await {
        Ok(mut session) => !matches!(session.next().await, Ok(Some(Down::Welcome(_)))),
        Err(_) => true,
    }
}

async fn certificate_refused(hub: &Hub) -> Event {
    eventually("the audit record", || async {
        let mut events = hub.store.events().into_iter();
        events.find(|event| event.what == What::CertificateRefused)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_root_is_rotated_without_a_dropped_stream() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::with(
        &hub.address.to_string(),
        &hub.token(1, "token"),
        Arc::new(Endless),
    );
    agent.connected().await;
    let tunnels = hub.fleet.tunnels();
    let call = tunnels.call(
        cluster(1),
        request(),
        stream::empty().boxed(),
        Duration::from_secs(120),
    );
    let mut body = call.await.unwrap().body;
    let old = hub.authority.root_der();
    rotate(&hub).await;
    assert_ne!(hub.authority.root_der(), old);
    has_roots(&agent, (3, 1)).await;
    let text = std::fs::read_to_string(agent.folder().join("identity.json")).unwrap();
    let hex: String = old.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(&hex), "the old root is gone from the disk");
    // What began before the rotation goes on after it, without a gap.
    for n in 0_u64..50 {
        let chunk = body
            .next()
            .await
            .expect("it goes on")
            .expect("through the rotation");
        assert_eq!(chunk, n.to_be_bytes().as_slice());
    }
    drop(body);
    let call = tunnels.call(
        cluster(1),
        request(),
        stream::empty().boxed(),
        Duration::from_secs(60),
    );
    assert!(call.await.is_ok(), "and new ones begin");
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    agent.holds("a", 1).await;
    assert_eq!(hub.audited(What::CertificateRefused), 0);
    // A second rotation follows the first.
    rotate(&hub).await;
    has_roots(&agent, (6, 1)).await;
    let folder = agent.kill().await;
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    agent.connected().await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_certificate_of_a_retired_root_is_refused_and_audited() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let mut session = raw_session(&hub, &credentials).await;
    add(&hub);
    assert_eq!(bundle(&mut session).await.roots.len(), 2);
    // It says nothing of the bundle: it is counted, and left behind by a person who says so.
    assert!(matches!(switch(&hub, 0), Err(Refusal::Clusters { .. })));
    switch(&hub, 1).unwrap();
    assert_eq!(bundle(&mut session).await.generation, 2);
    while !matches!(
        session.next().await.expect("it is told to renew"),
        Some(Down::RenewNow(_))
    ) {}
    assert!(matches!(retire(&hub, 0), Err(Refusal::Clusters { .. })));
    assert!(!is_refused(&hub, &credentials).await, "until then it is good");
    let before = raw::connect(&hub, &credentials).await.unwrap();
    let mut session = raw_session(&hub, &credentials).await;
    retire(&hub, 1).unwrap();
    let revoked = loop {
        match session.next().await.expect("a last word") {
            Some(Down::Revoked(revoked)) => break revoked,
            Some(_) => {}
            None => panic!("the session ended without a word"),
        }
    };
    assert!(
        revoked.reason.contains("join again with a new token"),
        "{revoked:?}"
    );
    assert!(is_refused(&hub, &credentials).await);
    // A connection from before opens nothing, and writes there as little.
    if let Ok(mut session) = RawSession::open(before, Body::Hello(raw::hello(0))).await {
        assert!(!matches!(session.next().await, Ok(Some(Down::Welcome(_)))));
    }
    let events = hub.store.events().into_iter();
    for event in events.filter(|event| event.what == What::IdentityRefused) {
        assert_eq!(event.peer, None, "{event:?}");
        assert!(event.detail.contains("it names cluster"), "{event:?}");
    }
    let event = certificate_refused(&hub).await;
    assert_eq!(
        event.peer, None,
        "whoever has its key writes into no tenant's log"
    );
    assert!(event.detail.contains("which is retired"), "{}", event.detail);
    assert!(event.detail.contains(&cluster(1).to_string()), "{}", event.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_compromised_root_ends_at_once_with_its_connections() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    // The thief's connection: as good as any, until the root ends.
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    let mut tunnel = roadstead_contract::fleet::tunnel_client::TunnelClient::new(channel);
    let mut parked = tunnel.open(tokio_stream::pending()).await.unwrap().into_inner();
    let none = hub.roots(|ring, root| ring.replace_now(root, &hub.store.trust(), 0));
    assert!(
        matches!(none, Err(Refusal::Clusters { .. })),
        "who is cut off is said first"
    );
    hub.roots(|ring, root| ring.replace_now(root, &hub.store.trust(), 1))
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), parked.message()).await;
    assert!(!matches!(ended.expect("the connection ends"), Ok(Some(_))));
    // The session is told, and the cluster agent says what to do.
    let why = agent.ended().await.unwrap_err().to_string();
    assert!(why.contains("join again with a new token"), "{why}");
    assert!(is_refused(&hub, &credentials).await);
    let event = certificate_refused(&hub).await;
    assert_eq!(event.peer, None, "of a stolen key nothing is believed");
    assert!(
        event.detail.contains("somebody else may have its key"),
        "{}",
        event.detail
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_cluster_that_was_away_for_the_announcement_finds_the_hub_and_follows() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    let folder = agent.kill().await;
    add(&hub);
    switch(&hub, 1).unwrap();
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    agent.connected().await;
    once_ready("it has followed", || retire(&hub, 0)).await;
    has_roots(&agent, (3, 1)).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_cluster_that_was_away_for_the_whole_rotation_is_told_to_join_anew() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    let folder = agent.kill().await;
    add(&hub);
    switch(&hub, 1).unwrap();
    assert!(retire(&hub, 0).is_err());
    retire(&hub, 1).unwrap();
    let address = hub.address.to_string();
    let agent = ClusterAgent::again(folder, &address).await;
    agent.away_because("make a new join token").await;
    let folder = agent.kill().await;
    // With one it comes back by itself, its inbox as it was.
    let agent = ClusterAgent::again_with(folder, &address, Some(hub.token(1, "another"))).await;
    agent.connected().await;
    assert_eq!(agent.roots(), (3, 1));
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    agent.holds("a", 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_hub_that_is_killed_at_each_step_goes_on_with_the_rotation() {
    let mut hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    add(&hub);
    hub = hub.restart().await;
    once_ready("everybody keeps the new root", || switch(&hub, 0)).await;
    hub = hub.restart().await;
    once_ready("nobody depends on the old root", || retire(&hub, 0)).await;
    hub = hub.restart().await;
    has_roots(&agent, (3, 1)).await;
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    agent.holds("a", 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_an_announcement_is_taken_back() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    add(&hub);
    has_roots(&agent, (1, 2)).await;
    hub.roots(|ring, _| ring.abort()).unwrap();
    has_roots(&agent, (2, 1)).await;
    rotate(&hub).await;
    has_roots(&agent, (5, 1)).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_join_token_with_the_pin_before_is_good_until_the_old_root_is_retired() {
    let hub = Hub::start().await;
    let before = hub.token(1, "before");
    add(&hub);
    switch(&hub, 0).unwrap();
    let agent = ClusterAgent::join(&hub.address.to_string(), &before);
    agent.connected().await;
    assert_eq!(agent.roots(), (2, 2));
    once_ready("its certificate is of the new root", || retire(&hub, 0)).await;
    has_roots(&agent, (3, 1)).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_hub_of_another_root_changes_nothing() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    rotate(&hub).await;
    has_roots(&agent, (3, 1)).await;
    let before = std::fs::read(agent.folder().join("identity.json")).unwrap();
    let store = hub.store.clone();
    let stranger = hub.replaced_by_a_stranger(store).await;
    agent.away_because("of no root that this cluster trusts").await;
    assert_eq!(
        std::fs::read(agent.folder().join("identity.json")).unwrap(),
        before
    );
    assert!(stranger.fleet.live().is_empty());
    agent.stop().await.unwrap();
}

/// What the cluster agent says it keeps.
async fn kept(script: &mut Script) -> TrustKept {
    loop {
        if let Body::Trust(kept) = script.hear().await.expect("the session lives") {
            return kept;
        }
    }
}

fn another_root() -> Vec<u8> {
    let made = roadstead_fleet::Authority::generate_root(
        "other",
        &roadstead_domain::SystemClock,
        &roadstead_domain::OsRandom,
    );
    made.expect("a certificate").0.der().to_vec()
}

fn of_script(generation: u64, roots: &[&Vec<u8>]) -> TrustBundle {
    TrustBundle {
        roots: roots.iter().map(|root| (*root).clone()).collect(),
        trust_domain: "scripted".to_owned(),
        generation,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s50_bundles_of_an_earlier_time_or_without_the_hubs_root_change_nothing() {
    let mut hub = ScriptedHub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token);
    let mut script = hub.session().await;
    script.welcome(Mode::Delta, 0).await;
    agent.connected().await;
    let (own, other) = (hub.root.clone(), another_root());
    let bundle = |generation: u64, roots: &[&Vec<u8>]| Down::Trust(of_script(generation, roots));
    script.say(bundle(5, &[&own, &other])).await;
    let said = kept(&mut script).await;
    assert_eq!((said.generation, said.refused.as_str()), (5, ""));
    assert_eq!(agent.roots(), (5, 2), "on disk before it was said");
    let digest = said.digest;
    script.say(bundle(6, &[&own])).await;
    assert_eq!(kept(&mut script).await.generation, 6);
    assert_eq!(agent.roots(), (6, 1));
    // The one before, once more.
    script.say(bundle(5, &[&own, &other])).await;
    let said = kept(&mut script).await;
    assert_eq!((said.generation, said.refused.as_str()), (6, ""));
    assert_ne!(said.digest, digest);
    let attacks: [(u64, &[&Vec<u8>]); 4] = [
        (7, &[]),
        (7, &[&other]),
        (7, &[&own, &other, &own, &other, &own]),
        (6, &[&own, &other]),
    ];
    for (generation, roots) in attacks {
        script.say(bundle(generation, roots)).await;
        let said = kept(&mut script).await;
        assert_eq!(said.generation, 6);
        assert!(
            !said.refused.is_empty(),
            "{generation} with {} roots",
            roots.len()
        );
        assert_eq!(agent.roots(), (6, 1));
    }
    let Down::Trust(mut foreign) = bundle(7, &[&own]) else {
        unreachable!()
    };
    foreign.trust_domain = "another".to_owned();
    script.say(Down::Trust(foreign)).await;
    assert!(kept(&mut script).await.refused.contains("trust domain"));
    // The session has lived through all of it.
    script.say(bundle(7, &[&own, &other])).await;
    assert_eq!(kept(&mut script).await.generation, 7);
    let identity = Identity::load(agent.folder()).unwrap().unwrap();
    assert_eq!((identity.trust_generation(), identity.roots()), (7, 2));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s50_a_renewal_that_brings_an_earlier_bundle_keeps_the_later_one() {
    let mut hub = ScriptedHub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token);
    let mut script = hub.session().await;
    script.welcome(Mode::Delta, 0).await;
    agent.connected().await;
    let (own, other) = (hub.root.clone(), another_root());
    script.say(Down::Trust(of_script(5, &[&own, &other]))).await;
    assert_eq!(kept(&mut script).await.generation, 5);
    script.say(Down::RenewNow(RenewNow {})).await;
    let request = loop {
        if let Body::Renew(request) = script.hear().await.expect("the session lives") {
            break request;
        }
    };
    // A newer one between request and answer, and an older one with the answer.
    script.say(Down::Trust(of_script(6, &[&own]))).await;
    assert_eq!(kept(&mut script).await.generation, 6);
    let renewed = Renewed {
        certificate: Some(hub.certify(&request.csr)),
        trust: Some(of_script(5, &[&own, &other])),
    };
    script.say(Down::Renewed(renewed)).await;
    let before = std::fs::read(agent.folder().join("identity.json")).unwrap();
    let mut next = hub.session().await;
    next.welcome(Mode::Delta, 0).await;
    eventually("the renewed identity is on disk", || async {
        (std::fs::read(agent.folder().join("identity.json")).unwrap() != before).then_some(())
    })
    .await;
    assert_eq!(agent.roots(), (6, 1));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_another_replica_works_with_is_not_foreign_however_late_this_one_is() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let session = raw_session(&hub, &credentials).await;
    let asked = hub.store.replicas_asked();
    // The others have rotated, and the copy of their folder has not come here.
    let digest = [7; 32];
    hub.store.set_replicas(vec![Reported {
        generation: 5,
        digest: "07".repeat(32),
    }]);
    let kept = TrustKept {
        generation: 5,
        digest: digest.to_vec(),
        refused: String::new(),
    };
    session.say(Body::Trust(kept)).await;
    eventually("this replica has asked what the others have", || async {
        (hub.store.replicas_asked() > asked).then_some(())
    })
    .await;
    assert_eq!(hub.audited(What::TrustForeign), 0);
    // Once nobody works with it, it is what it looks like.
    hub.store.set_replicas(vec![Reported {
        generation: 5,
        digest: "08".repeat(32),
    }]);
    eventually("the audit record", || async {
        (hub.audited(What::TrustForeign) == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_join_through_a_replica_that_is_behind_costs_no_token() {
    let hub = Hub::start().await;
    hub.store.set_replicas(vec![Reported {
        generation: 1,
        digest: String::new(),
    }]);
    let token = hub.token(1, "token");
    let refused = raw::enrol(&hub, "token", raw::request(&raw::modest()).0).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable);
    assert_eq!(hub.audited(What::EnrolmentRefused), 0);
    // The cluster agent goes on trying, and joins with the same token once the replica has followed.
    let asked = hub.store.replicas_asked();
    let agent = ClusterAgent::join(&hub.address.to_string(), &token);
    eventually("the cluster agent has tried", || async {
        (hub.store.replicas_asked() > asked).then_some(())
    })
    .await;
    add(&hub);
    agent.connected().await;
    assert_eq!(hub.audited(What::Enrolled), 1);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_a_cluster_says_nothing_of_a_bundle_that_the_hub_did_not_send() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let mut session = raw_session(&hub, &credentials).await;
    add(&hub);
    let bundle = bundle(&mut session).await;
    let say = |generation: u64, digest: Vec<u8>| {
        Body::Trust(TrustKept {
            generation,
            digest,
            refused: String::new(),
        })
    };
    session.say(say(0, vec![0; 32])).await;
    session.say(say(1, bundle.digest().to_vec())).await;
    eventually("what is true is noted", || async {
        (hub.store.cluster(cluster(1)).unwrap().trust.0 == 1).then_some(())
    })
    .await;
    session.say(say(9, Vec::new())).await;
    session.say(Body::Heartbeat(Heartbeat::default())).await;
    assert!(matches!(session.next().await, Ok(Some(Down::Heartbeat(_)))));
    assert_eq!(hub.store.cluster(cluster(1)).unwrap().trust.0, 1);
    // It says so for longer than a replica is behind: somebody else has made its bundle.
    eventually("the audit record", || async {
        (hub.audited(What::TrustForeign) == 1).then_some(())
    })
    .await;
    eventually("it counts as behind", || async {
        (hub.store.cluster(cluster(1)).unwrap().trust.0 == FOREIGN).then_some(())
    })
    .await;
    assert!(matches!(switch(&hub, 0), Err(Refusal::Clusters { .. })));
    // It says much more than it has to say.
    for _ in 0..20 {
        session.say(say(1, bundle.digest().to_vec())).await;
    }
    eventually("it is too much", || async {
        (hub.audited(What::Abuse) == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_cluster_agents_are_not_told_to_renew_all_at_once() {
    const CLUSTERS: u64 = 9;
    let hub = Hub::with(Wishes {
        renewals: 4.0,
        ..Wishes::default()
    })
    .await;
    let mut sessions = Vec::new();
    for n in 1..=CLUSTERS {
        hub.store.add_cluster(tenant(1), cluster(n));
        let credentials = raw::credentials(&hub, n).await;
        sessions.push(raw_session(&hub, &credentials).await);
    }
    add(&hub);
    let began = tokio::time::Instant::now();
    switch(&hub, sessions.len()).unwrap();
    for session in &mut sessions {
        while !matches!(
            session.next().await.expect("it is told to renew"),
            Some(Down::RenewNow(_))
        ) {}
    }
    // Four at once and then four a second: never faster, however busy the machine is.
    assert!(
        began.elapsed() >= Duration::from_millis(1_200),
        "{:?}",
        began.elapsed()
    );
}

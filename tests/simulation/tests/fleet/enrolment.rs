//! How a cluster agent gets, keeps and loses its identity.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use roadstead_contract::fleet::{CaPin, JoinToken, cluster_frame::Body, tunnel_client::TunnelClient};
use roadstead_domain::{Clock, SystemClock};
use roadstead_fleet::{TunnelKind, TunnelRequest, store::What};
use roadstead_link::{Identity, LinkError, LinkState};
use roadstead_simulation::{
    agent::ClusterAgent,
    cluster, eventually,
    hub::{Hub, Wishes},
    prompt, raw, tenant,
};
use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_join_token_works_once_and_within_its_time() {
    let hub = Hub::start().await;
    let _ = hub.token(1, "once");
    let csr = || raw::request(&raw::modest()).0;
    assert!(raw::enrol(&hub, "once", csr()).await.is_ok());
    assert_eq!(
        raw::enrol(&hub, "once", csr()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(
        raw::enrol(&hub, "unknown", csr()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    hub.store
        .add_token("late", tenant(1), cluster(1), SystemClock.now_ms() - 1);
    assert_eq!(
        raw::enrol(&hub, "late", csr()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(
        (hub.audited(What::Enrolled), hub.audited(What::EnrolmentRefused)),
        (1, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_used_token_ends_the_link_with_what_to_do() {
    let hub = Hub::start().await;
    let token = hub.token(1, "once");
    let first = ClusterAgent::join(&hub.address.to_string(), &token);
    first.connected().await;
    let second = ClusterAgent::join(&hub.address.to_string(), &token);
    assert!(matches!(second.ended().await, Err(LinkError::JoinRefused)));
    first.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_hub_of_another_authority_never_sees_the_secret() {
    let hub = Hub::start().await;
    let _ = hub.token(1, "secret");
    let wrong = JoinToken::new("secret".to_owned(), CaPin::of_spki(b"another key")).unwrap();
    let agent = ClusterAgent::join(&hub.address.to_string(), &wrong);
    tokio::time::timeout(
        Duration::from_secs(2),
        agent
            .reports
            .state()
            .wait_for(|s| matches!(s, LinkState::Connected { .. })),
    )
    .await
    .expect_err("no session comes about");
    assert_eq!(hub.audited(What::EnrolmentRefused), 0);
    // The token was not used up.
    assert!(
        raw::enrol(&hub, "secret", raw::request(&raw::modest()).0)
            .await
            .is_ok()
    );
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s43_a_request_that_asks_for_anything_is_refused_and_does_not_cost_the_token() {
    let hub = Hub::start().await;
    let _ = hub.token(1, "token");
    let mut named = raw::modest();
    named.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    let mut other = raw::modest();
    let uri = format!(
        "spiffe://test.roadstead/tenant/{}/cluster/{}",
        tenant(2),
        cluster(2)
    );
    other
        .subject_alt_names
        .push(rcgen::SanType::URI(uri.as_str().try_into().unwrap()));
    let mut authority = raw::modest();
    authority.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign);
    let mut server = raw::modest();
    server
        .extended_key_usages
        .push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    for params in [named, other, authority, server] {
        let refused = raw::enrol(&hub, "token", raw::request(&params).0)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let garbage = raw::enrol(&hub, "token", b"not a request".to_vec())
        .await
        .unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument);
    assert_eq!(hub.audited(What::EnrolmentRefused), 5);
    assert!(
        raw::enrol(&hub, "token", raw::request(&raw::modest()).0)
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_for_its_owner_alone_and_ids_come_from_the_hub() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    let mode = std::fs::metadata(agent.folder().join("identity.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let identity = Identity::load(agent.folder()).unwrap().unwrap();
    assert_eq!(
        (identity.tenant.as_str(), identity.cluster.as_str()),
        (&*tenant(1).to_string(), &*cluster(1).to_string())
    );
    assert!(!format!("{identity:?}").contains("PRIVATE"));
    agent.stop().await.unwrap();
}

/// Answers a call slowly, a byte at a time.
struct Slow;

#[async_trait::async_trait]
impl roadstead_link::TunnelHandler for Slow {
    async fn call(
        &self,
        _: roadstead_link::TunnelCall,
        _: roadstead_link::TunnelBody,
    ) -> Result<roadstead_link::TunnelReply, roadstead_link::TunnelFailure> {
        let bytes = stream::iter(0..80u8).then(|n| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(Bytes::copy_from_slice(&[n]))
        });
        Ok(roadstead_link::TunnelReply {
            status: 200,
            headers: Default::default(),
            body: bytes.boxed(),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_certificates_rotate_without_a_dropped_stream() {
    // Five minutes of skew belong to a certificate's life as the cluster agent counts it: with 5 s on top, 40 to 60 %
    // lie in the past, so that renewals follow each other as fast as they are allowed.
    let hub = Hub::with(Wishes {
        client_life: Duration::from_secs(60),
        ..Wishes::default()
    })
    .await;
    let agent = ClusterAgent::with(&hub.address.to_string(), &hub.token(1, "token"), Arc::new(Slow));
    agent.connected().await;
    let before = std::fs::read(agent.folder().join("identity.json")).unwrap();
    let request = TunnelRequest {
        kind: TunnelKind::Logs,
        agent_uid: "a".to_owned(),
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
    };
    let body = stream::empty().boxed();
    let mut response = hub
        .fleet
        .tunnels()
        .call(cluster(1), request, body, Duration::from_secs(60))
        .await
        .unwrap();
    let mut read = Vec::new();
    while let Some(chunk) = response.body.next().await {
        read.extend_from_slice(&chunk.expect("the call goes on through the renewal"));
    }
    assert_eq!(read, (0..80).collect::<Vec<u8>>());
    eventually("a renewal", || async {
        (hub.audited(What::Renewed) > 0).then_some(())
    })
    .await;
    eventually("a new identity on disk", || async {
        (std::fs::read(agent.folder().join("identity.json")).unwrap() != before).then_some(())
    })
    .await;
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    agent.holds("a", 1).await;
    assert!(matches!(agent.connected().await, LinkState::Connected { .. }));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_renewal_that_is_not_welcomed_leaves_the_session_as_it_is() {
    let hub = Hub::with(Wishes {
        client_life: Duration::from_secs(60),
        ..Wishes::default()
    })
    .await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    hub.store.revoke_new(cluster(1), true);
    eventually("the new certificate is refused", || async {
        hub.refused_streams()
            .contains(&"session".to_owned())
            .then_some(())
    })
    .await;
    let before = agent.connected().await;
    hub.store
        .place(cluster(1), &[("a".to_owned(), Some(prompt("a", "one")))]);
    agent.holds("a", 1).await;
    assert_eq!(agent.connected().await, before, "the old session lives");
    // The next one is good: the session goes on there.
    hub.store.revoke_new(cluster(1), false);
    eventually("another session", || async {
        (agent.connected().await != before).then_some(())
    })
    .await;
    hub.store
        .place(cluster(1), &[("b".to_owned(), Some(prompt("b", "one")))]);
    agent.holds("b", 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_revocation_closes_a_live_session_within_5_s() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    hub.store.revoke(cluster(1));
    let ended = tokio::time::timeout(Duration::from_secs(5), agent.ended())
        .await
        .expect("within 5 s");
    assert!(matches!(ended, Err(LinkError::Revoked(_))), "{ended:?}");
    assert!(hub.fleet.live().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_deleted_cluster_is_refused_when_it_comes_back() {
    // Without tunnel streams: one of the cluster agent before, opened in the moment of its end, would be refused too,
    // and recorded as what it is.
    let hub = Hub::with(Wishes {
        tunnel_streams: 0,
        ..Wishes::default()
    })
    .await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "token"));
    agent.connected().await;
    let folder = agent.kill().await;
    hub.store.delete_cluster(cluster(1));
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    assert!(matches!(agent.ended().await, Err(LinkError::Revoked(_))));
    assert_eq!(hub.refused_streams(), ["session"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_each_refused_stream_is_recorded_once_with_its_kind() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    hub.store.delete_cluster(cluster(1));
    let channel = raw::connect(&hub, &credentials).await.unwrap();
    for _ in 0..2 {
        let mut tunnel = TunnelClient::new(channel.clone());
        let refused = tunnel.open(tokio_stream::pending()).await.map(|_| ());
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    }
    let mut session = raw::RawSession::open(channel, Body::Hello(raw::hello(0)))
        .await
        .unwrap();
    session.end().await;
    assert_eq!(hub.refused_streams(), ["tunnel", "tunnel", "session"]);
}

//! Whoever has the key of a root that was retired, and what it still opens: nothing.

use super::roots::{add, has_roots, raw_session, retire, rotate, switch};
use roadstead_contract::fleet::{Heartbeat, RenewRequest, cluster_frame::Body, hub_frame::Body as Down};
use roadstead_fleet::store::What;
use roadstead_simulation::{agent::ClusterAgent, cluster, hub::Hub, raw, tenant};

/// Whoever has the key of a retired root stands between a cluster and its hub. The join token of the first start still
/// lies where the cluster agent reads it, and newer ones with the same pin may, too.
#[tokio::test(flavor = "multi_thread")]
async fn s44_a_join_token_brings_no_retired_root_back() {
    let hub = Hub::start().await;
    let first = hub.token(1, "token");
    let address = hub.address.to_string();
    let agent = ClusterAgent::join(&address, &first);
    agent.connected().await;
    let stolen = hub.copied_keys();
    rotate(&hub).await;
    has_roots(&agent, (3, 1)).await;
    let before = std::fs::read(agent.folder().join("identity.json")).unwrap();
    let store = hub.store.clone();
    // The same secret again: the thief takes whatever comes.
    let (thief, honest) = hub.with_keys(stolen, store.clone()).await;
    store.add_token("token", tenant(1), cluster(1), i64::MAX);
    agent.away_because("of no root that this cluster trusts").await;
    assert_eq!(
        std::fs::read(agent.folder().join("identity.json")).unwrap(),
        before
    );
    let folder = agent.kill().await;
    let other = thief.token(1, "another");
    assert_eq!(other.pin, first.pin);
    for token in [first, other] {
        let copy = copied(folder.path());
        let agent = ClusterAgent::again_with(copy, &address, Some(token)).await;
        agent.away_because("of no root that this cluster trusts").await;
        assert_eq!(
            std::fs::read(agent.folder().join("identity.json")).unwrap(),
            before
        );
        agent.kill().await;
    }
    assert!(thief.fleet.live().is_empty());
    assert_eq!(thief.audited(What::Enrolled), 1, "the join of the beginning");
    let (hub, _) = thief.with_keys(honest, store).await;
    let agent = ClusterAgent::again(folder, &address).await;
    agent.connected().await;
    assert!(hub.fleet.live().contains(&cluster(1)));
    agent.stop().await.unwrap();
}

/// A folder of a cluster agent once more.
fn copied(folder: &std::path::Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("the folder of keys is copied");
    for entry in std::fs::read_dir(folder).expect("the folder of keys is copied") {
        let entry = entry.expect("the folder of keys is copied");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name()))
            .expect("the folder of keys is copied");
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_a_hub_of_an_earlier_time_or_a_token_of_another_cluster_replaces_no_identity() {
    let hub = Hub::start().await;
    let address = hub.address.to_string();
    let agent = ClusterAgent::join(&address, &hub.token(1, "token"));
    agent.connected().await;
    rotate(&hub).await;
    has_roots(&agent, (3, 1)).await;
    let folder = agent.kill().await;
    let before = std::fs::read(folder.path().join("identity.json")).unwrap();
    let store = hub.store.clone();
    store.add_cluster(tenant(1), cluster(2));
    // A stranger whose token somebody was talked into: its roots are of generation 0.
    let stranger = hub.replaced_by_a_stranger(store).await;
    for (n, secret) in [(1, "earlier"), (2, "another")] {
        let token = stranger.token(n, secret);
        let agent = ClusterAgent::again_with(copied(folder.path()), &address, Some(token)).await;
        agent.away_because("of no root that this cluster trusts").await;
        assert_eq!(
            std::fs::read(agent.folder().join("identity.json")).unwrap(),
            before
        );
        agent.kill().await;
    }
    assert_eq!(stranger.audited(What::Enrolled), 3, "it did take the tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_join_token_is_not_spent_on_a_hub_that_is_not_there() {
    let hub = Hub::start().await;
    let address = hub.address.to_string();
    let agent = ClusterAgent::join(&address, &hub.token(1, "token"));
    agent.connected().await;
    let folder = agent.kill().await;
    add(&hub);
    switch(&hub, 1).unwrap();
    retire(&hub, 1).unwrap();
    let (fresh, store) = (hub.token(1, "another"), hub.store.clone());
    let (stranger, honest) = hub.with_keys(tempfile::tempdir().unwrap(), store.clone()).await;
    let agent = ClusterAgent::again_with(folder, &address, Some(fresh)).await;
    agent.away_because("of no root that this cluster trusts").await;
    let (_hub, _) = stranger.with_keys(honest, store).await;
    agent.connected().await;
    assert_eq!(agent.roots(), (3, 1));
    agent.stop().await.unwrap();
}

/// What a cluster agent says in one breath with the retirement of its root: the session hears of that first.
#[tokio::test(flavor = "multi_thread")]
async fn s44_a_live_session_of_a_retired_root_gets_no_certificate_of_the_new_one() {
    for compromised in [false, true] {
        let hub = Hub::start().await;
        let credentials = raw::credentials(&hub, 1).await;
        let mut session = raw_session(&hub, &credentials).await;
        add(&hub);
        switch(&hub, 1).unwrap();
        let (csr, _) = raw::request(&raw::modest());
        // What is said already keeps the session busy while its root ends.
        for sequence in 0..2_000 {
            let beat = Heartbeat { sequence, cursor: 0 };
            session.say(Body::Heartbeat(beat)).await;
        }
        match compromised {
            false => retire(&hub, 1).unwrap(),
            true => drop(hub.roots(|ring, root| ring.replace_now(root, &hub.store.trust(), 1))),
        }
        session.say(Body::Renew(RenewRequest { csr })).await;
        while let Ok(Some(frame)) = session.next().await {
            assert!(
                !matches!(frame, Down::Renewed(_)),
                "a certificate of the new root"
            );
        }
        assert_eq!(hub.audited(What::Renewed), 0);
    }
}

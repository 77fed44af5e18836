//! A database that was restored from a backup: clusters are ahead of it, and a person decides. On SQLite, whose backup is
//! a file.

use crate::world::World;
use roadstead_domain::{Error, OsRandom, PageRequest, RunId, SystemClock};
use roadstead_link::LinkState;
use roadstead_service::{clusters, runs};
use roadstead_simulation::{agent::ClusterAgent, eventually, run};
use roadstead_store::{Difference, RunFilter, testing::TestDatabase};
use std::sync::Arc;

/// The database as it is now, in a file of its own.
async fn backup(world: &World) -> TestDatabase {
    let backup = TestDatabase::sqlite();
    let path = backup.url().strip_prefix("sqlite:").expect("a file");
    world.database().tamper(&format!("VACUUM INTO '{path}'")).await;
    backup
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_ahead_waits_for_a_person_who_sees_what_would_change() {
    let world = World::new(TestDatabase::sqlite()).await;
    let hub = world.hub().await;
    world.place(&["a", "b"], "one").await;
    let agent = world.joined(&hub).await;
    agent.counts(3).await;
    world.persisted().await;
    let older = backup(&world).await;
    world.place(&["a"], "two").await;
    world.place(&["a"], "three").await;
    world.place(&["c"], "one").await;
    world.remove(&["b"]).await;
    world.persisted().await;
    let (a, b, c) = (world.uid("a").await, String::from("b"), world.uid("c").await);
    let folder = agent.kill().await;

    let restored = World::at(older, Arc::new(SystemClock)).await;
    let hub = hub.restart_over(restored.clone()).await;
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    assert!(matches!(agent.connected().await, LinkState::Held { .. }));
    let timeline = eventually("how the cluster differs", || async {
        restored
            .cluster()
            .await
            .timeline
            .filter(|timeline| timeline.difference.is_some())
    })
    .await;
    let difference = Difference {
        sent: 1,
        deleted: vec![c.clone()],
        deletes: 1,
        replaced: vec![(a.clone(), 3)],
    };
    assert_eq!(timeline.difference, Some(difference), "{b} comes back");
    assert_eq!(restored.refused("fleet.timeline.behind").await, 1);

    // What is written while it waits is in what the person sees.
    restored.place(&["d"], "one").await;
    let timeline = eventually("the difference follows", || async {
        let timeline = restored.cluster().await.timeline;
        timeline.filter(|t| t.difference.as_ref().is_some_and(|d| d.sent == 2))
    })
    .await;

    // Records of what the backup knows are kept; those of what it does not know wait, unharmed.
    let record = |uid: &str| run(&RunId::generate(&SystemClock, &OsRandom).to_string(), uid, 1);
    agent
        .inbox
        .append_runs(vec![record(&a), record(&c)])
        .await
        .unwrap();
    eventually("the one record", || async {
        let page = PageRequest::default();
        let kept = runs::list(restored.owner(), restored.store(), &RunFilter::default(), &page).await;
        (kept.unwrap().items.len() == 1).then_some(())
    })
    .await;
    // The hub's answer comes after its commit.
    eventually("the other waits", || async {
        (agent.inbox.pending_runs(0, 9).await.unwrap().len() == 1).then_some(())
    })
    .await;

    // Another cursor than the one that was seen is refused. What the person accepts is what happens.
    let accept = async |cursor| {
        let (owner, store) = (restored.owner(), restored.store());
        clusters::accept_timeline(owner, store, restored.edge(), cursor, Some("accepted")).await
    };
    assert!(matches!(
        accept(timeline.cursor + 1).await,
        Err(Error::Conflict { .. })
    ));
    agent.holds(&a, 3).await;
    accept(timeline.cursor).await.unwrap();
    let document = agent.holds(&a, 4).await;
    assert!(String::from_utf8(document.json).unwrap().contains("one"));
    let b = restored.uid("b").await;
    agent.holds(&b, 1).await;
    agent.counts(4).await;
    restored.persisted().await;
    assert_eq!(restored.cluster().await.timeline, None);
    accept(timeline.cursor)
        .await
        .expect("a repeated request changes nothing");
    restored.place(&["a"], "four").await;
    agent.holds(&a, 5).await;
    restored.chains_hold().await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_the_backup_does_not_know_waits_for_a_person() {
    let world = World::new(TestDatabase::sqlite()).await;
    let hub = world.hub().await;
    let older = backup(&world).await;
    let agent = world.joined(&hub).await;
    let folder = agent.kill().await;
    let restored = World::at(older, Arc::new(SystemClock)).await;
    let hub = hub.restart_over(restored.clone()).await;
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    let state = agent.reports.state();
    eventually("refused, and not for good", || async {
        matches!(&*state.borrow(), LinkState::Away { reason } if reason.contains("admit")).then_some(())
    })
    .await;
    let serial = eventually("the hub has it for a person to see", || async {
        let detail = clusters::get(restored.owner(), restored.store(), restored.edge())
            .await
            .unwrap();
        let unknown = detail
            .certificates
            .into_iter()
            .find(|known| known.unknown_ms.is_some());
        unknown.map(|unknown| unknown.serial)
    })
    .await;
    let admit = async |serial: &str| {
        let (owner, store) = (restored.owner(), restored.store());
        clusters::admit_certificate(owner, store, restored.edge(), serial, None).await
    };
    assert!(matches!(admit("0").await, Err(Error::NotFound { .. })));
    admit(&serial).await.unwrap();
    agent.connected().await;
    // A revoked one is known, and stays revoked.
    clusters::revoke_certificates(restored.owner(), restored.store(), restored.edge(), None, None)
        .await
        .unwrap();
    assert!(matches!(admit(&serial).await, Err(Error::NotFound { .. })));
    assert!(agent.ended().await.is_err());
}

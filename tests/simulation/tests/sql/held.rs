//! Deletions beyond the budget wait for a person, however often the cluster agent says something else meanwhile, and an
//! approval is for one snapshot.

crate::world::on_both!(a_hold_stays_until_a_person_allows_it_and_the_approval_is_for_once);

mod tests {
    use crate::world::World;
    use roadstead_domain::Error;
    use roadstead_service::clusters;
    use roadstead_simulation::{agent::ClusterAgent, eventually, hub::Hub};

    const NAMES: [&str; 30] = [
        "d00", "d01", "d02", "d03", "d04", "d05", "d06", "d07", "d08", "d09", "d10", "d11", "d12", "d13",
        "d14", "d15", "d16", "d17", "d18", "d19", "d20", "d21", "d22", "d23", "d24", "d25", "d26", "d27",
        "d28", "d29",
    ];

    /// What makes the next session a snapshot: the hub knows another inbox.
    async fn another_inbox(world: &World) {
        world
            .database()
            .tamper("UPDATE cluster SET incarnation = 'another'")
            .await;
    }

    async fn held(world: &World, deletes: u64) -> (u64, u64) {
        eventually("a hold", || async {
            world.cluster().await.held.filter(|(_, held)| *held == deletes)
        })
        .await
    }

    /// As after an accident: while the cluster agent is away, so much is deleted, and the tombstones are lost.
    async fn accident(world: &World, hub: &Hub<World>, agent: ClusterAgent, gone: &[&str]) -> ClusterAgent {
        let folder = agent.kill().await;
        world.remove(gone).await;
        another_inbox(world).await;
        ClusterAgent::again(folder, &hub.address.to_string()).await
    }

    async fn approve(world: &World, deletes: u64, key: Option<&str>) -> Result<(), Error> {
        let approved =
            clusters::approve_deletes(world.owner(), world.store(), world.edge(), deletes, key).await;
        approved.map(|_| ())
    }

    pub(super) async fn a_hold_stays_until_a_person_allows_it_and_the_approval_is_for_once(world: World) {
        let hub = world.hub().await;
        world.place(&NAMES, "one").await;
        let agent = world.joined(&hub).await;
        agent.counts(31).await;
        world.persisted().await;
        assert!(
            matches!(approve(&world, 15, None).await, Err(Error::Conflict { .. })),
            "nothing waits"
        );

        let agent = accident(&world, &hub, agent, &NAMES[..15]).await;
        let first = held(&world, 15).await;
        agent.counts(31).await;
        // It stays through an acknowledgement of something later, and through a reconnect.
        world.place(&["new"], "one").await;
        agent.counts(32).await;
        world.persisted().await;
        assert_eq!(world.cluster().await.held, Some(first));
        let folder = agent.kill().await;
        world
            .database()
            .tamper("UPDATE cluster SET held_revision = NULL, held_deletes = NULL")
            .await;
        let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
        assert_eq!(held(&world, 15).await, first, "the inbox says it again");

        // Another number than the one that waits is refused; the right one acts in the session that lives.
        assert!(matches!(
            approve(&world, 14, None).await,
            Err(Error::Conflict { .. })
        ));
        agent.connected().await;
        let epoch = world.cluster().await.epoch;
        approve(&world, 15, Some("once")).await.unwrap();
        agent.counts(17).await;
        eventually("the hold is over", || async {
            let cluster = world.cluster().await;
            ((cluster.held, cluster.approved_deletes) == (None, 0)).then_some(())
        })
        .await;
        assert_eq!(world.cluster().await.epoch, epoch, "no reconnect was needed");
        approve(&world, 15, Some("once"))
            .await
            .expect("a repeated request changes nothing");
        assert_eq!(world.cluster().await.approved_deletes, 0);

        // It allows nothing later.
        let agent = accident(&world, &hub, agent, &NAMES[15..25]).await;
        held(&world, 10).await;
        agent.counts(17).await;
        let approvals = world.audit().await;
        let approvals = approvals
            .iter()
            .filter(|record| record.action == "approve deletes");
        assert_eq!(
            approvals
                .map(|record| record.decision.as_str())
                .collect::<Vec<_>>(),
            ["allow"]
        );
        agent.stop().await.unwrap();
    }
}

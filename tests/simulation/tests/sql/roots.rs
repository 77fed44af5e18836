//! A rotation of the fleet's root over the real database: who has which roots, and what the audit logs say.

crate::world::on_both!(
    s49_a_root_is_rotated_and_the_database_says_who_has_followed,
    s44_a_retired_certificate_is_refused_and_recorded_for_the_platform,
    s89_steps_of_a_rotation_are_recorded_and_replicas_report,
    s42_unused_join_tokens_end_with_a_compromised_root_and_that_is_recorded,
);

mod tests {
    use crate::world::World;
    use roadstead_contract::fleet::cluster_frame::Body;
    use roadstead_domain::{Clock as _, SystemClock};
    use roadstead_fleet::roots::{FOREIGN, Refusal};
    use roadstead_service::{platform, roots};
    use roadstead_simulation::{
        eventually,
        hub::Hub,
        raw::{self, RawSession},
    };

    async fn switch(world: &World, hub: &Hub<World>, behind: usize) -> Result<(), Refusal> {
        let holders = roots::holders(world.store()).await.unwrap();
        hub.roots(|ring, _| ring.switch(&holders, SystemClock.now_ms(), behind))
            .map(drop)
    }

    async fn retire(world: &World, hub: &Hub<World>, cut_off: usize) -> Result<(), Refusal> {
        let holders = roots::holders(world.store()).await.unwrap();
        hub.roots(|ring, _| ring.retire(&holders, SystemClock.now_ms(), cut_off))
            .map(drop)
    }

    pub(super) async fn s49_a_root_is_rotated_and_the_database_says_who_has_followed(world: World) {
        let hub = world.hub().await;
        let agent = world.joined(&hub).await;
        let before = roots::holders(world.store()).await.unwrap();
        let [(tenant, cluster)] = before.clusters.as_slice() else {
            panic!("{before:?}")
        };
        assert_eq!((tenant.as_str(), cluster.name.as_str()), ("acme", "edge"));
        assert_eq!((cluster.generation, cluster.root.as_str()), (0, ""));
        hub.roots(|ring, root| ring.add(root)).unwrap();
        eventually("it keeps both", || async { switch(&world, &hub, 0).await.ok() }).await;
        eventually("it has renewed", || async { retire(&world, &hub, 0).await.ok() }).await;
        eventually("it keeps the new root alone", || async {
            let now = roots::holders(world.store()).await.unwrap();
            let (_, cluster) = &now.clusters[0];
            let signer = hub.authority.ring().signer().id();
            (cluster.generation == 3 && cluster.root == signer.as_str()).then_some(())
        })
        .await;
        assert_eq!(agent.roots(), (3, 1));
        world.place(&["a"], "one").await;
        world.persisted().await;
        world.chains_hold().await;
        agent.stop().await.unwrap();
    }

    pub(super) async fn s44_a_retired_certificate_is_refused_and_recorded_for_the_platform(world: World) {
        let hub = world.hub().await;
        let credentials = raw::credentials(&hub, 1).await;
        hub.roots(|ring, root| ring.add(root)).unwrap();
        switch(&world, &hub, 1).await.unwrap();
        retire(&world, &hub, 1).await.unwrap();
        let tried = async {
            let channel = raw::connect(&hub, &credentials).await.map_err(drop)?;
            let mut session = RawSession::open(channel, Body::Hello(raw::hello(0)))
                .await
                .map_err(drop)?;
            session.next().await.map_err(drop)
        };
        assert!(tried.await.is_err());
        eventually("the platform's record", || async {
            let log = platform::records(world.store()).await.unwrap();
            let refused = log
                .iter()
                .find(|record| record.action == "fleet.certificate.refused")?;
            let detail = refused.detail.to_string();
            let cluster = roots::holders(world.store()).await.unwrap().clusters[0].1.id;
            (detail.contains("which is retired") && detail.contains(&cluster.to_string())).then_some(())
        })
        .await;
        let log = world.audit().await;
        assert!(
            log.iter()
                .all(|record| record.action != "fleet.certificate.refused"),
            "whoever has its key writes into no tenant's log"
        );
        assert_eq!(world.cluster().await.epoch, 0, "no session began");
        world.chains_hold().await;
    }

    pub(super) async fn s89_steps_of_a_rotation_are_recorded_and_replicas_report(world: World) {
        let store = world.store();
        let detail = serde_json::json!({"generation": 1, "left_behind": 0});
        let detail = detail.as_object().unwrap().clone();
        roots::record(store, "roots.add", false, "ab", detail)
            .await
            .unwrap();
        let newest = platform::records(store).await.unwrap().remove(0);
        assert_eq!(
            (newest.action.as_str(), newest.decision.as_str()),
            ("roots.add", "allow")
        );
        assert_eq!(newest.object, "ab");
        roots::report(store, "one", 0, "d0").await.unwrap();
        roots::report(store, "two", 1, "d1").await.unwrap();
        roots::report(store, "one", 1, "d1").await.unwrap();
        let holders = roots::holders(store).await.unwrap();
        let known: Vec<_> = holders
            .replicas
            .iter()
            .map(|r| (r.generation, r.digest.as_str()))
            .collect();
        assert_eq!(known, [(1, "d1"), (1, "d1")]);
        roots::leave(store, "one").await.unwrap();
        // An older folder is told by what was heard; a cluster that was misled says nothing of this hub.
        let holders = roots::holders(store).await.unwrap();
        assert_eq!(roots::heard(&holders, FOREIGN), 1);
        let left = roots::holders(store).await.unwrap().replicas;
        let now = SystemClock.now_ms();
        let live = left.iter().filter(|replica| now - replica.seen_ms < 60_000);
        let live: Vec<_> = live.map(|replica| replica.id.as_str()).collect();
        assert_eq!(live, ["two"]);
        world.chains_hold().await;
    }

    pub(super) async fn s42_unused_join_tokens_end_with_a_compromised_root_and_that_is_recorded(
        world: World,
    ) {
        let hub = world.hub().await;
        let store = world.store();
        let used = world.joined(&hub).await;
        let token = hub.join(1).await;
        let end = || async {
            let mut ended = 0;
            for tenant in roots::tenants(store).await.unwrap() {
                ended += roots::end_join_tokens(store, tenant).await.unwrap();
            }
            ended
        };
        assert_eq!(end().await, 1);
        assert_eq!(end().await, 0, "once");
        let (csr, _) = raw::request(&raw::modest());
        let refused = raw::enrol(&hub, token.expose_secret(), csr).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
        let log = world.audit().await;
        let ended = log.iter().filter(|record| record.action == "roots.retire.now");
        let ended: Vec<_> = ended.map(|record| record.detail.to_string()).collect();
        assert_eq!(ended.len(), 1, "{ended:?}");
        assert!(ended[0].contains("\"join_tokens_ended\":1"), "{ended:?}");
        world.chains_hold().await;
        used.stop().await.unwrap();
    }
}

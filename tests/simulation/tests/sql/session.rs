//! Documents on their way from a database.

crate::world::on_both!(
    documents_arrive_change_and_go,
    a_killed_cluster_agent_resumes_from_its_inbox,
    statuses_and_run_records_are_kept_once,
);

mod tests {
    use crate::world::World;
    use roadstead_contract::fleet::DocumentStatus;
    use roadstead_domain::{OsRandom, PageRequest, RunId, SystemClock};
    use roadstead_service::{audit, runs};
    use roadstead_simulation::{agent::ClusterAgent, eventually, run};

    pub(super) async fn documents_arrive_change_and_go(world: World) {
        let hub = world.hub().await;
        world.place(&["a", "b"], "one").await;
        let agent = world.joined(&hub).await;
        agent.counts(3).await;
        world.place(&["a"], "two").await;
        let a = world.uid("a").await;
        let document = agent.holds(&a, 2).await;
        assert!(String::from_utf8(document.json).unwrap().contains("two"));
        world.remove(&["a"]).await;
        agent.counts(2).await;
        world.persisted().await;
        // What left may come back: another document of that name.
        world.place(&["a"], "three").await;
        agent.counts(3).await;
        world.persisted().await;
        agent.stop().await.unwrap();
    }

    pub(super) async fn a_killed_cluster_agent_resumes_from_its_inbox(world: World) {
        let hub = world.hub().await;
        world.place(&["a", "b"], "one").await;
        let agent = world.joined(&hub).await;
        agent.counts(3).await;
        world.persisted().await;
        let folder = agent.kill().await;
        world.remove(&["a"]).await;
        world.place(&["c", "d"], "one").await;
        let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
        agent.counts(4).await;
        world.persisted().await;
        assert_eq!(world.refused("fleet.clone.suspected").await, 0);
        agent.stop().await.unwrap();
    }

    pub(super) async fn statuses_and_run_records_are_kept_once(world: World) {
        let hub = world.hub().await;
        world.place(&["a"], "one").await;
        let agent = world.joined(&hub).await;
        let uid = world.uid("a").await;
        agent.holds(&uid, 1).await;
        let records: Vec<_> = (0..80)
            .map(|n| run(&RunId::generate(&SystemClock, &OsRandom).to_string(), &uid, n))
            .collect();
        agent.inbox.append_runs(records.clone()).await.unwrap();
        agent.reports.status(DocumentStatus {
            uid,
            observed_generation: 1,
            phase: "Ready".to_owned(),
            conditions: Vec::new(),
        });
        agent.reports.applied(world.cluster().await.revision);
        eventually("every record, and the revision applied", || async {
            let page = PageRequest {
                first: Some(100),
                after: None,
            };
            let kept = runs::list(
                world.owner(),
                world.store(),
                &roadstead_store::RunFilter::default(),
                &page,
            )
            .await
            .unwrap();
            let cluster = world.cluster().await;
            (kept.items.len() == records.len() && cluster.applied == cluster.revision).then_some(())
        })
        .await;
        eventually("an empty outbox", || async {
            agent
                .inbox
                .pending_runs(0, 1)
                .await
                .unwrap()
                .is_empty()
                .then_some(())
        })
        .await;
        assert!(
            audit::verify(world.store())
                .await
                .unwrap()
                .iter()
                .all(|report| report.broken.is_none())
        );
        agent.stop().await.unwrap();
    }
}

//! Run records.

crate::support::on_both!(
    a_run_is_kept_once_however_often_it_comes,
    s45_a_run_of_a_foreign_agent_or_cluster_is_refused,
    runs_are_listed_latest_first_and_filtered,
);

mod tests {
    use crate::support::{World, enrolled_in, name, pair};
    use roadstead_authz::TenantContext;
    use roadstead_contract::documents::Kind;
    use roadstead_contract::run::{Outcome, RunRecord};
    use roadstead_domain::{ObjectId, PageRequest, RunId};
    use roadstead_service::fleet::{self, RunVerdict};
    use roadstead_service::{Target, clusters, runs};
    use roadstead_store::RunFilter;
    use std::collections::BTreeMap;

    fn run(world: &World, agent: ObjectId, started: i64) -> RunRecord {
        RunRecord {
            id: RunId::generate(&**world.store.clock(), &**world.store.random())
                .as_uuid()
                .to_string(),
            sequence: 1,
            agent_uid: agent.to_string(),
            generation: 1,
            task_id: "t".to_owned(),
            session_id: "s".to_owned(),
            subject: "token:tok_x".to_owned(),
            started_at_ms: started,
            ended_at_ms: started + 5,
            outcome: Outcome::Completed,
            reason: String::new(),
            model: "fast".to_owned(),
            model_calls: 1,
            input_tokens: 10,
            output_tokens: 20,
            cached_input_tokens: 0,
            estimated: false,
            cost_micros: 3,
            currency: "USD".to_owned(),
            tools: BTreeMap::new(),
            trace_id: String::new(),
        }
    }

    async fn begun(world: &World) -> (TenantContext, u64, ObjectId) {
        world.apply(&pair()).await.expect("applied");
        let ctx = world.cluster_agent().await;
        let session = fleet::begin_session(&ctx, &world.store, "i1", "0.1.0", &[])
            .await
            .expect("begun");
        (ctx, session.cluster.epoch, helper(world).await)
    }

    async fn helper(world: &World) -> ObjectId {
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        };
        roadstead_service::lookup(&world.acme.owner, &world.store, &target)
            .await
            .expect("there")
            .id
    }

    pub(super) async fn a_run_is_kept_once_however_often_it_comes(world: World) {
        let (ctx, epoch, agent) = begun(&world).await;
        let records = [run(&world, agent, 1), run(&world, agent, 2)];
        for _ in 0..3 {
            let verdicts = fleet::record_runs(&ctx, &world.store, epoch, &records)
                .await
                .expect("heard");
            assert_eq!(verdicts, [RunVerdict::Kept, RunVerdict::Kept]);
        }
        let listed = runs::list(
            &world.acme.owner,
            &world.store,
            &RunFilter::default(),
            &PageRequest::default(),
        )
        .await;
        let listed = listed.expect("listed").items;
        assert_eq!(
            listed.iter().map(|r| &r.record).collect::<Vec<_>>(),
            [&records[1], &records[0]]
        );
        assert_eq!(
            (listed[0].agent_name.as_str(), listed[0].cluster_name.as_str()),
            ("helper", "edge")
        );
        let one = runs::get(&world.acme.owner, &world.store, listed[0].id)
            .await
            .expect("there");
        assert_eq!(one, listed[0]);
    }

    pub(super) async fn s45_a_run_of_a_foreign_agent_or_cluster_is_refused(world: World) {
        let (ctx, epoch, agent) = begun(&world).await;
        let foreign = ObjectId::generate(Kind::Agent, &**world.store.clock(), &**world.store.random());
        let good = run(&world, agent, 1);
        let nonsense = RunRecord {
            id: "nonsense".to_owned(),
            ..good.clone()
        };
        let records = [good.clone(), run(&world, foreign, 1), nonsense];
        let verdicts = fleet::record_runs(&ctx, &world.store, epoch, &records)
            .await
            .expect("heard");
        assert_eq!(verdicts[0], RunVerdict::Kept);
        assert!(
            verdicts[1..].iter().all(|v| matches!(v, RunVerdict::Refused(_))),
            "{verdicts:?}"
        );
        // Another cluster of the tenant cannot claim the run, nor make one of an agent that was never there.
        let input = clusters::CreateInput {
            idempotency_key: None,
            name: name("west"),
            labels: BTreeMap::new(),
        };
        let west = clusters::create(&world.acme.owner, &world.store, input)
            .await
            .expect("made");
        let west = enrolled_in(&world.store, &world.acme.owner, west.id, "09").await;
        let epoch = fleet::begin_session(&west, &world.store, "i", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        let claimed = [good, run(&world, agent, 1)];
        let verdicts = fleet::record_runs(&west, &world.store, epoch, &claimed)
            .await
            .expect("heard");
        assert!(
            verdicts.iter().all(|v| matches!(v, RunVerdict::Refused(_))),
            "{verdicts:?}"
        );
    }

    pub(super) async fn runs_are_listed_latest_first_and_filtered(world: World) {
        let (ctx, epoch, agent) = begun(&world).await;
        let mut records: Vec<RunRecord> = (0..9).map(|n| run(&world, agent, 100 + n / 2)).collect();
        records[3].outcome = Outcome::Failed;
        fleet::record_runs(&ctx, &world.store, epoch, &records)
            .await
            .expect("heard");
        let list = |filter: RunFilter, after: Option<String>| {
            let world = &world;
            async move {
                let page = PageRequest {
                    first: Some(4),
                    after,
                };
                runs::list(&world.acme.owner, &world.store, &filter, &page).await
            }
        };
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = list(RunFilter::default(), after).await.expect("listed");
            seen.extend(page.items.into_iter().map(|r| (r.record.started_at_ms, r.id)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 9);
        assert!(seen.is_sorted_by(|a, b| a > b), "latest first, each once");
        let failed = RunFilter {
            outcome: Some("failed".to_owned()),
            ..RunFilter::default()
        };
        assert_eq!(list(failed.clone(), None).await.expect("listed").items.len(), 1);
        let window = RunFilter {
            since_ms: Some(101),
            until_ms: Some(102),
            agent: agent.agent(),
            ..RunFilter::default()
        };
        assert_eq!(list(window, None).await.expect("listed").items.len(), 2);
        let first = list(RunFilter::default(), None).await.expect("listed");
        assert!(
            list(failed, first.next).await.is_err(),
            "a cursor dies with its filter"
        );
    }
}

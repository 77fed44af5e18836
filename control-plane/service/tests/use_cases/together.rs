//! What cluster agents say and ask together: one transaction for all, and each as if it were alone.

crate::support::on_both!(
    reports_of_many_clusters_are_written_together_and_judged_apart,
    s37_two_tenants_are_never_in_one_transaction,
    a_cluster_that_is_busy_keeps_nobody_waiting,
    a_failing_statement_keeps_nothing_of_anybody,
    changes_of_many_clusters_are_read_together,
    s49_many_clusters_are_looked_up_together,
);

mod tests {
    use crate::support::{World, agent, enrolled, enrolled_in, model, name, set};
    use roadstead_authz::TenantContext;
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{Error, ObjectId};
    use roadstead_service::together::{self, Report, Said};
    use roadstead_service::{Target, clusters, fleet};
    use roadstead_store::{Change, Cluster, Marks, NewStatus};
    use std::time::{Duration, Instant};

    /// A cluster with the label `fleet: many`, its cluster agent, and the epoch of its session.
    struct Member {
        ctx: TenantContext,
        epoch: u64,
    }

    const SERIAL: &str = "0a";

    async fn members(world: &World, count: usize) -> Vec<Member> {
        let (owner, store) = (&world.acme.owner, &world.store);
        let mut members = Vec::new();
        for n in 0..count {
            let input = clusters::CreateInput {
                name: name(&format!("c{n}")),
                labels: [("fleet".to_owned(), "many".to_owned())].into(),
                idempotency_key: None,
            };
            let cluster = clusters::create(owner, store, input).await.expect("made");
            let ctx = enrolled_in(store, owner, cluster.id, SERIAL).await;
            let begun = fleet::begin_session(&ctx, store, "i", "0.1.0", &[]).await;
            let epoch = begun.expect("begun").cluster.epoch;
            members.push(Member { ctx, epoch });
        }
        members
    }

    fn everywhere(text: &str) -> String {
        set(&[
            model("fast", "m1"),
            agent("helper", text, "fast", "{selector: {matchLabels: {fleet: many}}}"),
        ])
    }

    async fn helper(world: &World) -> ObjectId {
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        };
        let found = roadstead_service::lookup(&world.acme.owner, &world.store, &target).await;
        found.expect("there").id
    }

    fn ready(object: ObjectId, generation: u64) -> NewStatus {
        NewStatus {
            object,
            observed_generation: generation,
            phase: "Ready".to_owned(),
            reason: String::new(),
            message: String::new(),
            conditions: serde_json::json!([]),
        }
    }

    fn all_of(revision: u64, statuses: Vec<NewStatus>) -> Report {
        let marks = Marks {
            persisted: revision,
            applied: revision,
        };
        Report {
            marks,
            statuses,
            ..Report::default()
        }
    }

    async fn cluster(world: &World, member: &Member) -> Cluster {
        let id = member.ctx.cluster().expect("a cluster agent");
        let found = clusters::get(&world.acme.owner, &world.store, id).await;
        found.expect("there").cluster
    }

    /// On how many clusters the agent has a status.
    async fn reported(world: &World, object: ObjectId) -> usize {
        let target = Target::Id(object);
        let found = roadstead_service::describe(&world.acme.owner, &world.store, &target).await;
        let placed = found.expect("there").placed;
        placed.iter().filter(|placed| placed.status.is_some()).count()
    }

    pub(super) async fn reports_of_many_clusters_are_written_together_and_judged_apart(world: World) {
        let members = members(&world, 6).await;
        world.apply(&everywhere("Help.")).await.expect("applied");
        let object = helper(&world).await;
        let gone = members[5].ctx.cluster().expect("a cluster agent");
        clusters::delete(&world.acme.owner, &world.store, gone, None)
            .await
            .expect("deleted");
        let good = all_of(1, vec![ready(object, 1)]);
        let mut forged = all_of(1, vec![ready(object, 2)]);
        forged.held = Some((1, 7));
        let future = all_of(2, vec![ready(object, 1)]);
        let reports = [&good, &good, &forged, &future, &good, &good];
        let said: Vec<_> = members
            .iter()
            .zip(reports)
            .enumerate()
            .map(|(n, (member, report))| Said {
                ctx: &member.ctx,
                epoch: member.epoch - u64::from(n == 4),
                report,
            })
            .collect();
        let mut heard = together::reports(&world.store, &said).await.expect("committed");
        assert!(
            heard.pop().expect("six").is_none(),
            "a deleted one is asked for alone"
        );
        let heard: Vec<_> = heard.into_iter().map(|heard| heard.expect("answered")).collect();
        assert!(heard[0].as_ref().is_ok_and(Vec::is_empty) && heard[1].as_ref().is_ok_and(Vec::is_empty));
        assert_eq!(heard[2].as_ref().expect("the session lives"), &[object]);
        assert!(matches!(heard[3], Err(Error::Invalid { .. })), "from the future");
        assert!(heard[4].as_ref().expect_err("superseded").is_superseded());
        let mut seen = Vec::new();
        for member in &members[..5] {
            let cluster = cluster(&world, member).await;
            seen.push((cluster.persisted, cluster.applied, cluster.held));
        }
        let none = (0, 0, None);
        assert_eq!(
            seen,
            [(1, 1, None), (1, 1, None), (1, 1, Some((1, 7))), none, none]
        );
        assert_eq!(reported(&world, object).await, 2);
        let alone = together::report(&members[5].ctx, &world.store, members[5].epoch, &good).await;
        assert!(matches!(alone, Err(Error::NotFound { .. })), "{alone:?}");
    }

    pub(super) async fn s37_two_tenants_are_never_in_one_transaction(world: World) {
        let members = members(&world, 1).await;
        let other = enrolled(&world.store, &world.other, "0b").await;
        let epoch = fleet::begin_session(&other, &world.store, "i", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        world.apply(&everywhere("Help.")).await.expect("applied");
        let report = all_of(1, Vec::new());
        let said = [
            Said {
                ctx: &members[0].ctx,
                epoch: members[0].epoch,
                report: &report,
            },
            Said {
                ctx: &other,
                epoch,
                report: &report,
            },
        ];
        let internal = |error: Error| matches!(error, Error::Internal { .. });
        assert!(internal(
            together::reports(&world.store, &said).await.expect_err("refused")
        ));
        let asked = [(&members[0].ctx, 0), (&other, 0)];
        let read = together::changes(&world.store, &asked, 100, 1_000).await;
        assert!(internal(read.expect_err("refused")));
        let asked = [(&members[0].ctx, SERIAL), (&other, "0b")];
        let stood = together::standing(&world.store, &asked).await;
        assert!(internal(stood.expect_err("refused")));
        assert_eq!(
            cluster(&world, &members[0]).await.persisted,
            0,
            "nothing was kept"
        );
        // Nor one cluster twice: their answers would be mixed.
        let twice = [said[0], said[0]];
        assert!(internal(
            together::reports(&world.store, &twice)
                .await
                .expect_err("refused")
        ));
        // A person is no cluster agent.
        let owner = [(&world.acme.owner, 0)];
        let read = together::changes(&world.store, &owner, 100, 1_000).await;
        assert!(matches!(read, Err(Error::Forbidden { .. })));
    }

    pub(super) async fn a_cluster_that_is_busy_keeps_nobody_waiting(world: World) {
        if !world.database.is_postgres() {
            // One writer: nobody is ever busy while another writes.
            return;
        }
        let members = members(&world, 3).await;
        world.apply(&everywhere("Help.")).await.expect("applied");
        let busy = world.store.tenant(&members[1].ctx).write().await.expect("begun");
        busy.fence(members[1].epoch).await.expect("the newest");
        let report = all_of(1, vec![ready(helper(&world).await, 1)]);
        let said = members.iter().map(|member| Said {
            ctx: &member.ctx,
            epoch: member.epoch,
            report: &report,
        });
        let heard = together::reports(&world.store, &said.collect::<Vec<_>>()).await;
        let heard = heard.expect("committed");
        assert!(heard[1].is_none(), "it is asked for alone");
        assert!(heard[0].is_some() && heard[2].is_some());
        let alone = together::report(&members[1].ctx, &world.store, members[1].epoch, &report);
        let free = async move {
            // Whoever waits for a lock waits by now, or finds it free.
            tokio::task::yield_now().await;
            drop(busy);
        };
        let (alone, ()) = tokio::join!(alone, free);
        assert!(alone.expect("written").is_empty());
        for member in &members {
            assert_eq!(cluster(&world, member).await.applied, 1);
        }
    }

    pub(super) async fn a_failing_statement_keeps_nothing_of_anybody(world: World) {
        let members = members(&world, 3).await;
        world.apply(&everywhere("Help.")).await.expect("applied");
        let object = helper(&world).await;
        let mut report = all_of(1, vec![ready(object, 1)]);
        (report.held, report.taken) = (Some((1, 9)), Some((0, true)));
        let said: Vec<_> = members
            .iter()
            .map(|member| Said {
                ctx: &member.ctx,
                epoch: member.epoch,
                report: &report,
            })
            .collect();
        let mut failures = 0;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            world.faults.fail_after(failures);
            let heard = together::reports(&world.store, &said).await;
            if world.faults.disarm().is_some() {
                let heard = heard.expect("no statement was left to fail");
                if heard.iter().all(Option::is_some) {
                    break;
                }
                // The transaction before goes back by itself, and who is locked meanwhile is left out.
                assert!(Instant::now() < until, "somebody stays locked");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let error = heard.expect_err("a statement failed");
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            for member in &members {
                let cluster = cluster(&world, member).await;
                assert_eq!(
                    (cluster.persisted, cluster.applied, cluster.held),
                    (0, 0, None),
                    "statement {failures}"
                );
            }
            assert_eq!(reported(&world, object).await, 0, "statement {failures}");
            failures += 1;
        }
        assert!(failures >= 4, "{failures} statements");
        assert_eq!(reported(&world, object).await, 3);
    }

    pub(super) async fn changes_of_many_clusters_are_read_together(world: World) {
        let members = members(&world, 4).await;
        world.apply(&everywhere("Help.")).await.expect("applied");
        let asked = |after: [u64; 4]| -> Vec<(&TenantContext, u64)> {
            members.iter().map(|member| &member.ctx).zip(after).collect()
        };
        let read = async |after, rows, longest| {
            let read = together::changes(&world.store, &asked(after), rows, longest).await;
            read.expect("read")
        };
        let whole = read([0, 1, 0, 9], 100, 1_000).await;
        for (n, (member, after)) in members.iter().zip([0, 1, 0, 9]).enumerate() {
            let alone = fleet::changes_since(&member.ctx, &world.store, after, 100).await;
            let alone = alone.expect("read");
            let since = whole[n].as_ref().expect("whole");
            assert_eq!(since.changes, alone.changes, "cluster {n}");
            assert_eq!(since.revision, 1, "cluster {n}");
        }
        assert_eq!(whole[0].as_ref().expect("whole").changes.len(), 2);
        assert!(whole[1].as_ref().expect("whole").changes.is_empty());
        // A limit that falls in between: whoever was not read whole is asked for alone, the others are as before.
        let cut = read([0, 0, 0, 0], 5, 1_000).await;
        assert_eq!(cut.iter().flatten().count(), 2);
        assert!(cut.iter().flatten().all(|since| since.changes.len() == 2));
        let some = read([0, 1, 1, 1], 1, 1_000).await;
        assert!(some[0].is_none(), "its two rows are more than one");
        // A document that goes by Bulk is not read for nothing.
        let large = read([0, 1, 0, 1], 100, 10).await;
        assert!(large[0].is_none() && large[2].is_none());
        assert!(large[1].is_some() && large[3].is_some());
        // What has left is a tombstone.
        world
            .apply(&agent("helper", "Help.", "fast", "{clusters: [edge]}"))
            .await
            .expect("applied");
        let left = read([1, 1, 1, 1], 100, 1_000).await;
        let gone = &left[0].as_ref().expect("whole").changes;
        assert!(
            gone.iter()
                .all(|change| matches!(change, Change::Tombstone { .. }))
        );
        assert_eq!(gone.len(), 2);
        let deleted = members[2].ctx.cluster().expect("a cluster agent");
        clusters::delete(&world.acme.owner, &world.store, deleted, None)
            .await
            .expect("deleted");
        assert!(read([1, 1, 1, 1], 100, 1_000).await[2].is_none());
    }

    pub(super) async fn s49_many_clusters_are_looked_up_together(world: World) {
        let members = members(&world, 12).await;
        let (owner, store) = (&world.acme.owner, &world.store);
        let id = |n: usize| members[n].ctx.cluster().expect("a cluster agent");
        clusters::revoke_certificates(owner, store, id(3), None, None)
            .await
            .expect("revoked");
        clusters::delete(owner, store, id(7), None)
            .await
            .expect("deleted");
        let begun = fleet::begin_session(&members[5].ctx, store, "j", "0.1.0", &[]).await;
        begun.expect("begun");
        let mut asked: Vec<_> = members.iter().map(|member| (&member.ctx, SERIAL)).collect();
        asked.push((&members[0].ctx, "77"));
        let stood = together::standing(store, &asked).await.expect("answered");
        for (n, standing) in stood.iter().enumerate() {
            let Some(standing) = standing else {
                assert_eq!(n, 7);
                continue;
            };
            assert_eq!(standing.revoked, n == 3 || n == 12, "cluster {n}");
            assert_eq!(standing.epoch, if n == 5 { 2 } else { 1 }, "cluster {n}");
            assert!(!standing.frozen && standing.approved_deletes == 0);
        }
    }
}

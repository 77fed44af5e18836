//! Enrolment, fencing, acknowledgements, reports, hints.

crate::support::on_both!(
    s42_a_join_token_works_once,
    s42_of_many_attempts_at_once_one_wins,
    s42_an_expired_or_replaced_join_token_is_refused,
    s42_an_ended_join_token_is_good_by_no_replicas_clock,
    s49_a_revoked_certificate_is_refused_and_its_session_hears_of_it,
    a_deleted_cluster_is_shut_out,
    an_older_session_writes_no_more,
    acknowledgements_go_forward_and_never_into_the_future,
    s50_an_older_report_never_overwrites_a_newer_one,
    s45_a_report_of_what_is_not_here_is_refused,
    a_hint_follows_the_commit,
    held_deletions_wait_for_a_person,
    a_certificate_expires,
);

mod tests {
    use crate::support::{HOUR, World, consume, enrolled_in, model, name, pair, say};
    use roadstead_authz::{PeerIdentity, RequestInfo, TenantContext};
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{Clock as _, Error, ObjectId, PageRequest};
    use roadstead_service::{Target, audit, authenticate, clusters, fleet, roots, together};
    use roadstead_store::{NewStatus, Standing};
    use secrecy::ExposeSecret as _;

    async fn newest_action(world: &World) -> (String, String) {
        let page = PageRequest {
            first: Some(1),
            after: None,
        };
        let listed = audit::list(&world.acme.owner, &world.store, &page)
            .await
            .expect("listed");
        let newest = listed.items.into_iter().next().expect("a record");
        (newest.action, newest.decision)
    }

    pub(super) async fn s42_a_join_token_works_once(world: World) {
        let join = world.acme.dev.join_token(&world.store).await.expect("made");
        let secret = join.secret.expose_secret();
        let (tenant, cluster) = consume(&world.store, secret).await.expect("once");
        assert_eq!(
            (tenant, cluster),
            (world.acme.owner.tenant(), world.acme.dev.cluster.id)
        );
        let again = consume(&world.store, secret)
            .await
            .expect_err("never twice")
            .to_string();
        // Refusals are the fleet port's to record, within a limit: in the log of whose token it is.
        assert_eq!(newest_action(&world).await.0, "enrol");
        let owner = fleet::join_token_owner(&world.store, secret)
            .await
            .expect("looked up");
        let owner = owner.expect("a used token is still its tenant's");
        assert_eq!((owner.tenant, owner.cluster), (tenant, cluster));
        let unknown = "0".repeat(secret.len());
        assert_eq!(
            fleet::join_token_owner(&world.store, &unknown)
                .await
                .expect("looked up"),
            None
        );
        let unknown = consume(&world.store, &unknown)
            .await
            .expect_err("unknown")
            .to_string();
        assert_eq!(again, unknown, "one sentence for every bad token");
        let at_rest = world.database.ask_all("SELECT name FROM cluster").await.join(" ");
        assert!(!at_rest.contains(secret));
    }

    pub(super) async fn s42_of_many_attempts_at_once_one_wins(world: World) {
        let join = world.acme.dev.join_token(&world.store).await.expect("made");
        let attempts = (0..8).map(|_| {
            let (store, secret) = (world.store.clone(), join.secret.expose_secret().to_owned());
            tokio::spawn(async move { consume(&store, &secret).await.is_ok() })
        });
        let mut wins = 0;
        for attempt in attempts.collect::<Vec<_>>() {
            wins += usize::from(attempt.await.expect("done"));
        }
        assert_eq!(wins, 1);
    }

    pub(super) async fn s42_an_expired_or_replaced_join_token_is_refused(world: World) {
        let first = world.acme.dev.join_token(&world.store).await.expect("made");
        let second = world.acme.dev.join_token(&world.store).await.expect("made");
        assert!(
            consume(&world.store, first.secret.expose_secret()).await.is_err(),
            "replaced"
        );
        world.clock.advance(HOUR);
        assert!(
            consume(&world.store, second.secret.expose_secret())
                .await
                .is_err(),
            "expired"
        );
    }

    pub(super) async fn s42_an_ended_join_token_is_good_by_no_replicas_clock(world: World) {
        let begun = world.clock.now_ms();
        let end = || async {
            let mut ended = 0;
            for tenant in roots::tenants(&world.store).await.expect("read") {
                ended += roots::end_join_tokens(&world.store, tenant).await.expect("ended");
            }
            ended
        };
        // The clock of the replica that ends it is a minute ahead of the one that is asked then, or an hour: for the first it
        // has expired already.
        for ahead in [HOUR / 60, HOUR, 24 * HOUR] {
            world.clock.set(begun);
            let join = world.acme.dev.join_token(&world.store).await.expect("made");
            world.clock.advance(ahead);
            assert_eq!(end().await, 1, "{ahead:?}");
            assert_eq!(end().await, 0, "once");
            world.clock.set(begun);
            let late = consume(&world.store, join.secret.expose_secret()).await;
            late.expect_err("an ended token");
        }
    }

    fn peer(world: &World, serial: &str) -> PeerIdentity {
        PeerIdentity {
            tenant: world.acme.owner.tenant(),
            cluster: world.acme.dev.cluster.id,
            serial: serial.to_owned(),
        }
    }

    /// How the cluster stands with the certificate `01`.
    async fn standing(world: &World, ctx: &TenantContext) -> Result<Option<Standing>, Error> {
        let mut standings = together::standing(&world.store, &[(ctx, "01")]).await?;
        Ok(standings.pop().flatten())
    }

    pub(super) async fn s49_a_revoked_certificate_is_refused_and_its_session_hears_of_it(world: World) {
        let ctx = world.cluster_agent().await;
        let mut hints = world.store.watch(&ctx).expect("a cluster agent");
        let mut all = world.store.changed();
        let id = world.acme.dev.cluster.id;
        let stands = standing(&world, &ctx).await.expect("answered").expect("there");
        assert!(!stands.revoked);
        let count =
            clusters::revoke_certificates(&world.acme.owner, &world.store, id, Some("01"), None).await;
        assert_eq!(count.expect("revoked"), 1);
        assert!(hints.has_changed().expect("open"));
        hints.mark_unchanged();
        assert_eq!(all.try_recv().expect("a hint"), id);
        let stands = standing(&world, &ctx).await.expect("answered").expect("there");
        assert!(stands.revoked);
        let refused = authenticate::cluster(&world.store, &peer(&world, "01"), RequestInfo::default()).await;
        assert!(matches!(refused, Err(Error::Unauthenticated { .. })));
        let unknown =
            clusters::revoke_certificates(&world.acme.owner, &world.store, id, Some("77"), None).await;
        assert!(matches!(unknown, Err(Error::NotFound { .. })));
    }

    pub(super) async fn a_certificate_expires(world: World) {
        world.cluster_agent().await;
        world.clock.advance(72 * HOUR);
        let refused = authenticate::cluster(&world.store, &peer(&world, "01"), RequestInfo::default()).await;
        assert!(matches!(refused, Err(Error::Unauthenticated { .. })));
    }

    pub(super) async fn a_deleted_cluster_is_shut_out(world: World) {
        world.apply(&pair()).await.expect("applied");
        let ctx = world.cluster_agent().await;
        let session = fleet::begin_session(&ctx, &world.store, "i1", "0.1.0", &[])
            .await
            .expect("begun");
        let id = world.acme.dev.cluster.id;
        clusters::delete(&world.acme.owner, &world.store, id, None)
            .await
            .expect("deleted");
        let acked = say::persisted(&ctx, &world.store, session.cluster.epoch, 1).await;
        assert!(matches!(acked, Err(Error::NotFound { .. })), "{acked:?}");
        assert!(
            fleet::begin_session(&ctx, &world.store, "i1", "0.1.0", &[])
                .await
                .is_err()
        );
        assert!(fleet::changes_since(&ctx, &world.store, 0, 10).await.is_err());
        assert_eq!(standing(&world, &ctx).await.expect("answered"), None);
        assert!(
            authenticate::cluster(&world.store, &peer(&world, "01"), RequestInfo::default())
                .await
                .is_err()
        );
        let late = PeerIdentity {
            serial: "02".to_owned(),
            ..peer(&world, "01")
        };
        let issued = fleet::certificate_issued(&world.store, &late, i64::MAX, RequestInfo::default()).await;
        assert!(matches!(issued, Err(Error::Unauthenticated { .. })));
        let again = clusters::CreateInput {
            idempotency_key: None,
            name: name("edge"),
            labels: std::collections::BTreeMap::new(),
        };
        let again = clusters::create(&world.acme.owner, &world.store, again)
            .await
            .expect("the name is free");
        let fresh = enrolled_in(&world.store, &world.acme.owner, again.id, "03").await;
        let changes = fleet::changes_since(&fresh, &world.store, 0, 10)
            .await
            .expect("answered");
        assert_eq!(
            changes.changes.len(),
            2,
            "a new cluster of that name gets what its placement says"
        );
    }

    async fn status(world: &World, generation: u64, phase: &str) -> NewStatus {
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        };
        let object = roadstead_service::lookup(&world.acme.owner, &world.store, &target)
            .await
            .expect("there");
        report(object.id, generation, phase)
    }

    fn report(object: ObjectId, generation: u64, phase: &str) -> NewStatus {
        NewStatus {
            object,
            observed_generation: generation,
            phase: phase.to_owned(),
            reason: String::new(),
            message: String::new(),
            conditions: serde_json::json!([]),
        }
    }

    pub(super) async fn an_older_session_writes_no_more(world: World) {
        world.apply(&pair()).await.expect("applied");
        let (ctx, store) = (world.cluster_agent().await, &world.store);
        let old = fleet::begin_session(&ctx, store, "i1", "0.1.0", &[])
            .await
            .expect("begun");
        let new = fleet::begin_session(&ctx, store, "i2", "0.1.0", &[])
            .await
            .expect("begun");
        assert_eq!((old.cluster.epoch, new.cluster.epoch), (1, 2));
        assert_eq!(
            (
                old.previous_incarnation.as_str(),
                new.previous_incarnation.as_str()
            ),
            ("", "i1")
        );
        let epoch = old.cluster.epoch;
        let ready = [status(&world, 1, "Ready").await];
        let refusals = [
            say::persisted(&ctx, store, epoch, 1).await,
            say::applied(&ctx, store, epoch, 1).await,
            say::statuses(&ctx, store, epoch, &ready).await.map(|_| ()),
            say::held(&ctx, store, epoch, 1, 9).await,
            fleet::record_runs(&ctx, store, epoch, &[]).await.map(|_| ()),
            fleet::reset_cursors(&ctx, store, epoch).await,
        ];
        for refusal in refusals {
            assert!(refusal.expect_err("superseded").is_superseded());
        }
        say::statuses(&ctx, store, new.cluster.epoch, &ready)
            .await
            .expect("the newer one writes");
    }

    pub(super) async fn acknowledgements_go_forward_and_never_into_the_future(world: World) {
        for text in ["m1", "m2", "m3"] {
            world.apply(&pair().replace("m1", text)).await.expect("applied");
        }
        let (ctx, store) = (world.cluster_agent().await, &world.store);
        let epoch = fleet::begin_session(&ctx, store, "i1", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        for revision in [2, 1] {
            say::persisted(&ctx, store, epoch, revision).await.expect("taken");
        }
        assert!(matches!(
            say::persisted(&ctx, store, epoch, 4).await,
            Err(Error::Invalid { .. })
        ));
        let seen = clusters::get(&world.acme.owner, store, world.acme.dev.cluster.id)
            .await
            .expect("there")
            .cluster;
        assert_eq!((seen.revision, seen.persisted, seen.applied), (3, 2, 0));
        say::applied(&ctx, store, epoch, 3).await.expect("taken");
        fleet::reset_cursors(&ctx, store, epoch).await.expect("reset");
        let seen = clusters::get(&world.acme.owner, store, world.acme.dev.cluster.id)
            .await
            .expect("there")
            .cluster;
        assert_eq!((seen.revision, seen.persisted, seen.applied), (3, 0, 0));
    }

    pub(super) async fn s50_an_older_report_never_overwrites_a_newer_one(world: World) {
        world.apply(&pair()).await.expect("applied");
        world
            .apply(&pair().replace("Help.", "Help more."))
            .await
            .expect("applied");
        let (ctx, store) = (world.cluster_agent().await, &world.store);
        let epoch = fleet::begin_session(&ctx, store, "i1", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        for (generation, phase) in [(1, "Ready"), (2, "Pending"), (1, "Failed")] {
            let report = status(&world, generation, phase).await;
            say::statuses(&ctx, store, epoch, &[report]).await.expect("heard");
        }
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        };
        let described = roadstead_service::describe(&world.acme.owner, store, &target)
            .await
            .expect("there");
        let seen = described.placed[0].status.as_ref().expect("reported");
        assert_eq!((seen.observed_generation, seen.phase.as_str()), (2, "Pending"));
    }

    pub(super) async fn s45_a_report_of_what_is_not_here_is_refused(world: World) {
        world.apply(&pair()).await.expect("applied");
        world.apply(&model("elsewhere", "m")).await.expect("applied");
        let (ctx, store) = (world.cluster_agent().await, &world.store);
        let epoch = fleet::begin_session(&ctx, store, "i1", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Model,
            name: name("elsewhere"),
        };
        let foreign = roadstead_service::lookup(&world.acme.owner, store, &target)
            .await
            .expect("there");
        let good = status(&world, 1, "Ready").await;
        let (elsewhere, future) = (report(foreign.id, 1, "Ready"), status(&world, 2, "Ready").await);
        // The same document twice in one report is what no session says.
        for bad in [elsewhere.clone(), future.clone()] {
            let refused = say::statuses(&ctx, store, epoch, std::slice::from_ref(&bad)).await;
            assert_eq!(refused.expect("the session lives"), [bad.object]);
        }
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        };
        let seen = async || {
            let described = roadstead_service::describe(&world.acme.owner, store, &target).await;
            described.expect("there").placed[0].status.clone()
        };
        assert_eq!(seen().await, None);
        let refused = say::statuses(&ctx, store, epoch, &[elsewhere, good]).await;
        assert_eq!(refused.expect("the session lives"), [foreign.id]);
        assert!(seen().await.is_some(), "a foreign one takes no other with it");
        let owner = &world.acme.owner;
        assert!(matches!(
            say::applied(owner, store, epoch, 1).await,
            Err(Error::Forbidden { .. })
        ));
    }

    pub(super) async fn a_hint_follows_the_commit(world: World) {
        let ctx = world.cluster_agent().await;
        world.apply(&pair()).await.expect("applied");
        let mut hints = world.store.watch(&ctx).expect("a cluster agent");
        world.apply(&model("unplaced", "m")).await.expect("applied");
        assert!(!hints.has_changed().expect("open"), "nothing of this cluster");
        world.apply(&pair().replace("m1", "m2")).await.expect("applied");
        assert!(hints.has_changed().expect("open"));
        hints.mark_unchanged();
        world.faults.fail_after(9);
        world.apply(&pair().replace("m1", "m3")).await.expect_err("fails");
        world.faults.disarm();
        assert!(!hints.has_changed().expect("open"), "nothing was committed");
    }

    pub(super) async fn held_deletions_wait_for_a_person(world: World) {
        world.apply(&pair()).await.expect("applied");
        let (ctx, store, id) = (
            world.cluster_agent().await,
            &world.store,
            world.acme.dev.cluster.id,
        );
        let epoch = fleet::begin_session(&ctx, store, "i1", "0.1.0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        let seen = async || {
            let detail = clusters::get(&world.acme.owner, store, id).await.expect("there");
            (detail.cluster.held, detail.cluster.approved_deletes)
        };
        let approve = async |deletes, key| {
            clusters::approve_deletes(&world.acme.owner, store, id, deletes, key)
                .await
                .map(|cluster| cluster.approved_deletes)
        };
        let conflict = |result: Result<u64, Error>| matches!(result, Err(Error::Conflict { .. }));
        assert!(conflict(approve(12, None).await), "nothing waits");
        say::held(&ctx, store, epoch, 1, 12).await.expect("noted");
        for revision in [1, 1] {
            say::persisted(&ctx, store, epoch, revision).await.expect("taken");
        }
        assert_eq!(
            seen().await,
            (Some((1, 12)), 0),
            "it stays through acknowledgements"
        );
        assert!(conflict(approve(11, None).await) && conflict(approve(0, None).await));
        assert_eq!(approve(12, Some("k")).await.expect("approved"), 12);
        // A snapshot that began before, and was held again for more: the approval is for another number.
        say::held(&ctx, store, epoch, 1, 13).await.expect("noted");
        say::taken(&ctx, store, epoch, 0, true).await.expect("noted");
        assert_eq!(seen().await, (Some((1, 13)), 12));
        // The one that carried it uses it up, also when it is held.
        say::taken(&ctx, store, epoch, 12, true).await.expect("noted");
        assert_eq!(seen().await, (Some((1, 13)), 0));
        assert_eq!(approve(12, Some("k")).await.expect("the answer of then"), 12);
        assert_eq!(seen().await, (Some((1, 13)), 0), "a repetition approves nothing");
        assert!(
            conflict(approve(13, Some("k")).await),
            "another request under that key"
        );
        approve(13, None).await.expect("approved");
        say::taken(&ctx, store, epoch, 0, false).await.expect("noted");
        assert_eq!(seen().await, (None, 0), "nothing waits: nothing stands");
    }
}

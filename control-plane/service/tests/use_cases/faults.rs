//! What a failure in the middle leaves behind: nothing.

crate::support::on_both!(
    a_failing_statement_leaves_nothing,
    an_update_takes_few_statements_however_many_clusters_there_are,
    a_locked_database_is_unavailable,
    a_database_that_is_gone_is_unavailable,
    a_full_database_is_unavailable_and_keeps_nothing_of_the_write,
    a_database_that_only_reads_is_not_ready,
    a_probe_leaves_nothing_and_needs_no_more_room_each_time,
    a_backup_that_runs_is_no_reason_to_be_not_ready,
    a_hub_that_is_killed_keeps_what_it_acknowledged,
);

mod tests {
    use crate::support::{World, agent, input, model, name, pair, set};
    use roadstead_authz::{Role, Scope};
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{Error, PageRequest};
    use roadstead_service::{DeleteInput, RollBackInput, Target, audit, clusters, projects, tokens};
    use std::collections::BTreeMap;

    /// Everything in the database that an act may change.
    async fn picture(world: &World) -> Vec<String> {
        let count = |table: &str| format!("(SELECT count(*) FROM {table})");
        let counts = [
            "object",
            "revision",
            "desired",
            "audit",
            "cluster",
            "idempotency_key",
            "enrolment_token",
            "api_token",
            "project",
        ];
        let counts: Vec<String> = counts.into_iter().map(count).collect();
        let rows = [
            "SELECT concat_ws(' ', name, revision, deleted_ms) FROM object",
            "SELECT concat_ws(' ', (SELECT c.name FROM cluster c WHERE c.id = cluster_id), name, generation, revision, deleted) FROM desired",
            "SELECT concat_ws(' ', name, revision, deleted_ms, approved_deletes) FROM cluster",
            "SELECT concat_ws(' ', name, revoked_ms) FROM api_token",
            "SELECT concat_ws(' ', serial, revoked_ms) FROM cluster_certificate",
            "SELECT concat_ws(' ', (SELECT t.name FROM tenant t WHERE t.id = tenant_id), seq) FROM audit_head",
        ];
        let sql = format!(
            "SELECT concat_ws(' ', {}) UNION ALL {}",
            counts.join(", "),
            rows.join(" UNION ALL ")
        );
        let mut picture = world.database.ask_all(&sql).await;
        picture.sort_unstable();
        picture
    }

    fn helper() -> Target {
        Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name("helper"),
        }
    }

    async fn act(world: &World, number: usize) -> Result<(), Error> {
        let (ctx, store) = (&world.acme.owner, &world.store);
        match number {
            0 => {
                let mut with_key = input(&pair());
                with_key.idempotency_key = Some("k".to_owned());
                roadstead_service::apply_documents(ctx, store, &with_key)
                    .await
                    .map(|_| ())
            }
            1 => world
                .apply(&set(&[
                    model("fast", "m2"),
                    agent("helper", "More.", "fast", "{}"),
                ]))
                .await
                .map(|_| ()),
            2 => {
                let roll = RollBackInput {
                    target: helper(),
                    to_revision: 1,
                    expected_revision: None,
                    idempotency_key: None,
                    message: String::new(),
                };
                roadstead_service::roll_back(ctx, store, &roll).await.map(|_| ())
            }
            3 => world.acme.dev.join_token(store).await.map(|_| ()),
            4 => {
                let delete = DeleteInput {
                    target: helper(),
                    expected_revision: None,
                    idempotency_key: None,
                };
                roadstead_service::delete_document(ctx, store, &delete)
                    .await
                    .map(|_| ())
            }
            5 => {
                let create = projects::CreateInput {
                    name: name("billing"),
                    idempotency_key: Some("p".to_owned()),
                };
                projects::create(ctx, store, &create).await.map(|_| ())
            }
            6 => {
                let create = clusters::CreateInput {
                    name: name("west"),
                    labels: BTreeMap::new(),
                    idempotency_key: Some("c".to_owned()),
                };
                clusters::create_joinable(ctx, store, create).await.map(|_| ())
            }
            7 => {
                let issue = tokens::IssueInput {
                    name: "ci".to_owned(),
                    role: Role::Viewer,
                    scopes: vec![Scope::Read],
                    lifetime: crate::support::HOUR,
                    idempotency_key: Some("t".to_owned()),
                };
                tokens::issue(ctx, store, issue).await.map(|_| ())
            }
            8 => {
                let listed = tokens::list(ctx, store, &PageRequest::default()).await?;
                let token = listed
                    .items
                    .iter()
                    .find(|t| t.name == "ci")
                    .expect("act 7 made it");
                let input = tokens::RevokeInput {
                    idempotency_key: Some("r".to_owned()),
                    ..token.id.into()
                };
                tokens::revoke(ctx, store, &input).await.map(|_| ())
            }
            9 => clusters::approve_deletes(ctx, store, world.acme.dev.cluster.id, 7, Some("a"))
                .await
                .map(|_| ()),
            10 => clusters::revoke_certificates(ctx, store, world.acme.dev.cluster.id, None, Some("x"))
                .await
                .map(|_| ()),
            _ => clusters::delete(ctx, store, world.acme.dev.cluster.id, None)
                .await
                .map(|_| ()),
        }
    }

    pub(super) async fn a_failing_statement_leaves_nothing(world: World) {
        let agent = world.cluster_agent().await;
        let begun = roadstead_service::fleet::begin_session(&agent, &world.store, "i1", "0.1.0", &[]).await;
        let epoch = begun.expect("begun").cluster.epoch;
        for number in 0..12 {
            if number == 9 {
                let held = crate::support::say::held(&agent, &world.store, epoch, 1, 7).await;
                held.expect("deletions wait");
            }
            let before = picture(&world).await;
            let mut failures = 0;
            loop {
                world.faults.fail_after(failures);
                let acted = act(&world, number).await;
                if world.faults.disarm().is_some() {
                    acted.expect("no statement was left to fail");
                    break;
                }
                let error = acted.expect_err("a statement failed");
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
                assert_eq!(
                    picture(&world).await,
                    before,
                    "act {number}, statement {failures}"
                );
                failures += 1;
            }
            assert!(failures > 5, "act {number} has {failures} statements");
            assert_ne!(picture(&world).await, before, "act {number} was done in the end");
        }
        let reports = audit::verify(&world.store).await.expect("checked");
        assert!(reports.iter().all(|r| r.broken.is_none()), "{reports:?}");
    }

    /// Each statement costs a round trip (PostgreSQL) or a switch of threads (SQLite): this is what makes an apply
    /// quick or slow.
    pub(super) async fn an_update_takes_few_statements_however_many_clusters_there_are(world: World) {
        for n in 0..20 {
            let input = clusters::CreateInput {
                idempotency_key: None,
                name: name(&format!("c{n}")),
                labels: BTreeMap::from([("all".to_owned(), "yes".to_owned())]),
            };
            clusters::create(&world.acme.owner, &world.store, input)
                .await
                .expect("made");
        }
        let everywhere = |text: &str| {
            agent(
                "helper",
                text,
                "fast",
                "{selector: {matchLabels: {all: \"yes\"}}}",
            )
        };
        world
            .apply(&set(&[model("fast", "m1"), everywhere("Help.")]))
            .await
            .expect("applied");
        for (changed, most) in [(model("fast", "m2"), 12), (everywhere("Help more."), 14)] {
            world.faults.fail_after(1_000);
            let answer = world.apply(&changed).await.expect("applied");
            let spent = 1_000 - world.faults.disarm().expect("nothing failed");
            assert_eq!(answer.documents[0].revision, 2);
            assert!(spent <= most, "{spent} statements");
        }
        let behind = "SELECT name FROM cluster WHERE name LIKE 'c%' AND revision <> 3";
        assert_eq!(world.database.ask_all(behind).await, Vec::<String>::new());
    }

    pub(super) async fn a_locked_database_is_unavailable(world: World) {
        if world.database.is_postgres() {
            return;
        }
        let lock = world.database.lock_out().await;
        let (applied, ready) = (world.apply(&pair()).await, world.store.readiness().await);
        for refused in [applied.map(|_| ()), ready] {
            let error = refused.expect_err("locked");
            assert!(error.to_string().contains("locked by another process"), "{error}");
        }
        drop(lock);
        world.store.readiness().await.expect("free again");
        world.apply(&pair()).await.expect("applied");
    }

    /// Fills a small disk with writes until one does not fit.
    pub(super) async fn a_full_database_is_unavailable_and_keeps_nothing_of_the_write(mut world: World) {
        if world.database.is_postgres() {
            return;
        }
        world.store.close().await;
        let ballast = "CREATE TABLE ballast (x BLOB); INSERT INTO ballast VALUES (zeroblob(200000))";
        world.database.tamper(ballast).await;
        let count = "SELECT CAST(page_count AS TEXT) FROM pragma_page_count";
        let pages: u32 = world.database.ask(count).await[0].parse().expect("a number");
        world.faults.small_disk(pages + 60);
        let random = std::sync::Arc::new(roadstead_domain::SeededRandom::new(2));
        let faults = Some(world.faults.clone());
        world.store = world.database.open(world.clock.clone(), random, faults).await;
        world.store.readiness().await.expect("there is room");
        let mut written = 0;
        let refused = loop {
            let before = picture(&world).await;
            let mut filling = input(&model("fast", &format!("m{written}")));
            filling.idempotency_key = Some(format!("k{written}"));
            filling.message = "x".repeat(900);
            match roadstead_service::apply_documents(&world.acme.owner, &world.store, &filling).await {
                Ok(_) => written += 1,
                Err(error) => {
                    assert_eq!(picture(&world).await, before, "nothing is half-written");
                    break error;
                }
            }
            assert!(written < 1_000, "it never fills up");
        };
        assert!(written > 5, "{written}");
        for error in [refused, world.store.readiness().await.expect_err("full")] {
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            assert!(error.to_string().contains("disk is full"), "{error}");
        }
        let reports = audit::verify(&world.store).await.expect("checked");
        assert!(reports.iter().all(|r| r.broken.is_none()), "{reports:?}");
        // Room again, and it goes on without a restart.
        world.database.tamper("DROP TABLE ballast").await;
        world.store.readiness().await.expect("there is room again");
        world.apply(&model("fast", "after")).await.expect("applied");
    }

    pub(super) async fn a_database_that_only_reads_is_not_ready(world: World) {
        if !world.database.is_postgres() {
            let evidence = roadstead_store::StoreOptions {
                read_only: true,
                ..roadstead_store::StoreOptions::new(world.database.url())
            };
            let store = roadstead_store::Store::open(evidence).await.expect("opened");
            let error = store.readiness().await.expect_err("read-only");
            assert!(error.to_string().contains("read-only"), "{error}");
            return;
        }
        let switch = |to: &str| {
            format!(
                "BEGIN READ WRITE; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {to}',
                 current_database()); END $$; COMMIT"
            )
        };
        let cut = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        world.database.tamper(&switch("on")).await;
        world.database.ask_all(cut).await;
        until(&world, |ready| {
            ready.is_err_and(|e| e.to_string().contains("only reads"))
        })
        .await;
        let refused = world.apply(&pair()).await.expect_err("it only reads");
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
        world.database.tamper(&switch("off")).await;
        world.database.ask_all(cut).await;
        until(&world, |ready| ready.is_ok()).await;
    }

    async fn until(world: &World, wanted: impl Fn(Result<(), Error>) -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !wanted(world.store.readiness().await) {
            assert!(std::time::Instant::now() < deadline, "it does not come to that");
        }
    }

    pub(super) async fn a_probe_leaves_nothing_and_needs_no_more_room_each_time(world: World) {
        world.store.readiness().await.expect("ready");
        let size = "SELECT CAST(page_count AS TEXT) FROM pragma_page_count";
        let pages = match world.database.is_postgres() {
            true => Vec::new(),
            false => world.database.ask(size).await,
        };
        for _ in 0..50 {
            world.store.readiness().await.expect("ready");
        }
        let left = "SELECT CAST(count(*) AS TEXT) FROM probe";
        assert_eq!(world.database.ask_all(left).await, ["0"]);
        if !world.database.is_postgres() {
            assert_eq!(world.database.ask(size).await, pages);
        }
    }

    /// A backup reads every table from its beginning to its end.
    pub(super) async fn a_backup_that_runs_is_no_reason_to_be_not_ready(world: World) {
        if !world.database.is_postgres() {
            return;
        }
        let reads = "SELECT pg_sleep(5)::text FROM (SELECT count(*) FROM probe) AS all_of_it";
        let database = &world.database;
        let probed = async {
            let reading =
                "SELECT 'x' FROM pg_locks WHERE relation = 'probe'::regclass AND mode = 'AccessShareLock'";
            while database.ask_all(reading).await.is_empty() {}
            let before = std::time::Instant::now();
            world.store.readiness().await.expect("ready");
            assert!(!database.ask_all(reading).await.is_empty(), "it read on");
            before.elapsed()
        };
        let (took, _) = tokio::join!(probed, database.ask_all(reads));
        assert!(
            took < std::time::Duration::from_secs(5),
            "it waited for the reader"
        );
        world.store.readiness().await.expect("ready");
        let left = "SELECT CAST(count(*) AS TEXT) FROM probe";
        assert_eq!(database.ask_all(left).await, ["0"]);
    }

    pub(super) async fn a_database_that_is_gone_is_unavailable(world: World) {
        world.store.readiness().await.expect("ready");
        if world.database.is_postgres() {
            let kill = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
            world.database.ask_all(kill).await;
            let refused = world.apply(&pair()).await.expect_err("its connections were cut");
            assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
            // It comes back by itself.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while let Err(error) = world.apply(&pair()).await {
                assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
                assert!(std::time::Instant::now() < deadline, "still {error}");
            }
            return;
        }
        let path = world.database.url().trim_start_matches("sqlite:").to_owned();
        std::fs::rename(&path, format!("{path}.away")).expect("renamed");
        for refused in [
            world.apply(&pair()).await.map(|_| ()),
            world.store.readiness().await,
        ] {
            let error = refused.expect_err("gone");
            assert!(error.to_string().contains("gone or was replaced"), "{error}");
        }
        std::fs::rename(format!("{path}.away"), &path).expect("renamed back");
        world.apply(&pair()).await.expect("applied");
    }

    /// A copy of the files at a moment is what a killed process leaves (the kernel keeps what was written).
    pub(super) async fn a_hub_that_is_killed_keeps_what_it_acknowledged(world: World) {
        if world.database.is_postgres() {
            return;
        }
        world.apply(&pair()).await.expect("acknowledged");
        let path = world.database.url().trim_start_matches("sqlite:").to_owned();
        let copy = roadstead_store::testing::TestDatabase::sqlite();
        let target = copy.url().trim_start_matches("sqlite:").to_owned();
        for suffix in ["", "-wal"] {
            std::fs::copy(format!("{path}{suffix}"), format!("{target}{suffix}")).expect("copied");
        }
        let store = copy
            .open(world.clock.clone(), world.store.random().clone(), None)
            .await;
        let found = roadstead_service::lookup(&world.acme.owner, &store, &helper())
            .await
            .expect("kept");
        assert_eq!(found.revision, 1);
        let reports = audit::verify(&store).await.expect("checked");
        assert!(reports.iter().all(|r| r.broken.is_none()));
    }
}

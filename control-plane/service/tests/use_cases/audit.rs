//! The audit chain, and every way to tamper with it.

crate::support::on_both!(
    every_accepted_write_is_in_the_chain,
    a_filter_finds_what_a_look_at_every_record_finds,
    a_changed_row_is_found,
    a_changed_detail_is_found,
    a_removed_row_is_found,
    a_removed_first_row_is_found,
    a_cut_end_is_found,
    two_swapped_rows_are_found,
    an_added_row_is_found,
    one_tenants_damage_is_not_anothers,
    a_snapshot_is_one_moment,
    a_writer_in_between_is_no_forger,
    evidence_is_read_and_never_made,
);

mod tests {
    use crate::support::{World, model};
    use roadstead_authz::{Role, Scope};
    use roadstead_domain::PageRequest;
    use roadstead_service::audit;
    use roadstead_store::{AuditFilter, AuditRecord, AuditReport, Broken, Store, StoreOptions};

    async fn written(world: &World) -> u64 {
        for text in ["m1", "m2", "m3", "m4"] {
            world.apply(&model("fast", text)).await.expect("applied");
        }
        let report = report(world).await;
        assert_eq!(report.broken, None);
        report.records
    }

    async fn report(world: &World) -> AuditReport {
        let reports = audit::verify(&world.store).await.expect("checked");
        let acme = world.acme.owner.tenant();
        let healthy = reports
            .iter()
            .filter(|r| r.tenant != acme)
            .all(|r| r.broken.is_none());
        assert!(healthy, "the other tenant's chain holds");
        reports
            .into_iter()
            .find(|r| r.tenant == acme)
            .expect("the tenant's report")
    }

    async fn tamper(world: &World, sql: &str) -> Broken {
        let own = match world.database.url().starts_with("sqlite") {
            true => format!("x'{}'", world.acme.owner.tenant().as_uuid().simple()),
            false => format!("'{}'", world.acme.owner.tenant().as_uuid()),
        };
        world
            .database
            .tamper(&sql.replace("$own", &format!("tenant_id = {own}")))
            .await;
        report(world).await.broken.expect("seen")
    }

    pub(super) async fn a_filter_finds_what_a_look_at_every_record_finds(world: World) {
        written(&world).await;
        let (owner, store) = (&world.acme.owner, &world.store);
        let viewer = world.holder(Role::Viewer, &[Scope::Admin]).await;
        world.clock.advance(crate::support::HOUR);
        drop(
            audit::list(&viewer, store, &PageRequest::default())
                .await
                .expect_err("denied"),
        );
        written(&world).await;
        let all = audit::list(owner, store, &PageRequest::default())
            .await
            .expect("listed")
            .items;
        let denial = all
            .iter()
            .find(|r| r.decision == "deny")
            .expect("a denial")
            .clone();
        let some = |text: &str| Some(text.to_owned());
        let (object, none) = (&all[0].object, AuditFilter::default);
        let filters = [
            AuditFilter {
                actor: some(&denial.actor),
                ..none()
            },
            AuditFilter {
                action: some("update document"),
                ..none()
            },
            AuditFilter {
                object: some(object),
                ..none()
            },
            AuditFilter {
                object: some(object),
                until_ms: Some(denial.at_ms),
                ..none()
            },
            AuditFilter {
                decision: some("deny"),
                ..none()
            },
            AuditFilter {
                decision: some("allow"),
                ..none()
            },
            AuditFilter {
                decision: some("allow"),
                action: some("issue token"),
                ..none()
            },
            AuditFilter {
                since_ms: Some(denial.at_ms),
                ..none()
            },
            AuditFilter {
                until_ms: Some(denial.at_ms),
                ..none()
            },
            AuditFilter {
                since_ms: Some(denial.at_ms),
                until_ms: Some(denial.at_ms),
                ..none()
            },
            AuditFilter {
                actor: some("nobody"),
                ..none()
            },
        ];
        for filter in filters {
            let fits = |r: &&AuditRecord| {
                let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
                is(&filter.actor, &r.actor)
                    && is(&filter.action, &r.action)
                    && is(&filter.object, &r.object)
                    && is(&filter.decision, &r.decision)
                    && filter.since_ms.is_none_or(|since| r.at_ms >= since)
                    && filter.until_ms.is_none_or(|until| r.at_ms < until)
            };
            let wanted: Vec<u64> = all.iter().filter(fits).map(|r| r.seq).collect();
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = PageRequest {
                    first: Some(3),
                    after,
                };
                let page = audit::search(owner, store, &filter, &page).await.expect("found");
                found.extend(page.items.iter().map(|r| r.seq));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, wanted, "{filter:?}");
        }
    }

    pub(super) async fn every_accepted_write_is_in_the_chain(world: World) {
        let before = report(&world).await.records;
        let after = written(&world).await;
        assert_eq!(after, before + 4);
        let page = PageRequest {
            first: Some(4),
            after: None,
        };
        let listed = audit::list(&world.acme.owner, &world.store, &page)
            .await
            .expect("listed");
        let newest = &listed.items[0];
        assert_eq!(
            (newest.seq, newest.revision, newest.action.as_str()),
            (after, Some(4), "update document")
        );
        assert_eq!(newest.decision, "allow");
        let detail = newest.detail.to_string();
        assert!(
            detail.contains("digest") && !detail.contains("m4"),
            "no content: {detail}"
        );
    }

    pub(super) async fn a_changed_row_is_found(world: World) {
        let records = written(&world).await;
        let broken = tamper(
            &world,
            &format!(
                "UPDATE audit SET actor = 'nobody' WHERE $own AND seq = {}",
                records - 2
            ),
        )
        .await;
        assert_eq!(broken, Broken::Changed { seq: records - 2 });
    }

    pub(super) async fn a_changed_detail_is_found(world: World) {
        let records = written(&world).await;
        let broken = tamper(
            &world,
            &format!("UPDATE audit SET detail = '{{}}' WHERE $own AND seq = {records}"),
        )
        .await;
        assert_eq!(broken, Broken::Changed { seq: records });
    }

    pub(super) async fn a_removed_row_is_found(world: World) {
        let records = written(&world).await;
        let broken = tamper(
            &world,
            &format!("DELETE FROM audit WHERE $own AND seq = {}", records - 1),
        )
        .await;
        assert_eq!(broken, Broken::Missing { seq: records - 1 });
    }

    pub(super) async fn a_removed_first_row_is_found(world: World) {
        written(&world).await;
        let broken = tamper(&world, "DELETE FROM audit WHERE $own AND seq = 1").await;
        assert_eq!(broken, Broken::Missing { seq: 1 });
    }

    pub(super) async fn a_cut_end_is_found(world: World) {
        let records = written(&world).await;
        let broken = tamper(
            &world,
            &format!("DELETE FROM audit WHERE $own AND seq > {}", records - 2),
        )
        .await;
        assert_eq!(
            broken,
            Broken::Head {
                head: records,
                last: records - 2
            }
        );
        assert_eq!(broken.seq(), records - 1);
    }

    pub(super) async fn two_swapped_rows_are_found(world: World) {
        let records = written(&world).await;
        let (a, b) = (records - 2, records - 1);
        let broken = tamper(
            &world,
            &format!(
                "UPDATE audit SET seq = -1 WHERE $own AND seq = {a};
                 UPDATE audit SET seq = {a} WHERE $own AND seq = {b};
                 UPDATE audit SET seq = {b} WHERE $own AND seq = -1;"
            ),
        )
        .await;
        assert_eq!(broken, Broken::Changed { seq: a });
    }

    pub(super) async fn an_added_row_is_found(world: World) {
        let records = written(&world).await;
        let columns =
            "id, at_ms, actor, on_behalf_of, action, object, revision, decision, grant_by, source_ip,
            source_client, trace_id, request_id, detail, prev_hash, hash";
        let broken = tamper(
            &world,
            &format!(
                "INSERT INTO audit (tenant_id, seq, {columns}) SELECT tenant_id, seq + 1, {columns} FROM audit
                 WHERE $own AND seq = {records}"
            ),
        )
        .await;
        assert_eq!(broken, Broken::Added { seq: records + 1 });
    }

    pub(super) async fn one_tenants_damage_is_not_anothers(world: World) {
        written(&world).await;
        // `report` checks the other tenant's chain each time.
        assert_eq!(tamper(&world, "DELETE FROM audit WHERE $own").await.seq(), 1);
    }

    pub(super) async fn a_snapshot_is_one_moment(world: World) {
        let tenant = world.store.tenant(&world.acme.owner);
        let snapshot = tenant.snapshot().await.expect("begun");
        let before = snapshot.verify_audit().await.expect("walked");
        written(&world).await;
        let after = snapshot.verify_audit().await.expect("walked");
        assert_eq!(before, after, "what is written meanwhile is not seen");
    }

    pub(super) async fn a_writer_in_between_is_no_forger(world: World) {
        let (done, writing) = (std::sync::atomic::AtomicBool::new(false), &world);
        let writer = async {
            for n in 0..60 {
                writing
                    .apply(&model("fast", &format!("m{n}")))
                    .await
                    .expect("applied");
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        };
        let reader = async {
            let mut looks = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                assert_eq!(report(writing).await.broken, None);
                looks += 1;
            }
            looks
        };
        let ((), looks) = tokio::join!(writer, reader);
        assert!(looks > 3, "{looks}");
    }

    pub(super) async fn evidence_is_read_and_never_made(world: World) {
        let read_only = |url: &str| StoreOptions {
            read_only: true,
            ..StoreOptions::new(url)
        };
        let records = written(&world).await;
        let evidence = Store::open(read_only(world.database.url()))
            .await
            .expect("opened");
        let reports = audit::verify(&evidence).await.expect("walked");
        assert!(reports.iter().any(|r| r.records == records && r.broken.is_none()));
        let refused = evidence.tenant(&world.acme.owner).write().await;
        let refused = match refused {
            Ok(tx) => tx.purge_expired().await.err(),
            Err(error) => Some(error),
        };
        assert!(refused.is_some(), "nothing is written");
        let nothing = match world.database.is_postgres() {
            true => world.database.empty().await,
            false => {
                let path = format!("{}-typo", world.database.url());
                let refused = Store::open(read_only(&path)).await.expect_err("no such file");
                assert!(refused.to_string().contains("no file"), "{refused}");
                assert!(!std::path::Path::new(path.trim_start_matches("sqlite:")).exists());
                std::fs::write(path.trim_start_matches("sqlite:"), "").expect("written");
                path
            }
        };
        let refused = Store::open(read_only(&nothing)).await.expect_err("nothing in it");
        assert!(
            refused.to_string().contains("expected the database of a hub"),
            "{refused}"
        );
    }
}

//! What the database itself says about tenants: a new table without the tenant's marks fails here.

crate::support::on_both!(
    s36_every_key_begins_with_the_tenant,
    s34_row_security_is_forced_and_the_hubs_role_owns_nothing,
    s34_a_role_above_row_security_is_refused,
    s35_without_a_tenant_there_are_no_rows,
    s35_interleaved_tenants_see_only_their_own,
    history_is_never_changed,
);

mod tests {
    use crate::support::{World, model};
    use roadstead_domain::{Error, PageRequest};
    use roadstead_store::{ObjectFilter, Store, StoreOptions};
    use std::collections::BTreeSet;

    const TABLES: [&str; 17] = [
        "api_token",
        "audit",
        "audit_head",
        "cluster",
        "cluster_certificate",
        "command",
        "desired",
        "enrolment_token",
        "hub_replica",
        "idempotency_key",
        "object",
        "placed_status",
        "probe",
        "project",
        "revision",
        "run",
        "tenant",
    ];

    async fn tables(world: &World) -> Vec<String> {
        let sql = if world.database.is_postgres() {
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
             AND relname <> 'seaql_migrations' ORDER BY relname"
        } else {
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
             AND name <> 'seaql_migrations' ORDER BY name"
        };
        world.database.ask_all(sql).await
    }

    pub(super) async fn s36_every_key_begins_with_the_tenant(world: World) {
        let tables = tables(&world).await;
        assert_eq!(
            tables, TABLES,
            "a new table is named here, once it has the tenant's marks"
        );
        let sql = if world.database.is_postgres() {
            // Unique indexes (primary keys too) whose first column is not the tenant, and foreign keys likewise.
            "SELECT c.relname || ' ' || i.indexrelid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
             WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT IN ('seaql_migrations', 'tenant', 'probe')
             AND i.indisunique AND a.attname <> 'tenant_id'
             UNION ALL
             SELECT k.conname FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
             WHERE k.contype = 'f' AND k.connamespace = 'public'::regnamespace AND a.attname <> 'tenant_id'"
        } else {
            "SELECT t.name || ' ' || i.name FROM sqlite_schema t, pragma_index_list(t.name) i, pragma_index_info(i.name) c
             WHERE t.type = 'table' AND t.name NOT IN ('seaql_migrations', 'tenant', 'probe') AND i.\"unique\" = 1
             AND c.seqno = 0 AND c.name <> 'tenant_id'
             UNION ALL
             SELECT t.name || ' ' || f.id FROM sqlite_schema t, pragma_foreign_key_list(t.name) f
             WHERE t.type = 'table' AND f.seq = 0 AND f.\"from\" <> 'tenant_id'"
        };
        assert_eq!(world.database.ask_all(sql).await, Vec::<String>::new());
    }

    pub(super) async fn s34_row_security_is_forced_and_the_hubs_role_owns_nothing(world: World) {
        if !world.database.is_postgres() {
            return;
        }
        let unforced = world
            .database
            .ask_all(
                "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                 AND relname <> 'seaql_migrations' AND NOT (relrowsecurity AND relforcerowsecurity)",
            )
            .await;
        assert_eq!(unforced, Vec::<String>::new());
        let unguarded = world
            .database
            .ask_all(
                "SELECT relname::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                 AND relname NOT IN ('seaql_migrations', 'probe') AND NOT EXISTS (SELECT 1 FROM pg_policies p
                 WHERE p.tablename = c.relname AND p.policyname = 'tenant_rows' AND p.with_check LIKE '%roadstead.tenant%')",
            )
            .await;
        assert_eq!(unguarded, Vec::<String>::new());
        let others = world
            .database
            .ask_all("SELECT tablename || '.' || policyname FROM pg_policies WHERE policyname <> 'tenant_rows' ORDER BY 1")
            .await;
        let known = [
            "api_token.by_secret",
            "enrolment_token.by_secret",
            "probe.system_rows",
            "tenant.system_reads",
        ];
        assert_eq!(others, known, "this list may only shrink");
        let role = world
            .database
            .ask("SELECT concat(rolsuper, rolbypassrls, rolcreaterole, rolcreatedb) FROM pg_roles WHERE rolname = current_user")
            .await;
        assert_eq!(role, ["ffff"]);
        let owned = world
            .database
            .ask("SELECT relname::text FROM pg_class WHERE pg_get_userbyid(relowner) = current_user")
            .await;
        assert_eq!(owned, Vec::<String>::new());
        let history = world
            .database
            .ask(
                "SELECT t || ' ' || p FROM unnest(ARRAY['audit', 'revision', 'run']) t, unnest(ARRAY['UPDATE', 'DELETE']) p
                 WHERE has_table_privilege(current_user, t, p)",
            )
            .await;
        assert_eq!(history, Vec::<String>::new(), "history is only ever added to");
    }

    pub(super) async fn s34_a_role_above_row_security_is_refused(world: World) {
        if !world.database.is_postgres() {
            return;
        }
        let refused = Store::open(StoreOptions::new(world.database.owner_url())).await;
        let Err(Error::Invalid { problems }) = refused else {
            panic!("refused")
        };
        assert!(problems[0].found.contains("owns tables"), "{}", problems[0]);
    }

    pub(super) async fn s35_without_a_tenant_there_are_no_rows(world: World) {
        if !world.database.is_postgres() {
            return;
        }
        world.apply(&crate::support::pair()).await.expect("applied");
        for table in TABLES {
            let seen = world
                .database
                .ask(&format!("SELECT count(*)::text FROM {table}"))
                .await;
            assert_eq!(seen, ["0"], "{table}");
        }
        let all = world.database.ask_all("SELECT count(*)::text FROM object").await;
        assert_eq!(all, ["2"]);
    }

    pub(super) async fn history_is_never_changed(world: World) {
        world.apply(&crate::support::pair()).await.expect("applied");
        for sql in [
            "UPDATE revision SET document = '{}'",
            "DELETE FROM revision",
            "UPDATE audit SET actor = 'nobody'",
            "DELETE FROM audit",
        ] {
            let refused = world.database.try_as_hub(sql).await.expect_err(sql);
            let said = match world.database.is_postgres() {
                true => "permission denied",
                false => "is history: rows are only ever added",
            };
            assert!(refused.contains(said), "{sql}: {refused}");
        }
        // Nothing has been added to `run`, so only the right to change it can be looked at.
        if !world.database.is_postgres() {
            let guards =
                "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'run' ORDER BY name";
            let names = world.database.ask_all(guards).await;
            assert_eq!(names, ["run_refuses_DELETE", "run_refuses_UPDATE"]);
        }
    }

    pub(super) async fn s35_interleaved_tenants_see_only_their_own(world: World) {
        let tenants = [&world.acme.owner, &world.other.owner];
        for (ctx, text) in tenants.iter().zip(["acme-model", "other-model"]) {
            let input = crate::support::input(&model(text, "x"));
            roadstead_service::apply_documents(ctx, &world.store, &input)
                .await
                .expect("applied");
        }
        // 10,000 requests through one pool, 32 at a time.
        let mut tasks = Vec::new();
        for lane in 0..32 {
            let (store, ctx) = (world.store.clone(), tenants[lane % 2].clone());
            tasks.push(tokio::spawn(async move {
                let mut seen = BTreeSet::new();
                for _ in 0..313 {
                    let (page, all) = (PageRequest::default(), ObjectFilter::default());
                    let listed = roadstead_service::list_objects(&ctx, &store, &all, &page);
                    seen.extend(
                        listed
                            .await
                            .expect("listed")
                            .items
                            .into_iter()
                            .map(|o| (o.tenant, o.name)),
                    );
                }
                (lane, ctx.tenant(), seen)
            }));
        }
        for task in tasks {
            let (lane, tenant, seen) = task.await.expect("done");
            let own = ["acme-model", "other-model"][lane % 2].to_owned();
            assert_eq!(seen, BTreeSet::from([(tenant, own)]));
        }
    }
}

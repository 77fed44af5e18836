//! Applying, reading, deleting, rolling back.

crate::support::on_both!(
    a_set_is_created_updated_and_left_alone,
    nothing_of_a_set_is_written_when_anything_is_wrong,
    an_idempotency_key_repeats_the_first_answer,
    an_expected_revision_is_held,
    a_dry_run_writes_nothing,
    key_order_and_annotations_survive,
    s83_a_cost_limit_has_prices_that_measure_it,
    s83_a_cost_limit_is_measured_by_the_agents_below_too,
    a_used_document_is_not_deleted,
    a_rollback_is_a_new_revision_with_the_old_document,
    lists_page_by_cursor,
);

mod tests {
    use crate::support::{World, agent, input, model, name, pair, set};
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{ConflictReason, Error, PageRequest};
    use roadstead_service::{Change, DeleteInput, RollBackInput, Target};
    use roadstead_store::ObjectFilter;

    fn target(kind: Kind, text: &str) -> Target {
        Target::Name {
            project: name("support"),
            kind,
            name: name(text),
        }
    }

    async fn count(world: &World) -> usize {
        let (ctx, page) = (&world.acme.owner, PageRequest::default());
        let listed =
            roadstead_service::list_objects(ctx, &world.store, &ObjectFilter::default(), &page).await;
        listed.expect("listed").items.len()
    }

    fn priced(name: &str, currency: &str) -> String {
        let prices =
            format!("  prices: {{currency: {currency}, inputPerMillion: '1', outputPerMillion: '2'}}\n");
        model(name, "m1") + &prices
    }

    fn limited(name: &str, model: &str) -> String {
        agent(name, "Help.", model, "{clusters: [edge]}") + "  limits: {cost: 1 USD}\n"
    }

    /// Where what was found is not as expected.
    async fn refused(world: &World, set: &str) -> Vec<(String, String)> {
        match world.apply(set).await {
            Err(Error::Invalid { problems }) => problems.into_iter().map(|p| (p.path, p.found)).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn s83_a_cost_limit_has_prices_that_measure_it(world: World) {
        let limit = |index: usize, found: &str| {
            vec![(format!("documents[{index}].spec.limits.cost"), found.to_owned())]
        };
        let prices = |found: &str| vec![("documents[0].spec.prices".to_owned(), found.to_owned())];
        let both = set(&[model("fast", "m1"), limited("helper", "fast")]);
        assert_eq!(refused(&world, &both).await, limit(1, "none"));
        let other = set(&[priced("fast", "EUR"), limited("helper", "fast")]);
        assert_eq!(refused(&world, &other).await, limit(1, "prices in EUR"));
        assert_eq!(count(&world).await, 0);
        // Models that are there already.
        let models = set(&[model("fast", "m1"), priced("dear", "USD")]);
        world.apply(&models).await.expect("applied");
        assert_eq!(
            refused(&world, &limited("helper", "fast")).await,
            limit(0, "none")
        );
        let several = limited("helper", "[dear, fast]");
        assert_eq!(refused(&world, &several).await, limit(0, "none"));
        world.apply(&limited("helper", "dear")).await.expect("measured");
        // And the other way round: the model may not lose what measures the limit.
        assert_eq!(refused(&world, &model("dear", "m1")).await, prices("none"));
        assert_eq!(
            refused(&world, &priced("dear", "EUR")).await,
            prices("prices in EUR")
        );
        let free = set(&[
            model("dear", "m1"),
            agent("helper", "Help.", "dear", "{clusters: [edge]}"),
        ]);
        world.apply(&free).await.expect("both in one set");
        let back = RollBackInput {
            target: target(Kind::Agent, "helper"),
            to_revision: 1,
            message: String::new(),
            expected_revision: None,
            idempotency_key: None,
        };
        let back = roadstead_service::roll_back(&world.acme.owner, &world.store, &back).await;
        assert!(matches!(back, Err(Error::Invalid { .. })), "{back:?}");
    }

    pub(super) async fn s83_a_cost_limit_is_measured_by_the_agents_below_too(world: World) {
        let placed = |name: &str, model: &str| agent(name, "Help.", model, "{clusters: [edge]}");
        let calls = |name: &str| format!("  agents: [{{name: {name}}}]\n");
        let there = set(&[
            model("free", "m1"),
            priced("dear", "USD"),
            placed("bottom", "free"),
            placed("middle", "dear") + &calls("bottom"),
        ]);
        world.apply(&there).await.expect("nothing is limited");
        let top = || limited("top", "dear") + &calls("middle");
        let handed = |index: usize, found: &str| {
            vec![(format!("documents[{index}].spec.agents[0]"), found.to_owned())]
        };
        assert_eq!(refused(&world, &top()).await, handed(0, "none"));
        let other = set(&[priced("free", "EUR"), top()]);
        assert_eq!(refused(&world, &other).await, handed(1, "prices in EUR"));
        let both = set(&[placed("bottom", "dear"), top()]);
        world.apply(&both).await.expect("measured, all the way down");
    }

    pub(super) async fn a_set_is_created_updated_and_left_alone(world: World) {
        let first = world.apply(&pair()).await.expect("applied");
        let changes: Vec<_> = first.documents.iter().map(|d| (d.change, d.revision)).collect();
        assert_eq!(changes, [(Change::Created, 1), (Change::Created, 1)]);
        assert_eq!(first.documents[1].clusters, ["edge"]);
        let mut twice = input(&pair());
        twice.documents.extend(input(&model("fast", "m2")).documents);
        let second = roadstead_service::apply_documents(&world.acme.owner, &world.store, &twice).await;
        assert!(
            matches!(second, Err(Error::Invalid { .. })),
            "twice the same document"
        );
        let text = set(&[
            model("fast", "m2"),
            agent("helper", "Help.", "fast", "{clusters: [edge]}"),
        ]);
        let second = world.apply(&text).await.expect("applied");
        let changes: Vec<_> = second
            .documents
            .iter()
            .map(|d| (d.change, d.revision, d.uid))
            .collect();
        assert_eq!(
            changes,
            [
                (Change::Updated, 2, first.documents[0].uid),
                (Change::Unchanged, 1, first.documents[1].uid)
            ]
        );
        assert!(
            second.documents[0]
                .previous
                .as_ref()
                .expect("a diff base")
                .contains("m1")
        );
        let (ctx, fast) = (&world.acme.owner, target(Kind::Model, "fast"));
        let described = roadstead_service::describe(ctx, &world.store, &fast)
            .await
            .expect("there");
        assert_eq!(described.revision.number, 2);
        assert_eq!(described.revision.message, "test");
        assert_eq!(described.placed.len(), 1);
    }

    pub(super) async fn nothing_of_a_set_is_written_when_anything_is_wrong(world: World) {
        let text = set(&[
            model("fast", "m1"),
            agent("one", "Help.", "missing", "{clusters: [edge]}"),
            agent("two", "Help.", "fast", "{clusters: [nowhere]}"),
            agent("three", "Help.", "elsewhere/fast", "{}"),
        ]);
        let Err(Error::Invalid { problems }) = world.apply(&text).await else {
            panic!("refused")
        };
        let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "documents[2].spec.placement.clusters[0]",
                "documents[3].spec.model",
                "documents[1].spec.model",
                "documents[3].spec.model"
            ]
        );
        assert_eq!(count(&world).await, 0);
        let mut foreign = input(&model("fast", "m1"));
        foreign.documents.extend(
            input(&model("slow", "m1").replace("{name: slow}", "{name: slow, project: absent}")).documents,
        );
        let refused = roadstead_service::apply_documents(&world.acme.owner, &world.store, &foreign).await;
        let Err(Error::Invalid { problems }) = refused else {
            panic!("refused")
        };
        assert_eq!(problems[0].path, "documents[1].metadata.project");
        assert_eq!(count(&world).await, 0);
    }

    pub(super) async fn an_idempotency_key_repeats_the_first_answer(world: World) {
        let apply = |yaml: String| {
            let mut input = input(&yaml);
            input.idempotency_key = Some("key-1".to_owned());
            let world = &world;
            async move { roadstead_service::apply_documents(&world.acme.owner, &world.store, &input).await }
        };
        let first = apply(pair()).await.expect("applied");
        world.apply(&model("fast", "m2")).await.expect("applied");
        for _ in 0..3 {
            assert_eq!(apply(pair()).await.expect("repeated"), first);
        }
        let other = apply(model("fast", "m3")).await.expect_err("other input");
        assert!(
            matches!(
                other,
                Error::Conflict {
                    reason: ConflictReason::IdempotencyKey,
                    ..
                }
            ),
            "{other}"
        );
        let current =
            roadstead_service::lookup(&world.acme.owner, &world.store, &target(Kind::Model, "fast")).await;
        assert_eq!(
            current.expect("there").revision,
            2,
            "a repeated write changes nothing"
        );
        world.clock.advance(std::time::Duration::from_secs(24 * 3600));
        let later = apply(model("fast", "m3")).await.expect("forgotten after a day");
        assert_eq!(later.documents[0].revision, 3);
    }

    pub(super) async fn an_expected_revision_is_held(world: World) {
        let apply = |text: &str, expected: Option<u64>| {
            let mut input = input(&model("fast", text));
            input.documents[0].expected_revision = expected;
            let world = &world;
            async move { roadstead_service::apply_documents(&world.acme.owner, &world.store, &input).await }
        };
        assert!(matches!(
            apply("m1", Some(1)).await,
            Err(Error::Conflict {
                reason: ConflictReason::Revision,
                ..
            })
        ));
        apply("m1", Some(0)).await.expect("new");
        assert!(matches!(
            apply("m2", Some(0)).await,
            Err(Error::Conflict {
                reason: ConflictReason::Revision,
                ..
            })
        ));
        apply("m2", Some(1)).await.expect("as expected");
        assert!(matches!(
            apply("m3", Some(1)).await,
            Err(Error::Conflict {
                reason: ConflictReason::Revision,
                ..
            })
        ));
    }

    pub(super) async fn a_dry_run_writes_nothing(world: World) {
        let mut dry = input(&pair());
        dry.dry_run = true;
        let answer = roadstead_service::apply_documents(&world.acme.owner, &world.store, &dry)
            .await
            .expect("told");
        assert!(answer.dry_run);
        assert_eq!(answer.documents[1].clusters, ["edge"]);
        assert_eq!(
            (answer.documents[0].change, answer.documents[0].uid),
            (Change::Created, None)
        );
        assert_eq!(count(&world).await, 0);
    }

    pub(super) async fn key_order_and_annotations_survive(world: World) {
        let yaml = "kind: Prompt\napiVersion: roadstead.dev/v1alpha1\nspec: {text: \"ü\\n\"}\nmetadata:\n  annotations: {z: \"1\", a: \"2\"}\n  name: style\n";
        world.apply(yaml).await.expect("applied");
        let (ctx, style) = (&world.acme.owner, target(Kind::Prompt, "style"));
        let revision = roadstead_service::get_revision(ctx, &world.store, &style, 1).await;
        assert_eq!(
            revision.expect("there").document,
            r#"{"kind":"Prompt","apiVersion":"roadstead.dev/v1alpha1","spec":{"text":"ü\n"},"metadata":{"annotations":{"z":"1","a":"2"},"name":"style"}}"#
        );
    }

    pub(super) async fn a_used_document_is_not_deleted(world: World) {
        world.apply(&pair()).await.expect("applied");
        let delete = |kind, text| {
            let input = DeleteInput {
                target: target(kind, text),
                expected_revision: None,
                idempotency_key: None,
            };
            let world = &world;
            async move { roadstead_service::delete_document(&world.acme.owner, &world.store, &input).await }
        };
        let used = delete(Kind::Model, "fast").await.expect_err("used");
        assert!(used.to_string().contains("used by the agents helper"), "{used}");
        delete(Kind::Agent, "helper").await.expect("deleted");
        delete(Kind::Model, "fast").await.expect("deleted");
        assert!(matches!(
            delete(Kind::Model, "fast").await,
            Err(Error::NotFound { .. })
        ));
        let again = world.apply(&pair()).await.expect("the names are free");
        assert_eq!(again.documents[0].revision, 1);
    }

    pub(super) async fn a_rollback_is_a_new_revision_with_the_old_document(world: World) {
        for text in ["m1", "m2", "m3"] {
            world.apply(&model("fast", text)).await.expect("applied");
        }
        let roll = |to| {
            let input = RollBackInput {
                target: target(Kind::Model, "fast"),
                to_revision: to,
                expected_revision: None,
                idempotency_key: None,
                message: "back".to_owned(),
            };
            let world = &world;
            async move { roadstead_service::roll_back(&world.acme.owner, &world.store, &input).await }
        };
        let rolled = roll(1).await.expect("rolled back");
        assert_eq!(
            (rolled.documents[0].change, rolled.documents[0].revision),
            (Change::RolledBack, 4)
        );
        let (ctx, store) = (&world.acme.owner, &world.store);
        let page = PageRequest::default();
        let revisions = roadstead_service::list_revisions(ctx, store, &target(Kind::Model, "fast"), &page)
            .await
            .expect("listed");
        let numbers: Vec<u64> = revisions.items.iter().map(|r| r.number).collect();
        assert_eq!(numbers, [4, 3, 2, 1]);
        assert_eq!(revisions.items[0].digest, revisions.items[3].digest);
        assert_eq!(
            roll(4).await.expect("nothing to do").documents[0].change,
            Change::Unchanged
        );
        assert!(matches!(roll(9).await, Err(Error::NotFound { .. })));
    }

    pub(super) async fn lists_page_by_cursor(world: World) {
        let models: Vec<String> = (0..7).map(|n| model(&format!("m{n}"), "x")).collect();
        world.apply(&set(&models)).await.expect("applied");
        let (ctx, store) = (&world.acme.owner, &world.store);
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = PageRequest {
                first: Some(3),
                after,
            };
            let listed = roadstead_service::list_objects(ctx, store, &ObjectFilter::default(), &page).await;
            let listed = listed.expect("listed");
            names.extend(listed.items.into_iter().map(|o| o.name));
            after = listed.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
        let none = ObjectFilter {
            kind: Some(Kind::Agent),
            ..ObjectFilter::default()
        };
        let listed = roadstead_service::list_objects(ctx, store, &none, &PageRequest::default()).await;
        assert!(listed.expect("listed").items.is_empty());
    }
}

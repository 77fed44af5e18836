//! S33: what belongs to another tenant looks exactly like what never was.

crate::support::on_both!(
    s33_foreign_and_random_ids_answer_alike,
    s33_a_cluster_agent_reaches_nothing_foreign,
    s36_the_same_names_live_side_by_side,
    s33_foreign_cursors_and_filters_show_nothing,
);

mod tests {
    use crate::support::{World, enrolled, input, pair, say};
    use roadstead_authz::{Action, act};
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{ClusterId, Error, ObjectId, PageRequest, ProjectId, RunId, TokenId};
    use roadstead_service::{DeleteInput, RollBackInput, Target, clusters, fleet, runs, tokens};
    use roadstead_store::{NewStatus, ObjectFilter, RunFilter};

    /// The error with the id taken out.
    fn said<T: std::fmt::Debug>(result: Result<T, Error>, id: &impl std::fmt::Display) -> String {
        let error = result.expect_err("not for this tenant");
        format!("{} {}", error.code(), error).replace(&id.to_string(), "<id>")
    }

    async fn documents(world: &World, id: ObjectId) -> Vec<String> {
        let (ctx, store, target) = (&world.acme.owner, &world.store, Target::Id(id));
        let page = PageRequest::default();
        let delete = DeleteInput {
            target: target.clone(),
            expected_revision: Some(7),
            idempotency_key: None,
        };
        let roll = RollBackInput {
            target: target.clone(),
            to_revision: 1,
            expected_revision: None,
            idempotency_key: None,
            message: String::new(),
        };
        vec![
            said(roadstead_service::lookup(ctx, store, &target).await, &id),
            said(roadstead_service::describe(ctx, store, &target).await, &id),
            said(
                roadstead_service::list_revisions(ctx, store, &target, &page).await,
                &id,
            ),
            said(roadstead_service::get_revision(ctx, store, &target, 1).await, &id),
            said(
                roadstead_service::invocable::<act::Invoke>(ctx, store, &target).await,
                &id,
            ),
            said(roadstead_service::delete_document(ctx, store, &delete).await, &id),
            said(roadstead_service::roll_back(ctx, store, &roll).await, &id),
        ]
    }

    async fn cluster(world: &World, id: ClusterId) -> Vec<String> {
        let (ctx, store) = (&world.acme.owner, &world.store);
        vec![
            said(clusters::get(ctx, store, id).await, &id),
            said(clusters::join_token(ctx, store, id, None).await, &id),
            said(
                clusters::revoke_certificates(ctx, store, id, None, None).await,
                &id,
            ),
            said(
                clusters::revoke_certificates(ctx, store, id, Some("01"), None).await,
                &id,
            ),
            said(clusters::approve_deletes(ctx, store, id, 1, None).await, &id),
            said(clusters::delete(ctx, store, id, None).await, &id),
        ]
    }

    pub(super) async fn s33_foreign_and_random_ids_answer_alike(world: World) {
        let (store, clock, random) = (&world.store, &**world.store.clock(), &**world.store.random());
        let applied = roadstead_service::apply_documents(&world.other.owner, store, &input(&pair())).await;
        for document in applied.expect("applied").documents {
            let foreign = document.uid.expect("made");
            let random = ObjectId::generate(foreign.kind(), clock, random);
            assert_eq!(documents(&world, foreign).await, documents(&world, random).await);
        }
        let random_cluster = ClusterId::generate(clock, random);
        assert_eq!(
            cluster(&world, world.other.dev.cluster.id).await,
            cluster(&world, random_cluster).await
        );
        let listed = tokens::list(&world.other.owner, store, &PageRequest::default())
            .await
            .expect("listed");
        let (foreign, random_token) = (listed.items[0].id, TokenId::generate(clock, random));
        assert_eq!(
            said(
                tokens::revoke(&world.acme.owner, store, &foreign.into()).await,
                &foreign
            ),
            said(
                tokens::revoke(&world.acme.owner, store, &random_token.into()).await,
                &random_token
            )
        );
        let random_run = RunId::generate(clock, random);
        assert!(
            said(runs::get(&world.acme.owner, store, random_run).await, &random_run).starts_with("NOT_FOUND")
        );
        // And nothing has happened over there.
        let still = clusters::get(&world.other.owner, store, world.other.dev.cluster.id)
            .await
            .expect("there");
        assert!(still.certificates.is_empty() && still.cluster.approved_deletes == 0);
        let token = tokens::list(&world.other.owner, store, &PageRequest::default())
            .await
            .expect("listed");
        assert_eq!(token.items[0].revoked_ms, None);
    }

    pub(super) async fn s33_a_cluster_agent_reaches_nothing_foreign(world: World) {
        let store = &world.store;
        let applied = roadstead_service::apply_documents(&world.other.owner, store, &input(&pair())).await;
        let foreign = applied.expect("applied").documents[1].uid.expect("made");
        let theirs = enrolled(store, &world.other, "01").await;
        let digest = fleet::desired_set(&theirs, store).await.expect("theirs").entries[0].digest;
        let ours = enrolled(store, &world.acme, "01").await;
        assert!(
            fleet::desired_set(&ours, store)
                .await
                .expect("ours")
                .entries
                .is_empty()
        );
        assert!(
            fleet::changes_since(&ours, store, 0, 100)
                .await
                .expect("ours")
                .changes
                .is_empty()
        );
        assert!(
            fleet::rows(&ours, store, &[foreign])
                .await
                .expect("ours")
                .is_empty()
        );
        assert_eq!(fleet::blob(&ours, store, digest).await.expect("ours"), None);
        let epoch = fleet::begin_session(&ours, store, "i", "0", &[])
            .await
            .expect("begun")
            .cluster
            .epoch;
        let random = ObjectId::generate(Kind::Agent, &**store.clock(), &**store.random());
        let report = |object| NewStatus {
            object,
            observed_generation: 1,
            phase: "Ready".to_owned(),
            reason: String::new(),
            message: String::new(),
            conditions: serde_json::json!([]),
        };
        for nobody in [foreign, random] {
            let refused = say::statuses(&ours, store, epoch, &[report(nobody)]).await;
            assert_eq!(refused.expect("the session lives"), [nobody]);
        }
        assert!(!ours.may(Action::View, &world.other.owner.tenant()));
        // A cluster agent is no reader of its own tenant either.
        let (all, page) = (ObjectFilter::default(), PageRequest::default());
        let listed = roadstead_service::list_objects(&ours, store, &all, &page);
        assert!(listed.await.is_err());
    }

    pub(super) async fn s36_the_same_names_live_side_by_side(world: World) {
        for tenant in [&world.acme, &world.other] {
            let mut with_key = input(&pair());
            with_key.idempotency_key = Some("same-key".to_owned());
            let applied = roadstead_service::apply_documents(&tenant.owner, &world.store, &with_key).await;
            assert_eq!(applied.expect("applied").documents[0].revision, 1);
        }
    }

    pub(super) async fn s33_foreign_cursors_and_filters_show_nothing(world: World) {
        let store = &world.store;
        for tenant in [&world.acme, &world.other] {
            roadstead_service::apply_documents(&tenant.owner, store, &input(&pair()))
                .await
                .expect("applied");
        }
        let page = PageRequest {
            first: Some(1),
            after: None,
        };
        let all = ObjectFilter::default();
        let theirs = roadstead_service::list_objects(&world.other.owner, store, &all, &page);
        let cursor = theirs.await.expect("listed").next;
        let page = PageRequest {
            first: Some(1),
            after: cursor,
        };
        let ours =
            roadstead_service::list_objects(&world.acme.owner, store, &ObjectFilter::default(), &page).await;
        assert!(matches!(ours, Err(Error::Invalid { .. })));
        let foreign: ProjectId = world.other.dev.owner.project.id;
        let filter = ObjectFilter {
            project: Some(foreign),
            ..ObjectFilter::default()
        };
        let page = PageRequest::default();
        let listed = roadstead_service::list_objects(&world.acme.owner, store, &filter, &page).await;
        assert!(listed.expect("listed").items.is_empty());
        let filter = RunFilter {
            project: Some(foreign),
            ..RunFilter::default()
        };
        assert!(
            runs::list(&world.acme.owner, store, &filter, &page)
                .await
                .expect("listed")
                .items
                .is_empty()
        );
    }
}

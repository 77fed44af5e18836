//! API tokens and what their roles allow.

crate::support::on_both!(
    a_token_works_until_it_is_revoked_or_expires,
    nobody_issues_more_than_they_have,
    s14_a_revoked_token_is_refused_at_the_next_request,
    a_weaker_role_is_refused_and_recorded,
    s33_what_cannot_be_seen_is_not_found,
    s33_names_are_not_probed_by_who_sees_nothing,
    nobody_ends_a_token_with_more_rights_than_their_own,
    s89_the_use_of_an_ended_token_is_recorded_once_a_minute,
    a_text_that_cannot_be_kept_is_invalid,
    s39_one_tenants_crowd_does_not_hold_up_another,
);

mod tests {
    use crate::support::{HOUR, World, pair, present};
    use roadstead_authz::{ActorKind, Role, Scope};
    use roadstead_domain::{Error, PageRequest};
    use roadstead_service::{audit, projects, tokens};
    use secrecy::ExposeSecret as _;

    fn wish(role: Role, scopes: &[Scope]) -> tokens::IssueInput {
        tokens::IssueInput {
            idempotency_key: None,
            name: "ci".to_owned(),
            role,
            scopes: scopes.to_vec(),
            lifetime: HOUR,
        }
    }

    pub(super) async fn a_token_works_until_it_is_revoked_or_expires(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let issued = tokens::issue(owner, store, wish(Role::Viewer, &[Scope::Read]))
            .await
            .expect("issued");
        let secret = issued.secret.expose_secret();
        let ctx = present(store, secret).await.expect("good");
        assert_eq!(ctx.tenant(), owner.tenant());
        assert!(matches!(
            ctx.actor().kind(),
            ActorKind::Token {
                role: Role::Viewer,
                ..
            }
        ));
        roadstead_service::housekeeping::note(store)
            .await
            .expect("written");
        let listed = tokens::list(owner, store, &PageRequest::default())
            .await
            .expect("listed");
        let used = listed
            .items
            .iter()
            .find(|t| t.id == issued.token.id)
            .expect("listed");
        assert_eq!(used.last_used_ms, Some(store.clock().now_ms()));
        world.clock.advance(HOUR);
        assert!(matches!(
            present(store, secret).await,
            Err(Error::Unauthenticated { .. })
        ));
    }

    pub(super) async fn nobody_issues_more_than_they_have(world: World) {
        let admin = world.holder(Role::Admin, &[Scope::Admin]).await;
        let refused = tokens::issue(&admin, &world.store, wish(Role::Owner, &[Scope::Admin])).await;
        let Err(Error::Invalid { problems }) = refused else {
            panic!("refused")
        };
        assert_eq!(problems[0].path, "role");
        let endless = tokens::IssueInput {
            lifetime: tokens::LONGEST + HOUR,
            ..wish(Role::Viewer, &[])
        };
        let Err(Error::Invalid { problems }) = tokens::issue(&admin, &world.store, endless).await else {
            panic!("refused")
        };
        assert_eq!(problems.len(), 2);
    }

    pub(super) async fn s14_a_revoked_token_is_refused_at_the_next_request(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let issued = tokens::issue(owner, store, wish(Role::Editor, &[Scope::Write]))
            .await
            .expect("issued");
        present(store, issued.secret.expose_secret()).await.expect("good");
        let revoked = tokens::revoke(owner, store, issued.token.id, None)
            .await
            .expect("revoked");
        assert!(revoked.revoked_ms.is_some());
        assert!(matches!(
            present(store, issued.secret.expose_secret()).await,
            Err(Error::Unauthenticated { .. })
        ));
        tokens::revoke(owner, store, issued.token.id, None)
            .await
            .expect("again changes nothing");
    }

    pub(super) async fn a_weaker_role_is_refused_and_recorded(world: World) {
        let viewer = world.holder(Role::Viewer, &[Scope::Admin]).await;
        let input = crate::support::input(&pair());
        let refused = roadstead_service::apply_documents(&viewer, &world.store, &input).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
        let records = audit::list(&world.acme.owner, &world.store, &PageRequest::default())
            .await
            .expect("listed");
        let denial = &records.items[0];
        assert_eq!(
            (denial.action.as_str(), denial.decision.as_str()),
            ("write", "deny")
        );
        assert_eq!(denial.actor, viewer.actor().label());
        assert!(matches!(
            audit::list(&viewer, &world.store, &PageRequest::default()).await,
            Err(Error::Forbidden { .. })
        ));
    }

    pub(super) async fn s33_names_are_not_probed_by_who_sees_nothing(world: World) {
        let blind = world.holder(Role::Owner, &[Scope::Approve]).await;
        world.apply(&pair()).await.expect("applied");
        let mut answers = Vec::new();
        for project in ["support", "nothing"] {
            let mut input = crate::support::input(&crate::support::model("fast", "m"));
            let document = &mut input.documents[0].parsed.document;
            document.metadata.project = Some(crate::support::name(project));
            let refused = roadstead_service::apply_documents(&blind, &world.store, &input).await;
            answers.push(refused.expect_err("refused").to_string());
        }
        assert_eq!(answers[0], answers[1]);
    }

    pub(super) async fn nobody_ends_a_token_with_more_rights_than_their_own(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let issue = async |role, scopes: &[Scope]| {
            tokens::issue(owner, store, wish(role, scopes))
                .await
                .expect("issued")
        };
        let theirs = issue(Role::Owner, &[Scope::Admin]).await.token.id;
        let admin = issue(Role::Admin, &[Scope::Admin]).await;
        let ctx = present(store, admin.secret.expose_secret()).await.expect("good");
        let before = records(&world).await;
        let refused = tokens::revoke(&ctx, store, theirs, None).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
        let after = records(&world).await;
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(after[0], ("revoke token".to_owned(), "deny".to_owned()));
        let lesser = issue(Role::Viewer, &[Scope::Read]).await.token.id;
        tokens::revoke(&ctx, store, lesser, None)
            .await
            .expect("a lesser one");
        tokens::revoke(&ctx, store, admin.token.id, None)
            .await
            .expect("their own");
        assert!(present(store, admin.secret.expose_secret()).await.is_err());
    }

    async fn records(world: &World) -> Vec<(String, String)> {
        let page = PageRequest {
            first: Some(100),
            after: None,
        };
        let listed = audit::list(&world.acme.owner, &world.store, &page)
            .await
            .expect("listed");
        listed.items.into_iter().map(|r| (r.action, r.decision)).collect()
    }

    pub(super) async fn s89_the_use_of_an_ended_token_is_recorded_once_a_minute(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let issued = tokens::issue(owner, store, wish(Role::Viewer, &[Scope::Read]))
            .await
            .expect("issued");
        tokens::revoke(owner, store, issued.token.id, None)
            .await
            .expect("revoked");
        let before = records(&world).await.len();
        for _ in 0..5 {
            present(store, issued.secret.expose_secret())
                .await
                .expect_err("revoked");
        }
        let after = records(&world).await;
        assert_eq!(after.len(), before + 1);
        assert_eq!(after[0], ("authenticate".to_owned(), "refuse".to_owned()));
        world.clock.advance(std::time::Duration::from_secs(61));
        present(store, issued.secret.expose_secret())
            .await
            .expect_err("revoked");
        assert_eq!(records(&world).await.len(), before + 2);
    }

    pub(super) async fn a_text_that_cannot_be_kept_is_invalid(world: World) {
        let mut input = crate::support::input(&pair());
        input.message = "a\u{0}b".to_owned();
        let refused = roadstead_service::apply_documents(&world.acme.owner, &world.store, &input).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }

    pub(super) async fn s39_one_tenants_crowd_does_not_hold_up_another(world: World) {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};
        // Connections are there before: making one takes long, and is not what this is about.
        let mut warm = Vec::new();
        for ctx in [&world.acme.owner, &world.other.owner] {
            for _ in 0..(if world.database.is_postgres() { 6 } else { 1 }) {
                warm.push(world.store.tenant(ctx).read().await.expect("begun"));
            }
        }
        drop(warm);
        let done = Arc::new(AtomicU32::new(0));
        let crowd: Vec<_> = (0..60)
            .map(|n| {
                let (store, ctx, done) = (world.store.clone(), world.acme.owner.clone(), done.clone());
                tokio::spawn(async move {
                    let input = crate::support::input(&crate::support::model(&format!("m{n}"), "x"));
                    let applied = roadstead_service::apply_documents(&ctx, &store, &input).await;
                    done.fetch_add(1, Ordering::SeqCst);
                    applied.map(|_| ())
                })
            })
            .collect();
        // The crowd is there, in the queue.
        while done.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let input = crate::support::input(&crate::support::model("fast", "x"));
        let applied = roadstead_service::apply_documents(&world.other.owner, &world.store, &input).await;
        applied.expect("applied");
        let before = done.load(Ordering::SeqCst);
        assert!(before < 30, "{before} of the crowd were served first");
        for task in crowd {
            task.await.expect("done").expect("served in the end");
        }
    }

    pub(super) async fn s33_what_cannot_be_seen_is_not_found(world: World) {
        let blind = world.holder(Role::Owner, &[Scope::Approve]).await;
        let listed = projects::list(&blind, &world.store, &PageRequest::default()).await;
        assert!(matches!(listed, Err(Error::NotFound { .. })), "{listed:?}");
    }
}

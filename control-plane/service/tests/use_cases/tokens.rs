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
    s14_a_stolen_token_takes_what_it_issued_with_it,
    s14_a_token_that_ended_a_moment_ago_issues_nothing,
    s14_a_stolen_tokens_join_tokens_end_with_it_and_its_clusters_are_named,
    s14_what_a_token_issued_is_found_through_tokens_that_ended_before,
    a_token_that_ends_by_time_ends_nothing_else,
    nobody_ends_the_token_that_they_use_by_its_issuer,
    a_repeated_revocation_answers_the_same,
    a_transaction_ends_with_the_first_statement_that_fails,
);

mod tests {
    use crate::support::{HOUR, World, pair, present};
    use roadstead_authz::{ActorKind, RequestInfo, Role, Scope, TenantContext, act};
    use roadstead_domain::{Error, PageRequest, TokenId};
    use roadstead_service::{audit, clusters, fleet, projects, tokens};
    use roadstead_store::NewToken;
    use secrecy::ExposeSecret as _;
    use serde_json::json;

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
        let revoked = tokens::revoke(owner, store, &issued.token.id.into())
            .await
            .expect("revoked");
        assert!(revoked.token.revoked_ms.is_some());
        assert_eq!(revoked.also, 0);
        assert!(matches!(
            present(store, issued.secret.expose_secret()).await,
            Err(Error::Unauthenticated { .. })
        ));
        tokens::revoke(owner, store, &issued.token.id.into())
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
        let refused = tokens::revoke(&ctx, store, &theirs.into()).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
        let after = records(&world).await;
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(after[0], ("revoke token".to_owned(), "deny".to_owned()));
        let lesser = issue(Role::Viewer, &[Scope::Read]).await.token.id;
        tokens::revoke(&ctx, store, &lesser.into())
            .await
            .expect("a lesser one");
        tokens::revoke(&ctx, store, &admin.token.id.into())
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
        tokens::revoke(owner, store, &issued.token.id.into())
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
        let crowd: Vec<_> = (0..120)
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
        assert!(before < 60, "{before} of the crowd were served first");
        for task in crowd {
            task.await.expect("done").expect("served in the end");
        }
    }

    /// A token that `ctx` issues, and its holder.
    async fn by(world: &World, ctx: &TenantContext, role: Role) -> (TokenId, String, TenantContext) {
        let issued = tokens::issue(ctx, &world.store, wish(role, &[Scope::Admin]))
            .await
            .expect("issued");
        let secret = issued.secret.expose_secret().to_owned();
        let holder = present(&world.store, &secret).await.expect("good");
        (issued.token.id, secret, holder)
    }

    async fn is_good(world: &World, secret: &str) -> bool {
        present(&world.store, secret).await.is_ok()
    }

    pub(super) async fn s14_a_stolen_token_takes_what_it_issued_with_it(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let (_, bystander, _) = by(&world, owner, Role::Admin).await;
        let (stolen, secret, thief) = by(&world, owner, Role::Admin).await;
        let (second, second_secret, accomplice) = by(&world, &thief, Role::Admin).await;
        let (third, third_secret, _) = by(&world, &accomplice, Role::Viewer).await;
        let (_, foreign, _) = by(&world, &world.other.owner, Role::Admin).await;
        let revoked = tokens::revoke(owner, store, &stolen.into())
            .await
            .expect("revoked");
        assert_eq!((revoked.token.id, revoked.also), (stolen, 2));
        for ended in [&secret, &second_secret, &third_secret] {
            assert!(!is_good(&world, ended).await);
        }
        for other in [&bystander, &foreign] {
            assert!(is_good(&world, other).await, "nobody else's");
        }
        let page = PageRequest {
            first: Some(20),
            after: None,
        };
        let log = audit::list(owner, store, &page).await.expect("listed").items;
        let told: Vec<_> = log
            .iter()
            .rev()
            .filter(|r| r.action == "revoke token")
            .map(|r| {
                (
                    r.action.as_str(),
                    r.decision.as_str(),
                    r.object.clone(),
                    r.detail.clone(),
                )
            })
            .collect();
        let by = |issuer: TokenId| json!({"issued_by": format!("token:{issuer}"), "with": stolen});
        assert_eq!(told[0], ("revoke token", "allow", stolen.to_string(), json!({})));
        assert_eq!(told[1], ("revoke token", "allow", second.to_string(), by(stolen)));
        assert_eq!(told[2], ("revoke token", "allow", third.to_string(), by(second)));
        // Again it changes nothing, and is no act.
        let before = records(&world).await.len();
        let again = tokens::revoke(owner, store, &stolen.into())
            .await
            .expect("revoked");
        assert_eq!((again.also, records(&world).await.len()), (0, before));
    }

    pub(super) async fn s14_a_token_that_ended_a_moment_ago_issues_nothing(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let (stolen, _, thief) = by(&world, owner, Role::Admin).await;
        tokens::revoke(owner, store, &stolen.into())
            .await
            .expect("revoked");
        // Its request had begun before.
        let refused = tokens::issue(&thief, store, wish(Role::Viewer, &[Scope::Read])).await;
        assert!(
            matches!(refused, Err(Error::Unauthenticated { .. })),
            "{refused:?}"
        );
        let tokens = tokens::list(owner, store, &PageRequest::default())
            .await
            .expect("listed");
        assert!(tokens.items.iter().all(|t| t.created_by != thief.actor().label()));
    }

    pub(super) async fn s14_a_stolen_tokens_join_tokens_end_with_it_and_its_clusters_are_named(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let made = |n: u8| clusters::CreateInput {
            name: crate::support::name(&format!("c{n}")),
            labels: Default::default(),
            idempotency_key: None,
        };
        let join = async |ctx: &TenantContext, n| match clusters::create_joinable(ctx, store, made(n)).await {
            Ok(clusters::Joining::Done(joinable)) => Ok(joinable),
            Ok(clusters::Joining::Before(_)) => panic!("made before"),
            Err(error) => Err(error),
        };
        let enrol = async |secret: &clusters::Joinable| {
            let secret = secret.secret.expose_secret();
            fleet::consume_join_token(store, secret, "1", RequestInfo::default()).await
        };
        let issuer = tokens::issue(owner, store, wish(Role::Owner, &[Scope::Admin]))
            .await
            .expect("issued");
        let thief = present(store, issuer.secret.expose_secret()).await.expect("good");
        let second = crate::support::holder(store, &thief, Role::Owner, &[Scope::Admin]).await;
        let (joined, waiting) = (
            join(&thief, 1).await.expect("made"),
            join(&thief, 2).await.expect("made"),
        );
        let of_second = join(&second, 3).await.expect("made");
        let own = join(owner, 4).await.expect("made");
        enrol(&joined).await.expect("joined");
        let shown = clusters::get(owner, store, joined.cluster.id)
            .await
            .expect("there");
        assert_eq!(shown.cluster.enrolled_by, ActorKind::token_label(issuer.token.id));

        let revoked = tokens::revoke(owner, store, &issuer.token.id.into())
            .await
            .expect("revoked");
        assert_eq!(
            (revoked.also, revoked.join_tokens, revoked.cluster_count),
            (1, 2, 1)
        );
        assert_eq!(revoked.clusters[0].id, joined.cluster.id);
        for ended in [&waiting, &of_second] {
            assert!(matches!(enrol(ended).await, Err(Error::Unauthenticated { .. })));
        }
        enrol(&own).await.expect("somebody else's");
        // A request that was under way makes none that the revocation has not seen.
        assert!(matches!(
            join(&thief, 5).await,
            Err(Error::Unauthenticated { .. })
        ));
        let log = audit::list(owner, store, &PageRequest::default())
            .await
            .expect("listed");
        let told = |action: &str| log.items.iter().find(|r| r.action == action).expect("told");
        assert_eq!(told("enrol").detail["made_by"], owner.actor().label());
        let record = log
            .items
            .iter()
            .find(|r| r.action == "revoke token" && r.object == issuer.token.id.to_string());
        let detail = &record.expect("recorded").detail;
        assert_eq!(detail["join_tokens"], 2);
        assert_eq!(detail["clusters_kept"], json!([joined.cluster.id.to_string()]));
    }

    pub(super) async fn s14_what_a_token_issued_is_found_through_tokens_that_ended_before(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let (first, _, holder) = by(&world, owner, Role::Admin).await;
        let (middle, _, middle_holder) = by(&world, &holder, Role::Admin).await;
        let (_, last, _) = by(&world, &middle_holder, Role::Viewer).await;
        let alone = tokens::RevokeInput {
            keep_issued: true,
            ..middle.into()
        };
        let revoked = tokens::revoke(owner, store, &alone).await.expect("revoked");
        assert!(revoked.also == 0 && is_good(&world, &last).await, "asked to stay");
        let revoked = tokens::revoke(owner, store, &first.into())
            .await
            .expect("revoked");
        assert_eq!((revoked.also, is_good(&world, &last).await), (1, false));
    }

    pub(super) async fn a_token_that_ends_by_time_ends_nothing_else(world: World) {
        let owner = &world.acme.owner;
        let (first, _, holder) = by(&world, owner, Role::Admin).await;
        let longer = tokens::IssueInput {
            lifetime: 3 * HOUR,
            ..wish(Role::Viewer, &[Scope::Read])
        };
        let service = tokens::issue(&holder, &world.store, longer)
            .await
            .expect("issued");
        world.clock.advance(HOUR + HOUR);
        roadstead_service::housekeeping::note(&world.store)
            .await
            .expect("written");
        assert!(is_good(&world, service.secret.expose_secret()).await);
        // Its issuer may still turn out to have been stolen.
        let revoked = tokens::revoke(owner, &world.store, &first.into())
            .await
            .expect("revoked");
        assert_eq!(
            (
                revoked.also,
                is_good(&world, service.secret.expose_secret()).await
            ),
            (1, false)
        );
    }

    pub(super) async fn nobody_ends_the_token_that_they_use_by_its_issuer(world: World) {
        let store = &world.store;
        let (old, old_secret, holder) = by(&world, &world.acme.owner, Role::Admin).await;
        let (_, new_secret, new) = by(&world, &holder, Role::Admin).await;
        let before = records(&world).await.len();
        let refused = tokens::revoke(&new, store, &old.into()).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
        assert_eq!(records(&world).await.len(), before, "nothing was done");
        assert!(is_good(&world, &old_secret).await && is_good(&world, &new_secret).await);
        let alone = tokens::RevokeInput {
            keep_issued: true,
            ..old.into()
        };
        tokens::revoke(&new, store, &alone)
            .await
            .expect("the old for the new");
        assert!(!is_good(&world, &old_secret).await && is_good(&world, &new_secret).await);
        // One's own is another matter.
        let own = present(store, &new_secret).await.expect("good");
        let (_, third, _) = by(&world, &own, Role::Viewer).await;
        let ActorKind::Token { token, .. } = own.actor().kind() else {
            panic!("a token")
        };
        tokens::revoke(&own, store, &(*token).into())
            .await
            .expect("their own");
        assert!(!is_good(&world, &new_secret).await && !is_good(&world, &third).await);
    }

    pub(super) async fn a_repeated_revocation_answers_the_same(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let (first, _, holder) = by(&world, owner, Role::Admin).await;
        by(&world, &holder, Role::Viewer).await;
        let input = tokens::RevokeInput {
            idempotency_key: Some("once".to_owned()),
            ..first.into()
        };
        let revoked = tokens::revoke(owner, store, &input).await.expect("revoked");
        let before = records(&world).await.len();
        for _ in 0..3 {
            assert_eq!(
                tokens::revoke(owner, store, &input).await.expect("the same"),
                revoked
            );
        }
        assert_eq!((revoked.also, records(&world).await.len()), (1, before));
        let other = tokens::RevokeInput {
            keep_issued: true,
            ..input
        };
        let refused = tokens::revoke(owner, store, &other).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    }

    /// As PostgreSQL has it; on SQLite, which may have ended the transaction by itself, the rest would be kept piecemeal.
    pub(super) async fn a_transaction_ends_with_the_first_statement_that_fails(world: World) {
        let (owner, store) = (&world.acme.owner, &world.store);
        let proof = owner
            .authorize::<act::ManageTokens, _>(owner.tenant())
            .expect("an owner");
        let new = |hash: u8| NewToken {
            name: format!("t{hash}"),
            role: Role::Viewer,
            scopes: vec![Scope::Read],
            hash: [hash; 32],
            expires_ms: i64::MAX,
        };
        let tx = store.tenant(owner).write().await.expect("begun");
        tx.insert_token(&proof, new(1)).await.expect("the first");
        let twice = tx.insert_token(&proof, new(1)).await;
        assert!(matches!(twice, Err(Error::Conflict { .. })), "{twice:?}");
        assert!(tx.insert_token(&proof, new(2)).await.is_err());
        assert!(tx.commit().await.is_err());
        let page = PageRequest {
            first: Some(100),
            after: None,
        };
        let listed = tokens::list(owner, store, &page).await.expect("listed");
        assert!(
            listed
                .items
                .iter()
                .all(|t| !["t1", "t2"].contains(&t.name.as_str()))
        );
        // And the next one is good.
        let tx = store.tenant(owner).write().await.expect("begun");
        tx.insert_token(&proof, new(2)).await.expect("kept");
        tx.commit().await.expect("kept");
    }

    pub(super) async fn s33_what_cannot_be_seen_is_not_found(world: World) {
        let blind = world.holder(Role::Owner, &[Scope::Approve]).await;
        let listed = projects::list(&blind, &world.store, &PageRequest::default()).await;
        assert!(matches!(listed, Err(Error::NotFound { .. })), "{listed:?}");
    }
}

//! API tokens and what their roles allow.

crate::support::on_both!(
    a_token_works_until_it_is_revoked_or_expires,
    nobody_issues_more_than_they_have,
    s14_a_revoked_token_is_refused_at_the_next_request,
    a_weaker_role_is_refused_and_recorded,
    s33_what_cannot_be_seen_is_not_found,
);

mod tests {
    use crate::support::{HOUR, World, pair, present};
    use roadstead_authz::{ActorKind, Role, Scope};
    use roadstead_domain::{Error, PageRequest};
    use roadstead_service::{audit, projects, tokens};
    use secrecy::ExposeSecret as _;

    fn wish(role: Role, scopes: &[Scope]) -> tokens::IssueInput {
        tokens::IssueInput {
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
        let revoked = tokens::revoke(owner, store, issued.token.id)
            .await
            .expect("revoked");
        assert!(revoked.revoked_ms.is_some());
        assert!(matches!(
            present(store, issued.secret.expose_secret()).await,
            Err(Error::Unauthenticated { .. })
        ));
        tokens::revoke(owner, store, issued.token.id)
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

    pub(super) async fn s33_what_cannot_be_seen_is_not_found(world: World) {
        let blind = world.holder(Role::Owner, &[Scope::Approve]).await;
        let listed = projects::list(&blind, &world.store, &PageRequest::default()).await;
        assert!(matches!(listed, Err(Error::NotFound { .. })), "{listed:?}");
    }
}

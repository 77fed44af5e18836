//! How a tenant comes into being: all of it or nothing.

crate::support::on_both!(
    a_tenant_is_made_with_its_project_and_its_owners_token,
    a_tenant_whose_token_cannot_be_kept_is_not_made,
    a_failure_on_the_way_makes_no_tenant,
    a_lost_owner_gets_another_token,
);

mod tests {
    use crate::support::{World, name, present};
    use roadstead_authz::ActorKind;
    use roadstead_domain::{Error, PageRequest};
    use roadstead_service::{audit, bootstrap, projects};
    use roadstead_store::Store;
    use secrecy::{ExposeSecret as _, SecretString};
    use std::cell::RefCell;

    async fn make(store: &Store) -> Result<String, Error> {
        let kept = RefCell::new(String::new());
        let keep = |secret: &SecretString| {
            secret.expose_secret().clone_into(&mut kept.borrow_mut());
            Ok::<_, Error>(())
        };
        bootstrap::tenant(store, &name("fresh"), &name("first"), keep).await?;
        Ok(kept.into_inner())
    }

    async fn rows(world: &World) -> Vec<String> {
        let counts = ["tenant", "audit_head", "audit", "project", "api_token"]
            .map(|table| format!("(SELECT count(*) FROM {table})"))
            .join(", ");
        world
            .database
            .ask_all(&format!("SELECT concat_ws(' ', {counts})"))
            .await
    }

    pub(super) async fn a_tenant_is_made_with_its_project_and_its_owners_token(world: World) {
        let secret = make(&world.store).await.expect("made");
        let owner = present(&world.store, &secret).await.expect("good");
        assert_eq!(owner.tenant_name(), "fresh");
        let listed = projects::list(&owner, &world.store, &PageRequest::default())
            .await
            .expect("listed");
        assert_eq!(listed.items[0].name, "first");
        let records = audit::list(&owner, &world.store, &PageRequest::default())
            .await
            .expect("listed");
        let mut actions: Vec<_> = records.items.into_iter().map(|r| r.action).collect();
        actions.reverse();
        assert_eq!(actions, ["create tenant", "create project", "issue token"]);
        let again = make(&world.store).await;
        assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
        let reports = audit::verify(&world.store).await.expect("checked");
        assert!(reports.iter().all(|r| r.broken.is_none()), "{reports:?}");
    }

    pub(super) async fn a_tenant_whose_token_cannot_be_kept_is_not_made(world: World) {
        let before = rows(&world).await;
        let keep = |_: &SecretString| Err(Error::internal("the disk is full"));
        let refused = bootstrap::tenant(&world.store, &name("fresh"), &name("first"), keep).await;
        refused.expect_err("not kept");
        assert_eq!(rows(&world).await, before);
        make(&world.store).await.expect("and now it can be made");
    }

    pub(super) async fn a_failure_on_the_way_makes_no_tenant(world: World) {
        let before = rows(&world).await;
        let mut failures = 0;
        loop {
            world.faults.fail_after(failures);
            let made = make(&world.store).await;
            if world.faults.disarm().is_some() {
                made.expect("no statement was left to fail");
                break;
            }
            assert!(matches!(made, Err(Error::Unavailable { .. })), "{made:?}");
            assert_eq!(rows(&world).await, before, "statement {failures}");
            failures += 1;
        }
        assert!(failures > 6, "{failures}");
    }

    pub(super) async fn a_lost_owner_gets_another_token(world: World) {
        let kept = RefCell::new(String::new());
        let keep = |secret: &SecretString| {
            secret.expose_secret().clone_into(&mut kept.borrow_mut());
            Ok::<_, Error>(())
        };
        bootstrap::owner_token(&world.store, &name("acme"), keep)
            .await
            .expect("issued");
        let ctx = present(&world.store, &kept.into_inner()).await.expect("good");
        assert_eq!(ctx.tenant(), world.acme.owner.tenant());
        let ActorKind::Token { role, .. } = ctx.actor().kind() else {
            panic!("a token")
        };
        assert_eq!(role.as_str(), "owner");
        let keep = |_: &SecretString| Ok::<_, Error>(());
        let missing = bootstrap::owner_token(&world.store, &name("nobody"), keep).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    }
}

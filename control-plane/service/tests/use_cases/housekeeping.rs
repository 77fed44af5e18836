//! What the hub does by itself.

crate::support::on_both!(
    what_has_expired_is_removed_and_the_rest_stays,
    old_tombstones_go_once_they_were_carried_out,
    a_denial_that_repeats_is_counted_and_not_written_each_time,
);

mod tests {
    use crate::support::{World, agent, input, model, name, say, set};
    use roadstead_authz::{Role, Scope};
    use roadstead_contract::documents::Kind;
    use roadstead_domain::PageRequest;
    use roadstead_service::{
        DeleteInput, Target, audit, clusters, delete_document, fleet, housekeeping, projects,
    };
    use roadstead_store::AuditRecord;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    async fn count(world: &World, what: &str) -> String {
        world
            .database
            .ask_all(&format!("SELECT CAST(count(*) AS TEXT) FROM {what}"))
            .await
            .remove(0)
    }

    pub(super) async fn what_has_expired_is_removed_and_the_rest_stays(world: World) {
        let apply = async |key: &str, text: &str| {
            let mut input = input(&model("fast", text));
            input.idempotency_key = Some(key.to_owned());
            roadstead_service::apply_documents(&world.acme.owner, &world.store, &input)
                .await
                .expect("applied")
        };
        apply("old", "m1").await;
        world.acme.dev.join_token(&world.store).await.expect("made");
        // An answer holds no document: those are in the revisions, once.
        let kept = world
            .database
            .ask_all("SELECT answer FROM idempotency_key")
            .await
            .join(" ");
        assert!(!kept.contains("openaiCompatible"), "{kept}");
        world.clock.advance(DAY / 2);
        apply("young", "m2").await;
        world.clock.advance(DAY / 2 + Duration::from_secs(1));
        assert_eq!(count(&world, "idempotency_key").await, "2");
        assert_eq!(housekeeping::purge(&world.store).await.expect("purged"), 1);
        assert_eq!(count(&world, "idempotency_key").await, "1");
        // Join tokens stay a day longer than they work, for the record of a late try.
        world.clock.advance(DAY);
        assert_eq!(housekeeping::purge(&world.store).await.expect("purged"), 2);
        assert_eq!(count(&world, "enrolment_token").await, "0");
        assert_eq!(housekeeping::purge(&world.store).await.expect("again"), 0);
        let again = apply("young", "m2").await;
        assert_eq!(again.documents[0].revision, 2, "nothing changed");
    }

    async fn delete(world: &World, kind: Kind, named: &str) {
        let delete = DeleteInput {
            target: Target::Name {
                project: name("support"),
                kind,
                name: name(named),
            },
            expected_revision: None,
            idempotency_key: None,
        };
        delete_document(&world.acme.owner, &world.store, &delete)
            .await
            .expect("deleted");
    }

    pub(super) async fn old_tombstones_go_once_they_were_carried_out(world: World) {
        let agent = agent("helper", "Help.", "fast", "{clusters: [edge]}");
        world
            .apply(&set(&[model("fast", "m1"), agent]))
            .await
            .expect("applied");
        delete(&world, Kind::Agent, "helper").await;
        let tombstones = "desired WHERE deleted = 1";
        assert_eq!(
            count(&world, tombstones).await,
            "2",
            "the model left with its agent"
        );
        world.clock.advance(31 * DAY);
        housekeeping::purge(&world.store).await.expect("purged");
        assert_eq!(
            count(&world, tombstones).await,
            "2",
            "the cluster has not carried them out"
        );

        let ctx = world.cluster_agent().await;
        let session = fleet::begin_session(&ctx, &world.store, "inbox", "0.1.0", &[])
            .await
            .expect("begun");
        let changes = fleet::changes_since(&ctx, &world.store, 0, 100)
            .await
            .expect("read");
        let epoch = session.cluster.epoch;
        say::persisted(&ctx, &world.store, epoch, changes.revision)
            .await
            .expect("noted");
        say::applied(&ctx, &world.store, epoch, changes.revision)
            .await
            .expect("noted");
        // One that is young, beside the old.
        let later = set(&[
            model("other", "m1"),
            crate::support::agent("two", "Help.", "other", "{clusters: [edge]}"),
        ]);
        world.apply(&later).await.expect("applied");
        delete(&world, Kind::Agent, "two").await;
        assert_eq!(
            housekeeping::purge(&world.store).await.expect("purged"),
            1,
            "the old model"
        );
        let left = "SELECT concat_ws(' ', kind, name) FROM desired WHERE deleted = 1 ORDER BY 1";
        assert_eq!(
            world.database.ask_all(left).await,
            ["Agent helper", "Agent two", "Model other"]
        );
        let cluster = clusters::get(&world.acme.owner, &world.store, world.acme.dev.cluster.id)
            .await
            .expect("there");
        assert_eq!(cluster.cluster.tombstone_floor, changes.revision);
        // Whoever is at the floor misses nothing.
        let next = fleet::changes_since(&ctx, &world.store, changes.revision, 100)
            .await
            .expect("read");
        assert_eq!((next.changes.len(), next.revision), (2, cluster.cluster.revision));
    }

    async fn denials(world: &World) -> Vec<AuditRecord> {
        let page = PageRequest {
            first: Some(100),
            after: None,
        };
        let listed = audit::list(&world.acme.owner, &world.store, &page)
            .await
            .expect("listed");
        listed
            .items
            .into_iter()
            .filter(|r| r.decision == "deny")
            .collect()
    }

    pub(super) async fn a_denial_that_repeats_is_counted_and_not_written_each_time(world: World) {
        let (one, other) = (
            world.holder(Role::Viewer, &[Scope::Read]).await,
            world.holder(Role::Viewer, &[Scope::Read]).await,
        );
        let create = projects::CreateInput {
            name: name("billing"),
            idempotency_key: None,
        };
        for _ in 0..40 {
            projects::create(&one, &world.store, &create)
                .await
                .expect_err("denied");
        }
        projects::create(&other, &world.store, &create)
            .await
            .expect_err("denied");
        assert_eq!(denials(&world).await.len(), 2, "one for each actor");
        housekeeping::note(&world.store).await.expect("written");
        let written = denials(&world).await;
        assert_eq!(written.len(), 3);
        assert_eq!(written[0].detail["repeated"], 39);
        assert_eq!(written[0].actor, one.actor().label());
        housekeeping::note(&world.store).await.expect("again");
        assert_eq!(denials(&world).await.len(), 3, "nothing is written twice");
        world.clock.advance(Duration::from_secs(61));
        projects::create(&one, &world.store, &create)
            .await
            .expect_err("denied");
        assert_eq!(
            denials(&world).await.len(),
            4,
            "after a minute it is a first time again"
        );
    }
}

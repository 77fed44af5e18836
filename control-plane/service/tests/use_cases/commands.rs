//! Commands: made by whoever may change the agent, sent until they have a result, and one result each.

crate::support::on_both!(
    a_command_is_sent_until_it_has_its_result_and_the_first_stands,
    what_was_never_sent_expires_and_is_never_delivered,
    s45_results_of_others_and_of_superseded_sessions_are_refused,
    s39_no_more_than_so_many_commands_wait_for_a_cluster,
    s39_one_call_commands_no_more_than_so_many_clusters,
    a_cluster_agent_that_cannot_is_not_kept_waiting_for,
    another_inbox_does_not_get_what_the_one_before_may_have_done,
    whoever_may_not_change_the_agent_may_not_restart_it,
    old_commands_are_concluded_and_forgotten,
    a_repetition_under_the_same_key_makes_no_second_command,
    a_deleted_cluster_leaves_no_command_open,
);

mod tests {
    use crate::support::{World, agent, enrolled_in, model, name, pair, set};
    use roadstead_authz::{Role, Scope, TenantContext};
    use roadstead_contract::documents::Kind;
    use roadstead_contract::fleet::{MAX_COMMANDS, RESTART_ENGINE};
    use roadstead_domain::{CommandId, ConflictReason, Error, PageRequest};
    use roadstead_service::commands::{self, RestartInput};
    use roadstead_service::{Target, audit, clusters, fleet, housekeeping};
    use roadstead_store::{Command, CommandCode, CommandFilter, ResultVerdict};
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn input(agent: &str) -> RestartInput {
        RestartInput {
            target: Target::Name {
                project: name("support"),
                kind: Kind::Agent,
                name: name(agent),
            },
            cluster: None,
            expires_in: None,
            idempotency_key: None,
        }
    }

    async fn restart(world: &World) -> Command {
        let made = commands::restart_agent(&world.acme.owner, &world.store, &input("helper")).await;
        made.expect("made").remove(0)
    }

    /// A session of a cluster agent that can restart engines; its epoch.
    async fn begin(world: &World, ctx: &TenantContext, inbox: &str) -> u64 {
        let able = [RESTART_ENGINE.to_owned()];
        let session = fleet::begin_session(ctx, &world.store, inbox, "0.1.0", &able).await;
        session.expect("begun").cluster.epoch
    }

    /// An agent on `edge`, whose cluster agent is connected.
    async fn connected(world: &World) -> (TenantContext, u64) {
        world.apply(&pair()).await.expect("applied");
        let ctx = world.cluster_agent().await;
        let epoch = begin(world, &ctx, "inbox").await;
        (ctx, epoch)
    }

    async fn due(world: &World, ctx: &TenantContext, epoch: u64) -> Vec<CommandId> {
        let due = fleet::due_commands(ctx, &world.store, epoch).await.expect("read");
        due.into_iter().map(|command| command.id).collect()
    }

    async fn say(
        world: &World,
        ctx: &TenantContext,
        epoch: u64,
        id: CommandId,
        code: CommandCode,
    ) -> Result<Option<&'static str>, Error> {
        let results = [(id, code, "words".to_owned())];
        let said = fleet::record_results(ctx, &world.store, epoch, &results).await?;
        Ok(match said[0] {
            ResultVerdict::Kept => None,
            ResultVerdict::Late(why) | ResultVerdict::Foreign(why) => Some(why),
        })
    }

    async fn get(world: &World, id: CommandId) -> Command {
        let found = commands::get(&world.acme.owner, &world.store, id).await;
        found.expect("there")
    }

    async fn code(world: &World, id: CommandId) -> Option<CommandCode> {
        get(world, id).await.result.map(|result| result.code)
    }

    pub(super) async fn a_command_is_sent_until_it_has_its_result_and_the_first_stands(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let mut hints = world.store.watch(&ctx).expect("watched");
        let command = restart(&world).await;
        assert!(
            hints.has_changed().expect("open"),
            "the session hears of it at once"
        );
        assert_eq!(hints.borrow_and_update().commands, 1);
        assert_eq!((command.sent, command.result.as_ref()), (false, None));
        assert_eq!(command.cluster_name, "edge");
        for _ in 0..2 {
            assert_eq!(due(&world, &ctx, epoch).await, [command.id]);
        }
        assert!(get(&world, command.id).await.sent);
        // In the next session, too; whatever the time is: only the cluster agent knows what it did.
        world.clock.advance(DAY);
        let next = begin(&world, &ctx, "inbox").await;
        assert_eq!(due(&world, &ctx, next).await, [command.id]);
        let said = say(&world, &ctx, next, command.id, CommandCode::Failed).await;
        assert_eq!(said.expect("heard"), None);
        let again = say(&world, &ctx, next, command.id, CommandCode::Succeeded).await;
        assert_eq!(again.expect("heard"), None, "known is acknowledged");
        assert_eq!(code(&world, command.id).await, Some(CommandCode::Failed));
        assert!(due(&world, &ctx, next).await.is_empty());
        // Recorded with the act.
        let page = PageRequest::default();
        let log = audit::list(&world.acme.owner, &world.store, &page)
            .await
            .expect("listed");
        let entry = log
            .items
            .iter()
            .find(|r| r.action == "restart agent")
            .expect("recorded");
        assert_eq!(entry.detail["command"], command.id.to_string());
        assert_eq!(
            (entry.decision.as_str(), &entry.object),
            ("allow", &command.agent.to_string())
        );
    }

    pub(super) async fn what_was_never_sent_expires_and_is_never_delivered(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let command = restart(&world).await;
        world.clock.advance(commands::EXPIRES_IN);
        // Whoever looks is told so before anybody has written it down.
        assert_eq!(code(&world, command.id).await, Some(CommandCode::Expired));
        assert!(due(&world, &ctx, epoch).await.is_empty());
        let said = say(&world, &ctx, epoch, command.id, CommandCode::Succeeded).await;
        assert!(said.expect("heard").is_some(), "nobody was told to do it");
        assert_eq!(code(&world, command.id).await, Some(CommandCode::Expired));
    }

    pub(super) async fn s45_results_of_others_and_of_superseded_sessions_are_refused(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let command = restart(&world).await;
        let unsent = say(&world, &ctx, epoch, command.id, CommandCode::Succeeded).await;
        assert_eq!(unsent.expect("heard"), Some("the command was never sent"));
        due(&world, &ctx, epoch).await;
        // Another cluster of the tenant.
        let west = clusters::CreateInput {
            name: name("west"),
            labels: [].into(),
            idempotency_key: None,
        };
        let owner = &world.acme.owner;
        let west = clusters::create(owner, &world.store, west).await.expect("made");
        let west = enrolled_in(&world.store, owner, west.id, "07").await;
        let of_west = begin(&world, &west, "i").await;
        assert!(due(&world, &west, of_west).await.is_empty());
        let said = say(&world, &west, of_west, command.id, CommandCode::Succeeded).await;
        assert_eq!(said.expect("heard"), Some("the command is another cluster's"));
        // Another tenant's: it looks like one that never was.
        let foreign = crate::support::enrolled(&world.store, &world.other, "08").await;
        let of_foreign = begin(&world, &foreign, "i").await;
        let said = say(&world, &foreign, of_foreign, command.id, CommandCode::Succeeded).await;
        assert_eq!(said.expect("heard"), Some("there is no such command"));
        let seen = commands::get(&world.other.owner, &world.store, command.id).await;
        assert!(matches!(seen, Err(Error::NotFound { .. })), "{seen:?}");
        // A session that a newer one has taken over from.
        begin(&world, &ctx, "inbox").await;
        let said = say(&world, &ctx, epoch, command.id, CommandCode::Succeeded).await;
        assert!(said.expect_err("refused").is_superseded());
        let read = fleet::due_commands(&ctx, &world.store, epoch).await;
        assert!(read.expect_err("refused").is_superseded());
        assert_eq!(code(&world, command.id).await, None);
    }

    pub(super) async fn s39_no_more_than_so_many_commands_wait_for_a_cluster(world: World) {
        let (ctx, epoch) = connected(&world).await;
        for _ in 0..MAX_COMMANDS {
            restart(&world).await;
        }
        let owner = &world.acme.owner;
        let more = commands::restart_agent(owner, &world.store, &input("helper")).await;
        assert!(matches!(more, Err(Error::Limit { .. })), "{more:?}");
        let open = due(&world, &ctx, epoch).await;
        assert_eq!(open.len(), MAX_COMMANDS);
        let said = say(&world, &ctx, epoch, open[0], CommandCode::Succeeded).await;
        assert_eq!(said.expect("heard"), None);
        restart(&world).await;
    }

    pub(super) async fn s39_one_call_commands_no_more_than_so_many_clusters(world: World) {
        let owner = &world.acme.owner;
        for n in 0..commands::CLUSTERS {
            let more = clusters::CreateInput {
                name: name(&format!("more-{n}")),
                labels: [("roadstead.dev/runtime".to_owned(), "local".to_owned())].into(),
                idempotency_key: None,
            };
            clusters::create(owner, &world.store, more).await.expect("made");
        }
        let everywhere = [
            model("fast", "m1"),
            agent(
                "helper",
                "Help.",
                "fast",
                "{selector: {matchLabels: {roadstead.dev/runtime: local}}}",
            ),
        ];
        world.apply(&set(&everywhere)).await.expect("applied");
        let ctx = world.cluster_agent().await;
        begin(&world, &ctx, "inbox").await;
        let refused = commands::restart_agent(owner, &world.store, &input("helper")).await;
        let refused = refused.expect_err("refused");
        let limit = matches!(&refused, Error::Limit { allowed: 100, .. });
        assert!(
            limit && refused.to_string().contains("name a cluster"),
            "{refused}"
        );
        let (all, page) = (CommandFilter::default(), PageRequest::default());
        let written = commands::list(owner, &world.store, &all, &page).await;
        assert!(written.expect("listed").items.is_empty(), "nothing was written");
        // Which one of them is named does not matter.
        let named = RestartInput {
            cluster: Some(name("edge")),
            ..input("helper")
        };
        let made = commands::restart_agent(owner, &world.store, &named).await;
        assert_eq!(made.expect("made").len(), 1);
    }

    pub(super) async fn a_cluster_agent_that_cannot_is_not_kept_waiting_for(world: World) {
        let owner = &world.acme.owner;
        let missing = commands::restart_agent(owner, &world.store, &input("helper")).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
        world.apply(&pair()).await.expect("applied");
        let refused = async |why: &str, input: &RestartInput| {
            let refused = commands::restart_agent(owner, &world.store, input).await;
            let refused = refused.expect_err("refused");
            let state = matches!(
                &refused,
                Error::Conflict {
                    reason: ConflictReason::State,
                    ..
                }
            );
            assert!(state && refused.to_string().contains(why), "{refused}");
        };
        refused("never been connected", &input("helper")).await;
        let ctx = world.cluster_agent().await;
        let old = fleet::begin_session(&ctx, &world.store, "inbox", "0.0.9", &[]).await;
        old.expect("begun");
        refused("version 0.0.9, does not know this command", &input("helper")).await;
        let elsewhere = RestartInput {
            cluster: Some(name("west")),
            ..input("helper")
        };
        refused("does not run on a cluster west", &elsewhere).await;
        let nowhere = agent(
            "idle",
            "Help.",
            "fast",
            "{selector: {matchLabels: {region: nowhere}}}",
        );
        world.apply(&nowhere).await.expect("applied");
        refused("runs on no cluster", &input("idle")).await;
        // One that was made for a newer cluster agent than the one that comes.
        begin(&world, &ctx, "inbox").await;
        let command = restart(&world).await;
        let old = fleet::begin_session(&ctx, &world.store, "inbox", "0.0.9", &[]).await;
        let epoch = old.expect("begun").cluster.epoch;
        assert!(due(&world, &ctx, epoch).await.is_empty());
        assert_eq!(code(&world, command.id).await, Some(CommandCode::Refused));
    }

    pub(super) async fn another_inbox_does_not_get_what_the_one_before_may_have_done(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let sent = restart(&world).await;
        due(&world, &ctx, epoch).await;
        let unsent = restart(&world).await;
        let wiped = begin(&world, &ctx, "another").await;
        assert_eq!(due(&world, &ctx, wiped).await, [unsent.id]);
        assert_eq!(code(&world, sent.id).await, Some(CommandCode::Unknown));
        let late = say(&world, &ctx, wiped, sent.id, CommandCode::Succeeded).await;
        let given_up = "the command was given up, and has its result";
        assert_eq!(late.expect("heard"), Some(given_up));
        // The cluster is no forger for it.
        let results = [(sent.id, CommandCode::Succeeded, String::new())];
        let said = fleet::record_results(&ctx, &world.store, wiped, &results).await;
        assert_eq!(said.expect("heard"), [ResultVerdict::Late(given_up)]);
        assert_eq!(code(&world, sent.id).await, Some(CommandCode::Unknown));
    }

    pub(super) async fn whoever_may_not_change_the_agent_may_not_restart_it(world: World) {
        connected(&world).await;
        let cases = [
            (Role::Operator, &[Scope::Invoke][..]),
            (Role::Editor, &[Scope::Invoke]),
        ];
        for (role, scopes) in cases {
            let holder = world.holder(role, scopes).await;
            let denied = commands::restart_agent(&holder, &world.store, &input("helper")).await;
            assert!(
                matches!(denied, Err(Error::Forbidden { .. })),
                "{role} {denied:?}"
            );
        }
        let editor = world.holder(Role::Editor, &[Scope::Write]).await;
        let made = commands::restart_agent(&editor, &world.store, &input("helper")).await;
        let made = made.expect("made").remove(0);
        assert_eq!(made.created_by, editor.actor().label());
        let foreign = commands::restart_agent(&world.other.owner, &world.store, &input("helper")).await;
        assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
        let listed = async |ctx: &TenantContext| {
            let all = CommandFilter::default();
            let page = commands::list(ctx, &world.store, &all, &PageRequest::default()).await;
            page.expect("listed").items.len()
        };
        let viewer = world.holder(Role::Viewer, &[Scope::Read]).await;
        assert_eq!((listed(&viewer).await, listed(&world.other.owner).await), (1, 0));
    }

    pub(super) async fn old_commands_are_concluded_and_forgotten(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let sent = restart(&world).await;
        due(&world, &ctx, epoch).await;
        let unsent = restart(&world).await;
        world.clock.advance(6 * DAY);
        housekeeping::purge(&world.store).await.expect("purged");
        assert_eq!(code(&world, unsent.id).await, Some(CommandCode::Expired));
        assert_eq!(
            code(&world, sent.id).await,
            None,
            "its cluster agent may still answer"
        );
        world.clock.advance(2 * DAY);
        housekeeping::purge(&world.store).await.expect("purged");
        assert_eq!(code(&world, sent.id).await, Some(CommandCode::Unknown));
        world.clock.advance(31 * DAY);
        housekeeping::purge(&world.store).await.expect("purged");
        let gone = commands::get(&world.acme.owner, &world.store, sent.id).await;
        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
        // Its cluster comes back and says it; whose it was is not known any more.
        let results = [(sent.id, CommandCode::Succeeded, String::new())];
        let said = fleet::record_results(&ctx, &world.store, epoch, &results).await;
        assert_eq!(
            said.expect("heard"),
            [ResultVerdict::Late("the command is forgotten")]
        );
    }

    pub(super) async fn a_repetition_under_the_same_key_makes_no_second_command(world: World) {
        connected(&world).await;
        let owner = &world.acme.owner;
        let keyed = RestartInput {
            idempotency_key: Some("key".to_owned()),
            ..input("helper")
        };
        let once = commands::restart_agent(owner, &world.store, &keyed)
            .await
            .expect("made");
        let again = commands::restart_agent(owner, &world.store, &keyed)
            .await
            .expect("told");
        assert_eq!(once, again);
        let other = RestartInput {
            cluster: Some(name("edge")),
            ..keyed
        };
        let other = commands::restart_agent(owner, &world.store, &other).await;
        let conflict = matches!(
            &other,
            Err(Error::Conflict {
                reason: ConflictReason::IdempotencyKey,
                ..
            })
        );
        assert!(conflict, "{other:?}");
        for seconds in [0, 86_401] {
            let long = RestartInput {
                expires_in: Some(Duration::from_secs(seconds)),
                ..input("helper")
            };
            let long = commands::restart_agent(owner, &world.store, &long).await;
            assert!(matches!(long, Err(Error::Invalid { .. })), "{long:?}");
        }
    }

    pub(super) async fn a_deleted_cluster_leaves_no_command_open(world: World) {
        let (ctx, epoch) = connected(&world).await;
        let sent = restart(&world).await;
        due(&world, &ctx, epoch).await;
        let unsent = restart(&world).await;
        let owner = &world.acme.owner;
        clusters::delete(owner, &world.store, world.acme.dev.cluster.id, None)
            .await
            .expect("deleted");
        let codes = (code(&world, sent.id).await, code(&world, unsent.id).await);
        assert_eq!(codes, (Some(CommandCode::Unknown), Some(CommandCode::Refused)));
        // Models have no engine.
        world.apply(&set(&[model("slow", "m2")])).await.expect("applied");
        let target = Target::Name {
            project: name("support"),
            kind: Kind::Model,
            name: name("slow"),
        };
        let input = RestartInput {
            target,
            ..input("slow")
        };
        let refused = commands::restart_agent(owner, &world.store, &input).await;
        assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    }
}

//! Commands from a database: made by a use case on any replica, done once, answered once.

crate::world::on_both!(
    a_command_is_done_and_its_result_kept,
    a_command_of_another_replica_is_found,
    s45_the_result_of_another_clusters_command_is_refused,
);

mod tests {
    use crate::world::{World, name};
    use roadstead_authz::PeerIdentity;
    use roadstead_contract::{
        documents::Kind,
        fleet::{CommandCode as Said, RESTART_ENGINE},
    };
    use roadstead_domain::{ClusterId, CommandId, OsRandom, SystemClock};
    use roadstead_fleet::{
        FleetStore as _, Sql,
        store::{Hello, Session, What},
    };
    use roadstead_inbox::CommandResult;
    use roadstead_service::{Target, clusters, commands};
    use roadstead_simulation::{agent::ClusterAgent, eventually};
    use roadstead_store::{AuditRecord, Command, CommandCode, Store};

    async fn restart(world: &World, store: &Store) -> Command {
        let input = commands::RestartInput {
            target: Target::Name {
                project: name("support"),
                kind: Kind::Agent,
                name: name("a"),
            },
            cluster: None,
            expires_in: None,
            idempotency_key: None,
        };
        let made = commands::restart_agent(world.owner(), store, &input).await;
        made.expect("made").remove(0)
    }

    /// Waits until the cluster agent has the next command.
    async fn begun(agent: &ClusterAgent) -> roadstead_inbox::Command {
        eventually("a command", || async {
            agent.inbox.begin_commands().await.unwrap().pop()
        })
        .await
    }

    async fn conclude(agent: &ClusterAgent, id: &str, code: Said) {
        let result = CommandResult {
            id: id.to_owned(),
            code,
            detail: "so it was".to_owned(),
        };
        agent.inbox.conclude_command(result).await.unwrap();
    }

    async fn ended(world: &World, command: &Command) -> (CommandCode, String) {
        eventually("a result", || async {
            let found = commands::get(world.owner(), world.store(), command.id).await;
            found.unwrap().result.map(|result| (result.code, result.detail))
        })
        .await
    }

    pub(super) async fn a_command_is_done_and_its_result_kept(world: World) {
        let hub = world.hub().await;
        world.place(&["a"], "one").await;
        let agent = world.joined(&hub).await;
        let uid = world.uid("a").await;
        agent.holds(&uid, 1).await;
        let command = restart(&world, world.store()).await;
        let begun = begun(&agent).await;
        assert_eq!(begun.id, command.id.to_string());
        assert_eq!(begun.act, roadstead_inbox::Act::RestartEngine { agent_uid: uid });
        conclude(&agent, &begun.id, Said::Failed).await;
        let result = ended(&world, &command).await;
        assert_eq!(result, (CommandCode::Failed, "so it was".to_owned()));
        eventually("it is acknowledged", || async {
            agent
                .inbox
                .pending_results()
                .await
                .unwrap()
                .is_empty()
                .then_some(())
        })
        .await;
        assert_eq!(world.refused(What::Forged.action()).await, 0);
        world.chains_hold().await;
        agent.stop().await.unwrap();
    }

    pub(super) async fn a_command_of_another_replica_is_found(world: World) {
        let hub = world.hub().await;
        world.place(&["a"], "one").await;
        let agent = world.joined(&hub).await;
        world.persisted().await;
        // Another process over the same database: its hints do not come here.
        let other = world.again().await;
        let command = restart(&world, &other).await;
        let begun = begun(&agent).await;
        conclude(&agent, &begun.id, Said::Succeeded).await;
        assert_eq!(ended(&world, &command).await.0, CommandCode::Succeeded);
        agent.stop().await.unwrap();
    }

    pub(super) async fn s45_the_result_of_another_clusters_command_is_refused(world: World) {
        let hub = world.hub().await;
        world.place(&["a"], "one").await;
        let agent = world.joined(&hub).await;
        world.persisted().await;
        // A command of another cluster of the tenant, which was sent there.
        let (west, command) = commanded(&world).await;
        let nobody = CommandId::generate(&SystemClock, &OsRandom);
        for id in [command.to_string(), nobody.to_string(), "no id at all".to_owned()] {
            let taken = roadstead_inbox::Command {
                id: id.clone(),
                expires_ms: i64::MAX,
                act: roadstead_inbox::Act::RestartEngine {
                    agent_uid: "a".to_owned(),
                },
            };
            let before = world.refused(What::Forged.action()).await;
            agent.inbox.take_command(taken, 0).await.unwrap();
            conclude(&agent, &id, Said::Succeeded).await;
            eventually("it is refused and audited", || async {
                let forgotten = agent.inbox.pending_results().await.unwrap().is_empty();
                (forgotten && world.refused(What::Forged.action()).await > before).then_some(())
            })
            .await;
        }
        let log = world.audit().await;
        let told = |record: &AuditRecord| record.detail.to_string().contains("another cluster's");
        assert!(log.iter().any(told), "{log:?}");
        let found = commands::get(world.owner(), world.store(), command)
            .await
            .unwrap();
        assert_eq!((found.cluster, found.sent, found.result), (west, true, None));
        world.chains_hold().await;
        agent.stop().await.unwrap();
    }

    /// A cluster beside `edge` with a session of its own, and a command that was sent there.
    async fn commanded(world: &World) -> (ClusterId, CommandId) {
        let (owner, store) = (world.owner(), world.store());
        let labels = [("side".to_owned(), "west".to_owned())].into();
        let input = clusters::CreateInput {
            name: name("west"),
            labels,
            idempotency_key: None,
        };
        let west = clusters::create(owner, store, input).await.unwrap().id;
        world.place_on("west", &["b"], "one").await;
        let peer = PeerIdentity {
            tenant: owner.tenant(),
            cluster: west,
            serial: "07".to_owned(),
        };
        let sql = Sql::new(store.clone());
        sql.certificate_issued(&peer, i64::MAX).await.unwrap();
        let hello = Hello {
            version: "1.0.0".to_owned(),
            instance: "i".to_owned(),
            incarnation: "n".to_owned(),
            cursor: 0,
            capabilities: vec![RESTART_ENGINE.to_owned()],
        };
        let epoch = sql.begin_session(&peer, &hello).await.unwrap().epoch;
        let input = commands::RestartInput {
            target: Target::Name {
                project: name("support"),
                kind: Kind::Agent,
                name: name("b"),
            },
            cluster: None,
            expires_in: None,
            idempotency_key: None,
        };
        let made = commands::restart_agent(owner, store, &input).await.unwrap();
        let sent = sql.commands(&Session { peer, epoch }).await.unwrap();
        assert_eq!(sent.len(), 1);
        (west, made[0].id)
    }
}

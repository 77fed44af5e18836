//! Attacks on the hub's port, and what the audit log holds of them.

crate::world::on_both!(
    s44_a_foreign_authority_is_refused_and_recorded,
    s44_an_expired_certificate_is_refused_and_recorded_for_its_cluster,
    s44_a_revoked_certificate_opens_nothing,
    s45_forged_ids_and_numbers_are_refused_and_recorded,
    s45_run_records_of_foreign_agents_are_refused_and_recorded_once,
);

mod tests {
    use crate::world::World;
    use roadstead_contract::fleet::{
        self, Ack, DocumentStatus, GetBlobRequest, Resume, RunRecord, RunRecords, Stage,
        bulk_client::BulkClient, cluster_frame::Body, hub_frame, tunnel_client::TunnelClient,
    };
    use roadstead_domain::{AgentId, Clock as _, FakeClock, OsRandom, RunId, SystemClock};
    use roadstead_service::clusters;
    use roadstead_simulation::{
        eventually,
        hub::{Hub, Wishes},
        raw::{self, Credentials, RawSession},
        run,
    };
    use roadstead_store::testing::TestDatabase;
    use std::{sync::Arc, time::Duration};
    use tonic::{Code, Status};

    async fn opened(hub: &Hub<World>, credentials: &Credentials) -> Result<RawSession, Status> {
        let channel = raw::connect_once(hub, credentials).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        RawSession::open(channel, Body::Hello(raw::hello(0))).await
    }

    pub(super) async fn s44_a_foreign_authority_is_refused_and_recorded(world: World) {
        let (hub, other) = (world.hub().await, Hub::start().await);
        let foreign = raw::credentials(&other, 1).await;
        let tried = async {
            let mut session = opened(&hub, &foreign).await?;
            session.next().await
        };
        assert!(tried.await.is_err());
        eventually("the platform's record of the one connection", || async {
            (world.refused_of_nobody("fleet.certificate.refused").await == 1).then_some(())
        })
        .await;
        assert_eq!(world.refused("fleet.certificate.refused").await, 0);
        assert_eq!(world.cluster().await.epoch, 0);
        world.chains_hold().await;
    }

    pub(super) async fn s44_an_expired_certificate_is_refused_and_recorded_for_its_cluster(outer: World) {
        let database = match outer.database().is_postgres() {
            true => TestDatabase::postgres().await.expect("as before"),
            false => TestDatabase::sqlite(),
        };
        let clock = Arc::new(FakeClock::at(SystemClock.now_ms()));
        let world = World::at(database, clock.clone()).await;
        let wishes = Wishes {
            clock: clock.clone(),
            client_life: Duration::from_secs(600),
            ..Wishes::default()
        };
        let hub = Hub::over(world.clone(), wishes).await;
        let credentials = raw::credentials(&hub, 1).await;
        clock.advance(Duration::from_secs(601));
        let tried = async {
            let mut session = opened(&hub, &credentials).await?;
            session.next().await
        };
        assert!(tried.await.is_err());
        eventually("the tenant's record of the one connection", || async {
            (world.refused("fleet.certificate.refused").await == 1).then_some(())
        })
        .await;
        assert_eq!(world.refused_of_nobody("fleet.certificate.refused").await, 0);
    }

    pub(super) async fn s44_a_revoked_certificate_opens_nothing(world: World) {
        let hub = world.hub().await;
        let credentials = raw::credentials(&hub, 1).await;
        clusters::revoke_certificates(world.owner(), world.store(), world.edge(), None, None)
            .await
            .unwrap();
        let mut session = opened(&hub, &credentials).await.unwrap();
        assert!(matches!(
            session.next().await,
            Ok(Some(hub_frame::Body::Revoked(_)))
        ));
        let channel = raw::connect(&hub, &credentials).await.unwrap();
        let mut bulk = BulkClient::new(channel.clone());
        let blob = bulk.get_blob(GetBlobRequest::default()).await.map(|_| ());
        assert_eq!(blob.unwrap_err().code(), Code::Unauthenticated);
        let mut tunnel = TunnelClient::new(channel);
        let parked = tunnel.open(tokio_stream::pending()).await.map(|_| ());
        assert_eq!(parked.unwrap_err().code(), Code::Unauthenticated);
        let log = world.audit().await;
        let details = log
            .iter()
            .filter(|record| record.action == "fleet.identity.refused")
            .map(|record| {
                record.detail["detail"]
                    .as_str()
                    .unwrap_or_default()
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            });
        let mut kinds: Vec<_> = details.collect();
        kinds.sort();
        assert_eq!(kinds, ["bulk", "session", "tunnel"], "one record for each stream");
    }

    /// Sends one frame in a fresh session that is at rest; says how the session ended.
    async fn after(hub: &Hub<World>, credentials: &Credentials, body: Body) -> Status {
        let mut session = opened(hub, credentials).await.expect("a session");
        loop {
            if let Ok(Some(hub_frame::Body::SnapshotEnd(end))) = session.next().await {
                let ack = Ack {
                    revision: end.revision,
                    stage: Stage::Persisted.into(),
                };
                session.say(Body::Ack(ack)).await;
                break;
            }
        }
        session.say(body).await;
        session.end().await
    }

    fn status_of(uid: &str, observed_generation: u64) -> Body {
        Body::Status(DocumentStatus {
            uid: uid.to_owned(),
            observed_generation,
            phase: "Ready".to_owned(),
            conditions: Vec::new(),
        })
    }

    pub(super) async fn s45_forged_ids_and_numbers_are_refused_and_recorded(world: World) {
        let hub = world.hub().await;
        world.place(&["ours"], "one").await;
        let ours = world.uid("ours").await;
        let foreign = AgentId::generate(&SystemClock, &OsRandom).to_string();
        let credentials = raw::credentials(&hub, 1).await;
        let ack = |stage: Stage| Ack {
            revision: 99,
            stage: stage.into(),
        };
        let nack = fleet::Nack {
            uid: foreign.clone(),
            generation: 1,
            ..fleet::Nack::default()
        };
        let forgeries = [
            Body::Ack(ack(Stage::Persisted)),
            Body::Ack(ack(Stage::Applied)),
            status_of(&"x".repeat(10_000), 1),
            Body::Resume(Resume { cursor: 99 }),
        ];
        for (n, body) in forgeries.into_iter().enumerate() {
            let ended = after(&hub, &credentials, body).await;
            assert_eq!(ended.code(), Code::PermissionDenied, "forgery {n}: {ended}");
            assert_eq!(world.refused("fleet.message.forged").await, n + 1, "forgery {n}");
        }
        // Reports of foreign documents: refused, and recorded once a session, which lives.
        let before = world.refused("fleet.message.forged").await;
        let reports = [
            status_of(&foreign, 1),
            status_of(&ours, 2),
            status_of("nobody's", 1),
            Body::Nack(nack),
        ];
        for (n, body) in reports.into_iter().enumerate() {
            let mut session = opened(&hub, &credentials).await.unwrap();
            for _ in 0..3 {
                session.say(body.clone()).await;
            }
            session
                .say(Body::Heartbeat(fleet::Heartbeat {
                    sequence: 7,
                    cursor: 0,
                }))
                .await;
            while !matches!(session.next().await.unwrap(), Some(hub_frame::Body::Heartbeat(_))) {}
            let recorded = world.refused("fleet.message.forged").await;
            assert_eq!(recorded, before + n + 1, "report {n}");
        }
        assert!(
            world
                .audit()
                .await
                .iter()
                .all(|record| record.detail.to_string().len() < 2_000)
        );
        world.chains_hold().await;
    }

    pub(super) async fn s45_run_records_of_foreign_agents_are_refused_and_recorded_once(world: World) {
        let hub = world.hub().await;
        world.place(&["ours"], "one").await;
        let ours = world.uid("ours").await;
        let foreign = AgentId::generate(&SystemClock, &OsRandom).to_string();
        let credentials = raw::credentials(&hub, 1).await;
        let mut session = opened(&hub, &credentials).await.unwrap();
        let ids: Vec<_> = (0..4)
            .map(|_| RunId::generate(&SystemClock, &OsRandom).to_string())
            .collect();
        let record = |id: &str, uid: &str| RunRecord {
            id: id.to_owned(),
            json: serde_json::to_vec(&run(id, uid, 1)).unwrap(),
        };
        let mut records = vec![record(&ids[0], &ours)];
        records.extend(ids[1..].iter().map(|id| record(id, &foreign)));
        session.say(Body::Runs(RunRecords { records })).await;
        let ack = loop {
            if let Some(hub_frame::Body::RunAck(ack)) = session.next().await.unwrap() {
                break ack;
            }
        };
        assert_eq!((ack.kept.as_slice(), ack.refused.len()), (&ids[..1], 3));
        assert_eq!(world.refused("fleet.message.forged").await, 1);
    }
}

//! How a cluster agent gets and loses its identity.

crate::world::on_both!(
    s42_a_join_token_works_once_and_refusals_are_recorded,
    s51_refused_enrolments_are_counted_and_not_all_written,
    s43_a_request_that_asks_for_an_identity_is_recorded_and_costs_no_token,
    s46_the_database_keeps_nothing_of_a_clusters_key,
    s49_a_renewed_certificate_is_kept_before_it_is_handed_out,
    s49_a_revocation_closes_a_live_session_within_5_s,
    s49_a_deleted_cluster_is_refused_when_it_comes_back,
);

mod tests {
    use crate::world::World;
    use roadstead_contract::fleet::{RenewRequest, cluster_frame::Body, hub_frame};
    use roadstead_link::LinkError;
    use roadstead_service::{clusters, platform};
    use roadstead_simulation::{
        agent::ClusterAgent,
        eventually,
        hub::Truth as _,
        raw::{self, RawSession},
        tenant,
    };
    use std::time::Duration;
    use tonic::Code;

    pub(super) async fn s42_a_join_token_works_once_and_refusals_are_recorded(world: World) {
        let hub = world.hub().await;
        let secret = world.secret(1).await;
        let csr = || raw::request(&raw::modest()).0;
        assert!(raw::enrol(&hub, &secret, csr()).await.is_ok());
        let used = raw::enrol(&hub, &secret, csr()).await.unwrap_err();
        let unknown = raw::enrol(&hub, "unknown", csr()).await.unwrap_err();
        assert_eq!(
            (used.code(), unknown.code()),
            (Code::Unauthenticated, Code::Unauthenticated)
        );
        assert_eq!(used.message(), unknown.message());
        // The known one is its tenant's to hear of, the other nobody's.
        assert_eq!(world.refused("enrol").await, 1);
        assert_eq!(world.refused_of_nobody("enrol").await, 1);
        world.chains_hold().await;
    }

    /// How many refusals the records of a log stand for.
    fn stand_for(log: &[roadstead_store::AuditRecord]) -> u64 {
        let refused = log
            .iter()
            .filter(|record| record.action == "enrol" && record.decision == "refuse");
        let events = refused.map(|record| {
            let detail = record.detail["detail"].as_str().unwrap_or_default();
            let number = |text: &str| text.split(' ').next().and_then(|word| word.parse::<u64>().ok());
            match detail.split_once(" (") {
                _ if detail.contains(" more that were not written") => number(detail).unwrap_or(0),
                Some((_, counted)) if counted.contains("events before") => 1 + number(counted).unwrap_or(0),
                _ => 1,
            }
        });
        events.sum()
    }

    pub(super) async fn s51_refused_enrolments_are_counted_and_not_all_written(world: World) {
        const FLOOD: u64 = 80;
        let hub = world.hub().await;
        let secret = world.secret(1).await;
        let csr = || raw::request(&raw::modest()).0;
        assert!(raw::enrol(&hub, &secret, csr()).await.is_ok());
        // Somebody found an old token, and somebody tries what comes to their mind.
        let used = raw::enrol(&hub, &secret, csr()).await.unwrap_err();
        assert_eq!(used.code(), Code::Unauthenticated);
        for n in 0..FLOOD {
            let refused = raw::enrol(&hub, &format!("unknown-{n}"), csr())
                .await
                .unwrap_err();
            assert!(matches!(
                refused.code(),
                Code::Unauthenticated | Code::ResourceExhausted
            ));
        }
        eventually(
            "every refusal is in the log, by itself or in a number",
            || async {
                let log = platform::records(world.store()).await.expect("listed");
                (stand_for(&log) == FLOOD).then_some(())
            },
        )
        .await;
        let written = world.refused_of_nobody("enrol").await;
        assert!(written < 60, "{written} records of {FLOOD} refusals");
        // The flood took nothing from what the tenant is told of its own token.
        assert_eq!(world.refused("enrol").await, 1);
        assert_eq!(stand_for(&world.audit().await), 1);
        let record = world
            .audit()
            .await
            .into_iter()
            .find(|record| record.decision == "refuse");
        assert!(
            record.unwrap().detail["token"]
                .as_str()
                .unwrap()
                .starts_with("enr_")
        );
        world.chains_hold().await;
    }

    pub(super) async fn s43_a_request_that_asks_for_an_identity_is_recorded_and_costs_no_token(world: World) {
        let hub = world.hub().await;
        let secret = world.secret(1).await;
        let mut other = raw::modest();
        let uri = format!(
            "spiffe://test.roadstead/tenant/{}/cluster/{}",
            tenant(2),
            world.edge()
        );
        let name = rcgen::SanType::URI(uri.as_str().try_into().unwrap());
        other.subject_alt_names.push(name);
        let refused = raw::enrol(&hub, &secret, raw::request(&other).0)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(world.refused("enrol").await, 1);
        let record = world.audit().await.remove(0);
        assert!(!record.detail.to_string().contains(&secret));
        let stranger = raw::enrol(&hub, "unknown", raw::request(&other).0)
            .await
            .unwrap_err();
        assert_eq!(stranger.code(), Code::InvalidArgument);
        assert_eq!(world.refused_of_nobody("enrol").await, 1);
        assert!(
            raw::enrol(&hub, &secret, raw::request(&raw::modest()).0)
                .await
                .is_ok()
        );
        world.chains_hold().await;
    }

    /// Every row of every table as text, binary in hexadecimal digits; lower case.
    async fn everything(world: &World) -> String {
        let database = world.database();
        let (tables, row) = if database.is_postgres() {
            let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
            (database.ask_all(tables).await, None)
        } else {
            let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
            (database.ask_all(tables).await, Some("quote"))
        };
        assert!(
            tables.iter().any(|table| table.contains("certificate")),
            "{tables:?}"
        );
        let mut all = Vec::new();
        for table in tables {
            let asked = match row {
                None => format!("SELECT t::text FROM \"{table}\" t"),
                Some(_) => {
                    let columns =
                        format!("SELECT 'quote(\"' || name || '\")' FROM pragma_table_info('{table}')");
                    let columns = database.ask_all(&columns).await.join(" || ' ' || ");
                    format!("SELECT {columns} FROM \"{table}\"")
                }
            };
            all.extend(database.ask_all(&asked).await);
        }
        all.join("\n").to_lowercase()
    }

    pub(super) async fn s46_the_database_keeps_nothing_of_a_clusters_key(world: World) {
        let hub = world.hub().await;
        let agent = world.joined(&hub).await;
        let identity = std::fs::read_to_string(agent.folder().join("identity.json")).unwrap();
        let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
        let pem = identity["key"].as_str().unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let key = rcgen::KeyPair::from_pem(pem).unwrap().serialize_der();
        // The secret number of a P-256 key in PKCS#8, whose first 36 bytes are the same in each (RFC 5958, RFC 5915).
        let hex: String = key[36..68].iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = everything(&world).await;
        let detail = clusters::get(world.owner(), world.store(), world.edge())
            .await
            .unwrap();
        assert!(
            kept.contains(&detail.certificates[0].serial.to_lowercase()),
            "it sees what is there"
        );
        for part in [&hex[..24], &hex[40..], &base64[52..76].to_lowercase()] {
            assert!(!kept.contains(part));
        }
        for word in ["private key", "kubeconfig", "serviceaccount"] {
            assert!(!kept.contains(word), "{word}");
        }
        agent.stop().await.unwrap();
    }

    pub(super) async fn s49_a_renewed_certificate_is_kept_before_it_is_handed_out(world: World) {
        let hub = world.hub().await;
        let mut credentials = raw::credentials(&hub, 1).await;
        let channel = raw::connect(&hub, &credentials).await.unwrap();
        let mut session = RawSession::open(channel, Body::Hello(raw::hello(0)))
            .await
            .unwrap();
        let (csr, key) = raw::request(&raw::modest());
        session.say(Body::Renew(RenewRequest { csr })).await;
        let renewed = loop {
            if let Some(hub_frame::Body::Renewed(renewed)) = session.next().await.unwrap() {
                break renewed;
            }
        };
        credentials.key = key;
        credentials.chain = renewed.certificate.unwrap().chain;
        let channel = raw::connect(&hub, &credentials).await.unwrap();
        let mut newer = RawSession::open(channel, Body::Hello(raw::hello(0)))
            .await
            .unwrap();
        assert!(matches!(
            newer.next().await,
            Ok(Some(hub_frame::Body::Welcome(_)))
        ));
        assert_eq!(session.end().await.code(), Code::Aborted);
        let detail = clusters::get(world.owner(), world.store(), world.edge())
            .await
            .unwrap();
        assert_eq!(detail.certificates.len(), 2);
        assert!(detail.certificates.iter().all(|kept| kept.revoked_ms.is_none()));
    }

    pub(super) async fn s49_a_revocation_closes_a_live_session_within_5_s(world: World) {
        let hub = world.hub().await;
        let agent = world.joined(&hub).await;
        let revoked =
            clusters::revoke_certificates(world.owner(), world.store(), world.edge(), None, None).await;
        assert_eq!(revoked.unwrap(), 1);
        let ended = tokio::time::timeout(Duration::from_secs(5), agent.ended()).await;
        let ended = ended.expect("within 5 s");
        assert!(matches!(ended, Err(LinkError::Revoked(_))), "{ended:?}");
    }

    pub(super) async fn s49_a_deleted_cluster_is_refused_when_it_comes_back(world: World) {
        let hub = world.hub().await;
        let agent = world.joined(&hub).await;
        let folder = agent.kill().await;
        clusters::delete(world.owner(), world.store(), world.edge(), None)
            .await
            .unwrap();
        let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
        assert!(matches!(agent.ended().await, Err(LinkError::Revoked(_))));
        let log = world.audit().await;
        let sessions = log.iter().filter(|record| {
            record.action == "fleet.identity.refused" && record.detail.to_string().contains("session: ")
        });
        assert_eq!(sessions.count(), 1);
    }
}

//! Commands on their way, and their results on the way back (protocol.md §3 rule 12).

use roadstead_contract::fleet::{
    Command, CommandAck, CommandCode, CommandResult, Hello, Mode, RESTART_ENGINE, cluster_frame::Body,
    hub_frame,
};
use roadstead_domain::{Clock as _, SystemClock};
use roadstead_fleet::store::What;
use roadstead_simulation::{
    agent::ClusterAgent,
    cluster, eventually,
    hub::Hub,
    raw::{self, Credentials, RawSession},
    tenant,
};
use std::time::Duration;

const MINUTE_MS: i64 = 60_000;

fn command(hub: &Hub, id: &str, lasts_ms: i64) {
    let expires_ms = SystemClock.now_ms() + lasts_ms;
    hub.store.command(cluster(1), id, "agent", expires_ms);
}

fn code(hub: &Hub, id: &str) -> Option<CommandCode> {
    hub.store.results(cluster(1)).get(id).copied().flatten()
}

async fn ended(hub: &Hub, id: &str) -> CommandCode {
    eventually(&format!("the result of {id}"), || async { code(hub, id) }).await
}

fn result(id: &str, code: CommandCode) -> roadstead_inbox::CommandResult {
    roadstead_inbox::CommandResult {
        id: id.to_owned(),
        code,
        detail: "so it was".to_owned(),
    }
}

/// A session that says what it can, over the credentials; the first frame is read.
async fn session(hub: &Hub, credentials: &Credentials, hello: Hello) -> RawSession {
    let channel = raw::connect(hub, credentials).await.expect("a connection");
    let mut session = RawSession::open(channel, Body::Hello(hello))
        .await
        .expect("a session");
    match session.next().await {
        Ok(Some(hub_frame::Body::Welcome(welcome))) => {
            assert!(
                (welcome.now_ms - SystemClock.now_ms()).abs() < MINUTE_MS,
                "the hub says its time"
            );
            session
        }
        other => panic!("expected a Welcome, found {other:?}"),
    }
}

fn able() -> Hello {
    Hello {
        capabilities: vec![RESTART_ENGINE.to_owned()],
        ..raw::hello(0)
    }
}

async fn told(session: &mut RawSession) -> Command {
    loop {
        match session.next().await {
            Ok(Some(hub_frame::Body::Command(command))) => return command,
            Ok(Some(_)) => {}
            other => panic!("expected a Command, found {other:?}"),
        }
    }
}

async fn say(session: &mut RawSession, id: &str, code: CommandCode) -> CommandAck {
    let result = CommandResult {
        id: id.to_owned(),
        code: code.into(),
        detail: String::new(),
    };
    session.say(Body::CommandResult(result)).await;
    loop {
        match session.next().await {
            Ok(Some(hub_frame::Body::CommandAck(ack))) => return ack,
            Ok(Some(_)) => {}
            other => panic!("expected an answer, found {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_a_live_session_and_its_result_is_kept_and_forgotten() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "join"));
    agent.connected().await;
    let mut taken = agent.inbox.watch_commands();
    taken.mark_unchanged();
    command(&hub, "one", MINUTE_MS);
    // The hint, not the look around of every two seconds.
    let soon = tokio::time::timeout(Duration::from_secs(10), taken.changed()).await;
    soon.expect("in time").expect("open");
    let begun = agent.inbox.begin_commands().await.unwrap();
    assert_eq!(begun.len(), 1);
    assert_eq!(code(&hub, "one"), None);
    agent
        .inbox
        .conclude_command(result("one", CommandCode::Succeeded))
        .await
        .unwrap();
    assert_eq!(ended(&hub, "one").await, CommandCode::Succeeded);
    eventually("the result is acknowledged", || async {
        let pending = agent.inbox.pending_results().await.unwrap();
        pending.is_empty().then_some(())
    })
    .await;
    assert_eq!(hub.audited(What::Forged), 0);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_outlives_both_sides_and_nothing_is_begun_twice() {
    let hub = Hub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token(1, "join"));
    agent.connected().await;
    for id in ["ended", "begun"] {
        command(&hub, id, MINUTE_MS);
    }
    let mut begun = Vec::new();
    while begun.len() < 2 {
        begun.extend(agent.inbox.begin_commands().await.unwrap());
        tokio::task::yield_now().await;
    }
    hub.store.set_away(true);
    agent
        .inbox
        .conclude_command(result("ended", CommandCode::Failed))
        .await
        .unwrap();
    // The cluster agent is killed in the middle of one, and before the hub has kept the result of the other.
    let folder = agent.kill().await;
    hub.store.set_away(false);
    let hub = hub.restart().await;
    let agent = ClusterAgent::again(folder, &hub.address.to_string()).await;
    assert_eq!(ended(&hub, "ended").await, CommandCode::Failed);
    assert_eq!(ended(&hub, "begun").await, CommandCode::Unknown);
    assert_eq!(agent.inbox.begin_commands().await.unwrap(), []);
    assert_eq!(hub.audited(What::Forged), 0);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_sent_in_every_session_until_it_has_its_result() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let mut first = session(&hub, &credentials, able()).await;
    command(&hub, "one", MINUTE_MS);
    assert_eq!(told(&mut first).await.id, "one");
    let mut second = session(&hub, &credentials, able()).await;
    assert_eq!(told(&mut second).await.id, "one");
    for _ in 0..2 {
        let ack = say(&mut second, "one", CommandCode::Succeeded).await;
        assert_eq!((ack.kept, ack.refused), (vec!["one".to_owned()], vec![]));
    }
    // One that comes later is the next one that is sent.
    let mut third = session(&hub, &credentials, able()).await;
    command(&hub, "two", MINUTE_MS);
    assert_eq!(told(&mut third).await.id, "two");
    assert_eq!(say(&mut third, "two", CommandCode::Failed).await.kept, ["two"]);
    assert_eq!(hub.audited(What::Forged), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_results_that_are_not_this_clusters_are_refused_and_audited() {
    let hub = Hub::start().await;
    hub.store.add_cluster(tenant(1), cluster(2));
    hub.store
        .command(cluster(2), "foreign", "agent", SystemClock.now_ms() + MINUTE_MS);
    command(&hub, "over", -1);
    let credentials = raw::credentials(&hub, 1).await;
    let mut session = session(&hub, &credentials, able()).await;
    for (n, id) in ["foreign", "nobody", "over"].into_iter().enumerate() {
        let ack = say(&mut session, id, CommandCode::Succeeded).await;
        assert!(ack.kept.is_empty());
        assert_eq!(ack.refused.len(), 1, "{id}");
        // An id that was never sent, of this cluster: known from before a restoration of the database.
        let forged = if id == "over" { n } else { n + 1 };
        eventually("it is in the audit log", || async {
            (hub.audited(What::Forged) == forged).then_some(())
        })
        .await;
    }
    assert_eq!(hub.store.results(cluster(2))["foreign"], None);
    assert_eq!(code(&hub, "over"), Some(CommandCode::Expired));
    assert_eq!(hub.audited(What::Forged), 2);
    let long = CommandResult {
        id: "x".repeat(100),
        ..CommandResult::default()
    };
    session.say(Body::CommandResult(long)).await;
    assert_eq!(session.end().await.code(), tonic::Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_hello_with_malformed_capabilities_is_refused() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    for capabilities in [
        vec!["x".to_owned(); 65],
        vec!["x".repeat(65)],
        vec![String::new()],
        vec!["two words".to_owned()],
    ] {
        let channel = raw::connect(&hub, &credentials).await.expect("a connection");
        let hello = Hello {
            capabilities,
            ..raw::hello(0)
        };
        let mut session = RawSession::open(channel, Body::Hello(hello))
            .await
            .expect("a stream");
        assert_eq!(session.end().await.code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_held_or_cannot_gets_no_command() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    command(&hub, "one", MINUTE_MS);
    // Ahead of this hub, which may be of an older time: what waits here may be done there.
    let ahead = Hello { cursor: 7, ..able() };
    let channel = raw::connect(&hub, &credentials).await.expect("a connection");
    let mut held = RawSession::open(channel, Body::Hello(ahead))
        .await
        .expect("a session");
    let Ok(Some(hub_frame::Body::Welcome(welcome))) = held.next().await else {
        panic!("expected a Welcome")
    };
    assert_eq!(welcome.mode(), Mode::Hold);
    let ack_of_nothing = tokio::time::timeout(Duration::from_millis(500), told(&mut held)).await;
    assert!(ack_of_nothing.is_err(), "{ack_of_nothing:?}");
    // An older cluster agent: its hub says at once that it cannot be.
    hub.store.accept_timeline(cluster(1));
    let mut old = session(&hub, &credentials, raw::hello(0)).await;
    assert_eq!(ended(&hub, "one").await, CommandCode::Refused);
    command(&hub, "two", MINUTE_MS);
    assert_eq!(ended(&hub, "two").await, CommandCode::Refused);
    assert_eq!(
        say(&mut old, "two", CommandCode::Succeeded).await.refused.len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_reading_of_commands_that_is_never_answered() {
    let hub = Hub::start().await;
    let credentials = raw::credentials(&hub, 1).await;
    let mut first = session(&hub, &credentials, able()).await;
    hub.store.hang_commands(1);
    command(&hub, "one", MINUTE_MS);
    assert_eq!(told(&mut first).await.id, "one");
    // One that waits hears of its end.
    hub.store.hang_commands(1);
    command(&hub, "two", MINUTE_MS);
    let mut second = session(&hub, &credentials, able()).await;
    assert_eq!(first.end().await.code(), tonic::Code::Aborted);
    assert_eq!(told(&mut second).await.id, "one");
}

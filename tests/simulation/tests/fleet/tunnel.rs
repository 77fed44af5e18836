//! Calls from the hub to agents.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use roadstead_fleet::{RequestBody, TunnelError, TunnelKind, TunnelRequest, TunnelResponse};
use roadstead_link::{TunnelBody, TunnelCall, TunnelFailure, TunnelHandler, TunnelReply};
use roadstead_simulation::{agent::ClusterAgent, cluster, eventually, hub::Hub};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Answers by the path of the call; counts the calls that are running.
#[derive(Default)]
struct Agents {
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl TunnelHandler for Agents {
    async fn call(&self, call: TunnelCall, body: TunnelBody) -> Result<TunnelReply, TunnelFailure> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(self.running.clone());
        let headers = BTreeMap::from([("x-agent".to_owned(), call.agent_uid.clone().into_bytes())]);
        let reply = |body| {
            Ok(TunnelReply {
                status: 207,
                headers,
                body,
            })
        };
        match call.path.as_str() {
            "/echo" => reply(
                body.map(move |chunk| {
                    let _ = &running;
                    chunk
                })
                .boxed(),
            ),
            "/endless" => reply(
                stream::unfold(running, |running| async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Some((Ok(Bytes::from_static(b"tick")), running))
                })
                .boxed(),
            ),
            "/silent" => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Err(TunnelFailure::Broken("slept".to_owned()))
            }
            "/break" => reply(
                stream::iter([
                    Ok(Bytes::from_static(b"half")),
                    Err(TunnelFailure::Broken("engine ended".to_owned())),
                ])
                .boxed(),
            ),
            _ => Err(TunnelFailure::NotFound(call.agent_uid)),
        }
    }
}

struct Bench {
    hub: Hub,
    agent: ClusterAgent,
    running: Arc<AtomicUsize>,
}

async fn bench() -> Bench {
    let hub = Hub::start().await;
    let agents = Arc::new(Agents::default());
    let running = agents.running.clone();
    let agent = ClusterAgent::with(&hub.address.to_string(), &hub.token(1, "join"), agents);
    agent.connected().await;
    Bench { hub, agent, running }
}

fn request(path: &str) -> TunnelRequest {
    TunnelRequest {
        kind: TunnelKind::A2a,
        agent_uid: "agt_1".to_owned(),
        method: "POST".to_owned(),
        path: path.to_owned(),
        headers: vec![("content-type".to_owned(), b"text/plain".to_vec())],
    }
}

impl Bench {
    async fn call(
        &self,
        path: &str,
        body: RequestBody,
        deadline: Duration,
    ) -> Result<TunnelResponse, TunnelError> {
        self.hub
            .fleet
            .tunnels()
            .call(cluster(1), request(path), body, deadline)
            .await
    }

    async fn quiet(&self) {
        eventually("no call runs", || async {
            (self.running.load(Ordering::SeqCst) == 0).then_some(())
        })
        .await;
    }
}

fn once(bytes: Vec<u8>) -> RequestBody {
    stream::iter([Bytes::from(bytes)]).boxed()
}

async fn read(mut response: TunnelResponse) -> Result<Vec<u8>, TunnelError> {
    let mut all = Vec::new();
    while let Some(chunk) = response.body.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_there_and_back() {
    let bench = bench().await;
    let response = bench.call("/echo", once(b"hello".to_vec()), SOON).await.unwrap();
    assert_eq!(response.status, 207);
    assert_eq!(response.headers, [("x-agent".to_owned(), b"agt_1".to_vec())]);
    assert_eq!(read(response).await.unwrap(), b"hello");
    let missing = bench.call("/nowhere", once(Vec::new()), SOON).await;
    assert_eq!(missing.unwrap_err(), TunnelError::NotFound("agt_1".to_owned()));
    bench.quiet().await;
    bench.agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_flow_both_ways_and_calls_do_not_wait_for_each_other() {
    let bench = bench().await;
    let sent: Vec<u8> = (0..4_000_000u32).map(|n| n as u8).collect();
    // An answer that nobody reads holds up its own stream only.
    let stalled = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    let calls = (0..20).map(|_| async {
        let response = bench.call("/echo", once(sent.clone()), SOON).await.unwrap();
        assert!(read(response).await.unwrap() == sent);
    });
    join_all(calls).await;
    drop(stalled);
    bench.quiet().await;
    bench.agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_the_parked_streams_is_served() {
    let bench = bench().await;
    let calls = (0..100).map(|n| {
        let bench = &bench;
        async move {
            let response = bench.call("/echo", once(vec![n]), SOON).await.unwrap();
            assert_eq!(read(response).await.unwrap(), [n]);
        }
    });
    join_all(calls).await;
    bench.agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_answer_cancels_the_call_in_the_cluster() {
    let bench = bench().await;
    let mut response = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    assert!(response.body.next().await.unwrap().is_ok());
    assert_eq!(bench.running.load(Ordering::SeqCst), 1);
    drop(response);
    bench.quiet().await;
    // Also while the handler has not answered yet, and while the request's body is still being sent.
    let endless: RequestBody = stream::repeat(Bytes::from_static(&[0; 1_024])).boxed();
    let silent = tokio::time::timeout(Duration::from_millis(200), bench.call("/silent", endless, SOON)).await;
    assert!(silent.is_err());
    bench.quiet().await;
    bench.agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_call_on_both_sides() {
    let bench = bench().await;
    let short = Duration::from_millis(200);
    let silent = bench.call("/silent", once(Vec::new()), short).await;
    assert_eq!(silent.unwrap_err(), TunnelError::Deadline);
    let endless = bench.call("/endless", once(Vec::new()), short).await.unwrap();
    assert_eq!(read(endless).await.unwrap_err(), TunnelError::Deadline);
    bench.quiet().await;
    bench.agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    let bench = bench().await;
    let response = bench.call("/break", once(Vec::new()), SOON).await.unwrap();
    assert_eq!(
        read(response).await.unwrap_err(),
        TunnelError::Broken("engine ended".to_owned())
    );
    let response = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    let reading = tokio::spawn(read(response));
    drop(bench.agent.kill().await);
    assert!(matches!(reading.await.unwrap(), Err(TunnelError::Broken(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_revocation_ends_the_calls_that_run_within_five_seconds() {
    let bench = bench().await;
    let mut response = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    assert!(response.body.next().await.unwrap().is_ok());
    let tunnels = bench.hub.fleet.tunnels();
    let silent = tokio::spawn(async move {
        let silent = request("/silent");
        tunnels.call(cluster(1), silent, once(Vec::new()), SOON).await
    });
    eventually("both calls run", || async {
        (bench.running.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    bench.hub.store.revoke(cluster(1));
    let told = tokio::time::timeout(Duration::from_secs(5), read(response)).await;
    assert_eq!(told.unwrap().unwrap_err(), TunnelError::Revoked);
    assert_eq!(silent.await.unwrap().unwrap_err(), TunnelError::Revoked);
    // The engine's side is cancelled as by a client who leaves.
    bench.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_what_a_revoked_cluster_still_sends_is_not_passed_on_and_its_call_is_cut() {
    let bench = bench().await;
    let held = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    bench.hub.store.revoke(cluster(1));
    bench.hub.fleet.look_at(cluster(1)).await;
    // Chunks wait, and nobody has read yet.
    assert_eq!(read(held).await.unwrap_err(), TunnelError::Revoked);
    bench.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s49_a_call_whose_answer_nobody_reads_ends_with_the_revocation() {
    let bench = bench().await;
    let held = bench.call("/endless", once(Vec::new()), SOON).await.unwrap();
    eventually("the call runs", || async {
        (bench.running.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    assert!(!held.revoked.is_cancelled());
    bench.hub.store.revoke(cluster(1));
    bench.hub.fleet.look_at(cluster(1)).await;
    // Held, and never read.
    bench.quiet().await;
    assert!(held.revoked.is_cancelled());
    assert_eq!(read(held).await.unwrap_err(), TunnelError::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_is_said_to_be_so_at_once() {
    let bench = bench().await;
    let never = bench
        .hub
        .fleet
        .tunnels()
        .call(cluster(2), request("/echo"), once(Vec::new()), SOON)
        .await;
    assert_eq!(never.unwrap_err(), TunnelError::Away { since_ms: None });
    drop(bench.agent.kill().await);
    let tunnels = bench.hub.fleet.tunnels();
    eventually("away", || async {
        let called = tunnels
            .call(cluster(1), request("/echo"), once(Vec::new()), SOON)
            .await;
        matches!(called, Err(TunnelError::Away { since_ms: Some(_) })).then_some(())
    })
    .await;
}

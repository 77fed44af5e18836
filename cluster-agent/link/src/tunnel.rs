//! Calls from the hub to agents. A few streams wait parked at the hub; each carries one call, and the next is parked
//! as soon as one is taken. HTTP/2 gives each call its flow control; the end of a stream, either way, cancels it.

use crate::{
    Random,
    channel::{Connection, Route},
    clock::between,
    enrol::describe,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use roadstead_contract::fleet::{
    Call, CallEnd, CallFailure, CallHead, CallKind, FailureCode, Header, MAX_FRAME, Park, TUNNEL_CHUNK,
    TunnelDown, TunnelUp, tunnel_client::TunnelClient, tunnel_down, tunnel_up,
};
use rustls::ClientConfig;
use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

/// Between attempts to reach the hub with the tunnel, while a session lives; the second is doubled with each that fails, up
/// to the longest: after a restart the hub has as many tunnels to admit as sessions, and these come first.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// For a call whose caller names no deadline.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// For the hub to close its side after the last chunk.
const LINGER: Duration = Duration::from_secs(5);

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// The engine's A2A interface.
    A2a,
    /// The engine's log.
    Logs,
}

/// The head of a call. The caller was authenticated and authorised by the hub; the engine checks the token again.
#[derive(Clone, PartialEq, Eq)]
pub struct TunnelCall {
    pub kind: TunnelKind,
    pub agent_uid: String,
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    /// How long the caller waits, from now.
    pub deadline: Duration,
}

impl fmt::Debug for TunnelCall {
    /// Without header values and path: they may hold a token or content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelCall")
            .field("kind", &self.kind)
            .field("agent_uid", &self.agent_uid)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Why a call failed; the hub tells its caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelFailure {
    #[error("no such agent runs here: {0}")]
    NotFound(String),
    #[error("the agent cannot be reached: {0}")]
    Unavailable(String),
    #[error("the deadline has passed")]
    Deadline,
    #[error("the stream broke: {0}")]
    Broken(String),
}

/// A body in either direction. Dropping it cancels what is behind it.
pub type TunnelStream = BoxStream<'static, Result<Bytes, TunnelFailure>>;

/// The body of a request, as it arrives.
#[derive(Debug)]
pub struct TunnelBody(mpsc::Receiver<Bytes>);

impl Stream for TunnelBody {
    type Item = Result<Bytes, TunnelFailure>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(Ok))
    }
}

/// The answer: an HTTP head and a body.
pub struct TunnelReply {
    pub status: u16,
    pub headers: BTreeMap<String, Vec<u8>>,
    pub body: TunnelStream,
}

impl fmt::Debug for TunnelReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelReply")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Answers calls. Given by the composition root.
#[async_trait]
pub trait TunnelHandler: Send + Sync + 'static {
    /// Answers one call. Dropped when the caller goes away or the deadline passes.
    ///
    /// # Errors
    /// The engine cannot be asked; an answer of the engine, whatever its status, is no error.
    async fn call(&self, call: TunnelCall, body: TunnelBody) -> Result<TunnelReply, TunnelFailure>;
}

/// Answers every call with "not found": for a cluster agent without engines, and for tests.
#[derive(Clone, Copy, Debug)]
pub struct NoTunnel;

#[async_trait]
impl TunnelHandler for NoTunnel {
    async fn call(&self, call: TunnelCall, _: TunnelBody) -> Result<TunnelReply, TunnelFailure> {
        Err(TunnelFailure::NotFound(call.agent_uid))
    }
}

/// With which identity to park how many streams.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) streams: usize,
}

/// What a stream tells the pool.
enum Event {
    /// It carries a call now: park the next.
    Taken,
    /// It ended before a call came; the connection is of this generation.
    Unparked(u64),
}

/// Keeps streams parked for as long as there is a target; calls that run go on without one.
pub(crate) async fn serve(
    route: Route,
    mut target: watch::Receiver<Option<Target>>,
    handler: Arc<dyn TunnelHandler>,
    random: Arc<dyn Random>,
    calls: usize,
) {
    let (mut workers, mut most) = (JoinSet::new(), RETRY.1);
    for generation in 0.. {
        let Ok(Some(current)) = target
            .wait_for(Option::is_some)
            .await
            .map(|target| target.clone())
        else {
            return;
        };
        match route.connect(current.tls.clone()).await {
            Ok(Connection { channel, .. }) => {
                most = RETRY.1;
                let retire = CancellationToken::new();
                let parking = Parking {
                    channel,
                    handler: handler.clone(),
                    retire: retire.clone(),
                    generation,
                };
                park_until_broken(&parking, &current, &mut target, &mut workers, calls).await;
                retire.cancel();
            }
            Err(error) => {
                tracing::debug!(error = describe(&error), "the tunnel cannot be opened yet");
                most = (most * 2).min(LONGEST_RETRY);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(between(&*random, RETRY.0, most)) => {}
            // A session was admitted: the hub is there again.
            () = replaced(&mut target, &current) => most = RETRY.1,
        }
    }
}

/// Waits for another identity than the one of `current`, or the end of the link.
async fn replaced(target: &mut watch::Receiver<Option<Target>>, current: &Target) {
    let another = |now: &Option<Target>| now.as_ref().is_some_and(|now| !same(now, current));
    // Closed: whoever waits for a target sees it.
    let _ = target.wait_for(another).await;
}

fn same(one: &Target, other: &Target) -> bool {
    Arc::ptr_eq(&one.tls, &other.tls)
}

/// Ends when a parked stream breaks, or when another identity is to be used.
async fn park_until_broken(
    parking: &Parking,
    current: &Target,
    target: &mut watch::Receiver<Option<Target>>,
    workers: &mut JoinSet<()>,
    calls: usize,
) {
    let (events, mut heard) = mpsc::channel(current.streams.max(1));
    let mut parked = 0;
    loop {
        while parked < current.streams && workers.len() < calls.max(current.streams) {
            workers.spawn(parking.clone().park(events.clone()));
            parked += 1;
        }
        tokio::select! {
            biased;
            changed = target.changed() => {
                // Without a session the streams stay: the hub may still hold them.
                if changed.is_err() || target.borrow().as_ref().is_some_and(|now| !same(now, current)) {
                    return;
                }
            }
            event = heard.recv() => match event {
                Some(Event::Taken) => parked -= 1,
                Some(Event::Unparked(generation)) if generation == parking.generation => return,
                _ => {}
            },
            _ = workers.join_next(), if !workers.is_empty() => {}
        }
    }
}

#[derive(Clone)]
struct Parking {
    channel: Channel,
    handler: Arc<dyn TunnelHandler>,
    retire: CancellationToken,
    generation: u64,
}

impl Parking {
    async fn park(self, events: mpsc::Sender<Event>) {
        // One message ahead: the connection's flow control is the limit, not a queue of ours.
        let (up, outgoing) = mpsc::channel(1);
        let waited = tokio::select! {
            biased;
            () = self.retire.cancelled() => return,
            waited = wait_for_call(self.channel, up.clone(), outgoing) => waited,
        };
        let Some((call, down)) = waited else {
            // The pool may be gone.
            let _ = events.send(Event::Unparked(self.generation)).await;
            return;
        };
        let _ = events.send(Event::Taken).await;
        answer(&*self.handler, call, down, up).await;
    }
}

async fn wait_for_call(
    channel: Channel,
    up: mpsc::Sender<TunnelUp>,
    outgoing: mpsc::Receiver<TunnelUp>,
) -> Option<(Call, Streaming<TunnelDown>)> {
    up.send(message(tunnel_up::Body::Park(Park {}))).await.ok()?;
    let mut client = TunnelClient::new(channel).max_decoding_message_size(2 * MAX_FRAME);
    let opened = client.open(ReceiverStream::new(outgoing)).await;
    let mut down = opened.ok()?.into_inner();
    match down.message().await {
        Ok(Some(TunnelDown {
            body: Some(tunnel_down::Body::Call(call)),
        })) => Some((call, down)),
        _ => None,
    }
}

async fn answer(
    handler: &dyn TunnelHandler,
    call: Call,
    mut down: Streaming<TunnelDown>,
    up: mpsc::Sender<TunnelUp>,
) {
    let deadline = match call.deadline_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(ms).min(PATIENCE * 24),
    };
    let (chunks, body) = mpsc::channel(1);
    let ended = tokio::select! {
        biased;
        ended = timeout(deadline, respond(handler, call, deadline, TunnelBody(body), &up)) => ended,
        // Either way the hub's caller is gone: dropping the response is all there is to do.
        () = receive(&mut down, chunks) => return,
        () = up.closed() => return,
    };
    let last = match ended {
        Ok(Ok(())) => tunnel_up::Body::End(CallEnd {}),
        Ok(Err(failure)) => tunnel_up::Body::Failure(wire(&failure)),
        Err(_) => tunnel_up::Body::Failure(wire(&TunnelFailure::Deadline)),
    };
    // The hub may have gone away in the meantime; then nobody waits for this.
    let _ = timeout(LINGER, up.send(message(last))).await;
    drop(up);
    // The hub ends its side once it has the last message; leaving earlier would reset the stream under it.
    let _ = timeout(LINGER, async { while let Ok(Some(_)) = down.message().await {} }).await;
}

/// Hands the request's body on; ends only when the hub breaks off.
async fn receive(down: &mut Streaming<TunnelDown>, chunks: mpsc::Sender<Bytes>) {
    let mut chunks = Some(chunks);
    while let Ok(Some(frame)) = down.message().await {
        match frame.body {
            Some(tunnel_down::Body::Chunk(chunk)) => {
                if let Some(open) = &chunks
                    && open.send(chunk).await.is_err()
                {
                    // The handler wants no more of it; the rest is read and dropped.
                    chunks = None;
                }
            }
            Some(tunnel_down::Body::End(_)) => chunks = None,
            _ => return,
        }
    }
}

async fn respond(
    handler: &dyn TunnelHandler,
    call: Call,
    deadline: Duration,
    body: TunnelBody,
    up: &mpsc::Sender<TunnelUp>,
) -> Result<(), TunnelFailure> {
    let kind = match call.kind() {
        CallKind::A2a => TunnelKind::A2a,
        CallKind::Logs => TunnelKind::Logs,
        CallKind::Unspecified => {
            return Err(TunnelFailure::Unavailable(
                "this version knows no such call".to_owned(),
            ));
        }
    };
    let call = TunnelCall {
        kind,
        agent_uid: call.agent_uid,
        method: call.method,
        path: call.path,
        headers: call
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        deadline,
    };
    let mut reply = handler.call(call, body).await?;
    let headers = reply
        .headers
        .into_iter()
        .map(|(name, value)| Header { name, value })
        .collect();
    let head = CallHead {
        status: u32::from(reply.status),
        headers,
    };
    send(up, tunnel_up::Body::Head(head)).await?;
    while let Some(chunk) = reply.body.next().await {
        let mut chunk = chunk?;
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(TUNNEL_CHUNK));
            send(up, tunnel_up::Body::Chunk(part)).await?;
        }
    }
    Ok(())
}

async fn send(up: &mpsc::Sender<TunnelUp>, body: tunnel_up::Body) -> Result<(), TunnelFailure> {
    let gone = |_| TunnelFailure::Broken("the hub is gone".to_owned());
    up.send(message(body)).await.map_err(gone)
}

fn message(body: tunnel_up::Body) -> TunnelUp {
    TunnelUp { body: Some(body) }
}

fn wire(failure: &TunnelFailure) -> CallFailure {
    let (code, detail) = match failure {
        TunnelFailure::NotFound(detail) => (FailureCode::FailureNotFound, detail.clone()),
        TunnelFailure::Unavailable(detail) => (FailureCode::FailureUnavailable, detail.clone()),
        TunnelFailure::Deadline => (FailureCode::FailureDeadline, String::new()),
        TunnelFailure::Broken(detail) => (FailureCode::FailureBroken, detail.clone()),
    };
    CallFailure {
        code: code.into(),
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dial, OsRandom, SystemClock, channel::Io};
    use roadstead_contract::fleet::{CaPin, document_digest};
    use std::io;
    use tokio::{sync::Semaphore, time::Instant};

    /// Counts attempts; none succeeds.
    #[derive(Debug)]
    struct Refusing(Semaphore);

    #[async_trait]
    impl Dial for Refusing {
        async fn dial(&self, _: &str) -> io::Result<Box<dyn Io>> {
            self.0.add_permits(1);
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    fn target() -> Option<Target> {
        let pin = CaPin(document_digest(b"a root"));
        Some(Target {
            tls: crate::tls::pinned(pin, Arc::new(SystemClock)).unwrap(),
            streams: 1,
        })
    }

    /// The time is simulated: it goes on when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn a_new_session_does_not_wait_for_its_tunnel_as_long_as_the_one_before() {
        let dial = Arc::new(Refusing(Semaphore::new(0)));
        let route = Route {
            dial: dial.clone(),
            address: "hub.test:443".to_owned(),
        };
        let (targets, watched) = watch::channel(target());
        let random = Arc::new(OsRandom);
        let pool = tokio::spawn(serve(route, watched, Arc::new(NoTunnel), random, 1));
        let attempt = async || dial.0.acquire().await.unwrap().forget();
        for _ in 0..8 {
            attempt().await;
        }
        // It waits for up to 30 s now.
        let began = Instant::now();
        targets.send_replace(None);
        targets.send_replace(target());
        attempt().await;
        assert!(began.elapsed() < RETRY.0, "at once");
        attempt().await;
        assert!(began.elapsed() <= 2 * RETRY.1 + RETRY.0, "and soon again");
        pool.abort();
    }
}

//! One session: from Hello to its end.
//!
//! A single task does everything in turn, so that acknowledgements, statuses and batches never race each other. While
//! a large document is fetched no further frame of the hub is read (HTTP/2 holds it back), but heartbeats go on.

mod commands;
mod handle;
mod timers;
mod trust;

use crate::{
    Clock, Identity, Random,
    channel::{Connection, Presented, Route},
    convert::Parsed,
    identity::Request,
    reports::Shared,
    runs::Window,
    tunnel::Target,
};
use commands::HubClock;
use parking_lot::Mutex;
use roadstead_contract::fleet::{
    self, Hello, HubFrame, Limits, MAX_FRAME, Mode, PROTOCOL_MAX, PROTOCOL_MIN, Welcome, cluster_frame,
    hub_frame, sync_client::SyncClient,
};
use roadstead_inbox::{Inbox, InboxError, Position};
use rustls::ClientConfig;
use std::{path::PathBuf, sync::Arc, time::Duration};
use timers::Timers;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, Status, Streaming, transport::Channel};

/// From the first frame to the Welcome.
const WELCOME_WITHIN: Duration = Duration::from_secs(15);
/// A frame that cannot be handed to the connection for so long ends the session, without loss.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// Frames between this task and the connection.
const OUTGOING: usize = 16;

/// What every session of this process shares.
pub(crate) struct Context {
    pub(crate) route: Route,
    pub(crate) inbox: Inbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) version: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) instance: String,
    pub(crate) folder: PathBuf,
    pub(crate) tunnels: watch::Sender<Option<Target>>,
    /// For which generation of the hub's roots how many connections were made, so that the hub proves itself by them.
    pub(crate) proofs: Mutex<(u64, u32)>,
}

/// Who this side is during a session, and the connection that proves it.
pub(crate) struct Line {
    pub(crate) identity: Identity,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) channel: Channel,
    /// What the hub proved itself with.
    pub(crate) hub: Presented,
    /// The identity is new: keep it once the hub has welcomed it.
    pub(crate) fresh: bool,
}

/// Why a session ended.
pub(crate) enum End {
    Shutdown,
    Lost(String),
    Refused(String),
    Throttled(Duration),
    Drained(Duration),
    Revoked(String),
    /// The hub has welcomed a renewed identity on a connection of its own: go on there.
    Handover(Box<Opened>),
    Inbox(InboxError),
    /// One side does not believe the other's certificate.
    Distrusted(String),
}

/// A session that the hub has welcomed.
pub(crate) struct Opened {
    line: Line,
    frames: mpsc::Sender<fleet::ClusterFrame>,
    inbound: Streaming<HubFrame>,
    welcome: Welcome,
    /// The inbox's cursor that the Hello named.
    cursor: u64,
}

/// How a session went.
pub(crate) struct Report {
    pub(crate) end: End,
    /// How long it lived after the Welcome; `None` without one.
    pub(crate) lived: Option<Duration>,
    /// The reconnect window that the hub named.
    pub(crate) window: Option<Duration>,
    /// The identity as it is now: the hub may have changed the trust bundle.
    pub(crate) identity: Identity,
}

pub(crate) async fn run(context: &Arc<Context>, opened: Opened, stop: &CancellationToken) -> Report {
    let began = Instant::now();
    let welcome = opened.welcome.clone();
    let mut session = Session::new(context, opened);
    let end = match session.live(&welcome, stop).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    context.tunnels.send_replace(None);
    Report {
        end,
        lived: Some(began.elapsed()),
        window: Some(session.window),
        identity: session.line.identity,
    }
}

struct Session<'a> {
    context: &'a Arc<Context>,
    line: Line,
    frames: mpsc::Sender<fleet::ClusterFrame>,
    inbound: Streaming<HubFrame>,
    limits: Limits,
    timers: Timers,
    runs: Window,
    /// When results of commands are said again; `None` while the hub has them all.
    results_again: Option<Instant>,
    hub_clock: HubClock,
    /// Version of the reports that were sent.
    told: u64,
    heartbeats: u64,
    /// The last gap that was reported, so that each costs one Resume.
    resumed_at: Option<u64>,
    /// Once the cursor is here, the state root is compared: the session has caught up.
    compare_at: Option<u64>,
    /// A snapshot was promised and has not ended: the inbox may hold what the hub has forgotten.
    snapshot_due: bool,
    /// A batch whose large documents are being fetched.
    fetching: Option<Task<Parsed>>,
    renewal: Renewal,
    /// How widely the fleet's return is to be spread, as the hub said last.
    window: Duration,
    /// Idle tunnel streams that the hub wants.
    streams: usize,
}

enum Renewal {
    Idle,
    /// A request is with the hub.
    Asked(Box<Request>),
    /// The new identity tries its connection.
    Trying(Box<Identity>, Task<(Arc<ClientConfig>, Connection)>),
    /// It connects; its Hello waits until nothing of this session is half done.
    Connected(Box<Line>),
    /// It has said Hello. No frame of this session is read meanwhile: the inbox stays where the Hello said it is.
    Greeting(AbortOnDropHandle<Result<Opened, End>>),
}

/// What a renewal under way has come to.
enum Step {
    Tried(Result<(Arc<ClientConfig>, Connection), String>),
    Opened(Result<Box<Opened>, End>),
}

enum Never {}

/// Says Hello and waits for the Welcome.
pub(crate) async fn open(context: &Context, line: Line) -> Result<Opened, End> {
    let position = context.inbox.position().await.map_err(End::Inbox)?;
    let (frames, outgoing) = mpsc::channel(OUTGOING);
    let hello = hello(context, &position);
    frames
        .send(frame(cluster_frame::Body::Hello(hello)))
        .await
        .map_err(|_| lost("the stream closed"))?;
    let mut client = SyncClient::new(line.channel.clone()).max_decoding_message_size(2 * MAX_FRAME);
    let welcomed = async {
        let mut inbound = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = inbound.message().await?;
        Ok::<_, Status>((inbound, first))
    };
    let (inbound, first) = timeout(WELCOME_WITHIN, welcomed)
        .await
        .map_err(|_| lost("no welcome in time"))?
        .map_err(|status| match crate::enrol::advice(&status) {
            Some(advice) => End::Distrusted(format!("{}: {advice}", status.message())),
            None => refused(&status),
        })?;
    let welcome = match first.and_then(|frame| frame.body) {
        Some(hub_frame::Body::Welcome(welcome)) => welcome,
        Some(hub_frame::Body::Throttle(throttle)) => return Err(End::Throttled(ms(throttle.retry_after_ms))),
        Some(hub_frame::Body::Revoked(revoked)) => return Err(End::Revoked(revoked.reason)),
        Some(hub_frame::Body::Drain(drain)) => return Err(End::Drained(ms(drain.within_ms))),
        _ => return Err(End::Refused("expected a Welcome as the first frame".to_owned())),
    };
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
        return Err(End::Refused(format!(
            "expected protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, found {}",
            welcome.protocol
        )));
    }
    Ok(Opened {
        line,
        frames,
        inbound,
        welcome,
        cursor: position.cursor,
    })
}

fn hello(context: &Context, position: &Position) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        version: context.version.clone(),
        capabilities: context.capabilities.clone(),
        instance_id: context.instance.clone(),
        incarnation: position.incarnation.clone(),
        cursor: position.cursor,
        state_root: position.root.to_vec(),
        held: position.held.map(handle::held),
    }
}

impl<'a> Session<'a> {
    fn new(context: &'a Arc<Context>, opened: Opened) -> Self {
        let Opened {
            line,
            frames,
            inbound,
            welcome,
            cursor,
        } = opened;
        let now = Instant::now();
        let behind = welcome.mode() == Mode::Delta && cursor < welcome.target_revision;
        Self {
            context,
            frames,
            inbound,
            limits: welcome.limits.unwrap_or_default(),
            timers: Timers::new(now, ms(welcome.heartbeat_ms), &line.identity, context),
            line,
            runs: Window::new(now),
            results_again: None,
            hub_clock: HubClock::new(welcome.now_ms),
            told: 0,
            heartbeats: 0,
            resumed_at: None,
            compare_at: behind.then_some(welcome.target_revision),
            snapshot_due: welcome.mode() == Mode::Snapshot,
            fetching: None,
            renewal: Renewal::Idle,
            window: ms(welcome.reconnect_window_ms),
            streams: usize::try_from(welcome.tunnel_streams).unwrap_or(0).min(64),
        }
    }
}

impl Session<'_> {
    async fn live(&mut self, welcome: &Welcome, stop: &CancellationToken) -> Result<Never, End> {
        self.welcomed(welcome).await?;
        let shared = self.context.shared.clone();
        let mut appended = self.context.inbox.watch_runs();
        let mut concluded = self.context.inbox.watch_results();
        concluded.mark_unchanged();
        self.tell().await?;
        self.send_runs().await?;
        self.send_results().await?;
        loop {
            self.greet();
            let next = self.timers.next(&self.runs);
            let next = self.results_again.map_or(next, |again| next.min(again));
            let reading = self.fetching.is_none() && !matches!(self.renewal, Renewal::Greeting(_));
            // In this order: the end first, then what is half done, then what is new.
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let goodbye = fleet::Goodbye { reason: "shutdown".to_owned() };
                    self.send(cluster_frame::Body::Goodbye(goodbye)).await?;
                    return Err(End::Shutdown);
                }
                fetched = pending(&mut self.fetching) => {
                    self.fetching = None;
                    self.apply(fetched.map_err(End::Lost)?).await?;
                }
                step = self.renewal.step() => self.renewed(step)?,
                frame = self.inbound.message(), if reading => {
                    let frame = frame.map_err(|status| refused(&status))?;
                    let body = frame.ok_or_else(|| lost("the hub closed the stream"))?.body;
                    self.timers.heard();
                    self.handle(body).await?;
                }
                () = shared.wake.notified() => self.tell().await?,
                changed = appended.changed() => {
                    changed.map_err(|_| End::Inbox(InboxError::Ended))?;
                    self.send_runs().await?;
                }
                changed = concluded.changed() => {
                    changed.map_err(|_| End::Inbox(InboxError::Ended))?;
                    self.send_results().await?;
                }
                () = tokio::time::sleep_until(next) => self.tick().await?,
            }
        }
    }

    async fn welcomed(&mut self, welcome: &Welcome) -> Result<(), End> {
        let hold = welcome.mode() == Mode::Hold;
        tracing::info!(
            epoch = welcome.epoch,
            mode = welcome.mode().as_str_name(),
            target_revision = welcome.target_revision,
            "the hub welcomed this cluster agent"
        );
        if hold {
            tracing::warn!(
                reason = welcome.reason,
                "the hub holds this cluster: what runs goes on running"
            );
        }
        if self.line.fresh {
            self.keep_identity()?;
            self.line.fresh = false;
        }
        if let Some(trust) = &welcome.trust {
            self.trust(trust).await?;
        }
        if let Some(keys) = &welcome.keys {
            self.keys(keys);
        }
        let epoch = welcome.epoch;
        self.context.shared.state.send_replace(match hold {
            true => crate::LinkState::Held {
                epoch,
                reason: welcome.reason.clone(),
            },
            false => crate::LinkState::Connected { epoch },
        });
        self.park();
        Ok(())
    }

    /// The tunnel uses this session's identity.
    fn park(&self) {
        let target = Target {
            tls: self.line.tls.clone(),
            streams: self.streams,
        };
        self.context.tunnels.send_replace(Some(target));
    }

    async fn send(&mut self, body: cluster_frame::Body) -> Result<(), End> {
        match timeout(SEND_WITHIN, self.frames.send(frame(body))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(lost("the stream closed")),
            Err(_) => Err(lost("the hub takes no frame")),
        }
    }
}

impl Renewal {
    /// Ends when a new identity's connection is made, or its session welcomed, or when that cannot be.
    async fn step(&mut self) -> Step {
        match self {
            Self::Trying(_, attempt) => Step::Tried(done(attempt).await),
            Self::Greeting(opening) => {
                let opened = opening
                    .await
                    .unwrap_or_else(|error| Err(End::Lost(error.to_string())));
                Step::Opened(opened.map(Box::new))
            }
            _ => std::future::pending().await,
        }
    }
}

impl End {
    /// Why, for a log.
    fn reason(&self) -> String {
        match self {
            Self::Shutdown => "shutdown".to_owned(),
            Self::Lost(why) | Self::Refused(why) | Self::Distrusted(why) => why.clone(),
            Self::Revoked(why) => format!("revoked: {why}"),
            Self::Throttled(_) => "the hub is busy".to_owned(),
            Self::Drained(_) => "the hub replica drains".to_owned(),
            Self::Handover(_) => "handed over".to_owned(),
            Self::Inbox(error) => error.to_string(),
        }
    }
}

/// Something that goes on beside the session and ends with it.
type Task<T> = AbortOnDropHandle<Result<T, String>>;

fn beside<T: Send + 'static>(work: impl Future<Output = Result<T, String>> + Send + 'static) -> Task<T> {
    AbortOnDropHandle::new(tokio::spawn(work))
}

async fn done<T>(task: &mut Task<T>) -> Result<T, String> {
    task.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The task's output; never, without one.
async fn pending<T>(task: &mut Option<Task<T>>) -> Result<T, String> {
    match task {
        Some(task) => done(task).await,
        None => std::future::pending().await,
    }
}

/// What connects a new identity; see [`Renewal::Trying`].
fn attempt(
    route: Route,
    identity: &Identity,
    clock: Arc<dyn Clock>,
) -> Task<(Arc<ClientConfig>, Connection)> {
    let tls = crate::tls::mutual(identity, clock);
    beside(async move {
        let tls = tls.map_err(|error| error.to_string())?;
        let connection = route
            .connect(tls.clone())
            .await
            .map_err(|error| crate::enrol::describe(&error))?;
        Ok((tls, connection))
    })
}

fn frame(body: cluster_frame::Body) -> fleet::ClusterFrame {
    fleet::ClusterFrame { body: Some(body) }
}

fn lost(why: &str) -> End {
    End::Lost(why.to_owned())
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn refused(status: &Status) -> End {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            End::Refused(text)
        }
        _ => End::Lost(text),
    }
}

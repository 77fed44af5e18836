//! One tool server: its connection, opened at first need and kept, and the tools it listed.
//!
//! Opening runs in a task of its own, so that a caller who gives up does not undo the work of the others. A server
//! that does not open, or does not stay open, is tried again after a growing pause; meanwhile calls fail at once.

use super::{
    config::{Reach, ServerConfig},
    convert::{Described, chain, describe, never_arrived},
    http,
    stdio::Program,
};
use crate::model::HttpClients;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt as _, Peer, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, Implementation, PaginatedRequestParams, ProtocolVersion,
        SubscriptionFilter, Tool,
    },
    service::{ClientInitializeError, NotificationContext, RunningService},
    transport::IntoTransport,
};
use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// The pause after the first failure; doubled with each further one, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A connection that lasted so long is counted as a good one.
const STEADY: Duration = Duration::from_secs(10);
/// After so long the tools of a server that sends no changes are listed again.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Tools taken of one server; more do not fit into any model's context.
const MAX_TOOLS: usize = 1000;
/// How long a server is waited for whose last list did not come in time.
const LATE_WAIT: Duration = Duration::from_millis(500);
/// Pages read of one list: a server that gives empty ones without end must not hold up each turn.
const MAX_PAGES: usize = 100;
/// Longest name, description and schema of a tool, in bytes.
const MAX_NAME: usize = 128;
const MAX_DESCRIPTION: usize = 16 * 1024;
const MAX_SCHEMA: usize = 64 * 1024;

type Opening = Shared<BoxFuture<'static, Result<Arc<Live>, String>>>;

/// A tool server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: Arc<ServerConfig>,
    clients: Arc<HttpClients>,
    guard: Option<PathBuf>,
    state: Mutex<State>,
    listed: Mutex<Option<Listed>>,
    /// One listing at a time.
    listing: tokio::sync::Mutex<()>,
    /// The last list did not come in time.
    late: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Failures in a row.
    failures: u32,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Opening(Opening),
    Open(Arc<Live>),
    Down {
        until: Instant,
        reason: String,
    },
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Live {
    service: RunningService<RoleClient, Handler>,
    opened: Instant,
    changes: Arc<Changes>,
    /// Kept for its end: dropped, the program is ended.
    program: Option<Program>,
}

/// What a server says about its list of tools.
#[derive(Debug, Default)]
struct Changes {
    /// Counts the changes.
    count: AtomicU64,
    /// Whether the server tells of changes.
    told: AtomicBool,
}

#[derive(Debug)]
struct Listed {
    tools: Arc<Vec<Described>>,
    live: Arc<Live>,
    change: u64,
    at: Instant,
}

impl Live {
    pub(super) fn peer(&self) -> &Peer<RoleClient> {
        self.service.peer()
    }

    fn is_closed(&self) -> bool {
        self.peer().is_transport_closed()
    }

    /// The program's last words, to be added to an error.
    pub(super) fn last_words(&self) -> String {
        let words = self.program.as_ref().map(Program::last_words).unwrap_or_default();
        if words.is_empty() {
            words
        } else {
            format!(" (it said last: {words})")
        }
    }
}

/// The client's side of the protocol: it offers the server nothing, and listens for changes.
#[derive(Debug)]
pub(super) struct Handler {
    changes: Arc<Changes>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("roadstead-engine", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
            .with_protocol_version(ProtocolVersion::V_2025_11_25)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changes.count.fetch_add(1, Ordering::SeqCst);
    }
}

impl Server {
    pub(super) fn new(config: ServerConfig, clients: Arc<HttpClients>, guard: Option<PathBuf>) -> Self {
        Self {
            config: Arc::new(config),
            clients,
            guard,
            state: Mutex::default(),
            listed: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            late: AtomicBool::new(false),
        }
    }

    /// The open connection; opens it if there is none. Errors are clean of secrets.
    pub(super) async fn live(self: &Arc<Self>) -> Result<Arc<Live>, String> {
        let opening = {
            let mut state = self.state.lock();
            if let Phase::Open(live) = &state.phase {
                if !live.is_closed() {
                    return Ok(Arc::clone(live));
                }
                let (steady, words) = (live.opened.elapsed() >= STEADY, live.last_words());
                state.phase = Phase::Idle;
                if steady {
                    state.failures = 0;
                } else {
                    state.fail(format!("it ended soon after its start{words}"));
                }
            }
            match &state.phase {
                Phase::Opening(opening) => opening.clone(),
                Phase::Down { until, reason } if Instant::now() < *until => return Err(reason.clone()),
                _ => {
                    let opening = self.begin();
                    state.phase = Phase::Opening(opening.clone());
                    opening
                }
            }
        };
        opening.await
    }

    fn begin(self: &Arc<Self>) -> Opening {
        let task = tokio::spawn(Arc::clone(self).open());
        async move {
            task.await
                .unwrap_or_else(|e| Err(format!("opening it failed: {e}")))
        }
        .boxed()
        .shared()
    }

    async fn open(self: Arc<Self>) -> Result<Arc<Live>, String> {
        let limit = self.config.open_timeout;
        let opened = match timeout(limit, self.greet()).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("it did not answer within {} s", limit.as_secs())),
        };
        let mut state = self.state.lock();
        match opened {
            Ok(live) => {
                let live = Arc::new(live);
                state.phase = Phase::Open(Arc::clone(&live));
                tracing::debug!(server = self.config.reference, "tool server connected");
                Ok(live)
            }
            Err(reason) => {
                let reason = self.config.shown(&reason);
                tracing::warn!(server = self.config.reference, reason, "tool server not reached");
                state.fail(reason.clone());
                Err(reason)
            }
        }
    }

    /// Some servers of older protocols break off when the first message is not theirs; they get a second greeting.
    async fn greet(&self) -> Result<Live, String> {
        match self.greet_as(Era::Any).await {
            Err(NotGreeted { older: true, reason }) => {
                tracing::debug!(
                    server = self.config.reference,
                    reason,
                    "greeted again as of 2025-11-25"
                );
                self.greet_as(Era::Older).await.map_err(|e| e.reason)
            }
            other => other.map_err(|e| e.reason),
        }
    }

    async fn greet_as(&self, era: Era) -> Result<Live, NotGreeted> {
        match &self.config.reach {
            Reach::Http { url, headers } => {
                let client = self.clients.for_url(url)?;
                let transport = http::transport(client, url, headers);
                handshake(transport, None, era).await
            }
            Reach::Program { command, env, advice } => {
                let (program, pipes) =
                    Program::start(&self.config, (command, env, advice), self.guard.as_deref())?;
                handshake(pipes, Some(program), era).await
            }
        }
    }

    /// The tools, if they are known and nothing says otherwise.
    pub(super) fn known_tools(&self) -> Option<Arc<Vec<Described>>> {
        let listed = self.listed.lock();
        let listed = listed.as_ref()?;
        let changes = &listed.live.changes;
        let told = changes.told.load(Ordering::SeqCst);
        let fresh = !listed.live.is_closed()
            && listed.change == changes.count.load(Ordering::SeqCst)
            && (told || listed.at.elapsed() < MAX_AGE);
        fresh.then(|| Arc::clone(&listed.tools))
    }

    /// The tools as they were listed last, however long ago.
    pub(super) fn last_tools(&self) -> Option<Arc<Vec<Described>>> {
        self.listed
            .lock()
            .as_ref()
            .map(|listed| Arc::clone(&listed.tools))
    }

    /// How long a list is waited for, at most: a server that kept a turn waiting does not keep the next one.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.late.load(Ordering::Relaxed).then_some(LATE_WAIT)
    }

    /// Notes whether a list came in time.
    pub(super) fn came_in_time(&self, came: bool) {
        self.late.store(!came, Ordering::Relaxed);
    }

    /// The tools, listed if they are not known. Errors are clean of secrets.
    pub(super) async fn tools(self: &Arc<Self>) -> Result<Arc<Vec<Described>>, String> {
        let _turn = self.listing.lock().await;
        if let Some(tools) = self.known_tools() {
            return Ok(tools);
        }
        let live = self.live().await?;
        // Read before the list: a change while it comes makes it old.
        let change = live.changes.count.load(Ordering::SeqCst);
        let tools = list(live.peer()).await.map_err(|reason| {
            let reason = self.config.shown(&format!(
                "its tools cannot be listed: {reason}{}",
                live.last_words()
            ));
            tracing::warn!(server = self.config.reference, reason, "tool server");
            reason
        })?;
        let mut listed = self.listed.lock();
        // The same tools are the same list: who compares by address need not do work again.
        let tools = match listed.take().filter(|old| *old.tools == tools) {
            Some(old) => old.tools,
            None => Arc::new(tools),
        };
        *listed = Some(Listed {
            tools: Arc::clone(&tools),
            live,
            change,
            at: Instant::now(),
        });
        Ok(tools)
    }
}

impl State {
    fn fail(&mut self, reason: String) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Down {
            // Engines that lost the same server do not come back in step.
            until: Instant::now() + pause.mul_f64(rand::random_range(0.75..1.25)),
            reason,
        };
    }
}

/// Which protocol a server is greeted in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Era {
    /// 2026-07-28, or 2025-11-25 where the server says that it does not know it.
    Any,
    /// 2025-11-25.
    Older,
}

/// A greeting that failed.
struct NotGreeted {
    reason: String,
    /// The server may be one that understands the older greeting alone.
    older: bool,
}

impl From<String> for NotGreeted {
    fn from(reason: String) -> Self {
        Self { reason, older: false }
    }
}

async fn handshake<T, E, A>(transport: T, program: Option<Program>, era: Era) -> Result<Live, NotGreeted>
where
    T: IntoTransport<RoleClient, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    let changes = Arc::new(Changes::default());
    let handler = Handler {
        changes: Arc::clone(&changes),
    };
    let mode = match era {
        Era::Older => ClientLifecycleMode::Initialize,
        Era::Any => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    };
    let service = match handler.serve_with_lifecycle(transport, mode).await {
        Ok(service) => service,
        Err(error) => {
            let words = program.as_ref().map(Program::last_words).unwrap_or_default();
            let said = if words.is_empty() {
                words
            } else {
                format!(" (it said last: {words})")
            };
            return Err(NotGreeted {
                reason: format!("{}{said}", greeting_failed(&error)),
                older: era == Era::Any && may_be_older(&error),
            });
        }
    };
    watch_changes(&service, &changes);
    Ok(Live {
        service,
        opened: Instant::now(),
        changes,
        program,
    })
}

/// Whether the server was there and did not take the greeting.
fn may_be_older(error: &ClientInitializeError) -> bool {
    match error {
        ClientInitializeError::ConnectionClosed(_)
        | ClientInitializeError::UncorrelatedErrorResponse { .. } => true,
        ClientInitializeError::TransportError { error: cause, .. } => {
            !error.is_authorization_required() && !never_arrived(cause.error.as_ref())
        }
        _ => false,
    }
}

fn greeting_failed(error: &ClientInitializeError) -> String {
    let text = match error {
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => chain(fallback.as_ref()),
        ClientInitializeError::ConnectionClosed(_) => "it ended before it answered".to_owned(),
        other => chain(other),
    };
    let hint = if error.is_authorization_required() {
        " (check the headers of its document)"
    } else {
        ""
    };
    format!("no MCP connection: {text}{hint}")
}

/// Servers of 2025-11-25 and before send changes by themselves; later ones on a stream that is asked for.
fn watch_changes(service: &RunningService<RoleClient, Handler>, changes: &Arc<Changes>) {
    let Some(info) = service.peer().peer_info() else {
        return;
    };
    let tells = info
        .capabilities
        .tools
        .as_ref()
        .and_then(|t| t.list_changed)
        .unwrap_or(false);
    if !tells {
        return;
    }
    if info.protocol_version != ProtocolVersion::V_2026_07_28 {
        changes.told.store(true, Ordering::SeqCst);
        return;
    }
    let (peer, changes) = (service.peer().clone(), Arc::clone(changes));
    tokio::spawn(async move {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        let Ok(mut subscription) = peer.listen(filter).await else {
            return;
        };
        // What changed before the stream was open was not told.
        changes.count.fetch_add(1, Ordering::SeqCst);
        changes.told.store(true, Ordering::SeqCst);
        while let Ok(Some(_)) = subscription.next().await {
            changes.count.fetch_add(1, Ordering::SeqCst);
        }
        changes.told.store(false, Ordering::SeqCst);
    });
}

async fn list(peer: &Peer<RoleClient>) -> Result<Vec<Described>, String> {
    let mut tools: Vec<Described> = Vec::new();
    let mut names = HashSet::new();
    let mut cursor = None;
    for _ in 0..MAX_PAGES {
        let page = PaginatedRequestParams::default().with_cursor(cursor);
        let page = peer.list_tools(Some(page)).await.map_err(|e| chain(&e))?;
        for tool in page.tools {
            // A name given twice would make it unclear what is called: the first counts.
            if tools.len() < MAX_TOOLS && is_bounded(&tool) && names.insert(tool.name.to_string()) {
                tools.push(describe(tool));
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() || tools.len() >= MAX_TOOLS {
            return Ok(tools);
        }
    }
    tracing::warn!(MAX_PAGES, "a list of tools has more pages than are read");
    Ok(tools)
}

/// Whether a tool is of a size that can be offered, recorded and paid for. Its name goes into run records, spans and
/// metrics; its description and schema go to the model with each request.
fn is_bounded(tool: &Tool) -> bool {
    let plain = |c: char| !c.is_control() && !c.is_whitespace();
    let named = (1..=MAX_NAME).contains(&tool.name.len()) && tool.name.chars().all(plain);
    let described = tool.description.as_ref().map_or(0, |d| d.len()) <= MAX_DESCRIPTION;
    let schema = serde_json::to_string(&*tool.input_schema).map_or(usize::MAX, |s| s.len());
    let fits = named && described && schema <= MAX_SCHEMA;
    if !fits {
        let name: String = tool.name.chars().filter(|c| !c.is_control()).take(60).collect();
        tracing::warn!(
            tool = name,
            "a tool is left out: its name, description or schema is too large"
        );
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn tool(name: &str, description: &str, schema: &Value) -> Tool {
        let tool = json!({"name": name, "description": description, "inputSchema": schema});
        serde_json::from_value(tool).unwrap()
    }

    #[test]
    fn a_tool_beyond_all_measure_is_left_out() {
        let small = json!({"type": "object"});
        for name in ["git_log", "a.b/c-d", &"x".repeat(MAX_NAME)] {
            assert!(is_bounded(&tool(name, "", &small)), "{name}");
        }
        for name in [
            "",
            "a b",
            "a\nb",
            "a\u{1b}[31m",
            &"x".repeat(MAX_NAME + 1),
            &"é".repeat(MAX_NAME),
        ] {
            assert!(!is_bounded(&tool(name, "", &small)), "{name:?}");
        }
        assert!(is_bounded(&tool("t", &"d".repeat(MAX_DESCRIPTION), &small)));
        assert!(!is_bounded(&tool("t", &"d".repeat(MAX_DESCRIPTION + 1), &small)));
        let large = json!({"type": "object", "title": "x".repeat(MAX_SCHEMA)});
        assert!(!is_bounded(&tool("t", "", &large)));
    }
}

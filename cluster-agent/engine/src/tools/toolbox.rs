//! The tool servers of a revision, and the servers that revisions share.

use super::{
    Listing, ToolError, ToolFactory, ToolInfo, ToolRequest, ToolResult, Toolbox, Unavailable,
    config::ServerConfig,
    convert::{self, Described},
    server::{Live, Server},
};
use crate::{
    model::{HttpClients, LoadError},
    secrets::Secrets,
};
use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use rmcp::{
    RoleClient, ServiceError,
    model::{CallToolRequest, CallToolRequestParams, ClientRequest, RequestMetaObject},
    service::{PeerRequestOptions, RequestHandle},
};
use roadstead_contract::{
    bundle::Bundle,
    documents::{Pin, ToolUse},
};
use serde_json::{Map, Value};
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Time for telling a server that a call is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Under this key of `_meta` a call carries what makes it the same call again.
const IDEMPOTENCY_KEY: &str = "dev.roadstead/idempotencyKey";

/// Every tool server of the process: revisions with the same server share its connection.
#[derive(Debug)]
pub struct ToolServers {
    clients: Arc<HttpClients>,
    guard: Option<PathBuf>,
    servers: Mutex<Vec<Weak<Server>>>,
}

impl ToolServers {
    /// `guard` is a program whose `main` calls [`super::guard::intercept`] first (the engine itself): it ends tool
    /// servers also when the engine is killed. Without one they are ended when the last revision that uses them goes.
    #[must_use]
    pub fn new(clients: Arc<HttpClients>, guard: Option<PathBuf>) -> Self {
        Self {
            clients,
            guard,
            servers: Mutex::default(),
        }
    }

    /// The server of that configuration; a running one if there is one.
    fn server(&self, config: ServerConfig) -> Arc<Server> {
        let mut servers = self.servers.lock();
        servers.retain(|server| server.strong_count() > 0);
        let known = servers
            .iter()
            .filter_map(Weak::upgrade)
            .find(|s| *s.config == config);
        known.unwrap_or_else(|| {
            let server = Arc::new(Server::new(config, Arc::clone(&self.clients), self.guard.clone()));
            servers.push(Arc::downgrade(&server));
            server
        })
    }
}

impl ToolFactory for ToolServers {
    fn load(&self, bundle: &Bundle, secrets: &Secrets) -> Result<Arc<dyn Toolbox>, LoadError> {
        let mut uses: Vec<Use> = Vec::new();
        for (at, rule) in bundle.agent.tools.iter().enumerate() {
            let reference = rule.server.to_string();
            if let Some(known) = uses.iter_mut().find(|u| u.server.config.reference == reference) {
                known.rules.push(rule.clone());
                continue;
            }
            let spec = bundle.tool_servers.get(&reference).ok_or_else(|| LoadError {
                path: format!("Agent: spec.tools[{at}].server"),
                reason: format!("expected the tool server {reference} in the bundle, found none"),
            })?;
            uses.push(Use {
                server: self.server(ServerConfig::load(&reference, spec, secrets)?),
                rules: vec![rule.clone()],
                trusted: spec.trust_hints,
                pinned: spec.pin == Pin::Tools,
            });
        }
        Ok(Arc::new(Revision {
            uses,
            listed: Mutex::default(),
        }))
    }
}

/// The tool servers of one revision.
#[derive(Debug)]
struct Revision {
    uses: Vec<Use>,
    /// The listing made last, and of what.
    listed: Mutex<Option<(Vec<Found>, Arc<Listing>)>>,
}

/// A server with what the agent may do there.
#[derive(Debug)]
struct Use {
    server: Arc<Server>,
    rules: Vec<ToolUse>,
    trusted: bool,
    pinned: bool,
}

/// What a server listed, or why it could not.
type Found = Result<Arc<Vec<Described>>, String>;

fn same(a: &[Found], b: &[Found]) -> bool {
    let pairs = a.iter().zip(b);
    a.len() == b.len()
        && pairs.into_iter().all(|pair| match pair {
            (Ok(a), Ok(b)) => Arc::ptr_eq(a, b),
            (Err(a), Err(b)) => a == b,
            _ => false,
        })
}

impl Use {
    fn allows(&self, tool: &str) -> bool {
        self.rules.iter().any(|rule| rule.allows(tool))
    }

    async fn tools(&self, deadline: Instant) -> Found {
        if let Some(tools) = self.server.known_tools() {
            return Ok(tools);
        }
        let patience = self.server.patience();
        let deadline = patience.map_or(deadline, |wait| deadline.min(Instant::now() + wait));
        let found = timeout_at(deadline, self.server.tools()).await;
        self.server.came_in_time(found.is_ok());
        let found = match found {
            Ok(found) => found,
            Err(_) => Err("it did not list its tools in time; it is tried further".to_owned()),
        };
        // What it offered before stays on offer: a call of it says that the server cannot be reached.
        found.or_else(|reason| self.server.last_tools().ok_or(reason))
    }

    fn info(&self, tool: &Described) -> ToolInfo {
        ToolInfo {
            server: self.server.config.reference.clone(),
            name: tool.name.clone(),
            description: tool.description.clone(),
            input_schema: Arc::clone(&tool.input_schema),
            read_only: tool.read_only,
            idempotent: tool.idempotent,
            trusted: self.trusted,
            pinned: self.pinned,
            digest: tool.digest.clone(),
        }
    }
}

impl Revision {
    fn listing(&self, found: &[Found]) -> Listing {
        let mut listing = Listing::default();
        for (used, found) in self.uses.iter().zip(found) {
            match found {
                Ok(tools) => {
                    let allowed = tools.iter().filter(|tool| used.allows(&tool.name));
                    listing.tools.extend(allowed.map(|tool| used.info(tool)));
                }
                Err(reason) => listing.unavailable.push(Unavailable {
                    server: used.server.config.reference.clone(),
                    reason: reason.clone(),
                }),
            }
        }
        listing
    }
}

#[async_trait]
impl Toolbox for Revision {
    async fn list(&self, deadline: Instant) -> Arc<Listing> {
        let found = join_all(self.uses.iter().map(|used| used.tools(deadline))).await;
        let mut listed = self.listed.lock();
        if let Some((before, listing)) = &*listed
            && same(before, &found)
        {
            return Arc::clone(listing);
        }
        let listing = Arc::new(self.listing(&found));
        *listed = Some((found, Arc::clone(&listing)));
        listing
    }

    async fn call(&self, call: ToolRequest, cancel: CancellationToken) -> Result<ToolResult, ToolError> {
        let used = self
            .uses
            .iter()
            .find(|u| u.server.config.reference == call.server);
        let Some(used) = used.filter(|u| u.allows(&call.tool)) else {
            let reason = format!(
                "{}/{} is not on the agent's list of tools",
                call.server, call.tool
            );
            return Err(ToolError::NotSent(reason));
        };
        let server = &used.server;
        let deadline = call.deadline.min(Instant::now() + server.config.call_timeout);
        let (live, handle) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(ToolError::NotSent("cancelled before it was sent".to_owned())),
            () = sleep_until(deadline) => {
                let reason = format!("the tool server {} was not reached in time", call.server);
                return Err(ToolError::NotSent(reason));
            }
            sent = send(server, &call) => sent?,
        };
        let result = wait(handle, deadline, &cancel).await;
        clean(server, &live, result)
    }
}

/// Puts the call on its way. A connection that turns out to be closed is opened again: nothing was sent on it.
async fn send(
    server: &Arc<Server>,
    call: &ToolRequest,
) -> Result<(Arc<Live>, RequestHandle<RoleClient>), ToolError> {
    let unreachable = |reason: String| {
        ToolError::NotSent(format!(
            "the tool server {} is not reachable: {reason}",
            call.server
        ))
    };
    for _ in 0..2 {
        let live = server.live().await.map_err(unreachable)?;
        let (request, options) = request(call);
        match live.peer().send_cancellable_request(request, options).await {
            Ok(handle) => return Ok((live, handle)),
            Err(ServiceError::TransportClosed) => {}
            Err(error) => return Err(unreachable(server.config.shown(&convert::chain(&error)))),
        }
    }
    Err(unreachable("its connection closes at once".to_owned()))
}

fn request(call: &ToolRequest) -> (ClientRequest, PeerRequestOptions) {
    let mut meta = RequestMetaObject::new();
    meta.0
        .0
        .insert(IDEMPOTENCY_KEY.to_owned(), call.idempotency_key.clone().into());
    if let Some(parent) = &call.traceparent {
        meta.0.set_traceparent(parent.clone());
    }
    let arguments: Map<String, Value> = call.arguments.as_object().cloned().unwrap_or_default();
    let params = CallToolRequestParams::new(call.tool.clone()).with_arguments(arguments);
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
    (request, PeerRequestOptions::no_options().with_meta(meta))
}

async fn wait(
    mut handle: RequestHandle<RoleClient>,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<ToolResult, ToolError> {
    let reason = tokio::select! {
        biased;
        answer = &mut handle.rx => {
            return match answer {
                Ok(Ok(result)) => convert::answer(result),
                Ok(Err(error)) => convert::call_failed(error),
                Err(_) => convert::call_failed(ServiceError::TransportClosed),
            };
        }
        () = cancel.cancelled() => "cancelled while it ran",
        () = sleep_until(deadline) => "it did not answer in time",
    };
    // The server is told beside: who cancels does not wait for it.
    tokio::spawn(timeout(CANCEL_TIMEOUT, handle.cancel(Some(reason.to_owned()))));
    Err(ToolError::Unknown(reason.to_owned()))
}

/// Errors without secrets, and with a program's last words where it broke off.
fn clean(
    server: &Arc<Server>,
    live: &Live,
    result: Result<ToolResult, ToolError>,
) -> Result<ToolResult, ToolError> {
    let shown = |text: String| server.config.shown(&text);
    result.map_err(|error| match error {
        ToolError::NotSent(why) => ToolError::NotSent(shown(why)),
        ToolError::Refused(why) => ToolError::Refused(shown(why)),
        ToolError::Unknown(why) if live.peer().is_transport_closed() => {
            ToolError::Unknown(shown(format!("{why}{}", live.last_words())))
        }
        ToolError::Unknown(why) => ToolError::Unknown(shown(why)),
    })
}

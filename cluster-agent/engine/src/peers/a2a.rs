//! Other engines over A2A: JSON-RPC on kept connections, a stream to hear of the end, a look where the stream broke.

use super::{PeerAnswer, PeerCall, PeerCalls};
use crate::{
    model::{HttpClients, parse_url},
    tools::ToolError,
};
use a2a::{
    CancelTaskRequest, GetTaskRequest, Message, Part, Role, SendMessageRequest, StreamResponse, Task,
    TaskState,
};
use a2a_client::{A2AClient, ServiceParams, jsonrpc::JsonRpcTransport, middleware::CallInterceptor};
use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::RwLock;
use roadstead_contract::control::{DEPTH, ON_BEHALF_OF, Peer};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Between two looks at a task whose stream broke.
const LOOK: Duration = Duration::from_millis(500);
/// For a cancel to arrive there.
const CANCEL: Duration = Duration::from_millis(90);

/// The engines that this one may call.
#[derive(Debug)]
pub struct Peers {
    by_reference: RwLock<BTreeMap<String, Peer>>,
    clients: Arc<HttpClients>,
}

impl Peers {
    #[must_use]
    pub fn new(clients: Arc<HttpClients>) -> Self {
        Self {
            by_reference: RwLock::default(),
            clients,
        }
    }

    /// Replaces the whole set.
    pub fn set(&self, peers: BTreeMap<String, Peer>) {
        *self.by_reference.write() = peers;
    }

    fn client(&self, call: &PeerCall) -> Result<A2AClient<JsonRpcTransport>, ToolError> {
        let peer = self.by_reference.read().get(&call.reference).cloned();
        let missing = || ToolError::NotSent(format!("the agent {} is not running here", call.reference));
        let peer = peer.ok_or_else(missing)?;
        let url = parse_url(&peer.url).map_err(ToolError::NotSent)?;
        let client = self.clients.for_url(&url).map_err(ToolError::NotSent)?;
        let transport = JsonRpcTransport::new(client, url.to_string());
        let headers: Arc<dyn CallInterceptor> = Arc::new(Headers {
            token: peer,
            call: call.clone(),
        });
        Ok(A2AClient::new(transport).with_interceptors(vec![headers]))
    }
}

/// What goes along with each request: who calls, for whom, and how deep.
struct Headers {
    token: Peer,
    call: PeerCall,
}

#[async_trait]
impl CallInterceptor for Headers {
    async fn before(&self, _: &str, params: &mut ServiceParams) -> Result<(), a2a::A2AError> {
        let mut set = |name: &str, value: String| params.insert(name.to_owned(), vec![value]);
        set("authorization", format!("Bearer {}", self.token.token.expose()));
        set(ON_BEHALF_OF, self.call.subject.clone());
        set(DEPTH, self.call.depth.to_string());
        if let Some(traceparent) = &self.call.traceparent {
            set("traceparent", traceparent.clone());
        }
        Ok(())
    }
}

#[async_trait]
impl PeerCalls for Peers {
    async fn call(&self, call: PeerCall, cancel: CancellationToken) -> Result<PeerAnswer, ToolError> {
        let client = self.client(&call)?;
        let mut begun = None;
        let outcome = tokio::select! {
            outcome = timeout_at(call.deadline, follow(&client, &call, &mut begun)) => outcome,
            () = cancel.cancelled() => {
                give_up(&client, begun).await;
                return Err(ToolError::Unknown("the task was canceled".to_owned()));
            }
        };
        match outcome {
            Ok(answer) => answer,
            Err(_) => {
                give_up(&client, begun).await;
                Err(ToolError::Unknown("the agent did not answer in time".to_owned()))
            }
        }
    }
}

async fn give_up(client: &A2AClient<JsonRpcTransport>, begun: Option<String>) {
    if let Some(id) = begun {
        let request = CancelTaskRequest {
            id,
            metadata: None,
            tenant: None,
        };
        if timeout(CANCEL, client.cancel_task(&request)).await.is_err() {
            tracing::warn!("another agent's task could not be canceled in time");
        }
    }
}

async fn follow(
    client: &A2AClient<JsonRpcTransport>,
    call: &PeerCall,
    begun: &mut Option<String>,
) -> Result<PeerAnswer, ToolError> {
    let mut message = Message::new(Role::User, vec![Part::text(&call.message)]);
    message.message_id.clone_from(&call.idempotency_key);
    message.context_id.clone_from(&call.context);
    let request = SendMessageRequest {
        message,
        configuration: None,
        metadata: None,
        tenant: None,
    };
    let stream = client.send_streaming_message(&request).await;
    let mut stream = stream.map_err(|e| ToolError::Refused(e.message))?;
    while let Some(event) = stream.next().await {
        match event {
            Ok(StreamResponse::Task(task)) => {
                *begun = Some(task.id.clone());
                if settled(&task.status.state) {
                    return Ok(answer(client, task).await);
                }
            }
            Ok(StreamResponse::StatusUpdate(update)) if settled(&update.status.state) => break,
            Ok(StreamResponse::Message(message)) => {
                return Ok(PeerAnswer {
                    text: text_of(&message.parts),
                    is_error: false,
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = error.message, "the stream of another agent broke");
                break;
            }
        }
    }
    let id = begun
        .clone()
        .ok_or_else(|| ToolError::Unknown("the agent's stream broke".to_owned()))?;
    look(client, id).await
}

/// Asks for the task until it has ended. The caller bounds the time.
async fn look(client: &A2AClient<JsonRpcTransport>, id: String) -> Result<PeerAnswer, ToolError> {
    let request = GetTaskRequest {
        id,
        history_length: Some(0),
        tenant: None,
    };
    let began = Instant::now();
    loop {
        match client.get_task(&request).await {
            Ok(task) if settled(&task.status.state) => return Ok(answer(client, task).await),
            Ok(_) => {}
            Err(error) if began.elapsed() > Duration::from_secs(30) => {
                return Err(ToolError::Unknown(error.message));
            }
            Err(error) => tracing::debug!(error = error.message, "another agent does not answer"),
        }
        sleep(LOOK).await;
    }
}

fn settled(state: &TaskState) -> bool {
    state.is_terminal() || matches!(state, TaskState::InputRequired | TaskState::AuthRequired)
}

async fn answer(client: &A2AClient<JsonRpcTransport>, task: Task) -> PeerAnswer {
    let said = task
        .status
        .message
        .as_ref()
        .map(|m| text_of(&m.parts))
        .unwrap_or_default();
    if !task.status.state.is_terminal() {
        give_up(client, Some(task.id)).await;
        let text =
            format!("The agent waits for a person, which cannot be passed on; its task was canceled. {said}");
        return PeerAnswer { text, is_error: true };
    }
    let artifacts = task.artifacts.unwrap_or_default();
    let texts: Vec<String> = artifacts
        .iter()
        .map(|a| text_of(&a.parts))
        .filter(|t| !t.is_empty())
        .collect();
    match task.status.state {
        TaskState::Completed if texts.is_empty() => PeerAnswer {
            text: said,
            is_error: false,
        },
        TaskState::Completed => PeerAnswer {
            text: texts.join("\n\n"),
            is_error: false,
        },
        state => PeerAnswer {
            text: format!("The agent's task ended as {state:?}. {said}"),
            is_error: true,
        },
    }
}

fn text_of(parts: &[Part]) -> String {
    parts
        .iter()
        .filter_map(Part::as_text)
        .collect::<Vec<_>>()
        .join("\n")
}

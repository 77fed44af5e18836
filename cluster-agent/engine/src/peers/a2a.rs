//! Other engines over A2A: JSON-RPC on kept connections, a stream to hear of the end, a look where the stream broke.

use super::{PeerAnswer, PeerCall, PeerCalls};
use crate::{
    a2a::USAGE,
    journal::Spent,
    model::{HttpClients, parse_url},
    tools::ToolError,
};
use a2a::{
    CancelTaskRequest, GetTaskRequest, Message, Part, PartContent, Role, SendMessageRequest, StreamResponse,
    Task, TaskState,
};
use a2a_client::{A2AClient, ServiceParams, jsonrpc::JsonRpcTransport, middleware::CallInterceptor};
use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::RwLock;
use roadstead_contract::{
    control::{BUDGET, CHAIN, DEPTH, ON_BEHALF_OF, Peer},
    numbers::whole,
};
use serde::Deserialize;
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
        set(CHAIN, self.call.chain.join(","));
        let budget = serde_json::to_string(&self.call.budget);
        set(
            BUDGET,
            budget.map_err(|e| a2a::A2AError::internal(e.to_string()))?,
        );
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

/// Cancels the task there; how it then looks, if that is heard in time.
async fn give_up(client: &A2AClient<JsonRpcTransport>, begun: Option<String>) -> Option<Task> {
    let request = CancelTaskRequest {
        id: begun?,
        metadata: None,
        tenant: None,
    };
    match timeout(CANCEL, client.cancel_task(&request)).await {
        Ok(canceled) => canceled.ok(),
        Err(_) => {
            tracing::warn!("another agent's task could not be canceled in time");
            None
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
                    spent: Spent::default(),
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
        let canceled = give_up(client, Some(task.id)).await;
        let text =
            format!("The agent waits for a person, which cannot be passed on; its task was canceled. {said}");
        return PeerAnswer {
            text,
            is_error: true,
            spent: canceled.as_ref().map(spent).unwrap_or_default(),
        };
    }
    let spent = spent(&task);
    let artifacts = task.artifacts.unwrap_or_default();
    let texts: Vec<String> = artifacts
        .iter()
        .map(|a| text_of(&a.parts))
        .filter(|t| !t.is_empty())
        .collect();
    let (text, is_error) = match task.status.state {
        TaskState::Completed if texts.is_empty() => (said, false),
        TaskState::Completed => (texts.join("\n\n"), false),
        state => (format!("The agent's task ended as {state:?}. {said}"), true),
    };
    PeerAnswer {
        text,
        is_error,
        spent,
    }
}

/// What a task that has ended says of its use.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Used {
    model_calls: u32,
    tool_calls: u32,
    input_tokens: u64,
    output_tokens: u64,
    cost_micros: u64,
    currency: String,
    agents: Spent,
}

fn spent(task: &Task) -> Spent {
    let said = task.metadata.as_ref().and_then(|m| m.get(USAGE));
    let used = said.and_then(|said| serde_json::from_value(whole(said.clone())).ok());
    let used: Used = used.unwrap_or_default();
    let own = Spent {
        model_calls: used.model_calls,
        tool_calls: used.tool_calls,
        tokens: used.input_tokens.saturating_add(used.output_tokens),
        costs: Some((used.currency, used.cost_micros))
            .filter(|(currency, _)| !currency.is_empty())
            .into_iter()
            .collect(),
    };
    let mut all = used.agents;
    all.add(&own);
    all
}

/// Texts as they are, data as JSON; files are said to be there.
fn text_of(parts: &[Part]) -> String {
    let texts = parts.iter().map(|part| match &part.content {
        PartContent::Text(text) => text.clone(),
        PartContent::Data(data) => whole(data.clone()).to_string(),
        PartContent::Raw(bytes) => {
            let kind = part.media_type.as_deref().unwrap_or("a file");
            format!("[{kind}, {} bytes]", bytes.len())
        }
        PartContent::Url(url) => format!("[{url}]"),
    });
    texts.filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n")
}

//! The A2A operations, over tasks.

use super::{
    convert,
    edge::{self, Special, answer_with},
};
use crate::tasks::{Feed, Inbound, List, Refusal, TaskView, Tasks};
use a2a::{
    A2AError, AgentCard, CancelTaskRequest, DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest, GetTaskPushNotificationConfigRequest, GetTaskRequest,
    ListTaskPushNotificationConfigsRequest, ListTaskPushNotificationConfigsResponse, ListTasksRequest,
    ListTasksResponse, SendMessageConfiguration, SendMessageRequest, SendMessageResponse, StreamResponse,
    SubscribeToTaskRequest, Task, TaskPushNotificationConfig, error_code,
};
use a2a_server::{RequestHandler, ServiceParams};
use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use std::sync::Arc;

/// Request header of a subscription: the place of the last event that was seen.
pub(super) const AFTER: &str = "x-roadstead-after";
/// The same as browsers and proxies know it: this one also crosses the hub.
pub(super) const LAST_EVENT: &str = "last-event-id";
/// Tasks in a page where the caller says nothing, and at most (A2A 1.0 §3.1.4: 50 and 100).
const PAGE: i32 = 50;
const MAX_PAGE: i32 = 100;

/// Serves every binding.
#[derive(Debug)]
pub(super) struct Handler {
    tasks: Arc<Tasks>,
}

type Events = BoxStream<'static, Result<StreamResponse, A2AError>>;

impl Handler {
    pub(super) fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn send_message(
        &self,
        params: &ServiceParams,
        req: SendMessageRequest,
    ) -> Result<SendMessageResponse, A2AError> {
        let (inbound, how) = prepare(params, req)?;
        let sent = self
            .tasks
            .send(&edge::caller()?, inbound)
            .await
            .map_err(refused)?;
        let at_once = how.return_immediately == Some(true);
        let view = if at_once {
            sent.view()
        } else {
            sent.settled().await
        };
        Ok(SendMessageResponse::Task(convert::task(view, how.history_length)))
    }

    async fn send_streaming_message(
        &self,
        params: &ServiceParams,
        req: SendMessageRequest,
    ) -> Result<Events, A2AError> {
        let (inbound, how) = prepare(params, req)?;
        let sent = self
            .tasks
            .send(&edge::caller()?, inbound)
            .await
            .map_err(refused)?;
        Ok(match sent.watch() {
            Ok(feed) => events(feed),
            Err(view) => {
                let task = convert::task(*view, how.history_length);
                stream::once(async move { Ok(StreamResponse::Task(task)) }).boxed()
            }
        })
    }

    async fn get_task(&self, params: &ServiceParams, req: GetTaskRequest) -> Result<Task, A2AError> {
        check_version(params)?;
        let view = self.tasks.get(&edge::caller()?, &req.id).await.map_err(refused)?;
        Ok(convert::task(view, req.history_length))
    }

    async fn list_tasks(
        &self,
        params: &ServiceParams,
        req: ListTasksRequest,
    ) -> Result<ListTasksResponse, A2AError> {
        check_version(params)?;
        let size = req.page_size.filter(|n| *n != 0).unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&size) {
            return Err(A2AError::invalid_params(format!(
                "pageSize: expected 1 to {MAX_PAGE}, found {size}"
            )));
        }
        let page = req
            .page_token
            .filter(|t| !t.is_empty())
            .map(|t| t.parse())
            .transpose();
        let page = page.map_err(|_| A2AError::invalid_params("pageToken: expected one that a list gave"))?;
        let answers = req.include_artifacts == Some(true);
        let list = List {
            context: req.context_id.filter(|c| !c.is_empty()),
            state: convert::state_filter(req.status.as_ref()).map_err(refused)?,
            updated_after_ms: req.status_timestamp_after.map(|t| t.timestamp_millis()),
            page,
            limit: size.unsigned_abs(),
            content: answers || req.history_length.is_none_or(|n| n > 0),
        };
        let (views, next, total) = self.tasks.list(&edge::caller()?, list).await.map_err(refused)?;
        let task = |view: TaskView| {
            let mut task = convert::task(view, req.history_length);
            task.artifacts = task.artifacts.filter(|_| answers);
            task
        };
        let tasks: Vec<Task> = views.into_iter().map(task).collect();
        Ok(ListTasksResponse {
            page_size: size,
            total_size: i32::try_from(total).unwrap_or(i32::MAX),
            next_page_token: next.map(|n| n.to_string()).unwrap_or_default(),
            tasks,
        })
    }

    async fn cancel_task(&self, params: &ServiceParams, req: CancelTaskRequest) -> Result<Task, A2AError> {
        check_version(params)?;
        let view = self
            .tasks
            .cancel(&edge::caller()?, &req.id)
            .await
            .map_err(refused)?;
        Ok(convert::task(view, None))
    }

    async fn subscribe_to_task(
        &self,
        params: &ServiceParams,
        req: SubscribeToTaskRequest,
    ) -> Result<Events, A2AError> {
        check_version(params)?;
        let after = [AFTER, LAST_EVENT]
            .iter()
            .find_map(|name| params.get(*name).and_then(|v| v.first()))
            .map(|place| place.parse())
            .transpose();
        let after = after.map_err(|()| {
            A2AError::invalid_params(format!(
                "{AFTER}: expected the place of an event, as its metadata has it"
            ))
        })?;
        let feed = self
            .tasks
            .subscribe(&edge::caller()?, &req.id, after)
            .await
            .map_err(refused)?;
        Ok(events(feed))
    }

    async fn create_push_config(
        &self,
        _: &ServiceParams,
        _: TaskPushNotificationConfig,
    ) -> Result<TaskPushNotificationConfig, A2AError> {
        Err(A2AError::push_notification_not_supported())
    }

    async fn get_push_config(
        &self,
        _: &ServiceParams,
        _: GetTaskPushNotificationConfigRequest,
    ) -> Result<TaskPushNotificationConfig, A2AError> {
        Err(A2AError::push_notification_not_supported())
    }

    async fn list_push_configs(
        &self,
        _: &ServiceParams,
        _: ListTaskPushNotificationConfigsRequest,
    ) -> Result<ListTaskPushNotificationConfigsResponse, A2AError> {
        Err(A2AError::push_notification_not_supported())
    }

    async fn delete_push_config(
        &self,
        _: &ServiceParams,
        _: DeleteTaskPushNotificationConfigRequest,
    ) -> Result<(), A2AError> {
        Err(A2AError::push_notification_not_supported())
    }

    async fn get_extended_agent_card(
        &self,
        _: &ServiceParams,
        _: GetExtendedAgentCardRequest,
    ) -> Result<AgentCard, A2AError> {
        Err(A2AError::unsupported_operation(
            "this agent has one card, at /.well-known/agent-card.json",
        ))
    }
}

/// A2A 1.0 §3.6: a call without a version is one of 0.3. Those of 0.3 come here as calls of 1.0, by way of
/// [`super::v03`]; whatever else is no call of 1.0 is not served (S77).
fn check_version(params: &ServiceParams) -> Result<(), A2AError> {
    let asked = params
        .get("a2a-version")
        .and_then(|v| v.first())
        .map_or("", |v| v.trim());
    let asked = if asked.is_empty() { "0.3" } else { asked };
    match asked.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(A2AError::version_not_supported(asked)),
    }
}

fn prepare(
    params: &ServiceParams,
    req: SendMessageRequest,
) -> Result<(Inbound, SendMessageConfiguration), A2AError> {
    check_version(params)?;
    if let Some(number) = edge::inexact() {
        let text = format!(
            "message: expected integers of at most 2^53, since A2A's data are doubles, found {number}: send it as text"
        );
        return Err(refused(Refusal::Invalid(text)));
    }
    let how = req.configuration.unwrap_or(SendMessageConfiguration {
        accepted_output_modes: None,
        task_push_notification_config: None,
        history_length: None,
        return_immediately: None,
    });
    if how.task_push_notification_config.is_some() {
        return Err(A2AError::push_notification_not_supported());
    }
    let modes = how.accepted_output_modes.as_deref().unwrap_or_default();
    if !modes.is_empty() && !modes.iter().any(|mode| is_text(mode)) {
        let text = format!(
            "acceptedOutputModes: expected text/plain among them, found {}",
            modes.join(", ")
        );
        return Err(refused(Refusal::Media(text)));
    }
    Ok((convert::inbound(req.message).map_err(refused)?, how))
}

fn is_text(mode: &str) -> bool {
    let essence = mode
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    matches!(
        essence.as_str(),
        "text/plain" | "text/*" | "text" | "text/markdown" | "application/json" | "*/*"
    )
}

fn events(feed: Feed) -> Events {
    let ids = feed.ids();
    stream::unfold((feed, ids), |(mut feed, ids)| async move {
        let fed = feed.next().await?;
        let (uid, context, epoch) = &ids;
        Some((Ok(convert::fed((uid, context, *epoch), fed)), (feed, ids)))
    })
    .boxed()
}

fn refused(refusal: Refusal) -> A2AError {
    let text = refusal.to_string();
    match refusal {
        Refusal::NotFound(uid) => A2AError::task_not_found(&uid),
        Refusal::NotCancelable(uid) => A2AError::task_not_cancelable(&uid),
        Refusal::Unsupported(_) => A2AError::unsupported_operation(text),
        Refusal::Invalid(_) => A2AError::invalid_params(text),
        Refusal::Media(_) => {
            answer_with(Special::Media);
            A2AError::new(error_code::CONTENT_TYPE_NOT_SUPPORTED, text)
        }
        Refusal::Full(_) => {
            answer_with(Special::Exhausted);
            A2AError::internal(text)
        }
        Refusal::Unavailable(_) => {
            answer_with(Special::Unavailable);
            A2AError::internal(text)
        }
    }
}

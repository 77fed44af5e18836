//! Streamable HTTP over the process's own connections, with the trace context as a header beside `_meta`.

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Error, Url};
use rmcp::{
    model::{ClientJsonRpcMessage, GetMeta as _},
    transport::{
        StreamableHttpClientTransport,
        common::client_side_sse::BoxedSseResponse,
        streamable_http_client::{
            StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
            StreamableHttpPostResponse, StreamableHttpResponseLimits,
        },
    },
};
use std::{collections::HashMap, sync::Arc};

/// Calls of one connection under way at once: an engine has some hundred sessions, each with a few calls.
const MAX_CONCURRENT: usize = 1024;
/// Longest answer, in bytes; results beyond 8 MiB are refused afterwards with their size told.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

type Headers = HashMap<HeaderName, HeaderValue>;
type Failure = StreamableHttpError<Error>;

/// A transport to the server at `url`.
pub(super) fn transport(
    client: Client,
    url: &Url,
    headers: &HeaderMap,
) -> StreamableHttpClientTransport<Traced> {
    let headers: Headers = headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    let config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(headers)
        .max_concurrent_requests(MAX_CONCURRENT)
        .max_json_response_size(MAX_ANSWER)
        .max_sse_event_size(MAX_ANSWER)
        .max_error_response_size(4096);
    StreamableHttpClientTransport::with_client(Traced(client), config)
}

/// An HTTP client that sends a request's `_meta.traceparent` as a header too.
#[derive(Clone, Debug)]
pub(super) struct Traced(Client);

fn with_trace(message: &ClientJsonRpcMessage, mut headers: Headers) -> Headers {
    if let ClientJsonRpcMessage::Request(request) = message
        && let Some(parent) = request.request.get_meta().get_traceparent()
        && let Ok(value) = HeaderValue::from_str(parent)
    {
        headers.insert(HeaderName::from_static("traceparent"), value);
    }
    headers
}

impl StreamableHttpClient for Traced {
    type Error = Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let headers = with_trace(&message, headers);
        self.0
            .post_message(uri, message, session_id, auth_header, headers)
            .await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
        max: usize,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let headers = with_trace(&message, headers);
        let client = &self.0;
        client
            .post_message_with_max_sse_event_size(uri, message, session_id, auth_header, headers, max)
            .await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let headers = with_trace(&message, headers);
        let client = &self.0;
        client
            .post_message_with_response_limits(uri, message, session_id, auth_header, headers, limits)
            .await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<(), Failure> {
        self.0.delete_session(uri, session_id, auth_header, headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<BoxedSseResponse, Failure> {
        self.0
            .get_stream(uri, session_id, last_event_id, auth_header, headers)
            .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        headers: Headers,
        max: usize,
    ) -> Result<BoxedSseResponse, Failure> {
        let client = &self.0;
        client
            .get_stream_with_max_sse_event_size(uri, session_id, last_event_id, auth_header, headers, max)
            .await
    }
}

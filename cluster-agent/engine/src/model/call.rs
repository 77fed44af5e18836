//! One model behind one wire format: sends a request and turns the answer's bytes into events.

use super::{
    ChatRequest, ErrorClass, Model, ModelError, ModelEvent, ModelStream, anthropic,
    clients::{self, HttpClients},
    errors::{error, shown, status_error},
    frames::{Frames, Framing},
    ollama, openai,
    sink::Sink,
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, header};
use reqwest::{Method, Request, Response, Url};
use roadstead_contract::{
    control::SecretText,
    documents::{ModelSpec, Prices},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Most of an error's body that is read, in bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// How long the end of a body is waited for after the last frame, so that its connection can serve again.
const DRAIN: Duration = Duration::from_secs(2);

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    OpenAi,
    Anthropic,
    Ollama,
}

/// A model of a document, ready to be called.
#[derive(Debug)]
pub(super) struct HttpModel(pub(super) Arc<Target>);

/// Everything that a call needs.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) reference: String,
    pub(super) spec: ModelSpec,
    pub(super) wire: Wire,
    pub(super) provider: &'static str,
    pub(super) url: Url,
    /// The document's headers, the format's own, and the key (marked sensitive, so that `Debug` hides it).
    pub(super) headers: HeaderMap,
    pub(super) key: Option<SecretText>,
    pub(super) clients: Arc<HttpClients>,
}

impl Model for HttpModel {
    fn reference(&self) -> &str {
        &self.0.reference
    }
    fn name(&self) -> &str {
        &self.0.spec.model
    }
    fn provider(&self) -> &'static str {
        self.0.provider
    }
    fn prices(&self) -> Option<&Prices> {
        self.0.spec.prices.as_ref()
    }
    fn timeout(&self) -> Option<Duration> {
        self.0.spec.options.timeout.map(|t| t.get())
    }
    fn takes_files(&self) -> bool {
        true
    }
    fn stream(&self, request: Arc<ChatRequest>, deadline: Instant) -> ModelStream {
        let own = self.timeout().and_then(|t| Instant::now().checked_add(t));
        let deadline = own.map_or(deadline, |own| own.min(deadline));
        let start = State::Start(Arc::clone(&self.0), request, deadline);
        stream::unfold(start, |state| state.next()).boxed()
    }
}

/// How far a call has come.
enum State {
    Start(Arc<Target>, Arc<ChatRequest>, Instant),
    Reading(Box<Answer>),
    Over,
}

impl State {
    async fn next(self) -> Option<(Result<ModelEvent, ModelError>, Self)> {
        let mut answer = match self {
            Self::Start(target, request, deadline) => {
                match timeout_at(deadline, target.send(&request)).await {
                    Ok(Ok((response, sink))) => Box::new(Answer::new(target, response, sink, deadline)),
                    Ok(Err(problem)) => return Some((Err(problem), Self::Over)),
                    Err(_) => return Some((Err(late("answer headers")), Self::Over)),
                }
            }
            Self::Reading(answer) => answer,
            Self::Over => return None,
        };
        match answer.next().await? {
            Ok(event) => Some((Ok(event), Self::Reading(answer))),
            Err(problem) => Some((Err(problem), Self::Over)),
        }
    }
}

fn late(missing: &str) -> ModelError {
    error(
        ErrorClass::Timeout,
        format!("the model's deadline passed before {missing} came"),
    )
}

impl Target {
    async fn send(&self, request: &ChatRequest) -> Result<(Response, Sink), ModelError> {
        let limit = [self.spec.options.max_output_tokens, request.max_output_tokens]
            .into_iter()
            .flatten()
            .min();
        let body = match self.wire {
            Wire::OpenAi => openai::body(&self.spec, request, limit)?,
            Wire::Anthropic => anthropic::body(&self.spec, request, limit)?,
            Wire::Ollama => ollama::body(&self.spec, request, limit)?,
        };
        let sink = Sink::new(&request.tools, body.len());
        let mut http = Request::new(Method::POST, self.url.clone());
        http.headers_mut().clone_from(&self.headers);
        if let Some(value) = request
            .traceparent
            .as_ref()
            .and_then(|t| HeaderValue::from_str(t).ok())
        {
            http.headers_mut().insert("traceparent", value);
        }
        *http.body_mut() = Some(body.into());
        let client = self
            .clients
            .for_url(&self.url)
            .map_err(|reason| error(ErrorClass::Refused, reason))?;
        let response = client.execute(http).await.map_err(|problem| {
            let message = format!(
                "no answer from {}: {}",
                clients::origin(&self.url),
                clients::describe(problem)
            );
            error(ErrorClass::Connect, message)
        })?;
        self.check(response).await.map(|response| (response, sink))
    }

    /// Turns a status other than 200 and a body of the wrong type into errors.
    async fn check(&self, mut response: Response) -> Result<Response, ModelError> {
        let status = response.status().as_u16();
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type
            .and_then(|v| v.to_str().ok())
            .unwrap_or("no content type")
            .to_owned();
        let kind = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let (fits, expected) = match self.wire {
            Wire::Ollama => (
                matches!(kind.as_str(), "application/x-ndjson" | "application/json"),
                "application/x-ndjson",
            ),
            Wire::OpenAi | Wire::Anthropic => (kind == "text/event-stream", "text/event-stream"),
        };
        if status == 200 && fits {
            return Ok(response);
        }
        let mut body = Vec::new();
        // A body that breaks or is too long is told as far as it came.
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece);
            if body.len() > MAX_ERROR_BODY {
                break;
            }
        }
        if status != 200 {
            return Err(status_error(status, response.headers(), &body, self.key.as_ref()));
        }
        let begins = shown(
            &String::from_utf8_lossy(&body[..body.len().min(200)]),
            self.key.as_ref(),
        );
        let found = shown(&content_type, self.key.as_ref());
        let message = format!("expected a stream of {expected}, found {found} that begins with: {begins}");
        Err(error(ErrorClass::Nonsense, message))
    }
}

#[derive(Debug)]
enum Decoder {
    OpenAi(openai::Decoder),
    Anthropic(anthropic::Decoder),
    Ollama(ollama::Decoder),
}

/// An answer that is being read.
struct Answer {
    target: Arc<Target>,
    response: Option<Response>,
    frames: Frames,
    decoder: Decoder,
    sink: Sink,
    deadline: Instant,
    /// Told once what was read before it is told.
    problem: Option<ModelError>,
}

impl Answer {
    fn new(target: Arc<Target>, response: Response, sink: Sink, deadline: Instant) -> Self {
        let (framing, decoder) = match target.wire {
            Wire::OpenAi => (Framing::Events, Decoder::OpenAi(openai::Decoder)),
            Wire::Anthropic => (Framing::Events, Decoder::Anthropic(anthropic::Decoder::default())),
            Wire::Ollama => (Framing::Lines, Decoder::Ollama(ollama::Decoder)),
        };
        Self {
            target,
            response: Some(response),
            frames: Frames::new(framing),
            decoder,
            sink,
            deadline,
            problem: None,
        }
    }

    async fn next(&mut self) -> Option<Result<ModelEvent, ModelError>> {
        loop {
            if let Some(event) = self.sink.next() {
                return Some(Ok(event));
            }
            if let Some(problem) = self.problem.take() {
                return Some(Err(problem));
            }
            let response = self.response.as_mut()?;
            match timeout_at(self.deadline, response.chunk()).await {
                Ok(Ok(Some(bytes))) => self.read(&bytes),
                Ok(Ok(None)) => self.body_ended(),
                Ok(Err(cause)) => {
                    let message = format!("the model's answer broke off: {}", clients::describe(cause));
                    self.fail(error(ErrorClass::Cut, message));
                }
                Err(_) => self.fail(late("the end of the answer")),
            }
        }
    }

    fn read(&mut self, bytes: &Bytes) {
        self.frames.push(bytes);
        loop {
            match self.frames.next() {
                Ok(Some(frame)) => match self.frame(&frame.data) {
                    Ok(true) => return self.complete(),
                    Ok(false) => {}
                    Err(problem) => return self.fail(problem),
                },
                Ok(None) => return,
                Err(_) => {
                    let problem = error(ErrorClass::Nonsense, "a piece of the answer is longer than 8 MiB");
                    return self.fail(problem);
                }
            }
        }
    }

    fn frame(&mut self, data: &[u8]) -> Result<bool, ModelError> {
        let key = self.target.key.as_ref();
        let done = match &mut self.decoder {
            Decoder::OpenAi(decoder) => decoder.frame(data, &mut self.sink, key),
            Decoder::Anthropic(decoder) => decoder.frame(data, &mut self.sink, key),
            Decoder::Ollama(decoder) => decoder.frame(data, &mut self.sink, key),
        }?;
        match self.sink.excess() {
            Some(why) => Err(error(ErrorClass::Nonsense, why)),
            None => Ok(done),
        }
    }

    /// The body ended in good order; whether the answer did is another matter.
    fn body_ended(&mut self) {
        // The last frame may lack its line end; half a frame is no frame.
        if let Some(frame) = self.frames.rest()
            && self.frame(&frame.data).unwrap_or(false)
        {
            return self.complete();
        }
        if self.target.wire == Wire::OpenAi && self.sink.stopped() {
            return self.complete();
        }
        self.fail(error(
            ErrorClass::Cut,
            "the model's answer ended before it was complete",
        ));
    }

    fn complete(&mut self) {
        self.sink.finish();
        if let Some(response) = self.response.take() {
            drain(response);
        }
    }

    /// What was held back is shown, then the problem is told.
    fn fail(&mut self, problem: ModelError) {
        self.sink.broke_off();
        self.problem = Some(problem);
        self.response = None;
    }
}

/// Reads the end of a body, which mostly is there already: a connection whose body was not read to its end is closed.
fn drain(mut response: Response) {
    if matches!(response.chunk().now_or_never(), Some(Ok(None) | Err(_))) {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN, async move {
        for _ in 0..64 {
            if !matches!(response.chunk().await, Ok(Some(_))) {
                break;
            }
        }
    }));
}

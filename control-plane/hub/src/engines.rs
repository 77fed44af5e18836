//! The way from the hub's faces to the engines: fleet's tunnel behind the traits of gateway and GraphQL, which do not
//! know fleet.

use bytes::{Bytes, BytesMut};
use chrono::DateTime;
use futures::{FutureExt as _, StreamExt as _, stream, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use roadstead_contract::{fleet::JoinToken, logs};
use roadstead_domain::{ClusterId, Error};
use roadstead_fleet as fleet;
use roadstead_gateway::{EngineAnswer, EngineCall, Tunnel, TunnelError};
use roadstead_graphql::{LogLine, LogLines, LogRequest};
use roadstead_telemetry::{Histogram, Label, SECONDS, meter};
use secrecy::{ExposeSecret as _, SecretString};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest that a followed log stays open; the CLI asks again.
const FOLLOW: Duration = Duration::from_secs(24 * 60 * 60);
/// For a log that is only read.
const READ: Duration = Duration::from_secs(30);
/// The longest line of a log that is taken from a cluster agent, as JSON, in bytes.
const LINE: usize = 64 * 1024;

/// Reaches the clusters that are connected to this replica.
#[derive(Clone, Debug)]
pub(crate) struct Engines {
    pub(crate) fleet: fleet::Fleet,
    /// Its pin is part of every join token.
    authority: Arc<fleet::Authority>,
    /// Seconds from a call to the head of its answer.
    duration: Histogram<f64>,
}

impl Engines {
    /// With the instruments behind `/metrics`.
    pub(crate) fn new(fleet: fleet::Fleet, authority: Arc<fleet::Authority>) -> Self {
        let meter = meter("roadstead-hub");
        let duration = meter
            .f64_histogram("roadstead.hub.tunnel.duration")
            .with_unit("s")
            .with_boundaries(SECONDS.to_vec())
            .with_description("From a call of an engine to the head of its answer, by kind and outcome")
            .build();
        let sessions = fleet.clone();
        meter
            .u64_observable_gauge("roadstead.hub.clusters.connected")
            .with_description("Clusters with a live session on this replica")
            .with_callback(move |observer| observer.observe(sessions.live().len() as u64, &[]))
            .build();
        Self {
            fleet,
            authority,
            duration,
        }
    }

    async fn measured(
        &self,
        cluster: ClusterId,
        request: fleet::TunnelRequest,
        body: fleet::RequestBody,
        deadline: Duration,
    ) -> Result<fleet::TunnelResponse, fleet::TunnelError> {
        let kind = match request.kind {
            fleet::TunnelKind::A2a => "a2a",
            fleet::TunnelKind::Logs => "logs",
        };
        let began = Instant::now();
        let answer = self.fleet.tunnels().call(cluster, request, body, deadline).await;
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(fleet::TunnelError::Away { .. }) => "away",
            Err(fleet::TunnelError::NotFound(_)) => "notFound",
            Err(fleet::TunnelError::Unavailable(_)) => "unavailable",
            Err(fleet::TunnelError::Deadline) => "deadline",
            Err(fleet::TunnelError::Broken(_)) => "broken",
            Err(fleet::TunnelError::Revoked) => "revoked",
        };
        let labels = [Label::new("kind", kind), Label::new("outcome", outcome)];
        self.duration.record(began.elapsed().as_secs_f64(), &labels);
        answer
    }
}

#[async_trait::async_trait]
impl Tunnel for Engines {
    async fn connected(&self, cluster: ClusterId) -> bool {
        self.fleet.live().contains(&cluster)
    }

    async fn call(&self, cluster: ClusterId, call: EngineCall) -> Result<EngineAnswer, TunnelError> {
        let request = fleet::TunnelRequest {
            kind: fleet::TunnelKind::A2a,
            agent_uid: call.agent.to_string(),
            method: call.method.to_string(),
            path: call.path,
            headers: call
                .headers
                .iter()
                .map(|(n, v)| (n.to_string(), v.as_bytes().to_vec()))
                .collect(),
        };
        // A request that breaks off ends as an empty rest: the engine sees a body that is too short and refuses it.
        let body = call.body.take_while(|chunk| std::future::ready(chunk.is_ok()));
        let body = body.filter_map(|chunk| std::future::ready(chunk.ok())).boxed();
        let answer = self.measured(cluster, request, body, call.deadline).await;
        let answer = answer.map_err(failed)?;
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
        Ok(EngineAnswer {
            status,
            headers: headers(answer.headers),
            body: answer.body.map(|chunk| chunk.map_err(broken)).boxed(),
            revoked: answer.revoked.cancelled_owned().boxed(),
        })
    }
}

/// Why an answer ends early, so that the gateway can tell a revocation from an accident.
fn broken(error: fleet::TunnelError) -> io::Error {
    io::Error::other(failed(error))
}

fn headers(pairs: Vec<(String, Vec<u8>)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = name.parse::<HeaderName>();
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn failed(error: fleet::TunnelError) -> TunnelError {
    match error {
        fleet::TunnelError::Away { since_ms } => TunnelError::Away {
            since: since_ms.and_then(DateTime::from_timestamp_millis),
        },
        fleet::TunnelError::NotFound(why) | fleet::TunnelError::Unavailable(why) => {
            TunnelError::NotReady(why)
        }
        fleet::TunnelError::Deadline => TunnelError::Deadline,
        fleet::TunnelError::Broken(why) => TunnelError::Broken(why),
        fleet::TunnelError::Revoked => TunnelError::Revoked,
    }
}

#[async_trait::async_trait]
impl roadstead_graphql::Fleet for Engines {
    fn connected(&self, cluster: ClusterId) -> Option<bool> {
        Some(self.fleet.live().contains(&cluster))
    }

    async fn look(&self, cluster: ClusterId) {
        self.fleet.look_at(cluster).await;
    }

    fn join_token(&self, secret: &SecretString) -> SecretString {
        let token = self
            .authority
            .pin()
            .map(|pin| JoinToken::new(secret.expose_secret().to_owned(), pin));
        match token {
            Ok(Ok(token)) => token.expose().into(),
            // The hub made secret and root itself; a token of nothing is refused wherever it is used.
            _ => SecretString::default(),
        }
    }

    async fn logs(&self, cluster: ClusterId, wanted: LogRequest) -> Result<LogLines, Error> {
        let tail = usize::try_from(wanted.tail)
            .unwrap_or(logs::MAX_TAIL)
            .min(logs::MAX_TAIL);
        let request = fleet::TunnelRequest {
            kind: fleet::TunnelKind::Logs,
            agent_uid: wanted.agent.to_string(),
            method: Method::GET.to_string(),
            path: logs::Query {
                tail,
                follow: wanted.follow,
            }
            .path(),
            headers: Vec::new(),
        };
        let deadline = if wanted.follow { FOLLOW } else { READ };
        let none = stream::empty::<Bytes>().boxed();
        let unavailable =
            |error: fleet::TunnelError| Error::unavailable(format!("the log cannot be read: {error}"), error);
        let answer = self.measured(cluster, request, none, deadline).await;
        let answer = answer.map_err(unavailable)?;
        if answer.status != 200 {
            return Err(Error::unavailable(
                "the cluster agent has no log of this engine",
                io::Error::other(format!("status {}", answer.status)),
            ));
        }
        Ok(lines(answer.body.boxed()))
    }
}

/// Cuts a body into lines. What is no line of the contract is passed on as it is, for people; what is too long is cut.
fn lines(body: BoxStream<'static, Result<Bytes, fleet::TunnelError>>) -> LogLines {
    let pending = Pending {
        body,
        held: BytesMut::new(),
        searched: 0,
        ended: false,
    };
    stream::unfold(pending, |mut pending| async move {
        Some((pending.next().await?, pending))
    })
    .boxed()
}

/// A body on its way into lines.
struct Pending {
    body: BoxStream<'static, Result<Bytes, fleet::TunnelError>>,
    held: BytesMut,
    /// How much of what is held has no line end: nothing is looked at twice.
    searched: usize,
    ended: bool,
}

impl Pending {
    async fn next(&mut self) -> Option<Result<LogLine, Error>> {
        loop {
            let found = self.held[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = found {
                let whole = self.held.split_to(self.searched + end + 1);
                self.searched = 0;
                return Some(Ok(line(&whole[..whole.len() - 1])));
            }
            if self.ended {
                let last = self.held.split();
                return (!last.is_empty()).then(|| Ok(line(&last)));
            }
            self.held.truncate(LINE);
            self.searched = self.held.len();
            match self.body.next().await {
                Some(Ok(chunk)) => self.held.extend_from_slice(&chunk),
                Some(Err(error)) => {
                    self.body = stream::empty().boxed();
                    self.held.clear();
                    (self.searched, self.ended) = (0, true);
                    return Some(Err(Error::unavailable(
                        format!("the log broke off: {error}"),
                        error,
                    )));
                }
                None => (self.searched, self.ended) = (0, true),
            }
        }
    }
}

fn line(bytes: &[u8]) -> LogLine {
    match serde_json::from_slice::<logs::Line>(bytes) {
        Ok(line) => {
            let time = (line.at_ms > 0)
                .then(|| DateTime::from_timestamp_millis(line.at_ms))
                .flatten();
            LogLine {
                time,
                line: line.text,
            }
        }
        Err(_) => LogLine {
            time: None,
            line: String::from_utf8_lossy(bytes).into_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(chunks: &[&'static str]) -> Vec<String> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|c| Ok::<_, fleet::TunnelError>(Bytes::from_static(c.as_bytes())))
            .collect();
        let lines = lines(stream::iter(chunks).boxed());
        lines
            .map(|l| l.map_or_else(|e| format!("error: {e}"), |l| l.line))
            .collect()
            .await
    }

    #[tokio::test]
    async fn lines_are_whole_whatever_the_chunks_are() {
        assert_eq!(read(&["a\nb", "c\n", "\nlast"]).await, ["a", "bc", "", "last"]);
        assert_eq!(read(&[r#"{"atMs":1,"te"#, "xt\":\"hi\"}\n"]).await, ["hi"]);
        assert!(read(&[]).await.is_empty());
    }

    #[tokio::test]
    async fn s49_a_log_says_that_its_cluster_was_revoked() {
        let chunks = [
            Ok(Bytes::from_static(b"a\nhalf")),
            Err(fleet::TunnelError::Revoked),
        ];
        let read: Vec<_> = lines(stream::iter(chunks).boxed()).collect().await;
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].as_ref().expect("a line").line, "a");
        let error = read[1].as_ref().expect_err("the end").to_string();
        assert!(error.contains("certificate was revoked"), "{error}");
    }

    #[tokio::test]
    async fn s31_a_chunk_of_many_lines_is_copied_once() {
        let busy = || {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
            text.split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
                / 1_000_000
        };
        let many: &'static str = "\n".repeat(512 * 1024).leak();
        let begun = busy();
        let count = lines(stream::iter([Ok(Bytes::from_static(many.as_bytes()))]).boxed()).count();
        assert_eq!(count.await, 512 * 1024);
        let took = busy() - begun;
        assert!(took < 5_000, "{took} ms of work");
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut() {
        let long: &'static str = "x".repeat(LINE).leak();
        let got = read(&[long, long, "\nnext\n"]).await;
        assert_eq!(got.iter().map(String::len).collect::<Vec<_>>(), [LINE, 4]);
    }
}

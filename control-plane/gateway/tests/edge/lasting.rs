//! Answers that last: streams, deadlines, tokens that end meanwhile.

use super::*;
use http::header;

#[tokio::test]
async fn events_come_through_one_by_one_and_leaving_cancels_the_call() {
    let edge = Edge::new();
    let (send, mut receive) = mpsc::channel::<io::Result<Bytes>>(1);
    let body = stream::poll_fn(move |cx| receive.poll_recv(cx)).boxed();
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
    edge.script(Script::Answer(StatusCode::OK, headers, body));
    let response = edge
        .send(edge.request("POST", NOTES, rpc("SendStreamingMessage")))
        .await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let mut body = response.into_body().into_data_stream();
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        send.send(Ok(Bytes::from(event))).await.unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), event);
    }
    drop(body);
    tokio::time::timeout(Duration::from_secs(5), send.closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_caller_who_leaves_before_an_answer_cancels_the_call() {
    let edge = Edge::new();
    let request = edge.request("POST", NOTES, rpc("SendMessage"));
    let call = tokio::spawn(edge.app.clone().oneshot(request));
    while edge.tunnel.seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert!(edge.tunnel.hanging_dropped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_deadline_with_an_error() {
    let edge = Edge::new();
    let first = stream::once(async { Ok(Bytes::from_static(b"data: 1\n\n")) });
    let body = first.chain(stream::pending()).boxed();
    edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
    let response = edge
        .send(edge.request("POST", NOTES, rpc("SendStreamingMessage")))
        .await;
    let mut body = response.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    body.next().await.unwrap().unwrap_err();
    assert!(body.next().await.is_none());
}

/// Login that finds the token revoked, or will not say after too many failures.
#[derive(Debug)]
struct Refuses(StatusCode, &'static str);

const REVOKED: Refuses = Refuses(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");

#[async_trait]
impl Authenticate for Refuses {
    async fn bearer(&self, _: &str, _: RequestInfo) -> Result<TenantContext, Problem> {
        Err(Problem::new(self.0, self.1, "the API token is not valid"))
    }
}

impl Edge {
    fn session(&self, login: Refuses) -> Session {
        Session::new(Arc::new(login), self.token.clone(), RequestInfo::default())
    }
}

#[tokio::test(start_paused = true)]
async fn s14_a_stream_ends_within_five_seconds_of_the_tokens_revocation() {
    for login in [
        REVOKED,
        Refuses(StatusCode::TOO_MANY_REQUESTS, "LIMIT"),
        Refuses(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    ] {
        let edge = Edge::new();
        let why = login.1;
        let body = stream::pending().boxed();
        edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
        let mut request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
        request.extensions_mut().insert(edge.session(login));
        let begun = tokio::time::Instant::now();
        let mut body = edge.send(request).await.into_body().into_data_stream();
        body.next().await.unwrap().unwrap_err();
        assert!(begun.elapsed() <= Duration::from_secs(5), "{why}");
    }
}

fn events() -> HeaderMap {
    HeaderMap::from_iter([(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    )])
}

/// The problem, or JSON-RPC answer, in the one event that this is.
fn event(chunk: &Bytes) -> Value {
    let text = std::str::from_utf8(chunk).unwrap();
    let data = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    serde_json::from_str(data).unwrap()
}

#[tokio::test(start_paused = true)]
async fn s14_a_stream_of_events_says_that_its_token_was_revoked() {
    let edge = Edge::new();
    for (path, body) in [
        (NOTES.to_owned(), rpc("SendStreamingMessage")),
        (
            format!("{NOTES}/message:stream"),
            json!({"message": {}}).to_string(),
        ),
    ] {
        let gone = Arc::new(AtomicBool::new(false));
        let guard = Dropped(gone.clone());
        let first = stream::once(async { Ok(Bytes::from_static(b"data: 1\n\n")) });
        let rest = stream::poll_fn(move |_| {
            let _ = &guard;
            std::task::Poll::Pending
        });
        edge.script(Script::Answer(
            StatusCode::OK,
            events(),
            first.chain(rest).boxed(),
        ));
        let mut request = edge.request("POST", &path, body);
        request.extensions_mut().insert(edge.session(REVOKED));
        let begun = tokio::time::Instant::now();
        let mut body = edge.send(request).await.into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), "data: 1\n\n");
        let told = event(&body.next().await.unwrap().unwrap());
        assert!(begun.elapsed() <= Duration::from_secs(5));
        if path == NOTES {
            assert_eq!(told["id"], 7, "{told}");
            assert_eq!(told["error"]["data"][0]["reason"], "UNAUTHENTICATED", "{told}");
        } else {
            assert_eq!(told["code"], "UNAUTHENTICATED", "{told}");
            assert_eq!(told["status"], 401, "{told}");
        }
        assert!(body.next().await.is_none());
        assert!(gone.load(Ordering::SeqCst), "the call goes on for nobody");
    }
}

#[tokio::test]
async fn s49_a_stream_of_events_says_that_its_cluster_was_revoked() {
    let revoked = || Err(io::Error::other(TunnelError::Revoked));
    let whole = Ok(Bytes::from_static(b"data: 1\r\n\r\n"));
    let half = Ok(Bytes::from_static(b"data: 1\n\ndata: 2\n"));
    let edge = Edge::new();
    for (answer, is_told) in [
        (vec![whole, revoked()], true),
        (vec![revoked()], true),
        // Nothing can be said in the middle of an event.
        (vec![half, revoked()], false),
        (
            vec![Err(io::Error::other(TunnelError::Broken(String::new())))],
            false,
        ),
    ] {
        let (send, mut receive) = mpsc::channel::<io::Result<Bytes>>(1);
        let body = stream::poll_fn(move |cx| receive.poll_recv(cx)).boxed();
        edge.script(Script::Answer(StatusCode::OK, events(), body));
        let request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
        let mut body = edge.send(request).await.into_body().into_data_stream();
        for chunk in answer {
            let given = chunk.as_ref().ok().cloned();
            send.send(chunk).await.unwrap();
            if let Some(given) = given {
                assert_eq!(body.next().await.unwrap().unwrap(), given);
            }
        }
        let last = body.next().await.unwrap();
        match is_told {
            true => {
                let told = event(&last.unwrap());
                assert_eq!(told["error"]["data"][0]["reason"], "UNAVAILABLE", "{told}");
                let message = told["error"]["message"].as_str().unwrap();
                assert!(message.contains("revoked"), "{told}");
            }
            false => drop(last.unwrap_err()),
        }
        assert!(body.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn s49_a_caller_who_does_not_read_keeps_no_call_of_a_revoked_cluster() {
    for headers in [events(), HeaderMap::new()] {
        let edge = Edge::new();
        let gone = Arc::new(AtomicBool::new(false));
        let guard = Dropped(gone.clone());
        let chunk = move || {
            let _ = &guard;
            Ok(Bytes::from_static(b"data: 1\n\n"))
        };
        let is_told = !headers.is_empty();
        let body = stream::repeat_with(chunk).boxed();
        edge.script(Script::Answer(StatusCode::OK, headers, body));
        let request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
        let response = edge.send(request).await;
        // Until the chunks that wait for the reader are all that fit.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!gone.load(Ordering::SeqCst));
        edge.tunnel.revoked.send_replace(true);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(gone.load(Ordering::SeqCst), "the call goes on for a slow reader");
        let mut body = response.into_body().into_data_stream();
        let last = body.next().await.unwrap();
        match is_told {
            true => {
                let told = event(&last.unwrap());
                assert!(told.to_string().contains("revoked"), "{told}");
            }
            false => drop(last.unwrap_err()),
        }
        assert!(body.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn s14_a_stream_whose_token_nobody_can_verify_ends_after_a_minute() {
    let edge = Edge::new();
    edge.script(Script::Answer(
        StatusCode::OK,
        events(),
        stream::pending().boxed(),
    ));
    let mut request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
    let away = Refuses(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE");
    request.extensions_mut().insert(edge.session(away));
    let begun = tokio::time::Instant::now();
    let mut body = edge.send(request).await.into_body().into_data_stream();
    let told = event(&body.next().await.unwrap().unwrap());
    assert_eq!(told["error"]["data"][0]["reason"], "UNAVAILABLE", "{told}");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(60) && took <= Duration::from_secs(75),
        "{took:?}"
    );
    assert!(body.next().await.is_none());
}

/// Login that never answers.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl Authenticate for Silent {
    async fn bearer(&self, _: &str, _: RequestInfo) -> Result<TenantContext, Problem> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn s14_a_look_at_the_token_that_never_ends_holds_no_answer() {
    let edge = Edge::new();
    let (send, mut receive) = mpsc::channel::<io::Result<Bytes>>(1);
    let body = stream::poll_fn(move |cx| receive.poll_recv(cx)).boxed();
    edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
    let mut request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
    let session = Session::new(Arc::new(Silent), edge.token.clone(), RequestInfo::default());
    request.extensions_mut().insert(session);
    let begun = tokio::time::Instant::now();
    let mut body = edge.send(request).await.into_body().into_data_stream();
    tokio::time::sleep(Duration::from_secs(5)).await;
    send.send(Ok(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "data: 1\n\n");
    body.next().await.unwrap().unwrap_err();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(60) && took <= Duration::from_secs(75),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_less_than_a_minute_ends_no_stream() {
    let edge = Edge::new();
    let (send, mut receive) = mpsc::channel::<io::Result<Bytes>>(1);
    let body = stream::poll_fn(move |cx| receive.poll_recv(cx)).boxed();
    edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
    let mut request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
    let away = Refuses(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE");
    request.extensions_mut().insert(edge.session(away));
    let mut body = edge.send(request).await.into_body().into_data_stream();
    tokio::time::sleep(Duration::from_secs(58)).await;
    send.send(Ok(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "data: 1\n\n");
}

#[tokio::test(start_paused = true)]
async fn s14_who_may_no_longer_call_gets_nothing_of_what_waits() {
    let edge = Edge::new();
    let chunk = || Ok(Bytes::from_static(b"data: secret\n\n"));
    let body = stream::repeat_with(chunk).boxed();
    edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
    let mut request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
    request.extensions_mut().insert(edge.session(REVOKED));
    let mut body = edge.send(request).await.into_body().into_data_stream();
    // The caller reads nothing until the token has been found revoked.
    tokio::time::sleep(Duration::from_secs(5)).await;
    body.next().await.unwrap().unwrap_err();
    assert!(body.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn s14_a_token_revoked_while_an_answer_is_awaited_gets_none() {
    let edge = Edge::new();
    let mut request = edge.request("POST", NOTES, rpc("SendMessage"));
    request.extensions_mut().insert(edge.session(REVOKED));
    let begun = tokio::time::Instant::now();
    let response = edge.send(request).await;
    assert!(begun.elapsed() <= Duration::from_secs(5));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["error"]["data"][0]["reason"], "UNAUTHENTICATED");
    assert!(edge.tunnel.hanging_dropped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_stops_reading_holds_no_call() {
    let edge = Edge::new();
    let gone = Arc::new(AtomicBool::new(false));
    let guard = Dropped(gone.clone());
    let chunk = move || {
        let _ = &guard;
        Ok(Bytes::from_static(b"data: 1\n\n"))
    };
    let body = stream::repeat_with(chunk).boxed();
    edge.script(Script::Answer(StatusCode::OK, HeaderMap::new(), body));
    let request = edge.request("POST", NOTES, rpc("SendStreamingMessage"));
    let response = edge.send(request).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(gone.load(Ordering::SeqCst), "the call goes on for nobody");
    let mut body = response.into_body().into_data_stream();
    body.next().await.unwrap().unwrap_err();
}

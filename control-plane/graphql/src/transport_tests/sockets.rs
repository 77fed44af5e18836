//! The WebSocket from outside.

use super::*;

pub(super) struct Served {
    address: SocketAddr,
    login: Arc<OneToken>,
    stop: CancellationToken,
}

pub(super) type Socket = WebSocketStream<TcpStream>;

impl Served {
    pub(super) async fn new() -> Self {
        let login = Arc::new(one_token());
        let stop = CancellationToken::new();
        let app = router(face(&login, &stop)).layer(from_fn(guard));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, login, stop }
    }

    async fn open(&self, headers: &[(&'static str, String)]) -> Result<Socket, StatusCode> {
        let mut request = format!("ws://{}/graphql/ws", self.address)
            .into_client_request()
            .unwrap();
        let all = [("sec-websocket-protocol", "graphql-transport-ws".to_owned())];
        for (name, value) in all.iter().chain(headers) {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn socket(&self) -> Socket {
        self.open(&[]).await.unwrap()
    }

    pub(super) async fn ready(&self) -> Socket {
        let mut socket = self.socket().await;
        let payload = json!({"authorization": format!("Bearer {}", self.login.token)});
        say(
            &mut socket,
            json!({"type": "connection_init", "payload": payload}),
        )
        .await;
        assert_eq!(hear(&mut socket).await["type"], "connection_ack");
        socket
    }
}

pub(super) async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(Duration::from_secs(10), socket.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

pub(super) async fn hear(socket: &mut Socket) -> Value {
    serde_json::from_str(next(socket).await.to_text().unwrap()).unwrap()
}

/// The code with which the hub closes.
async fn closed(socket: &mut Socket) -> u16 {
    loop {
        if let Message::Close(frame) = next(socket).await {
            return frame.unwrap().code.into();
        }
    }
}

pub(super) fn subscribe(id: &str, query: &str) -> Value {
    json!({"type": "subscribe", "id": id, "payload": {"query": query}})
}

#[tokio::test]
async fn a_subscription_gives_its_events_and_completes() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(&mut socket, json!({"type": "ping", "payload": {"a": 1}})).await;
    assert_eq!(
        hear(&mut socket).await,
        json!({"type": "pong", "payload": {"a": 1}})
    );
    say(&mut socket, subscribe("s", "subscription { count(to: 2) }")).await;
    for n in 0..2 {
        let message = hear(&mut socket).await;
        assert_eq!((&message["type"], &message["id"]), (&json!("next"), &json!("s")));
        assert_eq!(message["payload"]["data"]["count"], n);
    }
    assert_eq!(hear(&mut socket).await, json!({"type": "complete", "id": "s"}));
    say(&mut socket, subscribe("s", "subscription { nothing }")).await;
    let error = hear(&mut socket).await;
    assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("s")));
    say(&mut socket, subscribe("m", "mutation { write }")).await;
    assert_eq!(hear(&mut socket).await["type"], "error");
}

#[tokio::test]
async fn s22_the_upgrade_asks_for_origin_and_protocol() {
    let served = Served::new().await;
    let origin = |o: &str| [("origin", o.to_owned())];
    assert_eq!(
        served.open(&origin("https://evil.example")).await.unwrap_err(),
        403
    );
    assert_eq!(served.open(&origin("null")).await.unwrap_err(), 403);
    served.open(&origin("https://hub.example")).await.unwrap();
    let other = [("sec-websocket-protocol", "graphql-ws".to_owned())];
    assert_eq!(served.open(&other).await.unwrap_err(), 400);
}

#[tokio::test]
async fn s23_every_misuse_has_its_close_code() {
    let served = Served::new().await;
    let mut early = served.socket().await;
    say(&mut early, subscribe("1", "subscription { endless }")).await;
    assert_eq!(closed(&mut early).await, 4401);

    let mut silent = served.socket().await;
    assert_eq!(closed(&mut silent).await, 4408);

    let mut anonymous = served.socket().await;
    say(&mut anonymous, json!({"type": "connection_init"})).await;
    assert_eq!(closed(&mut anonymous).await, 4401);

    let mut wrong = served.socket().await;
    let payload = json!({"authorization": "Bearer rst_wrong"});
    say(&mut wrong, json!({"type": "connection_init", "payload": payload})).await;
    assert_eq!(closed(&mut wrong).await, 4401);

    let mut twice = served.ready().await;
    say(&mut twice, json!({"type": "connection_init"})).await;
    assert_eq!(closed(&mut twice).await, 4429);

    let mut same = served.ready().await;
    say(&mut same, subscribe("1", "subscription { endless }")).await;
    say(&mut same, subscribe("1", "subscription { endless }")).await;
    assert_eq!(closed(&mut same).await, 4409);

    for nonsense in [
        "{",
        "[]",
        r#"{"type":"start"}"#,
        r#"{"type":"subscribe","id":"1"}"#,
    ] {
        let mut socket = served.ready().await;
        socket.send(Message::text(nonsense)).await.unwrap();
        assert_eq!(closed(&mut socket).await, 4400, "{nonsense}");
    }
    let mut binary = served.ready().await;
    binary.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(closed(&mut binary).await, 4400);
}

#[tokio::test]
async fn a_finished_or_cancelled_id_may_be_used_again() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(&mut socket, subscribe("1", "subscription { endless }")).await;
    say(&mut socket, json!({"type": "complete", "id": "1"})).await;
    say(&mut socket, subscribe("1", "subscription { count(to: 1) }")).await;
    assert_eq!(hear(&mut socket).await["type"], "next");
    assert_eq!(hear(&mut socket).await["type"], "complete");
}

#[tokio::test]
async fn s14_a_revoked_token_closes_the_socket() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(&mut socket, subscribe("1", "subscription { endless }")).await;
    served.login.revoked.store(true, Ordering::SeqCst);
    assert_eq!(closed(&mut socket).await, 4401);
}

#[tokio::test]
async fn s14_a_socket_whose_token_nobody_can_verify_is_closed_in_the_end() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(&mut socket, subscribe("1", "subscription { endless }")).await;
    let begun = tokio::time::Instant::now();
    served.login.away.store(true, Ordering::SeqCst);
    assert_eq!(closed(&mut socket).await, 1013);
    // Less would end everybody's sockets whenever the database restarts.
    let asked = served.login.asked.load(Ordering::SeqCst);
    assert!(
        asked > 2 && begun.elapsed() >= Duration::from_millis(300),
        "{asked}"
    );
    // A first look that is not answered opens nothing.
    let mut early = served.socket().await;
    let payload = json!({"authorization": format!("Bearer {}", served.login.token)});
    say(&mut early, json!({"type": "connection_init", "payload": payload})).await;
    assert_eq!(closed(&mut early).await, 4401);
}

#[tokio::test]
async fn a_token_in_the_upgrades_header_serves_too() {
    let served = Served::new().await;
    let header = [("authorization", format!("Bearer {}", served.login.token))];
    let mut socket = served.open(&header).await.unwrap();
    say(&mut socket, json!({"type": "connection_init"})).await;
    assert_eq!(hear(&mut socket).await["type"], "connection_ack");
    served.stop.cancel();
    assert_eq!(closed(&mut socket).await, 1001);
}

#[tokio::test]
async fn s29_an_actor_has_so_many_sockets_and_messages_and_no_more() {
    let served = Served::new().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(served.ready().await);
    }
    let mut fourth = served.socket().await;
    let payload = json!({"authorization": format!("Bearer {}", served.login.token)});
    let init = json!({"type": "connection_init", "payload": payload});
    say(&mut fourth, init).await;
    assert_eq!(closed(&mut fourth).await, 1013);
    drop(open.pop());
    // Its place is free once the hub has seen that it is gone.
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut next = loop {
        let mut socket = served.socket().await;
        let payload = json!({"authorization": format!("Bearer {}", served.login.token)});
        say(
            &mut socket,
            json!({"type": "connection_init", "payload": payload}),
        )
        .await;
        match next(&mut socket).await {
            Message::Text(_) => break socket,
            _ => assert!(tokio::time::Instant::now() < until, "the place is still taken"),
        }
    };
    for _ in 0..100_000 {
        let flood = Message::text(json!({"type": "pong"}).to_string());
        if next.send(flood).await.is_err() {
            break;
        }
    }
    assert!(drain(&mut next).await, "a flood of messages goes on");
}

/// Whether the hub ended the socket.
async fn drain(socket: &mut Socket) -> bool {
    let ended = async {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.is_ok()
}

#[tokio::test]
async fn s31_a_message_of_many_values_closes_the_socket() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    let payload = json!({"query": "subscription { endless }", "variables": {"x": vec![0; 20_000]}});
    say(
        &mut socket,
        json!({"type": "subscribe", "id": "1", "payload": payload}),
    )
    .await;
    assert_eq!(closed(&mut socket).await, 4400);
}

#[tokio::test]
async fn s14_a_slow_reader_whose_token_ends_is_not_waited_for() {
    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(&mut socket, subscribe("1", "subscription { flood }")).await;
    // Nothing is read: the hub's sending waits, and goes on checking. It is told by its login being asked.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    let asked = || served.login.asked.load(Ordering::SeqCst);
    while asked() < 10 {
        assert!(
            tokio::time::Instant::now() < until,
            "a hub that waits checks no more"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.login.revoked.store(true, Ordering::SeqCst);
    let before = asked();
    while asked() == before {
        assert!(
            tokio::time::Instant::now() < until,
            "a hub that waits checks no more"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(drain(&mut socket).await, "the socket stays open");
}

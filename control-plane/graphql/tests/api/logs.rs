//! `agentLogs` over the WebSocket, from the token to the lines.

use crate::support::{NOTES, World};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

async fn open(world: &World) -> WebSocketStream<TcpStream> {
    let address = world.serve().await;
    let mut request = format!("ws://{address}/graphql/ws")
        .into_client_request()
        .unwrap();
    let protocol = "graphql-transport-ws".parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let payload = json!({"authorization": format!("Bearer {}", world.acme.secret)});
    say(
        &mut socket,
        json!({"type": "connection_init", "payload": payload}),
    )
    .await;
    assert_eq!(hear(&mut socket).await["type"], "connection_ack");
    socket
}

async fn say(socket: &mut WebSocketStream<TcpStream>, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn hear(socket: &mut WebSocketStream<TcpStream>) -> Value {
    let message = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next()).await;
    serde_json::from_str(message.unwrap().unwrap().unwrap().to_text().unwrap()).unwrap()
}

async fn logs(socket: &mut WebSocketStream<TcpStream>, name: &str, tail: u32) -> Vec<Value> {
    logs_since(socket, name, tail, Value::Null).await
}

async fn logs_since(
    socket: &mut WebSocketStream<TcpStream>,
    name: &str,
    tail: u32,
    since: Value,
) -> Vec<Value> {
    let query = "subscription($name: String!, $tail: Int!, $since: DateTime) {
        agentLogs(project: \"support\", name: $name, tail: $tail, since: $since) { cluster time line } }";
    let payload = json!({"query": query, "variables": {"name": name, "tail": tail, "since": since}});
    say(
        socket,
        json!({"type": "subscribe", "id": name, "payload": payload}),
    )
    .await;
    let mut heard = Vec::new();
    loop {
        let message = hear(socket).await;
        if message["type"] == "complete" {
            return heard;
        }
        heard.push(message["payload"].clone());
    }
}

#[tokio::test]
async fn the_last_lines_come_and_the_subscription_ends() {
    let world = World::new().await;
    world.apply(NOTES).await;
    let mut socket = open(&world).await;
    let lines = logs(&mut socket, "notes", 2).await;
    let shown: Vec<_> = lines.iter().map(|l| l["data"]["agentLogs"].clone()).collect();
    let line =
        |n: u32| json!({"cluster": "edge", "time": "2027-01-15T08:00:00+00:00", "line": format!("line {n}")});
    assert_eq!(shown, [line(0), line(1)]);
    // All of them were read at that moment.
    for (since, lines) in [("2027-01-15T08:00:00Z", 2), ("2027-01-15T08:00:00.001Z", 0)] {
        let heard = logs_since(&mut socket, "notes", 2, json!(since)).await;
        assert_eq!(heard.len(), lines, "{since}: {heard:?}");
    }
    let heard = logs_since(&mut socket, "notes", 2, json!("yesterday")).await;
    assert!(
        heard[0].to_string().contains("since") || heard[0].to_string().contains("DateTime"),
        "{heard:?}"
    );
}

#[tokio::test]
async fn s33_the_log_of_an_agent_that_is_not_there_is_an_error() {
    let world = World::new().await;
    let mut socket = open(&world).await;
    let heard = logs(&mut socket, "nothing", 2).await;
    assert_eq!(
        heard[0]["errors"][0]["extensions"]["code"], "NOT_FOUND",
        "{heard:?}"
    );
    let heard = logs(&mut socket, "No-Name", 2).await;
    assert_eq!(
        heard[0]["errors"][0]["extensions"]["code"], "INVALID",
        "{heard:?}"
    );
}

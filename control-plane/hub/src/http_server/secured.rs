//! A connection over TLS: its handshake, with a deadline, and what somebody is told who speaks no TLS here.

use super::{BUFFER, Served, Watched, connection};
use http::{HeaderValue, StatusCode};
use roadstead_http::{Problem, RequestId};
use roadstead_telemetry::{Counter, Label, meter};
use std::{io, sync::OnceLock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Browsers that came by TLS once come by nothing else for a year (RFC 6797). Of this host alone: what else its domain has
/// is not the hub's to say.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Serves a connection once its handshake is done.
pub(super) async fn serve(acceptor: TlsAcceptor, io: Watched, served: Served) {
    let (limit, stop) = (served.limits.handshake, served.stop.clone());
    let shaken = tokio::select! {
        // Nothing is under way yet.
        () = stop.cancelled() => return,
        shaken = timeout(limit, handshake(&acceptor, io)) => shaken,
    };
    let outcome = match &shaken {
        Ok(Ok(_)) => "done",
        Ok(Err(outcome)) => outcome,
        Err(_) => "late",
    };
    handshakes().add(1, &[Label::new("outcome", outcome)]);
    if let Ok(Ok(stream)) = shaken {
        connection(stream, served, Some(HSTS)).await;
    }
}

fn handshakes() -> &'static Counter<u64> {
    static HANDSHAKES: OnceLock<Counter<u64>> = OnceLock::new();
    HANDSHAKES.get_or_init(|| {
        meter("roadstead_hub")
            .u64_counter("roadstead.hub.tls.handshakes")
            .with_description("TLS handshakes on the API's port, by outcome.")
            .build()
    })
}

/// # Errors
/// How it failed, as the metric calls it.
async fn handshake(acceptor: &TlsAcceptor, io: Watched) -> Result<TlsStream<Watched>, &'static str> {
    let mut first = [0];
    match io.stream.peek(&mut first).await {
        Ok(1..) => {}
        _ => return Err("gone"),
    }
    // A method of HTTP begins with such a letter, and no record of TLS does.
    if first[0].is_ascii_uppercase() {
        // A peer who has gone is told nothing.
        drop(not_tls(io).await);
        return Err("plain");
    }
    acceptor.accept(io).await.map_err(|error| {
        tracing::debug!(%error, "a TLS handshake failed");
        "failed"
    })
}

/// Tells a client that speaks HTTP here, whose request is not read: it may hold a token, and is on its way in the clear
/// already.
async fn not_tls(mut io: Watched) -> io::Result<()> {
    let detail = "this port speaks TLS: use https://; a token that was sent in the clear should be revoked";
    let problem = Problem::new(StatusCode::BAD_REQUEST, "INVALID", detail).json(&RequestId::generate());
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{problem}",
        problem.len()
    );
    io.write_all(answer.as_bytes()).await?;
    io.shutdown().await?;
    // Closed with something unread the answer would be lost on its way.
    let mut rest = [0; 1024];
    for _ in 0..BUFFER / rest.len() {
        if io.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

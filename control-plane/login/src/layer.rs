//! The layer around the faces.

use crate::{
    Login,
    credential::{NoCredential, bearer},
    observe::{self, Refusal},
};
use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};
use http::{Method, StatusCode};
use roadstead_authz::{RequestInfo, Source};
use roadstead_http::{Authenticate as _, Problem, RequestId, Session, Trace, Who, unauthenticated};
use roadstead_telemetry::propagate;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Paths that answer to anybody: whether the process lives and can serve, and nothing else.
pub const OPEN: &[&str] = &["/livez", "/readyz"];

/// The WebSocket. A browser cannot set headers on it, so without one it goes through unknown, and its handler takes
/// the token from the first message.
pub const SOCKET: &str = "/graphql/ws";

/// Lets a request through with its caller's context in its extensions, or answers it. For
/// `axum::middleware::from_fn_with_state`, outside every router and inside `roadstead_http::guard`. The source is what
/// `ConnectInfo<SocketAddr>` says, the peer or, behind a proxy that the operator trusts, its client; headers are not read
/// here (S25).
pub async fn require(
    State(login): State<Arc<Login>>,
    id: RequestId,
    mut request: Request,
    next: Next,
) -> Response {
    let trace = Trace::of(&request);
    let path = request.uri().path();
    if OPEN.contains(&path) {
        return trace.apart(next.run(request)).await;
    }
    let source = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let mut info = RequestInfo {
        request_id: id.to_string(),
        // Which trace it belongs to is the caller's word, and nobody is known yet.
        trace_id: String::new(),
        source: Source {
            ip: source.map(|ConnectInfo(address)| address.ip()),
            client: client(path).to_owned(),
        },
    };
    let socket = path == SOCKET && request.method() == Method::GET;
    let verified = match bearer(request.uri(), request.headers()) {
        Ok(token) => login
            .bearer(token, info.clone())
            .await
            .map(|context| (context, token.to_owned())),
        Err(NoCredential::Absent) if socket => return trace.apart(next.run(request)).await,
        Err(missing) => {
            observe::refused(missing.into());
            Err(refusal(missing))
        }
    };
    let (context, token) = match verified {
        Err(problem) => return problem.response(&id),
        Ok(verified) => verified,
    };
    let answer = async {
        info.trace_id = propagate::trace_id().unwrap_or_default();
        let context = context.with_request(info.clone());
        let who = Who {
            tenant: context.tenant().to_string(),
            actor: context.actor().label(),
        };
        request.extensions_mut().insert(context);
        request.extensions_mut().insert(Session::new(login, token, info));
        let mut response = next.run(request).await;
        response.extensions_mut().insert(who);
        response
    };
    trace.joined(answer).await
}

impl From<NoCredential> for Refusal {
    fn from(missing: NoCredential) -> Self {
        match missing {
            NoCredential::Absent => Self::Absent,
            NoCredential::Malformed => Self::Malformed,
            NoCredential::InUrl => Self::InUrl,
        }
    }
}

/// What audit records call the kind of client.
fn client(path: &str) -> &'static str {
    if path.starts_with("/a2a/") {
        "a2a"
    } else {
        "graphql"
    }
}

fn refusal(missing: NoCredential) -> Problem {
    match missing {
        NoCredential::Absent => unauthenticated("this needs an API token"),
        NoCredential::Malformed => unauthenticated("the authorization header is not one bearer token"),
        NoCredential::InUrl => {
            let detail = "a credential was put into the URL, where it is logged by many: revoke it, and send another \
                          in the header `Authorization: Bearer rst_…`";
            Problem::new(StatusCode::BAD_REQUEST, "INVALID", detail)
        }
    }
}

/// The source of a request for counting failures. Connections without an address (a socket pair in a test) are one.
pub(crate) fn counted(source: Option<IpAddr>) -> IpAddr {
    source.unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

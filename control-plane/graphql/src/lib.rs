//! GraphQL over the service: thin resolvers, and our own thin transport.
//!
//! A resolver reads the caller's context, calls one use case and wraps what it answers. Who the caller is was settled
//! before ([`roadstead_http::Caller`]); what a request may cost is settled before it runs ([`Limits`]). The SDL
//! ([`sdl`]) is committed as `web/schema.graphql` and is the contract.

mod apply;
mod calls;
mod cost;
mod error;
mod expanded;
mod fleet;
mod http;
mod limits;
mod mutation;
mod observe;
mod query;
mod run;
mod schema;
mod socket;
mod sockets;
mod subscription;
#[cfg(test)]
mod transport_tests;
mod types;
mod wire;

pub use error::{ErrorCode, UserError};
pub use fleet::{Fleet, LogLine, LogLines, LogRequest};
pub use limits::Limits;
pub use schema::sdl;
pub use socket::SocketLimits;
use sockets::Sockets;

use ::http::{HeaderMap, header};
use axum::{
    Router,
    routing::{get, post},
};
use calls::Once;
use cost::Budget;
use roadstead_authz::TenantContext;
use roadstead_domain::TenantId;
use roadstead_http::{Authenticate, Bodies, BodyLimits};
use roadstead_store::Store;
use run::Executes;
use std::{fmt, sync::Arc};
use tokio_util::sync::CancellationToken;
use wire::Operation;

/// The face, ready to be served.
pub struct Graphql {
    schema: Box<dyn Executes>,
    limits: Limits,
    bodies: Arc<Bodies>,
    /// What answers on their way hold.
    answers: Arc<Bodies>,
    socket: SocketLimits,
    sockets: Arc<Sockets>,
    authenticate: Arc<dyn Authenticate>,
    /// Origins (`https://hub.example`) whose pages may open a socket.
    origins: Vec<String>,
    stop: CancellationToken,
}

impl fmt::Debug for Graphql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graphql")
            .field("limits", &self.limits)
            .field("socket", &self.socket)
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

/// What the face is made of.
#[derive(Debug)]
pub struct Parts {
    pub store: Store,
    pub fleet: Arc<dyn Fleet>,
    /// Login: verifies the tokens of sockets.
    pub authenticate: Arc<dyn Authenticate>,
    /// Origins (`https://hub.example`) whose pages may open a socket. Programs that send no origin always may.
    pub origins: Vec<String>,
    pub limits: Limits,
    /// What all faces hold of request bodies.
    pub bodies: Arc<Bodies>,
    pub socket: SocketLimits,
    /// Closes the sockets when the hub stops.
    pub stop: CancellationToken,
}

impl Graphql {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            schema: Box::new(schema::schema(parts.store, parts.fleet, &parts.limits)),
            answers: answers(&parts.limits),
            limits: parts.limits,
            bodies: parts.bodies,
            sockets: Sockets::new(parts.socket.per_actor),
            socket: parts.socket,
            authenticate: parts.authenticate,
            origins: parts.origins,
            stop: parts.stop,
        }
    }

    /// What one request of the tenant may spend.
    fn budget(&self, tenant: TenantId) -> Budget {
        Budget::new(self.limits.cost, self.limits.answer_bytes).holding(self.answers.share(tenant))
    }

    /// One operation with all that its resolvers need.
    fn request(
        &self,
        operation: Operation,
        context: TenantContext,
        budget: Budget,
    ) -> async_graphql::Request {
        let request = operation.into_request();
        request.data(context).data(budget).data(Once::default())
    }

    /// Whether a page of the request's origin may open a socket (S22). Programs send no `Origin`.
    fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => true,
            (Some(origin), None) => self.origins.iter().any(|known| origin == known.as_str()),
            (Some(_), Some(_)) => false,
        }
    }
}

fn answers(limits: &Limits) -> Arc<Bodies> {
    let (total, tenant) = limits.answers;
    Bodies::new(BodyLimits {
        total,
        tenant,
        ..BodyLimits::default()
    })
}

/// Serves `POST /graphql` and the WebSocket at `/graphql/ws`. Needs login's layer around it.
pub fn router(graphql: Arc<Graphql>) -> Router {
    Router::new()
        .route("/graphql", post(http::post))
        .route("/graphql/ws", get(socket::upgrade))
        .method_not_allowed_fallback(roadstead_http::method_not_allowed)
        .with_state(graphql)
}

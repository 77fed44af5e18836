//! What every HTTP face shares, so that login, GraphQL and the gateway, which do not know each other, fail alike.
//!
//! * [`RequestId`]: one id for each request, in the answer, the log and the error.
//! * [`Problem`]: an error outside GraphQL as `application/problem+json` (RFC 9457).
//! * [`Session`]: the proof a request came with, for answers that last.
//! * [`guard()`]: the outermost layer: gives the id and turns a panic into a problem (S24).
//! * [`Trace`]: whose trace the request belongs to, once that is known.
//! * [`Who`]: whose request it was, for the one line in the log.
//! * [`Authenticate`]: the door to login, which the faces share and do not know.
//! * [`Caller`]: whoever login found, for handlers.
//! * [`Bodies`]: request bodies, bounded in bytes, in time and in sum.
//! * [`not_found`], [`method_not_allowed`]: the fallbacks of a router.

mod authenticate;
mod bodies;
mod caller;
mod guard;
mod observe;
mod problem;
mod session;
mod trace;

pub use authenticate::Authenticate;
pub use bodies::{Bodies, BodyError, BodyLimits, MAX_JSON_TOKENS, Share, json_tokens};
pub use caller::{Caller, unauthenticated};
pub use guard::{RequestId, guard, turn_away};
pub use observe::Who;
pub use problem::{Problem, method_not_allowed, not_found};
pub use session::{ONE_LOOK, RECHECK, Session, UNANSWERED};
pub use trace::Trace;

/// The header that carries the request id in every answer.
pub const REQUEST_ID: &str = "x-request-id";

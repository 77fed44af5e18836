//! Who is calling: bearer API tokens on the HTTP faces.
//!
//! [`require`] is a layer around every face: nothing behind it is reached without a token but what [`OPEN`] names. It
//! goes wrong towards refusal: no header, a malformed one, a token in the URL, a wrong checksum (no query), an unknown,
//! expired or revoked token, and a database that does not answer each give a problem document and no handler runs.

mod credential;
mod failures;
mod layer;
mod observe;
mod rate;
mod verify;

pub use failures::FailureLimit;
pub use layer::{OPEN, SOCKET, require};
pub use rate::{Rate, RequestLimit};
pub use verify::Login;

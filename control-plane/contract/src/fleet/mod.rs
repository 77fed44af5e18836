//! The hub ↔ cluster agent protocol: the generated messages and services of `proto/roadstead/fleet/v1`, and what both
//! sides compute alike: state roots, digests, join tokens, limits.

mod join;
mod state_root;
mod trust;

pub use join::{CaPin, JoinToken, JoinTokenError};
pub use state_root::{Digest, DigestError, StateSum, document_digest};
pub use trust::roots_digest;
pub use wire::*;

/// Protocol versions that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;
/// Largest frame, either way (protocol.md §1).
pub const MAX_FRAME: usize = 256 * 1024;
/// Largest document that travels inside a batch; larger ones go by Bulk (protocol.md §1).
pub const MAX_INLINE: usize = 64 * 1024;
/// Entries of one Have page (protocol.md §3 rule 2). With uids of 64 bytes a page is 110 KiB: well inside a frame.
pub const HAVE_PAGE: usize = 1_000;
/// Bytes of one Bulk chunk's data. Below [`MAX_FRAME`] by the space of the other fields.
pub const BLOB_CHUNK: usize = MAX_FRAME - 64;
/// Largest document that the hub serves by Bulk; contract::documents refuses longer ones much earlier.
pub const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
/// Bytes of one chunk of a tunnelled body.
pub const TUNNEL_CHUNK: usize = 64 * 1024;
/// Most roots of a trust bundle: a rotation has two.
pub const MAX_ROOTS: usize = 4;
/// Largest root, DER; a usual one is half a KiB.
pub const MAX_ROOT: usize = 8 * 1024;
/// The capability of a cluster agent that does `RestartEngine` (protocol.md §3 rule 12).
pub const RESTART_ENGINE: &str = "command.restartEngine";
/// Commands of one cluster that have no result yet; the hub takes no more.
pub const MAX_COMMANDS: usize = 64;

/// How many documents a verified snapshot may delete without a person, of `documents` held: max(5, 10 %)
/// (protocol.md §3 rule 5).
#[must_use]
pub const fn delete_budget(documents: u64) -> u64 {
    let tenth = documents / 10;
    if tenth > 5 { tenth } else { 5 }
}

#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod wire {
    tonic::include_proto!("roadstead.fleet.v1");
}

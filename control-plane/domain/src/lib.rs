//! Ids, the one error, the clock and the source of randomness of the hub; no framework.
//!
//! Everything above stands on these words, so they name no transport and no database. Time and randomness are
//! parameters ([`Clock`], [`Random`]): whoever makes an id, a token or a deadline takes them, and tests replay.

mod clock;
mod error;
mod id;
mod page;
mod random;

pub use clock::{Clock, FakeClock, SystemClock};
pub use error::{ConflictReason, Detail, Error, Problem, Result};
pub use id::{
    AgentId, AuditId, ClusterId, CommandId, EnrolmentTokenId, IdError, ModelId, ObjectId, ProjectId,
    PromptId, RevisionId, RunId, TenantId, TokenId, ToolServerId,
};
pub use page::{MAX_PAGE, Page, PageRequest};
pub use random::{OsRandom, Random, SeededRandom};

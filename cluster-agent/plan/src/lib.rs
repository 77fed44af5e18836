//! From documents to engines: what should run on this cluster, and what must change so that it does.
//!
//! Pure: no client, no clock, no randomness; the same values in any order give the same plan. The caller reads the
//! documents from its inbox, asks its runtime what it holds ([`Observed`]), and gives the [`Action`]s back to it.
//!
//! What can go wrong stays with the document that is wrong: it becomes a [`Problem`], the agent keeps the last unit
//! that its runtime was given, and every other agent goes on. Nothing is ever stopped because a document could not
//! be read.

mod actions;
mod check;
mod desired;

pub use actions::{Action, actions};
pub use check::{Abilities, MODEL_KEY, Programs, environment, reserved};
pub use desired::{MAX_UID, desired};

use roadstead_contract::{bundle::Bundle, documents::Document};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A document as the inbox holds it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The object's id, chosen by the hub.
    pub uid: String,
    pub generation: u64,
    pub content: Content,
}

/// A document, or why it could not be read.
#[derive(Clone, Debug)]
pub enum Content {
    Document(Box<Document>),
    /// What the parser said: where, what was expected, what was found.
    Unreadable(String),
}

/// One engine: an agent with everything that its process needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineUnit {
    pub bundle: Bundle,
    /// [`Bundle::digest`]: equal digests mean the same thing to run.
    pub digest: String,
    /// What cannot change without a new process.
    pub process: Process,
    /// Agents that this one may call: the reference that its document uses → their uid.
    pub peers: BTreeMap<String, String>,
    /// Agents that may call this one: their uid → `project/name`.
    pub callers: BTreeMap<String, String>,
    /// Environment variables of the cluster agent whose values the bundle names.
    pub environment: BTreeSet<String>,
    /// Every document that went into the bundle: uid → generation, the agent's own among them.
    pub sources: BTreeMap<String, u64>,
}

impl EngineUnit {
    /// The agent's uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.bundle.uid
    }
}

/// The settings of a process that take effect only when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// The user's own engine; `None` is Roadstead's.
    pub image: Option<String>,
    pub port: Option<u16>,
    /// Requested and highest share of a processor, in thousandths.
    pub cpu_request: Option<u64>,
    pub cpu_limit: Option<u64>,
    /// Requested and highest memory, in bytes.
    pub memory_request: Option<u64>,
    pub memory_limit: Option<u64>,
}

/// What a runtime holds, by the agent's uid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The unit that it was last given, for each agent that has a process.
    pub engines: BTreeMap<String, EngineUnit>,
    /// The last unit that an engine accepted, kept on the runtime's disk: what an agent goes on with when its
    /// document turns bad while the cluster agent is away.
    pub stored: BTreeMap<String, EngineUnit>,
}

impl Observed {
    /// What this agent would go on with.
    #[must_use]
    pub fn last(&self, uid: &str) -> Option<&EngineUnit> {
        self.engines.get(uid).or_else(|| self.stored.get(uid))
    }
}

/// What should run, and what could not be planned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// By the agent's uid.
    pub engines: BTreeMap<String, EngineUnit>,
    /// Documents to refuse at the hub, ordered by uid and detail.
    pub problems: Vec<Problem>,
    /// Agents that run on what they had because something they refer to was refused: uid → why.
    pub held: BTreeMap<String, String>,
}

/// Why a document cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub uid: String,
    pub generation: u64,
    pub code: Code,
    /// For a person: path in the document, what was expected, what was found.
    pub detail: String,
}

/// The kinds of problem; [`Code::as_str`] is what travels to the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The document does not parse, or lacks its project.
    Unreadable,
    /// A reference to something that is not on this cluster.
    Dangling,
    /// The document asks for what this cluster's runtime does not do.
    Unsupported,
    /// An environment variable that the cluster agent does not offer.
    Environment,
    /// A program that the cluster does not allow.
    Program,
    /// A document that this one refers to was refused.
    Dependency,
    /// Another document has the same kind, project and name.
    DuplicateName,
    /// The uid cannot be one of the hub's.
    MalformedUid,
}

impl Code {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Dangling => "dangling",
            Self::Unsupported => "unsupported",
            Self::Environment => "environment",
            Self::Program => "program",
            Self::Dependency => "dependency",
            Self::DuplicateName => "duplicateName",
            Self::MalformedUid => "malformedUid",
        }
    }
}

//! Who acts.

use crate::SystemTask;
use roadstead_domain::{ClusterId, TokenId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What somebody may do in a tenant (tenancy.md §3); each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Viewer,
    Operator,
    Editor,
    Admin,
    Owner,
}

impl Role {
    /// Every role, from the least to the most.
    pub const ALL: [Self; 5] = [
        Self::Viewer,
        Self::Operator,
        Self::Editor,
        Self::Admin,
        Self::Owner,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Editor => "editor",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role of that name; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A ceiling that a token carries (api.md §4): each implies the ones before it, except that `approve` stands alone
/// and is implied by none but `admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Read,
    Invoke,
    Write,
    Approve,
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [Self::Read, Self::Invoke, Self::Write, Self::Approve, Self::Admin];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Write => "write",
            Self::Approve => "approve",
            Self::Admin => "admin",
        }
    }

    /// The scope of that name; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    /// `true` when a token with this scope may do what needs `other`.
    #[must_use]
    pub fn implies(self, other: Self) -> bool {
        match self {
            Self::Approve => other == Self::Approve,
            Self::Admin => true,
            _ => other != Self::Approve && self >= other,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who acts. Made together with the context that it belongs to, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(pub(crate) ActorKind);

/// The kinds of actor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActorKind {
    /// Whoever holds an API token: a service account or a person's own program.
    Token {
        token: TokenId,
        /// The token's name, for people.
        name: String,
        role: Role,
        scopes: Vec<Scope>,
    },
    /// The cluster agent of one cluster.
    ClusterAgent { cluster: ClusterId },
    /// The hub itself, in one named task.
    System { task: SystemTask },
}

impl ActorKind {
    /// How records name whoever holds this token; so a token says which one issued it.
    #[must_use]
    pub fn token_label(token: TokenId) -> String {
        format!("token:{token}")
    }
}

impl Actor {
    #[must_use]
    pub fn kind(&self) -> &ActorKind {
        &self.0
    }

    /// How audit records and revisions name the actor: `token:tok_…`, `cluster:cls_…`, `system:bootstrap`.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.0 {
            ActorKind::Token { token, .. } => ActorKind::token_label(*token),
            ActorKind::ClusterAgent { cluster } => format!("cluster:{cluster}"),
            ActorKind::System { task } => format!("system:{}", task.name()),
        }
    }

    /// How people know the actor: the token's name, else the label.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.0 {
            ActorKind::Token { name, .. } => name.clone(),
            _ => self.label(),
        }
    }
}

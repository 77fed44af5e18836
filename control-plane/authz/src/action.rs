//! What can be done.

/// An act that somebody may or may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// See an object, its revisions, its status and its runs, without content.
    View,
    /// Talk to an agent.
    Invoke,
    /// Read an engine's log.
    ReadLogs,
    /// Decide an approval.
    Approve,
    /// Create and change documents.
    Write,
    /// Delete documents.
    Delete,
    /// Make an older revision the current one.
    RollBack,
    CreateProject,
    /// List, issue and revoke API tokens.
    ManageTokens,
    /// Read the audit log.
    ViewAudit,
    /// Create and delete clusters, make join tokens, revoke certificates.
    ManageClusters,
    /// Make a tenant: never by a role of a tenant.
    CreateTenant,
    /// Receive a cluster's desired set and report on it: a cluster agent, for its own cluster.
    Synchronise,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 13] = [
        Self::View,
        Self::Invoke,
        Self::ReadLogs,
        Self::Approve,
        Self::Write,
        Self::Delete,
        Self::RollBack,
        Self::CreateProject,
        Self::ManageTokens,
        Self::ViewAudit,
        Self::ManageClusters,
        Self::CreateTenant,
        Self::Synchronise,
    ];

    /// The word for messages and audit records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Invoke => "invoke",
            Self::ReadLogs => "read logs",
            Self::Approve => "approve",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::RollBack => "roll back",
            Self::CreateProject => "create a project",
            Self::ManageTokens => "manage tokens",
            Self::ViewAudit => "view the audit log",
            Self::ManageClusters => "manage clusters",
            Self::CreateTenant => "create a tenant",
            Self::Synchronise => "synchronise",
        }
    }
}

/// The actions as types, for [`crate::Authorized`].
pub mod act {
    use super::Action;

    /// An action as a type.
    pub trait Act: std::fmt::Debug + Send + Sync + 'static {
        const ACTION: Action;
    }

    macro_rules! acts {
        ($($name:ident),+) => {$(
            #[doc = concat!("[`Action::", stringify!($name), "`] as a type.")]
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl Act for $name {
                const ACTION: Action = Action::$name;
            }
        )+};
    }
    acts!(
        View,
        Invoke,
        ReadLogs,
        Approve,
        Write,
        Delete,
        RollBack,
        CreateProject,
        ManageTokens,
        ViewAudit,
        ManageClusters,
        CreateTenant,
        Synchronise
    );
}

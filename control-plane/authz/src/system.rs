//! Work of the hub itself.

/// The tasks that may act without a person. The list is held by a test and may only shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemTask {
    /// Makes the first tenant, project, cluster and token of an embedded hub, and new tenants.
    Bootstrap,
    /// Finds what an API token, a join token or a client certificate stands for, before anybody is known.
    Authenticate,
    /// Checks every tenant's audit chain.
    VerifyAudit,
    /// Removes what has expired.
    Purge,
    /// Writes down when cluster agents were last heard, in batches.
    LastSeen,
}

impl SystemTask {
    /// Every task.
    pub const ALL: [Self; 5] = [
        Self::Bootstrap,
        Self::Authenticate,
        Self::VerifyAudit,
        Self::Purge,
        Self::LastSeen,
    ];

    /// The name in audit records and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Authenticate => "authenticate",
            Self::VerifyAudit => "verify-audit",
            Self::Purge => "purge",
            Self::LastSeen => "last-seen",
        }
    }
}

/// The way into the few acts that cross tenants. It opens none of a tenant's rows by itself.
#[derive(Clone, Debug)]
pub struct SystemContext {
    task: SystemTask,
}

impl SystemContext {
    /// For the named task.
    #[must_use]
    pub const fn new(task: SystemTask) -> Self {
        Self { task }
    }

    #[must_use]
    pub const fn task(&self) -> SystemTask {
        self.task
    }
}

#[cfg(test)]
mod tests {
    use super::SystemTask;

    #[test]
    fn s38_the_system_tasks_are_these_and_no_others() {
        let names = SystemTask::ALL.map(SystemTask::name);
        let allowed = ["bootstrap", "authenticate", "verify-audit", "purge", "last-seen"];
        assert_eq!(names, allowed, "this list may only shrink");
    }
}

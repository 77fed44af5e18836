//! The one decision: may this actor do this to that?
//!
//! A small static table for now: one role for the whole tenant, from the actor's token; the answer is (what the role
//! may) ∩ (what the token's scopes allow). Whatever is not named is denied. The whole matrix is a golden file.

use crate::{Action, ActorKind, Role, Scope, SystemTask, TenantContext, act};
use roadstead_domain::{ClusterId, Error, ObjectId, ProjectId, RunId, TenantId, TokenId};
use std::{fmt, marker::PhantomData};

/// Something in a tenant that an act can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Object {
    /// The tenant itself, and what hangs on it alone (tokens, clusters, the audit log) when a new one is made.
    Tenant,
    Project(ProjectId),
    Document {
        id: ObjectId,
        project: ProjectId,
    },
    Cluster(ClusterId),
    Run(RunId),
    Token(TokenId),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant => f.write_str("tenant"),
            Self::Project(id) => id.fmt(f),
            Self::Document { id, .. } => id.fmt(f),
            Self::Cluster(id) => id.fmt(f),
            Self::Run(id) => id.fmt(f),
            Self::Token(id) => id.fmt(f),
        }
    }
}

/// An object and the tenant that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub tenant: TenantId,
    pub object: Object,
}

/// What decisions can be asked about.
pub trait Resource {
    /// The tenant that it belongs to, and what it is there.
    fn place(&self) -> Place;
}

impl Resource for Place {
    fn place(&self) -> Place {
        *self
    }
}

/// The tenant itself, for acts on what hangs on it.
impl Resource for TenantId {
    fn place(&self) -> Place {
        Place {
            tenant: *self,
            object: Object::Tenant,
        }
    }
}

impl<R: Resource> Resource for &R {
    fn place(&self) -> Place {
        (*self).place()
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// `grant` says by what.
    Allow { grant: String },
    /// `reason` is a sentence for somebody who may see the object.
    Deny { reason: String },
}

/// The proof that the actor may do `A` to the value inside. Only a decision makes one.
#[derive(Clone, Debug)]
pub struct Authorized<T, A> {
    value: T,
    grant: String,
    action: PhantomData<A>,
}

impl<T, A: act::Act> Authorized<T, A> {
    pub(crate) fn new(value: T, grant: String) -> Self {
        Self {
            value,
            grant,
            action: PhantomData,
        }
    }

    /// By what it was allowed; for the audit record.
    #[must_use]
    pub fn grant(&self) -> &str {
        &self.grant
    }

    /// Gives up the proof.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T, A> std::ops::Deref for Authorized<T, A> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A refusal, with what its audit record needs.
#[derive(Clone, Debug)]
pub struct Denied {
    action: Action,
    place: Place,
    reason: String,
    visible: bool,
}

impl Denied {
    pub(crate) fn new(ctx: &TenantContext, action: Action, place: Place, reason: String) -> Self {
        let visible = matches!(decide(ctx, Action::View, &place), Decision::Allow { .. });
        Self {
            action,
            place,
            reason,
            visible,
        }
    }

    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    #[must_use]
    pub fn object(&self) -> Object {
        self.place.object
    }

    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// *Forbidden* for what the actor may see, *not found* for what not; `what` names it in the caller's words.
    #[must_use]
    pub fn into_error(self, what: &str) -> Error {
        if self.visible {
            Error::forbidden(self.reason)
        } else {
            Error::not_found(what)
        }
    }
}

/// Decides.
#[must_use]
pub fn decide(ctx: &TenantContext, action: Action, place: &Place) -> Decision {
    if place.tenant != ctx.tenant() {
        return deny("it belongs to another tenant".to_owned());
    }
    match ctx.actor().kind() {
        ActorKind::Token { role, scopes, .. } => by_role(*role, scopes, action),
        ActorKind::ClusterAgent { cluster } => by_cluster(*cluster, action, place.object),
        ActorKind::System { task } => by_task(*task, action),
    }
}

fn deny(reason: String) -> Decision {
    Decision::Deny { reason }
}

/// The least role and the scope that an action needs; `None`: no role reaches it.
fn needs(action: Action) -> Option<(Role, Scope)> {
    match action {
        Action::View => Some((Role::Viewer, Scope::Read)),
        Action::Invoke | Action::ReadLogs => Some((Role::Operator, Scope::Invoke)),
        Action::Write | Action::Delete | Action::RollBack => Some((Role::Editor, Scope::Write)),
        Action::Approve => Some((Role::Admin, Scope::Approve)),
        Action::CreateProject | Action::ManageTokens | Action::ViewAudit => Some((Role::Admin, Scope::Admin)),
        Action::ManageClusters => Some((Role::Owner, Scope::Admin)),
        Action::CreateTenant | Action::Synchronise => None,
    }
}

fn by_role(role: Role, scopes: &[Scope], action: Action) -> Decision {
    let act = action.as_str();
    let Some((least, scope)) = needs(action) else {
        return deny(format!("no role of a tenant may {act}"));
    };
    if role < least {
        return deny(format!(
            "to {act} needs the role {least} or more; this token has {role}"
        ));
    }
    if !scopes.iter().any(|s| s.implies(scope)) {
        return deny(format!("to {act} needs a token with the scope {scope}"));
    }
    Decision::Allow {
        grant: format!("{role} of the tenant"),
    }
}

fn by_cluster(cluster: ClusterId, action: Action, object: Object) -> Decision {
    if action == Action::Synchronise && object == Object::Cluster(cluster) {
        Decision::Allow {
            grant: "cluster agent of the cluster".to_owned(),
        }
    } else {
        deny("a cluster agent may synchronise its own cluster and nothing else".to_owned())
    }
}

fn by_task(task: SystemTask, action: Action) -> Decision {
    let allowed = match task {
        SystemTask::Bootstrap => matches!(
            action,
            Action::CreateTenant
                | Action::CreateProject
                | Action::ManageTokens
                | Action::ManageClusters
                | Action::View
        ),
        SystemTask::Authenticate | SystemTask::VerifyAudit | SystemTask::Purge | SystemTask::LastSeen => {
            false
        }
    };
    if allowed {
        Decision::Allow {
            grant: format!("system task {}", task.name()),
        }
    } else {
        deny(format!(
            "the system task {} may not {}",
            task.name(),
            action.as_str()
        ))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests of the contexts' birth")]
mod tests;

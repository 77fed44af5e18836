//! The nouns of the schema: wrappers around what the service answers, converted nowhere else.

mod agent;
mod audit;
mod cluster;
mod command;
mod document;
mod page;
mod project;
mod run;
mod token;
mod viewer;

pub(crate) use agent::Agent;
pub(crate) use audit::AuditRecord;
pub(crate) use cluster::{Cluster, JoinToken};
pub(crate) use command::Command;
pub(crate) use document::{Action, Document, DocumentKind, Revision};
pub(crate) use page::{Connection, connection, request};
pub(crate) use project::Project;
pub(crate) use run::Run;
pub(crate) use token::{ApiToken, Role, Scope};
pub(crate) use viewer::Viewer;

use chrono::{DateTime, Utc};

/// A moment as the store keeps it. Out of chrono's range, which no clock reaches, it is the epoch.
pub(crate) fn moment(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

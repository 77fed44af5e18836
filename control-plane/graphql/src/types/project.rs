//! Projects.

use super::moment;
use async_graphql::{ID, Object};
use chrono::{DateTime, Utc};

/// A part of the tenant.
#[derive(Clone, Debug)]
pub(crate) struct Project(pub(crate) roadstead_store::Project);

#[Object]
impl Project {
    async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.created_ms)
    }
}

//! Projects.

use crate::cursor::Listing;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{Authorized, Object, Place, Resource, act};
use roadstead_contract::documents::Name;
use roadstead_domain::{ConflictReason, Error, Page, PageRequest, ProjectId, TenantId};
use sea_orm::FromQueryResult;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A part of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub tenant: TenantId,
    pub id: ProjectId,
    pub name: String,
    pub created_ms: i64,
}

impl Resource for Project {
    fn place(&self) -> Place {
        Place {
            tenant: self.tenant,
            object: Object::Project(self.id),
        }
    }
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    name: String,
    created_ms: i64,
}

impl Tx<'_> {
    fn project_of(&self, row: Row) -> Project {
        Project {
            tenant: self.tenant(),
            id: ProjectId::from_uuid(row.id),
            name: row.name,
            created_ms: row.created_ms,
        }
    }

    /// The project of that name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn project_by_name(&self, name: &Name) -> Result<Option<Project>, Error> {
        let sql = "SELECT id, name, created_ms FROM project WHERE tenant_id = $1 AND name = $2";
        let row: Option<Row> = self.one(sql, values![name.as_str()]).await?;
        Ok(row.map(|row| self.project_of(row)))
    }

    /// The project with that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn project(&self, id: ProjectId) -> Result<Option<Project>, Error> {
        let sql = "SELECT id, name, created_ms FROM project WHERE tenant_id = $1 AND id = $2";
        let row: Option<Row> = self.one(sql, values![id.as_uuid()]).await?;
        Ok(row.map(|row| self.project_of(row)))
    }

    /// The tenant's projects, by name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn projects(&self, page: &PageRequest) -> Result<Page<Project>, Error> {
        let listing = Listing::new(self.tenant(), "projects", &());
        let after: Option<String> = listing.open(page.after.as_deref())?;
        let size = page.size()?;
        let sql = "SELECT id, name, created_ms FROM project WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3";
        let values = values![after.unwrap_or_default(), i64::from(size) + 1];
        let rows: Vec<Row> = self.all(sql, values).await?;
        let projects = rows.into_iter().map(|row| self.project_of(row)).collect();
        Ok(listing.page(projects, size, |p: &Project| p.name.clone()))
    }

    /// Makes a project.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken.
    pub async fn insert_project(
        &self,
        proof: &Authorized<TenantId, act::CreateProject>,
        name: &Name,
    ) -> Result<Project, Error> {
        self.check_proof(&**proof)?;
        let project = Project {
            tenant: self.tenant(),
            id: ProjectId::generate(&*self.store.clock, &*self.store.random),
            name: name.to_string(),
            created_ms: self.now_ms(),
        };
        let sql = "INSERT INTO project (tenant_id, id, name, created_ms) VALUES ($1, $2, $3, $4)
            ON CONFLICT (tenant_id, name) DO NOTHING";
        let values = values![project.id.as_uuid(), project.name.as_str(), project.created_ms];
        if self.run(sql, values).await? == 0 {
            let message = format!("there is a project {name} already");
            return Err(Error::conflict(ConflictReason::Exists, message));
        }
        Ok(project)
    }
}

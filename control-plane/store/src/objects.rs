//! Objects: the documents of a tenant as they are now.

use crate::audit::hash32;
use crate::cursor::Listing;
use crate::error::corrupt;
use crate::projects::Project;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{Authorized, Object as AuthzObject, Place, Resource, act};
use roadstead_contract::documents::{Kind, Placement};
use roadstead_contract::fleet::Digest;
use roadstead_domain::{Error, ObjectId, Page, PageRequest, ProjectId, RevisionId, TenantId};
use sea_orm::FromQueryResult;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A document that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub tenant: TenantId,
    pub id: ObjectId,
    pub project: ProjectId,
    pub project_name: String,
    pub name: String,
    /// The current revision's number.
    pub revision: u64,
    /// The current revision's digest.
    pub digest: Digest,
    pub labels: BTreeMap<String, String>,
    /// Where it is placed and what it refers to; empty for all kinds but agents.
    pub links: Links,
    pub created_ms: i64,
    pub updated_ms: i64,
}

impl Resource for Object {
    fn place(&self) -> Place {
        Place {
            tenant: self.tenant,
            object: AuthzObject::Document {
                id: self.id,
                project: self.project,
            },
        }
    }
}

/// What an agent's document says of other things; kept beside it, so that finding what belongs to a cluster reads no
/// document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    pub placement: Placement,
    /// Kind and name, in the same project.
    pub refers: Vec<(Kind, String)>,
}

impl Links {
    fn text(&self) -> Result<String, Error> {
        if *self == Self::default() {
            return Ok(String::new());
        }
        serde_json::to_string(self).map_err(Error::internal)
    }

    fn read(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map_err(|_| corrupt("links of an object"))
    }
}

/// An object as a node of the graph of references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: ObjectId,
    pub project: ProjectId,
    pub project_name: String,
    pub name: String,
    pub revision: u64,
    pub digest: Digest,
    pub links: Links,
}

/// What a list of objects is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectFilter {
    pub kind: Option<Kind>,
    pub project: Option<ProjectId>,
    pub name: Option<String>,
}

/// A new object; its first revision is number 1.
#[derive(Clone, Debug)]
pub struct NewObject<'a> {
    pub kind: Kind,
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub links: &'a Links,
    pub revision: NewRevision<'a>,
}

/// A revision to write.
#[derive(Clone, Copy, Debug)]
pub struct NewRevision<'a> {
    pub document: &'a str,
    pub digest: Digest,
    pub message: &'a str,
}

/// The acts that may make a new revision of an object.
pub trait Revises: act::Act {}
impl Revises for act::Write {}
impl Revises for act::RollBack {}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    kind: String,
    project_id: Uuid,
    project_name: String,
    name: String,
    revision: i64,
    digest: Vec<u8>,
    labels: String,
    links: String,
    created_ms: i64,
    updated_ms: i64,
}

#[derive(Debug, FromQueryResult)]
struct NodeRow {
    id: Uuid,
    kind: String,
    project_id: Uuid,
    project_name: String,
    name: String,
    revision: i64,
    digest: Vec<u8>,
    links: String,
}

pub(crate) fn kind_of(text: &str) -> Result<Kind, Error> {
    Kind::parse(text).ok_or_else(|| corrupt("an unknown kind of document"))
}

impl Tx<'_> {
    fn object_of(&self, row: Row) -> Result<Object, Error> {
        Ok(Object {
            tenant: self.tenant(),
            id: ObjectId::from_uuid(kind_of(&row.kind)?, row.id),
            project: ProjectId::from_uuid(row.project_id),
            project_name: row.project_name,
            name: row.name,
            revision: row.revision.cast_unsigned(),
            digest: Digest(hash32(&row.digest)?),
            labels: serde_json::from_str(&row.labels).map_err(|_| corrupt("labels of an object"))?,
            links: Links::read(&row.links)?,
            created_ms: row.created_ms,
            updated_ms: row.updated_ms,
        })
    }

    /// The object with that id; `None` for a deleted one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn object(&self, id: ObjectId) -> Result<Option<Object>, Error> {
        let sql = "SELECT o.id, o.kind, o.project_id, p.name AS project_name, o.name, o.revision, o.digest, o.labels,
            o.links, o.created_ms, o.updated_ms
            FROM object o JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE o.tenant_id = $1 AND o.id = $2 AND o.kind = $3 AND o.deleted_ms IS NULL";
        let row: Option<Row> = self.one(sql, values![id.as_uuid(), id.kind().as_str()]).await?;
        row.map(|row| self.object_of(row)).transpose()
    }

    /// The object of that kind and name in the project.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn object_by_name(
        &self,
        project: ProjectId,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Object>, Error> {
        let sql = "SELECT o.id, o.kind, o.project_id, p.name AS project_name, o.name, o.revision, o.digest, o.labels,
            o.links, o.created_ms, o.updated_ms
            FROM object o JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE o.tenant_id = $1 AND o.project_id = $2 AND o.kind = $3 AND o.name = $4 AND o.deleted_ms IS NULL";
        let values = values![project.as_uuid(), kind.as_str(), name];
        let row: Option<Row> = self.one(sql, values).await?;
        row.map(|row| self.object_of(row)).transpose()
    }

    /// The tenant's objects by project, kind and name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn objects(&self, filter: &ObjectFilter, page: &PageRequest) -> Result<Page<Object>, Error> {
        let listing = Listing::new(self.tenant(), "objects", filter);
        let after: Option<(String, String, String)> = listing.open(page.after.as_deref())?;
        let (project, kind, name) = after.unwrap_or_default();
        let size = page.size()?;
        let sql = "SELECT o.id, o.kind, o.project_id, p.name AS project_name, o.name, o.revision, o.digest, o.labels,
            o.links, o.created_ms, o.updated_ms
            FROM object o JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE o.tenant_id = $1 AND o.deleted_ms IS NULL
            AND ($2 IS NULL OR o.kind = $2) AND ($3 IS NULL OR o.project_id = $3) AND ($4 IS NULL OR o.name = $4)
            AND (p.name, o.kind, o.name) > ($5, $6, $7)
            ORDER BY p.name, o.kind, o.name LIMIT $8";
        let values = values![
            filter.kind.map(Kind::as_str),
            filter.project.map(ProjectId::as_uuid),
            filter.name.clone(),
            project,
            kind,
            name,
            i64::from(size) + 1
        ];
        let rows: Vec<Row> = self.all(sql, values).await?;
        let objects: Result<Vec<Object>, Error> = rows.into_iter().map(|row| self.object_of(row)).collect();
        let position = |o: &Object| {
            (
                o.project_name.clone(),
                o.id.kind().as_str().to_owned(),
                o.name.clone(),
            )
        };
        Ok(listing.page(objects?, size, position))
    }

    /// All live objects, of one project or of all: the graph that desired sets follow from.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn graph(&self, project: Option<ProjectId>) -> Result<Vec<Node>, Error> {
        let sql = "SELECT o.id, o.kind, o.project_id, p.name AS project_name, o.name, o.revision, o.digest, o.links
            FROM object o JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE o.tenant_id = $1 AND o.deleted_ms IS NULL AND ($2 IS NULL OR o.project_id = $2) ORDER BY o.id";
        let rows: Vec<NodeRow> = self.all(sql, values![project.map(ProjectId::as_uuid)]).await?;
        let read = rows.into_iter().map(|row| {
            Ok(Node {
                id: ObjectId::from_uuid(kind_of(&row.kind)?, row.id),
                project: ProjectId::from_uuid(row.project_id),
                project_name: row.project_name,
                name: row.name,
                revision: row.revision.cast_unsigned(),
                digest: Digest(hash32(&row.digest)?),
                links: Links::read(&row.links)?,
            })
        });
        read.collect()
    }

    /// Makes an object with its first revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken.
    pub async fn insert_object(
        &self,
        project: &Authorized<Project, act::Write>,
        new: NewObject<'_>,
    ) -> Result<Object, Error> {
        let now = self.now_ms();
        let object = Object {
            tenant: self.tenant(),
            id: ObjectId::generate(new.kind, &*self.store.clock, &*self.store.random),
            project: project.id,
            project_name: project.name.clone(),
            name: new.name.to_owned(),
            revision: 1,
            digest: new.revision.digest,
            labels: new.labels.clone(),
            links: new.links.clone(),
            created_ms: now,
            updated_ms: now,
        };
        let sql = "INSERT INTO object (tenant_id, id, kind, project_id, name, revision, digest, labels, links, created_ms,
            updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)";
        let values = values![
            object.id.as_uuid(),
            new.kind.as_str(),
            object.project.as_uuid(),
            new.name,
            1_i64,
            new.revision.digest.to_vec(),
            labels_text(&object.labels)?,
            object.links.text()?,
            now
        ];
        self.run(sql, values).await?;
        self.insert_revision(object.id, 1, new.revision).await?;
        Ok(object)
    }

    /// Gives an object its next revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody else was quicker.
    pub async fn revise_object<A: Revises>(
        &self,
        object: &Authorized<Object, A>,
        new: NewRevision<'_>,
        labels: &BTreeMap<String, String>,
        links: &Links,
    ) -> Result<Object, Error> {
        let revised = Object {
            revision: object.revision + 1,
            digest: new.digest,
            labels: labels.clone(),
            links: links.clone(),
            updated_ms: self.now_ms(),
            ..Object::clone(object)
        };
        let sql = "UPDATE object SET revision = $4, digest = $5, labels = $6, links = $7, updated_ms = $8
            WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND deleted_ms IS NULL";
        let values = values![
            object.id.as_uuid(),
            object.revision.cast_signed(),
            revised.revision.cast_signed(),
            new.digest.to_vec(),
            labels_text(labels)?,
            links.text()?,
            revised.updated_ms
        ];
        if self.run(sql, values).await? == 0 {
            return Err(moved_on(object));
        }
        self.insert_revision(object.id, revised.revision, new).await?;
        Ok(revised)
    }

    async fn insert_revision(
        &self,
        object: ObjectId,
        number: u64,
        new: NewRevision<'_>,
    ) -> Result<(), Error> {
        let sql = "INSERT INTO revision (tenant_id, object_id, number, id, document, digest, author, author_name, at_ms,
            message) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let values = values![
            object.as_uuid(),
            number.cast_signed(),
            RevisionId::generate(&*self.store.clock, &*self.store.random).as_uuid(),
            new.document,
            new.digest.to_vec(),
            self.ctx.actor().label(),
            self.ctx.actor().name(),
            self.now_ms(),
            new.message
        ];
        self.run(sql, values).await?;
        Ok(())
    }

    /// Deletes an object; its revisions stay.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody else was quicker.
    pub async fn delete_object(&self, object: &Authorized<Object, act::Delete>) -> Result<(), Error> {
        let sql = "UPDATE object SET deleted_ms = $4
            WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND deleted_ms IS NULL";
        let values = values![object.id.as_uuid(), object.revision.cast_signed(), self.now_ms()];
        if self.run(sql, values).await? == 0 {
            return Err(moved_on(object));
        }
        Ok(())
    }
}

fn moved_on(object: &Object) -> Error {
    let message = format!(
        "{} {}/{} has moved on from revision {}: read it again",
        object.id.kind(),
        object.project_name,
        object.name,
        object.revision
    );
    Error::conflict(roadstead_domain::ConflictReason::Revision, message)
}

pub(crate) fn labels_text(labels: &BTreeMap<String, String>) -> Result<String, Error> {
    serde_json::to_string(labels).map_err(Error::internal)
}

//! What can be changed. An expected outcome is a user error in the payload, and then nothing was changed.
//!
//! Inputs have no field for tenant, owner, role of the caller or status (S27): those come from the token and from
//! reports. A write is repeated without harm under its idempotency key (remembered for 24 h with a digest of the
//! input, for this actor; the same key with other input is a CONFLICT). A secret is shown once and kept nowhere: the
//! repetition of a write that made one answers with the object and without the secret.

use crate::{
    apply, calls,
    error::{Result, UserError, expected},
    query::id,
    types::{ApiToken, Cluster, Command, Document, DocumentKind, JoinToken, Project, Role, Scope, moment},
};
use async_graphql::{Context, Enum, ID, InputObject, Json, Object, SimpleObject};
use roadstead_contract::documents::Kind;
use roadstead_service::{
    DeleteInput, RollBackInput,
    clusters::{self, Joining},
    commands::{self, RestartInput},
    delete_document, get_revision, projects, roll_back,
    tokens::{self, Issuing},
};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// One document as a JSON object.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct DocumentInput {
    pub(crate) json: Json<Value>,
    /// The file's name, for messages.
    pub(crate) source: Option<String>,
    /// 0: it must not exist yet. Left out: any.
    pub(crate) expected_revision: Option<u64>,
}

/// A file of documents as it stands: YAML or JSON.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct SourceInput {
    /// The file's name, for messages.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Either `documents` or `sources`.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct ApplyDocumentsInput {
    #[graphql(default)]
    pub(crate) documents: Vec<DocumentInput>,
    #[graphql(default)]
    pub(crate) sources: Vec<SourceInput>,
    /// Where documents that name no project belong.
    pub(crate) project: String,
    /// Do everything but keep it.
    #[graphql(default)]
    pub(crate) dry_run: bool,
    /// Why; kept with the revisions.
    pub(crate) message: Option<String>,
    /// 1 to 200 printable ASCII characters, new for each write.
    pub(crate) idempotency_key: String,
}

/// What applying did to a document.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApplyAction {
    Created,
    Updated,
    Unchanged,
}

/// What applying did to one document.
#[derive(Debug)]
pub(crate) struct ApplyResult {
    pub(crate) action: ApplyAction,
    pub(crate) object: Document,
    pub(crate) before: Option<String>,
    pub(crate) after: Arc<str>,
    pub(crate) clusters: Vec<String>,
}

/// What applying did to one document.
#[Object]
impl ApplyResult {
    async fn action(&self) -> ApplyAction {
        self.action
    }
    /// As it is after the write; of a dry run, as it would be.
    async fn object(&self) -> &Document {
        &self.object
    }
    /// The document before; null for a new one.
    async fn before(&self, ctx: &Context<'_>) -> Result<Option<Json<Value>>> {
        let before = self.before.as_deref().map(|text| calls::json(ctx, text));
        Ok(before.transpose()?.map(Json))
    }
    async fn after(&self, ctx: &Context<'_>) -> Result<Json<Value>> {
        Ok(Json(calls::json(ctx, &self.after)?))
    }
    /// Names of the clusters that an agent is placed on; empty for other kinds.
    async fn clusters(&self) -> &[String] {
        &self.clusters
    }
}

/// Nothing was written where `errors` is not empty.
#[derive(SimpleObject, Debug, Default)]
pub(crate) struct ApplyDocumentsPayload {
    /// In the order of the input.
    pub(crate) results: Vec<ApplyResult>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct DeleteDocumentInput {
    pub(crate) kind: DocumentKind,
    pub(crate) project: String,
    pub(crate) name: String,
    pub(crate) expected_revision: Option<u64>,
    pub(crate) idempotency_key: String,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct RollBackAgentInput {
    pub(crate) project: String,
    pub(crate) name: String,
    /// The revision whose content is written anew.
    pub(crate) to_revision: u64,
    pub(crate) expected_revision: Option<u64>,
    /// Why; kept with the revision.
    pub(crate) message: Option<String>,
    pub(crate) idempotency_key: String,
}

/// The document after the write; of a deleted one, as it was.
#[derive(SimpleObject, Debug, Default)]
pub(crate) struct DocumentPayload {
    pub(crate) object: Option<Document>,
    pub(crate) errors: Vec<UserError>,
}

/// A cluster to register.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct CreateClusterInput {
    pub(crate) name: String,
    /// For selection: an object of texts.
    pub(crate) labels: Option<Json<BTreeMap<String, String>>>,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// A cluster, and the token with which its cluster agent enrols. The token is shown this once: a repetition under the
/// same idempotency key answers with the cluster and a null token. Whoever did not get the token makes another with
/// `createJoinToken` and a new key, which ends the one that was lost.
#[derive(SimpleObject, Default)]
pub(crate) struct ClusterPayload {
    pub(crate) object: Option<Cluster>,
    pub(crate) join_token: Option<JoinToken>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct CreateJoinTokenInput {
    pub(crate) cluster: ID,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct RevokeClusterCertificateInput {
    pub(crate) cluster: ID,
    /// One certificate; left out: all of the cluster's.
    pub(crate) serial: Option<String>,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// How many certificates were revoked by this call.
#[derive(SimpleObject, Default)]
pub(crate) struct RevokedPayload {
    pub(crate) revoked: u64,
    pub(crate) errors: Vec<UserError>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct DeleteClusterInput {
    pub(crate) cluster: ID,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// The deletions that wait on a cluster (`Cluster.heldDeletes`), allowed by a person.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct ApproveDeletesInput {
    pub(crate) cluster: ID,
    /// The number that the person saw: when another number waits by now, the answer is CONFLICT.
    pub(crate) deletes: u64,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct CreateProjectInput {
    pub(crate) name: String,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

#[derive(SimpleObject, Default)]
pub(crate) struct ProjectPayload {
    pub(crate) object: Option<Project>,
    pub(crate) errors: Vec<UserError>,
}

/// A token to make. Nobody hands out more than they have.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct CreateApiTokenInput {
    /// For people.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) scopes: Vec<Scope>,
    /// At most 31,622,400 (366 days).
    pub(crate) lifetime_seconds: u64,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// A token. The secret is shown this once: a repetition under the same idempotency key answers with the token and a null
/// secret. Whoever did not get the secret revokes the token and makes another.
#[derive(SimpleObject, Default)]
pub(crate) struct ApiTokenPayload {
    pub(crate) object: Option<ApiToken>,
    /// Secret: whoever has it acts with the token's role.
    pub(crate) secret: Option<String>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(InputObject, Clone, Debug)]
pub(crate) struct RevokeApiTokenInput {
    pub(crate) id: ID,
    /// What it issued stays good. Else it ends with it: tokens, what these issued, and join tokens that nobody has used.
    #[graphql(default)]
    pub(crate) keep_issued: bool,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// A cluster that joined by a join token which a revoked token had made.
#[derive(SimpleObject)]
pub(crate) struct EnrolledCluster {
    pub(crate) id: ID,
    pub(crate) name: String,
}

/// A token that was ended.
#[derive(SimpleObject, Default)]
pub(crate) struct RevokedApiTokenPayload {
    pub(crate) object: Option<ApiToken>,
    /// How many tokens ended with it: which it had issued, or which these had. The audit log names each.
    pub(crate) also_revoked: u64,
    /// How many join tokens ended with it: which it had made, or which these tokens had.
    pub(crate) join_tokens_ended: u64,
    /// Clusters that joined by a join token of one of them, by name, at most 100. They stay: revoke their certificates,
    /// or delete them, where they should not.
    pub(crate) enrolled_clusters: Vec<EnrolledCluster>,
    /// How many there are.
    pub(crate) enrolled_cluster_count: u64,
    pub(crate) errors: Vec<UserError>,
}

/// The hub's view of a cluster that is ahead of it (`Cluster.timeline`), accepted by a person.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct AcceptTimelineInput {
    pub(crate) cluster: ID,
    /// The cursor that the person saw: when the cluster is elsewhere by now, the answer is CONFLICT.
    pub(crate) cursor: u64,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// A certificate that the hub's database does not know (`Cluster.unknownCertificates`).
#[derive(InputObject, Clone, Debug)]
pub(crate) struct AdmitClusterCertificateInput {
    pub(crate) cluster: ID,
    pub(crate) serial: String,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: Option<String>,
}

/// An agent whose engine is to be restarted.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct RestartAgentInput {
    pub(crate) project: String,
    pub(crate) name: String,
    /// The cluster's name; left out: every one that the agent is placed on.
    pub(crate) cluster: Option<String>,
    /// How long the command may wait for the cluster agent: at most 86,400 (a day), 300 where it is left out.
    pub(crate) expires_in_seconds: Option<u64>,
    /// 1 to 200 printable ASCII characters, new for each write: a repetition with it changes nothing.
    pub(crate) idempotency_key: String,
}

/// The commands that were made, one for each cluster; none where `errors` is not empty.
#[derive(SimpleObject, Default)]
pub(crate) struct CommandsPayload {
    pub(crate) objects: Vec<Command>,
    pub(crate) errors: Vec<UserError>,
}

/// Builds the payload of an expected outcome; a fault stays an error.
macro_rules! settle {
    ($outcome:expr, $payload:ident) => {
        match $outcome {
            Ok(done) => done,
            Err(error) => {
                return Ok($payload {
                    errors: expected(error)?,
                    ..$payload::default()
                });
            }
        }
    };
}

pub(crate) struct Mutation;

#[Object]
impl Mutation {
    /// Writes a set of documents, all of it or nothing.
    #[graphql(complexity = "10 + child_complexity")]
    async fn apply_documents(
        &self,
        ctx: &Context<'_>,
        input: ApplyDocumentsInput,
    ) -> Result<ApplyDocumentsPayload> {
        apply::apply(ctx, input).await
    }

    /// Deletes a document; its revisions stay.
    #[graphql(complexity = "10 + child_complexity")]
    async fn delete_document(
        &self,
        ctx: &Context<'_>,
        input: DeleteDocumentInput,
    ) -> Result<DocumentPayload> {
        let (caller, store) = calls::both(ctx);
        let named = calls::by_name(input.kind.into(), &input.project, &input.name);
        let target = settle!(named, DocumentPayload);
        let delete = DeleteInput {
            target,
            expected_revision: input.expected_revision,
            idempotency_key: Some(input.idempotency_key),
        };
        let answer = settle!(delete_document(caller, store, &delete).await, DocumentPayload);
        let object = apply::only(caller, store, answer, |a| a.previous.clone()).await?;
        Ok(DocumentPayload {
            object,
            errors: Vec::new(),
        })
    }

    /// Makes an older revision of an agent the current one: a new revision with its content.
    #[graphql(complexity = "10 + child_complexity")]
    async fn roll_back_agent(&self, ctx: &Context<'_>, input: RollBackAgentInput) -> Result<DocumentPayload> {
        let (caller, store) = calls::both(ctx);
        let named = calls::by_name(Kind::Agent, &input.project, &input.name);
        let target = settle!(named, DocumentPayload);
        let back = RollBackInput {
            target: target.clone(),
            to_revision: input.to_revision,
            expected_revision: input.expected_revision,
            idempotency_key: Some(input.idempotency_key),
            message: input.message.unwrap_or_default(),
        };
        let answer = settle!(roll_back(caller, store, &back).await, DocumentPayload);
        let old = get_revision(caller, store, &target, input.to_revision).await;
        let old = calls::found(old)?.map(|r| r.document);
        let object = apply::only(caller, store, answer, |_| old).await?;
        Ok(DocumentPayload {
            object,
            errors: Vec::new(),
        })
    }

    /// Restarts an agent's engine, on one cluster or on each that the agent is placed on. Running tasks go on from the
    /// engine's journal. The answer comes once the commands are kept; `command` tells what came of each. A cluster whose
    /// agent is too old to know this is a CONFLICT.
    #[graphql(complexity = "10 + child_complexity")]
    async fn restart_agent(&self, ctx: &Context<'_>, input: RestartAgentInput) -> Result<CommandsPayload> {
        let (caller, store) = calls::both(ctx);
        let named = calls::by_name(Kind::Agent, &input.project, &input.name);
        let cluster = input.cluster.map(|name| calls::name(&name, "cluster"));
        let restart = RestartInput {
            target: settle!(named, CommandsPayload),
            cluster: settle!(cluster.transpose(), CommandsPayload),
            expires_in: input.expires_in_seconds.map(Duration::from_secs),
            idempotency_key: Some(input.idempotency_key),
        };
        let made = commands::restart_agent(caller, store, &restart).await;
        let made = settle!(made, CommandsPayload);
        Ok(CommandsPayload {
            objects: made.into_iter().map(Command).collect(),
            errors: Vec::new(),
        })
    }

    /// Makes a project.
    #[graphql(complexity = "10 + child_complexity")]
    async fn create_project(&self, ctx: &Context<'_>, input: CreateProjectInput) -> Result<ProjectPayload> {
        let (caller, store) = calls::both(ctx);
        let create = projects::CreateInput {
            name: settle!(calls::name(&input.name, "name"), ProjectPayload),
            idempotency_key: input.idempotency_key,
        };
        let made = settle!(projects::create(caller, store, &create).await, ProjectPayload);
        Ok(ProjectPayload {
            object: Some(Project(made)),
            errors: Vec::new(),
        })
    }

    /// Registers a cluster, with a token for its cluster agent.
    #[graphql(complexity = "10 + child_complexity")]
    async fn create_cluster(&self, ctx: &Context<'_>, input: CreateClusterInput) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let create = clusters::CreateInput {
            name: settle!(calls::name(&input.name, "name"), ClusterPayload),
            labels: input.labels.map(|labels| labels.0).unwrap_or_default(),
            idempotency_key: input.idempotency_key,
        };
        let made = clusters::create_joinable(caller, store, create).await;
        Ok(joining(ctx, settle!(made, ClusterPayload)))
    }

    /// Makes a new token for a cluster that has not joined, or is to join again; unused ones before end.
    #[graphql(complexity = "10 + child_complexity")]
    async fn create_join_token(
        &self,
        ctx: &Context<'_>,
        input: CreateJoinTokenInput,
    ) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let (cluster, key) = (id(&input.cluster, "cluster")?, input.idempotency_key.as_deref());
        let made = clusters::join_token_once(caller, store, cluster, key).await;
        Ok(joining(ctx, settle!(made, ClusterPayload)))
    }

    /// Revokes certificates of a cluster: its session ends within seconds.
    #[graphql(complexity = "10 + child_complexity")]
    async fn revoke_cluster_certificate(
        &self,
        ctx: &Context<'_>,
        input: RevokeClusterCertificateInput,
    ) -> Result<RevokedPayload> {
        let (caller, store) = calls::both(ctx);
        let cluster = id(&input.cluster, "cluster")?;
        let (serial, key) = (input.serial.as_deref(), input.idempotency_key.as_deref());
        let revoked = clusters::revoke_certificates(caller, store, cluster, serial, key).await;
        let revoked = settle!(revoked, RevokedPayload);
        calls::forget_certificates(ctx);
        calls::app(ctx).fleet.look(cluster).await;
        Ok(RevokedPayload {
            revoked,
            errors: Vec::new(),
        })
    }

    /// Allows the deletions that wait on a cluster, for one snapshot: a cluster that is connected carries them out at
    /// once.
    #[graphql(complexity = "10 + child_complexity")]
    async fn approve_deletes(&self, ctx: &Context<'_>, input: ApproveDeletesInput) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let (cluster, key) = (id(&input.cluster, "cluster")?, input.idempotency_key.as_deref());
        let approved = clusters::approve_deletes(caller, store, cluster, input.deletes, key).await;
        Ok(ClusterPayload {
            object: Some(Cluster(settle!(approved, ClusterPayload))),
            ..ClusterPayload::default()
        })
    }

    /// Lets the hub's view of a cluster go on that is ahead of it, after the hub's database was restored from a backup.
    #[graphql(complexity = "10 + child_complexity")]
    async fn accept_timeline(&self, ctx: &Context<'_>, input: AcceptTimelineInput) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let cluster = id(&input.cluster, "cluster")?;
        let key = input.idempotency_key.as_deref();
        let accepted = clusters::accept_timeline(caller, store, cluster, input.cursor, key).await;
        Ok(ClusterPayload {
            object: Some(Cluster(settle!(accepted, ClusterPayload))),
            ..ClusterPayload::default()
        })
    }

    /// Makes a certificate of a cluster good that was issued after the backup that the hub's database was restored from.
    #[graphql(complexity = "10 + child_complexity")]
    async fn admit_cluster_certificate(
        &self,
        ctx: &Context<'_>,
        input: AdmitClusterCertificateInput,
    ) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let cluster = id(&input.cluster, "cluster")?;
        let key = input.idempotency_key.as_deref();
        let admitted = clusters::admit_certificate(caller, store, cluster, &input.serial, key).await;
        calls::forget_certificates(ctx);
        Ok(ClusterPayload {
            object: Some(Cluster(settle!(admitted, ClusterPayload))),
            ..ClusterPayload::default()
        })
    }

    /// Deletes a cluster: its certificates are revoked and what should run there is forgotten; its runs stay.
    #[graphql(complexity = "10 + child_complexity")]
    async fn delete_cluster(&self, ctx: &Context<'_>, input: DeleteClusterInput) -> Result<ClusterPayload> {
        let (caller, store) = calls::both(ctx);
        let cluster = id(&input.cluster, "cluster")?;
        let key = input.idempotency_key.as_deref();
        let deleted = settle!(
            clusters::delete(caller, store, cluster, key).await,
            ClusterPayload
        );
        calls::forget_certificates(ctx);
        calls::app(ctx).fleet.look(cluster).await;
        Ok(ClusterPayload {
            object: Some(Cluster(deleted)),
            ..ClusterPayload::default()
        })
    }

    /// Makes an API token.
    #[graphql(complexity = "10 + child_complexity")]
    async fn create_api_token(
        &self,
        ctx: &Context<'_>,
        input: CreateApiTokenInput,
    ) -> Result<ApiTokenPayload> {
        let (caller, store) = calls::both(ctx);
        let issue = tokens::IssueInput {
            name: input.name,
            role: input.role.into(),
            scopes: input.scopes.into_iter().map(Into::into).collect(),
            lifetime: Duration::from_secs(input.lifetime_seconds),
            idempotency_key: input.idempotency_key,
        };
        let issued = tokens::issue_once(caller, store, issue).await;
        let (token, secret) = match settle!(issued, ApiTokenPayload) {
            Issuing::Done(issued) => (issued.token, Some(issued.secret.expose_secret().to_owned())),
            Issuing::Before(token) => (token, None),
        };
        Ok(ApiTokenPayload {
            object: Some(ApiToken(token)),
            secret,
            errors: Vec::new(),
        })
    }

    /// Ends an API token at once, and what it issued: tokens and join tokens. Clusters that joined stay and are named. When the caller's own would end with it, that is a
    /// CONFLICT: `keepIssued`, or another token.
    #[graphql(complexity = "10 + child_complexity")]
    async fn revoke_api_token(
        &self,
        ctx: &Context<'_>,
        input: RevokeApiTokenInput,
    ) -> Result<RevokedApiTokenPayload> {
        let (caller, store) = calls::both(ctx);
        let revoke = tokens::RevokeInput {
            token: id(&input.id, "id")?,
            keep_issued: input.keep_issued,
            idempotency_key: input.idempotency_key,
        };
        let revoked = tokens::revoke(caller, store, &revoke).await;
        let revoked = settle!(revoked, RevokedApiTokenPayload);
        Ok(RevokedApiTokenPayload {
            object: Some(ApiToken(revoked.token)),
            also_revoked: revoked.also,
            join_tokens_ended: revoked.join_tokens,
            enrolled_clusters: revoked
                .clusters
                .into_iter()
                .map(|cluster| EnrolledCluster {
                    id: cluster.id.to_string().into(),
                    name: cluster.name,
                })
                .collect(),
            enrolled_cluster_count: revoked.cluster_count,
            errors: Vec::new(),
        })
    }
}

/// A cluster with its join token, which is shown this once.
fn joining(ctx: &Context<'_>, joining: Joining) -> ClusterPayload {
    let (cluster, join_token) = match joining {
        Joining::Before(cluster) => (cluster, None),
        Joining::Done(joinable) => {
            let token = calls::app(ctx).fleet.join_token(&joinable.secret);
            let shown = JoinToken {
                token: token.expose_secret().to_owned(),
                expires_at: moment(joinable.expires_ms),
            };
            (joinable.cluster, Some(shown))
        }
    };
    ClusterPayload {
        object: Some(Cluster(cluster)),
        join_token,
        errors: Vec::new(),
    }
}

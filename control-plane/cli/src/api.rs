//! The GraphQL operations and what is read of their answers.
//!
//! The operations are docs/api-operations.graphql itself: what the document says is what is sent.

use chrono::{DateTime, Utc};
use roadstead_contract::documents::Kind;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

const OPERATIONS: &str = include_str!("../../../docs/api-operations.graphql");

/// Most items of a page that the hub allows.
pub(crate) const PAGE: usize = 100;

/// The text of one operation with the fragments it uses.
///
/// `None` if the document has no operation of that name.
pub(crate) fn operation(name: &str) -> Option<String> {
    let definitions = definitions();
    let (_, text) = definitions
        .iter()
        .find(|(defined, text)| defined == name && !text.starts_with("fragment"))?;
    let mut wanted = vec![name];
    let mut texts = vec![text.as_str()];
    let mut at = 0;
    while at < texts.len() {
        for (defined, text) in &definitions {
            if texts[at].contains(&format!("...{defined}")) && !wanted.contains(&defined.as_str()) {
                wanted.push(defined);
                texts.push(text);
            }
        }
        at += 1;
    }
    Some(texts.join("\n"))
}

/// Every definition: its name and its text without comments.
fn definitions() -> Vec<(String, String)> {
    let lines = OPERATIONS
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let text = lines
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    let (mut found, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            let definition = text[start..=at].trim();
            let name = definition.split_whitespace().nth(1).unwrap_or_default();
            let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
            found.push((name, definition.to_owned()));
            start = at + 1;
        }
    }
    found
}

/// A kind as the API spells it.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "AGENT",
        Kind::Model => "MODEL",
        Kind::ToolServer => "TOOL_SERVER",
        Kind::Prompt => "PROMPT",
    }
}

/// A kind of the API as people write it.
pub(crate) fn kind_shown(name: &str) -> String {
    let known = Kind::ALL.into_iter().find(|kind| kind_name(*kind) == name);
    known.map_or_else(|| name.to_owned(), |kind| kind.as_str().to_owned())
}

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    pub(crate) nodes: Vec<T>,
    pub(crate) page_info: PageInfo,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageInfo {
    pub(crate) has_next_page: bool,
    #[serde(default)]
    pub(crate) end_cursor: Option<String>,
}

/// An expected outcome that is not what was asked for.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct UserError {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) path: Option<String>,
    #[serde(default)]
    pub(crate) expected: Option<String>,
    #[serde(default)]
    pub(crate) found: Option<String>,
}

/// The answer of a mutation on one object.
#[derive(Debug, Deserialize)]
pub(crate) struct Payload {
    #[serde(default)]
    pub(crate) object: Option<Document>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ApplyPayload {
    pub(crate) results: Vec<Applied>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Applied {
    pub(crate) action: String,
    pub(crate) object: Document,
    #[serde(default)]
    pub(crate) before: Option<Value>,
    #[serde(default)]
    pub(crate) after: Option<Value>,
    #[serde(default)]
    pub(crate) clusters: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) project: String,
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) digest: String,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) json: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) actions: Vec<Action>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Action {
    pub(crate) name: String,
    pub(crate) allowed: bool,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) revision: u64,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
    pub(crate) placements: Vec<Placement>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Placement {
    pub(crate) cluster: String,
    pub(crate) wanted: Wanted,
    #[serde(default)]
    pub(crate) running: Option<Running>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Wanted {
    pub(crate) revision: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Running {
    #[serde(default)]
    pub(crate) revision: Option<u64>,
    pub(crate) phase: String,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) since: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) report_age_seconds: Option<u64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revision {
    pub(crate) revision: u64,
    pub(crate) digest: String,
    pub(crate) created_at: DateTime<Utc>,
    #[serde(default)]
    pub(crate) created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) json: Option<Value>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) agent: String,
    pub(crate) revision: u64,
    #[serde(default)]
    pub(crate) cluster: Option<String>,
    pub(crate) task_id: String,
    pub(crate) session_id: String,
    pub(crate) subject: String,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) ended_at: DateTime<Utc>,
    pub(crate) outcome: String,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) model: String,
    pub(crate) model_calls: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cached_input_tokens: u64,
    pub(crate) estimated: bool,
    #[serde(default)]
    pub(crate) cost: Option<Cost>,
    #[serde(default)]
    pub(crate) tools: Vec<Tool>,
    #[serde(default)]
    pub(crate) trace_id: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Cost {
    pub(crate) micros: u64,
    pub(crate) currency: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) calls: u64,
    pub(crate) errors: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) since: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) last_seen_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) enrolled_by: Option<String>,
    #[serde(default)]
    pub(crate) version: Option<String>,
    #[serde(default)]
    pub(crate) agent_count: u64,
    #[serde(default)]
    pub(crate) wanted_revision: u64,
    #[serde(default)]
    pub(crate) persisted_revision: u64,
    #[serde(default)]
    pub(crate) applied_revision: u64,
    #[serde(default)]
    pub(crate) held_deletes: Option<u64>,
    #[serde(default)]
    pub(crate) timeline: Option<Timeline>,
    #[serde(default)]
    pub(crate) unknown_certificates: Vec<UnknownCertificate>,
    #[serde(default)]
    pub(crate) certificate_expires_at: Option<DateTime<Utc>>,
}

/// Something that a cluster agent does once.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterCommand {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) cluster: String,
    pub(crate) project: String,
    pub(crate) agent: String,
    pub(crate) created_by: String,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) result: Option<CommandResult>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CommandResult {
    pub(crate) code: String,
    pub(crate) detail: String,
    pub(crate) time: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandsPayload {
    #[serde(default)]
    pub(crate) objects: Vec<ClusterCommand>,
    pub(crate) errors: Vec<UserError>,
}

/// How a cluster is ahead of the hub's database.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Timeline {
    pub(crate) cursor: u64,
    pub(crate) known: bool,
    #[serde(default)]
    pub(crate) sent: u64,
    #[serde(default)]
    pub(crate) deletes: u64,
    /// Ids, not all of them where they are many.
    #[serde(default)]
    pub(crate) deleted: Vec<String>,
    #[serde(default)]
    pub(crate) replaced: Vec<Replaced>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Replaced {
    pub(crate) document: String,
    pub(crate) revision: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnknownCertificate {
    pub(crate) serial: String,
    pub(crate) seen_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// What an id stands for.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    /// Of a document that is no agent.
    #[serde(default)]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) project: Option<String>,
    #[serde(default)]
    pub(crate) name: Option<String>,
}

/// The answer of a mutation on a cluster.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterPayload {
    #[serde(default)]
    pub(crate) object: Option<Cluster>,
    #[serde(default)]
    pub(crate) join_token: Option<JoinToken>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinToken {
    pub(crate) token: SecretString,
    pub(crate) expires_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RevokedPayload {
    #[serde(default)]
    pub(crate) revoked: u64,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Project {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ProjectPayload {
    #[serde(default)]
    pub(crate) object: Option<Project>,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiToken {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) created_by: String,
    pub(crate) expires_at: DateTime<Utc>,
    #[serde(default)]
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ApiTokenPayload {
    #[serde(default)]
    pub(crate) object: Option<ApiToken>,
    #[serde(default)]
    pub(crate) secret: Option<SecretString>,
    pub(crate) errors: Vec<UserError>,
}

/// A cluster that was let in by a token which is revoked now.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct EnrolledCluster {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RevokedTokenPayload {
    #[serde(default)]
    pub(crate) object: Option<ApiToken>,
    #[serde(default)]
    pub(crate) also_revoked: u64,
    #[serde(default)]
    pub(crate) join_tokens_ended: u64,
    #[serde(default)]
    pub(crate) enrolled_clusters: Vec<EnrolledCluster>,
    #[serde(default)]
    pub(crate) enrolled_cluster_count: u64,
    pub(crate) errors: Vec<UserError>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuditRecord {
    pub(crate) sequence: u64,
    pub(crate) time: DateTime<Utc>,
    pub(crate) actor: String,
    #[serde(default)]
    pub(crate) on_behalf_of: Option<String>,
    pub(crate) action: String,
    pub(crate) object: String,
    #[serde(default)]
    pub(crate) revision: Option<u64>,
    pub(crate) decision: String,
    #[serde(default)]
    pub(crate) grant: Option<String>,
    #[serde(default)]
    pub(crate) detail: Value,
    #[serde(default)]
    pub(crate) source_ip: Option<String>,
    #[serde(default)]
    pub(crate) source_client: Option<String>,
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    #[serde(default)]
    pub(crate) trace_id: Option<String>,
    pub(crate) hash: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LogLine {
    pub(crate) cluster: String,
    #[serde(default)]
    pub(crate) time: Option<DateTime<Utc>>,
    pub(crate) line: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 30] = [
        "ApplyDocuments",
        "DeleteDocument",
        "RollBackAgent",
        "RestartAgent",
        "Commands",
        "Command",
        "Documents",
        "Document",
        "Agents",
        "AgentByName",
        "Revisions",
        "Runs",
        "Run",
        "Clusters",
        "ClusterByName",
        "CreateCluster",
        "CreateJoinToken",
        "RevokeClusterCertificate",
        "DeleteCluster",
        "ApproveDeletes",
        "AcceptTimeline",
        "AdmitClusterCertificate",
        "Node",
        "Projects",
        "CreateProject",
        "ApiTokens",
        "CreateApiToken",
        "RevokeApiToken",
        "AuditRecords",
        "AgentLogs",
    ];

    #[test]
    fn each_operation_comes_with_its_fragments() {
        for name in NAMES {
            let text = operation(name).unwrap_or_else(|| panic!("{name} is not in the document"));
            assert_eq!(text.matches('{').count(), text.matches('}').count(), "{name}");
            // `... on` has no fragment.
            let words = text.split_whitespace().filter_map(|w| w.strip_prefix("..."));
            for word in words.filter(|word| !word.is_empty()) {
                assert_eq!(
                    text.matches(&format!("fragment {word} on")).count(),
                    1,
                    "{name}: {word}"
                );
            }
        }
        assert_eq!(operation("RunFields"), None);
        assert!(!operation("Document").unwrap().contains("ErrorFields"));
    }
}

//! `kind: ToolServer`.

use super::{Duration, SecretRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An MCP server: exactly one of `http`, `stdio`, `package`, `image`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolServerSpec {
    /// A running server, over streamable HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpServer>,
    /// A program that the engine starts and speaks to over its standard input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioServer>,
    /// A published package, run with `npx` or `uvx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageServer>,
    /// A container image, run in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageServer>,
    /// What a changed description or schema of a tool means.
    #[serde(default)]
    pub pin: Pin,
    /// Whether this server's own hints (read-only, idempotent) are believed when a call may be repeated.
    #[serde(default)]
    pub trust_hints: bool,
}

/// The one transport that a tool server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    Http(&'a HttpServer),
    Stdio(&'a StdioServer),
    Package(&'a PackageServer),
    Image(&'a ImageServer),
}

impl ToolServerSpec {
    /// The transport; `None` unless exactly one is given.
    #[must_use]
    pub fn transport(&self) -> Option<Transport<'_>> {
        match (&self.http, &self.stdio, &self.package, &self.image) {
            (Some(http), None, None, None) => Some(Transport::Http(http)),
            (None, Some(stdio), None, None) => Some(Transport::Stdio(stdio)),
            (None, None, Some(package), None) => Some(Transport::Package(package)),
            (None, None, None, Some(image)) => Some(Transport::Image(image)),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpServer {
    /// `http` or `https`, without user information, query and fragment.
    pub url: String,
    /// Sent with each request; credentials by reference only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderValue>,
    /// Of one call; 60 s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// A plain text, or a reference to a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HeaderValue {
    Text(String),
    Secret(SecretRef),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StdioServer {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment of the program, beside `PATH` and `HOME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, HeaderValue>,
    /// Of one call; 60 s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// Exactly one of `npx` (npm) and `uvx` (PyPI), with a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PackageServer {
    /// An npm package with its exact version: `name@1.2.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npx: Option<String>,
    /// A PyPI package with its exact version: `name==1.2.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uvx: Option<String>,
    /// Arguments of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageServer {
    /// With a digest: `registry.example.com/mcp:1@sha256:…`.
    pub name: String,
    /// Where it listens.
    pub port: u16,
    /// Path of the MCP endpoint.
    #[serde(default = "mcp_path")]
    pub path: String,
}

fn mcp_path() -> String {
    "/mcp".to_owned()
}

/// Whether the tools' descriptions and schemas are held to what was first seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Pin {
    #[default]
    None,
    /// A changed description or schema needs approval.
    Tools,
}

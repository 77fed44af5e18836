//! From a tool server's document to what is needed to reach it, secrets resolved.

use crate::{
    model::{LoadError, parse_url, shown},
    secrets::Secrets,
};
use http::{HeaderMap, HeaderName, HeaderValue as HttpValue};
use reqwest::Url;
use roadstead_contract::{
    control::SecretText,
    documents::{
        Duration as Span, HeaderValue, HttpServer, PackageServer, StdioServer, ToolServerSpec, Transport,
    },
};
use std::{collections::BTreeMap, time::Duration};

/// Of a call, where the document says nothing.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// To connect and greet.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a package, which may be downloaded first.
const PACKAGE_TIMEOUT: Duration = Duration::from_secs(180);

/// A tool server as an agent uses it. Equal ones share a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerConfig {
    /// The reference that the agent's document uses.
    pub(super) reference: String,
    pub(super) reach: Reach,
    pub(super) call_timeout: Duration,
    pub(super) open_timeout: Duration,
    /// Every secret value in it, to be kept out of logs and errors.
    secrets: Vec<SecretText>,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Http {
        url: Url,
        /// Secret values are marked sensitive: `Debug` hides them.
        headers: HeaderMap,
    },
    Program {
        /// Program and arguments.
        command: Vec<String>,
        env: BTreeMap<String, SecretText>,
        /// What to do if the program is not there.
        advice: &'static str,
    },
}

impl ServerConfig {
    /// Reads a document.
    ///
    /// # Errors
    /// A transport that the local engine has not, a bad URL or header, a missing secret.
    pub(super) fn load(reference: &str, spec: &ToolServerSpec, secrets: &Secrets) -> Result<Self, LoadError> {
        let mut reader = Reader {
            reference,
            secrets,
            used: Vec::new(),
        };
        let (reach, timeout, open_timeout) = match spec.transport() {
            Some(Transport::Http(http)) => (reader.http(http)?, http.timeout, OPEN_TIMEOUT),
            Some(Transport::Stdio(stdio)) => (reader.stdio(stdio)?, stdio.timeout, OPEN_TIMEOUT),
            Some(Transport::Package(package)) => (reader.package(package)?, None, PACKAGE_TIMEOUT),
            Some(Transport::Image(_)) => {
                let reason =
                    "expected http, stdio or package, found an image: this engine starts no containers";
                return Err(reader.wrong("spec.image", reason));
            }
            None => return Err(reader.wrong("spec", "expected exactly one of http, stdio, package, image")),
        };
        Ok(Self {
            reference: reference.to_owned(),
            reach,
            call_timeout: timeout.map_or(CALL_TIMEOUT, Span::get),
            open_timeout,
            secrets: reader.used,
        })
    }

    /// A server's words, or words about it, without its secrets: one short line.
    pub(super) fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self
            .secrets
            .iter()
            .map(SecretText::expose)
            .filter(|s| !s.is_empty())
        {
            text = text.replace(secret, "[redacted]");
        }
        shown(&text, None)
    }
}

struct Reader<'a> {
    reference: &'a str,
    secrets: &'a Secrets,
    used: Vec<SecretText>,
}

impl Reader<'_> {
    fn wrong(&self, path: &str, reason: impl Into<String>) -> LoadError {
        LoadError {
            path: format!("ToolServer {}: {path}", self.reference),
            reason: reason.into(),
        }
    }

    /// The text of a value, and whether it is secret.
    fn value(&mut self, path: &str, value: &HeaderValue) -> Result<(SecretText, bool), LoadError> {
        match value {
            HeaderValue::Text(text) => Ok((SecretText::new(text.clone()), false)),
            HeaderValue::Secret(reference) => {
                let found = self.secrets.resolve(reference);
                let secret = found.map_err(|e| self.wrong(path, e.to_string()))?;
                // Files and variables often end with a line end that no token has.
                let secret = SecretText::new(secret.expose().trim().to_owned());
                self.used.push(secret.clone());
                Ok((secret, true))
            }
        }
    }

    fn http(&mut self, http: &HttpServer) -> Result<Reach, LoadError> {
        let url = parse_url(&http.url).map_err(|reason| self.wrong("spec.http.url", reason))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &http.headers {
            let path = format!("spec.http.headers.{name}");
            let (text, secret) = self.value(&path, value)?;
            let name: HeaderName = name
                .parse()
                .map_err(|_| self.wrong(&path, "expected the name of an HTTP header"))?;
            let mut value = HttpValue::from_str(text.expose())
                .map_err(|_| self.wrong(&path, "expected printable ASCII, found something else"))?;
            value.set_sensitive(secret);
            headers.insert(name, value);
        }
        Ok(Reach::Http { url, headers })
    }

    fn stdio(&mut self, stdio: &StdioServer) -> Result<Reach, LoadError> {
        if stdio
            .command
            .first()
            .is_none_or(|program| program.trim().is_empty())
        {
            return Err(self.wrong(
                "spec.stdio.command",
                "expected a program and its arguments, found none",
            ));
        }
        let mut env = BTreeMap::new();
        for (name, value) in &stdio.env {
            let (text, _) = self.value(&format!("spec.stdio.env.{name}"), value)?;
            env.insert(name.clone(), text);
        }
        Ok(Reach::Program {
            command: stdio.command.clone(),
            env,
            advice: "install it, or give its full path",
        })
    }

    fn package(&mut self, package: &PackageServer) -> Result<Reach, LoadError> {
        let (mut command, advice) = match (&package.npx, &package.uvx) {
            (Some(npx), None) => (
                vec!["npx".to_owned(), "--yes".to_owned(), npx.clone()],
                "install Node.js, or reach the server by http or stdio",
            ),
            (None, Some(uvx)) => (
                uvx_command(uvx),
                "install uv, or reach the server by http or stdio",
            ),
            _ => return Err(self.wrong("spec.package", "expected exactly one of npx, uvx")),
        };
        command.extend(package.args.iter().cloned());
        Ok(Reach::Program {
            command,
            env: BTreeMap::new(),
            advice,
        })
    }
}

/// `name==1.2.3` or `name@1.2.3`, with or without extras (`name[extra]`): the program has the package's bare name.
fn uvx_command(package: &str) -> Vec<String> {
    let (name, version) = match package.split_once("==") {
        Some((name, version)) => (name, Some(version)),
        None => package
            .rsplit_once('@')
            .map_or((package, None), |(n, v)| (n, Some(v))),
    };
    let bare = name.split('[').next().unwrap_or(name);
    let requirement = version.map_or_else(|| name.to_owned(), |version| format!("{name}=={version}"));
    ["uvx", "--from", &requirement, bare].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn load(spec: Value) -> Result<ServerConfig, LoadError> {
        let secrets = Secrets::new([("TOKEN".to_owned(), SecretText::new("canary-1\n".to_owned()))].into());
        ServerConfig::load("git", &serde_json::from_value(spec).unwrap(), &secrets)
    }

    fn command(spec: Value) -> Vec<String> {
        match load(spec).unwrap().reach {
            Reach::Program { command, .. } => command,
            Reach::Http { .. } => panic!("expected a program"),
        }
    }

    #[test]
    fn packages_run_by_their_version() {
        assert_eq!(
            command(json!({"package": {"npx": "@scope/server@1.2.3", "args": ["/tmp"]}})),
            ["npx", "--yes", "@scope/server@1.2.3", "/tmp"]
        );
        for uvx in ["mcp-server-time==2026.1.0", "mcp-server-time@2026.1.0"] {
            assert_eq!(
                command(json!({"package": {"uvx": uvx}})),
                ["uvx", "--from", "mcp-server-time==2026.1.0", "mcp-server-time"]
            );
        }
        assert_eq!(
            command(json!({"package": {"uvx": "a[b]==1"}})),
            ["uvx", "--from", "a[b]==1", "a"]
        );
    }

    #[test]
    fn s62_secrets_are_in_no_debug_output_and_no_words() {
        let http =
            load(json!({"http": {"url": "http://h/mcp", "headers": {"authorization": {"env": "TOKEN"}}}}))
                .unwrap();
        let stdio = load(json!({"stdio": {"command": ["x"], "env": {"A": {"env": "TOKEN"}}}})).unwrap();
        for config in [http, stdio] {
            assert!(!format!("{config:?}").contains("canary"), "{config:?}");
            assert_eq!(config.shown("bad canary-1\nhere"), "bad [redacted] here");
        }
    }

    #[test]
    fn what_cannot_run_does_not_load() {
        let image = format!("x@sha256:{}", "0".repeat(64));
        let table = [
            (
                json!({"image": {"name": image, "port": 80}}),
                "ToolServer git: spec.image",
            ),
            (json!({}), "ToolServer git: spec"),
            (
                json!({"stdio": {"command": []}}),
                "ToolServer git: spec.stdio.command",
            ),
            (
                json!({"http": {"url": "ftp://h"}}),
                "ToolServer git: spec.http.url",
            ),
            (
                json!({"http": {"url": "http://h", "headers": {"x": {"env": "NONE"}}}}),
                "ToolServer git: spec.http.headers.x",
            ),
            (
                json!({"stdio": {"command": ["x"], "env": {"A": {"secret": "s", "key": "k"}}}}),
                "ToolServer git: spec.stdio.env.A",
            ),
        ];
        for (spec, path) in table {
            assert_eq!(load(spec).unwrap_err().path, path);
        }
    }
}

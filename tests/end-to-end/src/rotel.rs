//! A real OTLP receiver (PyPI `rotel`), which prints what it receives; what it printed, read as spans.

use crate::{apart::free_port, wait};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const READY: Duration = Duration::from_secs(20);

/// A running receiver.
#[derive(Debug)]
pub struct Rotel {
    process: Child,
    /// Of its OTLP port, gRPC.
    pub url: String,
    printed: PathBuf,
}

/// A span as it was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty: of no other span.
    pub parent: String,
    pub name: String,
    pub kind: String,
    /// Values as rotel shows them: `Str(east)`, `Int(3)`.
    pub attributes: BTreeMap<String, String>,
}

impl Rotel {
    /// Starts it in `folder`; `None`, said aloud, where it is not installed.
    ///
    /// # Errors
    /// When it does not answer.
    ///
    /// # Panics
    /// In a complete run (`make test`), which must not pass without it.
    pub async fn start(folder: &Path) -> anyhow::Result<Option<Self>> {
        let Some(program) = std::env::var_os("ROADSTEAD_TEST_ROTEL") else {
            assert!(
                std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
                "ROADSTEAD_TEST_ROTEL is not set"
            );
            eprintln!("skipped: rotel is not installed (make test-tools)");
            return Ok(None);
        };
        let (grpc, http) = (free_port(), free_port());
        let printed = folder.join("rotel.out");
        let process = Command::new(program)
            .args(["start", "--exporter", "blackhole", "--disable-batching"])
            .args(["--debug-log-verbosity", "detailed"])
            .args([
                "--debug-log",
                "traces",
                "--debug-log",
                "metrics",
                "--debug-log",
                "logs",
            ])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&printed)?)
            .stderr(Stdio::null())
            .spawn()?;
        let rotel = Self {
            process,
            url: format!("http://127.0.0.1:{grpc}"),
            printed,
        };
        let answers = || async { std::net::TcpStream::connect(("127.0.0.1", grpc)).ok() };
        wait::until("rotel", READY, answers).await?;
        Ok(Some(rotel))
    }

    /// Everything that it has printed.
    #[must_use]
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.printed).unwrap_or_default()
    }

    /// Every span that it has received.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        spans(&self.printed())
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spans(text: &str) -> Vec<Span> {
    let (mut found, mut service, mut in_resource) = (Vec::<Span>::new(), String::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("Resource attributes") {
            in_resource = true;
        } else if line.starts_with("Span #") {
            in_resource = false;
            found.push(Span {
                service: service.clone(),
                ..Span::default()
            });
        } else if let Some((key, value)) = line.strip_prefix("-> ").and_then(|l| l.split_once(": ")) {
            match found.last_mut() {
                _ if in_resource && key == "service.name" => service = bare(value),
                Some(span) if !in_resource => drop(span.attributes.insert(key.to_owned(), bare(value))),
                _ => {}
            }
        } else if let (Some((key, value)), Some(span)) = (line.split_once(':'), found.last_mut())
            && !in_resource
        {
            let value = value.trim().to_owned();
            match key.trim() {
                "Trace ID" => span.trace = value,
                "Parent ID" => span.parent = value,
                "ID" => span.id = value,
                "Name" => span.name = value,
                "Kind" => span.kind = value,
                _ => {}
            }
        }
    }
    found
}

/// `east` of `Str(east)`.
fn bare(value: &str) -> String {
    let inner = value.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(value).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        let text = "ResourceSpans #0\nResource SchemaURL: \nResource attributes:\n     -> service.name: Str(hub)\n\
                    ScopeSpans #0\nInstrumentationScope hub \nSpan #0\n    Trace ID       : aa\n    Parent ID      : \n    \
                    ID             : b1\n    Name           : POST /a2a\n    Kind           : SPAN_KIND_SERVER\n\
                    Start time: 17\nAttributes:\n     -> n: Int(3)\n     -> path: Str(/a: b)\nSpan #1\n    Trace ID       : aa\n    \
                    Parent ID      : b1\n    ID             : b2\n    Name           : chat m\n";
        let read = spans(text);
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].service.as_str(), read[0].name.as_str()),
            ("hub", "POST /a2a")
        );
        assert_eq!((read[0].parent.as_str(), read[1].parent.as_str()), ("", "b1"));
        assert_eq!(read[0].attributes["n"], "3");
        assert_eq!(read[0].attributes["path"], "/a: b");
        assert_eq!(read[1].service, "hub");
    }
}

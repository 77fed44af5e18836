//! What an engine says on its standard error: the last lines in memory, more in a file that is rotated, and a
//! stream of what comes.
//!
//! Lines are untrusted text: control characters are written out (S90), values of secrets that this engine was given
//! are struck out (S62), and a line is cut at [`MAX_LINE`]. A flood costs the engine its own time: it is read as
//! fast as it can be written to disk, and memory and disk stay bounded.

use futures::Stream;
use parking_lot::Mutex;
use roadstead_contract::control::SecretText;
use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    sync::Arc,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    sync::broadcast,
};

/// Longest line that is kept, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024;
/// Most bytes of lines in memory, for each engine: 50 engines stay below 3 MiB.
const RING: usize = 48 * 1024;
/// A file larger than this becomes `engine.log.1`; the one before it goes.
const ROTATE: u64 = 4 * 1024 * 1024;
/// Lines that a slow follower may be behind.
const BEHIND: usize = 64;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Milliseconds since the Unix epoch, UTC, when it was read.
    pub at_ms: i64,
    pub text: String,
}

/// Lines as they come. Ends with the engine's agent, or at once unless it was asked to follow.
pub type LogStream = std::pin::Pin<Box<dyn Stream<Item = Arc<LogLine>> + Send>>;

/// One engine's log, shared by its supervisor and its readers.
#[derive(Debug)]
pub(crate) struct Log {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<Arc<LogLine>>,
    bytes: usize,
    /// `None` once the agent is gone: followers end.
    followers: Option<broadcast::Sender<Arc<LogLine>>>,
    path: PathBuf,
    file: Option<(fs::File, u64)>,
    secrets: Vec<SecretText>,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            inner: Mutex::new(Inner {
                ring: VecDeque::new(),
                bytes: 0,
                followers: Some(broadcast::channel(BEHIND).0),
                path,
                file: None,
                secrets: Vec::new(),
            }),
        }
    }

    /// Values to strike out from now on. Short ones would strike out ordinary words and are left.
    pub(crate) fn strike(&self, secrets: Vec<SecretText>) {
        let long = secrets.into_iter().filter(|s| s.expose().len() >= 8).collect();
        self.inner.lock().secrets = long;
    }

    pub(crate) fn push(&self, at_ms: i64, raw: &[u8]) {
        let mut inner = self.inner.lock();
        let text = clean(&String::from_utf8_lossy(raw), &inner.secrets);
        let line = Arc::new(LogLine { at_ms, text });
        if let Err(error) = inner.write(&line.text) {
            tracing::debug!(%error, "an engine's log cannot be written");
            inner.file = None;
        }
        inner.bytes += weight(&line);
        inner.ring.push_back(line.clone());
        while inner.bytes > RING {
            let Some(gone) = inner.ring.pop_front() else { break };
            inner.bytes -= weight(&gone);
        }
        if let Some(followers) = &inner.followers {
            // An error says that nobody follows.
            let _ = followers.send(line);
        }
    }

    /// Ends every follower.
    pub(crate) fn end(&self) {
        self.inner.lock().followers = None;
    }

    /// The last `tail` lines, then what comes if `follow`.
    pub(crate) fn stream(&self, tail: usize, follow: bool) -> LogStream {
        let inner = self.inner.lock();
        let skip = inner.ring.len().saturating_sub(tail);
        let before: Vec<_> = inner.ring.iter().skip(skip).cloned().collect();
        let rest = inner
            .followers
            .as_ref()
            .filter(|_| follow)
            .map(broadcast::Sender::subscribe);
        let past = futures::stream::iter(before);
        let Some(receiver) = rest else {
            return Box::pin(past);
        };
        let coming = futures::stream::unfold(receiver, |mut receiver| async move {
            let line = match receiver.recv().await {
                Ok(line) => line,
                Err(broadcast::error::RecvError::Lagged(lines)) => {
                    let text = format!("… {lines} lines were skipped: the reader is too slow");
                    Arc::new(LogLine { at_ms: 0, text })
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((line, receiver))
        });
        Box::pin(futures::StreamExt::chain(past, coming))
    }
}

impl Inner {
    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, size)| *size >= ROTATE) {
            self.file = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        if self.file.is_none() {
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut open = fs::OpenOptions::new();
            let file = open.append(true).create(true).mode(0o600).open(&self.path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            let mut line = Vec::with_capacity(text.len() + 1);
            line.extend_from_slice(text.as_bytes());
            line.push(b'\n');
            file.write_all(&line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }
}

/// What a line costs in memory, its bookkeeping included.
fn weight(line: &LogLine) -> usize {
    line.text.len() + 64
}

/// Control characters written out, secrets struck out.
fn clean(raw: &str, secrets: &[SecretText]) -> String {
    let mut text = String::with_capacity(raw.len());
    for c in raw.chars() {
        if c.is_control() && c != '\t' {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    for secret in secrets {
        if text.contains(secret.expose()) {
            text = text.replace(secret.expose(), "***");
        }
    }
    text
}

/// Reads lines until the end of the stream.
pub(crate) async fn capture(
    from: impl AsyncRead + Unpin,
    log: &Log,
    clock: &(dyn Fn() -> i64 + Send + Sync),
) {
    let mut reader = BufReader::with_capacity(4 * 1024, from);
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let (used, ended) = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => match bytes.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    keep(&mut line, &bytes[..end], &mut cut);
                    (end + 1, true)
                }
                None => {
                    keep(&mut line, bytes, &mut cut);
                    (bytes.len(), false)
                }
            },
        };
        reader.consume(used);
        if ended {
            finish(&mut line, &mut cut, log, clock);
        }
    }
    if !line.is_empty() {
        finish(&mut line, &mut cut, log, clock);
    }
}

fn keep(line: &mut Vec<u8>, bytes: &[u8], cut: &mut bool) {
    let room = MAX_LINE - line.len();
    *cut |= bytes.len() > room;
    line.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn finish(line: &mut Vec<u8>, cut: &mut bool, log: &Log, clock: &(dyn Fn() -> i64 + Send + Sync)) {
    if *cut {
        line.extend_from_slice("… (cut)".as_bytes());
    }
    let raw = line.strip_suffix(b"\r").unwrap_or(line);
    log.push(clock(), raw);
    line.clear();
    *cut = false;
    if line.capacity() > 4 * 1024 {
        *line = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    fn log() -> (tempfile::TempDir, Log) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path().join("engine.log"));
        (folder, log)
    }

    async fn texts(stream: LogStream) -> Vec<String> {
        stream.map(|line| line.text.clone()).collect().await
    }

    #[test]
    fn s90_control_characters_are_written_out() {
        let cleaned = clean("a\u{1b}[31mred\rb\u{0}\tc", &[]);
        assert_eq!(cleaned, "a\\u{1b}[31mred\\u{d}b\\u{0}\tc");
    }

    #[tokio::test]
    async fn s62_values_that_the_engine_was_given_are_struck_out() {
        let (folder, log) = log();
        log.strike(vec![
            SecretText::new("canary-0123456789".to_owned()),
            SecretText::new("a".to_owned()),
        ]);
        log.push(1, b"authorization: canary-0123456789 was refused");
        let expected = "authorization: *** was refused";
        assert_eq!(texts(log.stream(10, false)).await, [expected]);
        let file = fs::read_to_string(folder.path().join("engine.log")).unwrap();
        assert_eq!(file, format!("{expected}\n"));
    }

    #[tokio::test]
    async fn lines_are_cut_and_memory_is_bounded() {
        let (_folder, log) = log();
        let mut raw = vec![b'x'; 3 * MAX_LINE];
        raw.push(b'\n');
        raw.extend_from_slice(b"two\r\nthree");
        capture(&raw[..], &log, &|| 7).await;
        let lines = texts(log.stream(10, false)).await;
        assert_eq!(lines[0], format!("{}… (cut)", "x".repeat(MAX_LINE)));
        assert_eq!(lines[1..], ["two", "three"]);
        for n in 0..10_000 {
            log.push(n, &[b'y'; 1000]);
        }
        assert!(log.inner.lock().bytes <= RING);
    }

    #[tokio::test]
    async fn files_are_rotated() {
        let (folder, log) = log();
        for _ in 0..600 {
            log.push(0, &[b'z'; MAX_LINE]);
        }
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("engine.log") < ROTATE + 2 * MAX_LINE as u64);
        assert!(size("engine.log.1") < ROTATE + 2 * MAX_LINE as u64);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_follower_sees_the_tail_and_what_comes_and_ends_with_the_agent() {
        let (_folder, log) = log();
        for text in ["one", "two", "three"] {
            log.push(0, text.as_bytes());
        }
        let stream = log.stream(2, true);
        log.push(0, b"four");
        log.end();
        assert_eq!(texts(stream).await, ["two", "three", "four"]);
        assert_eq!(texts(log.stream(1, true)).await, ["four"]);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed() {
        let (_folder, log) = log();
        let stream = log.stream(0, true);
        for n in 0..BEHIND + 10 {
            log.push(0, n.to_string().as_bytes());
        }
        log.end();
        let lines = texts(stream).await;
        assert!(lines[0].starts_with("… 10 lines"), "{lines:?}");
        assert_eq!(lines.len(), BEHIND + 1);
    }
}

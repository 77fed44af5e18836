//! `contract::control` over an engine's standard input and output.

use futures::StreamExt as _;
use roadstead_contract::control::{FromEngine, MAX_LINE, ToEngine};
use std::io;
use tokio::{
    io::AsyncWriteExt as _,
    process::{ChildStdin, ChildStdout},
    sync::mpsc,
};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use zeroize::Zeroizing;

/// Frames that wait for an engine that does not read. At most one revision is under way at a time, so more than
/// these are never due to an engine that works.
const WAITING: usize = 16;

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// Longer than [`MAX_LINE`].
    TooLong,
    /// The engine has not read for long, or is gone.
    Stuck,
}

/// The way to an engine. A task writes, so that an engine that does not read never holds up its supervisor.
#[derive(Debug)]
pub(crate) struct Writer(mpsc::Sender<Zeroizing<Vec<u8>>>);

impl Writer {
    pub(crate) fn start(mut to: ChildStdin) -> Self {
        let (sender, mut lines) = mpsc::channel::<Zeroizing<Vec<u8>>>(WAITING);
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                if to.write_all(&line).await.is_err() {
                    break;
                }
            }
            // Dropping the pipe tells the engine that its runtime is gone.
        });
        Self(sender)
    }

    pub(crate) fn send(&self, frame: &ToEngine) -> Result<(), Unsent> {
        let mut line = Zeroizing::new(Vec::with_capacity(4 * 1024));
        serde_json::to_writer(&mut *line, frame).map_err(|_| Unsent::TooLong)?;
        if line.len() >= MAX_LINE {
            return Err(Unsent::TooLong);
        }
        line.push(b'\n');
        self.0.try_send(line).map_err(|_| Unsent::Stuck)
    }
}

/// What came from an engine.
#[derive(Debug)]
pub(crate) enum Heard {
    Frame(FromEngine),
    /// A line that is no frame, and why.
    Nonsense(String),
    /// Bytes that cannot be cut into lines; what follows has no meaning.
    Broken(&'static str),
    /// Nothing will come any more.
    End,
}

/// Reads frames one at a time: an engine that floods waits on its own pipe.
#[derive(Debug)]
pub(crate) struct Reader(FramedRead<ChildStdout, LinesCodec>);

impl Reader {
    pub(crate) fn new(from: ChildStdout) -> Self {
        let codec = LinesCodec::new_with_max_length(MAX_LINE);
        Self(FramedRead::with_capacity(from, codec, 1024))
    }

    /// Safe to cancel.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.0.next().await {
            Some(Ok(line)) => match serde_json::from_str(&line) {
                Ok(frame) => Heard::Frame(frame),
                Err(error) => Heard::Nonsense(error.to_string()),
            },
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => Heard::Broken("sends a line without end"),
            Some(Err(LinesCodecError::Io(error))) if error.kind() == io::ErrorKind::InvalidData => {
                Heard::Broken("sends what is no text")
            }
            Some(Err(LinesCodecError::Io(_))) | None => Heard::End,
        }
    }
}

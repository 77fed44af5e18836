//! Cuts a body into the frames of a streaming format: server-sent events, or one JSON object a line.
//!
//! Server-sent events as in the HTML standard §9.2, with `\n` or `\r\n` at line ends.

/// Longest frame, in bytes: an answer beyond it is not one that an agent can use.
const MAX_FRAME: usize = 8 * 1024 * 1024;

/// How a format separates its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// `event:` and `data:` lines up to an empty line.
    Events,
    /// A line each.
    Lines,
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// The event's name; empty: none was given.
    pub(super) event: Vec<u8>,
    pub(super) data: Vec<u8>,
}

/// A frame longer than [`MAX_FRAME`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Bytes in, frames out.
#[derive(Debug)]
pub(super) struct Frames {
    framing: Framing,
    buffer: Vec<u8>,
    /// Start of the first line not yet read.
    start: usize,
    frame: Frame,
    has_data: bool,
}

impl Frames {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            buffer: Vec::new(),
            start: 0,
            frame: Frame::default(),
            has_data: false,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame; `None`: more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, TooLong> {
        while let Some(length) = self.buffer[self.start..].iter().position(|b| *b == b'\n') {
            let line = self.start..self.start + length;
            self.start = line.end + 1;
            if let Some(frame) = self.line(line) {
                return Ok(Some(frame));
            }
        }
        if self.buffer.len() - self.start + self.frame.data.len() > MAX_FRAME {
            return Err(TooLong);
        }
        Ok(None)
    }

    /// What stands there at the end of the body, without the line ends that would complete it.
    pub(super) fn rest(&mut self) -> Option<Frame> {
        let line = self.start..self.buffer.len();
        self.start = self.buffer.len();
        let by_line = self.line(line);
        let open = self.has_data;
        self.has_data = false;
        by_line.or_else(|| open.then(|| std::mem::take(&mut self.frame)))
    }

    fn line(&mut self, range: std::ops::Range<usize>) -> Option<Frame> {
        let line = &self.buffer[range];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.framing == Framing::Lines {
            return (!line.trim_ascii().is_empty()).then(|| Frame {
                event: Vec::new(),
                data: line.to_vec(),
            });
        }
        if line.is_empty() {
            let complete = std::mem::take(&mut self.has_data);
            let frame = std::mem::take(&mut self.frame);
            return complete.then_some(frame);
        }
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                if self.has_data {
                    self.frame.data.push(b'\n');
                }
                self.frame.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => self.frame.event = value.to_vec(),
            // Comments, ids and retry times mean nothing here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(framing: Framing, pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut frames = Frames::new(framing);
        let mut found = Vec::new();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        for piece in pieces {
            frames.push(piece);
            while let Some(frame) = frames.next().unwrap() {
                found.push((text(frame.event), text(frame.data)));
            }
        }
        if let Some(frame) = frames.rest() {
            found.push((text(frame.event), text(frame.data)));
        }
        found
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let body =
            b": hello\r\nevent: a\r\ndata: 1\r\ndata:2\r\nid: 7\r\n\r\n\n\ndata: [DONE]\n\nevent: x\n\n";
        let expected = [("a", "1\n2"), ("", "[DONE]")].map(|(e, d)| (e.to_owned(), d.to_owned()));
        assert_eq!(all(Framing::Events, &[body]), expected);
    }

    #[test]
    fn the_last_frame_may_lack_its_line_ends() {
        assert_eq!(
            all(Framing::Events, &[b"data: [DONE]"]),
            [(String::new(), "[DONE]".to_owned())]
        );
        assert_eq!(
            all(Framing::Events, &[b"data: x\n"]),
            [(String::new(), "x".to_owned())]
        );
        assert_eq!(all(Framing::Lines, &[b"{}\n\n{\"a\"", b":1}"]).len(), 2);
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        let mut frames = Frames::new(Framing::Events);
        frames.push(b"data: ");
        frames.push(&vec![b'x'; MAX_FRAME + 1]);
        assert_eq!(frames.next(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(1usize..7, 1..60)) {
            let body = "event: e\ndata: {\"ä\": 1}\n\ndata: two\ndata: lines\n\n:c\n\ndata: end\n\n".as_bytes();
            let mut pieces = Vec::new();
            let mut rest = body;
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(all(Framing::Events, &pieces), all(Framing::Events, &[body]));
        }
    }
}

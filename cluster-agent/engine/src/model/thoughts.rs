//! Thoughts that a model writes into its answer: `<think>…</think>` at the very beginning.
//!
//! Most servers tell them apart; those without a parser for the model's format do not, and the thoughts would be shown
//! as the answer and sent back as such.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// The text of one answer on its way out.
#[derive(Debug, Default)]
pub(super) struct Thoughts {
    state: State,
    /// The end of what came, while it may be the beginning of a tag.
    held: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Inside,
    After,
}

/// A piece of text, told apart; either may be empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) thought: String,
    pub(super) text: String,
}

impl Thoughts {
    pub(super) fn push(&mut self, text: String) -> Split {
        if self.state == State::After {
            return Split {
                text,
                ..Split::default()
            };
        }
        self.held.push_str(&text);
        let mut split = Split::default();
        if self.state == State::Start {
            let trimmed = self.held.trim_start();
            if let Some(rest) = trimmed.strip_prefix(OPEN) {
                self.held = rest.to_owned();
                self.state = State::Inside;
            } else if OPEN.starts_with(trimmed) {
                return split;
            } else {
                self.state = State::After;
                split.text = std::mem::take(&mut self.held);
                return split;
            }
        }
        if let Some((thought, rest)) = self.held.split_once(CLOSE) {
            thought.clone_into(&mut split.thought);
            rest.trim_start().clone_into(&mut split.text);
            self.held.clear();
            self.state = State::After;
        } else {
            let keep = self.held.len() - tag_begun(&self.held);
            split.thought = self.held.drain(..keep).collect();
        }
        split
    }

    /// The end of the answer: what was held back.
    pub(super) fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        let mut split = Split::default();
        if self.state == State::Inside {
            split.thought = held;
        } else {
            split.text = held;
        }
        self.state = State::After;
        split
    }
}

/// How many bytes at the end of `text` may be the beginning of [`CLOSE`].
fn tag_begun(text: &str) -> usize {
    (1..CLOSE.len())
        .rev()
        .find(|n| text.ends_with(&CLOSE[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, size: usize) -> (String, String) {
        let mut thoughts = Thoughts::default();
        let chars: Vec<char> = text.chars().collect();
        let mut all = Split::default();
        let mut add = |split: Split| {
            all.thought += &split.thought;
            all.text += &split.text;
        };
        for piece in chars.chunks(size) {
            add(thoughts.push(piece.iter().collect()));
        }
        add(thoughts.finish());
        (all.thought, all.text)
    }

    #[test]
    fn thoughts_at_the_beginning_are_told_apart() {
        let table = [
            ("<think>hm</think>Hello", "hm", "Hello"),
            (
                "\n<think>\nhm < 3\n</think>\n\nHello <think>x</think>",
                "\nhm < 3\n",
                "Hello <think>x</think>",
            ),
            ("<think>cut in thou", "cut in thou", ""),
            ("Hello <think>x</think>", "", "Hello <think>x</think>"),
            ("<thin ice>", "", "<thin ice>"),
            ("<thi", "", "<thi"),
            ("", "", ""),
        ];
        for (text, thought, said) in table {
            for size in [1, 2, 5, 100] {
                let (found_thought, found_text) = run(text, size);
                assert_eq!(found_thought, thought, "{text:?} in pieces of {size}");
                assert_eq!(found_text.trim(), said, "{text:?} in pieces of {size}");
            }
        }
    }
}

//! An engine's log through the tunnel: the hub asks the cluster agent with a call of kind `LOGS`, a `GET` of
//! [`Query::path`]; the answer is 200 with [`CONTENT_TYPE`], one [`Line`] as JSON a line, for as long as the hub
//! reads.

use serde::{Deserialize, Serialize};

/// Newline-delimited JSON.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// Most lines that can be asked for.
pub const MAX_TAIL: usize = 10_000;

/// One line of a log. Control characters are written out, known secret values struck out, long lines cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// Milliseconds since the Unix epoch, UTC, when it was captured; 0 for a remark on the log itself.
    pub at_ms: i64,
    pub text: String,
}

/// Which lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The last so many, at most [`MAX_TAIL`]; fewer where fewer are kept.
    pub tail: usize,
    /// Then those that come.
    pub follow: bool,
}

impl Query {
    /// The path of the call.
    #[must_use]
    pub fn path(self) -> String {
        format!("/?tail={}&follow={}", self.tail, self.follow)
    }

    /// Reads what [`Self::path`] wrote; `None` for anything else.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let (tail, follow) = path.strip_prefix("/?tail=")?.split_once("&follow=")?;
        Some(Self {
            tail: tail.parse().ok().filter(|tail| *tail <= MAX_TAIL)?,
            follow: follow.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_survives_its_path_and_nothing_else_is_one() {
        for query in [
            Query {
                tail: 0,
                follow: true,
            },
            Query {
                tail: MAX_TAIL,
                follow: false,
            },
        ] {
            assert_eq!(Query::parse(&query.path()), Some(query));
        }
        for path in [
            "/",
            "/?tail=1",
            "/?tail=-1&follow=true",
            "/?tail=10001&follow=true",
            "/x?tail=1&follow=true",
        ] {
            assert_eq!(Query::parse(path), None, "{path}");
        }
    }
}

//! Metrics of refusals.

use roadstead_telemetry::{Counter, label, meter};
use std::sync::OnceLock;

/// Why a request had no caller.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    /// No token.
    Absent,
    Malformed,
    /// A token in the URL.
    InUrl,
    /// Unknown, expired, revoked.
    Wrong,
    /// Too many wrong ones before.
    Limited,
    /// Too many requests of the token or its tenant.
    TooMany,
    /// The store could not be asked.
    Unavailable,
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Malformed => "malformed",
            Self::InUrl => "in_url",
            Self::Wrong => "wrong",
            Self::Limited => "limited",
            Self::TooMany => "too_many",
            Self::Unavailable => "unavailable",
        }
    }
}

pub(crate) fn refused(why: Refusal) {
    static REFUSALS: OnceLock<Counter<u64>> = OnceLock::new();
    let refusals = REFUSALS.get_or_init(|| {
        meter("roadstead_login")
            .u64_counter("roadstead.hub.authentication.refusals")
            .with_description("Requests without a caller, by what was wrong.")
            .build()
    });
    refusals.add(1, &[label("reason", why.as_str())]);
}

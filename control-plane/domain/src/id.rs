//! Typed ids: a UUIDv7 inside, a prefix and 32 hex digits outside (`agt_0198…`).
//!
//! One type for each thing, so that ids of different things cannot be mixed up in code, and a prefix for each type,
//! so that they cannot be mixed up in text: a wrong kind is an error before any query.

use crate::{Clock, Error, Problem, Random};
use roadstead_contract::documents::Kind;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A text that is no id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct IdError {
    expected: String,
    found: String,
}

impl IdError {
    fn new(what: &str, prefix: &str, found: &str) -> Self {
        Self {
            expected: format!("{what} id ({prefix}_ and 32 hexadecimal digits)"),
            found: found.chars().take(48).collect(),
        }
    }

    /// As a problem of the input at `path`.
    #[must_use]
    pub fn at(self, path: &str) -> Error {
        Error::invalid(Problem::new(
            path,
            self.expected,
            format!("{:?}", self.found),
            "wrong id",
        ))
    }
}

/// UUIDv7 (RFC 9562 §5.7) of the clock's millisecond.
fn version_7(clock: &dyn Clock, random: &dyn Random) -> Uuid {
    let mut bytes = [0; 10];
    random.fill(&mut bytes);
    let ms = u64::try_from(clock.now_ms()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid()
}

fn parse(text: &str, prefix: &str) -> Option<Uuid> {
    let hex = text.strip_prefix(prefix)?.strip_prefix('_')?;
    let plain = hex.len() == 32 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if plain { Uuid::try_parse(hex).ok() } else { None }
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Uuid);

        impl $type {
            /// Stands before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id of this moment.
            #[must_use]
            pub fn generate(clock: &dyn Clock, random: &dyn Random) -> Self {
                Self(version_7(clock, random))
            }

            /// The id of a UUID that is known to be of this kind (from a database row).
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text, $prefix).map(Self).ok_or_else(|| IdError::new($what, $prefix, text))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

id!(TenantId, "ten", "a tenant's");
id!(ProjectId, "prj", "a project's");
id!(AgentId, "agt", "an agent's");
id!(ModelId, "mdl", "a model's");
id!(ToolServerId, "tsv", "a tool server's");
id!(PromptId, "pmt", "a prompt's");
id!(ClusterId, "cls", "a cluster's");
id!(TokenId, "tok", "an API token's");
id!(
    /// Of a join token; the token itself is a secret and no id.
    EnrolmentTokenId, "enr", "an enrolment token's"
);
id!(RunId, "run", "a run's");
id!(CommandId, "cmd", "a command's");
id!(RevisionId, "rev", "a revision's");
id!(AuditId, "aud", "an audit record's");

impl RunId {
    /// The id that an engine chose, as a run record carries it: bare UUID text, or the typed form.
    ///
    /// # Errors
    /// For any other text.
    pub fn from_record(text: &str) -> Result<Self, IdError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let uuid = Uuid::try_parse(text).map_err(|_| IdError::new("a run's", Self::PREFIX, text))?;
        Ok(Self(uuid))
    }
}

/// The id (uid) of a document: of an agent, a model, a tool server or a prompt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    kind: Kind,
    uuid: Uuid,
}

impl ObjectId {
    /// A new id of this moment.
    #[must_use]
    pub fn generate(kind: Kind, clock: &dyn Clock, random: &dyn Random) -> Self {
        let uuid = version_7(clock, random);
        Self { kind, uuid }
    }

    /// The id of a UUID that is known to be of this kind (from a database row).
    #[must_use]
    pub const fn from_uuid(kind: Kind, uuid: Uuid) -> Self {
        Self { kind, uuid }
    }

    #[must_use]
    pub const fn kind(self) -> Kind {
        self.kind
    }

    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.uuid
    }

    /// As an agent's id; `None` for other kinds.
    #[must_use]
    pub fn agent(self) -> Option<AgentId> {
        (self.kind == Kind::Agent).then_some(AgentId(self.uuid))
    }
}

const fn prefix(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => AgentId::PREFIX,
        Kind::Model => ModelId::PREFIX,
        Kind::ToolServer => ToolServerId::PREFIX,
        Kind::Prompt => PromptId::PREFIX,
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", prefix(self.kind), self.uuid.simple())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let found = Kind::ALL
            .into_iter()
            .find_map(|kind| parse(text, prefix(kind)).map(|uuid| Self { kind, uuid }));
        found.ok_or_else(|| IdError::new("a document's", "agt, mdl, tsv or pmt", text))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

macro_rules! object {
    ($($type:ident => $kind:ident),+) => {$(
        impl From<$type> for ObjectId {
            fn from(id: $type) -> Self {
                Self { kind: Kind::$kind, uuid: id.0 }
            }
        }
        impl TryFrom<ObjectId> for $type {
            type Error = IdError;
            fn try_from(id: ObjectId) -> Result<Self, IdError> {
                id.to_string().parse()
            }
        }
    )+};
}
object!(AgentId => Agent, ModelId => Model, ToolServerId => ToolServer, PromptId => Prompt);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeClock, SeededRandom};
    use proptest::prelude::*;

    #[test]
    fn ids_sort_by_time_and_repeat_with_clock_and_seed() {
        let clock = FakeClock::at(1_700_000_000_000);
        let make = || AgentId::generate(&clock, &SeededRandom::new(7));
        let first = make();
        assert_eq!(first, make());
        assert_eq!(first.as_uuid().get_version_num(), 7);
        clock.advance(std::time::Duration::from_millis(1));
        assert!(make() > first);
    }

    #[test]
    fn another_kind_of_id_is_an_error() {
        let id = ModelId::generate(&FakeClock::at(1), &SeededRandom::new(1));
        let error = id
            .to_string()
            .parse::<AgentId>()
            .expect_err("a model is no agent");
        assert!(
            error
                .to_string()
                .starts_with("expected an agent's id (agt_ and 32 hexadecimal digits)"),
            "{error}"
        );
        assert!(AgentId::try_from(ObjectId::from(id)).is_err());
    }

    proptest! {
        #[test]
        fn text_is_read_back_and_spelled_one_way(bytes: [u8; 16], tail in "[0-9A-Za-z_-]{0,40}") {
            for kind in Kind::ALL {
                let id = ObjectId::from_uuid(kind, Uuid::from_bytes(bytes));
                prop_assert_eq!(id.to_string().parse::<ObjectId>(), Ok(id));
            }
            let cluster = ClusterId::from_uuid(Uuid::from_bytes(bytes));
            prop_assert_eq!(cluster.to_string().parse::<ClusterId>(), Ok(cluster));
            if let Ok(read) = format!("cls_{tail}").parse::<ClusterId>() {
                prop_assert_eq!(read.to_string(), format!("cls_{tail}"));
            }
        }
    }
}

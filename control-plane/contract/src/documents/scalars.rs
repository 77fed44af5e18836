//! Texts with a form: names, references, durations, counts, money.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// A text that has not the form of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct ScalarError {
    pub expected: Cow<'static, str>,
    pub found: String,
}

fn wrong<T>(expected: &'static str, found: &str) -> Result<T, ScalarError> {
    let shown: String = found.chars().take(80).collect();
    Err(ScalarError {
        expected: Cow::Borrowed(expected),
        found: format!("{shown:?}"),
    })
}

macro_rules! text_form {
    ($type:ident, $expected:expr, $pattern:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|error: ScalarError| de::Error::custom(error))
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($type))
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "description": $expected, "pattern": $pattern})
            }
        }
    };
}

/// A DNS label: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123 §2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);
const NAME: &str = "a DNS label: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends";

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let bytes = text.as_bytes();
        let fits = bytes.len() <= 63
            && edge(bytes.first().copied())
            && edge(bytes.last().copied())
            && bytes
                .iter()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            wrong(NAME, text)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(Name, NAME, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$");

/// A name in the same project, or `project/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    pub project: Option<Name>,
    pub name: Name,
}

impl FromStr for Reference {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let expected = "a name in the same project, or project/name";
        let parsed = match text.split_once('/') {
            Some((project, name)) => project.parse().and_then(|p| Ok((Some(p), name.parse()?))),
            None => text.parse().map(|name| (None, name)),
        };
        match parsed {
            Ok((project, name)) => Ok(Self { project, name }),
            Err(_) => wrong(expected, text),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.project {
            Some(project) => write!(f, "{project}/{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}
text_form!(
    Reference,
    "a name in the same project, or project/name",
    "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
);

/// A length of time: a whole number and `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);
const DURATION: &str = "a duration: a whole number and ms, s, m or h (500ms, 30s, 5m, 24h)";

impl Duration {
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return wrong(DURATION, text),
        };
        let total = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis));
        total.map_or_else(
            || wrong(DURATION, text),
            |ms| Ok(Self(std::time::Duration::from_millis(ms))),
        )
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0 => f.write_str("0s"),
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1_000) => write!(f, "{}s", ms / 1_000),
            _ => write!(f, "{ms}ms"),
        }
    }
}
text_form!(Duration, DURATION, "^[0-9]+(ms|s|m|h)$");

/// A number of things: a whole number, or one with `k` (thousand) or `M` (million).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count(pub u64);
const COUNT: &str = "a whole number, or one with k or M (200000, 200k, 2M)";

impl FromStr for Count {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let (number, factor) = match text.strip_suffix('k') {
            Some(number) => (number, 1_000),
            None => text
                .strip_suffix('M')
                .map_or((text, 1), |number| (number, 1_000_000)),
        };
        let plain = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
        let total = number
            .parse::<u64>()
            .ok()
            .filter(|_| plain)
            .and_then(|n| n.checked_mul(factor));
        total.map_or_else(|| wrong(COUNT, text), |n| Ok(Self(n)))
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(COUNT)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Count, E> {
                Ok(Count(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                text.parse().map_err(|error: ScalarError| E::custom(error))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Count")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": COUNT, "anyOf": [
            {"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+[kM]?$"}]})
    }
}

/// A non-negative decimal with at most six places, kept in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal {
    pub micros: u64,
}
const DECIMAL: &str = "a decimal in quotes with at most six places (\"1.50\")";

impl FromStr for Decimal {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
        let dotted_empty = text.contains('.') && fraction.is_empty();
        if whole.is_empty() || dotted_empty || fraction.len() > 6 || !digits(whole) || !digits(fraction) {
            return wrong(DECIMAL, text);
        }
        let micros = format!("{fraction:0<6}").parse::<u64>().unwrap_or(0);
        let total = whole
            .parse::<u64>()
            .ok()
            .and_then(|w| w.checked_mul(1_000_000))
            .and_then(|w| w.checked_add(micros));
        total.map_or_else(|| wrong(DECIMAL, text), |micros| Ok(Self { micros }))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micros) = (self.micros / 1_000_000, self.micros % 1_000_000);
        let fraction = format!("{micros:06}");
        let short = fraction.trim_end_matches('0');
        write!(
            f,
            "{whole}.{}",
            if short.len() < 2 { &fraction[..2] } else { short }
        )
    }
}
text_form!(Decimal, DECIMAL, "^[0-9]+([.][0-9]{1,6})?$");

/// A currency by its ISO 4217 code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency(String);
const CURRENCY: &str = "a currency code of three capital letters (ISO 4217)";

impl Currency {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Currency {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let fits = text.len() == 3 && text.bytes().all(|c| c.is_ascii_uppercase());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            wrong(CURRENCY, text)
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(Currency, CURRENCY, "^[A-Z]{3}$");

/// An amount: `1.50 USD`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money {
    /// Millionths of the currency's unit.
    pub micros: u64,
    pub currency: Currency,
}
const MONEY: &str = "an amount and a currency (1.50 USD)";

impl FromStr for Money {
    type Err = ScalarError;
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let parsed = text.split_once(' ').and_then(|(amount, currency)| {
            let amount: Decimal = amount.parse().ok()?;
            Some(Self {
                micros: amount.micros,
                currency: currency.parse().ok()?,
            })
        });
        parsed.map_or_else(|| wrong(MONEY, text), Ok)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Decimal { micros: self.micros }, self.currency)
    }
}
text_form!(Money, MONEY, "^[0-9]+([.][0-9]{1,6})? [A-Z]{3}$");

/// A Kubernetes quantity, not negative: a decimal and a suffix (`50m`, `1.5`, `256Mi`, `1G`), kept as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quantity {
    text: String,
    /// Thousandths, rounded up.
    milli: u128,
}
const QUANTITY: &str =
    "a quantity: a number and m, k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or nothing (50m, 256Mi)";

impl Quantity {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// The value in whole units (bytes, of memory), rounded up; the largest number where it does not fit.
    #[must_use]
    pub fn units(&self) -> u64 {
        u64::try_from(self.milli.div_ceil(1_000)).unwrap_or(u64::MAX)
    }
    /// The value in thousandths (millicores, of CPU), rounded up.
    #[must_use]
    pub fn milli(&self) -> u128 {
        self.milli
    }
}

impl FromStr for Quantity {
    type Err = ScalarError;
    /// The grammar of `k8s.io/apimachinery/pkg/api/resource`, without exponents and signs.
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let end = text
            .bytes()
            .take_while(|c| c.is_ascii_digit() || *c == b'.')
            .count();
        let (number, suffix) = text.split_at(end);
        let factor: u128 = match suffix {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "P" => 1_000_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            "Pi" => 1_000 << 50,
            _ => return wrong(QUANTITY, text),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
        let shaped = !(whole.is_empty() && fraction.is_empty()) && digits(whole) && digits(fraction);
        if !shaped || whole.len() > 15 || fraction.len() > 9 {
            return wrong(QUANTITY, text);
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
        let value = |part: &str| part.parse::<u128>().unwrap_or(0);
        let milli = ((value(whole) * scale + value(fraction)) * factor).div_ceil(scale);
        Ok(Self {
            text: text.to_owned(),
            milli,
        })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(QUANTITY)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(|error: ScalarError| E::custom(error))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Quantity")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": QUANTITY, "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^([0-9]+([.][0-9]*)?|[.][0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}]})
    }
}

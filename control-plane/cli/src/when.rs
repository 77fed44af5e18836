//! Moments as people type them: how long ago, or a time.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

/// A moment that was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Ago(TimeDelta),
    At(DateTime<Utc>),
}

/// `30s`, `15m`, `2h`, `3d`, `1w`, or a time of RFC 3339.
///
/// # Errors
/// What was expected.
pub(crate) fn parse(text: &str) -> Result<When, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(When::At(at.with_timezone(&Utc)));
    }
    ago(text).map(When::Ago).ok_or_else(|| {
        "expected how long ago (30s, 15m, 2h, 3d, 1w) or a time (2026-01-02T15:04:05Z)".to_owned()
    })
}

fn ago(text: &str) -> Option<TimeDelta> {
    let unit = text.chars().next_back()?;
    let number = text.strip_suffix(unit)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return None,
    };
    // A sign is none of it: `-2h` would lie ahead.
    let number = number
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| number.parse::<i64>());
    TimeDelta::try_seconds(number?.ok()?.checked_mul(seconds)?)
}

impl When {
    /// As the API takes it.
    pub(crate) fn value(self, now: DateTime<Utc>) -> Value {
        let at = match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub_signed(ago).unwrap_or(DateTime::UNIX_EPOCH),
        };
        at.max(DateTime::UNIX_EPOCH)
            .to_rfc3339_opts(SecondsFormat::Millis, true)
            .into()
    }
}

/// A `TimeFilter` of the API; null where nothing was typed.
pub(crate) fn filter(since: Option<When>, until: Option<When>, now: DateTime<Utc>) -> Value {
    if since.is_none() && until.is_none() {
        return Value::Null;
    }
    let value = |when: Option<When>| when.map(|when| when.value(now));
    json!({"gte": value(since), "lt": value(until)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ago_or_times() {
        let now: DateTime<Utc> = "2026-01-02T12:00:00Z".parse().unwrap();
        let value = |text: &str| parse(text).map(|when| when.value(now));
        assert_eq!(value("90s").unwrap(), "2026-01-02T11:58:30.000Z");
        assert_eq!(value("2h").unwrap(), "2026-01-02T10:00:00.000Z");
        assert_eq!(value("1w").unwrap(), "2025-12-26T12:00:00.000Z");
        assert_eq!(
            value("2026-01-01T01:00:00+01:00").unwrap(),
            "2026-01-01T00:00:00.000Z"
        );
        assert_eq!(value("999999999d").unwrap(), "1970-01-01T00:00:00.000Z");
        for wrong in [
            "",
            "h",
            "2",
            "-2h",
            "2 h",
            "1.5h",
            "2y",
            "yesterday",
            "9999999999999999999d",
            "2026-01-02",
            "+2h",
            "ü",
        ] {
            assert!(value(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(filter(None, None, now), Value::Null);
        let since = filter(parse("1h").ok(), None, now);
        assert_eq!(since, json!({"gte": "2026-01-02T11:00:00.000Z", "lt": null}));
    }
}

//! From a provider's failure to a [`ModelError`]: its class, and a short message without the key.

use super::{ErrorClass, ModelError};
use http::HeaderMap;
use roadstead_contract::control::SecretText;
use serde_json::Value;
use std::time::Duration;

/// Longest piece of a provider's own words that is passed on, in characters.
const SHOWN: usize = 300;

pub(super) fn error(class: ErrorClass, message: impl Into<String>) -> ModelError {
    ModelError {
        class,
        message: message.into(),
    }
}

/// The error of an answer with a status other than success.
pub(super) fn status_error(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    key: Option<&SecretText>,
) -> ModelError {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let said = json.as_ref().map_or_else(
        || String::from_utf8_lossy(body).into_owned(),
        |json| words(json).unwrap_or_default(),
    );
    // A quota that is used up does not come back within a retry.
    let exhausted = json
        .as_ref()
        .is_some_and(|j| code(j) == Some("insufficient_quota"));
    let retry_after = retry_after(headers);
    let class = match status {
        429 if exhausted => ErrorClass::Refused,
        429 | 529 => ErrorClass::RateLimited { retry_after },
        503 if retry_after.is_some() => ErrorClass::RateLimited { retry_after },
        408 | 409 | 425 | 500..=599 => ErrorClass::Status(status),
        _ => ErrorClass::Refused,
    };
    let said = shown(&said, key);
    let hint = match status {
        300..=399 => " (redirects are not followed: give the final address as the endpoint)",
        401 | 403 => " (check spec.key of the model)",
        404 => " (check spec.endpoint and spec.model)",
        _ => "",
    };
    let colon = if said.is_empty() { "" } else { ": " };
    error(
        class,
        format!("the provider answered {status}{colon}{said}{hint}"),
    )
}

/// The error that a provider reports inside a stream.
pub(super) fn event_error(json: &Value, key: Option<&SecretText>) -> ModelError {
    let class = match code(json).unwrap_or_default() {
        "overloaded_error" | "rate_limit_error" | "rate_limit_exceeded" | "rate_limit_reached" => {
            ErrorClass::RateLimited { retry_after: None }
        }
        "invalid_request_error"
        | "authentication_error"
        | "permission_error"
        | "not_found_error"
        | "insufficient_quota"
        | "invalid_api_key"
        | "context_length_exceeded" => ErrorClass::Refused,
        _ => ErrorClass::Status(500),
    };
    let said = shown(&words(json).unwrap_or_default(), key);
    error(class, format!("the provider broke off: {said}"))
}

/// The provider's message, in the shapes of the three formats.
fn words(json: &Value) -> Option<String> {
    let error = &json["error"];
    let text = [&error["message"], error, &json["message"], &json["detail"]]
        .into_iter()
        .find_map(Value::as_str);
    text.map(str::to_owned)
}

fn code(json: &Value) -> Option<&str> {
    let error = &json["error"];
    error["code"].as_str().or_else(|| error["type"].as_str())
}

/// `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110 §10.2.3). A date is taken relative to the
/// answer's own `Date`, so that a wrong clock here does not matter.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|v| v.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let value = text("retry-after")?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    let from = chrono::DateTime::parse_from_rfc2822(text("date")?).ok()?;
    Some((until - from).to_std().unwrap_or(Duration::ZERO))
}

/// A provider's words, on one line, shortened, without the key or what looks like one (S62, S90).
pub(crate) fn shown(text: &str, key: Option<&SecretText>) -> String {
    let text = match key.map(SecretText::expose) {
        Some(key) if !key.is_empty() => text.replace(key, "[redacted]"),
        _ => text.to_owned(),
    };
    let mut line = String::new();
    let mut after_bearer = false;
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        if after_bearer || looks_like_key(word, key.map(SecretText::expose)) {
            line.push_str("[redacted]");
        } else {
            line.push_str(word);
        }
        after_bearer = word.eq_ignore_ascii_case("bearer");
    }
    if line.chars().count() > SHOWN {
        line = line.chars().take(SHOWN).chain(['…']).collect();
    }
    line
}

/// A word that begins as keys do, or shares six characters at either end with the key. Providers like to quote keys
/// with the middle starred out.
fn looks_like_key(word: &str, key: Option<&str>) -> bool {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let shaped = ["sk-", "sk_", "xai-", "gsk_", "hf_", "ghp_"]
        .iter()
        .any(|p| bare.starts_with(p));
    let starred = bare.contains("***");
    let shares = key.filter(|k| k.len() >= 8).is_some_and(|key| {
        let head: String = key.chars().take(6).collect();
        let tail: Vec<char> = key.chars().rev().take(6).collect();
        let tail: String = tail.into_iter().rev().collect();
        bare.contains(&head) || bare.contains(&tail)
    });
    (shaped && bare.len() > 8) || starred || shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        let ms = |pairs: &[(&'static str, &'static str)]| retry_after(&headers(pairs)).map(|d| d.as_millis());
        assert_eq!(ms(&[("retry-after", "2")]), Some(2000));
        assert_eq!(ms(&[("retry-after-ms", "150"), ("retry-after", "9")]), Some(150));
        let date = ("date", "Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(
            ms(&[("retry-after", "Wed, 21 Oct 2026 07:28:05 GMT"), date]),
            Some(5000)
        );
        assert_eq!(
            ms(&[("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT"), date]),
            Some(0)
        );
        assert_eq!(ms(&[("retry-after", "soon")]), None);
        assert_eq!(ms(&[("retry-after", "-1")]), None);
        assert_eq!(ms(&[]), None);
    }

    #[test]
    fn s62_no_key_comes_back_in_an_error() {
        let key = SecretText::new("sk-canary-0123456789-tail99".to_owned());
        let echoes = [
            "Incorrect API key provided: sk-canary-0123456789-tail99.",
            "Incorrect API key provided: sk-canar*****************il99. See \"https://x/keys\"",
            "key='sk-canary-0123' refused",
            "Authorization: Bearer abcdefgh12345678 was wrong",
            "got ...789-tail99, sorry",
        ];
        for echo in echoes {
            let text = shown(echo, Some(&key));
            for bad in ["canar", "tail99", "il99", "abcdefgh"] {
                assert!(!text.contains(bad), "{text}");
            }
            assert!(text.contains("[redacted]"), "{text}");
        }
        let other = SecretText::new("plainword-key".to_owned());
        assert!(!shown("bad key plainword-key", Some(&other)).contains("plainword"));
    }

    #[test]
    fn s90_messages_are_one_short_line() {
        let text = shown(&format!("a\r\nb\u{1b}[31mc {}", "x".repeat(1000)), None);
        assert!(!text.contains(['\r', '\n', '\u{1b}']) && text.chars().count() <= SHOWN + 1);
    }

    #[test]
    fn classes_follow_the_status() {
        let class = |status, pairs: &[(&'static str, &'static str)], body: &str| {
            status_error(status, &headers(pairs), body.as_bytes(), None).class
        };
        let limited = |s| ErrorClass::RateLimited {
            retry_after: Some(Duration::from_secs(s)),
        };
        assert_eq!(class(429, &[("retry-after", "3")], "{}"), limited(3));
        assert_eq!(class(503, &[("retry-after", "4")], ""), limited(4));
        assert_eq!(class(529, &[], ""), ErrorClass::RateLimited { retry_after: None });
        assert_eq!(class(503, &[], ""), ErrorClass::Status(503));
        assert_eq!(class(408, &[], ""), ErrorClass::Status(408));
        for status in [302, 400, 401, 403, 404, 413, 422] {
            assert_eq!(class(status, &[], "x"), ErrorClass::Refused);
        }
        let quota = r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#;
        assert_eq!(class(429, &[], quota), ErrorClass::Refused);
    }

    #[test]
    fn messages_are_found_in_every_shape() {
        for body in [
            r#"{"error":{"message":"why","type":"t"}}"#,
            r#"{"error":"why"}"#,
            r#"{"message":"why"}"#,
            r#"{"detail":"why"}"#,
            "why",
        ] {
            let found = status_error(500, &HeaderMap::new(), body.as_bytes(), None);
            assert_eq!(found.message, "the provider answered 500: why");
        }
    }
}

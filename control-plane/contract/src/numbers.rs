//! Numbers that went through A2A: its data and metadata are `google.protobuf.Value`, where every number is a double,
//! so that a 3 comes out as 3.0.

use serde_json::{Number, Value};

/// Whole numbers up to here are the same as double and as integer.
const EXACT: u64 = 1 << 53;

/// The value with its whole numbers as integers again.
#[must_use]
pub fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(whole_number(number)),
        Value::Array(list) => list.into_iter().map(whole).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, whole(v))).collect()),
        other => other,
    }
}

fn whole_number(number: Number) -> Number {
    let whole = number
        .as_f64()
        .filter(|f| number.is_f64() && f.fract() == 0.0)
        .and_then(|f| format!("{f:.0}").parse::<i64>().ok())
        .filter(|n| n.unsigned_abs() <= EXACT);
    whole.map_or(number, Number::from)
}

/// Whether the value survives the way: no integer in it is beyond what a double holds exactly.
#[must_use]
pub fn survives(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let least = number.as_i64().map(i64::unsigned_abs);
            number
                .as_u64()
                .or(least)
                .is_none_or(|magnitude| magnitude <= EXACT)
        }
        Value::Array(list) => list.iter().all(survives),
        Value::Object(map) => map.values().all(survives),
        _ => true,
    }
}

/// The first integer in a JSON text, below its outermost level, that a double does not hold: looked for in the text,
/// since a parsed value has rounded those beyond 64 bits. One that is written as a double (`.0`, an exponent) is held
/// if a double says it again: all that a writer of doubles writes. What is no JSON is left to whoever parses it.
#[must_use]
pub fn inexact(json: &str) -> Option<&str> {
    find(json, 1, is_inexact)
}

/// The first integer in a JSON text that a parsed value does not hold: beyond 64 bits they are rounded to doubles.
/// What is written as a double and is one is held, as for [`inexact`].
#[must_use]
pub fn rounded(json: &str) -> Option<&str> {
    find(json, 0, is_rounded)
}

/// The first number below `level` levels of which `sought` holds.
fn find(json: &str, level: usize, sought: fn(&str) -> bool) -> Option<&str> {
    let (mut rest, mut depth) = (json, 0usize);
    while let Some(at) =
        rest.find(|c: char| matches!(c, '"' | '{' | '[' | '}' | ']' | '-') || c.is_ascii_digit())
    {
        let (_, from) = rest.split_at(at);
        rest = match from.as_bytes().first()? {
            b'"' => after_text(&from[1..]),
            b'{' | b'[' => {
                depth += 1;
                &from[1..]
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                &from[1..]
            }
            _ => {
                let of_number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                let end = from.find(|c| !of_number(c)).unwrap_or(from.len());
                let (number, after) = from.split_at(end);
                if depth > level && sought(number) {
                    return Some(number);
                }
                after
            }
        };
    }
    None
}

/// What follows the text whose opening quote was just read.
fn after_text(mut rest: &str) -> &str {
    while let Some(at) = rest.find(['"', '\\']) {
        if rest.as_bytes()[at] == b'"' {
            return &rest[at + 1..];
        }
        // What is escaped may have several bytes where this is no JSON.
        let mut escaped = rest[at + 1..].chars();
        escaped.next();
        rest = escaped.as_str();
    }
    ""
}

fn is_inexact(number: &str) -> bool {
    match integer(number) {
        Some(digits) => !digits.parse::<u64>().is_ok_and(|n| n <= EXACT),
        None => is_another_double(number),
    }
}

fn is_rounded(number: &str) -> bool {
    match integer(number) {
        Some(digits) if digits.len() == number.len() => digits.parse::<u64>().is_err(),
        Some(_) => number.parse::<i64>().is_err(),
        None => is_another_double(number),
    }
}

/// The digits of what is written as an integer.
fn integer(number: &str) -> Option<&str> {
    let digits = number.strip_prefix('-').unwrap_or(number);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(digits)
}

/// Whether it is an integer that is written as a double, and the double is another number.
fn is_another_double(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    let (Some(said), Ok(double)) = (decimal(digits), digits.parse::<f64>()) else {
        return false;
    };
    // The shortest text that means this double and no other. Too great for any is an error of whoever parses it.
    said.1 >= 0 && double.is_finite() && decimal(&format!("{double:e}")) != Some(said)
}

/// Significant digits and the power of ten that they count; `None` if it is no number without a sign. Integers, and
/// they alone, have a power that is not negative.
fn decimal(number: &str) -> Option<(String, i64)> {
    let (mantissa, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{integer}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let kept = digits.trim_end_matches('0');
    let shift = |length: usize| i64::try_from(length).ok();
    let power = power.parse::<i64>().ok()?;
    let power = power
        .checked_add(shift(digits.len() - kept.len())?)?
        .checked_sub(shift(fraction.len())?)?;
    match kept.trim_start_matches('0') {
        "" => Some((String::new(), 0)),
        kept => Some((kept.to_owned(), power)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_become_integers_again() {
        let through = json!({"a": [3.0, -4.0, 0.5, 1e300], "b": {"c": 9_007_199_254_740_992.0}});
        let back = json!({"a": [3, -4, 0.5, 1e300], "b": {"c": 9_007_199_254_740_992_u64}});
        assert_eq!(whole(through), back);
        assert_eq!(whole(json!({"n": u64::MAX})), json!({"n": u64::MAX}));
    }

    #[test]
    fn integers_that_a_double_does_not_hold_are_found_in_the_text() {
        for exact in [
            "",
            "{",
            "9007199254740993",
            r#"{"id": 9007199254740993, "params": {"n": [9007199254740992, -9007199254740992, 0.1, 1e300]}}"#,
            r#"{"n": [9007199254740992.0, 9007199254740994.0, 9007199254740993.5, 1e16, 1E+21, 0.0, -0e9, 120e-1, 1e999]}"#,
            r#"{"n": [1.7976931348623157e308, 5e-324, 12345678901234567890e-30, 0.1e99999999999999999999]}"#,
            r#"{"a": {"n": "9007199254740993", "\"9007199254740993": "\\", "\\": {}}}"#,
            r#"{"a": {"b": "not closed 9007199254740993"#,
            r#"{"a": {"b": "\"#,
            "{\"a\": {\"b\": \"\\é 9007199254740993\"}}",
        ] {
            assert_eq!(inexact(exact), None, "{exact}");
        }
        for (text, found) in [
            (r#"{"a": {"n": 9007199254740993}}"#, "9007199254740993"),
            (r#"{"a": [-9007199254740993]}"#, "-9007199254740993"),
            (r#"{"a": [1.5, 9007199254740993.0]}"#, "9007199254740993.0"),
            (r#"{"a": [-9007199254740993.000]}"#, "-9007199254740993.000"),
            (r#"{"a": [9.007199254740993e15]}"#, "9.007199254740993e15"),
            (r#"{"a": [0.9007199254740993E+16]}"#, "0.9007199254740993E+16"),
            (r#"{"a": [90071992547409930e-1]}"#, "90071992547409930e-1"),
            (r#"{"a": [1000000000000000000001e3]}"#, "1000000000000000000001e3"),
            (
                r#"{"a": ["x\"", 18446744073709551617, 9007199254740993]}"#,
                "18446744073709551617",
            ),
            (
                r#"[[1,{"b":[99999999999999999999999999]}]]"#,
                "99999999999999999999999999",
            ),
        ] {
            assert_eq!(inexact(text), Some(found), "{text}");
        }
    }

    #[test]
    fn integers_beyond_64_bits_are_found_in_the_text() {
        for exact in [
            r#"{"n": [18446744073709551615, -9223372036854775808, 9007199254740993, 0, -0, 0.1, 1e300]}"#,
            r#"{"n": "18446744073709551616", "m": 18446744073709551616.5}"#,
            "18446744073709551616",
            "",
            "-",
        ] {
            assert_eq!(rounded(exact), None, "{exact}");
        }
        for (text, found) in [
            (r#"{"n": 18446744073709551616}"#, "18446744073709551616"),
            (r#"{"n": -9223372036854775809}"#, "-9223372036854775809"),
            (r#"[9007199254740993.0]"#, "9007199254740993.0"),
            (
                r#"{"a": {"b": [1, 340282366920938463463374607431768211455]}}"#,
                "340282366920938463463374607431768211455",
            ),
        ] {
            assert_eq!(rounded(text), Some(found), "{text}");
        }
    }

    #[test]
    fn what_a_double_does_not_hold_is_known() {
        assert!(survives(&json!({"a": [1, 0.1, EXACT, "9007199254740993"]})));
        assert!(!survives(&json!([EXACT + 1])) && !survives(&json!({"a": i64::MIN})));
    }
}

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
    fn what_a_double_does_not_hold_is_known() {
        assert!(survives(&json!({"a": [1, 0.1, EXACT, "9007199254740993"]})));
        assert!(!survives(&json!([EXACT + 1])) && !survives(&json!({"a": i64::MIN})));
    }
}

//! Quantities as Kubernetes writes them (`50m`, `0.5`, `256Mi`, `1e3`).
//!
//! Grammar: `<number><suffix>`, a binary suffix (`Ki` … `Ei`), a decimal one (`m`, none, `k` … `E`) or an exponent
//! (`e3`, `E3`); see "Quantity" in the Kubernetes API reference, `apimachinery/pkg/api/resource`. Values are
//! rounded up, as there.

/// A text that is no quantity, or one too large to count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a quantity such as {example}, found {found:?}")]
pub struct Malformed {
    pub example: &'static str,
    pub found: String,
}

/// Thousandths of a processor.
///
/// # Errors
/// When `text` is no quantity.
pub fn millicores(text: &str) -> Result<u64, Malformed> {
    scaled(text, 1_000).ok_or_else(|| malformed("500m or 2", text))
}

/// Bytes.
///
/// # Errors
/// When `text` is no quantity.
pub fn bytes(text: &str) -> Result<u64, Malformed> {
    scaled(text, 1).ok_or_else(|| malformed("256Mi or 1G", text))
}

fn malformed(example: &'static str, text: &str) -> Malformed {
    Malformed {
        example,
        found: text.chars().take(40).collect(),
    }
}

/// `text` times `unit`, rounded up.
fn scaled(text: &str, unit: u128) -> Option<u64> {
    let end = text
        .bytes()
        .take_while(|c| c.is_ascii_digit() || *c == b'.')
        .count();
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor) = multiplier(suffix)?;
    let numerator = digits.checked_mul(factor)?.checked_mul(unit)?;
    let denominator = 10u128
        .checked_pow(u32::try_from(fraction.len()).ok()?)?
        .checked_mul(divisor)?;
    u64::try_from(numerator.div_ceil(denominator)).ok()
}

/// The suffix as a fraction.
fn multiplier(suffix: &str) -> Option<(u128, u128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if let Some(at) = BINARY.iter().position(|s| *s == suffix) {
        return Some((1u128 << (10 * (at + 1)), 1));
    }
    if let Some(at) = DECIMAL.iter().position(|s| *s == suffix) {
        return Some((10u128.pow(u32::try_from(3 * (at + 1)).ok()?), 1));
    }
    match suffix {
        "" => Some((1, 1)),
        "m" => Some((1, 1_000)),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_kubernetes_are_read() {
        for (text, expected) in [
            ("128974848", 128_974_848),
            ("129M", 129_000_000),
            ("123Mi", 123 << 20),
            ("1.5Gi", 3 << 29),
            ("129e6", 129_000_000),
            ("12E3", 12_000),
            ("100m", 1),
            (".5k", 500),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("50m", 50),
            ("0.1", 100),
            ("2", 2_000),
            ("1500m", 1_500),
            ("0.0001", 1),
        ] {
            assert_eq!(millicores(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_by_its_text() {
        for text in [
            "",
            "m",
            "-1",
            "1 Gi",
            "1.2.3",
            "1KB",
            "1e",
            "1e99",
            "99999999E",
            ".",
            "+1",
            "1Mi ",
        ] {
            let error = bytes(text).unwrap_err();
            assert_eq!(error.found, text);
        }
    }
}

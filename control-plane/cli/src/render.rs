//! Results as tables, JSON and YAML.

use crate::{
    args::Format,
    failure::{Exit, Failure, Outcome},
    shell::Shell,
    text::{self, line},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;
use std::io::Write as _;

/// A table: columns are as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    /// Cells are texts of strangers and become one line each.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| line(&cell)).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let padded: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(padded.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Writes a list: the table, or every item as JSON or YAML.
pub(crate) fn list<T: Serialize>(
    shell: &mut Shell,
    format: Format,
    items: &[T],
    nothing: &str,
    table: impl FnOnce(&[T]) -> Table,
) -> Outcome<()> {
    if format != Format::Table {
        return value(shell, format, &items);
    }
    let table = table(items);
    if table.is_empty() {
        return Ok(writeln!(shell.err, "{nothing}")?);
    }
    shell.say(&table.text())
}

/// Writes one value as JSON or YAML.
pub(crate) fn value<T: Serialize>(shell: &mut Shell, format: Format, value: &T) -> Outcome<()> {
    let text = match format {
        Format::Yaml => yaml(value)?,
        Format::Json | Format::Table => {
            let text = format!("{:#}\n", json(value)?);
            return Ok(shell.out.write_all(text::json(&text).as_bytes())?);
        }
    };
    shell.say(&text)
}

/// One value of many, each on its own: a line of JSON, or a YAML document.
pub(crate) fn item<T: Serialize>(shell: &mut Shell, format: Format, item: &T) -> Outcome<()> {
    match format {
        Format::Yaml => shell.say(&format!("---\n{}", yaml(item)?)),
        Format::Json | Format::Table => {
            let text = format!("{}\n", json(item)?);
            Ok(shell.out.write_all(text::json(&text).as_bytes())?)
        }
    }
}

fn json<T: Serialize>(value: &T) -> Outcome<Value> {
    serde_json::to_value(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written: {error}")))
}

pub(crate) fn yaml<T: Serialize>(value: &T) -> Outcome<String> {
    let mut text = serde_saphyr::to_string(&json(value)?)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Documents as they can be applied again: YAML separated by `---`, or a JSON array (one: the object itself).
pub(crate) fn documents(shell: &mut Shell, format: Format, documents: &[Value], single: bool) -> Outcome<()> {
    match (format, documents) {
        (Format::Json | Format::Table, [one]) if single => value(shell, Format::Json, one),
        (Format::Json | Format::Table, all) => value(shell, Format::Json, &all),
        (Format::Yaml, all) => {
            let texts = all.iter().map(yaml).collect::<Outcome<Vec<_>>>()?;
            shell.say(&texts.join("---\n"))
        }
    }
}

/// How long ago, in its two largest units; `-` for the future.
pub(crate) fn age(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    seconds((now - then).num_seconds())
}

/// A number of seconds in words.
pub(crate) fn seconds(total: i64) -> String {
    let (days, hours, minutes, rest) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    match total {
        ..0 => "-".to_owned(),
        0..60 => format!("{rest}s"),
        60..3_600 => format!("{minutes}m{rest}s"),
        3_600..86_400 => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Millionths of a currency.
pub(crate) fn money(micros: u64, currency: &str) -> String {
    let (whole, rest) = (micros / 1_000_000, format!("{:06}", micros % 1_000_000));
    let fraction = rest.trim_end_matches('0');
    format!("{whole}.{fraction:0<2} {currency}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_ages_are_short() {
        assert_eq!(money(1_500_000, "USD"), "1.50 USD");
        assert_eq!(money(12, "EUR"), "0.000012 EUR");
        assert_eq!(seconds(59), "59s");
        assert_eq!(seconds(3_700), "1h1m");
        assert_eq!(seconds(90_000), "1d1h");
        assert_eq!(seconds(-1), "-");
    }
}

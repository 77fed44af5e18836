//! Samples and the table they end in.

use std::time::Duration;

/// Durations of one act, measured again and again.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Samples a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub(crate) fn rate(&self, over: Duration) -> f64 {
        self.0.len() as f64 / over.as_secs_f64()
    }

    /// The sample that `share` (0 to 1) of all samples do not exceed, in milliseconds; `NaN` without samples.
    pub(crate) fn quantile_ms(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a position in a list"
        )]
        let at = ((self.0.len().saturating_sub(1)) as f64 * share).round() as usize;
        self.0.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1_000.0)
    }
}

/// p50 and p99 in milliseconds, as the tables show them.
pub(crate) fn p50_p99(samples: &mut Samples) -> String {
    format!(
        "{:.1} / {:.1} ms",
        samples.quantile_ms(0.5),
        samples.quantile_ms(0.99)
    )
}

/// A Markdown table: what, measured, aim.
#[derive(Debug)]
pub(crate) struct Figures {
    title: String,
    rows: Vec<[String; 3]>,
}

impl Figures {
    pub(crate) fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, what: &str, measured: String, aim: &str) {
        eprintln!("{what}: {measured} (aim {aim})");
        self.rows.push([what.to_owned(), measured, aim.to_owned()]);
    }

    #[expect(clippy::print_stdout, reason = "the table is this program's output")]
    pub(crate) fn print(&self) {
        println!("\n## {}\n\n| what | measured | aim |\n|---|---|---|", self.title);
        for [what, measured, aim] in &self.rows {
            println!("| {what} | {measured} | {aim} |");
        }
    }
}

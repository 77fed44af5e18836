//! Logs, traces and metrics of every binary, set up one way.
//!
//! [`Telemetry::start`] is the second call of every `main` (after the TLS provider). Logs are always on: one
//! JSON object a line on standard error. Traces and metrics leave the process by OTLP over gRPC only when the
//! standard `OTEL_*` variables ask for it; otherwise no exporter, no thread and no span bookkeeping exists, since
//! an idle engine has nine mebibytes for everything.
//!
//! How it can go wrong: a slow reader of standard error or a dead collector. Both lose telemetry and neither
//! stops the caller: log lines wait in a bounded queue and are dropped when it is full, spans likewise, and the
//! last flush is bounded by [`FLUSH_LIMIT`].
//!
//! | variable | meaning |
//! |---|---|
//! | `ROADSTEAD_LOG` | filter in `EnvFilter` syntax, for instance `info,roadstead_engine=debug` |
//! | `ROADSTEAD_LOG_FORMAT` | `json` (default) or `text`; text needs a terminal |
//! | `OTEL_*` | as in the OpenTelemetry specification, see [`otlp`] |

mod encode;
mod logs;
mod metrics;
pub mod otlp;
pub mod propagate;

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

pub use metrics::Metrics;
/// The metric instruments, so that other crates need not name the OpenTelemetry crates.
pub use opentelemetry::{
    KeyValue as Label,
    global::meter,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

/// Buckets of durations in seconds, as the HTTP semantic conventions advise; the SDK's own are for milliseconds.
pub const SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The longest that [`Telemetry::shutdown`] waits for the exporters.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// What differs between the binaries.
#[derive(Clone, Debug)]
pub struct Options {
    /// The log filter when `ROADSTEAD_LOG` is not set.
    pub filter: &'static str,
    /// Ask for human-readable lines; granted when standard error is a terminal.
    pub text: bool,
    /// Keep a Prometheus registry, for the binaries that serve `/metrics`.
    pub prometheus: bool,
    /// Log a panic as an error event instead of the standard library's free text.
    pub panics: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filter: "info",
            text: false,
            prometheus: false,
            panics: true,
        }
    }
}

impl Options {
    /// For a server: info, JSON, a registry for `/metrics`.
    #[must_use]
    pub fn server() -> Self {
        Self {
            prometheus: true,
            ..Self::default()
        }
    }

    /// For a command-line tool: warnings only, readable on a terminal, panics left to the standard library.
    #[must_use]
    pub fn command_line() -> Self {
        Self {
            filter: "warn",
            text: true,
            panics: false,
            ..Self::default()
        }
    }
}

/// The running telemetry of this process. Keep it until the end of `main`, then call [`Telemetry::shutdown`]:
/// dropping it flushes the log queue but not the exporters.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    tracer: Option<SdkTracerProvider>,
    meter: Option<SdkMeterProvider>,
    _logs: logs::Guard,
}

impl Telemetry {
    /// Starts logs, and what the `OTEL_*` variables ask for. `service` is the service name that
    /// `OTEL_SERVICE_NAME` overrides.
    ///
    /// Call it once, before any instrument is made (an instrument made earlier records nothing) and, because the
    /// OTLP channel belongs to a runtime, inside Tokio. Configuration of OpenTelemetry that cannot be used is
    /// logged as a warning and that part stays off: an observer's mistake must not stop the service.
    ///
    /// # Errors
    /// `ROADSTEAD_LOG` or `ROADSTEAD_LOG_FORMAT` cannot be read, or telemetry was already started.
    pub fn start(service: &'static str, options: &Options) -> anyhow::Result<Self> {
        let env = |name: &str| std::env::var(name).ok();
        let plan = otlp::Plan::from_env(env);
        let mut notes = plan.notes.clone();

        let resource = otlp::resource(service, env);
        let tracer = note(&mut notes, plan.traces, || otlp::tracer(resource.clone()));
        let exporter = note(&mut notes, plan.metrics, otlp::metric_exporter);
        let (metrics, meter) = metrics::start(options.prometheus, exporter, resource)
            .context("the metrics registry could not be made")?;

        let log_options = logs::LogOptions::from_env(options, env)?;
        let guard = logs::start(service, log_options, tracer.as_ref())?;
        if options.panics {
            logs::log_panics();
        }
        for note in notes {
            tracing::warn!("{note}");
        }
        Ok(Self {
            metrics,
            tracer,
            meter,
            _logs: guard,
        })
    }

    /// A handle to the Prometheus registry, for the `/metrics` route.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The registry in Prometheus' text format; empty when [`Options::prometheus`] is off.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        self.metrics.text()
    }

    /// Whether spans leave this process.
    #[must_use]
    pub fn exports_traces(&self) -> bool {
        self.tracer.is_some()
    }

    /// Flushes and stops the exporters, for at most [`FLUSH_LIMIT`]; what is not delivered by then is lost.
    /// Safe on every runtime flavour: the blocking work runs on a thread of its own.
    pub async fn shutdown(self) {
        let Self {
            tracer, meter, _logs, ..
        } = self;
        if tracer.is_none() && meter.is_none() {
            return;
        }
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        // Not spawn_blocking: dropping the runtime would wait for it, and so for a dead collector.
        std::thread::spawn(move || {
            if let Some(tracer) = tracer {
                // A failed flush has already been reported by the exporter; there is nobody left to tell.
                drop(tracer.shutdown_with_timeout(FLUSH_LIMIT));
            }
            if let Some(meter) = meter {
                drop(meter.shutdown_with_timeout(FLUSH_LIMIT));
            }
            drop(done);
        });
        drop(tokio::time::timeout(FLUSH_LIMIT, finished).await);
    }
}

/// Runs `make` when `wanted`, turning a failure into a note to be logged once logging runs.
fn note<T>(notes: &mut Vec<String>, wanted: bool, make: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
    if !wanted {
        return None;
    }
    match make() {
        Ok(made) => Some(made),
        Err(error) => {
            notes.push(format!("{error:#}"));
            None
        }
    }
}

/// A metric label; shorter than naming the OpenTelemetry type.
#[must_use]
pub fn label(key: &'static str, value: &'static str) -> KeyValue {
    KeyValue::new(key, value)
}

//! What the standard `OTEL_*` variables ask for.
//!
//! Read here: `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` (`otlp` or `none`),
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, `…_TRACES_ENDPOINT`, `…_METRICS_ENDPOINT`, `…_PROTOCOL`, `…_TRACES_PROTOCOL`,
//! `…_METRICS_PROTOCOL`, `OTEL_SERVICE_NAME`. Read by the SDK: `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_TRACES_SAMPLER(_ARG)`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`, and the headers, timeout and
//! compression of the exporters.
//!
//! One departure from the specification's defaults: without an endpoint nothing is exported, where the
//! specification would try `localhost:4317`; and the protocol is gRPC, the one that is built in.
//! Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter Configuration".

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Which exporters to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Export spans.
    pub traces: bool,
    /// Export metrics.
    pub metrics: bool,
    /// What was asked for and cannot be done, to be logged once logging runs.
    pub notes: Vec<String>,
}

impl Plan {
    /// Decides from variables; pure, so that every combination is testable.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        if env("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            return Self::default();
        }
        let mut notes = Vec::new();
        let mut signal = |name: &str| {
            let mut usable = true;
            match env(&format!("OTEL_{name}_EXPORTER")).as_deref() {
                None | Some("otlp") => {}
                Some("none") => return false,
                Some(other) => {
                    notes.push(format!(
                        "OTEL_{name}_EXPORTER: expected `otlp` or `none`, found `{other}`; it stays off"
                    ));
                    return false;
                }
            }
            let own = format!("OTEL_EXPORTER_OTLP_{name}_ENDPOINT");
            if env(&own).is_none() && env("OTEL_EXPORTER_OTLP_ENDPOINT").is_none() {
                return false;
            }
            for variable in [
                format!("OTEL_EXPORTER_OTLP_{name}_PROTOCOL"),
                "OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(),
            ] {
                let Some(protocol) = env(&variable) else { continue };
                if protocol != "grpc" {
                    notes.push(format!(
                        "{variable}: expected `grpc`, the protocol that is built in, found `{protocol}`; {} are not exported",
                        name.to_lowercase()
                    ));
                    usable = false;
                }
                break; // The signal's own variable wins over the general one.
            }
            usable
        };
        let traces = signal("TRACES");
        let metrics = signal("METRICS");
        Self {
            traces,
            metrics,
            notes,
        }
    }
}

/// Who is speaking: the name given here unless `OTEL_SERVICE_NAME` or `service.name` in
/// `OTEL_RESOURCE_ATTRIBUTES` says otherwise, the version, and the SDK's standard attributes.
pub(crate) fn resource(service: &'static str, env: impl Fn(&str) -> Option<String>) -> Resource {
    let named = env("OTEL_SERVICE_NAME").is_some_and(|v| !v.is_empty())
        || env("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|v| {
            v.split(',')
                .any(|pair| pair.trim_start().starts_with("service.name="))
        });
    let builder =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named {
        builder.build()
    } else {
        builder.with_service_name(service).build()
    }
}

/// A provider that exports spans in batches from a thread of its own; a full queue drops spans.
pub(crate) fn tracer(resource: Resource) -> anyhow::Result<SdkTracerProvider> {
    let exporter = in_runtime(|| SpanExporter::builder().with_tonic().build())
        .context("traces are not exported: the OTLP exporter could not be made")?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(provider)
}

pub(crate) fn metric_exporter() -> anyhow::Result<MetricExporter> {
    in_runtime(|| MetricExporter::builder().with_tonic().build())
        .context("metrics are not exported: the OTLP exporter could not be made")
}

/// tonic panics when a channel is made outside Tokio; a sentence is better.
fn in_runtime<T, E: std::error::Error + Send + Sync + 'static>(
    make: impl FnOnce() -> Result<T, E>,
) -> anyhow::Result<T> {
    tokio::runtime::Handle::try_current()
        .context("telemetry must be started inside a Tokio runtime to export")?;
    Ok(make()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(vars: &[(&str, &str)]) -> Plan {
        Plan::from_env(|name| {
            vars.iter()
                .find(|(k, _)| *k == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn nothing_set_starts_nothing() {
        assert_eq!(plan(&[]), Plan::default());
        assert_eq!(
            plan(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]),
            Plan::default()
        );
    }

    #[test]
    fn an_endpoint_starts_its_signals() {
        let both = plan(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")]);
        assert_eq!((both.traces, both.metrics), (true, true));
        let one = plan(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317")]);
        assert_eq!((one.traces, one.metrics), (true, false));
        let one = plan(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c:4317")]);
        assert_eq!((one.traces, one.metrics), (false, true));
    }

    #[test]
    fn the_sdk_and_single_signals_can_be_switched_off() {
        let e = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(plan(&[e, ("OTEL_SDK_DISABLED", "TRUE")]), Plan::default());
        let p = plan(&[e, ("OTEL_METRICS_EXPORTER", "none")]);
        assert_eq!((p.traces, p.metrics), (true, false));
    }

    #[test]
    fn an_unknown_protocol_or_exporter_is_said_and_left_off() {
        let e = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let p = plan(&[
            e,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ]);
        assert_eq!((p.traces, p.metrics, p.notes.len()), (true, false, 1));
        assert!(p.notes[0].contains("found `http/protobuf`"), "{:?}", p.notes);
        let p = plan(&[e, ("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!((p.traces, p.metrics, p.notes.len()), (false, true, 1));
    }
}

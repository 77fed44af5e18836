//! The Prometheus registry and the OTLP metric reader behind one meter provider.

use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;

/// A cheap handle to this process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics(Option<prometheus::Registry>);

impl Metrics {
    /// A handle without metrics, for tests and for parts embedded in a process that keeps none.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Everything recorded so far in Prometheus' text format 0.0.4; empty when no registry is kept.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if let Some(registry) = &self.0 {
            // Fails only for a family without a name, which the exporter does not make.
            if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut out) {
                tracing::warn!(%error, "the metrics could not be written as text");
            }
        }
        out
    }

    /// The media type of [`Metrics::text`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";
}

/// Installs the global meter provider when somebody reads: a registry, a collector, or both.
pub(crate) fn start(
    keep_registry: bool,
    exporter: Option<MetricExporter>,
    resource: Resource,
) -> anyhow::Result<(Metrics, Option<SdkMeterProvider>)> {
    if !keep_registry && exporter.is_none() {
        return Ok((Metrics::none(), None));
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource);
    let mut metrics = Metrics::none();
    if keep_registry {
        let registry = prometheus::Registry::new();
        builder = builder.with_reader(
            opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .build()?,
        );
        metrics = Metrics(Some(registry));
    }
    if let Some(exporter) = exporter {
        builder = builder.with_periodic_exporter(exporter);
    }
    let provider = builder.build();
    opentelemetry::global::set_meter_provider(provider.clone());
    Ok((metrics, Some(provider)))
}

//! `/livez`, `/readyz` and `/metrics` on loopback, and the instruments behind the last.
//!
//! Ready means that engines run what the inbox says: the hub may be away, since clusters work alone.

use crate::controller::Health;
use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use roadstead_link::{LinkState, Reports};
use roadstead_runtime::{Local, Phase};
use roadstead_telemetry::{Label, Metrics, meter};
use std::collections::BTreeMap;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
struct Probe {
    metrics: Metrics,
    health: watch::Receiver<Health>,
    reports: Reports,
}

pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: watch::Receiver<Health>,
    reports: Reports,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(Probe {
            metrics,
            health,
            reports,
        });
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "probes and metrics are not served any more");
    }
}

async fn ready(State(probe): State<Probe>) -> (StatusCode, String) {
    let health = probe.health.borrow().clone();
    let hub = match &*probe.reports.state().borrow() {
        LinkState::Connected { .. } => "connected".to_owned(),
        LinkState::Held { reason, .. } => format!("held: {reason}"),
        LinkState::Away { reason } => format!("away: {reason}"),
    };
    let unwritable = probe.reports.trouble().borrow().clone();
    match (health.planned, health.trouble.or(unwritable)) {
        (_, Some(trouble)) => (StatusCode::SERVICE_UNAVAILABLE, format!("inbox: {trouble}\n")),
        (false, None) => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
        (true, None) => (StatusCode::OK, format!("ok\nhub: {hub}\n")),
    }
}

async fn show(State(probe): State<Probe>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)],
        probe.metrics.text(),
    )
}

/// Registers what is read when somebody looks.
pub(crate) fn instruments(local: &Local, reports: &Reports, health: &watch::Receiver<Health>) {
    let meter = meter("roadstead-agent");
    let engines = local.clone();
    meter
        .u64_observable_gauge("roadstead.agent.engines")
        .with_description("Engines of this cluster agent, by phase")
        .with_callback(move |observer| {
            let mut phases: BTreeMap<Phase, u64> = ALL.iter().map(|phase| (*phase, 0)).collect();
            for status in engines.statuses().values() {
                *phases.entry(status.phase).or_default() += 1;
            }
            for (phase, count) in phases {
                observer.observe(count, &[Label::new("phase", format!("{phase:?}"))]);
            }
        })
        .build();
    let engines = local.clone();
    meter
        .u64_observable_counter("roadstead.agent.engine.restarts")
        .with_description("Processes started after the first of each engine that runs now")
        .with_callback(move |observer| {
            let restarts = engines.statuses().values().map(|status| status.restarts).sum();
            observer.observe(restarts, &[]);
        })
        .build();
    let state = reports.state();
    meter
        .u64_observable_gauge("roadstead.agent.hub.connected")
        .with_description("1 while a session with the hub lives")
        .with_callback(move |observer| {
            let away = matches!(*state.borrow(), LinkState::Away { .. });
            observer.observe(u64::from(!away), &[]);
        })
        .build();
    let gauge = |name: &'static str, description: &'static str, value: fn(&Health) -> u64| {
        let health = health.clone();
        meter
            .u64_observable_gauge(name)
            .with_description(description)
            .with_callback(move |observer| observer.observe(value(&health.borrow()), &[]))
            .build();
    };
    gauge("roadstead.agent.inbox.revision", "Revision of the inbox", |h| {
        h.revision
    });
    gauge(
        "roadstead.agent.applied.revision",
        "Last revision of which everything runs or is refused",
        |h| h.applied,
    );
    gauge("roadstead.agent.documents", "Documents in the inbox", |h| {
        h.documents as u64
    });
    gauge(
        "roadstead.agent.documents.refused",
        "Documents that are refused",
        |h| h.refused as u64,
    );
}

const ALL: [Phase; 6] = [
    Phase::Starting,
    Phase::Ready,
    Phase::NotReady,
    Phase::Waiting,
    Phase::Draining,
    Phase::Ended,
];

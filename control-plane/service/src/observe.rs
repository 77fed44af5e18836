//! Metrics of what the fleet does at the hub.

use roadstead_telemetry::{Counter, label, meter};
use std::sync::OnceLock;

struct Instruments {
    enrolments: Counter<u64>,
    certificates: Counter<u64>,
    sessions: Counter<u64>,
    events: Counter<u64>,
    refused: Counter<u64>,
    runs: Counter<u64>,
}

fn instruments() -> &'static Instruments {
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    INSTRUMENTS.get_or_init(|| {
        let meter = meter("roadstead_service");
        let counter =
            |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        Instruments {
            enrolments: counter(
                "roadstead.hub.fleet.enrolments",
                "Join tokens that were presented.",
            ),
            certificates: counter(
                "roadstead.hub.fleet.certificates",
                "Certificates that were issued.",
            ),
            sessions: counter(
                "roadstead.hub.fleet.sessions.begun",
                "Sessions of cluster agents that began.",
            ),
            events: counter(
                "roadstead.hub.fleet.events",
                "What the fleet wrote to audit logs.",
            ),
            refused: counter(
                "roadstead.hub.fleet.tls.refused",
                "Client certificates that TLS refused on the cluster agents' port.",
            ),
            runs: counter(
                "roadstead.hub.run_records",
                "Run records that came in, by verdict.",
            ),
        }
    })
}

pub(crate) fn enrolment(accepted: bool) {
    let outcome = if accepted { "accepted" } else { "refused" };
    instruments().enrolments.add(1, &[label("outcome", outcome)]);
}

pub(crate) fn certificate() {
    instruments().certificates.add(1, &[]);
}

pub(crate) fn session() {
    instruments().sessions.add(1, &[]);
}

pub(crate) fn event(accepted: bool) {
    let outcome = if accepted { "accepted" } else { "refused" };
    instruments().events.add(1, &[label("outcome", outcome)]);
}

pub(crate) fn refused() {
    instruments().refused.add(1, &[]);
}

pub(crate) fn runs(kept: u64, refused: u64) {
    instruments().runs.add(kept, &[label("verdict", "kept")]);
    instruments().runs.add(refused, &[label("verdict", "refused")]);
}

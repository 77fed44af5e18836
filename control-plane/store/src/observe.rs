//! Metrics of the database: how long transactions take, how they end, what the database says when it fails.

use roadstead_telemetry::{Counter, Histogram, label, meter};
use std::sync::OnceLock;
use std::time::Instant;

struct Instruments {
    transactions: Histogram<f64>,
    errors: Counter<u64>,
    audited: Counter<u64>,
}

fn instruments() -> &'static Instruments {
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    INSTRUMENTS.get_or_init(|| {
        let meter = meter("roadstead_store");
        Instruments {
            transactions: meter
                .f64_histogram("roadstead.hub.db.transaction.duration")
                .with_unit("s")
                .with_description("From the beginning of a tenant's transaction to its end.")
                .with_boundaries(vec![
                    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
                ])
                .build(),
            errors: meter
                .u64_counter("roadstead.hub.db.errors")
                .with_description("What the database answered instead of a result.")
                .build(),
            audited: meter
                .u64_counter("roadstead.hub.audit.records")
                .with_description("Audit records that were kept, by decision.")
                .build(),
        }
    })
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Measures a transaction until it is dropped.
#[derive(Debug)]
pub(crate) struct Timed {
    began: Instant,
    access: Access,
    committed: bool,
}

impl Timed {
    pub(crate) fn begin(access: Access) -> Self {
        Self {
            began: Instant::now(),
            access,
            committed: false,
        }
    }

    pub(crate) fn committed(&mut self) {
        self.committed = true;
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let (access, outcome) = match (self.access, self.committed) {
            (Access::Read, _) => ("read", "done"),
            (Access::Write, true) => ("write", "committed"),
            (Access::Write, false) => ("write", "rolled_back"),
        };
        let labels = [label("access", access), label("outcome", outcome)];
        instruments()
            .transactions
            .record(self.began.elapsed().as_secs_f64(), &labels);
    }
}

/// The database failed: `kind` is one of a closed list.
pub(crate) fn failed(kind: &'static str) {
    instruments().errors.add(1, &[label("kind", kind)]);
}

/// A record of the audit log was kept.
pub(crate) fn audited(decision: &'static str) {
    instruments().audited.add(1, &[label("decision", decision)]);
}

//! Gauges of what this process holds.

use roadstead_fleet::Fleet;
use roadstead_telemetry::meter;

/// Cluster agents that are connected to this replica. Made once for each hub, after telemetry has started.
pub(crate) fn fleet(fleet: Fleet) {
    let _gauge = meter("roadstead_hub")
        .u64_observable_gauge("roadstead.hub.fleet.sessions.live")
        .with_description("Cluster agents that are connected to this replica.")
        .with_callback(move |observer| observer.observe(fleet.live().len() as u64, &[]))
        .build();
}

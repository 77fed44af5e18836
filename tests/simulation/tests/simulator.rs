//! The fleet simulator with a small fleet, all modes, over the model: no clock but the test's, which goes on when
//! everything waits. So minutes of the protocol are seconds here, and nothing depends on how fast the machine is.

use clap::Parser as _;
use roadstead_simulation::simulator::{Plan, run};

#[tokio::test(start_paused = true)]
async fn a_fleet_of_three_hundred_with_all_modes_agrees_in_the_end() {
    let plan = Plan::parse_from([
        "fleet",
        "--clusters=300",
        "--lying=2",
        "--cloned=2",
        "--ones=20",
        "--alls=2",
        "--faults=60",
        "--tunnel-streams=1",
    ]);
    let report = run(plan, &|line| println!("{line}"))
        .await
        .expect("the fleet gets there");
    assert_eq!(report.violations, [""; 0]);
    // Everybody at least twice, since the hub was killed once, and those that flapped and the clones more often.
    assert!(report.sessions > 700, "{} sessions", report.sessions);
}

/// At the door 150 are at once, where five a second are admitted: half a minute for each to have been, with its tunnel a
/// minute, and a minute of snapshots. Who waits for longer than a cluster agent does must not keep the others out.
#[tokio::test(start_paused = true)]
async fn a_fleet_far_larger_than_what_is_admitted_comes_in_and_comes_back() {
    let plan = Plan::parse_from([
        "fleet",
        "--clusters=150",
        "--lying=0",
        "--admission=5",
        "--snapshots=2.5",
        "--ones=0",
        "--alls=0",
        "--faults=0",
        "--tunnel-streams=1",
        "--patience=180",
    ]);
    let report = run(plan, &|line| println!("{line}"))
        .await
        .expect("the fleet gets there");
    assert_eq!(report.violations, [""; 0]);
    // Once each after the hub was killed, and no more than four times each before: who is refused is told its own turn.
    assert!(report.sessions < 5 * 150, "{} sessions", report.sessions);
}

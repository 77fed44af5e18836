//! The schema over a real store.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod documents;
mod foreign;
mod logs;
mod restored;
mod support;
mod tenant;
mod writes;

use std::path::Path;

/// The committed schema is what the code has. `UPDATE=1` writes it.
#[test]
fn the_committed_schema_is_the_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/schema.graphql");
    let sdl = roadstead_graphql::sdl();
    if std::env::var("UPDATE").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &sdl).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == sdl,
        "web/schema.graphql is not what the code has: run this test with UPDATE=1 and look at the difference"
    );
}

#[test]
fn s27_no_input_sets_tenant_owner_or_status() {
    let sdl = roadstead_graphql::sdl();
    let mut inputs = 0;
    for part in sdl.split("\ninput ").skip(1) {
        inputs += 1;
        let (name, rest) = part.split_once(" {").unwrap();
        let body = rest.split("\n}").next().unwrap();
        for field in [
            "tenant",
            "tenantId",
            "owner",
            "createdBy",
            "status",
            "state",
            "revokedAt",
        ] {
            assert!(!body.contains(&format!("\t{field}:")), "{name} has {field}");
        }
    }
    assert!(inputs > 5);
}

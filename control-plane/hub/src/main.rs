//! The composition root of the hub.
fn main() {}

//! The user's CLI.
fn main() {}

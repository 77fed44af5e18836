//! One agent's runtime.
fn main() {}

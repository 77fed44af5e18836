//! A scripted model server that speaks the real wire formats, for tests.
fn main() {}

//! The use cases on real databases: each test runs on SQLite and on PostgreSQL.

mod audit;
mod documents;
#[expect(dead_code, reason = "the tests of the fleet use the rest")]
mod support;
mod tokens;

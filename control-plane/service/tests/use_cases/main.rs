//! The use cases on real databases: each test runs on SQLite and on PostgreSQL.

mod audit;
mod documents;
mod support;
mod tokens;

//! The use cases on real databases: each test runs on SQLite and on PostgreSQL.

mod audit;
mod catalogue;
mod commands;
mod desired;
mod documents;
mod faults;
mod fleet;
mod founding;
mod housekeeping;
mod isolation;
mod runs;
mod support;
mod together;
mod tokens;

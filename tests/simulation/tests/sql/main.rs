//! Both sides over loopback with real TLS, the hub over its real database: SQLite, and PostgreSQL where there is one.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod commands;
mod enrolment;
mod held;
mod restored;
mod roots;
mod security;
mod session;
mod world;

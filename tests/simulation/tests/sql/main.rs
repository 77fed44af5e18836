//! Both sides over loopback with real TLS, the hub over its real database: SQLite, and PostgreSQL where there is one.

mod enrolment;
mod held;
mod restored;
mod security;
mod session;
mod world;

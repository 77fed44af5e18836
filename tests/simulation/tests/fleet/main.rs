//! Both sides over loopback with real TLS.

mod enrolment;
mod replay;
mod security;
mod session;
mod tunnel;

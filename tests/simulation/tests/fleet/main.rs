//! Both sides over loopback with real TLS.

mod commands;
mod enrolment;
mod faults;
mod replay;
mod roots;
mod roots_attacks;
mod security;
mod session;
mod tunnel;

//! The hub's side of the fleet protocol: enrolment, sessions, bulk, tunnel.

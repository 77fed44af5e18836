//! The durable copy of what the hub said.

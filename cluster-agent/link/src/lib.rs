//! The hub connection of a cluster agent: enrol, sync, renew, tunnel.

//! The A2A edge: conversations through the tunnel.

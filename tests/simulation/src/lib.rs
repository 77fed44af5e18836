//! The fleet protocol over a simulated network.

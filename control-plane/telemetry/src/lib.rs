//! Logs, traces and metrics of every binary, set up one way.

//! Applies a plan: engines as child processes.

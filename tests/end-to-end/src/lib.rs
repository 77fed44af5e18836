//! Real processes, real parts: end to end, faults, benchmarks.

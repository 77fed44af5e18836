//! One agent's runtime.

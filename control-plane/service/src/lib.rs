//! Every use case once: plain async functions over the store.

//! Ids, the one error and the clock of the hub; no framework.

//! Tests of the repository itself: layout, manifests, generated files.

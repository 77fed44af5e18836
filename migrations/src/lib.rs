//! The hub's schema: sea-orm migrations, embedded in the hub.

//! The hub's database: the only crate besides migrations that names sea-orm.

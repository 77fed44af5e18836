//! The schema, put together.

use crate::{
    Fleet, Limits,
    calls::App,
    cost::Cost,
    mutation::Mutation,
    observe::Observe,
    query::{Node, Query},
    subscription::Subscription,
};
use async_graphql::{SDLExportOptions, Schema, SchemaBuilder};
use roadstead_store::Store;
use std::sync::Arc;

pub(crate) type HubSchema = Schema<Query, Mutation, Subscription>;

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query, Mutation, Subscription).register_output_type::<Node>()
}

/// The schema, ready to run.
pub(crate) fn schema(store: Store, fleet: Arc<dyn Fleet>, limits: &Limits) -> HubSchema {
    builder()
        .data(App { store, fleet })
        .limit_depth(limits.depth)
        .limit_directives(limits.directives)
        .extension(Cost)
        .extension(Observe)
        .finish()
}

/// The schema in the schema definition language: what is committed as `web/schema.graphql`.
#[must_use]
pub fn sdl() -> String {
    builder()
        .finish()
        .sdl_with_options(SDLExportOptions::new().sorted_fields().sorted_arguments())
}

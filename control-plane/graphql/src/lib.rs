//! Thin GraphQL resolvers over the service.

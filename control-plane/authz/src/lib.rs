//! Who acts and on whose behalf: Actor, TenantContext, Authorized.

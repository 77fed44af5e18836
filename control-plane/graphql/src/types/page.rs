//! Lists: pages by a sealed cursor that dies with the filter.

use async_graphql::{OutputType, SimpleObject};
use roadstead_domain::{Page, PageRequest};

/// Where a page stands in its list.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct PageInfo {
    /// Whether there is a page after this one.
    pub(crate) has_next_page: bool,
    /// For `after`. Opaque: good for the same list, filter and tenant only.
    pub(crate) end_cursor: Option<String>,
}

/// One page of a list.
#[derive(SimpleObject, Debug)]
#[graphql(
    concrete(name = "AgentConnection", params(super::Agent)),
    concrete(name = "ApiTokenConnection", params(super::ApiToken)),
    concrete(name = "AuditRecordConnection", params(super::AuditRecord)),
    concrete(name = "ClusterConnection", params(super::Cluster)),
    concrete(name = "CommandConnection", params(super::Command)),
    concrete(name = "DocumentConnection", params(super::Document)),
    concrete(name = "ProjectConnection", params(super::Project)),
    concrete(name = "RevisionConnection", params(super::Revision)),
    concrete(name = "RunConnection", params(super::Run))
)]
pub(crate) struct Connection<T: OutputType> {
    pub(crate) nodes: Vec<T>,
    pub(crate) page_info: PageInfo,
}

/// A page as the schema has it.
pub(crate) fn connection<S, T: OutputType>(page: Page<S>, node: impl FnMut(S) -> T) -> Connection<T> {
    Connection {
        page_info: PageInfo {
            has_next_page: page.next.is_some(),
            end_cursor: page.next,
        },
        nodes: page.items.into_iter().map(node).collect(),
    }
}

/// The page that `first` and `after` ask for; the bounds are the store's to check.
pub(crate) fn request(first: Option<u32>, after: Option<String>) -> PageRequest {
    PageRequest { first, after }
}

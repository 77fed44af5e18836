//! Cursors of pages: opaque, and dead in another tenant, another list or under another filter.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roadstead_domain::{Error, Page, Problem, TenantId};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// What a cursor belongs to: the tenant, the list and its filter.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    mark: String,
}

impl Listing {
    pub(crate) fn new(tenant: TenantId, list: &str, filter: &impl std::fmt::Debug) -> Self {
        let digest = Sha256::digest(format!("{tenant} {list} {filter:?}"));
        Self {
            mark: hex::encode(&digest[..8]),
        }
    }

    fn seal(&self, position: &impl Serialize) -> String {
        let json = serde_json::json!([self.mark, position]).to_string();
        URL_SAFE_NO_PAD.encode(json)
    }

    /// The position in `cursor`; `None` for the first page.
    pub(crate) fn open<P: DeserializeOwned>(&self, cursor: Option<&str>) -> Result<Option<P>, Error> {
        let Some(cursor) = cursor else { return Ok(None) };
        let read = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<(String, P)>(&bytes).ok())
            .filter(|(mark, _)| *mark == self.mark);
        match read {
            Some((_, position)) => Ok(Some(position)),
            None => Err(Error::invalid(Problem::new(
                "after",
                "the end cursor of a page of this list with this filter",
                "another text",
                "the cursor does not belong here: begin at the first page",
            ))),
        }
    }

    /// A page out of one row more than wanted.
    pub(crate) fn page<T, P: Serialize>(
        &self,
        mut rows: Vec<T>,
        size: u32,
        position: impl Fn(&T) -> P,
    ) -> Page<T> {
        let size = size as usize;
        let more = rows.len() > size;
        rows.truncate(size);
        let next = if more {
            rows.last().map(|row| self.seal(&position(row)))
        } else {
            None
        };
        Page { items: rows, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn s33_a_cursor_is_worth_nothing_in_another_tenant_or_list() {
        let tenants = [1, 2].map(|n| TenantId::from_uuid(Uuid::from_u128(n)));
        let own = Listing::new(tenants[0], "runs", &"agent");
        let page = own.page(vec![1, 2, 3], 2, |n| *n);
        assert_eq!(page.items, [1, 2]);
        let cursor = page.next.expect("a second page");
        assert_eq!(own.open::<i32>(Some(&cursor)).expect("own"), Some(2));
        for other in [
            Listing::new(tenants[1], "runs", &"agent"),
            Listing::new(tenants[0], "objects", &"agent"),
            Listing::new(tenants[0], "runs", &"all"),
        ] {
            assert!(other.open::<i32>(Some(&cursor)).is_err());
        }
        assert!(own.open::<i32>(Some("%%%")).is_err());
    }
}

//! Pages of a list.

use crate::{Error, Problem};

/// The most items of one page.
pub const MAX_PAGE: u32 = 100;

/// Which page of a list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// At most this many items, 1 to [`MAX_PAGE`]; 25 where it is left out.
    pub first: Option<u32>,
    /// The `next` of the page before; opaque, and good only for the same tenant, list and filter.
    pub after: Option<String>,
}

impl PageRequest {
    /// How many items the page may hold.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside 1 to [`MAX_PAGE`].
    pub fn size(&self) -> Result<u32, Error> {
        match self.first.unwrap_or(25) {
            size @ 1..=MAX_PAGE => Ok(size),
            size => Err(Error::invalid(Problem::new(
                "first",
                format!("1 to {MAX_PAGE}"),
                size.to_string(),
                "the page size is out of range",
            ))),
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// For `after` of the next request; `None` on the last page.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The same page of other things.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(f).collect(),
            next: self.next,
        }
    }
}

//! Failing on purpose, for tests of what a failure leaves behind.

use roadstead_domain::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Counts statements down and fails the one that was asked for, as if the database had.
#[derive(Debug)]
pub struct Faults {
    remaining: AtomicI64,
    pages: AtomicU32,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            remaining: AtomicI64::new(-1),
            pages: AtomicU32::new(0),
        }
    }
}

impl Faults {
    /// A SQLite file that is opened with this has room for `pages` pages (of 4 KiB), as on a small disk: SQLite itself
    /// then says that it is full.
    pub fn small_disk(&self, pages: u32) {
        self.pages.store(pages, Ordering::SeqCst);
    }

    pub(crate) fn pages(&self) -> Option<u32> {
        Some(self.pages.load(Ordering::SeqCst)).filter(|pages| *pages > 0)
    }

    /// The `n`th statement from now (0: the next) fails, once.
    pub fn fail_after(&self, n: u32) {
        self.remaining.store(i64::from(n), Ordering::SeqCst);
    }

    /// No statement fails any more. Says how many statements the fault would still have waited for; `None` when it
    /// has struck.
    pub fn disarm(&self) -> Option<u32> {
        u32::try_from(self.remaining.swap(-1, Ordering::SeqCst)).ok()
    }

    pub(crate) fn check(faults: Option<&Arc<Self>>, doing: &str) -> Result<(), Error> {
        let Some(faults) = faults else { return Ok(()) };
        let step = |n: i64| (n >= 0).then_some(n - 1);
        match faults
            .remaining
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, step)
        {
            Ok(0) => Err(Error::unavailable(
                "the database does not answer; nothing was changed, try again later",
                std::io::Error::other(format!("injected fault: {doing}")),
            )),
            _ => Ok(()),
        }
    }
}

//! The hub's tokens that were used: each is good for one call (S88).
//!
//! The hub mints a token for each call, so one that comes a second time was copied on its way. What is remembered is
//! its id until it expires, in memory of a bounded size and in the journal. The write is queued before the call does
//! anything and not waited for: writes are kept in the order in which they were queued, so whatever a call began
//! that outlives a kill, its token does too; and reads need no disk. Had the engine instead refused all tokens from
//! before its start, every call on its way at a restart would fail, and for as long as the hub's clock is behind.
//!
//! An engine knows what it was shown itself: another replica of the same agent would take the token once more.

use crate::journal::{Health, Journal, JournalError};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeSet, fmt};
use tokio::sync::OnceCell;

/// Ids that are remembered at most: 200 calls a second for the life of a token, in about 3 MiB. When more come, the
/// oldest are forgotten and tokens from before them are refused: a call is made with a fresh one.
pub(crate) const MAX_HELD: usize = 64 * 1024;

/// A token: when it was issued (seconds since the epoch), and the beginning of the SHA-256 of its id.
pub(crate) type Token = (i64, [u8; 16]);

/// The tokens that were used.
pub(crate) struct Spent {
    journal: Journal,
    /// What an earlier process was shown is read once, before the first token is judged.
    read: OnceCell<()>,
    held: Mutex<Held>,
}

impl fmt::Debug for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spent").finish_non_exhaustive()
    }
}

impl Spent {
    pub(crate) fn new(journal: Journal) -> Self {
        Self {
            journal,
            read: OnceCell::new(),
            held: Mutex::new(Held::new(MAX_HELD)),
        }
    }

    /// Uses a token up; `false` if it was used before, or may have been. Tokens issued up to `expired` are no longer
    /// good and need not be remembered.
    ///
    /// # Errors
    /// The journal does not say what was used before: nothing can be judged.
    pub(crate) async fn spend(&self, issued: i64, id: &str, expired: i64) -> Result<bool, JournalError> {
        self.read.get_or_try_init(|| self.read(expired)).await?;
        let mut short = [0; 16];
        short.copy_from_slice(&Sha256::digest(id)[..16]);
        let token = (issued, short);
        let mut held = self.held.lock();
        held.forget(expired);
        let fresh = held.add(token);
        if fresh {
            // Queued: see the head of this file.
            drop(self.journal.spend_token(token, expired));
        }
        Ok(fresh)
    }

    async fn read(&self, expired: i64) -> Result<(), JournalError> {
        let mut health = self.journal.health();
        // The writer lives as long as its journal; an error is one of the read below.
        let _ = health.wait_for(|health| *health != Health::Opening).await;
        let limit = u32::try_from(MAX_HELD).unwrap_or(u32::MAX).saturating_add(1);
        let known = self.journal.spent_tokens(expired, limit).await?;
        let mut held = self.held.lock();
        for token in known {
            held.add(token);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Held {
    tokens: BTreeSet<Token>,
    most: usize,
    /// Tokens issued up to this second may have been forgotten.
    floor: i64,
}

impl Held {
    fn new(most: usize) -> Self {
        Self {
            tokens: BTreeSet::new(),
            most,
            floor: i64::MIN,
        }
    }

    fn forget(&mut self, expired: i64) {
        while let Some(first) = self.tokens.first().filter(|(issued, _)| *issued <= expired) {
            let first = *first;
            self.tokens.remove(&first);
        }
    }

    fn add(&mut self, token: Token) -> bool {
        if token.0 <= self.floor || !self.tokens.insert(token) {
            return false;
        }
        if self.tokens.len() > self.most
            && let Some((issued, _)) = self.tokens.pop_first()
        {
            self.floor = self.floor.max(issued);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(issued: i64, n: u8) -> Token {
        (issued, [n; 16])
    }

    #[test]
    fn s88_a_token_that_may_have_been_forgotten_is_refused() {
        let mut held = Held::new(2);
        assert!(held.add(token(10, 1)) && held.add(token(10, 2)));
        assert!(!held.add(token(10, 1)));
        // The third pushes out one of the second 10: which one it was does not matter.
        assert!(held.add(token(11, 3)));
        assert!(!held.add(token(10, 1)) && !held.add(token(10, 2)) && !held.add(token(10, 4)));
        assert!(!held.add(token(11, 3)));
        assert!(held.add(token(11, 4)) && held.add(token(12, 5)));
        assert_eq!(held.tokens.len(), 2);
    }

    #[test]
    fn what_has_expired_is_forgotten() {
        let mut held = Held::new(8);
        for n in 0..4 {
            held.add(token(i64::from(n), n));
        }
        held.forget(2);
        assert_eq!(held.tokens.len(), 1);
    }
}

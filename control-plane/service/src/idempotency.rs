//! Writes that may be repeated: a key under which the answer is remembered for 24 h (api.md §2).
//!
//! The key belongs to the tenant and the actor. The same key with the same input gets the same answer and changes
//! nothing; with other input it is a conflict. What is remembered holds no secret and no document: a secret is shown
//! once, and a repetition answers without it; documents are read again from their revisions.

use roadstead_domain::{ConflictReason, Error, Problem};
use roadstead_store::Tx;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// A key and the digest of the input that it stands for.
#[derive(Clone, Debug)]
pub(crate) struct Idempotency {
    key: String,
    digest: Vec<u8>,
}

impl Idempotency {
    /// `input` is the act's name and everything that the answer depends on, in one fixed form.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that is none.
    pub(crate) fn new(key: Option<&str>, input: &impl Serialize) -> Result<Option<Self>, Error> {
        let Some(key) = key else { return Ok(None) };
        if key.is_empty() || key.len() > 200 || !key.bytes().all(|c| c.is_ascii_graphic()) {
            let found = format!("{} bytes", key.len());
            let expected = "1 to 200 printable ASCII characters without spaces";
            return Err(Error::invalid(Problem::new(
                "idempotencyKey",
                expected,
                found,
                "wrong key",
            )));
        }
        let text = serde_json::to_vec(input).map_err(Error::internal)?;
        Ok(Some(Self {
            key: key.to_owned(),
            digest: Sha256::digest(text).to_vec(),
        }))
    }
}

/// The answer that was given to the same input before.
///
/// # Errors
/// [`Error::Conflict`] when the key was used for other input.
pub(crate) async fn recall<T: DeserializeOwned>(
    idempotency: Option<&Idempotency>,
    tx: &Tx<'_>,
) -> Result<Option<T>, Error> {
    let Some(idempotency) = idempotency else {
        return Ok(None);
    };
    let Some(remembered) = tx.remembered(&idempotency.key).await? else {
        return Ok(None);
    };
    if remembered.digest != idempotency.digest {
        let message = "this idempotency key was used for other input: choose a new key";
        return Err(Error::conflict(ConflictReason::IdempotencyKey, message));
    }
    serde_json::from_str(&remembered.answer)
        .map(Some)
        .map_err(Error::internal)
}

/// Remembers the answer, in the transaction of the act.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub(crate) async fn remember(
    idempotency: Option<&Idempotency>,
    tx: &Tx<'_>,
    answer: &impl Serialize,
) -> Result<(), Error> {
    let Some(idempotency) = idempotency else {
        return Ok(());
    };
    let text = serde_json::to_string(answer).map_err(Error::internal)?;
    tx.remember(&idempotency.key, &idempotency.digest, &text).await
}

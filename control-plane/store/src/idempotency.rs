//! Answers that are remembered, so that a repeated write changes nothing again.

use crate::sql::values;
use crate::tx::Tx;
use roadstead_domain::Error;
use sea_orm::FromQueryResult;

/// How long an answer is remembered (api.md §2).
pub(crate) const REMEMBERED_MS: i64 = 24 * 60 * 60 * 1000;

/// An answer that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Digest of the input that it answered.
    pub digest: Vec<u8>,
    /// JSON.
    pub answer: String,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    digest: Vec<u8>,
    answer: String,
}

impl Tx<'_> {
    /// The answer that this actor was given under `key` within 24 h.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn remembered(&self, key: &str) -> Result<Option<Remembered>, Error> {
        let sql = "SELECT digest, answer FROM idempotency_key
            WHERE tenant_id = $1 AND actor = $2 AND key = $3 AND at_ms > $4";
        let values = values![self.ctx.actor().label(), key, self.now_ms() - REMEMBERED_MS];
        let row: Option<Row> = self.one(sql, values).await?;
        Ok(row.map(|row| Remembered {
            digest: row.digest,
            answer: row.answer,
        }))
    }

    /// Remembers an answer for 24 h.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn remember(&self, key: &str, digest: &[u8], answer: &str) -> Result<(), Error> {
        let sql = "INSERT INTO idempotency_key (tenant_id, actor, key, digest, answer, at_ms)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (tenant_id, actor, key) DO UPDATE SET digest = excluded.digest, answer = excluded.answer,
            at_ms = excluded.at_ms";
        let values = values![
            self.ctx.actor().label(),
            key,
            digest.to_vec(),
            answer,
            self.now_ms()
        ];
        self.run(sql, values).await?;
        Ok(())
    }

    /// Removes what has expired: remembered answers, join tokens, old commands, and tombstones
    /// ([`Tx::purge_tombstones`]).
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn purge_expired(&self) -> Result<u64, Error> {
        let now = self.now_ms();
        let answers = "DELETE FROM idempotency_key WHERE tenant_id = $1 AND at_ms <= $2";
        let tokens = "DELETE FROM enrolment_token WHERE tenant_id = $1 AND expires_ms <= $2";
        let mut removed = self.run(answers, values![now - REMEMBERED_MS]).await?;
        removed += self.run(tokens, values![now - REMEMBERED_MS]).await?;
        removed += self.purge_commands().await?;
        Ok(removed + self.purge_tombstones().await?)
    }
}

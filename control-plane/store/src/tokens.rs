//! API tokens: their hashes and what they allow.

use crate::cursor::Listing;
use crate::error::corrupt;
use crate::repeats::Use;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{ActorKind, Authorized, Object, Place, Resource, Role, Scope, act};
use roadstead_domain::{Error, Page, PageRequest, TenantId, TokenId};
use sea_orm::FromQueryResult;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use uuid::Uuid;

/// A token without its secret, which nobody keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    pub tenant: TenantId,
    pub id: TokenId,
    /// For people.
    pub name: String,
    pub role: Role,
    pub scopes: Vec<Scope>,
    /// The issuing actor's label.
    pub created_by: String,
    pub created_ms: i64,
    pub expires_ms: i64,
    pub revoked_ms: Option<i64>,
    /// Up to a minute behind.
    pub last_used_ms: Option<i64>,
}

impl Resource for ApiToken {
    fn place(&self) -> Place {
        Place {
            tenant: self.tenant,
            object: Object::Token(self.id),
        }
    }
}

/// A token to keep.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub name: String,
    pub role: Role,
    pub scopes: Vec<Scope>,
    pub hash: [u8; 32],
    pub expires_ms: i64,
}

/// What ended with a token.
#[derive(Clone, Debug, Default)]
pub struct RevokedIssued {
    /// Those that were good until now, issuers first, each with its issuer's label.
    pub ended: Vec<(TokenId, String)>,
    /// The labels of the token and of all that came of it, ended before or now.
    pub labels: Vec<String>,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    name: String,
    role: String,
    scopes: String,
    created_by: String,
    created_ms: i64,
    expires_ms: i64,
    revoked_ms: Option<i64>,
    last_used_ms: Option<i64>,
}

/// Who issued a token.
#[derive(Debug, FromQueryResult)]
struct Issued {
    id: Uuid,
    created_by: String,
    expires_ms: i64,
}

pub(crate) fn role_of(text: &str) -> Result<Role, Error> {
    Role::parse(text).ok_or_else(|| corrupt("an unknown role"))
}

pub(crate) fn scopes_of(text: &str) -> Result<Vec<Scope>, Error> {
    let scopes = text.split_whitespace().map(Scope::parse).collect::<Option<_>>();
    scopes.ok_or_else(|| corrupt("an unknown scope"))
}

fn scopes_text(scopes: &[Scope]) -> String {
    let words: Vec<&str> = scopes.iter().map(|s| s.as_str()).collect();
    words.join(" ")
}

impl Tx<'_> {
    fn token_of(&self, row: Row) -> Result<ApiToken, Error> {
        Ok(ApiToken {
            tenant: self.tenant(),
            id: TokenId::from_uuid(row.id),
            name: row.name,
            role: role_of(&row.role)?,
            scopes: scopes_of(&row.scopes)?,
            created_by: row.created_by,
            created_ms: row.created_ms,
            expires_ms: row.expires_ms,
            revoked_ms: row.revoked_ms,
            last_used_ms: row.last_used_ms,
        })
    }

    /// Keeps a new token's hash.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn insert_token(
        &self,
        proof: &Authorized<TenantId, act::ManageTokens>,
        new: NewToken,
    ) -> Result<ApiToken, Error> {
        self.check_proof(&**proof)?;
        let token = ApiToken {
            tenant: self.tenant(),
            id: TokenId::generate(&*self.store.clock, &*self.store.random),
            name: new.name,
            role: new.role,
            scopes: new.scopes,
            created_by: self.ctx.actor().label(),
            created_ms: self.now_ms(),
            expires_ms: new.expires_ms,
            revoked_ms: None,
            last_used_ms: None,
        };
        let sql = "INSERT INTO api_token (tenant_id, id, name, hash, role, scopes, created_by, created_ms, expires_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        let values = values![
            token.id.as_uuid(),
            token.name.as_str(),
            new.hash.to_vec(),
            token.role.as_str(),
            scopes_text(&token.scopes),
            token.created_by.as_str(),
            token.created_ms,
            token.expires_ms
        ];
        self.run(sql, values).await?;
        Ok(token)
    }

    /// The token with that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn token(&self, id: TokenId) -> Result<Option<ApiToken>, Error> {
        let sql =
            "SELECT id, name, role, scopes, created_by, created_ms, expires_ms, revoked_ms, last_used_ms
            FROM api_token WHERE tenant_id = $1 AND id = $2";
        let row: Option<Row> = self.one(sql, values![id.as_uuid()]).await?;
        row.map(|row| self.token_of(row)).transpose()
    }

    /// The tenant's tokens, newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn tokens(&self, page: &PageRequest) -> Result<Page<ApiToken>, Error> {
        let listing = Listing::new(self.tenant(), "tokens", &());
        let before: Option<Uuid> = listing.open(page.after.as_deref())?;
        let size = page.size()?;
        let sql =
            "SELECT id, name, role, scopes, created_by, created_ms, expires_ms, revoked_ms, last_used_ms
            FROM api_token WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
        let values = values![before.unwrap_or(Uuid::max()), i64::from(size) + 1];
        let rows: Vec<Row> = self.all(sql, values).await?;
        let tokens: Result<Vec<ApiToken>, Error> = rows.into_iter().map(|row| self.token_of(row)).collect();
        Ok(listing.page(tokens?, size, |t: &ApiToken| t.id.as_uuid()))
    }

    /// Ends a token; `false` when it had ended before.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn revoke_token(&self, token: &Authorized<ApiToken, act::ManageTokens>) -> Result<bool, Error> {
        let sql =
            "UPDATE api_token SET revoked_ms = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_ms IS NULL";
        Ok(self.run(sql, values![token.id.as_uuid(), self.now_ms()]).await? > 0)
    }

    /// Ends every token that `issuer` issued, and those that these issued, and so on, through tokens that have ended
    /// before too.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn revoke_issued(
        &self,
        issuer: &Authorized<ApiToken, act::ManageTokens>,
    ) -> Result<RevokedIssued, Error> {
        self.check_proof(&**issuer)?;
        let sql = "SELECT id, created_by, expires_ms FROM api_token WHERE tenant_id = $1 ORDER BY id";
        let mut issued: HashMap<String, Vec<Issued>> = HashMap::new();
        for token in self.all::<Issued>(sql, values![]).await? {
            issued.entry(token.created_by.clone()).or_default().push(token);
        }
        let mut issuers = VecDeque::from([ActorKind::token_label(issuer.id)]);
        let mut revoked_issued = RevokedIssued::default();
        let end =
            "UPDATE api_token SET revoked_ms = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_ms IS NULL";
        while let Some(label) = issuers.pop_front() {
            revoked_issued.labels.push(label.clone());
            for token in issued.remove(&label).unwrap_or_default() {
                let id = TokenId::from_uuid(token.id);
                issuers.push_back(ActorKind::token_label(id));
                let revoked = self.run(end, values![token.id, self.now_ms()]).await? > 0;
                if revoked && token.expires_ms > self.now_ms() {
                    revoked_issued.ended.push((id, token.created_by));
                }
            }
        }
        Ok(revoked_issued)
    }

    /// Notes when tokens were last used; never backwards.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn note_uses(&self, uses: &[Use]) -> Result<(), Error> {
        let sql = "UPDATE api_token SET last_used_ms = $3
            WHERE tenant_id = $1 AND id = $2 AND (last_used_ms IS NULL OR last_used_ms < $3)";
        let mut ordered = uses.to_vec();
        ordered.sort_unstable_by_key(|used| used.token);
        for used in ordered {
            self.run(sql, values![used.token.as_uuid(), used.at_ms]).await?;
        }
        Ok(())
    }
}

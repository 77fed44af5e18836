//! API tokens: issued once, kept as a hash, revoked at once.

use crate::idempotency::{Idempotency, recall, remember};
use crate::stop::{Stop, allow, first, record, settle};
use roadstead_authz::{ActorKind, Object, Role, Scope, SecretKind, TenantContext, act, mint};
use roadstead_domain::{ClusterId, ConflictReason, Error, Page, PageRequest, Problem, TokenId};
use roadstead_store::{ApiToken, AuditEntry, NewToken, Outcome, RevokedIssued, Store, Tx};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// The longest life of a token (tenancy.md §2).
pub const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A token to issue.
#[derive(Clone, Debug)]
pub struct IssueInput {
    /// For people, 1 to 100 characters.
    pub name: String,
    pub role: Role,
    pub scopes: Vec<Scope>,
    /// At most [`LONGEST`].
    pub lifetime: Duration,
    /// Under this key the answer, without the secret, is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

/// A token that was just issued. The secret is shown once and kept nowhere.
#[derive(Debug)]
pub struct Issued {
    pub token: ApiToken,
    pub secret: SecretString,
}

/// What came of issuing a token.
#[derive(Debug)]
pub enum Issuing {
    Done(Issued),
    /// The token was issued before, under the same key. Nobody has its secret but whoever got it then: who did not
    /// revokes it and issues another.
    Before(ApiToken),
}

fn check(ctx: &TenantContext, input: &IssueInput) -> Result<(), Error> {
    let mut problems = Vec::new();
    let mut wrong = |path: &str, expected: &str, found: String| {
        problems.push(Problem::new(path, expected, found, "the token cannot be issued"));
    };
    let length = input.name.chars().count();
    if !(1..=100).contains(&length) || input.name.chars().any(char::is_control) {
        wrong(
            "name",
            "1 to 100 printable characters",
            format!("{length} characters"),
        );
    }
    if input.scopes.is_empty() {
        wrong("scopes", "at least one scope", "none".to_owned());
    }
    if input.lifetime > LONGEST || input.lifetime.is_zero() {
        wrong(
            "lifetime",
            "more than nothing, at most 366 days",
            format!("{:?}", input.lifetime),
        );
    }
    // Nobody hands out more than they have.
    if let ActorKind::Token { role, scopes, .. } = ctx.actor().kind() {
        if input.role > *role {
            wrong(
                "role",
                &format!("{role} or less: your own"),
                input.role.to_string(),
            );
        }
        let beyond = |wanted: &&Scope| !scopes.iter().any(|own| own.implies(**wanted));
        if let Some(scope) = input.scopes.iter().find(beyond) {
            wrong("scopes", "scopes that your own token has", scope.to_string());
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid { problems })
    }
}

/// Issues a token.
///
/// # Errors
/// [`Error::Invalid`], also for more rights than the actor's own; [`Error::Forbidden`]; [`Error::Conflict`] when the
/// token was issued before under this key ([`issue_once`] tells which).
pub async fn issue(ctx: &TenantContext, store: &Store, input: IssueInput) -> Result<Issued, Error> {
    match issue_once(ctx, store, input).await? {
        Issuing::Done(issued) => Ok(issued),
        Issuing::Before(token) => {
            let message = format!(
                "{} was issued under this key before; its secret is shown once",
                token.id
            );
            Err(Error::conflict(ConflictReason::IdempotencyKey, message))
        }
    }
}

/// Issues a token, once for each key.
///
/// # Errors
/// As [`issue`]; [`Error::Conflict`] for a key that was used for other input.
pub async fn issue_once(ctx: &TenantContext, store: &Store, input: IssueInput) -> Result<Issuing, Error> {
    let issued = async {
        let proof = allow::<act::ManageTokens, _>(ctx, ctx.tenant(), || "it".to_owned())?;
        check(ctx, &input)?;
        let digest = json!([
            "issue token",
            input.name,
            input.role.as_str(),
            input.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
            input.lifetime.as_secs()
        ]);
        let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(token) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(Issuing::Before(token));
        }
        still_good(ctx, &tx).await?;
        let issued = issue_in(&mut tx, &proof, store, input).await?;
        remember(idempotency.as_ref(), &tx, &issued.token).await?;
        tx.commit().await?;
        Ok::<_, Stop>(Issuing::Done(issued))
    };
    let issued = issued.await;
    settle(ctx, store, issued).await
}

pub(crate) async fn issue_in(
    tx: &mut Tx<'_>,
    proof: &roadstead_authz::Authorized<roadstead_domain::TenantId, act::ManageTokens>,
    store: &Store,
    input: IssueInput,
) -> Result<Issued, Error> {
    let (secret, hash) = mint(SecretKind::ApiToken, &**store.random());
    let lifetime = i64::try_from(input.lifetime.as_millis()).unwrap_or(i64::MAX);
    let new = NewToken {
        name: input.name,
        role: input.role,
        scopes: input.scopes,
        hash,
        expires_ms: store.clock().now_ms().saturating_add(lifetime),
    };
    let token = tx.insert_token(proof, new).await?;
    let entry = AuditEntry::allowed("issue token", token.id, proof.grant())
        .with("role", token.role.as_str())
        .with("expires_ms", token.expires_ms);
    tx.audit(entry).await?;
    Ok(Issued { token, secret })
}

/// A token to end.
#[derive(Clone, Debug)]
pub struct RevokeInput {
    pub token: TokenId,
    /// What it issued stays good: tokens, those that these issued, and join tokens.
    pub keep_issued: bool,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

impl From<TokenId> for RevokeInput {
    fn from(token: TokenId) -> Self {
        Self {
            token,
            keep_issued: false,
            idempotency_key: None,
        }
    }
}

/// A token that was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub token: ApiToken,
    /// How many tokens ended with it: which it had issued, or which these had.
    pub also: u64,
    /// How many join tokens ended with it: which it had made, or which these tokens had.
    #[serde(default)]
    pub join_tokens: u64,
    /// Clusters that joined by a join token of one of them, by name, at most [`NAMED`]. They stay: see [`revoke`].
    #[serde(default)]
    pub clusters: Vec<EnrolledCluster>,
    /// How many there are.
    #[serde(default)]
    pub cluster_count: u64,
}

/// The most clusters that the answer to a revocation names.
pub const NAMED: usize = 100;

/// A cluster that was let in by a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledCluster {
    pub id: ClusterId,
    pub name: String,
}

/// Ends a token, and what it issued: their next use is refused. Whoever stole a token may have made others with it, and
/// nobody should have to find them; its end by time ends nothing else. Ending one that has ended changes nothing of
/// itself. Nobody ends a token with more rights than their own: an administrator could shut all owners out. (What a
/// token issued never has more rights than it.)
///
/// Join tokens end with their makers. Clusters that joined by one stay: they run their tenant's agents, tokens are
/// mostly revoked because somebody leaves, and a cluster that ends takes conversations with it. So a person decides about
/// each; the answer and the audit log name them.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`]; [`Error::Conflict`] when the caller's own token would end with it, which
/// nobody means who changes an old token for a new one, and for a key that was used for other input.
pub async fn revoke(ctx: &TenantContext, store: &Store, input: &RevokeInput) -> Result<Revoked, Error> {
    let revoked = end(ctx, store, input).await;
    settle(ctx, store, revoked).await
}

async fn end(ctx: &TenantContext, store: &Store, input: &RevokeInput) -> Result<Revoked, Stop> {
    let id = input.token;
    first::<act::ManageTokens>(ctx, Object::Token(id), &id.to_string())?;
    let digest = json!(["revoke token", id, input.keep_issued]);
    let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(revoked) = recall(idempotency.as_ref(), &tx).await? {
        return Ok(revoked);
    }
    let missing = || Error::not_found(id.to_string());
    let token = tx.token(id).await?.ok_or_else(missing)?;
    let token = allow::<act::ManageTokens, _>(ctx, token, || id.to_string())?;
    if let Some(reason) = beyond(ctx, token.role, &token.scopes) {
        drop(tx);
        let entry = AuditEntry::refused(Outcome::Denied, "revoke token", id).with("reason", reason);
        record(ctx, store, entry).await?;
        return Err(Error::forbidden(reason).into());
    }
    let RevokedIssued { ended, labels } = match input.keep_issued {
        true => RevokedIssued {
            ended: Vec::new(),
            labels: vec![ActorKind::token_label(id)],
        },
        false => tx.revoke_issued(&token).await?,
    };
    if let ActorKind::Token { token: own, .. } = ctx.actor().kind()
        && ended.iter().any(|(ended, _)| ended == own)
    {
        return Err(own_token(&token).into());
    }
    let join_tokens = match input.keep_issued {
        true => 0,
        false => tx.end_join_tokens_of(&labels).await?,
    };
    let mut clusters = tx.clusters_enrolled_by(&labels).await?;
    let cluster_count = clusters.len() as u64;
    clusters.truncate(NAMED);
    if tx.revoke_token(&token).await? || join_tokens > 0 {
        let mut entry = AuditEntry::allowed("revoke token", id, token.grant());
        if join_tokens > 0 {
            entry = entry.with("join_tokens", join_tokens);
        }
        if cluster_count > 0 {
            let ids: Vec<String> = clusters.iter().map(|(id, _)| id.to_string()).collect();
            entry = entry
                .with("enrolled_clusters", cluster_count)
                .with("clusters_kept", ids);
        }
        tx.audit(entry).await?;
    }
    for (ended, issuer) in &ended {
        let entry = AuditEntry::allowed("revoke token", ended, token.grant())
            .with("issued_by", issuer.as_str())
            .with("with", id.to_string());
        tx.audit(entry).await?;
    }
    let after = Revoked {
        token: tx.token(id).await?.ok_or_else(missing)?,
        also: ended.len() as u64,
        join_tokens,
        clusters: clusters
            .into_iter()
            .map(|(id, name)| EnrolledCluster { id, name })
            .collect(),
        cluster_count,
    };
    remember(idempotency.as_ref(), &tx, &after).await?;
    tx.commit().await?;
    Ok(after)
}

fn own_token(token: &ApiToken) -> Error {
    let message = format!(
        "the token {} issued the one that you use, directly or not, which would end with it: keep what it issued, or \
         revoke it with another token",
        token.id
    );
    Error::conflict(ConflictReason::State, message)
}

/// A token that ended between its request's beginning and now issues nothing: that would be missed when what it issued
/// ends with it.
pub(crate) async fn still_good(ctx: &TenantContext, tx: &Tx<'_>) -> Result<(), Error> {
    let ActorKind::Token { token, .. } = ctx.actor().kind() else {
        return Ok(());
    };
    match tx.token(*token).await? {
        Some(own) if own.revoked_ms.is_none() => Ok(()),
        _ => Err(SecretKind::ApiToken.refused()),
    }
}

/// Why the actor may not end a token with these rights: it has more than they have.
fn beyond(ctx: &TenantContext, role: Role, scopes: &[Scope]) -> Option<&'static str> {
    let ActorKind::Token {
        role: own,
        scopes: held,
        ..
    } = ctx.actor().kind()
    else {
        return None;
    };
    let covered = |wanted: &Scope| held.iter().any(|own| own.implies(*wanted));
    if role > *own {
        Some("the token's role is more than your own; somebody with that role may revoke it")
    } else if !scopes.iter().all(covered) {
        Some("the token has scopes that your own token lacks; somebody who has them may revoke it")
    } else {
        None
    }
}

/// The tenant's tokens, newest first.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(ctx: &TenantContext, store: &Store, page: &PageRequest) -> Result<Page<ApiToken>, Error> {
    let allowed = allow::<act::ManageTokens, _>(ctx, ctx.tenant(), || "it".to_owned()).map(|_| ());
    settle(ctx, store, allowed).await?;
    store.tenant(ctx).read().await?.tokens(page).await
}

/// One token.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Forbidden`].
pub async fn get(ctx: &TenantContext, store: &Store, id: TokenId) -> Result<ApiToken, Error> {
    let allowed = allow::<act::ManageTokens, _>(ctx, ctx.tenant(), || "it".to_owned()).map(|_| ());
    settle(ctx, store, allowed).await?;
    let found = store.tenant(ctx).read().await?.token(id).await?;
    found.ok_or_else(|| Error::not_found(id.to_string()))
}

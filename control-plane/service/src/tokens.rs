//! API tokens: issued once, kept as a hash, revoked at once.

use crate::stop::{Stop, allow, settle};
use roadstead_authz::{ActorKind, Role, Scope, SecretKind, TenantContext, act, mint};
use roadstead_domain::{Error, Page, PageRequest, Problem, TokenId};
use roadstead_store::{ApiToken, AuditEntry, NewToken, Store, Tx};
use secrecy::SecretString;
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
}

/// A token that was just issued. The secret is shown once and kept nowhere.
#[derive(Debug)]
pub struct Issued {
    pub token: ApiToken,
    pub secret: SecretString,
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
/// [`Error::Invalid`], also for more rights than the actor's own; [`Error::Forbidden`].
pub async fn issue(ctx: &TenantContext, store: &Store, input: IssueInput) -> Result<Issued, Error> {
    let issued = async {
        let proof = allow::<act::ManageTokens, _>(ctx, ctx.tenant(), || "it".to_owned())?;
        check(ctx, &input)?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        let issued = issue_in(&mut tx, &proof, store, input).await?;
        tx.commit().await?;
        Ok::<_, Stop>(issued)
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

/// Ends a token: its next use is refused. Ending one that has ended changes nothing.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`].
pub async fn revoke(ctx: &TenantContext, store: &Store, id: TokenId) -> Result<ApiToken, Error> {
    let revoked = async {
        let mut tx = store.tenant(ctx).write_audited().await?;
        let missing = || Error::not_found(id.to_string());
        let token = tx.token(id).await?.ok_or_else(missing)?;
        let token = allow::<act::ManageTokens, _>(ctx, token, || id.to_string())?;
        if tx.revoke_token(&token).await? {
            tx.audit(AuditEntry::allowed("revoke token", id, token.grant()))
                .await?;
        }
        let after = tx.token(id).await?.ok_or_else(missing)?;
        tx.commit().await?;
        Ok::<_, Stop>(after)
    };
    let revoked = revoked.await;
    settle(ctx, store, revoked).await
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

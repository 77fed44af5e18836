//! On whose behalf: the tenant, the actor and the request, proven.

use crate::secret::Presented;
use crate::{
    Action, Actor, ActorKind, Authorized, Denied, Resource, Role, Scope, SecretKind, SystemContext, act,
};
use crate::{Decision, decide};
use roadstead_domain::{ClusterId, Error, TenantId, TokenId};
use std::net::IpAddr;

/// Where a request came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The peer's address; of a trusted proxy's client where one is configured.
    pub ip: Option<IpAddr>,
    /// The kind of client: `graphql`, `a2a`, `fleet`, `hub`.
    pub client: String,
}

/// What an edge knows of a request before anybody is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub request_id: String,
    /// W3C trace id, hex; empty without a trace.
    pub trace_id: String,
    pub source: Source,
}

/// A tenant as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRecord {
    pub id: TenantId,
    pub name: String,
}

/// An API token as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    pub id: TokenId,
    pub tenant: TenantRecord,
    /// For people.
    pub name: String,
    pub role: Role,
    pub scopes: Vec<Scope>,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// Milliseconds since the Unix epoch, UTC.
    pub expires_at_ms: i64,
    pub revoked: bool,
}

/// Who a verified client certificate says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub tenant: TenantId,
    pub cluster: ClusterId,
    /// Lower-case hex.
    pub serial: String,
}

/// A client certificate as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    pub tenant: TenantRecord,
    pub cluster: ClusterId,
    /// Lower-case hex.
    pub serial: String,
    /// Milliseconds since the Unix epoch, UTC.
    pub not_after_ms: i64,
    pub revoked: bool,
    /// `false` once the cluster is deleted.
    pub cluster_active: bool,
}

/// The tenant, the actor and the request that an act belongs to.
#[derive(Clone, Debug)]
pub struct TenantContext {
    tenant: TenantId,
    tenant_name: String,
    actor: Actor,
    request: RequestInfo,
}

impl TenantContext {
    /// Whoever presented an API token: `record` is what the store found by its hash.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], with one sentence whatever is wrong: unknown, expired, revoked.
    pub fn from_api_token(
        presented: &Presented,
        record: Option<TokenRecord>,
        now_ms: i64,
        request: RequestInfo,
    ) -> Result<Self, Error> {
        let refused = || SecretKind::ApiToken.refused();
        let record = record.ok_or_else(refused)?;
        let good = presented.kind() == SecretKind::ApiToken
            && presented.matches(&record.hash)
            && !record.revoked
            && now_ms < record.expires_at_ms;
        if !good {
            return Err(refused());
        }
        Ok(Self {
            tenant: record.tenant.id,
            tenant_name: record.tenant.name,
            actor: Actor(ActorKind::Token {
                token: record.id,
                name: record.name,
                role: record.role,
                scopes: record.scopes,
            }),
            request,
        })
    }

    /// The cluster agent behind a certificate: `peer` was read from the certificate after TLS had verified its
    /// chain, `record` is what the store found by tenant, cluster and serial.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], with one sentence whatever is wrong: unknown, foreign, expired, revoked.
    pub fn from_cluster_certificate(
        peer: &PeerIdentity,
        record: Option<CertificateRecord>,
        now_ms: i64,
        request: RequestInfo,
    ) -> Result<Self, Error> {
        let refused =
            || Error::unauthenticated("the client certificate is not valid here; enrol the cluster again");
        let record = record.ok_or_else(refused)?;
        let good = record.tenant.id == peer.tenant
            && record.cluster == peer.cluster
            && record.serial == peer.serial
            && !record.revoked
            && record.cluster_active
            && now_ms < record.not_after_ms;
        if !good {
            return Err(refused());
        }
        Ok(Self {
            tenant: record.tenant.id,
            tenant_name: record.tenant.name,
            actor: Actor(ActorKind::ClusterAgent {
                cluster: record.cluster,
            }),
            request,
        })
    }

    /// A system task that works for one tenant, which the store has found.
    #[must_use]
    pub fn from_system_task(system: &SystemContext, tenant: TenantRecord, request: RequestInfo) -> Self {
        Self {
            tenant: tenant.id,
            tenant_name: tenant.name,
            actor: Actor(ActorKind::System { task: system.task() }),
            request,
        }
    }

    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    #[must_use]
    pub fn tenant_name(&self) -> &str {
        &self.tenant_name
    }

    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    #[must_use]
    pub fn request(&self) -> &RequestInfo {
        &self.request
    }

    /// The cluster, where the actor is its cluster agent.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        match self.actor.kind() {
            ActorKind::ClusterAgent { cluster } => Some(*cluster),
            _ => None,
        }
    }

    /// The same actor in another request (a long-lived session asks many times).
    #[must_use]
    pub fn with_request(&self, request: RequestInfo) -> Self {
        Self {
            request,
            ..self.clone()
        }
    }

    /// Asks whether the actor may do `A` to `object`; the proof carries it.
    ///
    /// # Errors
    /// [`Denied`], to be written to the audit log and turned into an error by the caller.
    pub fn authorize<A: act::Act, T: Resource>(&self, object: T) -> Result<Authorized<T, A>, Denied> {
        let place = object.place();
        match decide(self, A::ACTION, &place) {
            Decision::Allow { grant } => Ok(Authorized::new(object, grant)),
            Decision::Deny { reason } => Err(Denied::new(self, A::ACTION, place, reason)),
        }
    }

    /// `true` when the actor may do `action` to `object`, without a proof: for showing what is possible.
    pub fn may(&self, action: Action, object: &impl Resource) -> bool {
        matches!(decide(self, action, &object.place()), Decision::Allow { .. })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests of the contexts' birth")]
mod tests {
    use super::*;
    use crate::mint;
    use roadstead_domain::{FakeClock, SeededRandom};
    use secrecy::ExposeSecret as _;

    fn tenant() -> TenantRecord {
        TenantRecord {
            id: TenantId::generate(&FakeClock::at(1), &SeededRandom::new(1)),
            name: "acme".into(),
        }
    }

    #[test]
    fn s91_a_token_that_is_unknown_expired_revoked_or_anothers_is_refused_alike() {
        let (secret, hash) = mint(SecretKind::ApiToken, &SeededRandom::new(3));
        let presented = Presented::parse(SecretKind::ApiToken, secret.expose_secret()).expect("well-formed");
        let good = TokenRecord {
            id: TokenId::generate(&FakeClock::at(1), &SeededRandom::new(2)),
            tenant: tenant(),
            name: "ci".into(),
            role: Role::Viewer,
            scopes: vec![Scope::Read],
            hash,
            expires_at_ms: 100,
            revoked: false,
        };
        let verify = |record, now| {
            TenantContext::from_api_token(&presented, record, now, RequestInfo::default())
                .map_err(|e| e.to_string())
        };
        let context = verify(Some(good.clone()), 99).expect("good");
        assert_eq!(context.tenant(), good.tenant.id);
        let revoked = TokenRecord {
            revoked: true,
            ..good.clone()
        };
        let anothers = TokenRecord {
            hash: [0; 32],
            ..good.clone()
        };
        let refusals = [
            verify(None, 99),
            verify(Some(good), 100),
            verify(Some(revoked), 99),
            verify(Some(anothers), 99),
        ];
        let sentences: std::collections::BTreeSet<_> = refusals.map(|r| r.expect_err("refused")).into();
        assert_eq!(sentences.len(), 1);
    }

    #[test]
    fn s44_a_certificate_must_be_the_clusters_own_current_and_unrevoked() {
        let cluster = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(4));
        let good = CertificateRecord {
            tenant: tenant(),
            cluster,
            serial: "0a".into(),
            not_after_ms: 100,
            revoked: false,
            cluster_active: true,
        };
        let peer = PeerIdentity {
            tenant: good.tenant.id,
            cluster,
            serial: "0a".into(),
        };
        let verify = |peer: &PeerIdentity, record, now| {
            TenantContext::from_cluster_certificate(peer, record, now, RequestInfo::default())
        };
        assert_eq!(
            verify(&peer, Some(good.clone()), 99).expect("good").cluster(),
            Some(cluster)
        );
        let other = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(5));
        let bad = [
            (peer.clone(), None, 99),
            (peer.clone(), Some(good.clone()), 100),
            (
                peer.clone(),
                Some(CertificateRecord {
                    revoked: true,
                    ..good.clone()
                }),
                99,
            ),
            (
                peer.clone(),
                Some(CertificateRecord {
                    cluster_active: false,
                    ..good.clone()
                }),
                99,
            ),
            (
                PeerIdentity {
                    cluster: other,
                    ..peer.clone()
                },
                Some(good.clone()),
                99,
            ),
            (
                PeerIdentity {
                    serial: "0b".into(),
                    ..peer
                },
                Some(good),
                99,
            ),
        ];
        for (peer, record, now) in bad {
            assert!(verify(&peer, record, now).is_err());
        }
    }
}

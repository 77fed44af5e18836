//! The first call of a cluster agent: a one-time token and a public key become an identity.

use crate::{
    bucket::Bucket,
    door::prefix,
    listen::{peer, status},
    pki::{CheckedRequest, Issued, PkiError},
    roots::RootId,
    serve::{Inner, RETIRED},
    store::{Event, StoreError, What},
};
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::{
    Certificate, EnrolRequest, EnrolResponse, TrustBundle, enrol_request::Proof, enrolment_server::Enrolment,
};
use roadstead_domain::{ClusterId, TenantId};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use tonic::{Request, Response, Status};

/// Attempts a second: of everybody together, and of one address (protocol.md §1: "own rate limit").
const ALL: (f64, f64) = (20.0, 100.0);
const EACH: (f64, f64) = (0.5, 10.0);
/// Addresses remembered before those that did not try lately are forgotten.
const ADDRESSES: usize = 10_000;
/// A request with one public key is a few hundred bytes.
const MAX_CSR: usize = 4 * 1024;
/// One answer for every bad token: it does not say which part was wrong.
const REFUSED: &str = "the join token is not valid: unknown, used, or too old";

#[derive(Debug)]
pub(crate) struct Limits {
    all: Bucket,
    each: Mutex<BTreeMap<IpAddr, Arc<Bucket>>>,
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self {
            all: Bucket::new(ALL.0, ALL.1),
            each: Mutex::default(),
        }
    }

    fn admit(&self, source: Option<IpAddr>) -> bool {
        let own = source.map(|source| {
            let mut each = self.each.lock();
            let source = prefix(source);
            if each.len() >= ADDRESSES && !each.contains_key(&source) {
                // Whoever has not tried lately is as good as new.
                each.retain(|_, bucket| !bucket.is_full());
            }
            each.entry(source)
                .or_insert_with(|| Arc::new(Bucket::new(EACH.0, EACH.1)))
                .clone()
        });
        own.is_none_or(|own| own.take().is_ok()) && self.all.take().is_ok()
    }
}

pub(crate) struct Service(pub(crate) Arc<Inner>);

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let source = peer(&request)?.source;
        if !self.0.enrolments.admit(source) {
            self.record(None, source, "too many attempts".to_owned()).await;
            return Err(Status::resource_exhausted(
                "too many attempts; try again in a minute",
            ));
        }
        let request = request.into_inner();
        let secret = request
            .proof
            .map(|Proof::Token(secret)| secret)
            .unwrap_or_default();
        // Before the token is used up: a bad request must not cost it.
        let checked = match check(&request.csr, &request.version) {
            Ok(checked) => checked,
            Err(why) => {
                self.refuse(&secret, source, why.clone()).await;
                return Err(Status::invalid_argument(why));
            }
        };
        self.0.not_behind().await?;
        let consumed = self
            .0
            .store
            .consume_token(&secret, &request.version, source)
            .await;
        let (tenant, cluster) = match consumed {
            Ok(found) => found,
            Err(StoreError::Refused(_)) => {
                self.refuse(&secret, source, REFUSED.to_owned()).await;
                return Err(Status::unauthenticated(REFUSED));
            }
            Err(error) => return Err(status(&error)),
        };
        let (issued, peer) = self.0.issue(checked, tenant, cluster, None).await?;
        tracing::info!(tenant.id = %tenant, cluster.id = %cluster, "a cluster is enrolled");
        self.0
            .audit(Event {
                peer: Some(peer),
                source,
                what: What::Enrolled,
                detail: request.version,
            })
            .await;
        Ok(Response::new(EnrolResponse {
            certificate: Some(certificate(issued)),
            trust: Some(self.0.trust()),
            tenant: tenant.to_string(),
            cluster: cluster.to_string(),
        }))
    }
}

/// What can be signed; else a sentence that says why not.
fn check(csr: &[u8], version: &str) -> Result<CheckedRequest, String> {
    if csr.len() > MAX_CSR {
        return Err("the certificate request is too long".to_owned());
    }
    if version.len() > 64 || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("expected a version of at most 64 printable characters".to_owned());
    }
    CheckedRequest::parse(csr).map_err(|error| error.to_string())
}

impl Service {
    /// A refusal belongs into the log of whose token it is; of nobody's, into the platform's.
    async fn refuse(&self, secret: &str, source: Option<IpAddr>, why: String) {
        let owner = self.0.store.token_owner(secret).await;
        let owner = owner.unwrap_or_else(|error| {
            tracing::warn!(%error, "whose join token was refused is not known");
            None
        });
        self.record(owner, source, why).await;
    }

    /// Within the limit on audit records: whoever is refused can come again and again.
    async fn record(&self, peer: Option<PeerIdentity>, source: Option<IpAddr>, detail: String) {
        let what = What::EnrolmentRefused;
        self.0
            .audit(Event {
                peer,
                source,
                what,
                detail,
            })
            .await;
    }
}

impl Inner {
    /// A replica that has not followed a rotation yet would spend the token on a certificate that is worth nothing at the
    /// others.
    async fn not_behind(&self) -> Result<(), Status> {
        let reported = self.store.replicas().await.map_err(|error| status(&error))?;
        let heard = reported
            .iter()
            .map(|replica| replica.generation)
            .max()
            .unwrap_or(0);
        let ours = self.authority.ring().generation;
        if ours < heard {
            tracing::error!(
                ours,
                heard,
                "this replica's folder of keys is behind that of others: no cluster joins by it"
            );
            return Err(Status::unavailable(
                "this replica of the hub has not followed a rotation of roots yet; try again",
            ));
        }
        Ok(())
    }

    /// Signs a checked request and notes the certificate before it is handed out. `of`: see [`crate::Authority::sign`].
    pub(crate) async fn issue(
        &self,
        request: CheckedRequest,
        tenant: TenantId,
        cluster: ClusterId,
        of: Option<&RootId>,
    ) -> Result<(Issued, PeerIdentity), Status> {
        let signed = self.authority.sign(request, tenant, cluster, of);
        let issued = signed.map_err(|error| match error {
            PkiError::Retired => Status::unauthenticated(RETIRED),
            error => {
                tracing::error!(%error, "a certificate cannot be signed");
                Status::internal("the certificate cannot be signed")
            }
        })?;
        let peer = PeerIdentity {
            tenant,
            cluster,
            serial: issued.serial.clone(),
        };
        let not_after_ms = issued.not_after.saturating_mul(1_000);
        self.store
            .certificate_issued(&peer, not_after_ms)
            .await
            .map_err(|error| status(&error))?;
        Ok((issued, peer))
    }

    pub(crate) fn trust(&self) -> TrustBundle {
        let ring = self.authority.ring();
        TrustBundle {
            roots: ring.trusted().iter().map(|root| root.der().to_vec()).collect(),
            trust_domain: self.authority.trust_domain().to_owned(),
            generation: ring.generation,
        }
    }
}

pub(crate) fn certificate(issued: Issued) -> Certificate {
    Certificate {
        chain: issued.chain,
        not_before: issued.not_before,
        not_after: issued.not_after,
    }
}

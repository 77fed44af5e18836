//! Identities for cluster agents: enrolled over the wire, and kept as the link keeps them.
//!
//! A hub takes 20 enrolments a second and 100 at once; what is measured later is not how long ten thousand take by that.
//! So each hundred has a hub of its own, over the same truth and the same authority.

use super::{
    hub::{Hub, Makings},
    network::{Network, address},
};
use crate::raw;
use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::{
    EnrolRequest, EnrolResponse, enrol_request::Proof, enrolment_client::EnrolmentClient,
};
use roadstead_link::Identity;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::json;
use std::{io, path::Path, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

/// Enrolments that a hub takes at once, and those of one address.
const AT_ONCE: usize = 100;
const EACH: usize = 10;

/// A cluster's identity.
#[derive(Clone, Debug)]
pub(super) struct Enrolled {
    pub(super) peer: PeerIdentity,
    pub(super) credentials: raw::Credentials,
}

/// Enrols the cluster of each secret; number `n` finds its identity in the folder `n`.
///
/// # Errors
/// The hub refuses one.
pub(super) async fn enrol(
    makings: &Makings,
    secrets: &[String],
    folder: &Path,
) -> anyhow::Result<Vec<Enrolled>> {
    let mut enrolled = Vec::with_capacity(secrets.len());
    for (n, hundred) in secrets.chunks(AT_ONCE).enumerate() {
        let network = Network::default();
        let hub = Hub::start(makings, &network);
        let of = |(m, secrets)| enrol_some(makings, &network, (n * AT_ONCE + m * EACH, secrets), folder);
        let some = stream::iter(hundred.chunks(EACH).enumerate().map(of));
        let some: Vec<Vec<_>> = some.buffered(AT_ONCE / EACH).try_collect().await?;
        enrolled.extend(some.into_iter().flatten());
        hub.kill();
    }
    Ok(enrolled)
}

async fn enrol_some(
    makings: &Makings,
    network: &Network,
    (first, secrets): (usize, &[String]),
    folder: &Path,
) -> anyhow::Result<Vec<Enrolled>> {
    let tls = raw::tls(&makings.authority.root_der(), None, &rustls::version::TLS13);
    let stream = network.connect(address(first))?;
    let channel = channel(stream, tls).await?;
    let mut enrolled = Vec::with_capacity(secrets.len());
    for (n, secret) in secrets.iter().enumerate() {
        let (csr, key) = raw::request_pem(&raw::modest());
        let request = EnrolRequest {
            proof: Some(Proof::Token(secret.clone())),
            csr,
            version: "0.1.0".to_owned(),
        };
        let answer = EnrolmentClient::new(channel.clone())
            .enrol(request)
            .await?
            .into_inner();
        enrolled.push(keep(&folder.join((first + n).to_string()), &key, answer)?);
    }
    Ok(enrolled)
}

/// As the link keeps an identity.
fn keep(folder: &Path, key: &(Vec<u8>, String), answer: EnrolResponse) -> anyhow::Result<Enrolled> {
    let certificate = answer.certificate.context("a certificate")?;
    let trust = answer.trust.context("roots")?;
    let hex = |ders: &[Vec<u8>]| ders.iter().map(hex::encode).collect::<Vec<_>>();
    let identity = json!({
        "key": key.1, "chain": hex(&certificate.chain), "roots": hex(&trust.roots),
        "trust_domain": trust.trust_domain, "tenant": answer.tenant, "cluster": answer.cluster,
        "not_before": certificate.not_before, "not_after": certificate.not_after,
    });
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("identity.json"), identity.to_string())?;
    let serial = Identity::load(folder)?.context("an identity")?.serial();
    Ok(Enrolled {
        peer: PeerIdentity {
            tenant: answer.tenant.parse()?,
            cluster: answer.cluster.parse()?,
            serial,
        },
        credentials: raw::Credentials {
            key: key.0.clone(),
            chain: certificate.chain,
        },
    })
}

/// HTTP/2 over TLS over a stream of the simulated network.
///
/// # Errors
/// The hub, or TLS, refuses.
pub(super) async fn channel(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tls: Arc<ClientConfig>,
) -> anyhow::Result<Channel> {
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let (stream, tls) = (once.take(), tls.clone());
        async move {
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))?;
            let name = ServerName::try_from("hub").map_err(io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(tls)
                .connect(name, stream)
                .await?;
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Ok(Endpoint::from_static("http://hub")
        .connect_with_connector(connector)
        .await?)
}

//! The first call: a one-time token and a certificate request become an identity.

use crate::{Clock, Identity, IdentityError, LinkError, channel::Route, identity::Request, tls, trust};
use roadstead_contract::fleet::{
    EnrolRequest, JoinToken, enrol_request::Proof, enrolment_client::EnrolmentClient,
};
use std::{sync::Arc, time::Duration};
use tonic::Code;

const TIMEOUT: Duration = Duration::from_secs(20);

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth another attempt.
    Later(String),
    /// Not worth one.
    Final(LinkError),
}

pub(crate) async fn enrol(
    route: &Route,
    token: &JoinToken,
    version: &str,
    clock: Arc<dyn Clock>,
) -> Result<Identity, Failure> {
    let tls = tls::pinned(token.pin, clock.clone()).map_err(|error| Failure::Later(error.to_string()))?;
    let connection = route
        .connect(tls)
        .await
        .map_err(|error| Failure::Later(describe(&error)))?;
    let (channel, hub) = (connection.channel, connection.hub);
    let request = Request::generate().map_err(|error| Failure::Final(error.into()))?;
    let message = EnrolRequest {
        proof: Some(Proof::Token(token.expose_secret().to_owned())),
        csr: request.csr,
        version: version.to_owned(),
    };
    let answer = tokio::time::timeout(TIMEOUT, EnrolmentClient::new(channel).enrol(message)).await;
    let answer = match answer {
        Err(_) => return Err(Failure::Later("no answer in time".to_owned())),
        Ok(Err(status)) => return Err(refused(&status)),
        Ok(Ok(answer)) => answer.into_inner(),
    };
    let (Some(certificate), Some(trust)) = (answer.certificate, answer.trust) else {
        let wrong = IdentityError::Answer("no certificate or no trust bundle".to_owned());
        return Err(Failure::Final(wrong.into()));
    };
    trust::usable(&trust, &hub, &*clock).map_err(|why| {
        let wrong = IdentityError::Answer(format!("the trust bundle: {why}"));
        Failure::Final(wrong.into())
    })?;
    Identity::new(
        request.key,
        &certificate,
        &trust,
        (answer.tenant, answer.cluster),
        token,
    )
    .map_err(|error| Failure::Final(error.into()))
}

fn refused(status: &tonic::Status) -> Failure {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Failure::Final(LinkError::JoinRefused),
        Code::InvalidArgument => Failure::Final(LinkError::RequestRefused(status.message().to_owned())),
        _ => Failure::Later(format!("{:?}: {}", status.code(), status.message())),
    }
}

/// What a person is to do about certificates that one side does not believe; `None` for every other error.
pub(crate) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| {
            let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            inner.downcast_ref::<rustls::Error>()
        });
        match tls {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                return Some(
                    "the hub shows a certificate of no root that this cluster trusts. If the hub's root was replaced while \
                     this cluster was away: make a new join token for it and start with that",
                );
            }
            Some(rustls::Error::AlertReceived(alert)) if is_of_certificate(*alert) => {
                return Some(
                    "the hub does not take this cluster's certificate. If its root was retired: make a new join token for \
                     this cluster and start with that",
                );
            }
            _ => {}
        }
        cause = error.source();
    }
    None
}

fn is_of_certificate(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::DecryptError
    )
}

/// An error with its causes, since tonic's own text is only "transport error".
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

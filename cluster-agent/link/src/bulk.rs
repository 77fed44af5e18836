//! Large documents by digest: in chunks, resumed where a connection broke, verified as a whole.

use crate::{channel::Route, enrol::describe};
use roadstead_contract::fleet::{
    Digest, GetBlobRequest, MAX_DOCUMENT, MAX_FRAME, bulk_client::BulkClient, document_digest,
};
use rustls::ClientConfig;
use std::{sync::Arc, time::Duration};
use tonic::{Code, transport::Channel};

/// Without a byte for so long the connection counts as broken.
const SILENCE: Duration = Duration::from_secs(30);
/// Before another attempt, times the attempts that brought nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// Attempts in a row that bring nothing new.
const ATTEMPTS: u32 = 3;

/// Why a document is not here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The hub does not have it, or what it has is something else: the document is refused.
    Never(String),
    /// The connection failed: the session ends and begins again at the cursor.
    Lost(String),
}

/// The bytes with this digest.
pub(crate) async fn fetch(
    route: &Route,
    tls: &Arc<ClientConfig>,
    digest: Digest,
    size: u64,
) -> Result<Vec<u8>, Missing> {
    if size > MAX_DOCUMENT as u64 {
        return Err(Missing::Never(format!(
            "expected at most {MAX_DOCUMENT} bytes, found {size}"
        )));
    }
    let mut bytes = Vec::new();
    let mut failures = 0;
    loop {
        let before = bytes.len();
        match attempt(route, tls, digest, &mut bytes).await {
            Ok(()) if document_digest(&bytes) == digest => return Ok(bytes),
            Ok(()) => return Err(Missing::Never("the bytes do not have the digest".to_owned())),
            Err(Missing::Never(detail)) => return Err(Missing::Never(detail)),
            Err(Missing::Lost(detail)) => {
                failures = if bytes.len() > before { 0 } else { failures + 1 };
                if failures >= ATTEMPTS {
                    return Err(Missing::Lost(detail));
                }
                tokio::time::sleep(PAUSE * failures).await;
            }
        }
    }
}

/// Goes on after the bytes that are here, to the end or to the first failure.
async fn attempt(
    route: &Route,
    tls: &Arc<ClientConfig>,
    digest: Digest,
    bytes: &mut Vec<u8>,
) -> Result<(), Missing> {
    let channel: Channel = route
        .connect(tls.clone())
        .await
        .map_err(|error| Missing::Lost(describe(&error)))?
        .channel;
    let request = GetBlobRequest {
        digest: digest.to_vec(),
        offset: bytes.len() as u64,
    };
    let mut client = BulkClient::new(channel).max_decoding_message_size(2 * MAX_FRAME);
    let mut chunks = tokio::time::timeout(SILENCE, client.get_blob(request))
        .await
        .map_err(|_| Missing::Lost("no answer in time".to_owned()))?
        .map_err(|status| broken(&status))?
        .into_inner();
    loop {
        let next = tokio::time::timeout(SILENCE, chunks.message()).await;
        let chunk = match next {
            Err(_) => return Err(Missing::Lost("no byte in time".to_owned())),
            Ok(Err(status)) => return Err(broken(&status)),
            Ok(Ok(None)) => return Err(Missing::Lost("the stream ended early".to_owned())),
            Ok(Ok(Some(chunk))) => chunk,
        };
        if chunk.offset != bytes.len() as u64 || chunk.total > MAX_DOCUMENT as u64 {
            return Err(Missing::Never("a chunk at the wrong place".to_owned()));
        }
        bytes.extend_from_slice(&chunk.data);
        match (bytes.len() as u64).cmp(&chunk.total) {
            std::cmp::Ordering::Less if chunk.data.is_empty() => {
                return Err(Missing::Never("an empty chunk before the end".to_owned()));
            }
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => {
                return Err(Missing::Never("more bytes than announced".to_owned()));
            }
        }
    }
}

fn broken(status: &tonic::Status) -> Missing {
    let detail = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::NotFound | Code::InvalidArgument => Missing::Never(detail),
        _ => Missing::Lost(detail),
    }
}

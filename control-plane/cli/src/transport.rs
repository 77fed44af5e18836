//! The way to a hub: which addresses are accepted, and an HTTP client that hands the token to nobody else.

use crate::failure::{Exit, Failure, Outcome};
use reqwest::Url;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);

/// A client for one hub.
///
/// No redirect is followed, because it could carry the token to another server. Proxies of the environment are for the
/// way out of the network and for TLS, which passes through them unread: what is plain text or stays on this machine
/// takes none.
pub(crate) fn http(base: &Url) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("roadstead/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .referer(false);
    if base.scheme() == "https" && !is_loopback(base) {
        builder
    } else {
        builder.no_proxy()
    }
}

/// Makes the client.
///
/// # Errors
/// The system's trusted roots cannot be read.
pub(crate) fn build(builder: reqwest::ClientBuilder) -> Outcome<reqwest::Client> {
    builder.build().map_err(|error| {
        Failure::new(Exit::Failed, format!("no HTTP client: {error}"))
            .next("check the system's certificates (ca-certificates; SSL_CERT_FILE)")
    })
}

/// The server's base address. A token is sent in the clear to this machine only, unless the context says otherwise.
///
/// # Errors
/// No address of a hub, or one that would give the token away.
pub(crate) fn base_url(text: &str, plain_http: bool) -> Outcome<Url> {
    let bad = |why: &str| {
        Failure::new(Exit::Usage, format!("the server's address {why}")).next("write https://HOST[:PORT]")
    };
    let url = Url::parse(text).map_err(|error| bad(&format!("cannot be read: {error}")))?;
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(bad("has user information, a query or a fragment"));
    }
    if url.host_str().is_none() {
        return Err(bad("names no host"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if plain_http || is_loopback(&url) => Ok(url),
        "http" => Err(
            bad("would send the token in the clear: http is for loopback addresses").next(
                "write https://HOST[:PORT]; where the network itself is trusted, plain_http = true in the context \
                 allows it (roadstead context add --plain-http)",
            ),
        ),
        _ => Err(bad("is neither https nor http")),
    }
}

/// Whether an address is this machine's own. `localhost` is, by RFC 6761 §6.3.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The innermost cause: what the system said.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_the_token_goes_to_https_or_loopback_only() {
        for good in [
            "https://hub.example.com",
            "http://127.0.0.1:8080",
            "http://[::1]:80/base",
            "http://localhost",
        ] {
            base_url(good, false).unwrap();
        }
        for bad in [
            "http://hub.example.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "ftp://localhost",
            "https://a:b@hub",
            "https://hub?t=x",
            "hub",
        ] {
            assert_eq!(base_url(bad, false).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        base_url("http://10.0.0.1", true).unwrap();
        base_url("http://a:b@10.0.0.1", true).unwrap_err();
    }
}

//! The HTTP clients of the process: connections to models and tool servers are kept and shared.
//!
//! The trusted roots of the system cost milliseconds and megabytes, so they are read only when the first `https`
//! address is called. Redirects are never followed: a key must not travel to where an answer points (S69, S76).

use parking_lot::Mutex;
use reqwest::{Client, Url};
use std::{fmt, time::Duration};

/// Time for name look-up, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than what common proxies allow an idle connection, so that few are found closed.
const IDLE: Duration = Duration::from_secs(55);

/// Clients made at first need.
#[derive(Default)]
pub struct HttpClients {
    plain: Mutex<Option<Client>>,
    tls: Mutex<Option<Client>>,
}

impl HttpClients {
    /// The client for addresses like `url`.
    ///
    /// # Errors
    /// The system's trusted roots cannot be read.
    pub fn for_url(&self, url: &Url) -> Result<Client, String> {
        let secure = url.scheme() == "https";
        let mut slot = if secure {
            self.tls.lock()
        } else {
            self.plain.lock()
        };
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let builder = Client::builder()
            .user_agent(concat!("roadstead-engine/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            // A compressed stream arrives when the compressor pleases.
            .no_gzip();
        // An empty list of roots keeps the system's from being read; `http` needs none. Proxies of the environment
        // are for the way out of the network, which plain text does not take.
        let builder = if secure {
            builder
        } else {
            builder.tls_certs_only([]).no_proxy()
        };
        let client = builder.build().map_err(|error| {
            format!(
                "expected the trusted roots of the system for {}: {error}",
                url.scheme()
            )
        })?;
        Ok(slot.insert(client).clone())
    }
}

impl fmt::Debug for HttpClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClients")
    }
}

/// Reads the base URL of a model or a tool server.
///
/// # Errors
/// Not `http` or `https`, or with a user, password, query or fragment: addresses are logged and shown, so nothing
/// secret may stand in them (S30).
pub fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("expected a URL, found {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!(
            "expected a URL with http or https, found {}",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user and password, found one with them: use a secret".to_owned());
    }
    if url.fragment().is_some() {
        return Err("expected a URL without a fragment, found one with it".to_owned());
    }
    Ok(url)
}

/// `scheme://host:port` of a URL, for messages.
#[must_use]
pub fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// What went wrong with a request, without its URL, the causes included.
#[must_use]
pub fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_addresses_with_credentials_are_refused() {
        for bad in [
            "ftp://a/b",
            "nonsense",
            "http://u:p@host/v1",
            "https://k@host",
            "http://h/v1#x",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        assert_eq!(origin(&parse_url("http://h:81/v1/").unwrap()), "http://h:81");
    }

    #[test]
    fn a_client_is_made_once() {
        let clients = HttpClients::default();
        let url = parse_url("http://127.0.0.1:1/v1").unwrap();
        clients.for_url(&url).unwrap();
        assert!(clients.plain.lock().is_some() && clients.tls.lock().is_none());
    }
}

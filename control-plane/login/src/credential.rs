//! Finding the credential in a request: one place where it may stand, and none where it may not.

use http::{HeaderMap, Uri, header};

/// Why a request brings no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCredential {
    /// No `Authorization` header.
    Absent,
    /// An `Authorization` header that is not `Bearer` and one token, or more than one header.
    Malformed,
    /// A token in the query string (S30): refused even beside a good header, so that nobody gets used to it.
    InUrl,
}

/// Parameter names under which programs put credentials into URLs (RFC 6750 §2.3 and habit).
const NAMES: &[&str] = &[
    "access_token",
    "token",
    "api_key",
    "apikey",
    "key",
    "authorization",
    "bearer",
];

/// The bearer token of a request.
pub(crate) fn bearer<'a>(uri: &Uri, headers: &'a HeaderMap) -> Result<&'a str, NoCredential> {
    if uri.query().is_some_and(holds_credential) {
        return Err(NoCredential::InUrl);
    }
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(NoCredential::Absent)?;
    if values.next().is_some() {
        return Err(NoCredential::Malformed);
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(NoCredential::Malformed)?;
    let token = token.trim_start_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ') {
        Ok(token)
    } else {
        Err(NoCredential::Malformed)
    }
}

/// Whether a query string has a credential's name, or one of our tokens anywhere.
fn holds_credential(query: &str) -> bool {
    let named = |pair: &str| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    query.split('&').any(named)
        || ["rst_", "rsj_", "rst%5f", "rst%5F"]
            .iter()
            .any(|p| query.contains(p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn found(uri: &str, values: &[&'static str]) -> Result<String, NoCredential> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer(&uri.parse().unwrap(), &headers).map(str::to_owned)
    }

    #[test]
    fn one_bearer_token_is_taken() {
        assert_eq!(found("/", &["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(found("/?first=3", &["bearer  abc"]), Ok("abc".to_owned()));
    }

    #[test]
    fn anything_else_is_not() {
        assert_eq!(found("/", &[]), Err(NoCredential::Absent));
        for bad in ["Bearer", "Bearer ", "Basic abc", "abc", "Bearer a b", "Bearer  "] {
            assert_eq!(found("/", &[bad]), Err(NoCredential::Malformed), "{bad}");
        }
        assert_eq!(
            found("/", &["Bearer a", "Bearer b"]),
            Err(NoCredential::Malformed)
        );
    }

    #[test]
    fn s30_a_token_in_the_query_string_is_refused_even_beside_a_good_header() {
        for query in [
            "access_token=x",
            "a=1&Token=x",
            "q=rst_abc",
            "api_key",
            "q=rst%5Fabc",
        ] {
            let uri = format!("/graphql?{query}");
            assert_eq!(found(&uri, &["Bearer abc"]), Err(NoCredential::InUrl), "{query}");
        }
    }
}

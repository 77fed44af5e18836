//! The agent card as the outside world sees it: the engine's own addresses lead nowhere from there.
//!
//! The rest of the card is the engine's. Its signatures go, because the document they sign is not the one that is
//! served; addresses of bindings that do not pass the hub (gRPC) go too.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// The bindings that pass the hub, as cards name them.
const BINDINGS: &[&str] = &["JSONRPC", "HTTP+JSON"];

/// Rewrites a card of A2A 1.0 or 0.3 so that it names `url` alone. `None` where the text is not a card.
pub(crate) fn rewrite(text: &[u8], url: &str) -> Option<Vec<u8>> {
    let mut card: Value = serde_json::from_slice(text).ok()?;
    rewrite_value(&mut card, url)?;
    serde_json::to_vec(&card).ok()
}

/// As [`rewrite`], of the `result` of a JSON-RPC answer; an answer without one stays as it is.
pub(crate) fn rewrite_result(text: &[u8], url: &str) -> Option<Vec<u8>> {
    let mut answer: Value = serde_json::from_slice(text).ok()?;
    if let Some(card) = answer.get_mut("result") {
        rewrite_value(card, url)?;
    }
    serde_json::to_vec(&answer).ok()
}

fn rewrite_value(card: &mut Value, url: &str) -> Option<()> {
    let card = card.as_object_mut()?;
    card.get("name")?.as_str()?;
    card.remove("signatures");
    let v1 = card.contains_key("supportedInterfaces");
    for (list, binding) in [
        ("supportedInterfaces", "protocolBinding"),
        ("additionalInterfaces", "transport"),
    ] {
        if let Some(interfaces) = card.get_mut(list) {
            readdress(interfaces.as_array_mut()?, binding, url);
        }
    }
    if card.contains_key("url") {
        card.insert("url".to_owned(), Value::from(url));
        card.insert("preferredTransport".to_owned(), Value::from("JSONRPC"));
    }
    let v03 = card.contains_key("url");
    authenticate(card, v1, v03);
    Some(())
}

/// Keeps the interfaces whose binding passes, at the new address.
fn readdress(interfaces: &mut Vec<Value>, binding: &str, url: &str) {
    interfaces.retain(|interface| {
        let name = interface.get(binding).and_then(Value::as_str).unwrap_or_default();
        BINDINGS.contains(&name)
    });
    for interface in interfaces {
        interface["url"] = Value::from(url);
    }
}

/// Says how a caller proves itself at the hub: by a bearer token (A2A 1.0 §4.5; 0.3 has OpenAPI's shape). A card of
/// both versions says both, each beside the other.
fn authenticate(card: &mut Map<String, Value>, v1: bool, v03: bool) {
    for key in ["security", "securityRequirements", "securitySchemes"] {
        card.remove(key);
    }
    let mut bearer = Map::new();
    if v1 {
        bearer.insert("httpAuthSecurityScheme".to_owned(), json!({"scheme": "Bearer"}));
        let required = json!([{"schemes": {"bearer": {"list": []}}}]);
        card.insert("securityRequirements".to_owned(), required);
    }
    if v03 || !v1 {
        bearer.insert("type".to_owned(), json!("http"));
        bearer.insert("scheme".to_owned(), json!("bearer"));
        card.insert("security".to_owned(), json!([{"bearer": []}]));
    }
    card.insert("securitySchemes".to_owned(), json!({"bearer": bearer}));
}

/// A strong entity tag (RFC 9110 §8.8.3) of the card as it is served.
pub(crate) fn etag(card: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(card)[..16]))
}

/// Whether `If-None-Match` names this tag (RFC 9110 §13.1.2).
pub(crate) fn matches(if_none_match: &str, etag: &str) -> bool {
    let weak = |tag: &str| tag.trim().trim_start_matches("W/") == etag;
    if_none_match.trim() == "*" || if_none_match.split(',').any(weak)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://hub.example/a2a/acme/support/notes";

    #[test]
    fn a_card_names_the_hub_alone() {
        let card = json!({
            "name": "notes", "version": "1",
            "supportedInterfaces": [
                {"url": "http://127.0.0.1:4000/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
                {"url": "http://127.0.0.1:4000/", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
                {"url": "127.0.0.1:4001", "protocolBinding": "GRPC", "protocolVersion": "1.0"},
            ],
            "capabilities": {"streaming": true}, "signatures": [{"protected": "x", "signature": "y"}],
        });
        let rewritten = rewrite(card.to_string().as_bytes(), URL).unwrap();
        let text = String::from_utf8(rewritten.clone()).unwrap();
        assert!(!text.contains("127.0.0.1"), "{text}");
        assert!(!text.contains("signatures"), "{text}");
        let read: a2a::AgentCard = serde_json::from_slice(&rewritten).unwrap();
        assert_eq!(read.supported_interfaces.len(), 2);
        assert!(read.supported_interfaces.iter().all(|i| i.url == URL));
        assert!(read.security_schemes.unwrap().contains_key("bearer"));
    }

    #[test]
    fn s77_a_card_of_0_3_is_rewritten_too() {
        let card = json!({
            "name": "notes", "url": "http://127.0.0.1:4000/", "preferredTransport": "GRPC",
            "additionalInterfaces": [{"url": "http://127.0.0.1:4000/", "transport": "HTTP+JSON"}],
        });
        let rewritten: Value =
            serde_json::from_slice(&rewrite(card.to_string().as_bytes(), URL).unwrap()).unwrap();
        assert_eq!(rewritten["url"], URL);
        assert_eq!(rewritten["additionalInterfaces"][0]["url"], URL);
        assert!(!rewritten.to_string().contains("127.0.0.1"));
    }

    #[test]
    fn s77_a_card_of_both_versions_says_both() {
        let card = json!({
            "name": "notes", "version": "1", "protocolVersion": "0.3.0", "url": "http://127.0.0.1:4000",
            "preferredTransport": "JSONRPC", "capabilities": {"streaming": true},
            "additionalInterfaces": [{"url": "http://127.0.0.1:4000", "transport": "HTTP+JSON"}],
            "supportedInterfaces": [
                {"url": "http://127.0.0.1:4000", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
                {"url": "http://127.0.0.1:4000", "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
            ],
            "securitySchemes": {"evil": {"type": "http", "scheme": "basic"}}, "security": [{"evil": []}],
        });
        let rewritten = rewrite(card.to_string().as_bytes(), URL).unwrap();
        let old: Value = serde_json::from_slice(&rewritten).unwrap();
        assert_eq!(
            (&old["url"], &old["protocolVersion"]),
            (&json!(URL), &json!("0.3.0"))
        );
        assert_eq!(old["security"], json!([{"bearer": []}]));
        let bearer = &old["securitySchemes"]["bearer"];
        assert_eq!(
            (&bearer["type"], &bearer["scheme"]),
            (&json!("http"), &json!("bearer"))
        );
        assert!(
            !old.to_string().contains("127.0.0.1") && !old.to_string().contains("evil"),
            "{old}"
        );
        let new: a2a::AgentCard = serde_json::from_slice(&rewritten).unwrap();
        assert_eq!(new.supported_interfaces.len(), 2);
        assert!(matches!(
            new.security_schemes.unwrap().get("bearer"),
            Some(a2a::SecurityScheme::HttpAuth(_))
        ));
    }

    #[test]
    fn an_extended_card_inside_a_json_rpc_answer_is_rewritten() {
        let answer = json!({"jsonrpc": "2.0", "id": 1, "result": {"name": "n", "url": "http://127.0.0.1:1"}});
        let text = rewrite_result(answer.to_string().as_bytes(), URL).unwrap();
        assert!(!String::from_utf8(text).unwrap().contains("127.0.0.1"));
    }

    #[test]
    fn what_is_no_card_is_not_served() {
        assert_eq!(rewrite(b"<html>", URL), None);
        assert_eq!(rewrite(b"[]", URL), None);
        assert_eq!(rewrite(b"{\"name\": 3}", URL), None);
        assert_eq!(
            rewrite(b"{\"name\": \"n\", \"supportedInterfaces\": 3}", URL),
            None
        );
    }

    #[test]
    fn s78_a_known_tag_is_recognised() {
        let tag = etag(b"card");
        assert!(matches(&tag, &tag));
        assert!(matches(&format!("\"x\", W/{tag}"), &tag));
        assert!(matches("*", &tag));
        assert!(!matches("\"x\"", &tag));
    }
}

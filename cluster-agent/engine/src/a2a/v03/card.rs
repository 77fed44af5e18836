//! The members of 0.3 in a card of 1.0: one card serves both, as the official SDKs have it.
//!
//! A client asks for the card before it knows what is spoken, so that its version header says nothing.

use a2a::{AgentInterface, TRANSPORT_PROTOCOL_HTTP_JSON, TRANSPORT_PROTOCOL_JSONRPC};
use serde_json::{Value, json};

const BINDINGS: [&str; 2] = [TRANSPORT_PROTOCOL_JSONRPC, TRANSPORT_PROTOCOL_HTTP_JSON];

/// The interfaces of 0.3 as 1.0 names them (1.0 §4.4.6).
pub(in crate::a2a) fn interfaces(base: &str) -> impl Iterator<Item = AgentInterface> {
    BINDINGS
        .map(|binding| AgentInterface {
            protocol_version: "0.3".to_owned(),
            ..AgentInterface::new(base, binding)
        })
        .into_iter()
}

/// Adds what a client of 0.3 looks for (0.3 §5.5).
pub(in crate::a2a) fn join(card: &mut Value, base: &str) {
    let Some(members) = card.as_object_mut() else {
        return;
    };
    let interfaces = BINDINGS.map(|transport| json!({"url": base, "transport": transport}));
    for (key, value) in [
        ("protocolVersion", json!("0.3.0")),
        ("url", json!(base)),
        ("preferredTransport", json!(TRANSPORT_PROTOCOL_JSONRPC)),
        ("additionalInterfaces", json!(interfaces)),
        ("supportsAuthenticatedExtendedCard", json!(false)),
        ("security", json!([{"bearer": []}])),
    ] {
        members.insert(key.to_owned(), value);
    }
    // OpenAPI's members beside the one of 1.0: each version reads its own.
    if let Some(Value::Object(bearer)) = card.pointer_mut("/securitySchemes/bearer") {
        bearer.insert("type".to_owned(), json!("http"));
        bearer.insert("scheme".to_owned(), json!("bearer"));
    }
}

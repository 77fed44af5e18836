//! The agent card, made from the running revision: an ETag for each revision, 304 for who has it (S78).

use super::v03;
use crate::revision::{Current, Revision};
use a2a::{
    AgentCapabilities, AgentCard, AgentInterface, AgentSkill, HttpAuthSecurityScheme, SecurityScheme,
    TRANSPORT_PROTOCOL_GRPC, TRANSPORT_PROTOCOL_HTTP_JSON, TRANSPORT_PROTOCOL_JSONRPC,
};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use parking_lot::Mutex;
use roadstead_contract::documents::Mode;
use sha2::{Digest as _, Sha256};
use std::{collections::HashMap, sync::Arc};

/// Cards of the running revision; the last one is kept, since most callers use one name for the engine.
#[derive(Clone, Debug)]
pub(super) struct Cards {
    current: Arc<Current>,
    /// `host:port` where a request names no host.
    address: String,
    last: Arc<Mutex<Option<Kept>>>,
}

#[derive(Clone, Debug)]
struct Kept {
    digest: String,
    host: String,
    body: Bytes,
    etag: HeaderValue,
}

impl Cards {
    pub(super) fn new(current: Arc<Current>, address: String) -> Self {
        Self {
            current,
            address,
            last: Arc::default(),
        }
    }

    fn card(&self, host: &str) -> Option<Kept> {
        let revision = self.current.get()?.revision;
        let mut last = self.last.lock();
        if let Some(kept) = &*last
            && kept.digest == revision.digest
            && kept.host == host
        {
            return Some(kept.clone());
        }
        let base = format!("http://{host}");
        let mut card = serde_json::to_value(card(&revision, &base)).ok()?;
        v03::card::join(&mut card, &base);
        let body = serde_json::to_vec(&card).ok()?;
        let hash = hex::encode(&Sha256::digest(&body)[..16]);
        let etag = HeaderValue::from_str(&format!("\"{hash}\"")).ok()?;
        let kept = Kept {
            digest: revision.digest.clone(),
            host: host.to_owned(),
            body: body.into(),
            etag,
        };
        *last = Some(kept.clone());
        Some(kept)
    }
}

pub(super) fn router(cards: Cards) -> Router {
    Router::new()
        .route(a2a_server::WELL_KNOWN_AGENT_CARD_PATH, get(serve))
        .with_state(cards)
}

async fn serve(State(cards): State<Cards>, headers: HeaderMap) -> Response {
    // The name by which the caller came is the one by which it can come again.
    let asked = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .filter(|h| is_authority(h));
    let Some(kept) = cards.card(asked.unwrap_or(&cards.address)) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let same = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|value| matches(value, &kept.etag));
    let caching = [
        (header::ETAG, kept.etag),
        // A new revision is seen at the next look.
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, no-cache"),
        ),
        (header::VARY, HeaderValue::from_static("host, authorization")),
    ];
    if same {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(header::CONTENT_TYPE, "application/json")], kept.body).into_response()
}

fn matches(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(list), Ok(etag)) = (value.to_str(), etag.to_str()) else {
        return false;
    };
    list.split(',')
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag)
}

fn is_authority(host: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    !host.is_empty() && host.len() <= 255 && host.chars().all(allowed)
}

fn card(revision: &Revision, base: &str) -> AgentCard {
    let (bundle, agent) = (&revision.bundle, &revision.bundle.agent);
    let bindings = [
        TRANSPORT_PROTOCOL_JSONRPC,
        TRANSPORT_PROTOCOL_HTTP_JSON,
        TRANSPORT_PROTOCOL_GRPC,
    ];
    let bearer = SecurityScheme::HttpAuth(HttpAuthSecurityScheme {
        scheme: "Bearer".to_owned(),
        description: None,
        bearer_format: None,
    });
    AgentCard {
        name: bundle.name.to_string(),
        description: agent.description.clone(),
        version: bundle.generation.to_string(),
        supported_interfaces: bindings
            .map(|binding| AgentInterface::new(base, binding))
            .into_iter()
            .chain(v03::card::interfaces(base))
            .collect(),
        capabilities: AgentCapabilities {
            streaming: Some(true),
            push_notifications: Some(false),
            extensions: None,
            extended_agent_card: Some(false),
        },
        default_input_modes: modes(&agent.input),
        default_output_modes: modes(&agent.output),
        skills: skills(revision),
        provider: None,
        documentation_url: None,
        icon_url: None,
        security_schemes: Some(HashMap::from([("bearer".to_owned(), bearer)])),
        security_requirements: Some(vec![HashMap::from([("bearer".to_owned(), Vec::new())])]),
        signatures: None,
    }
}

fn modes(modes: &[Mode]) -> Vec<String> {
    let name = |mode: &Mode| match mode {
        Mode::Text => "text/plain",
        Mode::File => "application/octet-stream",
    };
    modes.iter().map(|mode| name(mode).to_owned()).collect()
}

/// What the agent's document describes: itself, and the agents it can hand work to.
fn skills(revision: &Revision) -> Vec<AgentSkill> {
    let bundle = &revision.bundle;
    let own = skill(bundle.name.to_string(), bundle.agent.description.clone());
    let others = bundle.agent.agents.iter().map(|agent| {
        let name = agent.name.to_string();
        let description = format!("Hands work to the agent {name}.");
        skill(name, description)
    });
    std::iter::once(own).chain(others).collect()
}

fn skill(name: String, description: String) -> AgentSkill {
    AgentSkill {
        id: name.clone(),
        name,
        description,
        tags: Vec::new(),
        examples: None,
        input_modes: None,
        output_modes: None,
        security_requirements: None,
    }
}

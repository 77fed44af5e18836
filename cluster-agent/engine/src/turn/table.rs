//! What a model may call in one revision, by the names that it sees.
//!
//! This is where the allow-list counts: a name that is not in the table is not called, whatever the model says (S79).

use super::results::MOST;
use crate::{
    journal::{Change, Journal},
    model::ToolSchema,
    revision::Revision,
    tools::{Listing, ToolInfo},
};
use roadstead_contract::documents::{Questions, ToolUse};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, OnceLock},
};

/// In [`Offered::server`] of a sub-agent: no reference to a tool server looks like it.
pub(crate) const AGENT: &str = "agent:";
/// The same of a question to the person.
pub(crate) const PERSON: &str = "person:";
/// The tool that asks the person, as the model sees it; a server's tool of that name gets another.
const ASK_USER: &str = "ask_user";
/// The same of the engine's own tool for what a result has beyond its beginning.
pub(crate) const RESULTS: &str = "result:";
/// That tool, as the model sees it; a server's tool of that name gets another.
pub(crate) const READ_RESULT: &str = "read_result";
/// The argument of [`ASK_USER`] with what is asked.
const QUESTION: &str = "question";
/// Longest question, in characters.
const MAX_QUESTION: usize = 4096;

/// What the model reads in place of a description that nobody approved.
const CHANGED: &str = "This tool's description has changed and waits for approval.";
/// What a person is shown of a changed tool, in bytes.
const SHOWN_DESCRIPTION: usize = 4 * 1024;
const SHOWN_PARAMETERS: usize = 16 * 1024;

/// Something the model may call.
pub(crate) struct Offered {
    /// As the model sees it.
    pub(crate) name: String,
    /// The reference of a tool server, [`AGENT`], [`PERSON`] or [`RESULTS`].
    pub(crate) server: String,
    /// As the server names it; of a sub-agent its reference.
    pub(crate) tool: String,
    /// A second call with the same arguments does no more than the first, and that may be believed.
    pub(crate) repeatable: bool,
    /// A person decides each call.
    pub(crate) approve: bool,
    /// Its description or schema is not the one that was approved: this one is to be.
    pub(crate) changed: Option<Change>,
    /// What arguments are held to.
    pub(crate) schema: Arc<Value>,
    validator: OnceLock<Result<jsonschema::Validator, String>>,
}

impl Offered {
    /// Why the arguments do not fit, for the model; at most five findings.
    pub(crate) fn check(&self, arguments: &Value) -> Result<(), String> {
        let compiled = self.validator.get_or_init(|| {
            // Nothing is fetched: a schema that refers elsewhere does not compile (S72).
            jsonschema::validator_for(&self.schema).map_err(|e| e.to_string())
        });
        let validator = match compiled {
            Ok(validator) => validator,
            Err(why) => {
                return Err(format!(
                    "the tool's own schema is not valid, so it cannot be called: {why}"
                ));
            }
        };
        let findings: Vec<String> = validator
            .iter_errors(arguments)
            .take(5)
            .map(|e| {
                let path = e.instance_path().to_string();
                let at = if path.is_empty() {
                    "the arguments"
                } else {
                    path.as_str()
                };
                format!("at {at}: {e}")
            })
            .collect();
        if findings.is_empty() {
            Ok(())
        } else {
            Err(findings.join("; "))
        }
    }

    /// `server/tool`, as run records and spans name it.
    pub(crate) fn label(&self) -> String {
        label(&self.server, &self.tool)
    }
}

/// `server/tool`; `agent/name` of a sub-agent, `person/ask_user` of a question, `result/read_result`.
pub(crate) fn label(server: &str, tool: &str) -> String {
    match server {
        AGENT => format!("agent/{tool}"),
        PERSON => format!("person/{tool}"),
        RESULTS => format!("result/{tool}"),
        server => format!("{server}/{tool}"),
    }
}

/// What a call of `ask_user` asks.
pub(crate) fn question(arguments: &Value) -> &str {
    arguments
        .get(QUESTION)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered")
            .field("name", &self.name)
            .field("tool", &self.label())
            .finish_non_exhaustive()
    }
}

/// Everything on offer.
#[derive(Debug)]
pub(crate) struct ToolTable {
    /// What it was made of: another listing makes another table.
    listing: Arc<Listing>,
    by_name: HashMap<String, Arc<Offered>>,
    pub(crate) schemas: Arc<[ToolSchema]>,
}

impl ToolTable {
    /// Nothing on offer.
    pub(crate) fn empty() -> Self {
        Self {
            listing: Arc::default(),
            by_name: HashMap::new(),
            schemas: Arc::new([]),
        }
    }

    /// The table of what `listing` offers to the agent of `revision`; the same one as before if nothing changed.
    pub(crate) async fn of(revision: &Revision, listing: Arc<Listing>, journal: &Journal) -> Arc<Self> {
        if let Some(table) = &*revision.table.lock()
            && Arc::ptr_eq(&table.listing, &listing)
        {
            return Arc::clone(table);
        }
        let mut changed = HashSet::new();
        for (server, tool, digest) in pinned(&listing) {
            // A journal that does not answer counts as a change: fail closed (S80).
            let held = journal
                .pin(server.clone(), tool.clone(), digest.clone(), false)
                .await;
            if held.as_ref() != Ok(&digest) {
                changed.insert((server, tool));
            }
        }
        let table = Arc::new(Self::build(revision, listing, &changed));
        *revision.table.lock() = Some(Arc::clone(&table));
        table
    }

    fn build(revision: &Revision, listing: Arc<Listing>, changed: &HashSet<(String, String)>) -> Self {
        let uses: BTreeMap<String, &ToolUse> = revision
            .bundle
            .agent
            .tools
            .iter()
            .map(|t| (t.server.to_string(), t))
            .collect();
        let allowed = listing.tools.iter().filter_map(|info| {
            let rule = uses.get(&info.server)?;
            rule.allows(&info.name).then_some((info, *rule))
        });
        let mut table = Self {
            listing: Arc::clone(&listing),
            by_name: HashMap::new(),
            schemas: Arc::new([]),
        };
        let mut schemas = Vec::new();
        if revision.bundle.agent.questions == Questions::Ask {
            table.offer_questions(&mut schemas);
        }
        for agent in &revision.bundle.agent.agents {
            table.offer_agent(&mut schemas, &agent.name.to_string());
        }
        let allowed: Vec<_> = allowed.collect();
        for (info, rule) in &allowed {
            let twice = allowed
                .iter()
                .filter(|(other, _)| other.name == info.name)
                .count()
                > 1;
            let wanted = if twice || table.by_name.contains_key(&info.name) {
                format!("{}__{}", info.server, info.name)
            } else {
                info.name.clone()
            };
            let key = (info.server.clone(), info.name.clone());
            table.offer_tool(&mut schemas, &wanted, info, rule, changed.contains(&key));
        }
        table.schemas = schemas.into();
        table
    }

    fn offer_tool(
        &mut self,
        schemas: &mut Vec<ToolSchema>,
        wanted: &str,
        info: &ToolInfo,
        rule: &ToolUse,
        changed: bool,
    ) {
        let changed = changed.then(|| Change {
            digest: info.digest.clone(),
            description: cut(&info.description, SHOWN_DESCRIPTION),
            parameters: cut(&info.input_schema.to_string(), SHOWN_PARAMETERS),
        });
        let offered = Offered {
            name: self.free_name(wanted),
            server: info.server.clone(),
            tool: info.name.clone(),
            repeatable: info.trusted && (info.read_only || info.idempotent),
            approve: rule.needs_approval(&info.name),
            changed,
            schema: Arc::clone(&info.input_schema),
            validator: OnceLock::new(),
        };
        // Nothing that nobody approved reaches the model: a schema is as good a place for instructions as a description.
        let (description, parameters) = match offered.changed {
            Some(_) => (CHANGED.to_owned(), Arc::new(json!({"type": "object"}))),
            None => (info.description.clone(), Arc::clone(&info.input_schema)),
        };
        self.add_as(schemas, offered, description, parameters);
    }

    fn offer_agent(&mut self, schemas: &mut Vec<ToolSchema>, reference: &str) {
        let offered = Offered {
            name: self.free_name(&format!("agent_{reference}")),
            server: AGENT.to_owned(),
            tool: reference.to_owned(),
            // The call's message id makes it idempotent, and engines are our own.
            repeatable: true,
            approve: false,
            changed: None,
            schema: Arc::new(json!({
                "type": "object",
                "properties": {"message": {"type": "string", "description": "What to ask or tell the agent."}},
                "required": ["message"],
                "additionalProperties": false
            })),
            validator: OnceLock::new(),
        };
        self.add(
            schemas,
            offered,
            format!("Hands a task to the agent {reference} and returns its answer."),
        );
    }

    fn offer_questions(&mut self, schemas: &mut Vec<ToolSchema>) {
        let offered = Offered {
            name: ASK_USER.to_owned(),
            server: PERSON.to_owned(),
            tool: ASK_USER.to_owned(),
            repeatable: true,
            approve: false,
            changed: None,
            schema: Arc::new(json!({
                "type": "object",
                "properties": {QUESTION: {"type": "string", "pattern": "\\S", "maxLength": MAX_QUESTION,
                    "description": "What you need to know, in words that can be answered by themselves."}},
                "required": [QUESTION],
                "additionalProperties": false
            })),
            validator: OnceLock::new(),
        };
        let description = "Asks the person for whom you work, and returns their answer. They may take hours: ask only \
                           what you cannot find out or decide yourself, and everything at once.";
        self.add(schemas, offered, description.to_owned());
    }

    /// The same for a task that has nobody to ask.
    pub(crate) fn without_questions(&self) -> Self {
        let asks = |name: &str| self.by_name.get(name).is_some_and(|o| o.server == PERSON);
        let schemas = self.schemas.iter().filter(|s| !asks(&s.name)).cloned();
        let others = self.by_name.iter().filter(|(_, o)| o.server != PERSON);
        Self {
            listing: Arc::clone(&self.listing),
            schemas: schemas.collect(),
            by_name: others.map(|(name, o)| (name.clone(), Arc::clone(o))).collect(),
        }
    }

    /// The same, and the tool that reads on in results that were cut.
    pub(crate) fn with_results(&self) -> Self {
        let mut schemas = self.schemas.to_vec();
        let mut table = Self {
            listing: Arc::clone(&self.listing),
            by_name: self.by_name.clone(),
            schemas: Arc::new([]),
        };
        let offered = Offered {
            name: READ_RESULT.to_owned(),
            server: RESULTS.to_owned(),
            tool: READ_RESULT.to_owned(),
            repeatable: true,
            approve: false,
            changed: None,
            schema: Arc::new(json!({
                "type": "object",
                "properties": {
                    "reference": {"type": "string", "maxLength": 64,
                        "description": "As the result that was cut says."},
                    "offset": {"type": "integer", "minimum": 0, "description": "First byte to read; default 0."},
                    "length": {"type": "integer", "minimum": 1, "maximum": MOST,
                        "description": "Bytes to read at most; as many as go by default."}
                },
                "required": ["reference"],
                "additionalProperties": false
            })),
            validator: OnceLock::new(),
        };
        let description = "Reads on in a tool's result of which only the beginning was shown.";
        table.add(&mut schemas, offered, description.to_owned());
        table.schemas = schemas.into();
        table
    }

    fn add(&mut self, schemas: &mut Vec<ToolSchema>, offered: Offered, description: String) {
        let parameters = Arc::clone(&offered.schema);
        self.add_as(schemas, offered, description, parameters);
    }

    fn add_as(
        &mut self,
        schemas: &mut Vec<ToolSchema>,
        offered: Offered,
        description: String,
        parameters: Arc<Value>,
    ) {
        schemas.push(ToolSchema {
            name: offered.name.clone(),
            description,
            parameters,
        });
        self.by_name.insert(offered.name.clone(), Arc::new(offered));
    }

    /// A name in the form that models take (`^[a-zA-Z0-9_-]{1,64}$`), not given yet.
    fn free_name(&self, wanted: &str) -> String {
        let fits = |c: char| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        };
        let base: String = wanted.chars().take(60).map(fits).collect();
        let numbered = (2..).map(|n| format!("{base}_{n}"));
        let free = std::iter::once(base.clone())
            .chain(numbered)
            .find(|name| name != READ_RESULT && !self.by_name.contains_key(name));
        free.unwrap_or(base)
    }

    /// What the model calls `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Offered>> {
        self.by_name.get(name)
    }

    /// The same by where it leads.
    pub(crate) fn find(&self, server: &str, tool: &str) -> Option<&Arc<Offered>> {
        self.by_name
            .values()
            .find(|o| o.server == server && o.tool == tool)
    }

    /// The servers whose tools are not known at the moment, for the model; `None` if there are none.
    pub(crate) fn missing(&self) -> Option<String> {
        let names: Vec<&str> = self
            .listing
            .unavailable
            .iter()
            .map(|u| u.server.as_str())
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "These tool servers cannot be reached now, so their tools are not on offer: {}. If the task needs them, say so.",
                names.join(", ")
            )
        })
    }

    /// Every name, sorted, for the error that tells a model what there is.
    pub(crate) fn names(&self) -> String {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.join(", ")
    }
}

/// Server, name and digest of the tools whose description and schema are held to what was first seen.
fn pinned(listing: &Listing) -> Vec<(String, String, String)> {
    let pinned = listing.tools.iter().filter(|t| t.pinned);
    pinned
        .map(|t| (t.server.clone(), t.name.clone(), t.digest.clone()))
        .collect()
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let shown = &text[..text.floor_char_boundary(most)];
    format!("{shown} [cut: {} of {} bytes shown]", shown.len(), text.len())
}

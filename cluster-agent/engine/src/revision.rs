//! A revision: everything a task needs to run, made once from a bundle and swapped in as one pointer.
//!
//! Tasks hold the revision they began on, so a swap never changes what runs. A bundle that does not load leaves the
//! one before in place and says why.

use crate::{
    model::{Model, ModelFactory},
    secrets::Secrets,
    tools::{ToolFactory, Toolbox},
    turn::table::ToolTable,
};
use parking_lot::{Mutex, RwLock};
use roadstead_contract::{
    bundle::{Bundle, unpriced},
    control::Trust,
    documents::{Mode, render_instructions},
};
use std::{fmt::Debug, sync::Arc};

/// What a task runs on.
#[derive(Debug)]
pub struct Revision {
    pub bundle: Bundle,
    /// SHA-256 of the bundle, in hex.
    pub digest: String,
    /// The instructions, rendered.
    pub system: String,
    /// In order of preference; never empty.
    pub models: Vec<Arc<dyn Model>>,
    pub toolbox: Arc<dyn Toolbox>,
    /// Of the agent's output schema.
    pub output: Option<OutputSchema>,
    /// The table of the last listing; made anew when the listing changes.
    pub(crate) table: Mutex<Option<Arc<ToolTable>>>,
}

/// A JSON Schema that answers are held to.
#[derive(Debug)]
pub struct OutputSchema {
    pub schema: Arc<serde_json::Value>,
    pub validator: jsonschema::Validator,
}

/// What makes revisions: lives as long as the process and keeps the connections.
#[derive(Clone, Debug)]
pub struct Factories {
    pub models: Arc<dyn ModelFactory>,
    pub tools: Arc<dyn ToolFactory>,
}

impl Revision {
    /// Makes a revision of a bundle. Connects to nothing.
    ///
    /// # Errors
    /// Why it does not load: document, path, what was expected and what was found.
    pub fn load(bundle: Bundle, secrets: &Secrets, factories: &Factories) -> Result<Self, String> {
        let system = render_instructions(&bundle).map_err(|e| format!("spec.instructions.template: {e}"))?;
        let models = factories
            .models
            .load(&bundle, secrets)
            .map_err(|e| e.to_string())?;
        if models.is_empty() {
            return Err("spec.model: expected at least one model, found none".to_owned());
        }
        let toolbox = factories
            .tools
            .load(&bundle, secrets)
            .map_err(|e| e.to_string())?;
        let output = bundle
            .agent
            .output_schema
            .as_ref()
            .map(output_schema)
            .transpose()?;
        let unmeasured = unpriced(&bundle.agent, |model| bundle.models.get(&model.to_string()));
        if !unmeasured.is_empty() {
            let each: Vec<String> = unmeasured.iter().map(ToString::to_string).collect();
            return Err(each.join("; "));
        }
        let digest = bundle.digest();
        Ok(Self {
            bundle,
            digest,
            system,
            models,
            toolbox,
            output,
            table: Mutex::new(None),
        })
    }

    /// Whether callers may send files.
    #[must_use]
    pub fn takes_files(&self) -> bool {
        self.bundle.agent.input.contains(&Mode::File)
    }
}

fn output_schema(schema: &serde_json::Value) -> Result<OutputSchema, String> {
    let validator = jsonschema::validator_for(schema).map_err(|e| format!("spec.outputSchema: {e}"))?;
    Ok(OutputSchema {
        schema: Arc::new(schema.clone()),
        validator,
    })
}

/// The revision that new tasks begin on, with the trust that came with it.
#[derive(Debug, Default)]
pub struct Current(RwLock<Option<Serving>>);

/// A revision and whose calls are accepted for it.
#[derive(Clone, Debug)]
pub struct Serving {
    pub revision: Arc<Revision>,
    pub trust: Arc<Trust>,
    /// For revisions of tasks that began before a restart: they are made again with today's values.
    pub secrets: Secrets,
}

impl Current {
    /// What serves now; `None` before the first revision.
    #[must_use]
    pub fn get(&self) -> Option<Serving> {
        self.0.read().clone()
    }

    /// From the next task on.
    pub fn set(&self, serving: Serving) {
        *self.0.write() = Some(serving);
    }
}

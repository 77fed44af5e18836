//! The toolbox of an agent without tool servers, and the refusal of one that has some.

use crate::{
    model::LoadError,
    secrets::Secrets,
    tools::{Listing, ToolError, ToolFactory, ToolRequest, ToolResult, Toolbox},
};
use async_trait::async_trait;
use roadstead_contract::bundle::Bundle;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Makes empty toolboxes.
#[derive(Clone, Copy, Debug, Default)]
pub struct WithoutTools;

impl ToolFactory for WithoutTools {
    fn load(&self, bundle: &Bundle, _: &Secrets) -> Result<Arc<dyn Toolbox>, LoadError> {
        if bundle.agent.tools.is_empty() {
            return Ok(Arc::new(*self));
        }
        let reason = "expected no tools: tool servers are not built into this engine".to_owned();
        Err(LoadError {
            path: "Agent: spec.tools".to_owned(),
            reason,
        })
    }
}

#[async_trait]
impl Toolbox for WithoutTools {
    async fn list(&self, _: Instant) -> Arc<Listing> {
        Arc::default()
    }
    async fn call(&self, call: ToolRequest, _: CancellationToken) -> Result<ToolResult, ToolError> {
        Err(ToolError::NotSent(format!(
            "there is no tool {}/{}",
            call.server, call.tool
        )))
    }
}

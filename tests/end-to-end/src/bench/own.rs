//! What an engine asks of its model server and its tool server, asked without it: their own time, which is taken from
//! the whole.

use crate::{alone::Alone, call::Caller};
use serde_json::{Value, json};

/// The bodies of one turn's requests.
pub(crate) struct Own {
    caller: Caller,
    tools: Caller,
    completions: String,
    server: String,
}

/// What the user says to make the model call the tool.
pub(crate) fn asks_tool(n: usize) -> (String, String) {
    (
        format!("call bench/echo {{\"text\": \"hello {n}\"}}"),
        format!("hello {n}"),
    )
}

impl Own {
    pub(crate) fn new(alone: &Alone) -> anyhow::Result<Self> {
        let tools = Caller::new()
            .with("accept", "application/json, text/event-stream")?
            .with("mcp-protocol-version", "2026-07-28")?
            .with("mcp-method", "tools/call")?
            .with("mcp-name", "echo")?;
        Ok(Self {
            caller: Caller::new(),
            tools,
            completions: format!("{}/chat/completions", alone.model),
            server: alone.tools.clone(),
        })
    }

    /// One model call.
    pub(crate) async fn plain(&self, text: &str) -> anyhow::Result<()> {
        self.complete(&[json!({"role": "user", "content": text})], None)
            .await
    }

    /// Model, tool, model.
    pub(crate) async fn with_tool(&self, n: usize) -> anyhow::Result<()> {
        let (text, said) = asks_tool(n);
        let arguments = json!({"text": said});
        let user = json!({"role": "user", "content": text});
        let offered = json!([{"type": "function", "function": {"name": "bench__echo",
            "description": "Says the text again", "parameters": {"type": "object", "required": ["text"],
            "properties": {"text": {"type": "string", "description": "What to say again."}}}}}]);
        self.complete(std::slice::from_ref(&user), Some(&offered)).await?;
        self.call(&arguments).await?;
        let called = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_1_0",
            "type": "function", "function": {"name": "bench__echo", "arguments": arguments.to_string()}}]});
        let result = json!({"role": "tool", "tool_call_id": "call_1_0", "content": said});
        self.complete(&[user, called, result], Some(&offered)).await
    }

    async fn complete(&self, messages: &[Value], tools: Option<&Value>) -> anyhow::Result<()> {
        let mut all = vec![json!({"role": "system", "content": "Answer."})];
        all.extend_from_slice(messages);
        let mut body = json!({"model": "echo", "stream": true, "stream_options": {"include_usage": true},
                              "messages": all});
        if let Some(tools) = tools {
            body["tools"] = tools.clone();
        }
        self.caller
            .post(&self.completions, body.to_string().into_bytes())
            .await?;
        Ok(())
    }

    async fn call(&self, arguments: &Value) -> anyhow::Result<()> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                      "io.modelcontextprotocol/clientCapabilities": {}},
            "name": "echo", "arguments": arguments}});
        let answer = self
            .tools
            .post(&self.server, body.to_string().into_bytes())
            .await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        anyhow::ensure!(
            answer["result"]["content"][0]["text"] == arguments["text"],
            "{answer}"
        );
        Ok(())
    }
}

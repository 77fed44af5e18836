//! A tool server of one tool that costs next to nothing, for benchmarks: MCP over streamable HTTP.

use anyhow::Context as _;
use clap::Parser;
use rmcp::{
    ServerHandler,
    handler::server::wrapper::Parameters,
    model::{Implementation, ServerCapabilities, ServerConfig},
    schemars, tool, tool_handler, tool_router,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use std::net::SocketAddr;

/// Serves the tool `echo` at `/mcp`.
#[derive(Debug, Parser)]
#[command(name = "roadstead-tool-server", version)]
struct Args {
    /// Address to serve on.
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Clone, Debug)]
struct Echo;

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Said {
    /// What to say again.
    text: String,
}

#[tool_router]
impl Echo {
    #[tool(
        description = "Says the text again",
        annotations(read_only_hint = true, idempotent_hint = true)
    )]
    async fn echo(&self, Parameters(Said { text }): Parameters<Said>) -> String {
        text
    }
}

#[tool_handler]
impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new("roadstead-tool-server", "1"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true);
    let service = StreamableHttpService::new(|| Ok(Echo), LocalSessionManager::default().into(), config);
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("binding {}", args.listen))?;
    let app = axum::Router::new().nest_service("/mcp", service);
    tokio::select! {
        ended = axum::serve(listener, app) => Ok(ended?),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

//! The scripted model server as a program.

use anyhow::Context as _;
use clap::Parser;
use roadstead_model_server::{ModelServer, Otherwise, Script};
use std::{net::SocketAddr, path::PathBuf};

/// Serves scripted answers in the wire formats of OpenAI, Anthropic and Ollama.
#[derive(Debug, Parser)]
#[command(name = "roadstead-model-server", version)]
struct Args {
    /// Address to serve on; port 0 takes a free one. The address is printed once it serves.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Script in YAML or JSON; without it the user's text says what the model does.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Say the user's text again, quickly; for benchmarks.
    #[arg(long, conflicts_with = "script")]
    echo: bool,
    /// File whose first line is the key that requests must carry.
    #[arg(long)]
    key_file: Option<PathBuf>,
}

#[tokio::main]
#[expect(
    clippy::print_stdout,
    reason = "the address on standard output is the program's interface"
)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut script = match &args.script {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Script::parse(&text).with_context(|| format!("in {}", path.display()))?
        }
        None => Script::default(),
    };
    if args.echo {
        script.otherwise = Otherwise::Echo;
    }
    if let Some(path) = &args.key_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        script.key = text.lines().next().map(|line| line.trim().to_owned());
    }
    let server = ModelServer::listen(args.listen, script)
        .await
        .with_context(|| format!("binding {}", args.listen))?;
    println!("listening on {}", server.url());
    tokio::select! {
        ended = server.run() => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

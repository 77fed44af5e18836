//! A scripted model server that speaks the real wire formats, for tests, examples and benchmarks.
//!
//! OpenAI chat completions, Anthropic messages and Ollama's own chat, streamed and whole, with the faults that
//! providers show. It refuses what they refuse (a tool result without its call, a bad tool name, a missing
//! `max_tokens`), so a client that passes here writes proper requests.

mod echo;
pub mod prompt;
pub mod request;
pub mod script;
mod server;
pub mod wire;

pub use request::Api;
pub use script::{Fault, Otherwise, Reply, Rule, Script, Then, ToolCall, Usage, When};
pub use server::{ModelServer, Recorded};

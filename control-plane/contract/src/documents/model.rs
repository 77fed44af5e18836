//! `kind: Model`.

use super::{Currency, Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A provider, a model name and its options, with a secret reference for the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSpec {
    /// Who serves the model: openai, openaiCompatible, anthropic, ollama; the others are not available yet.
    pub provider: Provider,
    /// The model's name as the provider knows it.
    pub model: String,
    /// Base URL; the provider's own where it is left out. Required by `openaiCompatible`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The provider's key, by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretRef>,
    /// How the model answers.
    #[serde(default)]
    pub options: ModelOptions,
    /// Sent with each request; never for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What tokens cost, for `limits.cost` and the run records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
}

/// Who serves the model. What is not built yet is refused by name when the document is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Provider {
    Openai,
    AzureOpenai,
    Anthropic,
    Gemini,
    VertexGemini,
    VertexAnthropic,
    Bedrock,
    Ollama,
    OpenaiCompatible,
}

impl Provider {
    /// Whether the engine can speak to this provider.
    #[must_use]
    pub const fn is_available(self) -> bool {
        matches!(
            self,
            Self::Openai | Self::OpenaiCompatible | Self::Anthropic | Self::Ollama
        )
    }
}

/// Where a key is: a SecretBinding's key, or (local runtime only) an environment variable of the cluster agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretRef {
    Binding(BindingKey),
    Env(EnvKey),
}

/// A key of a SecretBinding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindingKey {
    /// Name of the SecretBinding.
    pub secret: super::Name,
    /// The key in it.
    pub key: String,
}

/// An environment variable of the cluster agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvKey {
    /// Its name.
    pub env: String,
}

/// Every option is sent to the provider, or refused when the document is checked; none is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModelOptions {
    /// How much chance decides: 0 to 2 (anthropic: to 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Only the likeliest words up to this sum of probability: above 0, at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// For answers that repeat, as far as the provider can; anthropic has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Texts that end an answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Longest answer of one model call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// How much a reasoning model should think.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Of one model call, from request to the end of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// How much a reasoning model should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ReasoningEffort {
    Minimal,
    Low,
    Medium,
    High,
}

/// Price of a million tokens, as decimal strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prices {
    pub currency: Currency,
    pub input_per_million: super::scalars::Decimal,
    pub output_per_million: super::scalars::Decimal,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_per_million: Option<super::scalars::Decimal>,
}

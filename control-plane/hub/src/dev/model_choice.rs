//! Which model `roadstead-hub dev` gives to the examples.
//!
//! In this order: `ROADSTEAD_MODEL_URL` (OpenAI-compatible, with `ROADSTEAD_MODEL_KEY` and `ROADSTEAD_MODEL_NAME`),
//! `OPENAI_API_KEY`, `ANTHROPIC_API_KEY`, an Ollama on loopback, and last the scripted demo model. Keys are never read
//! here: the document refers to the environment variable, and the cluster agent hands its value to the engine.

use serde_json::{Value, json};
use std::time::Duration;

/// The name of the Model document that dev writes and the examples refer to.
pub(crate) const DOCUMENT: &str = "default";
const OLLAMA: &str = "http://127.0.0.1:11434";

/// The model that was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    Url { url: String, name: String, key: bool },
    OpenAi { name: String },
    Anthropic { name: String },
    Ollama { name: String },
    Demo,
}

impl Choice {
    /// Looks at the environment (through `env`), then for an Ollama with at least one model.
    ///
    /// # Errors
    /// `ROADSTEAD_MODEL_URL` that is not an http(s) URL, or stands without `ROADSTEAD_MODEL_NAME` while its server
    /// names no model.
    pub(crate) async fn find(env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let name = env("ROADSTEAD_MODEL_NAME");
        if let Some(url) = env("ROADSTEAD_MODEL_URL") {
            anyhow::ensure!(
                url.starts_with("http://") || url.starts_with("https://"),
                "ROADSTEAD_MODEL_URL: expected an http:// or https:// URL (as http://127.0.0.1:8000/v1), found {url:?}"
            );
            let name = match name {
                Some(name) => name,
                None => first_model(&url).await?,
            };
            return Ok(Self::Url {
                url,
                name,
                key: env("ROADSTEAD_MODEL_KEY").is_some(),
            });
        }
        if env("OPENAI_API_KEY").is_some() {
            return Ok(Self::OpenAi {
                name: name.unwrap_or_else(|| "gpt-5-mini".into()),
            });
        }
        if env("ANTHROPIC_API_KEY").is_some() {
            return Ok(Self::Anthropic {
                name: name.unwrap_or_else(|| "claude-haiku-4-5".into()),
            });
        }
        if let Some(name) = ollama_model(name).await {
            return Ok(Self::Ollama { name });
        }
        Ok(Self::Demo)
    }

    /// The Model document for this choice; `demo_url` is where the scripted model serves.
    #[must_use]
    pub(crate) fn document(&self, project: &str, demo_url: &str) -> Value {
        let spec = match self {
            Self::Url { url, name, key } => {
                let mut spec = json!({"provider": "openaiCompatible", "model": name, "endpoint": url});
                if *key {
                    spec["key"] = json!({"env": "ROADSTEAD_MODEL_KEY"});
                }
                spec
            }
            Self::OpenAi { name } => {
                json!({"provider": "openai", "model": name, "key": {"env": "OPENAI_API_KEY"}})
            }
            Self::Anthropic { name } => {
                json!({"provider": "anthropic", "model": name, "key": {"env": "ANTHROPIC_API_KEY"}})
            }
            Self::Ollama { name } => json!({"provider": "ollama", "model": name, "endpoint": OLLAMA}),
            Self::Demo => json!({"provider": "openaiCompatible", "model": super::demo_model::NAME,
                                 "endpoint": demo_url}),
        };
        json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Model",
               "metadata": {"name": DOCUMENT, "project": project}, "spec": spec})
    }

    /// One line for the person who started dev.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Url { url, name, .. } => format!("{name} at {url} (ROADSTEAD_MODEL_URL)"),
            Self::OpenAi { name } => format!("{name} of OpenAI (OPENAI_API_KEY)"),
            Self::Anthropic { name } => format!("{name} of Anthropic (ANTHROPIC_API_KEY)"),
            Self::Ollama { name } => format!("{name} of the Ollama at {OLLAMA}"),
            Self::Demo => "the scripted demo model, which can only drive the examples; for a real one set \
                           ROADSTEAD_MODEL_URL, OPENAI_API_KEY or ANTHROPIC_API_KEY, or start an Ollama"
                .to_owned(),
        }
    }
}

fn client(timeout: Duration) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().timeout(timeout).build()?)
}

async fn first_model(url: &str) -> anyhow::Result<String> {
    let hint = "set ROADSTEAD_MODEL_NAME to the model's name";
    let listed = client(Duration::from_secs(3))?
        .get(format!("{}/models", url.trim_end_matches('/')))
        .send()
        .await;
    let listed: Value = match listed.and_then(reqwest::Response::error_for_status) {
        Ok(answer) => answer.json().await?,
        Err(error) => anyhow::bail!(
            "ROADSTEAD_MODEL_URL does not list its models ({}): {hint}",
            error.without_url()
        ),
    };
    let first = listed["data"][0]["id"].as_str().map(str::to_owned);
    first.ok_or_else(|| anyhow::anyhow!("ROADSTEAD_MODEL_URL lists no model: {hint}"))
}

/// The wanted model, or the first that an Ollama on loopback has; `None` when none answers within half a second.
async fn ollama_model(wanted: Option<String>) -> Option<String> {
    let tags: Value = client(Duration::from_millis(500))
        .ok()?
        .get(format!("{OLLAMA}/api/tags"))
        .send()
        .await
        .ok()?
        .json()
        .await
        .ok()?;
    wanted.or_else(|| tags["models"][0]["name"].as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    async fn find(vars: &[(&str, &str)]) -> anyhow::Result<Choice> {
        let vars: HashMap<String, String> = vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Choice::find(|name| vars.get(name).cloned()).await
    }

    #[tokio::test]
    async fn an_own_url_wins_over_keys() -> anyhow::Result<()> {
        let vars = [
            ("OPENAI_API_KEY", "k"),
            ("ROADSTEAD_MODEL_URL", "http://127.0.0.1:9/v1"),
            ("ROADSTEAD_MODEL_NAME", "m"),
        ];
        let expected = Choice::Url {
            url: "http://127.0.0.1:9/v1".into(),
            name: "m".into(),
            key: false,
        };
        assert_eq!(find(&vars).await?, expected);
        Ok(())
    }

    #[tokio::test]
    async fn a_wrong_url_says_what_was_expected() {
        let error = find(&[("ROADSTEAD_MODEL_URL", "localhost:1")])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected an http:// or https:// URL"), "{error}");
    }

    #[tokio::test]
    async fn keys_stay_in_the_environment() -> anyhow::Result<()> {
        let choice = find(&[("ANTHROPIC_API_KEY", "sk-secret"), ("OPENAI_API_KEY", " ")]).await?;
        let document = choice.document("default", "").to_string();
        assert!(
            document.contains(r#""env":"ANTHROPIC_API_KEY""#) && !document.contains("sk-secret"),
            "{document}"
        );
        Ok(())
    }
}

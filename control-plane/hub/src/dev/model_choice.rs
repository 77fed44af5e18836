//! Which model `roadstead-hub dev` gives to the examples.
//!
//! In this order: `ROADSTEAD_MODEL_URL` (OpenAI-compatible, with `ROADSTEAD_MODEL_KEY` and `ROADSTEAD_MODEL_NAME`),
//! `OPENAI_API_KEY`, `ANTHROPIC_API_KEY`, an Ollama on loopback, and last the scripted demo model. Keys are never read
//! here: the document refers to the environment variable, and the cluster agent hands its value to the engine.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// The name of the Model document that dev writes and the examples refer to.
pub(crate) const DOCUMENT: &str = "default";
/// Where an Ollama listens that was told nothing else.
pub(crate) const OLLAMA: &str = "http://127.0.0.1:11434";

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
    /// Looks at the environment (through `env`), then for an Ollama at `ollama` with at least one model.
    ///
    /// # Errors
    /// `ROADSTEAD_MODEL_URL` that is not an http(s) URL, or stands without `ROADSTEAD_MODEL_NAME` while its server
    /// names no model; `ROADSTEAD_MODEL_NAME` that the Ollama does not have.
    pub(crate) async fn find(env: impl Fn(&str) -> Option<String>, ollama: &str) -> anyhow::Result<Self> {
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
        match ollama_models(ollama).await {
            Some(models) => of_ollama(&models, name, ollama),
            None => Ok(Self::Demo),
        }
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

/// Proxies of the environment are for the way out of the network, which plain text does not take; nor does a redirect.
fn client(url: &str, timeout: Duration) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none());
    let builder = if url.starts_with("https://") {
        builder
    } else {
        builder.no_proxy()
    };
    Ok(builder.build()?)
}

async fn first_model(url: &str) -> anyhow::Result<String> {
    let hint = "set ROADSTEAD_MODEL_NAME to the model's name";
    let listed = client(url, Duration::from_secs(3))?
        .get(format!("{}/models", url.trim_end_matches('/')))
        .send()
        .await;
    let listed: Value = match listed.and_then(reqwest::Response::error_for_status) {
        Ok(answer) => answer
            .json()
            .await
            .with_context(|| format!("ROADSTEAD_MODEL_URL lists no models: {hint}"))?,
        Err(error) => anyhow::bail!(
            "ROADSTEAD_MODEL_URL does not list its models ({}): {hint}",
            error.without_url()
        ),
    };
    let first = listed["data"][0]["id"].as_str().map(str::to_owned);
    first.ok_or_else(|| anyhow::anyhow!("ROADSTEAD_MODEL_URL lists no model: {hint}"))
}

/// Answers of Ollama's own API: <https://github.com/ollama/ollama/blob/main/docs/api.md>.
#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    /// Every model of an Ollama has one; other servers' lists do not.
    #[serde(rename = "digest")]
    _digest: String,
}

/// The models of an Ollama; `None` when none answers as one within half a second.
async fn ollama_models(ollama: &str) -> Option<Vec<String>> {
    let answer = client(ollama, Duration::from_millis(500))
        .ok()?
        .get(format!("{ollama}/api/tags"))
        .send()
        .await
        .ok()?;
    let tags: Tags = answer.error_for_status().ok()?.json().await.ok()?;
    Some(tags.models.into_iter().map(|tag| tag.name).collect())
}

/// The wanted model, or the first; the demo model for an Ollama without any.
fn of_ollama(models: &[String], wanted: Option<String>, ollama: &str) -> anyhow::Result<Choice> {
    let Some(wanted) = wanted else {
        let first = models.first().cloned();
        return Ok(first.map_or(Choice::Demo, |name| Choice::Ollama { name }));
    };
    // Ollama's own rule: a name without a tag means the latest.
    let latest = format!("{wanted}:latest");
    anyhow::ensure!(
        models.iter().any(|name| *name == wanted || *name == latest),
        "ROADSTEAD_MODEL_NAME: expected a model of the Ollama at {ollama} ({}), found {wanted:?}: `ollama pull \
         {wanted}`, or set ROADSTEAD_MODEL_URL for another server",
        if models.is_empty() {
            "it has none".to_owned()
        } else {
            models.join(", ")
        }
    );
    Ok(Choice::Ollama { name: wanted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use std::collections::HashMap;

    /// Nobody listens there: the port belongs to no service, and its number is not handed out.
    const NOBODY: &str = "http://127.0.0.1:1";

    async fn find_with(vars: &[(&str, &str)], ollama: &str) -> anyhow::Result<Choice> {
        let vars: HashMap<String, String> = vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Choice::find(|name| vars.get(name).cloned(), ollama).await
    }

    async fn find(vars: &[(&str, &str)]) -> anyhow::Result<Choice> {
        find_with(vars, NOBODY).await
    }

    /// A server that answers `/api/tags` and `/models` with this.
    async fn server(answer: Value) -> anyhow::Result<String> {
        let answers = move || std::future::ready(Json(answer.clone()));
        let app = Router::new()
            .route("/api/tags", get(answers.clone()))
            .route("/models", get(answers));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(url)
    }

    fn tags(names: &[&str]) -> Value {
        let models = names
            .iter()
            .map(|name| json!({"name": name, "digest": "sha256:0", "size": 1}));
        json!({"models": models.collect::<Vec<_>>()})
    }

    #[tokio::test]
    async fn each_model_stands_before_the_ones_after_it() -> anyhow::Result<()> {
        let ollama = server(tags(&["qwen3:0.6b", "llama3:latest"])).await?;
        let all = [
            ("ROADSTEAD_MODEL_URL", "http://127.0.0.1:1/v1"),
            ("OPENAI_API_KEY", "k"),
            ("ANTHROPIC_API_KEY", "k"),
        ];
        let named = [&all[..], &[("ROADSTEAD_MODEL_NAME", "m")]].concat();
        assert!(matches!(find_with(&named, &ollama).await?, Choice::Url { .. }));
        assert!(matches!(
            find_with(&all[1..], &ollama).await?,
            Choice::OpenAi { .. }
        ));
        assert!(matches!(
            find_with(&all[2..], &ollama).await?,
            Choice::Anthropic { .. }
        ));
        let first = Choice::Ollama {
            name: "qwen3:0.6b".into(),
        };
        assert_eq!(find_with(&[], &ollama).await?, first);
        assert_eq!(find_with(&[("OPENAI_API_KEY", " ")], &ollama).await?, first);
        assert_eq!(find(&[]).await?, Choice::Demo);
        Ok(())
    }

    #[tokio::test]
    async fn only_an_ollama_that_has_the_model_is_one() -> anyhow::Result<()> {
        let ollama = server(tags(&["llama3:latest"])).await?;
        let wanted = |name| [("ROADSTEAD_MODEL_NAME", name)];
        let found = find_with(&wanted("llama3"), &ollama).await?;
        assert_eq!(
            found,
            Choice::Ollama {
                name: "llama3".into()
            }
        );
        let error = find_with(&wanted("gpt"), &ollama).await.unwrap_err().to_string();
        assert!(
            error.contains("(llama3:latest), found \"gpt\": `ollama pull gpt`"),
            "{error}"
        );
        // Something else on that port, and an Ollama without models.
        for other in [
            json!({}),
            json!([]),
            json!({"models": [{"id": "x"}]}),
            json!({"data": [{"id": "m"}]}),
        ] {
            let url = server(other).await?;
            assert_eq!(find_with(&wanted("m"), &url).await?, Choice::Demo);
        }
        assert_eq!(find_with(&[], &server(tags(&[])).await?).await?, Choice::Demo);
        Ok(())
    }

    #[tokio::test]
    async fn a_url_without_a_name_is_asked_for_its_first_model() -> anyhow::Result<()> {
        let url = server(json!({"data": [{"id": "first"}, {"id": "second"}]})).await?;
        let expected = Choice::Url {
            url: url.clone(),
            name: "first".into(),
            key: false,
        };
        assert_eq!(find(&[("ROADSTEAD_MODEL_URL", url.as_str())]).await?, expected);
        let error = find(&[("ROADSTEAD_MODEL_URL", NOBODY)])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("set ROADSTEAD_MODEL_NAME"), "{error}");
        Ok(())
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

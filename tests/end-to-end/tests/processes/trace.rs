//! What is seen from outside: one trace from the CLI over hub, tunnel and engine to the model and tool calls; metrics of
//! hub and cluster agent; and in all that leaves a process neither content nor secrets.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{
    apart::{Apart, Keep, READY, Setup},
    ask, counter,
    rotel::{Rotel, Span},
    wait,
};
use std::collections::BTreeMap;

const KEY: &str = "canary-model-key-7f3a";
const ASKED: &str = "canary-question-19c2";
const SAID: &str = "canary-answer-51d8";
const INSTRUCTIONS: &str = "canary-instructions-a07b";

/// What the exported data must not hold: secrets, and what people and models said.
fn canaries(apart: &Apart) -> Result<Vec<(&'static str, String)>> {
    let read = |name: &str| std::fs::read_to_string(apart.folder().join(name));
    let (_, engine) = (0, apart.folder().join("cluster/engines/default.counts/token"));
    Ok(vec![
        ("the owner's API token", apart.token()?),
        ("the join token", read("join-token")?.trim().to_owned()),
        ("the token of local callers", std::fs::read_to_string(engine)?),
        ("the model's key", KEY.to_owned()),
        ("the question", ASKED.to_owned()),
        ("the answer", SAID.to_owned()),
        ("the instructions", INSTRUCTIONS.to_owned()),
        ("the tool's arguments", "424242".to_owned()),
        ("the database's password", "canary-database-password".to_owned()),
        ("a JSON Web Token", "eyJ".to_owned()),
    ])
}

fn by_name<'s>(trace: &'s [Span], service: &str, name: &str) -> Result<Vec<&'s Span>> {
    let found: Vec<_> = trace
        .iter()
        .filter(|s| s.service == service && s.name == name)
        .collect();
    anyhow::ensure!(!found.is_empty(), "no span {name:?} of {service} in {trace:#?}");
    Ok(found)
}

fn attribute<'s>(span: &'s Span, key: &str) -> &'s str {
    span.attributes.get(key).map_or("", String::as_str)
}

/// `child`'s parents up to the root, by service and name.
fn ancestry(trace: &[Span], child: &Span) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), Some(child));
    while let Some(span) = at {
        names.push(format!("{} {}", span.service, span.name));
        at = trace.iter().find(|s| s.id == span.parent);
    }
    names
}

/// The trace of the chat, once all of it has been received.
async fn chat_trace(rotel: &Rotel) -> Result<Vec<Span>> {
    wait::until("the whole trace of the chat", READY, || async {
        let spans = rotel.spans();
        let tool = spans.iter().find(|s| s.name.starts_with("execute_tool"))?;
        let trace: Vec<_> = spans.iter().filter(|s| s.trace == tool.trace).cloned().collect();
        let services = [
            "roadstead",
            "roadstead-hub",
            "roadstead-agent",
            "roadstead-engine",
        ];
        let whole = services
            .iter()
            .all(|service| trace.iter().any(|s| s.service == *service));
        let turn = trace.iter().any(|s| s.name == "invoke_agent counts");
        (whole && turn).then_some(trace)
    })
    .await
    .with_context(|| format!("received:\n{}", rotel.printed()))
}

fn hold(trace: &[Span]) -> Result<()> {
    let expected = [
        "roadstead-engine invoke_agent counts",
        "roadstead-agent tunnel.call",
        "roadstead-hub POST a2a",
        "roadstead roadstead",
    ];
    let turn = by_name(trace, "roadstead-engine", "invoke_agent counts")?[0];
    assert_eq!(ancestry(trace, turn), expected);
    assert_eq!(attribute(turn, "gen_ai.operation.name"), "invoke_agent");
    assert_eq!(attribute(turn, "gen_ai.agent.name"), "counts");
    assert!(!attribute(turn, "gen_ai.conversation.id").is_empty(), "{turn:?}");

    let chats = by_name(trace, "roadstead-engine", "chat script")?;
    assert_eq!(
        chats.len(),
        2,
        "one that calls the tool, one that answers: {chats:#?}"
    );
    for chat in chats {
        assert_eq!(chat.parent, turn.id);
        assert_eq!(chat.kind, "SPAN_KIND_CLIENT");
        assert_eq!(attribute(chat, "gen_ai.operation.name"), "chat");
        assert_eq!(attribute(chat, "gen_ai.request.model"), "script");
        assert!(!attribute(chat, "gen_ai.provider.name").is_empty(), "{chat:?}");
        for usage in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
            assert!(
                attribute(chat, usage).parse::<u64>().is_ok_and(|n| n > 0),
                "{usage}: {chat:?}"
            );
        }
    }
    let tool = trace
        .iter()
        .find(|s| s.name.starts_with("execute_tool"))
        .context("a tool call")?;
    assert_eq!(tool.parent, turn.id);
    assert_eq!(attribute(tool, "gen_ai.operation.name"), "execute_tool");
    assert!(attribute(tool, "gen_ai.tool.name").ends_with("count"), "{tool:?}");
    assert!(!attribute(tool, "gen_ai.tool.call.id").is_empty(), "{tool:?}");
    Ok(())
}

/// The samples of Prometheus' text format whose name is `name`, by their labels.
fn samples(text: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (series, labels) = series.split_once('{').unwrap_or((series, ""));
        (series == name).then(|| (labels.to_owned(), value.parse().unwrap_or(f64::NAN)))
    });
    parsed.collect()
}

/// Whether a sample of `name` with all these labels is at least `least`.
fn at_least(text: &str, name: &str, labels: &[&str], least: f64) {
    let samples = samples(text, name);
    let found = samples
        .iter()
        .any(|(found, value)| labels.iter().all(|l| found.contains(l)) && *value >= least);
    assert!(found, "{name} {labels:?} ≥ {least} in {samples:?} of\n{text}");
}

async fn metrics(apart: &Apart) -> Result<String> {
    let (status, hub) = ask::get(&apart.hub_metrics()).await?;
    anyhow::ensure!(status == 200, "{status}: {hub}");
    let requests = "http_server_request_duration_seconds_count";
    let post = "http_request_method=\"POST\"";
    at_least(
        &hub,
        requests,
        &["http_route=\"graphql\"", post, "status_code=\"200\""],
        2.0,
    );
    at_least(&hub, requests, &["http_route=\"a2a\"", post], 1.0);
    at_least(&hub, "roadstead_hub_fleet_sessions_live", &[], 1.0);
    at_least(&hub, "roadstead_hub_a2a_calls_total", &[], 1.0);
    at_least(&hub, "roadstead_hub_run_records_total", &[], 1.0);
    at_least(
        &hub,
        "roadstead_hub_db_transaction_duration_seconds_count",
        &["access=\"write\""],
        1.0,
    );
    let (status, agent) = ask::get(&format!("{}/metrics", apart.agent_probe())).await?;
    anyhow::ensure!(status == 200, "{status}: {agent}");
    at_least(
        &agent,
        "roadstead_agent_tunnel_duration_seconds_count",
        &["kind=\"a2a\"", "outcome=\"answered\""],
        1.0,
    );
    at_least(&agent, "roadstead_agent_engines", &["phase=\"Ready\""], 1.0);
    at_least(&agent, "roadstead_agent_hub_connected", &[], 1.0);
    at_least(&agent, "roadstead_agent_documents", &[], 3.0);
    // A port of its own: the API does not show them.
    let (status, _) = ask::get(&format!("{}/metrics", apart.api())).await?;
    assert_eq!(status, 401);
    Ok(hub + &agent)
}

/// `traceparent` is obeyed of callers who were verified, and of nobody else.
async fn adopted_after_login(apart: &Apart, rotel: &Rotel) -> Result<()> {
    const FORGED: &str = "0af7651916cd43dd8448eb211c80319c";
    const OWN: &str = "1af7651916cd43dd8448eb211c80319d";
    const PARENT: &str = "b7ad6b7169203331";
    let (graphql, body) = (
        format!("{}/graphql", apart.api()),
        serde_json::json!({"query": "{ viewer { tenant } }"}),
    );
    let claims = |trace: &str| format!("00-{trace}-{PARENT}-01");
    let (forged, own) = (claims(FORGED), claims(OWN));
    for (token, status) in [(None, 401), (Some("rst_nobody"), 401)] {
        assert_eq!(ask::traced(&graphql, token, &forged, &body).await?, status);
    }
    assert_eq!(
        ask::traced(&format!("{}/livez", apart.api()), None, &forged, &body).await?,
        405
    );
    assert_eq!(
        ask::traced(&graphql, Some(&apart.token()?), &own, &body).await?,
        200
    );
    let hub = |spans: &[Span], status: &str| -> Vec<Span> {
        let of_hub = spans.iter().filter(|s| s.service == "roadstead-hub");
        let answered = of_hub.filter(|s| attribute(s, "http.response.status_code").contains(status));
        answered.cloned().collect()
    };
    let spans = wait::until("the spans of all four requests", READY, || async {
        let spans = rotel.spans();
        let all = hub(&spans, "401").len() >= 2 && hub(&spans, "405").len() == 1;
        (all && spans.iter().any(|s| s.trace == OWN)).then_some(spans)
    })
    .await?;
    let adopted: Vec<_> = spans.iter().filter(|s| s.trace == OWN).collect();
    assert_eq!(adopted[0].parent, PARENT, "{adopted:?}");
    assert!(spans.iter().all(|s| s.trace != FORGED), "{spans:#?}");
    for refused in hub(&spans, "401").iter().chain(&hub(&spans, "405")) {
        assert_eq!(refused.parent, "", "{refused:?}");
        assert_eq!(
            spans.iter().filter(|s| s.trace == refused.trace).count(),
            1,
            "{refused:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_the_cli_to_model_and_tool_without_content_or_secrets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(rotel) = Rotel::start(folder.path()).await? else {
        return Ok(());
    };
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ("ROADSTEAD_LOG", "debug"),
    ];
    let setup = Setup {
        environment: variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        offered: vec![("MODEL_KEY".to_owned(), KEY.to_owned())],
        model_key: Some(KEY.to_owned()),
        ..Setup::default()
    };
    let Some(apart) = Apart::start(Keep::Postgres, setup).await? else {
        return Ok(());
    };
    let documents = counter::documents(apart.folder())?.replace("Count.", INSTRUCTIONS);
    apart.apply(&documents)?;
    apart.answers("counts").await?;
    let message = format!("{ASKED}\ncall counter/count {{\"number\": 424242}}\nsay {SAID}");
    let said = apart.cli.run(&["chat", "counts", "--message", &message])?;
    assert!(said.out.contains(SAID), "{said:?}");

    let trace = chat_trace(&rotel).await?;
    hold(&trace)?;
    adopted_after_login(&apart, &rotel).await?;
    let run = wait::until("the run record", READY, || async {
        let runs = apart.cli.run(&["runs", "-o", "json"]).ok()?.json().ok()?;
        runs.as_array()?
            .iter()
            .find(|run| run["traceId"] == trace[0].trace.as_str())
            .cloned()
    });
    assert_eq!(run.await?["agent"], "counts", "the run names its trace");
    let shown = metrics(&apart).await?;
    wait::until("metrics by OTLP", READY, || async {
        let text = rotel.printed();
        let all = [
            "roadstead.engine.tasks",
            "roadstead.engine.turns",
            "roadstead.engine.tokens",
            "roadstead.engine.tool_calls",
            "roadstead.engine.added",
            "roadstead.agent.engines",
            "roadstead.hub.fleet.sessions.live",
        ];
        all.iter().all(|name| text.contains(name)).then_some(())
    })
    .await?;

    let engine_log = apart.cli.run(&["logs", "counts", "--tail", "1000"])?.ok()?;
    let places = [
        ("exported", rotel.printed()),
        ("metrics", shown),
        ("logs", apart.logs()),
        ("the engine's log", engine_log),
        (
            "the CLI's errors",
            said.err.lines().filter(|line| line.starts_with('{')).collect(),
        ),
    ];
    for (canary, secret) in canaries(&apart)? {
        assert!(secret.len() > 2, "{canary} is empty");
        for (place, text) in &places {
            let line = text.lines().find(|line| line.contains(&secret));
            assert!(line.is_none(), "{canary} is in {place}: {line:?}");
        }
    }
    Ok(())
}

//! Any document that the types can hold survives being written and read again.

use super::{listed, parse, project};
use proptest::{collection::btree_map, collection::vec, option, prelude::*, sample::select};
use roadstead_contract::documents::{
    API_VERSION, AgentSpec, BindingKey, Body, Count, Document, Duration, EnvKey, HeaderValue, HttpServer,
    Instructions, Limits, Metadata, Mode, ModelList, ModelOptions, ModelSpec, Money, Name, OnUnknownResult,
    Pin, Placement, Prices, PromptSpec, Provider, Quantities, Questions, ReasoningEffort, Reference,
    Resources, Runtime, SecretRef, Selector, StdioServer, SubAgent, Template, ToolServerSpec, ToolUse,
    parse_value,
};
use std::collections::BTreeSet;

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|t| t.parse().expect("a name"))
}

fn reference() -> impl Strategy<Value = Reference> {
    (option::of(name()), name()).prop_map(|(project, name)| Reference { project, name })
}

/// What YAML writers get wrong: words that mean something else without quotes, white space, other scripts.
fn text() -> impl Strategy<Value = String> {
    let tricky = select(vec![
        "null",
        "~",
        "yes",
        "true",
        "1.10",
        "0x1F",
        "- a",
        "a: b",
        "# no",
        "{{ x",
        "'",
        "\"",
        "\\",
        "a\nb\n\n",
        "  lead",
        "trail  ",
        "\ttab",
        "---",
        "...",
        "&a",
        "*a",
        "!t",
        "<<",
        "😀",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        ".inf",
        "2026-01-01",
        "%",
        "@",
        "`",
        "a\r\nb",
        "?",
        "| ",
        "\u{1b}[31m",
    ]);
    prop_oneof![tricky.prop_map(str::to_owned), "\\PC{1,20}"]
        .prop_filter("not blank", |t| !t.trim().is_empty())
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let labels = btree_map("[a-z]{1,5}", "[a-z0-9]{0,5}", 0..3);
    let annotations = btree_map(text(), text(), 0..3);
    (name(), labels, annotations).prop_map(|(name, labels, annotations)| Metadata {
        name,
        project: Some(project()),
        labels,
        annotations,
    })
}

fn distinct<T: Ord + Clone>(items: Vec<T>) -> Vec<T> {
    items.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn agent() -> impl Strategy<Value = Body> {
    let template = btree_map("[a-z_][a-z0-9_]{0,5}", text(), 1..3).prop_map(|variables| {
        let names: Vec<String> = variables
            .keys()
            .filter(|n| *n != "include")
            .map(|n| format!("{{{{ {n} }}}}"))
            .collect();
        Template {
            template: format!("Hello {}\n", names.join(" ")),
            variables: variables.into_iter().filter(|(n, _)| n != "include").collect(),
        }
    });
    let instructions = prop_oneof![
        text().prop_map(Instructions::Text),
        template.prop_map(Instructions::Template)
    ];
    let models = prop_oneof![
        reference().prop_map(ModelList::One),
        vec(reference(), 1..3).prop_map(|m| ModelList::Several(distinct(m)))
    ];
    // "*" stands alone.
    let tool = text().prop_filter("a name", |name| name != "*");
    let tools = btree_map(reference(), (vec(tool, 1..3), any::<bool>()), 0..3).prop_map(|tools| {
        let uses = tools.into_iter().map(|(server, (allow, approve))| {
            let allow = distinct(allow);
            let approve = if approve {
                vec![allow[0].clone()]
            } else {
                Vec::new()
            };
            ToolUse {
                server,
                allow,
                approve,
            }
        });
        uses.collect::<Vec<_>>()
    });
    let agents = btree_map(reference(), any::<bool>(), 0..2).prop_map(|a| {
        a.into_iter()
            .map(|(name, isolate)| SubAgent { name, isolate })
            .collect::<Vec<_>>()
    });
    let rest = (
        limits(),
        placement(),
        runtime(),
        select(vec![OnUnknownResult::Ask, OnUnknownResult::Tell]),
        select(vec![Questions::Ask, Questions::Never]),
        option::of(schema()),
    );
    (text(), instructions, models, tools, agents, rest).prop_map(
        |(
            description,
            instructions,
            model,
            tools,
            agents,
            (limits, placement, runtime, on_unknown_result, questions, output_schema),
        )| {
            Body::Agent(Box::new(AgentSpec {
                description,
                instructions,
                model,
                tools,
                agents,
                limits,
                input: vec![Mode::File, Mode::Text],
                output: vec![Mode::Text],
                output_schema,
                on_unknown_result,
                questions,
                placement,
                runtime,
            }))
        },
    )
}

fn schema() -> impl Strategy<Value = serde_json::Value> {
    text().prop_map(|t| serde_json::json!({"type": "object", "title": t, "properties": {"b": {"type": "number"}, "a": {}}}))
}

fn limits() -> impl Strategy<Value = Limits> {
    let cost = (1..9_000_000_u64).prop_map(|micros| Money {
        micros,
        currency: "EUR".parse().expect("a currency"),
    });
    let numbers = (1..=u32::MAX, 1..=9_000_000_000_u64, any::<u32>(), 1..=u32::MAX);
    (numbers, 1..600_000_u64, option::of(cost)).prop_map(
        |((steps, tokens, tool_calls, sessions), seconds, cost)| Limits {
            steps,
            tokens: Count(tokens),
            wall_time: Duration::from_secs(seconds),
            tool_calls,
            sessions,
            cost,
        },
    )
}

fn placement() -> impl Strategy<Value = Placement> {
    let clusters = vec(name(), 0..3).prop_map(|c| Placement {
        clusters: distinct(c),
        selector: None,
    });
    let selector = btree_map("[a-z]{1,5}", "[a-z0-9]{0,5}", 1..3).prop_map(|match_labels| Placement {
        clusters: Vec::new(),
        selector: Some(Selector { match_labels }),
    });
    prop_oneof![clusters, selector]
}

fn runtime() -> impl Strategy<Value = Runtime> {
    let quantity =
        |texts: Vec<&'static str>| option::of(select(texts).prop_map(|t| t.parse().expect("a quantity")));
    let quantities = (
        quantity(vec!["1", "50m", "0.5"]),
        quantity(vec!["64Mi", "1G", "1.5Gi"]),
    );
    (1..3_u32, quantities).prop_map(|(replicas, (cpu, memory))| Runtime {
        replicas,
        resources: Resources {
            requests: Quantities { cpu, memory },
            limits: Quantities::default(),
        },
        ..Runtime::default()
    })
}

fn secret() -> impl Strategy<Value = SecretRef> {
    prop_oneof![
        (name(), text()).prop_map(|(secret, key)| SecretRef::Binding(BindingKey { secret, key })),
        "[A-Z_][A-Z0-9_]{0,5}".prop_map(|env| SecretRef::Env(EnvKey { env })),
    ]
}

fn model() -> impl Strategy<Value = Body> {
    let numbers = (
        option::of(0.0..=1.0_f64),
        option::of(0.001..=1.0_f64),
        option::of(any::<u64>()),
    );
    let decimal =
        || (0..99_000_000_u64).prop_map(|micros| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000));
    let prices = (decimal(), decimal()).prop_map(|(input, output)| Prices {
        currency: "USD".parse().expect("a currency"),
        input_per_million: input.parse().expect("a decimal"),
        output_per_million: output.parse().expect("a decimal"),
        cached_input_per_million: None,
    });
    let provider = select(vec![
        Provider::Openai,
        Provider::OpenaiCompatible,
        Provider::Ollama,
    ]);
    let headers = btree_map("x-[a-z]{1,5}", "[ -~]{0,8}", 0..2);
    (
        provider,
        text(),
        secret(),
        numbers,
        vec(text(), 0..4),
        option::of(prices),
        headers,
    )
        .prop_map(
            |(provider, model, key, (temperature, top_p, seed), stop, prices, headers)| {
                Body::Model(ModelSpec {
                    provider,
                    model,
                    endpoint: Some("http://llm.internal:8000/v1".to_owned()),
                    key: Some(key),
                    options: ModelOptions {
                        temperature,
                        top_p,
                        seed,
                        stop,
                        max_output_tokens: Some(7),
                        reasoning_effort: Some(ReasoningEffort::Low),
                        timeout: Some(Duration::from_secs(90)),
                    },
                    headers,
                    prices,
                })
            },
        )
}

fn tool_server() -> impl Strategy<Value = Body> {
    let value = || {
        prop_oneof![
            "[ -~]{0,8}".prop_map(HeaderValue::Text),
            secret().prop_map(HeaderValue::Secret)
        ]
    };
    let none = ToolServerSpec {
        http: None,
        stdio: None,
        package: None,
        image: None,
        pin: Pin::Tools,
        trust_hints: true,
    };
    let http = none.clone();
    let by_http = btree_map("x-[a-z]{1,5}", value(), 0..3).prop_map(move |headers| ToolServerSpec {
        http: Some(HttpServer {
            url: "https://a.example/mcp".to_owned(),
            headers,
            timeout: None,
        }),
        ..http.clone()
    });
    let by_stdio =
        (vec(text(), 1..4), btree_map("[A-Z]{1,5}", value(), 0..3)).prop_map(move |(command, env)| {
            let stdio = StdioServer {
                command,
                env,
                timeout: Some(Duration::from_secs(5)),
            };
            ToolServerSpec {
                stdio: Some(stdio),
                ..none.clone()
            }
        });
    prop_oneof![by_http, by_stdio].prop_map(Body::ToolServer)
}

fn document() -> impl Strategy<Value = Document> {
    let prompt = text().prop_map(|text| Body::Prompt(PromptSpec { text }));
    let body = prop_oneof![agent(), model(), tool_server(), prompt];
    (metadata(), body)
        .prop_map(|(metadata, body)| Document {
            api_version: API_VERSION,
            metadata,
            body,
        })
        .prop_filter("not itself as a tool", |d| match &d.body {
            Body::Agent(spec) => spec.agents.iter().all(|a| a.name.name != d.metadata.name),
            _ => true,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again(document in document()) {
        let json = serde_json::to_value(&document).expect("json");
        let parsed = parse_value("row", &json, &project()).unwrap_or_else(|p| panic!("{}", listed(&p)));
        prop_assert_eq!(&parsed.document, &document);
        prop_assert_eq!(&parsed.json, &json);

        for text in [serde_saphyr::to_string(&json).expect("yaml"), format!("{json}"), format!("{json:#}")] {
            let parsed = parse(&text).unwrap_or_else(|p| panic!("{}{text}", listed(&p)));
            prop_assert_eq!(parsed.len(), 1, "{}", text);
            prop_assert_eq!(&parsed[0].json, &json, "{}", text);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[-a-z0-9:{}\\[\\],\"'#&*!|>%@ \\n\\t?~.]{0,200}") {
        // Only that it neither panics nor hangs.
        drop(parse(&text));
    }
}

#[test]
fn annotations_keep_their_order() {
    let json = serde_json::json!({"apiVersion": API_VERSION, "kind": "Prompt",
        "metadata": {"name": "p", "annotations": {"z": "1", "a": "2", "m": "3"}}, "spec": {"text": "x"}});
    let text = serde_saphyr::to_string(&json).expect("yaml");
    let parsed = parse(&text).unwrap_or_else(|p| panic!("{}", listed(&p)));
    assert_eq!(parsed[0].json.to_string(), json.to_string());
}

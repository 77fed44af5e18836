//! Documents from outside: what people write, what they are told, and what an attacker sends.

mod cases;
mod round_trip;
mod sizes;

use roadstead_contract::{
    bundle::Bundle,
    documents::{
        Body, Kind, MAX_PROBLEMS, Name, Parsed, Problem, Reference, Source, beyond_local, check_costs,
        check_references, explain, parse_files, parse_value, render_instructions, schema,
    },
};
use serde_json::{Value, json};
use std::fmt::Write as _;

fn project() -> Name {
    "support".parse().expect("a name")
}

fn parse(text: &str) -> Result<Vec<Parsed>, Vec<Problem>> {
    parse_files(&[Source { name: "a.yaml", text }], &project())
}

/// Parsed and with references checked inside the set.
fn problems(text: &str) -> Vec<Problem> {
    match parse(text) {
        Ok(parsed) => check_references(&parsed, |_, _| false),
        Err(problems) => problems,
    }
}

const GOOD: &str = include_str!("good.yaml");

fn agent(spec: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: a}}\nspec:\n  {}\n",
        spec.trim().replace('\n', "\n  ")
    )
}

fn other(kind: &str, spec: &str) -> String {
    agent(spec).replace("kind: Agent", &format!("kind: {kind}"))
}

#[test]
fn the_design_example_is_accepted() {
    let parsed = parse(GOOD).unwrap_or_else(|p| panic!("{}", listed(&p)));
    let kinds: Vec<Kind> = parsed.iter().map(|p| p.document.kind()).collect();
    assert_eq!(
        kinds,
        [
            Kind::Model,
            Kind::ToolServer,
            Kind::Prompt,
            Kind::Agent,
            Kind::Agent
        ]
    );
    assert!(check_references(&parsed, |_, _| false).is_empty());
    let bundle = bundle(&parsed, "release-notes");
    insta::assert_snapshot!(render_instructions(&bundle).expect("renders"), @r"
    Answer in short sentences. Say what you do not know.
    You write release notes for Roadstead.
    ");
}

fn bundle(parsed: &[Parsed], name: &str) -> Bundle {
    let item = parsed
        .iter()
        .find(|p| p.document.kind() == Kind::Agent && p.document.metadata.name.as_str() == name)
        .expect("the agent is in the set");
    let Body::Agent(spec) = &item.document.body else {
        panic!("an agent")
    };
    let find = |kind: Kind, reference: &Reference| {
        parsed.iter().map(|p| &p.document).find(|d| {
            d.kind() == kind && d.metadata.name == reference.name && d.metadata.project == reference.project
        })
    };
    Bundle::resolve(&project(), (&item.document.metadata.name, "uid", 1, spec), find).expect("resolves")
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut text, problem| {
        let _ = writeln!(text, "{problem}");
        text
    })
}

#[test]
fn s83_a_cost_limit_that_nothing_measures_has_its_place() {
    let limited = agent("instructions: i\nmodel: a\nlimits: {cost: 1 USD}");
    let with = |prices: &str| {
        let model = other("Model", &format!("provider: ollama\nmodel: m\n{prices}"));
        let parsed = parse(&format!("{model}---\n{limited}")).unwrap_or_else(|p| panic!("{}", listed(&p)));
        listed(&check_costs(&parsed, |_, _| None))
    };
    let prices = |currency: &str| {
        format!("prices: {{currency: {currency}, inputPerMillion: '0', outputPerMillion: '0'}}")
    };
    let none = with("");
    assert!(
        none.starts_with("a.yaml:14:")
            && none.ends_with(
                ": spec.limits.cost: expected prices in USD of the model a, which the limit is measured by (0 where \
                 it is free), found none\n"
            ),
        "{none}"
    );
    assert!(with(&prices("EUR")).ends_with("found prices in EUR\n"));
    assert_eq!(with(&prices("USD")), "");
}

/// Everybody calls everybody: each is looked at once, and not once for each way that leads to it.
#[test]
fn s31_a_thicket_of_agents_with_limits_is_looked_at_once() {
    const AGENTS: usize = 120;
    let mut text = String::from(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\nspec: {provider: ollama, model: m}\n",
    );
    for n in 0..AGENTS {
        let others = (0..AGENTS).filter(|other| *other != n);
        let others: Vec<String> = others.map(|other| format!("{{name: a{other}}}")).collect();
        let _ = write!(
            text,
            "---\napiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: a{n}}}\nspec: {{instructions: i, \
             model: m, limits: {{cost: 1 USD}}, agents: [{}]}}\n",
            others.join(", ")
        );
    }
    let parsed = parse(&text).unwrap_or_else(|p| panic!("{}", listed(&p)));
    let problems = check_costs(&parsed, |_, _| None);
    assert_eq!(problems.len(), MAX_PROBLEMS);
}

#[test]
fn s83_a_cost_limit_that_an_agent_below_does_not_measure_has_its_place() {
    let document = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: roadstead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let prices = |currency: &str| {
        format!(", prices: {{currency: {currency}, inputPerMillion: '0', outputPerMillion: '0'}}")
    };
    let set = |limit: &str, of_low: &str| {
        [
            document(
                "Model",
                "m",
                &format!("provider: ollama, model: m{}", prices("USD")),
            ),
            document("Model", "low", &format!("provider: ollama, model: m{of_low}")),
            document(
                "Agent",
                "top",
                &format!("instructions: i, model: m, agents: [{{name: middle}}]{limit}"),
            ),
            // It calls its caller too: nothing is looked at for ever.
            document(
                "Agent",
                "middle",
                "instructions: i, model: m, agents: [{name: top}, {name: bottom}]",
            ),
            document("Agent", "bottom", "instructions: i, model: low"),
        ]
        .concat()
    };
    let found = |text: String| {
        let parsed = parse(&text).unwrap_or_else(|p| panic!("{}", listed(&p)));
        listed(&check_costs(&parsed, |_, _| None))
    };
    let limit = ", limits: {cost: 1 USD}";
    let none = found(set(limit, ""));
    assert!(
        none.ends_with(
            ": spec.agents[0]: expected prices in USD of the model low of the agent bottom, since the limit of cost holds \
             for what is handed to it, found none\n"
        ) && none.lines().count() == 1,
        "{none}"
    );
    assert!(found(set(limit, &prices("EUR"))).ends_with("found prices in EUR\n"));
    assert_eq!(found(set(limit, &prices("USD"))), "");
    assert_eq!(found(set("", "")), "", "nothing is limited");
    // What is not known here is left to the run time.
    let alone = document(
        "Agent",
        "top",
        "instructions: i, model: m, agents: [{name: x}], limits: {cost: 1 USD}",
    );
    assert_eq!(found(alone), "");
}

#[test]
fn key_order_and_unknown_annotations_survive() {
    let text = "kind: Prompt\napiVersion: roadstead.dev/v1alpha1\nmetadata:\n  annotations:\n    zeta: '1'\n    alpha.example.com/x: two\n  name: p\nspec: {text: hi}\n";
    let parsed = parse(text).expect("holds");
    let written = serde_json::to_string(&parsed[0].json).expect("json");
    assert_eq!(
        written,
        r#"{"kind":"Prompt","apiVersion":"roadstead.dev/v1alpha1","metadata":{"annotations":{"zeta":"1","alpha.example.com/x":"two"},"name":"p"},"spec":{"text":"hi"}}"#
    );
    let again = parse_value("row", &parsed[0].json, &project()).expect("holds");
    assert_eq!(again.json, parsed[0].json);
    assert_eq!(again.document, parsed[0].document);
}

#[test]
fn every_problem_has_its_place_and_says_what_was_expected() {
    let cases = cases::all();
    let mut text = String::new();
    for (what, document) in cases {
        let found = problems(&document);
        assert!(!found.is_empty(), "{what} is accepted");
        let _ = writeln!(text, "== {what}\n{}", listed(&found));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn s31_a_template_cannot_grow_without_bound() {
    let prompt = other("Prompt", &format!("text: {}", "x".repeat(500_000))).replace("name: a", "name: big");
    let includes = "{{ include('big') }}".repeat(1_000);
    let agent = agent(&format!("instructions: {{template: \"{includes}\"}}\nmodel: m"));
    let model = other("Model", "provider: ollama\nmodel: m").replace("name: a", "name: m");
    let parsed =
        parse(&format!("{prompt}---\n{model}---\n{agent}")).unwrap_or_else(|p| panic!("{}", listed(&p)));
    let error = render_instructions(&bundle(&parsed, "a")).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "line 1 of the template: expected at most 1048576 bytes of rendered instructions, found more"
    );
}

#[test]
fn json_escapes_beyond_the_basic_plane_are_read() {
    let text = r#"{"apiVersion":"roadstead.dev/v1alpha1","kind":"Prompt",
	"metadata":{"name":"p"},"spec":{"text":"a\ud83d\ude00\u00e9\/\\ud83d\\ude00"}}"#;
    let parsed = parse(text).unwrap_or_else(|p| panic!("{}", listed(&p)));
    let expected: Value = serde_json::from_str(text).expect("json");
    assert_eq!(parsed[0].json, expected);
}

#[test]
fn a_value_has_the_same_problems_as_a_text() {
    let value = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"instructions": "x", "model": "m", "tools": [{"server": "s", "alow": [], "allow": ["a"]}]}});
    let found = parse_value("editor", &value, &project()).expect_err("a bad field");
    assert_eq!(
        listed(&found),
        "editor: spec.tools[0].alow: expected one of server, allow, approve, found the unknown field \"alow\" (did you mean allow?)\n"
    );
}

#[test]
fn schemas_are_committed_and_hold_real_documents() {
    for kind in Kind::ALL {
        let path = format!(
            "{}/../../docs/schema/{}.json",
            env!("CARGO_MANIFEST_DIR"),
            kind.as_str().to_lowercase()
        );
        let made = format!("{:#}\n", schema(kind));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &made).expect("written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            committed, made,
            "{path} is not what the types say: run the test with UPDATE=1"
        );
        let validator = jsonschema::validator_for(schema(kind)).expect("a valid schema");
        for parsed in parse(GOOD)
            .expect("holds")
            .iter()
            .filter(|p| p.document.kind() == kind)
        {
            let errors: Vec<String> = validator
                .iter_errors(&parsed.json)
                .map(|e| e.to_string())
                .collect();
            assert!(errors.is_empty(), "{}: {errors:?}", parsed.key());
        }
    }
}

#[test]
fn fields_are_explained() {
    let mut text = String::new();
    let paths = [
        "agent",
        "agents.spec.limits",
        "agent.spec.tools.allow",
        "model.spec.provider",
        "model.spec.key",
        "toolserver.spec.http.headers",
        "agent.spec.limits.stepz",
        "pod",
    ];
    for path in paths {
        let page = explain(path).unwrap_or_else(|error| format!("{error}\n"));
        let _ = writeln!(text, "== {path}\n{page}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_needs_a_cluster_is_named_for_the_local_runtime() {
    let digest = "0123456789abcdef".repeat(4);
    let texts = [
        agent(&format!(
            "instructions: x\nmodel: m\nruntime: {{replicas: 2, engine: {{image: 'r/e@sha256:{digest}', port: 1}}}}"
        )),
        other("Model", "provider: ollama\nmodel: m\nkey: {secret: a, key: b}"),
        other(
            "ToolServer",
            &format!("image: {{name: 'r/e@sha256:{digest}', port: 80}}"),
        ),
        other(
            "ToolServer",
            "http: {url: 'http://a/mcp', headers: {authorization: {secret: a, key: b}}}",
        )
        .replace("name: a", "name: b"),
    ];
    let parsed = parse(&texts.join("---\n")).unwrap_or_else(|p| panic!("{}", listed(&p)));
    let found: Vec<String> = parsed
        .iter()
        .flat_map(|p| beyond_local(&p.document))
        .map(|b| b.to_string())
        .collect();
    insta::assert_snapshot!(found.join("\n"));
}

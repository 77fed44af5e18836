//! Bad documents, one for each thing that can be wrong.

use super::{agent, other};

pub(crate) fn all() -> Vec<(&'static str, String)> {
    let mut cases = shape_cases();
    cases.extend(yaml_cases());
    cases.extend(rule_cases());
    cases
}

fn shape_cases() -> Vec<(&'static str, String)> {
    let version = "apiVersion: roadstead.dev/v1alpha1\n";
    vec![
        ("no mapping", "- a\n".to_owned()),
        (
            "no apiVersion",
            "kind: Prompt\nmetadata: {name: p}\nspec: {text: a}\n".to_owned(),
        ),
        ("another apiVersion", "apiVersion: v1\nkind: Prompts\n".to_owned()),
        (
            "kind from the future",
            format!("{version}kind: SecretBinding\nmetadata: {{name: p}}\n"),
        ),
        ("no metadata, no spec", format!("{version}kind: Prompt\n")),
        (
            "empty spec of an agent",
            format!("{version}kind: Agent\nmetadata: {{name: a}}\nspec: {{}}\n"),
        ),
        (
            "bad name",
            format!("{version}kind: Prompt\nmetadata: {{name: Big_Name}}\nspec: {{text: a}}\n"),
        ),
        (
            "number for a name",
            format!("{version}kind: Prompt\nmetadata: {{name: 4}}\nspec: {{text: a}}\n"),
        ),
        (
            "unknown fields at each level",
            agent(
                "instructions: x\nmodel: m\ntool: []\nlimits: {step: 3, walltime: 3s}\ntools:\n  - {server: s, alow: [a], allow: [a]}",
            ),
        ),
        (
            "fields that come later",
            agent("instructions: x\nmodel: m\nskills: []\nmemory: {}"),
        ),
        (
            "wrong types",
            agent(
                "instructions: 3\nmodel: {name: m}\ntools: {server: s}\nlimits: {steps: '3', tokens: many, wallTime: 30, sessions: -1}\nagents: [{name: b, isolate: yes}]",
            ),
        ),
        ("null", agent("instructions: x\nmodel:\n")),
        (
            "number for a text",
            other("Model", "provider: ollama\nmodel: 4.10\n"),
        ),
        (
            "enum values",
            other(
                "Model",
                "provider: open-ai\nmodel: m\noptions: {reasoningEffort: higher}",
            ),
        ),
        (
            "port out of range",
            other("ToolServer", "image: {name: x, port: 70000}"),
        ),
        (
            "secret reference of neither form",
            other("Model", "provider: ollama\nmodel: m\nkey: {sekret: a, key: b}"),
        ),
        (
            "a key in the document",
            other("Model", "provider: ollama\nmodel: m\nkey: sk-123"),
        ),
        (
            "twice the same document",
            format!("{0}---\n{0}", other("Prompt", "text: a")),
        ),
    ]
}

fn yaml_cases() -> Vec<(&'static str, String)> {
    vec![
        ("syntax", "a: [1\nb: }".to_owned()),
        ("tab", "a:\n\tb: 1\n".to_owned()),
        ("duplicate key", other("Prompt", "text: a\ntext: b")),
        ("anchor", other("Prompt", "text: &a hello")),
        ("tag", other("Prompt", "text: !!str hello")),
        ("merge key", other("Prompt", "<<: {text: a}")),
        ("number as a key", "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: p, labels: {1: a}}\nspec: {text: a}\n".to_owned()),
        ("infinity", other("Model", "provider: ollama\nmodel: m\noptions: {temperature: .inf}")),
        ("json", r#"{"apiVersion": "roadstead.dev/v1alpha1", "kind": "Prompt", "metadata": {"name": "p"},
  "spec": {"txt": "a"}}"#.to_owned()),
    ]
}

fn rule_cases() -> Vec<(&'static str, String)> {
    let digest = "0123456789abcdef".repeat(4);
    vec![
        ("provider not built", other("Model", "provider: bedrock\nmodel: m")),
        ("openaiCompatible without endpoint", other("Model", "provider: openaiCompatible\nmodel: m")),
        ("openai without a key", other("Model", "provider: openai\nmodel: m")),
        ("endpoint with a password", other("Model", "provider: ollama\nmodel: m\nendpoint: http://me:secret@host/v1")),
        ("endpoint without a scheme", other("Model", "provider: ollama\nmodel: m\nendpoint: localhost:11434")),
        ("options out of range", other("Model", "provider: anthropic\nmodel: m\nkey: {env: K}\noptions: {temperature: 1.5, topP: 0, seed: 1, maxOutputTokens: 0, timeout: 0s}")),
        ("credential in a header", other("Model", "provider: ollama\nmodel: m\nheaders: {Authorization: Bearer abc, 'bad name': x}")),
        ("prices", other("Model", "provider: ollama\nmodel: m\nprices: {currency: usd, inputPerMillion: 0.25, outputPerMillion: '1,5'}")),
        ("no transport", other("ToolServer", "pin: tools")),
        ("two transports", other("ToolServer", "stdio: {command: [a]}\nhttp: {url: 'http://a/mcp'}")),
        ("stdio", other("ToolServer", "stdio: {command: [], env: {A-B: x, OK: {env: '1x'}}, timeout: 0ms}")),
        ("package without a version", other("ToolServer", "package: {npx: '@modelcontextprotocol/server-everything'}")),
        ("package with a moving version", other("ToolServer", "package: {uvx: mcp-server-git@latest}")),
        ("both package runners", other("ToolServer", "package: {uvx: a==1, npx: a@1}")),
        ("image without digest", other("ToolServer", "image: {name: 'registry/mcp:1', port: 8080, path: mcp}")),
        ("plain credential for a tool server", other("ToolServer", "http: {url: 'https://a/mcp', headers: {authorization: Bearer abc}}")),
        ("approve outside allow", agent("instructions: x\nmodel: m\ntools:\n  - {server: s, allow: [git_log], approve: [git_lag, git_log]}")),
        ("allow", agent("instructions: x\nmodel: m\ntools:\n  - {server: s, allow: []}\n  - {server: s, allow: ['*', a, a]}")),
        ("itself as a tool", agent("instructions: x\nmodel: []\nagents: [{name: a}, {name: support/a}]")),
        ("limits", agent("instructions: ' '\nmodel: [m, m]\nlimits: {steps: 0, tokens: 0, wallTime: 200h, cost: 0 USD}\ninput: []\noutput: [text, text]")),
        ("output schema", agent("instructions: x\nmodel: m\noutputSchema: {type: objekt}")),
        ("output schema from elsewhere", agent("instructions: x\nmodel: m\noutputSchema: {$ref: 'https://example.com/s.json'}")),
        ("placement", agent("instructions: x\nmodel: m\nplacement: {clusters: [a, a], selector: {matchLabels: {}}}")),
        ("runtime", agent(&format!("instructions: x\nmodel: m\nruntime:\n  replicas: 0\n  engine: {{image: 'r/e@sha256:{digest}'}}\n  resources: {{requests: {{cpu: 2, memory: 1Gi}}, limits: {{cpu: 500m, memory: 12 MB}}}}"))),
        ("request above limit", agent("instructions: x\nmodel: m\nruntime: {resources: {requests: {memory: 1Gi}, limits: {memory: 512Mi}}}")),
        ("template", agent("instructions:\n  template: |\n    {{ include('Bad Name') }}\n    fine\n    {{ produkt }}\n  variables: {product: x, 1x: y}\nmodel: m")),
        ("template with a statement", agent("instructions: {template: 'a {% for x in y %}'}\nmodel: m")),
        ("template with an expression", agent("instructions: {template: 'a {{ x ~ x }}', variables: {x: y}}\nmodel: m")),
        ("template not closed", agent("instructions: {template: 'a {{ x'}\nmodel: m")),
        ("dangling references", agent("instructions: {template: '{{ include(\"style\") }}'}\nmodel: [m, other/n]\ntools: [{server: git, allow: [a]}]\nagents: [{name: b}]")),
        ("labels", "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {name: p, labels: {'a/b/c': x, ok: 'not ok'}}\nspec: {text: a}\n".to_owned()),
    ]
}

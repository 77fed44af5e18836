//! How large documents may be.

use super::{parse, project};
use roadstead_contract::documents::{MAX_JSON, Parsed, Problem, ProblemCode, parse_values};
use serde_json::{Value, json};

fn prompt(text: String) -> Value {
    json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "Prompt", "metadata": {"name": "p"}, "spec": {"text": text}})
}

#[test]
fn s31_a_document_has_the_same_limit_whatever_form_it_comes_in() {
    let values = |values: &[Value]| {
        let named: Vec<_> = values.iter().map(|v| ("-", v)).collect();
        parse_values(&named, &project())
    };
    let small = values(&[prompt("x".repeat(MAX_JSON - 200))]).expect("it fits");
    assert_eq!(small.len(), 1);
    let refused = |problems: Result<_, Vec<Problem>>| {
        let problem = problems.map(|_: Vec<Parsed>| ()).expect_err("refused").remove(0);
        assert_eq!(problem.code, ProblemCode::TooLarge, "{problem}");
    };
    refused(values(&[prompt("x".repeat(MAX_JSON))]));
    let many = vec![prompt("x".repeat(MAX_JSON / 2)); 17];
    refused(values(&many));
    // Short enough as YAML; as JSON each quote is two characters.
    let quotes = "\"".repeat(MAX_JSON * 3 / 4);
    refused(parse(&format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Prompt\nmetadata: {{name: p}}\nspec:\n  text: |\n    {quotes}\n"
    )));
    refused(values(&[json!({"k".repeat(300): 1})]));
}

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn offered(names: &[&str]) -> Arc<[ToolSchema]> {
    let schema = |name: &&str| ToolSchema {
        name: (*name).to_owned(),
        description: String::new(),
        parameters: Arc::new(json!({"type": "object"})),
    };
    names.iter().map(schema).collect()
}

/// The text shown and the calls read, with the text in pieces of `size` characters.
fn run(text: &str, size: usize) -> (String, Vec<(String, Value)>) {
    let mut reader = TextCalls::new(offered(&["time__now", "add"]));
    let chars: Vec<char> = text.chars().collect();
    let mut shown = String::new();
    for piece in chars.chunks(size.max(1)) {
        shown += &reader.push(piece.iter().collect());
    }
    let (rest, calls) = reader.finish();
    (
        shown + &rest,
        calls.into_iter().map(|c| (c.name, c.arguments)).collect(),
    )
}

fn check(text: &str, shown: &str, calls: &[(&str, Value)]) {
    let calls: Vec<(String, Value)> = calls.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    for size in [1, 2, 3, 7, 1000] {
        let (text_shown, found) = run(text, size);
        assert_eq!(
            (text_shown.trim(), &found),
            (shown, &calls),
            "{text:?} in pieces of {size}"
        );
    }
}

#[test]
fn a_written_call_with_an_integer_beyond_64_bits_is_refused() {
    for text in [
        r#"{"name": "add", "arguments": {"a": 18446744073709551617}}"#,
        r#"{"name": "add", "arguments": "{\"a\": 18446744073709551617}"}"#,
        r#"{'name': 'add', 'arguments': {'a': 18446744073709551617,}}"#,
        r#"{"tool_calls": [{"function": {"name": "add", "arguments": {"a": 18446744073709551617}}}]}"#,
    ] {
        let calls = read_calls(text, &offered(&["add"])).expect("a call");
        let problem = calls[0].problem.as_deref().unwrap_or_default();
        assert!(
            problem.contains("found 18446744073709551617"),
            "{text}: {calls:?}"
        );
    }
}

#[test]
fn calls_are_read_in_every_form() {
    let one = || [("add", json!({"a": 1, "b": 2}))];
    let table = [
        r#"{"name": "add", "arguments": {"a": 1, "b": 2}}"#,
        "\n  {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}\n",
        r#"[{"name": "add", "arguments": {"a": 1, "b": 2}}]"#,
        r#"{"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}"#,
        r#"{"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}}"#,
        r#"{"function": "add", "arguments": {"a": 1, "b": 2}}"#,
        r#"{"tool_call": {"id": "x", "name": "add", "arguments": {"a": 1, "b": 2}}}"#,
        r#"{'name': 'add', 'arguments': {'a': 1, 'b': 2,}}"#,
        r#"{"name": "add", "arguments": {"a": 1, "b": 2}"#,
        "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n```",
        "```\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n```\n",
        "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}",
    ];
    for text in table {
        check(text, "", &one());
    }
}

#[test]
fn words_before_a_call_are_shown() {
    let call = [("time__now", json!({}))];
    check(
        "Let me look.\n\n```json\n{\"name\": \"time__now\", \"arguments\": {}}\n```",
        "Let me look.",
        &call,
    );
    check(
        "Let me <b>look</b>. <tool_call>{\"name\": \"time__now\", \"arguments\": {}}</tool_call> Done.",
        "Let me <b>look</b>.  Done.",
        &call,
    );
}

#[test]
fn several_calls_are_read() {
    check(
        "<tool_call>{\"name\":\"add\",\"arguments\":{\"a\":1}}</tool_call>\n<tool_call>{\"name\":\"time__now\",\"arguments\":{}}</tool_call>",
        "",
        &[("add", json!({"a": 1})), ("time__now", json!({}))],
    );
    check(
        "```json\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n```\n\n```json\n{\"name\":\"time__now\",\"arguments\":{}}\n```\n",
        "",
        &[("add", json!({"a": 1})), ("time__now", json!({}))],
    );
}

#[test]
fn what_is_no_call_stays_as_it_is() {
    for text in [
        "",
        "Just words.",
        "`code` and ``more`` and a < b > c",
        "{\"answer\": 42}",
        "[1, 2, 3]",
        "[link](http://x)",
        r#"{"name": "add"}"#,
        r#"{"name": "Ada", "arguments": {"a": 1}}"#,
        r#"{"name": "rm", "arguments": {}}"#,
        r#"{"name": "add", "arguments": {}, "note": "an example"}"#,
        r#"{"name": "add", "arguments": {}} is how you would call it"#,
        "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n```\nis how a call would look.",
        "```python\nprint({\"name\": \"add\", \"arguments\": {}})\n```",
        "```python\nx = 1\n```\nand\n```json\n{\"name\": \"rm\", \"arguments\": {}}\n```",
        "```rust\nlet a = \"```\";\n```\nend",
        "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
        "<tool_call>do it</tool_call>",
        "<tool",
        "``",
        "```",
        "```json",
    ] {
        check(text, text.trim(), &[]);
    }
}

#[test]
fn s79_an_offered_tool_is_not_called_from_inside_other_code() {
    check(
        "```python\n```json\n{\"name\": \"add\", \"arguments\": {}}\nprint(1)\n```\nThat was it.",
        "```python\n```json\n{\"name\": \"add\", \"arguments\": {}}\nprint(1)\n```\nThat was it.",
        &[],
    );
}

#[test]
fn text_flows_while_it_can_be_no_call() {
    let mut reader = TextCalls::new(offered(&["add"]));
    assert_eq!(reader.push("Hello ".to_owned()), "Hello ");
    assert_eq!(reader.push("`code` ".to_owned()), "`code` ");
    assert_eq!(reader.push("a < b ".to_owned()), "a < b ");
    assert_eq!(reader.push("\n```python\n".to_owned()), "\n```python\n");
    assert_eq!(reader.push("x = 1\n".to_owned()), "x = 1\n");
    assert_eq!(reader.push("```\n".to_owned()), "```\n");
    assert_eq!(reader.push("<tool".to_owned()), "");
    assert_eq!(reader.push("box>".to_owned()), "<toolbox>");
    let mut json = TextCalls::new(offered(&["add"]));
    assert_eq!(json.push("{\"answer".to_owned()), "{\"answer");
}

#[test]
fn arguments_that_cannot_be_read_are_told() {
    let mut reader = TextCalls::new(offered(&["add"]));
    assert_eq!(
        reader.push(r#"{"name": "add", "arguments": "nonsense"}"#.to_owned()),
        ""
    );
    let (_, calls) = reader.finish();
    assert!(calls[0].problem.is_some() && calls[0].arguments == json!("nonsense"));
}

proptest! {
    /// Whatever is said, only offered tools are called, and without a call every character is shown.
    #[test]
    fn s79_text_never_calls_what_is_not_offered(
        pieces in prop::collection::vec(
            prop_oneof![
                Just("```"), Just("```json\n"), Just("\n```"), Just("\n"), Just("<tool_call>"), Just("</tool_call>"),
                Just("{\"name\": \"rm\", \"arguments\": {}}"), Just("{\"name\": \"shell\", \"parameters\": {\"c\": \"ls\"}}"),
                Just("{"), Just("}"), Just("["), Just("]"), Just("\"name\""), Just(":"), Just("some prose, "), Just("fn main() {}"),
                Just(" "), Just("<"), Just("`"), Just("é"), Just("{\"name\": \""), Just("[{"),
            ],
            0..30,
        ),
        size in 1usize..9,
    ) {
        let text = pieces.concat();
        let (shown, calls) = run(&text, size);
        prop_assert!(calls.is_empty(), "{:?}", calls);
        prop_assert_eq!(shown, text);
    }

    /// The pieces in which an answer comes do not change what is read.
    #[test]
    fn pieces_do_not_matter(
        pieces in prop::collection::vec(
            prop_oneof![
                Just("```"), Just("```json\n"), Just("\n```"), Just("\n"), Just("<tool_call>"), Just("</tool_call>"),
                Just("{\"name\": \"add\", \"arguments\": {\"a\": 1}}"), Just("words "), Just("{"), Just("`"), Just("```py\n"),
            ],
            0..12,
        ),
        size in 1usize..9,
    ) {
        let text = pieces.concat();
        prop_assert_eq!(run(&text, size), run(&text, 10_000), "{:?}", text);
    }
}

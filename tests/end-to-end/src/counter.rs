//! A tool that must not be called twice: it writes each number that it is given into a file, for good.

use anyhow::Context as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// An MCP server over standard input and output (MCP 2025-06-18) with one tool.
const SERVER: &str = r#"
import json, os, sys

book = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
tool = {"name": "count", "description": "Counts a number, for good.",
        "inputSchema": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}}
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    method, params = request["method"], request.get("params") or {}
    answer = {"jsonrpc": "2.0", "id": request["id"]}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "counter", "version": "1"}}
    elif method == "tools/list":
        answer["result"] = {"tools": [tool]}
    elif method == "tools/call":
        number = params["arguments"]["number"]
        os.write(book, b"%d\n" % number)
        answer["result"] = {"content": [{"type": "text", "text": f"counted {number}"}]}
    elif method == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"#;

/// The agents `echo`, without tools, and `counts`, with the tool. The numbers go into `folder`.
///
/// # Errors
/// When the folder cannot be written.
pub fn documents(folder: &Path) -> anyhow::Result<String> {
    let server = folder.join("counter.py");
    std::fs::write(&server, SERVER)?;
    let (server, book) = (server.display(), folder.join("counted"));
    Ok(format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: ToolServer\nmetadata: {{name: counter}}\nspec:\n  \
         stdio: {{command: [python3, {server}, {}], timeout: 20s}}\n---\nkind: Agent\nmetadata: {{name: echo}}\nspec:\n  \
         instructions: Answer.\n  model: default\n---\nkind: Agent\nmetadata: {{name: counts}}\nspec:\n  \
         instructions: Count.\n  model: default\n  tools: [{{server: counter, allow: [count]}}]\n",
        book.display()
    ))
}

/// Every number of `answered` was counted, and none more than once.
///
/// # Errors
/// With the numbers of which that is not so.
pub fn at_most_once(folder: &Path, answered: &BTreeSet<u64>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(folder.join("counted")).context("nothing was counted")?;
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    for number in text.lines() {
        *times.entry(number.parse()?).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    anyhow::ensure!(twice.is_empty(), "tool calls that were repeated: {twice:?}");
    let lost: Vec<_> = answered
        .iter()
        .filter(|number| !times.contains_key(number))
        .collect();
    anyhow::ensure!(lost.is_empty(), "answered and not called: {lost:?}");
    Ok(())
}

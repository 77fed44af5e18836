//! An MCP server over standard input and output (MCP 2025-06-18) with one tool, for tests that need one that does something
//! odd.

use std::path::Path;

/// Answers what every client asks. Before it stand `name`, `tool`, and `call(arguments)`, which gives a text.
const ANSWERS: &str = r#"
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    method, params = request["method"], request.get("params") or {}
    answer = {"jsonrpc": "2.0", "id": request["id"]}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": name, "version": "1"}}
    elif method == "tools/list":
        answer["result"] = {"tools": [tool]}
    elif method == "tools/call":
        answer["result"] = {"content": [{"type": "text", "text": call(params.get("arguments") or {})}]}
    elif method == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"#;

/// Writes the server `name` into `folder`; `own` is the Python that sets `tool` and `call`. Gives the document of a tool
/// server that runs it with one argument.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(folder: &Path, name: &str, own: &str, argument: &Path) -> std::io::Result<String> {
    let server = folder.join(format!("{name}.py"));
    let program = format!("import json, os, signal, sys, time\n\nname = \"{name}\"\n{own}{ANSWERS}");
    std::fs::write(&server, program)?;
    Ok(format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: ToolServer\nmetadata: {{name: {name}}}\nspec:\n  \
         stdio: {{command: [python3, {}, {}], timeout: 20s}}\n",
        server.display(),
        argument.display()
    ))
}

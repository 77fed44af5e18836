//! A tool that must not be called twice: it writes each number that it is given into a file, for good.

use crate::stdio_server;
use anyhow::Context as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

const COUNTS: &str = r#"
book = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
tool = {"name": "count", "description": "Counts a number, for good.",
        "inputSchema": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}}

def call(arguments):
    os.write(book, b"%d\n" % arguments["number"])
    return f"counted {arguments['number']}"
"#;

/// The agents `echo`, without tools, and `counts`, with the tool. The numbers go into `folder`.
///
/// # Errors
/// When the folder cannot be written.
pub fn documents(folder: &Path) -> anyhow::Result<String> {
    let server = stdio_server::write(folder, "counter", COUNTS, &folder.join("counted"))?;
    Ok(format!(
        "{server}---\nkind: Agent\nmetadata: {{name: echo}}\nspec:\n  \
         instructions: Answer.\n  model: default\n---\nkind: Agent\nmetadata: {{name: counts}}\nspec:\n  \
         instructions: Count.\n  model: default\n  tools: [{{server: counter, allow: [count]}}]\n",
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

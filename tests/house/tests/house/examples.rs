//! The examples hold by the rules that `apply` checks them with.

use std::collections::BTreeSet;

use roadstead_contract::documents::{Body, Kind, Name, Source, Transport, check_references, parse_files};
use roadstead_house::{text, tracked};

/// Programs that docs/examples/tools/install puts on the `PATH`.
fn installed() -> BTreeSet<String> {
    let script = text("docs/examples/tools/install").unwrap().unwrap();
    let links = script.lines().filter_map(|line| line.strip_prefix("link "));
    links
        .map(|rest| rest.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_example_is_accepted_on_its_own_and_all_are_together() {
    let project: Name = "default".parse().unwrap();
    let files: Vec<(String, String)> = tracked(&["agent.yaml"])
        .unwrap()
        .into_iter()
        .filter(|path| path.starts_with("docs/examples/"))
        .map(|path| (path.clone(), text(&path).unwrap().unwrap()))
        .collect();
    assert!(files.len() >= 3, "{files:?}");
    let sources: Vec<_> = files.iter().map(|(name, text)| Source { name, text }).collect();
    let installed = installed();
    for set in sources.chunks(1).chain([sources.as_slice()]) {
        let parsed = parse_files(set, &project).unwrap_or_else(|problems| panic!("{problems:#?}"));
        // `roadstead-hub dev` writes the Model; everything else comes with the example.
        let dangling = check_references(&parsed, |kind, name| {
            kind == Kind::Model && name.name.as_str() == "default"
        });
        assert!(dangling.is_empty(), "{dangling:#?}");
        for one in &parsed {
            if let Body::ToolServer(server) = &one.document.body {
                let Some(Transport::Stdio(stdio)) = server.transport() else {
                    continue;
                };
                assert!(
                    installed.contains(&stdio.command[0]),
                    "{:?} is not installed by the examples' tools",
                    stdio.command
                );
            }
        }
    }
}

#[test]
fn the_sample_model_document_is_accepted() {
    let text = text("docs/examples/model.yaml").unwrap().unwrap();
    let source = Source {
        name: "model.yaml",
        text: &text,
    };
    let parsed = parse_files(&[source], &"default".parse().unwrap())
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(parsed.len(), 1);
}

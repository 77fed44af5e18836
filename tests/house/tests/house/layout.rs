//! What lies where.

use roadstead_house::{manifests, root, text, tracked};

/// design: "The house". Folders appear with their content; `web` and `deploy` may still be absent.
const TOP: [&str; 19] = [
    ".ci",
    ".gitignore",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "cluster-agent",
    "control-plane",
    "deploy",
    "docs",
    "migrations",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
    "web",
];
const MAY_BE_ABSENT: [&str; 2] = ["deploy", "web"];

#[test]
fn the_top_level_is_exactly_what_the_design_lists() {
    let mut found: Vec<String> = tracked(&[])
        .unwrap()
        .iter()
        .map(|p| p.split('/').next().unwrap().to_owned())
        .collect();
    found.sort();
    found.dedup();
    let strange: Vec<_> = found
        .iter()
        .filter(|name| !TOP.contains(&name.as_str()))
        .collect();
    assert!(strange.is_empty(), "not part of the house: {strange:?}");
    let missing: Vec<_> = TOP
        .iter()
        .filter(|t| !MAY_BE_ABSENT.contains(t) && !found.iter().any(|f| f == *t))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
}

/// Lines that are code: not blank, not comment, not a module or re-export line alone.
fn lines_of_code(path: &str) -> usize {
    let text = text(path).unwrap().unwrap_or_default();
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("//") && !l.starts_with("/*"))
        .count()
}

#[test]
fn every_crate_has_content() {
    for member in manifests::crates().unwrap() {
        let own = |path: &String| path.starts_with(&format!("{}/", member.folder)) && path.ends_with(".rs");
        let lines: usize = tracked(&[".rs"])
            .unwrap()
            .iter()
            .filter(|p| own(p))
            .map(|p| lines_of_code(p))
            .sum();
        assert!(
            lines >= 20,
            "{} holds {lines} lines of code: a crate appears when it has content",
            member.folder
        );
    }
}

#[test]
fn lints_are_silenced_by_expect_with_a_reason_only() {
    let needles = [concat!("#[al", "low("), concat!("#![al", "low(")];
    for path in tracked(&[".rs"]).unwrap() {
        for (number, line) in text(&path).unwrap().unwrap_or_default().lines().enumerate() {
            assert!(
                !needles.iter().any(|needle| line.contains(needle)),
                "{path}:{}: use #[expect(lint, reason = \"…\")], which tells when it is no longer needed",
                number + 1
            );
        }
    }
}

/// Host names of the registries that this machine is set up to use, unless they are the public ones.
fn private_registries() -> Vec<String> {
    let asked = [
        ("npm", vec!["config", "get", "registry"]),
        ("pip", vec!["config", "get", "global.index-url"]),
    ];
    asked
        .iter()
        .filter_map(|(program, arguments)| std::process::Command::new(program).args(arguments).output().ok())
        .filter_map(|output| String::from_utf8(output.stdout).ok())
        .filter_map(|url| Some(url.trim().split_once("://")?.1.split('/').next()?.to_owned()))
        .map(|host| host.rsplit('@').next().unwrap_or_default().to_owned())
        .filter(|host| !["registry.npmjs.org", "pypi.org"].contains(&host.as_str()) && host.contains('.'))
        .collect()
}

#[test]
fn no_tracked_file_names_a_path_or_registry_of_one_machine() {
    let mut needles = vec![
        "/Users/".to_owned(),
        concat!("/ro", "ot/").to_owned(),
        concat!("art", "ifactory").to_owned(),
    ];
    needles.push(format!("{}/", root().display()));
    if let Some(home) = std::env::var_os("HOME")
        .and_then(|h| h.into_string().ok())
        .filter(|h| h.len() > 1)
    {
        needles.push(format!("{home}/"));
    }
    needles.extend(private_registries());
    let here = file!();
    let locks = ["Cargo.lock", "package-lock.json"];
    for path in tracked(&[]).unwrap() {
        if locks.iter().any(|lock| path.ends_with(lock)) || here.ends_with(&path) {
            continue;
        }
        let Some(text) = text(&path).unwrap() else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let found = needles.iter().find(|needle| line.contains(needle.as_str()));
            assert!(
                found.is_none(),
                "{path}:{}: names `{}`",
                number + 1,
                found.unwrap()
            );
        }
    }
}

#[test]
fn lists_of_packages_name_no_place_to_fetch_from() {
    // Where packages come from is the machine's configuration (pip.conf, PIP_INDEX_URL): a folder or an index in the
    // list would be asked on every other machine too.
    for path in tracked(&[".txt"]).unwrap() {
        if !path
            .rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with("requirements"))
        {
            continue;
        }
        for (number, line) in text(&path).unwrap().unwrap_or_default().lines().enumerate() {
            assert!(
                !line.starts_with('-'),
                "{path}:{}: found the option {line:?}",
                number + 1
            );
        }
    }
}

#[test]
fn sources_are_of_a_readable_size() {
    // One thought a file: 500 lines are the aim, 800 the limit; generated files are exempt by their folder.
    for path in tracked(&[".rs", ".ts", ".tsx"]).unwrap() {
        if path
            .split('/')
            .any(|part| ["gen", "gql", "generated"].contains(&part))
        {
            continue;
        }
        let lines = text(&path).unwrap().unwrap_or_default().lines().count();
        assert!(lines <= 800, "{path} has {lines} lines: split it by thought");
    }
}

#[test]
fn the_readme_begins_with_the_two_commands() {
    let readme = text("README.md").unwrap().unwrap();
    let beginning: Vec<_> = readme.lines().take(20).collect();
    for command in ["make run", "make test"] {
        assert!(
            beginning.iter().any(|line| line.contains(command)),
            "README.md does not begin with `{command}`"
        );
    }
}

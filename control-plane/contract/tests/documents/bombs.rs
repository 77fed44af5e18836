//! Small inputs that want to become large (S31).

use super::parse;
use std::fmt::Write as _;

#[test]
fn s31_bombs_are_refused_quickly() {
    for (name, text) in bombs() {
        let (before, begin) = (peak_kib(), busy_ms());
        let refused = parse(&text);
        let (took, grown) = (busy_ms() - begin, peak_kib() - before);
        assert!(refused.is_err(), "{name} is accepted");
        assert!(took < 1_000, "{name} took {took} ms");
        assert!(grown < 64 * 1024, "{name} took {grown} KiB more");
    }
}

/// Highest resident size of this process so far, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

/// Time that this thread has been running, in milliseconds: other tests and programs do not count.
fn busy_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("linux");
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.expect("a number") / 1_000_000
}

fn bombs() -> Vec<(&'static str, String)> {
    let mib = 1024 * 1024;
    let mut laughs = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for (one, two) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        let _ = writeln!(
            laughs,
            "{two}: &{two} [{}]",
            vec![format!("*{one}"); 9].join(", ")
        );
    }
    let full = |piece: &str| piece.repeat(mib / piece.len());
    vec![
        ("aliases", laughs),
        ("100 MB", "a".repeat(100 * mib)),
        ("flow depth", full("[")),
        ("flow map depth", full("{a: ")),
        ("block depth", full("- ")),
        ("explicit key depth", full("? ")),
        ("many values", format!("[{}]", full("1,"))),
        (
            "many keys",
            (0..90_000).fold(String::new(), |t, i| t + &format!("k{i}: 1\n")),
        ),
        ("many documents", full("--- a\n")),
        ("many problems", full("--- {kind: X}\n")),
        ("json depth", format!("{{\"a\":{}", full("[{\"a\":"))),
        ("quotes", full("\"")),
        ("colons", full(":")),
        ("anchors", full("&a ")),
        ("tags", full("!a ")),
        ("directives", full("%YAML 1.2\n")),
        ("spaces", full(" ") + ":"),
        ("tabs", full("\t") + "a"),
        ("one long key", full("k") + ": 1"),
        (
            "indentation",
            (0..1_400).fold(String::new(), |t, i| t + &" ".repeat(i) + "a:\n"),
        ),
    ]
}

//! Small inputs that want to become large (S31). In a process of their own: what is measured is the process's.

use roadstead_contract::documents::{Name, Parsed, Problem, Source, parse_files};
use std::fmt::Write as _;

fn parse(text: &str) -> Result<Vec<Parsed>, Vec<Problem>> {
    let project: Name = "support".parse().expect("a name");
    parse_files(&[Source { name: "a.yaml", text }], &project)
}

#[test]
fn s31_bombs_are_refused_quickly() {
    the_measure_sees_what_a_bomb_would_take();
    for (name, text) in bombs() {
        // What was freed before must not hide what is taken now.
        forget_peak();
        let (before, begin) = (peak_kib(), busy_ms());
        let refused = parse(&text);
        let (took, grown) = (busy_ms() - begin, peak_kib().saturating_sub(before));
        assert!(refused.is_err(), "{name} is accepted");
        assert!(took < 1_000, "{name} took {took} ms");
        assert!(grown < 64 * 1024, "{name} took {grown} KiB more");
    }
}

/// The peak begins anew at what is resident now (proc_pid_clear_refs(5)).
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("linux");
}

/// First, on the same thread: another one's freed memory would hide what is taken.
fn the_measure_sees_what_a_bomb_would_take() {
    let mut grown = Vec::new();
    for size in [96, 48] {
        forget_peak();
        let before = peak_kib();
        // Written to, so that it is resident.
        let taken = vec![1_u8; size * 1024 * 1024];
        assert_eq!(
            taken.iter().map(|b| u64::from(*b)).sum::<u64>() as usize,
            taken.len()
        );
        grown.push((peak_kib() - before) / 1024);
    }
    assert!(grown[0] >= 90 && grown[1] >= 42, "{grown:?} MiB");
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
            "a long key above many values",
            format!("? {}\n: [{}]\n", "a".repeat(900_000), "0,".repeat(49_000)),
        ),
        ("long keys above many values", long_keys()),
        (
            "indentation",
            (0..1_400).fold(String::new(), |t, i| t + &" ".repeat(i) + "a:\n"),
        ),
    ]
}

/// An agent whose schema has the longest keys, one below the other, above as many values as there may be.
fn long_keys() -> String {
    let key = "k".repeat(250);
    let inner = format!("{{\"{key}\":").repeat(55) + &format!("[{}0]", "0,".repeat(48_000)) + &"}".repeat(55);
    format!(
        "{{\"apiVersion\": \"roadstead.dev/v1alpha1\", \"kind\": \"Agent\", \"metadata\": {{\"name\": \"a\"}}, \
         \"spec\": {{\"instructions\": \"x\", \"model\": \"m\", \"unknown\": 1, \"outputSchema\": {inner}}}}}"
    )
}

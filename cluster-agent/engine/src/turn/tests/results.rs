//! Results that are longer than what a model reads at once.

use super::restarts::dies;
use crate::{
    journal::TaskState,
    tasks::{Caller, Inbound, TaskView},
    testing::{Act, Does, Rig, call, calls, message, reference, say, text, tool, until},
};
use serde_json::{Value, json};

/// 120,000 bytes of two-byte characters.
fn long() -> String {
    "é".repeat(60_000)
}

fn answers(rig: &Rig, tool: &str, text: String) {
    rig.tools.does.lock().insert(tool.to_owned(), Does::Answer(text));
}

fn offered(rig: &Rig, n: usize) -> Vec<String> {
    rig.asked(n).tools.iter().map(|t| t.name.clone()).collect()
}

async fn ask_as(rig: &Rig, subject: &str, context: Option<&str>) -> TaskView {
    let caller = Caller {
        subject: subject.to_owned(),
        ..Caller::default()
    };
    let inbound = Inbound {
        context: context.map(str::to_owned),
        ..message("log?")
    };
    let sent = rig.engine.tasks.send(&caller, inbound).await.expect("taken");
    sent.settled().await
}

fn read(reference: &str) -> Act {
    calls(&[call("r", "read_result", json!({"reference": reference}))])
}

#[tokio::test]
async fn a_model_reads_on_where_a_result_was_cut() {
    let rig = Rig::new(json!({}));
    answers(&rig, "log", long());
    let reads = |offset, length| Act::Reads { offset, length };
    rig.plays([
        calls(&[call("c", "log", json!({"n": 1}))]),
        reads(65_536, Some(5)),
        reads(65_540, None),
        reads(120_000, None),
        say("read"),
    ]);
    let view = rig.ask("log?").await;
    assert_eq!((view.status.state, text(&view)), (TaskState::Completed, "read"));
    assert!(!offered(&rig, 0).contains(&"read_result".to_owned()));
    assert!(offered(&rig, 1).contains(&"read_result".to_owned()));
    let results = rig.results(4);
    assert_eq!(
        results[1],
        (
            "éé\n[bytes 65536 to 65540 of 120000; next offset 65540]".to_owned(),
            false
        )
    );
    let rest = "é".repeat((120_000 - 65_540) / 2);
    assert_eq!(
        results[2].0,
        format!("{rest}\n[bytes 65540 to 120000 of 120000; the end]")
    );
    assert!(
        results[3].1 && results[3].0.contains("120000 bytes"),
        "{results:?}"
    );
    let runs = rig.engine.journal.runs_after(0, 1).await.expect("runs");
    let count = &runs[0].tools["result/read_result"];
    assert_eq!((count.calls, count.errors), (3, 1));
}

#[tokio::test]
async fn s85_a_reference_leads_nowhere_in_another_session_or_for_another_caller() {
    let rig = Rig::new(json!({}));
    answers(&rig, "log", long());
    let log = || calls(&[call("c", "log", json!({"n": 1}))]);
    rig.plays([log(), say("alice has it")]);
    ask_as(&rig, "alice", Some("one")).await;
    let secret = reference(&rig.results(1)[0].0).expect("a reference").to_owned();
    let mut n = 2;
    let mut told = Vec::new();
    // With a result of their own, so that the tool is on offer; the name of the session is the same for bob.
    for (subject, context) in [("alice", "two"), ("bob", "one"), ("bob", "two")] {
        for wanted in [secret.as_str(), "000000000000", ""] {
            rig.plays([log(), read(wanted), say("tried")]);
            ask_as(&rig, subject, Some(&format!("{context}-{n}"))).await;
            told.push(rig.results(n + 2)[1].clone());
            n += 3;
        }
    }
    assert!(
        told.iter().all(|t| *t == told[0]),
        "foreign, unknown and empty are alike: {told:?}"
    );
    assert!(told[0].1 && told[0].0.contains("no such reference"), "{told:?}");
    rig.plays([log(), say("bob has his own")]);
    ask_as(&rig, "bob", Some("one")).await;
    rig.plays([read(&secret), say("tried")]);
    ask_as(&rig, "bob", Some("one")).await;
    let results = rig.results(n + 3);
    assert_eq!(results.last(), Some(&told[0]));
    // And its owner reads it in a later task of the session.
    rig.plays([read(&secret), say("read")]);
    ask_as(&rig, "alice", Some("one")).await;
    assert!(offered(&rig, n + 4).contains(&"read_result".to_owned()));
    let results = rig.results(n + 5);
    assert!(
        results
            .last()
            .is_some_and(|(text, is_error)| !is_error && text.starts_with('é'))
    );
}

#[tokio::test]
async fn s83_reading_on_counts_like_any_call() {
    let rig = Rig::new(json!({"limits": {"toolCalls": 2}}));
    answers(&rig, "log", long());
    let reads = || Act::Reads {
        offset: 0,
        length: None,
    };
    rig.plays([calls(&[call("c", "log", json!({"n": 1}))]), reads(), reads()]);
    let view = rig.ask("log?").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, "limit.toolCalls")
    );
}

#[tokio::test]
async fn a_task_keeps_so_much_and_says_what_it_does_not_keep() {
    let rig = Rig::new(json!({}));
    answers(&rig, "log", "x".repeat(8 * 1024 * 1024));
    let five: Vec<_> = (0..5)
        .map(|n| call(&format!("c{n}"), "log", json!({"n": n})))
        .collect();
    rig.plays([calls(&five), say("much")]);
    rig.ask("log?").await;
    let results = rig.results(1);
    let kept = results
        .iter()
        .filter(|(text, _)| text.contains("read on with"))
        .count();
    let lost = results
        .iter()
        .filter(|(text, _)| text.contains("is not kept"))
        .count();
    assert_eq!((kept, lost), (4, 1));
}

#[tokio::test]
async fn what_is_kept_goes_with_its_task() {
    let rig = Rig::new(json!({}));
    answers(&rig, "log", long());
    rig.plays([calls(&[call("c", "log", json!({"n": 1}))]), say("long")]);
    rig.ask("log?").await;
    let journal = &rig.engine.journal;
    assert_eq!(journal.kept_bytes(1).await, Ok(120_000));
    assert_eq!(journal.retire(i64::MAX).await, Ok(1));
    assert_eq!(journal.kept_bytes(1).await, Ok(0));
}

#[tokio::test]
async fn a_servers_tool_of_that_name_has_another() {
    let tools = json!([{"server": "git", "allow": ["log", "read_result"], "approve": []}]);
    let rig = Rig::new(json!({"tools": tools}));
    rig.tools.offer(vec![tool("log"), tool("read_result")]);
    answers(&rig, "log", long());
    rig.plays([
        calls(&[call("c", "log", json!({"n": 1}))]),
        calls(&[call("d", "read_result_2", json!({"n": 1}))]),
        Act::Reads {
            offset: 0,
            length: Some(2),
        },
        say("both"),
    ]);
    rig.ask("log?").await;
    assert_eq!(offered(&rig, 1), ["log", "read_result_2", "read_result"]);
    let results = rig.results(3);
    assert_eq!(results[1].0, "read_result did {\"n\":1}");
    assert!(results[2].0.starts_with("é\n[bytes 0 to 2"), "{}", results[2].0);
}

#[test]
fn a_reference_is_good_after_a_kill() {
    let spec: Value = json!({});
    dies(
        || {
            let rig = Rig::new(spec);
            answers(&rig, "log", long());
            rig
        },
        |rig| async {
            rig.plays([calls(&[call("c", "log", json!({"n": 1}))]), Act::Hang(Vec::new())]);
            let sent = rig.send(message("log?")).await.expect("taken");
            let uid = sent.view().uid;
            until("the result is kept and the model asked", || {
                rig.script.asked.lock().len() == 2
            })
            .await;
            (rig, uid)
        },
        |rig, uid| async move {
            rig.plays([
                Act::Reads {
                    offset: 2,
                    length: Some(2),
                },
                say("read"),
            ]);
            let view = super::restarts::ended(&rig, &uid).await;
            assert_eq!(text(&view), "read");
            let asked = rig.script.asked.lock().len();
            let results = rig.results(asked - 1);
            assert!(results[1].0.starts_with("é\n[bytes 2 to 4"), "{results:?}");
        },
    );
}

//! A process that dies in the middle: its runtime is dropped with everything in it, and a new engine opens the journal.

use crate::{
    journal::TaskState,
    model::{ModelEvent, ToolCall},
    tasks::{Inbound, TaskView},
    testing::{Act, Does, Rig, alice, call, calls, message, say, text, tool, until},
};
use serde_json::{Value, json};
use std::{future::Future, time::Duration};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Runs `before` in one process, kills that, and runs `after` in the next.
pub(super) fn dies<A, B>(
    rig: impl FnOnce() -> Rig,
    before: impl FnOnce(Rig) -> A,
    after: impl FnOnce(Rig, String) -> B,
) where
    A: Future<Output = (Rig, String)>,
    B: Future<Output = ()>,
{
    let first = runtime();
    let (remains, uid) = first.block_on(async {
        let (rig, uid) = before(rig()).await;
        (rig.remains(), uid)
    });
    drop(first);
    let second = runtime();
    second.block_on(async {
        let (folder, script, tools, spec) = remains;
        after(Rig::reborn(folder, script, tools, spec), uid).await;
    });
}

/// For a task of the process before to get where it should. Far more than it takes: what never gets there is to fail.
const PATIENCE: Duration = Duration::from_secs(30);

/// The task once it is as `holds` says.
async fn becomes(rig: &Rig, uid: &str, what: &str, holds: impl Fn(&TaskView) -> bool) -> TaskView {
    let began = tokio::time::Instant::now();
    loop {
        let found = rig.engine.tasks.get(&alice(), uid).await;
        match found {
            Ok(view) if holds(&view) => return view,
            found => assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for a task that {what}: {found:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) async fn ended(rig: &Rig, uid: &str) -> TaskView {
    becomes(rig, uid, "has ended", |view| view.status.state.is_terminal()).await
}

pub(super) async fn asks(rig: &Rig, uid: &str) -> TaskView {
    becomes(rig, uid, "asks", |view| !view.status.waits_for.is_empty()).await
}

#[tokio::test]
async fn a_task_of_this_process_is_never_taken_over() {
    let rig = Rig::new(json!({}));
    rig.plays([Act::Hang(vec![ModelEvent::Text("Hel".to_owned())])]);
    let sent = rig.send(message("hi")).await.expect("taken");
    until("it talks", || text(&sent.view()) == "Hel").await;
    assert_eq!(rig.engine.journal.every_open_task().await.expect("read").len(), 1);
    assert_eq!(rig.engine.journal.claim().await.expect("claimed"), []);
}

#[test]
fn a_model_call_is_sent_again_and_that_is_counted() {
    dies(
        || Rig::new(json!({})),
        |rig| async move {
            rig.plays([Act::Hang(vec![ModelEvent::Text("Hel".to_owned())]), say("hello")]);
            let sent = rig.send(message("hi")).await.expect("taken");
            until("it talks", || text(&sent.view()) == "Hel").await;
            (rig, sent.view().uid)
        },
        |rig, uid| async move {
            let view = ended(&rig, &uid).await;
            assert_eq!((view.status.state, text(&view)), (TaskState::Completed, "hello"));
            let runs = rig.engine.journal.runs_after(0, 10).await.expect("runs");
            assert_eq!((runs.len(), runs[0].model_calls, runs[0].estimated), (1, 2, true));
        },
    );
}

/// A process dies while the tool `commit` works; what the next one finds is up to the tool and the agent.
fn dies_in_a_call<B: Future<Output = ()>>(
    spec: Value,
    info: impl FnOnce(&mut crate::tools::ToolInfo),
    after: impl FnOnce(Rig, String) -> B,
) {
    let mut commit = tool("commit");
    info(&mut commit);
    dies(
        move || {
            let rig = Rig::new(spec);
            rig.tools.offer(vec![tool("log"), commit]);
            rig
        },
        |rig| async move {
            rig.tools.does.lock().insert("commit".to_owned(), Does::Deaf);
            let batch = [
                call("a", "log", json!({"n": 1})),
                call("b", "commit", json!({"n": 2})),
            ];
            rig.plays([calls(&batch), say("done")]);
            let sent = rig.send(message("commit")).await.expect("taken");
            until("both are called", || rig.tools.names().len() == 2).await;
            // The quick one's result is kept as it comes; a read sees everything that was written before it.
            let began = tokio::time::Instant::now();
            loop {
                let entries = rig
                    .engine
                    .journal
                    .entries(sent.view().uid)
                    .await
                    .expect("entries");
                if entries[1].1[0].result.is_some() {
                    break;
                }
                assert!(began.elapsed() < PATIENCE, "no result is kept: {entries:?}");
                tokio::task::yield_now().await;
            }
            rig.tools.does.lock().clear();
            let uid = sent.view().uid;
            (rig, uid)
        },
        after,
    );
}

#[test]
fn a_call_without_a_result_is_not_repeated_but_asked_about() {
    dies_in_a_call(
        json!({}),
        |_| {},
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            assert_eq!(view.status.state, TaskState::InputRequired);
            assert!(view.status.detail.contains("not known"), "{}", view.status.detail);
            assert_eq!(rig.tools.names(), ["log", "commit"]);
            let done = rig
                .answer(&view, message("no, it is there").parts)
                .await
                .expect("taken")
                .settled()
                .await;
            assert_eq!(done.status.state, TaskState::Completed);
            assert_eq!(rig.tools.names(), ["log", "commit"]);
            let results = rig.results(1);
            assert!(
                !results[0].1
                    && results[1].0.contains("not repeated")
                    && results[1].0.contains("it is there"),
                "{results:?}"
            );
        },
    );
}

#[test]
fn a_person_can_have_it_repeated() {
    dies_in_a_call(
        json!({}),
        |_| {},
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            rig.answer(&view, message("yes").parts)
                .await
                .expect("taken")
                .settled()
                .await;
            assert_eq!(rig.tools.names(), ["log", "commit", "commit"]);
            let called = rig.tools.called.lock();
            assert_eq!(called[1].idempotency_key, called[2].idempotency_key);
            assert_ne!(called[0].idempotency_key, called[1].idempotency_key);
        },
    );
}

#[test]
fn a_call_that_is_safe_to_repeat_is_repeated_with_the_same_key() {
    for hint in ["read-only", "idempotent"] {
        let set = move |info: &mut crate::tools::ToolInfo| {
            info.trusted = true;
            info.read_only = hint == "read-only";
            info.idempotent = hint == "idempotent";
        };
        dies_in_a_call(json!({}), set, |rig, uid| async move {
            assert_eq!(ended(&rig, &uid).await.status.state, TaskState::Completed);
            assert_eq!(rig.tools.names(), ["log", "commit", "commit"]);
            let called = rig.tools.called.lock();
            assert_eq!(called[1].idempotency_key, called[2].idempotency_key);
        });
    }
}

#[test]
fn hints_of_a_server_that_is_not_trusted_count_for_nothing() {
    let set = |info: &mut crate::tools::ToolInfo| {
        info.read_only = true;
        info.idempotent = true;
    };
    dies_in_a_call(json!({}), set, |rig, uid| async move {
        asks(&rig, &uid).await;
        assert_eq!(rig.tools.names(), ["log", "commit"]);
    });
}

#[test]
fn on_unknown_result_fail_ends_the_task() {
    dies_in_a_call(
        json!({"onUnknownResult": "fail"}),
        |_| {},
        |rig, uid| async move {
            let view = ended(&rig, &uid).await;
            assert_eq!(
                (view.status.state, view.status.reason.as_str()),
                (TaskState::Failed, "tool.unknownResult")
            );
            assert!(view.status.detail.contains("git/commit"));
            assert_eq!(rig.tools.names(), ["log", "commit"]);
        },
    );
}

#[test]
fn on_unknown_result_tell_lets_the_model_know() {
    dies_in_a_call(
        json!({"onUnknownResult": "tell"}),
        |_| {},
        |rig, uid| async move {
            assert_eq!(ended(&rig, &uid).await.status.state, TaskState::Completed);
            assert_eq!(rig.tools.names(), ["log", "commit"]);
            assert!(rig.results(1)[1].0.contains("may have taken effect"));
        },
    );
}

fn approving() -> Rig {
    Rig::new(json!({"tools": [{"server": "git", "allow": ["*"], "approve": ["commit"]}]}))
}

#[test]
fn a_question_outlives_the_process() {
    dies(
        approving,
        |rig| async move {
            rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("committed")]);
            let view = rig.ask("commit").await;
            (rig, view.uid)
        },
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            assert_eq!(view.status.waits_for[0].arguments, json!({"n": 7}));
            let done = rig
                .answer(&view, message("yes").parts)
                .await
                .expect("taken")
                .settled()
                .await;
            assert_eq!(
                (done.status.state, text(&done)),
                (TaskState::Completed, "committed")
            );
            assert_eq!(rig.tools.names(), ["commit"]);
        },
    );
}

#[test]
fn an_approval_is_used_up_by_the_call_even_if_the_process_dies_in_it() {
    dies(
        approving,
        |rig| async move {
            rig.tools.does.lock().insert("commit".to_owned(), Does::Deaf);
            rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("done")]);
            let view = rig.ask("commit").await;
            rig.answer(&view, message("yes").parts).await.expect("taken");
            until("it is called", || rig.tools.names() == ["commit"]).await;
            rig.tools.does.lock().clear();
            (rig, view.uid)
        },
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            assert!(view.status.detail.contains("not known"), "{}", view.status.detail);
            assert_eq!(rig.tools.names(), ["commit"]);
        },
    );
}

#[test]
fn calls_that_were_not_sent_are_sent() {
    dies(
        || Rig::new(json!({})),
        |rig| async move {
            rig.tools.does.lock().insert("log".to_owned(), Does::Deaf);
            let many: Vec<ToolCall> = (0..10)
                .map(|n| {
                    call(
                        &format!("c{n}"),
                        if n < 8 { "log" } else { "diff" },
                        json!({"n": n}),
                    )
                })
                .collect();
            rig.plays([calls(&many), say("done")]);
            let sent = rig.send(message("go")).await.expect("taken");
            until("eight are called", || rig.tools.names().len() == 8).await;
            rig.tools.does.lock().clear();
            let uid = sent.view().uid;
            (rig, uid)
        },
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            assert_eq!(view.status.waits_for.len(), 8);
            // Those beyond the cap had not been sent: they are, without a question.
            assert_eq!(rig.tools.names()[8..], ["diff", "diff"]);
        },
    );
}

#[test]
fn a_task_keeps_its_revision_over_a_restart() {
    dies(
        || Rig::new(json!({"tools": []})),
        |mut rig| async move {
            rig.plays([Act::Hang(vec![]), say("done")]);
            let sent = rig.send(message("hi")).await.expect("taken");
            until("it is asked", || rig.script.asked.lock().len() == 1).await;
            let newer = crate::testing::bundle(
                &crate::testing::spec(json!({"instructions": "Newer.", "tools": []})),
                2,
            );
            rig.engine
                .apply(newer, Default::default(), Default::default())
                .expect("loads");
            rig.engine.journal.probe().await.expect("kept");
            let uid = sent.view().uid;
            // The next process begins with the newer revision.
            rig.spec = crate::testing::spec(json!({"instructions": "Newer.", "tools": []}));
            (rig, uid)
        },
        |rig, uid| async move {
            ended(&rig, &uid).await;
            assert_eq!(rig.asked(1).system, "Be brief.");
        },
    );
}

#[test]
fn a_known_message_is_known_to_the_next_process() {
    let inbound = message("hi");
    let again: Inbound = inbound.clone();
    dies(
        || Rig::new(json!({})),
        |rig| async move {
            let view = rig.send(inbound).await.expect("taken").settled().await;
            (rig, view.uid)
        },
        |rig, uid| async move {
            let view = rig.send(again).await.expect("known").settled().await;
            assert_eq!(view.uid, uid);
            assert_eq!(rig.script.asked.lock().len(), 1);
        },
    );
}

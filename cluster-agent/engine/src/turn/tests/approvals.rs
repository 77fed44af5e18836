//! Calls that a person decides: bound to a digest, single-use, expiring.

use crate::{
    journal::{InPart, TaskState},
    tasks::{Caller, Inbound, Refusal, TaskView},
    testing::{Rig, alice, call, calls, message, say, text, until},
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

fn rig() -> Rig {
    Rig::new(json!({"tools": [{"server": "git", "allow": ["*"], "approve": ["commit"]}]}))
}

fn data(data: Value) -> Vec<InPart> {
    vec![InPart::Data { data }]
}

fn verdict(view: &TaskView, n: usize, decision: &str) -> Value {
    let asked = &view.status.waits_for[n];
    json!({"approval": asked.approval, "decision": decision, "digest": asked.digest, "reason": "because"})
}

#[tokio::test]
async fn s82_a_call_waits_for_a_person_and_is_made_once() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("committed")]);
    let view = rig.ask("commit").await;
    assert_eq!(view.status.state, TaskState::InputRequired);
    let asked = &view.status.waits_for[0];
    assert_eq!(
        (asked.tool.as_str(), &asked.arguments),
        ("commit", &json!({"n": 7}))
    );
    assert!(view.status.detail.contains("git/commit") && view.status.detail.contains("{\"n\":7}"));
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    let done = rig
        .answer(&view, data(verdict(&view, 0, "approve")))
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(
        (done.status.state, text(&done)),
        (TaskState::Completed, "committed")
    );
    assert_eq!(rig.tools.names(), ["commit"]);
    let late = rig
        .answer(&view, data(verdict(&view, 0, "approve")))
        .await
        .expect_err("used up");
    assert!(matches!(late, Refusal::Unsupported(_)), "{late}");
    assert_eq!(rig.tools.names(), ["commit"]);
}

/// Alice, as the hub names her when she may not approve.
fn only_invokes() -> Caller {
    Caller {
        approve: false,
        ..alice()
    }
}

#[tokio::test]
async fn s82_who_may_invoke_and_not_approve_makes_no_call_happen() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("then not")]);
    let tasks = &rig.engine.tasks;
    let begun = tasks.send(&only_invokes(), message("commit")).await;
    let view = begun.expect("taken").settled().await;
    let answer = |parts| Inbound {
        task: Some(view.uid.clone()),
        parts,
        ..message("")
    };
    let attempts = [
        message("yes").parts,
        data(verdict(&view, 0, "approve")),
        data(verdict(&view, 0, "repeat")),
    ];
    for parts in attempts {
        let refusal = tasks.send(&only_invokes(), answer(parts.clone())).await;
        let refusal = refusal.expect_err("refused");
        assert!(matches!(refusal, Refusal::Unsupported(_)), "{parts:?}: {refusal}");
    }
    let still = tasks.get(&alice(), &view.uid).await.expect("there");
    assert_eq!(still.status, view.status);
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    // A no needs no right: whose task it is may cancel it as well.
    let no = tasks.send(&only_invokes(), answer(message("no").parts)).await;
    assert_eq!(text(&no.expect("taken").settled().await), "then not");
    assert_eq!(rig.tools.names(), Vec::<String>::new());
}

#[tokio::test]
async fn an_answer_binds_to_what_was_asked() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))])]);
    let view = rig.ask("commit").await;
    for wrong in [
        json!({"approval": view.status.waits_for[0].approval, "decision": "approve", "digest": "0".repeat(64)}),
        json!({"approval": "another", "decision": "approve", "digest": view.status.waits_for[0].digest}),
        json!({"approval": view.status.waits_for[0].approval, "decision": "approve"}),
        json!({"approval": view.status.waits_for[0].approval, "decision": "sure", "digest": view.status.waits_for[0].digest}),
        json!("yes"),
    ] {
        let refusal = rig.answer(&view, data(wrong.clone())).await.expect_err("refused");
        assert!(matches!(refusal, Refusal::Invalid(_)), "{wrong}: {refusal}");
    }
    assert!(matches!(
        rig.answer(&view, message("perhaps").parts).await,
        Err(Refusal::Invalid(_))
    ));
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    let still = rig.engine.tasks.get(&alice(), &view.uid).await.expect("there");
    assert_eq!(still.status, view.status);
}

#[tokio::test]
async fn a_refused_call_is_told_with_the_reason() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("then not")]);
    let view = rig.ask("commit").await;
    let done = rig
        .answer(&view, message("no, not on a Friday").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(text(&done), "then not");
    let (told, is_error) = rig.results(1).remove(0);
    assert!(
        is_error && told.contains("refused") && told.contains("not on a Friday"),
        "{told}"
    );
    assert_eq!(rig.tools.names(), Vec::<String>::new());
}

#[tokio::test]
async fn calls_that_need_nobody_do_not_wait_for_those_that_do() {
    let rig = rig();
    let batch = [
        call("a", "commit", json!({"n": 1})),
        call("b", "log", json!({"n": 2})),
    ];
    rig.plays([calls(&batch), say("done")]);
    let view = rig.ask("both").await;
    assert_eq!(
        (view.status.state, rig.tools.names()),
        (TaskState::InputRequired, vec!["log".to_owned()])
    );
    rig.answer(&view, message("yes").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(rig.tools.names(), ["log", "commit"]);
    let texts: Vec<String> = rig.results(1).into_iter().map(|(t, _)| t).collect();
    assert_eq!(texts, ["commit did {\"n\":1}", "log did {\"n\":2}"]);
}

#[tokio::test]
async fn several_questions_are_answered_one_by_one() {
    let rig = rig();
    let batch = [
        call("a", "commit", json!({"n": 1})),
        call("b", "commit", json!({"n": 2})),
    ];
    rig.plays([calls(&batch), say("done")]);
    let view = rig.ask("both").await;
    assert_eq!(view.status.waits_for.len(), 2);
    let plain = rig
        .answer(&view, message("yes").parts)
        .await
        .expect_err("which one?");
    assert!(plain.to_string().contains("2 decisions"), "{plain}");
    let half = rig
        .answer(&view, data(verdict(&view, 1, "approve")))
        .await
        .expect("taken")
        .view();
    assert_eq!(
        (half.status.state, half.status.waits_for.len()),
        (TaskState::InputRequired, 1)
    );
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    let done = rig
        .answer(&view, data(verdict(&view, 0, "deny")))
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(done.status.state, TaskState::Completed);
    let errors: Vec<bool> = rig.results(1).into_iter().map(|(_, e)| e).collect();
    assert_eq!(errors, [true, false]);
}

#[tokio::test]
async fn an_answer_sent_again_changes_nothing() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("committed")]);
    let view = rig.ask("commit").await;
    let mut inbound = message("yes");
    inbound.task = Some(view.uid.clone());
    let first = rig.send(inbound.clone()).await.expect("taken").settled().await;
    let again = rig.send(inbound).await.expect("known").settled().await;
    assert_eq!(first.uid, again.uid);
    assert_eq!(rig.tools.names(), ["commit"]);
}

#[tokio::test]
async fn nobody_answers_in_time() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))]), say("nobody came")]);
    let view = rig.ask("commit").await;
    rig.clock
        .0
        .store(view.status.waits_for[0].expires_ms, Ordering::SeqCst);
    // Too late a yes is no yes.
    let done = rig
        .answer(&view, message("yes").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(text(&done), "nobody came");
    assert!(rig.results(1)[0].0.contains("Nobody answered in time"));
    assert_eq!(rig.tools.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_that_waits_can_be_canceled() {
    let rig = rig();
    rig.plays([calls(&[call("c", "commit", json!({"n": 7}))])]);
    let view = rig.ask("commit").await;
    let canceled = rig
        .engine
        .tasks
        .cancel(&alice(), &view.uid)
        .await
        .expect("canceled");
    assert_eq!(canceled.status.state, TaskState::Canceled);
    until("no turn runs", || rig.engine.tasks.active() == 0).await;
    let runs = rig.engine.journal.runs_after(0, 10).await.expect("runs");
    assert_eq!((runs.len(), runs[0].reason.as_str()), (1, "canceled"));
    assert!(rig.answer(&view, message("yes").parts).await.is_err());
    assert_eq!(rig.tools.names(), Vec::<String>::new());
}

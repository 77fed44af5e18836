//! `ask_user`: the task waits for the person's next message, which is the tool's result.

use super::restarts::{asks, dies};
use crate::{
    journal::{InPart, TaskState},
    tasks::{Caller, Refusal, Shown},
    testing::{Act, Rig, alice, call, calls, message, say, text, tool, until},
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

fn asking() -> Rig {
    Rig::new(json!({"questions": "ask", "tools": [{"server": "git", "allow": ["*"], "approve": ["commit"]}]}))
}

fn ask(id: &str, question: &str) -> crate::model::ToolCall {
    call(id, "ask_user", json!({"question": question}))
}

fn offered(rig: &Rig, n: usize) -> Vec<String> {
    rig.asked(n).tools.iter().map(|t| t.name.clone()).collect()
}

#[tokio::test]
async fn a_question_waits_for_the_next_message_and_that_is_the_result() {
    let rig = asking();
    rig.plays([calls(&[ask("q", "Which branch?")]), say("on main then")]);
    let view = rig.ask("commit it").await;
    assert_eq!(
        (view.status.state, view.status.detail.as_str()),
        (TaskState::InputRequired, "Which branch?")
    );
    let done = rig
        .answer(&view, message("main, please").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(
        (done.status.state, text(&done)),
        (TaskState::Completed, "on main then")
    );
    assert_eq!(rig.results(1), [("main, please".to_owned(), false)]);
    let said: Vec<String> = done.history.iter().map(words).collect();
    assert_eq!(said, ["commit it", "Which branch?", "main, please"]);
    until("the task left memory", || rig.engine.tasks.active() == 0).await;
    let kept = rig.engine.tasks.get(&alice(), &view.uid).await.expect("kept");
    assert_eq!(kept.history, done.history);
    let run = rig.engine.journal.runs_after(0, 1).await.expect("runs").remove(0);
    assert_eq!(run.tools["person/ask_user"].calls, 1);
}

fn words(shown: &Shown) -> String {
    match shown {
        Shown::Agent { text } => text.clone(),
        Shown::User { parts, .. } => match &parts[0] {
            InPart::Text { text } => text.clone(),
            other => format!("{other:?}"),
        },
    }
}

#[tokio::test]
async fn only_an_agent_whose_document_says_so_may_ask() {
    let rig = Rig::new(json!({}));
    rig.plays([calls(&[ask("q", "Which branch?")]), say("never mind")]);
    let view = rig.ask("go").await;
    assert_eq!(view.status.state, TaskState::Completed);
    assert!(!offered(&rig, 0).contains(&"ask_user".to_owned()));
    assert!(rig.results(1)[0].0.contains("There is no tool ask_user"));
}

#[tokio::test]
async fn a_task_of_another_agent_has_nobody_to_ask() {
    let rig = asking();
    rig.plays([calls(&[ask("q", "Which branch?")]), say("never mind")]);
    let caller = Caller { depth: 1, ..alice() };
    let sent = rig.engine.tasks.send(&caller, message("go")).await;
    let view = sent.expect("taken").settled().await;
    assert_eq!(view.status.state, TaskState::Completed);
    assert!(!offered(&rig, 0).contains(&"ask_user".to_owned()));
    rig.plays([calls(&[ask("q", "Which branch?")])]);
    assert_eq!(rig.ask("go").await.status.state, TaskState::InputRequired);
}

#[tokio::test]
async fn a_servers_tool_of_the_same_name_is_called_by_another() {
    let rig = asking();
    rig.tools.offer(vec![tool("ask_user")]);
    rig.plays([calls(&[call("c", "git__ask_user", json!({"n": 1}))]), say("done")]);
    rig.ask("go").await;
    assert_eq!(offered(&rig, 0), ["ask_user", "git__ask_user"]);
    assert_eq!(rig.tools.names(), ["ask_user"]);
}

#[tokio::test]
async fn a_question_without_words_is_sent_back() {
    let rig = asking();
    rig.plays([
        calls(&[ask("q", "  ")]),
        calls(&[call("q", "ask_user", json!({}))]),
        say("well"),
    ]);
    assert_eq!(rig.ask("go").await.status.state, TaskState::Completed);
    assert!(
        rig.results(2)
            .iter()
            .all(|(text, error)| *error && text.contains("JSON Schema"))
    );
}

#[tokio::test]
async fn s82_words_for_a_question_approve_nothing() {
    let rig = asking();
    let batch = [ask("q", "Shall I?"), call("c", "commit", json!({"n": 1}))];
    rig.plays([calls(&batch), say("done")]);
    let view = rig.ask("go").await;
    assert_eq!(view.status.waits_for.len(), 2);
    let ids: Vec<String> = view.status.waits_for.iter().map(|w| w.approval.clone()).collect();
    let digest = &view.status.waits_for[0].digest;
    let data = |data: Value| vec![InPart::Data { data }];
    for wrong in [
        message("yes").parts,
        data(json!({"question": ids[1], "answer": "yes"})),
        data(json!({"approval": ids[0], "decision": "approve", "digest": digest})),
        data(json!({"question": "another", "answer": "yes"})),
        data(json!({"question": ids[0]})),
    ] {
        let refusal = rig.answer(&view, wrong.clone()).await.expect_err("refused");
        assert!(matches!(refusal, Refusal::Invalid(_)), "{wrong:?}: {refusal}");
    }
    let half = rig
        .answer(&view, data(json!({"question": ids[0], "answer": "yes"})))
        .await
        .expect("taken")
        .view();
    assert_eq!(
        (half.status.state, half.status.waits_for.len()),
        (TaskState::InputRequired, 1)
    );
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    rig.answer(&view, message("no").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(rig.tools.names(), Vec::<String>::new());
    assert_eq!(rig.results(1)[0], ("yes".to_owned(), false));
}

#[tokio::test]
async fn an_answer_has_words() {
    let rig = asking();
    rig.plays([calls(&[ask("q", "Which?")]), say("ok")]);
    let view = rig.ask("go").await;
    let file = InPart::File {
        name: "a.png".to_owned(),
        media_type: "image/png".to_owned(),
        data: "AAAA".to_owned(),
    };
    assert!(matches!(
        rig.answer(&view, vec![file]).await,
        Err(Refusal::Media(_))
    ));
    let long = message(&"x".repeat(64 * 1024 + 1)).parts;
    assert!(matches!(rig.answer(&view, long).await, Err(Refusal::Invalid(_))));
    let form = InPart::Data {
        data: json!({"branch": "main"}),
    };
    rig.answer(&view, vec![form])
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(rig.results(1)[0].0, "{\"branch\":\"main\"}");
}

#[tokio::test]
async fn nobody_answers_a_question_in_time() {
    let rig = asking();
    rig.plays([calls(&[ask("q", "Which?")]), say("I guessed")]);
    let view = rig.ask("go").await;
    rig.clock
        .0
        .store(view.status.waits_for[0].expires_ms, Ordering::SeqCst);
    let done = rig
        .answer(&view, message("main").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(text(&done), "I guessed");
    assert_eq!(rig.results(1), [("Nobody answered in time.".to_owned(), true)]);
}

#[tokio::test]
async fn a_task_that_asks_can_be_canceled() {
    let rig = asking();
    rig.plays([calls(&[ask("q", "Which?")])]);
    let view = rig.ask("go").await;
    let canceled = rig
        .engine
        .tasks
        .cancel(&alice(), &view.uid)
        .await
        .expect("canceled");
    assert_eq!(canceled.status.state, TaskState::Canceled);
    assert!(rig.answer(&view, message("main").parts).await.is_err());
    assert_eq!(rig.script.asked.lock().len(), 1);
}

#[tokio::test]
async fn s83_questions_count_and_the_wall_time_goes_on_after_them() {
    let rig = Rig::new(json!({"questions": "ask", "limits": {"toolCalls": 1}}));
    rig.plays([calls(&[ask("q", "Which?")]), calls(&[ask("q", "And why?")])]);
    let view = rig.ask("go").await;
    let done = rig
        .answer(&view, message("main").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(done.status.reason, "limit.toolCalls");

    let rig = Rig::new(json!({"questions": "ask", "limits": {"wallTime": "200ms"}}));
    rig.plays([calls(&[ask("q", "Which?")]), Act::Hang(vec![])]);
    let view = rig.ask("go").await;
    let done = rig
        .answer(&view, message("main").parts)
        .await
        .expect("taken")
        .settled()
        .await;
    assert_eq!(done.status.reason, "limit.wallTime");
}

#[test]
fn a_question_and_its_answer_outlive_the_process() {
    dies(
        asking,
        |rig| async move {
            rig.plays([calls(&[ask("q", "Which branch?")])]);
            let view = rig.ask("go").await;
            (rig, view.uid)
        },
        |rig, uid| async move {
            let view = asks(&rig, &uid).await;
            assert_eq!(view.status.detail, "Which branch?");
            rig.plays([say("on main")]);
            let done = rig
                .answer(&view, message("main").parts)
                .await
                .expect("taken")
                .settled()
                .await;
            assert_eq!(
                (done.status.state, text(&done)),
                (TaskState::Completed, "on main")
            );
            assert_eq!(rig.results(1), [("main".to_owned(), false)]);
        },
    );
    // Answered, and the process dies before the model hears of it.
    dies(
        asking,
        |rig| async move {
            rig.plays([calls(&[ask("q", "Which branch?")]), Act::Hang(vec![])]);
            let view = rig.ask("go").await;
            rig.answer(&view, message("main").parts).await.expect("taken");
            until("it is told", || rig.script.asked.lock().len() == 2).await;
            rig.plays([say("on main")]);
            (rig, view.uid)
        },
        |rig, uid| async move {
            let done = super::restarts::ended(&rig, &uid).await;
            assert_eq!(text(&done), "on main");
            assert_eq!(rig.results(2), [("main".to_owned(), false)]);
        },
    );
}

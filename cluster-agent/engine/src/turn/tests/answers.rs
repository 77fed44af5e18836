//! What an agent answers with: text as it comes, JSON that fits as a whole, and files that tools gave.

use crate::{
    journal::TaskState,
    model::ModelEvent,
    tasks::{Event, Fed},
    testing::{Act, Does, Rig, alice, call, calls, message, say, text, until},
};
use serde_json::{Value, json};

fn structured() -> Value {
    json!({"outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}})
}

/// Everything that a watcher hears of a message's task.
async fn heard(rig: &Rig, words: &str) -> Vec<Event> {
    let mut feed = rig
        .send(message(words))
        .await
        .expect("taken")
        .watch()
        .expect("open");
    let mut events = Vec::new();
    while let Some(fed) = feed.next().await {
        if let Fed::Event(numbered) = fed {
            events.push(numbered.event.clone());
        }
    }
    events
}

#[tokio::test]
async fn a_structured_answer_goes_out_whole_and_only_once_it_fits() {
    let rig = Rig::new(structured());
    rig.plays([say("three"), say("{\"n\": 3}")]);
    let events = heard(&rig, "how many?").await;
    let json: Vec<&Event> = events
        .iter()
        .filter(|e| matches!(e, Event::Json { .. }))
        .collect();
    let expected = Event::Json {
        artifact: "answer-2".to_owned(),
        text: "{\"n\": 3}".to_owned(),
    };
    assert_eq!(json, [&expected]);
    // What did not fit was shown as what it is: no answer.
    let ends: Vec<bool> = events
        .iter()
        .filter_map(|e| match e {
            Event::TextEnd { interim, .. } => Some(*interim),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [true]);
    until("the task left memory", || rig.engine.tasks.active() == 0).await;
    let list = crate::tasks::List {
        limit: 1,
        content: true,
        ..Default::default()
    };
    let kept = rig
        .engine
        .tasks
        .list(&alice(), list)
        .await
        .expect("a page")
        .0
        .remove(0);
    assert!(kept.answer.as_ref().is_some_and(|a| a.json), "kept as JSON");
}

#[tokio::test]
async fn a_structured_answer_that_breaks_off_is_no_answer() {
    let rig = Rig::new(structured());
    rig.plays([Act::Hang(vec![ModelEvent::Text("{\"n\": ".to_owned())])]);
    let sent = rig.send(message("how many?")).await.expect("taken");
    until("it is asked", || rig.script.asked.lock().len() == 1).await;
    let uid = sent.view().uid;
    let view = rig.engine.tasks.cancel(&alice(), &uid).await.expect("canceled");
    assert_eq!((view.status.state, view.answer), (TaskState::Canceled, None));
}

fn filing(output: Value) -> Rig {
    let rig = Rig::new(json!({"output": output}));
    rig.tools
        .does
        .lock()
        .insert("log".to_owned(), Does::Picture(4000));
    rig.plays([calls(&[call("c", "log", json!({"n": 1}))]), say("there it is")]);
    rig
}

#[tokio::test]
async fn an_agent_that_answers_with_files_gives_on_what_tools_gave() {
    let rig = filing(json!(["text", "file"]));
    let events = heard(&rig, "show me").await;
    let files = events.iter().filter(|e| matches!(e, Event::File(_))).count();
    assert_eq!(files, 1);
    assert!(
        rig.results(1)[0]
            .0
            .contains("image/png, 3000 bytes, given to the user")
    );
    until("the task left memory", || rig.engine.tasks.active() == 0).await;
    let list = crate::tasks::List {
        limit: 1,
        content: true,
        ..Default::default()
    };
    let kept = rig
        .engine
        .tasks
        .list(&alice(), list)
        .await
        .expect("a page")
        .0
        .remove(0);
    assert_eq!((kept.files.len(), kept.files[0].data.len()), (1, 4000));
    assert_eq!((kept.files[0].name.as_str(), text(&kept)), ("log", "there it is"));
}

#[tokio::test]
async fn an_agent_that_answers_with_text_keeps_files_to_itself() {
    let rig = filing(json!(["text"]));
    let view = rig.ask("show me").await;
    assert_eq!((view.status.state, view.files.len()), (TaskState::Completed, 0));
    assert!(rig.results(1)[0].0.contains("kept with the task"));
}

#[tokio::test]
async fn files_beyond_what_a_message_holds_are_not_given_on() {
    let rig = Rig::new(json!({"output": ["text", "file"]}));
    rig.tools
        .does
        .lock()
        .insert("log".to_owned(), Does::Picture(2 * 1024 * 1024));
    let two = [
        call("a", "log", json!({"n": 1})),
        call("b", "log", json!({"n": 2})),
    ];
    rig.plays([calls(&two), say("there")]);
    let view = rig.ask("show me").await;
    assert_eq!(view.files.len(), 1);
    let told: Vec<bool> = rig
        .results(1)
        .iter()
        .map(|(t, _)| t.contains("given to the user"))
        .collect();
    assert_eq!(told.iter().filter(|given| **given).count(), 1);
}

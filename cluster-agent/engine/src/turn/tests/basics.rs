//! A plain turn, sessions, idempotent sends, watching, and whose tasks are whose.

use crate::{
    journal::TaskState,
    model::{ChatMessage, ModelEvent, Part},
    tasks::{Caller, Event, Fed, Inbound, List, Place, Refusal},
    testing::{Act, Rig, alice, message, say, text, until},
};
use serde_json::json;

#[tokio::test]
async fn a_plain_turn_is_answered_kept_and_recorded() {
    let rig = Rig::new(json!({}));
    rig.plays([say("hello")]);
    let view = rig.ask("hi").await;
    assert_eq!((view.status.state, text(&view)), (TaskState::Completed, "hello"));
    assert_eq!(rig.asked(0).system, "Be brief.");
    until("the task left memory", || rig.engine.tasks.active() == 0).await;
    let kept = rig.engine.tasks.get(&alice(), &view.uid).await.expect("kept");
    assert_eq!((kept.status.state, text(&kept)), (TaskState::Completed, "hello"));
    assert_eq!(kept.history, view.history);
    let runs = rig.engine.journal.runs_after(0, 10).await.expect("runs");
    assert_eq!(runs.len(), 1);
    let run = &runs[0];
    assert_eq!(
        (run.sequence, run.subject.as_str(), run.model_calls),
        (1, "alice", 1)
    );
    assert_eq!(
        (run.input_tokens, run.output_tokens, run.cached_input_tokens),
        (10, 5, 2)
    );
    // 10 tokens at 1 and 5 at 10 per million.
    assert_eq!(
        (run.cost_micros, run.currency.as_str(), run.model.as_str()),
        (60, "USD", "gpt-fast")
    );
}

#[tokio::test]
async fn run_records_are_numbered_without_gaps_and_go_when_they_are_kept_elsewhere() {
    let rig = Rig::new(json!({}));
    for _ in 0..3 {
        rig.ask("hi").await;
    }
    let numbers =
        |runs: &[roadstead_contract::run::RunRecord]| runs.iter().map(|r| r.sequence).collect::<Vec<_>>();
    let journal = &rig.engine.journal;
    assert_eq!(
        numbers(&journal.runs_after(0, 10).await.expect("runs")),
        [1, 2, 3]
    );
    journal.runs_kept(2).await.expect("deleted");
    rig.ask("hi").await;
    assert_eq!(numbers(&journal.runs_after(0, 10).await.expect("runs")), [3, 4]);
}

#[tokio::test]
async fn a_message_sent_again_begins_nothing() {
    let rig = Rig::new(json!({}));
    let inbound = message("hi");
    let first = rig.send(inbound.clone()).await.expect("taken").settled().await;
    let again = rig.send(inbound).await.expect("taken").settled().await;
    assert_eq!(first.uid, again.uid);
    assert_eq!(rig.script.asked.lock().len(), 1);
}

#[tokio::test]
async fn the_same_message_sent_many_times_at_once_begins_one_task() {
    let rig = Rig::new(json!({}));
    let inbound = message("hi");
    let sends = (0..20).map(|_| async {
        rig.send(inbound.clone())
            .await
            .expect("taken")
            .settled()
            .await
            .uid
    });
    let uids = futures::future::join_all(sends).await;
    assert!(uids.iter().all(|uid| *uid == uids[0]));
    assert_eq!(rig.script.asked.lock().len(), 1);
}

#[tokio::test]
async fn s85_a_session_remembers_and_no_other_session_does() {
    let rig = Rig::new(json!({}));
    rig.plays([say("noted"), say("42"), say("who?")]);
    let first = rig.ask("my number is 42").await;
    let inbound = Inbound {
        context: Some(first.context.clone()),
        ..message("which number?")
    };
    let second = rig.send(inbound.clone()).await.expect("taken").settled().await;
    assert_eq!(second.context, first.context);
    let texts: Vec<String> = rig.asked(1).messages.iter().map(words).collect();
    assert_eq!(texts, ["my number is 42", "noted", "which number?"]);
    // The same name of a session, by somebody else: another session.
    let bob = Caller {
        subject: "bob".to_owned(),
        ..Caller::default()
    };
    let stranger = Inbound {
        message_id: "b1".to_owned(),
        ..inbound
    };
    rig.engine
        .tasks
        .send(&bob, stranger)
        .await
        .expect("taken")
        .settled()
        .await;
    let texts: Vec<String> = rig.asked(2).messages.iter().map(words).collect();
    assert_eq!(texts, ["which number?"]);
}

fn words(message: &ChatMessage) -> String {
    match message {
        ChatMessage::User { parts } => parts
            .iter()
            .map(|p| match p {
                Part::Text { text } => text.clone(),
                Part::File { name, .. } => name.clone(),
            })
            .collect(),
        ChatMessage::Assistant { text, .. } | ChatMessage::Tool { text, .. } => text.clone(),
    }
}

#[tokio::test]
async fn a_session_works_on_one_task_at_a_time() {
    let rig = Rig::new(json!({}));
    rig.plays([Act::Hang(vec![])]);
    let sent = rig.send(message("slow")).await.expect("taken");
    let context = sent.view().context;
    let second = Inbound {
        context: Some(context),
        ..message("me too")
    };
    let refusal = rig.send(second).await.expect_err("busy");
    assert!(
        matches!(&refusal, Refusal::Unsupported(text) if text.contains("still works")),
        "{refusal}"
    );
}

#[tokio::test]
async fn s75_unknown_and_foreign_tasks_look_the_same() {
    let rig = Rig::new(json!({}));
    rig.plays([say("a"), Act::Hang(vec![])]);
    let done = rig.ask("mine").await.uid;
    let open = rig.send(message("mine too")).await.expect("taken").view().uid;
    let tasks = &rig.engine.tasks;
    let bob = Caller {
        subject: "bob".to_owned(),
        ..Caller::default()
    };
    for uid in [
        done.as_str(),
        open.as_str(),
        "01900000-0000-7000-8000-000000000000",
        "",
    ] {
        let missing = Refusal::NotFound(uid.to_owned());
        assert_eq!(tasks.get(&bob, uid).await.expect_err("not bob's"), missing);
        assert_eq!(tasks.cancel(&bob, uid).await.expect_err("not bob's"), missing);
        assert_eq!(
            tasks.subscribe(&bob, uid, None).await.expect_err("not bob's"),
            missing
        );
        if !uid.is_empty() {
            let answer = Inbound {
                task: Some(uid.to_owned()),
                ..message("yes")
            };
            assert_eq!(tasks.send(&bob, answer).await.expect_err("not bob's"), missing);
        }
    }
    let list = List {
        limit: 10,
        ..List::default()
    };
    assert_eq!(
        tasks.list(&bob, list.clone()).await.expect("a page"),
        (Vec::new(), None, 0)
    );
    assert_eq!(tasks.list(&alice(), list).await.expect("a page").2, 2);
}

#[tokio::test]
async fn a_list_is_paged_newest_first() {
    let rig = Rig::new(json!({}));
    let mut uids = Vec::new();
    for _ in 0..5 {
        uids.push(rig.ask("hi").await.uid);
    }
    uids.reverse();
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let list = List {
            limit: 2,
            page,
            ..List::default()
        };
        let (views, next, total) = rig.engine.tasks.list(&alice(), list).await.expect("a page");
        assert_eq!(total, 5);
        found.extend(views.into_iter().map(|v| v.uid));
        page = next;
        if page.is_none() {
            break;
        }
    }
    assert_eq!(found, uids);
}

#[tokio::test]
async fn a_watcher_gets_a_snapshot_and_then_every_event() {
    let rig = Rig::new(json!({}));
    let words = ["one ", "two ", "three"].map(|w| ModelEvent::Text(w.to_owned()));
    rig.plays([Act::Hang(words[..1].to_vec())]);
    let sent = rig.send(message("count")).await.expect("taken");
    let uid = sent.view().uid;
    let tasks = &rig.engine.tasks;
    let view = || async { tasks.get(&alice(), &uid).await.expect("there") };
    while text(&view().await) != "one " {
        tokio::task::yield_now().await;
    }
    let mut feed = tasks.subscribe(&alice(), &uid, None).await.expect("a feed");
    let Some(Fed::Snapshot(seen)) = feed.next().await else {
        panic!("a snapshot first")
    };
    assert_eq!(text(&seen), "one ");
    tasks.cancel(&alice(), &uid).await.expect("canceled");
    let mut events = Vec::new();
    while let Some(fed) = feed.next().await {
        let Fed::Event(event) = fed else {
            panic!("events after the snapshot")
        };
        events.push((event.number, event.event.clone()));
    }
    assert!(
        events
            .iter()
            .map(|(n, _)| *n)
            .eq(seen.number + 1..=seen.number + events.len() as u64)
    );
    assert!(matches!(&events.last().expect("an end").1, Event::Status(s) if s.state == TaskState::Canceled));
}

#[tokio::test]
async fn a_watcher_that_comes_back_goes_on_where_it_was() {
    let rig = Rig::new(json!({}));
    rig.plays([Act::Hang(vec![
        ModelEvent::Text("one ".to_owned()),
        ModelEvent::Text("two".to_owned()),
    ])]);
    let sent = rig.send(message("count")).await.expect("taken");
    let uid = sent.view().uid;
    until("both words", || text(&sent.view()) == "one two").await;
    let epoch = sent.view().epoch;
    let place = |number| Some(Place { epoch, number });
    let mut feed = rig
        .engine
        .tasks
        .subscribe(&alice(), &uid, place(1))
        .await
        .expect("a feed");
    let Some(Fed::Event(event)) = feed.next().await else {
        panic!("what was missed")
    };
    assert!(
        matches!(&event.event, Event::Text { text, .. } if text == "two"),
        "{event:?}"
    );
    // A number that never was, or was another process's: the whole task again.
    let other = Place {
        epoch: epoch.wrapping_add(1),
        number: 1,
    };
    for place in [place(99), Some(other), None] {
        let feed = rig.engine.tasks.subscribe(&alice(), &uid, place).await;
        let first = feed.expect("a feed").next().await;
        assert!(matches!(first, Some(Fed::Snapshot(_))), "{place:?}");
    }
    let shown = other.to_string();
    assert_eq!(shown.parse(), Ok(other));
}

#[tokio::test]
async fn a_slow_watcher_gets_a_snapshot_in_place_of_what_it_missed() {
    let rig = Rig::new(json!({}));
    let words: Vec<ModelEvent> = (0..1000).map(|n| ModelEvent::Text(format!("{n} "))).collect();
    rig.plays([Act::Hang(words)]);
    let sent = rig.send(message("count")).await.expect("taken");
    let uid = sent.view().uid;
    let mut feed = rig
        .engine
        .tasks
        .subscribe(&alice(), &uid, None)
        .await
        .expect("a feed");
    until("all words", || text(&sent.view()).ends_with("999 ")).await;
    let mut last = String::new();
    for _ in 0..2 {
        match feed.next().await {
            Some(Fed::Snapshot(view)) => last = text(&view).to_owned(),
            other => panic!("expected snapshots, found {other:?}"),
        }
    }
    assert!(last.ends_with("999 "));
}

#[tokio::test]
async fn a_new_revision_serves_the_next_task_and_running_ones_keep_theirs() {
    let rig = Rig::new(json!({"tools": []}));
    rig.plays([Act::Hang(vec![])]);
    let running = rig.send(message("slow")).await.expect("taken");
    until("the model is asked", || rig.script.asked.lock().len() == 1).await;
    let newer = crate::testing::bundle(
        &crate::testing::spec(json!({"instructions": "Be long.", "tools": []})),
        2,
    );
    rig.engine
        .apply(newer, Default::default(), Default::default())
        .expect("loads");
    rig.ask("hi").await;
    assert_eq!(
        (rig.asked(0).system.as_str(), rig.asked(1).system.as_str()),
        ("Be brief.", "Be long.")
    );
    rig.engine
        .tasks
        .cancel(&alice(), &running.view().uid)
        .await
        .expect("canceled");
    let runs = rig.engine.journal.runs_after(0, 10).await.expect("runs");
    let generations: Vec<u64> = runs.iter().map(|r| r.generation).collect();
    assert_eq!(generations, [2, 1]);
}

#[tokio::test]
async fn a_revision_that_does_not_load_changes_nothing() {
    let rig = Rig::new(json!({}));
    let broken = crate::testing::bundle(&crate::testing::spec(json!({"model": "missing"})), 2);
    let why = rig
        .engine
        .apply(broken, Default::default(), Default::default())
        .expect_err("refused");
    assert!(why.contains("spec.model"), "{why}");
    assert_eq!(rig.ask("hi").await.status.state, TaskState::Completed);
}

#[tokio::test]
async fn a_full_disk_refuses_new_tasks_and_serves_reads() {
    let rig = Rig::with_pages(json!({"tools": []}), 80);
    let kept = rig.ask("hi").await.uid;
    let big = "x".repeat(400 * 1024);
    let refusal = loop {
        match rig.send(message(&big)).await {
            Ok(sent) => drop(sent.settled().await),
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, Refusal::Unavailable(_)), "{refusal}");
    assert!(rig.engine.tasks.get(&alice(), &kept).await.is_ok());
}

#[tokio::test]
async fn what_is_forgotten_gives_its_place_back() {
    let rig = Rig::new(json!({}));
    let kept = rig.ask("hi").await;
    let large = rig.ask(&"x".repeat(1024 * 1024)).await;
    until("no turn runs", || rig.engine.tasks.active() == 0).await;
    let pages = |rig: &Rig, pragma: &str| -> i64 {
        let file = rusqlite::Connection::open(rig.journal_file()).expect("opened");
        file.query_row(&format!("PRAGMA {pragma}"), [], |r| r.get(0))
            .expect("a number")
    };
    let before = pages(&rig, "page_count");
    let all = rig.engine.journal.retire(i64::MAX).await.expect("forgotten");
    assert_eq!(all, 2);
    for gone in [kept, large] {
        let found = rig.engine.tasks.get(&alice(), &gone.uid).await;
        assert!(matches!(found, Err(Refusal::NotFound(_))));
    }
    assert!(
        before - pages(&rig, "page_count") > 200,
        "a mebibyte has 256 pages"
    );
    assert_eq!(pages(&rig, "freelist_count"), 0);
}

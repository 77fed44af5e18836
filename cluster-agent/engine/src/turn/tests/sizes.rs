//! What a session costs as it grows: pages are read and never all, and the journal holds little beside the text.

use crate::{
    journal::{Begin, Begun, Counters, Entry, Finish, InPart, Origin, TaskState},
    tasks::Inbound,
    testing::{Rig, message, say, text},
};
use rusqlite::Connection;
use serde_json::json;

const CONTEXT: &str = "long";

/// The journal's file, beside the engine.
fn file(rig: &Rig) -> Connection {
    let journal = Connection::open(rig.journal_file()).expect("a journal");
    journal
        .busy_timeout(std::time::Duration::from_secs(10))
        .expect("set");
    journal
}

/// A question and its answer, as a turn of the session writes them, without a model.
async fn write_turn(rig: &Rig, n: usize, body: &str) {
    let begin = Begin {
        subject: "alice".to_owned(),
        context: Some(CONTEXT.to_owned()),
        new_context: String::new(),
        message_id: format!("written-{n}"),
        task_uid: format!("task-{n}"),
        entry: Entry::User {
            message_id: format!("written-{n}"),
            parts: vec![InPart::Text {
                text: body.to_owned(),
            }],
        },
        revision: String::new(),
        origin: Origin::default(),
        now_ms: 1,
    };
    let journal = &rig.engine.journal;
    let Begun::New {
        task, session, step, ..
    } = journal.begin(begin).await.expect("kept")
    else {
        panic!("expected a new task")
    };
    let finish = Finish {
        task,
        session,
        state: TaskState::Completed,
        reason: String::new(),
        detail: String::new(),
        entry: Some(Entry::Assistant {
            text: body.to_owned(),
            tool_calls: Vec::new(),
            provider_state: None,
            cuts: Vec::new(),
            json: false,
        }),
        step: Some(step),
        counters: Counters::default(),
        record: None,
        now_ms: 1,
    };
    journal.finish(finish).await.expect("kept");
}

/// What is not read cannot hurt: the older messages are no text any more.
#[tokio::test]
async fn a_session_of_a_thousand_messages_opens_by_its_newest() {
    const TURNS: usize = 500;
    /// 200 messages of 2 KiB: more than goes to a model, and a fifth of what there is.
    const NEWEST: u32 = 200;
    let rig = Rig::new(json!({}));
    let body = "x".repeat(2_048);
    for n in 0..TURNS {
        write_turn(&rig, n, &body).await;
    }
    let spoilt = file(&rig)
        .execute(
            "UPDATE messages SET body = x'00' WHERE id <= (SELECT max(id) FROM messages) - ?1",
            [NEWEST],
        )
        .expect("spoilt");
    assert_eq!(spoilt, 2 * TURNS - NEWEST as usize);
    rig.plays([say("here")]);
    let inbound = Inbound {
        context: Some(CONTEXT.to_owned()),
        ..message("and now?")
    };
    let view = rig.send(inbound).await.expect("taken").settled().await;
    assert_eq!(
        (view.status.state, text(&view)),
        (TaskState::Completed, "here"),
        "{:?}",
        view.status
    );
    let handed = rig.asked(0).messages.len();
    assert!(
        (100..130).contains(&handed),
        "256 KiB of messages of 2 KiB, found {handed}"
    );
}

/// Text of the lengths that people and models write, from a word to pages. Run records are collected, as a cluster
/// agent does. Whole pages of the file count, indices and free ones among them.
///
/// Beside its text a turn costs about 800 bytes, so that turns of a few words take more than twice theirs; and pages of
/// 4 KiB fit some lengths badly (1 KiB asked and 3 KiB answered, always: 2.1 times).
#[tokio::test]
async fn the_journal_grows_by_less_than_twice_the_text_it_holds() {
    const TURNS: usize = 200;
    const SESSION: usize = 20;
    let rig = Rig::new(json!({}));
    let size = |rig: &Rig| -> usize {
        let sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
        let size: i64 = file(rig).query_row(sql, [], |row| row.get(0)).expect("a size");
        usize::try_from(size).expect("a size")
    };
    rig.engine.journal.probe().await.expect("open");
    let (before, mut held) = (size(&rig), 0);
    for n in 0..TURNS {
        // Multiples of a prime, over the whole span.
        let (question, answer) = ("q".repeat(50 + n * 37 % 551), "a".repeat(200 + n * 997 % 2_801));
        held += question.len() + answer.len();
        rig.plays([say(&answer)]);
        let inbound = Inbound {
            context: Some(format!("session-{}", n / SESSION)),
            ..message(&question)
        };
        let view = rig.send(inbound).await.expect("taken").settled().await;
        assert_eq!(view.status.state, TaskState::Completed, "{:?}", view.status);
        let runs = rig.engine.journal.runs_after(0, 10).await.expect("runs");
        let last = runs.last().expect("a run record").sequence;
        rig.engine.journal.runs_kept(last).await.expect("kept elsewhere");
    }
    let grown = size(&rig) - before;
    eprintln!("{held} bytes of text, {grown} of journal");
    assert!(grown >= held, "the text is not in it: {grown} of {held}");
    assert!(grown <= 2 * held, "{grown} for {held} bytes of text");
}

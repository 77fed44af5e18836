//! The rules of protocol.md §3 as the inbox keeps them.

use super::*;
use proptest::prelude::*;
use roadstead_contract::{
    fleet::{CommandCode, StateSum, document_digest},
    run::Outcome as RunOutcome,
};
use std::collections::BTreeMap;

fn document(uid: &str, generation: u64, text: &str) -> Document {
    let json = format!("{{\"text\":{text:?}}}").into_bytes();
    Document {
        uid: uid.to_owned(),
        generation,
        digest: document_digest(&json),
        kind: "Prompt".to_owned(),
        project: "default".to_owned(),
        name: format!("name-{uid}"),
        json,
    }
}

fn upsert(revision: u64, document: &Document) -> Change {
    Change::Upsert {
        revision,
        document: document.clone(),
    }
}

fn delta(from: u64, through: u64, changes: Vec<Change>) -> Batch {
    Batch {
        from,
        through,
        purpose: Purpose::Delta,
        changes,
    }
}

struct Bench {
    folder: tempfile::TempDir,
    inbox: Inbox,
}

#[tokio::test]
async fn one_in_memory_keeps_the_same_rules_and_shares_nothing() {
    let (one, other) = (Inbox::in_memory().unwrap(), Inbox::in_memory().unwrap());
    let document = document("a", 3, "x");
    let batch = delta(0, 1, vec![upsert(1, &document)]);
    assert!(matches!(
        one.apply(batch.clone()).await,
        Ok(Outcome::Taken { .. })
    ));
    assert!(matches!(
        one.apply(batch).await,
        Ok(Outcome::Repeated { cursor: 1 })
    ));
    assert_eq!(one.clone().document("a").await.unwrap(), Some(document));
    let (one, other) = (one.position().await.unwrap(), other.position().await.unwrap());
    assert_eq!((one.documents, other.documents), (1, 0));
    assert_ne!(one.incarnation, other.incarnation);
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inbox = Inbox::open_inline(&folder.path().join("inbox.db")).unwrap();
        Self { folder, inbox }
    }

    /// As after a crash: the file as it is on disk, a new process.
    fn reopen(self) -> Self {
        let Self { folder, inbox } = self;
        drop(inbox);
        let inbox = Inbox::open_inline(&folder.path().join("inbox.db")).unwrap();
        Self { folder, inbox }
    }

    async fn generations(&self) -> BTreeMap<String, u64> {
        let (_, documents) = self.inbox.documents().await.unwrap();
        documents.into_iter().map(|d| (d.uid, d.generation)).collect()
    }
}

fn taken(outcome: Outcome) -> Position {
    match outcome {
        Outcome::Taken { position, refused } => {
            assert_eq!(refused, []);
            position
        }
        other => panic!("expected the batch to be taken, found {other:?}"),
    }
}

#[tokio::test]
async fn a_batch_is_taken_only_at_the_cursor() {
    let bench = Bench::new();
    let first = delta(0, 3, vec![upsert(3, &document("a", 1, "one"))]);
    assert_eq!(taken(bench.inbox.apply(first.clone()).await.unwrap()).cursor, 3);
    assert_eq!(
        bench.inbox.apply(first).await.unwrap(),
        Outcome::Repeated { cursor: 3 }
    );
    let ahead = delta(4, 5, vec![upsert(5, &document("a", 2, "two"))]);
    assert_eq!(
        bench.inbox.apply(ahead).await.unwrap(),
        Outcome::Gap { cursor: 3 }
    );
    assert_eq!(bench.generations().await, BTreeMap::from([("a".to_owned(), 1)]));
}

#[tokio::test]
async fn s50_an_older_or_equal_generation_changes_nothing() {
    let bench = Bench::new();
    taken(
        bench
            .inbox
            .apply(delta(0, 1, vec![upsert(1, &document("a", 5, "five"))]))
            .await
            .unwrap(),
    );
    for (revision, generation) in [(2, 4), (3, 5)] {
        let old = upsert(revision, &document("a", generation, "other"));
        taken(
            bench
                .inbox
                .apply(delta(revision - 1, revision, vec![old]))
                .await
                .unwrap(),
        );
        assert_eq!(
            bench.inbox.document("a").await.unwrap().unwrap(),
            document("a", 5, "five")
        );
    }
}

#[tokio::test]
async fn a_deleted_document_comes_back_only_by_a_later_revision() {
    let bench = Bench::new();
    taken(
        bench
            .inbox
            .apply(delta(0, 1, vec![upsert(1, &document("a", 5, "five"))]))
            .await
            .unwrap(),
    );
    let gone = Change::Tombstone {
        revision: 2,
        uid: "a".to_owned(),
        generation: 5,
    };
    taken(bench.inbox.apply(delta(1, 2, vec![gone])).await.unwrap());
    taken(
        bench
            .inbox
            .apply(delta(2, 3, vec![upsert(1, &document("a", 5, "five"))]))
            .await
            .unwrap(),
    );
    assert_eq!(bench.generations().await, BTreeMap::new());
    taken(
        bench
            .inbox
            .apply(delta(3, 4, vec![upsert(4, &document("a", 5, "five"))]))
            .await
            .unwrap(),
    );
    assert_eq!(bench.generations().await, BTreeMap::from([("a".to_owned(), 5)]));
}

#[tokio::test]
async fn a_refused_document_keeps_the_version_before_and_is_known_to_the_root() {
    let bench = Bench::new();
    taken(
        bench
            .inbox
            .apply(delta(0, 1, vec![upsert(1, &document("a", 1, "good"))]))
            .await
            .unwrap(),
    );
    let mut bad = document("a", 2, "bad");
    bad.kind = "Gadget".to_owned();
    let outcome = bench
        .inbox
        .apply(delta(1, 2, vec![upsert(2, &bad)]))
        .await
        .unwrap();
    let Outcome::Taken { position, refused } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(refused[0].code, NackCode::NackKind);
    assert_eq!(position.root, StateSum::of([("a", 2, bad.digest)]).root());
    let bench = bench.reopen();
    assert_eq!(bench.inbox.position().await.unwrap().root, position.root);
    assert_eq!(
        bench.inbox.document("a").await.unwrap().unwrap(),
        document("a", 1, "good")
    );
}

#[tokio::test]
async fn bytes_without_their_digest_are_refused() {
    let bench = Bench::new();
    let mut forged = document("a", 1, "one");
    forged.json = b"{}".to_vec();
    let outcome = bench
        .inbox
        .apply(delta(0, 1, vec![upsert(1, &forged)]))
        .await
        .unwrap();
    let Outcome::Taken { refused, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(refused[0].code, NackCode::NackDigest);
    assert_eq!(bench.generations().await, BTreeMap::new());
}

async fn snapshot(bench: &Bench, revision: u64, documents: &[Document], end: SnapshotEnd) -> SnapshotOutcome {
    bench.inbox.begin_snapshot(revision).await.unwrap();
    let changes = documents.iter().map(|d| upsert(revision, d)).collect();
    let batch = Batch {
        from: 0,
        through: revision,
        purpose: Purpose::Snapshot,
        changes,
    };
    assert!(matches!(
        bench.inbox.apply(batch).await.unwrap(),
        Outcome::Taken { .. }
    ));
    bench.inbox.end_snapshot(end).await.unwrap()
}

fn end(revision: u64, documents: &[Document]) -> SnapshotEnd {
    let sum = StateSum::of(documents.iter().map(|d| (d.uid.as_str(), d.generation, d.digest)));
    SnapshotEnd {
        revision,
        count: documents.len() as u64,
        root: sum.root(),
        complete: true,
        approved_deletes: 0,
    }
}

async fn filled(count: u64) -> (Bench, Vec<Document>) {
    let bench = Bench::new();
    let documents: Vec<_> = (0..count)
        .map(|n| document(&format!("d{n:03}"), 1, "x"))
        .collect();
    let changes = documents.iter().map(|d| upsert(1, d)).collect();
    taken(bench.inbox.apply(delta(0, 1, changes)).await.unwrap());
    (bench, documents)
}

#[tokio::test]
async fn a_verified_snapshot_deletes_within_the_budget() {
    let (bench, documents) = filled(20).await;
    let kept = &documents[5..];
    let outcome = snapshot(&bench, 9, kept, end(9, kept)).await;
    let SnapshotOutcome::Taken { position, deleted } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((position.cursor, position.documents, deleted), (9, 15, 5));
    assert_eq!(position.root, end(9, kept).root);
}

#[tokio::test]
async fn beyond_the_budget_nothing_is_deleted_until_a_person_allows_it() {
    let (bench, documents) = filled(20).await;
    let kept = &documents[6..];
    let outcome = snapshot(&bench, 9, kept, end(9, kept)).await;
    let held = Held {
        revision: 9,
        deletes: 6,
        documents: 20,
    };
    assert!(
        matches!(outcome, SnapshotOutcome::Held { held: h, .. } if h == held),
        "{outcome:?}"
    );
    let bench = bench.reopen();
    assert_eq!(bench.inbox.position().await.unwrap().held, Some(held));
    assert_eq!(bench.generations().await.len(), 20);
    let allowed = SnapshotEnd {
        approved_deletes: 6,
        ..end(9, kept)
    };
    let outcome = snapshot(&bench, 9, kept, allowed).await;
    assert!(
        matches!(outcome, SnapshotOutcome::Taken { deleted: 6, .. }),
        "{outcome:?}"
    );
    assert_eq!(bench.inbox.position().await.unwrap().held, None);
}

#[tokio::test]
async fn an_unverified_snapshot_deletes_nothing_and_moves_no_cursor() {
    let (bench, documents) = filled(3).await;
    let kept = &documents[1..];
    let good = end(9, kept);
    let wrong = [
        SnapshotEnd {
            complete: false,
            ..good.clone()
        },
        SnapshotEnd {
            count: 3,
            ..good.clone()
        },
        SnapshotEnd {
            root: document_digest(b""),
            ..good.clone()
        },
        SnapshotEnd { revision: 8, ..good },
    ];
    for end in wrong {
        let outcome = snapshot(&bench, 9, kept, end).await;
        assert!(
            matches!(outcome, SnapshotOutcome::Unverified { .. }),
            "{outcome:?}"
        );
    }
    let position = bench.inbox.position().await.unwrap();
    assert_eq!((position.cursor, position.documents), (1, 3));
}

#[tokio::test]
async fn a_repair_mends_a_document_of_the_same_generation() {
    let bench = Bench::new();
    taken(
        bench
            .inbox
            .apply(delta(0, 1, vec![upsert(1, &document("a", 1, "wrong"))]))
            .await
            .unwrap(),
    );
    let right = document("a", 1, "right");
    let repair = Batch {
        purpose: Purpose::Repair,
        ..delta(1, 1, vec![upsert(1, &right)])
    };
    taken(bench.inbox.apply(repair).await.unwrap());
    assert_eq!(bench.inbox.document("a").await.unwrap().unwrap(), right);
}

fn run(id: &str, sequence: u64) -> RunRecord {
    RunRecord {
        id: id.to_owned(),
        sequence,
        agent_uid: "agent".to_owned(),
        generation: 1,
        task_id: "task".to_owned(),
        session_id: "session".to_owned(),
        subject: "user".to_owned(),
        started_at_ms: 1,
        ended_at_ms: 2,
        outcome: RunOutcome::Completed,
        reason: String::new(),
        model: "m".to_owned(),
        model_calls: 1,
        input_tokens: 1,
        output_tokens: 1,
        cached_input_tokens: 0,
        estimated: false,
        cost_micros: 0,
        currency: String::new(),
        tools: BTreeMap::new(),
        trace_id: String::new(),
    }
}

#[tokio::test]
async fn run_records_wait_in_order_once_until_forgotten() {
    let bench = Bench::new();
    bench
        .inbox
        .append_runs(vec![run("a", 1), run("b", 2)])
        .await
        .unwrap();
    bench
        .inbox
        .append_runs(vec![run("b", 2), run("c", 3)])
        .await
        .unwrap();
    let bench = bench.reopen();
    let ids = |runs: Vec<PendingRun>| runs.into_iter().map(|r| r.id).collect::<Vec<_>>();
    let waiting = bench.inbox.pending_runs(0, 10).await.unwrap();
    let second = waiting[1].position;
    assert_eq!(ids(waiting), ["a", "b", "c"]);
    assert_eq!(ids(bench.inbox.pending_runs(second, 10).await.unwrap()), ["c"]);
    bench
        .inbox
        .forget_runs(vec!["a".to_owned(), "c".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        ids(bench.reopen().inbox.pending_runs(0, 10).await.unwrap()),
        ["b"]
    );
}

#[tokio::test]
async fn only_one_process_holds_an_inbox() {
    let bench = Bench::new();
    let second = Inbox::open_inline(&bench.folder.path().join("inbox.db"));
    assert!(matches!(second, Err(InboxError::InUse)), "{second:?}");
}

#[tokio::test]
async fn the_thread_answers_and_wakes_watchers() {
    let folder = tempfile::tempdir().unwrap();
    let inbox = Inbox::open(&folder.path().join("inbox.db")).unwrap();
    let mut watch = inbox.watch();
    taken(
        inbox
            .apply(delta(0, 7, vec![upsert(7, &document("a", 1, "one"))]))
            .await
            .unwrap(),
    );
    watch.changed().await.unwrap();
    assert_eq!(
        *watch.borrow(),
        Seen {
            revision: 7,
            changes: 1
        }
    );
}

proptest! {
    // Each case writes a file of its own and waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is sent, in whatever order and however often: no generation goes back while a document lives, and the
    /// root in memory is that of the rows.
    #[test]
    fn generations_never_go_back_and_the_root_is_that_of_the_rows(
        steps in proptest::collection::vec((0u64..4, 0u64..3, 0usize..4, 1u64..6, any::<bool>()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let mut seen: BTreeMap<String, u64> = BTreeMap::new();
            for (back, ahead, which, generation, delete) in steps {
                let cursor = bench.inbox.position().await.unwrap().cursor;
                let from = cursor.saturating_sub(back / 2);
                let through = from + ahead;
                let uid = ["a", "b", "c", "d"][which];
                let change = if delete {
                    Change::Tombstone { revision: through, uid: uid.to_owned(), generation }
                } else {
                    upsert(through, &document(uid, generation, &format!("{generation}")))
                };
                bench.inbox.apply(delta(from, through, vec![change])).await.unwrap();
                let now = bench.generations().await;
                for (uid, generation) in &now {
                    prop_assert!(seen.get(uid).is_none_or(|before| before <= generation));
                }
                seen = now;
            }
            let position = bench.inbox.position().await.unwrap();
            let (_, have) = bench.inbox.have(None, 100).await.unwrap();
            let sum = StateSum::of(have.iter().map(|e| (e.uid.as_str(), e.generation, e.digest)));
            prop_assert_eq!(position.root, sum.root());
            prop_assert_eq!(bench.reopen().inbox.position().await.unwrap(), position);
            Ok(())
        })?;
    }
}

fn command(id: &str, expires_ms: i64) -> Command {
    Command {
        id: id.to_owned(),
        expires_ms,
        act: Act::RestartEngine {
            agent_uid: "agent".to_owned(),
        },
    }
}

fn result(id: &str, code: CommandCode) -> CommandResult {
    CommandResult {
        id: id.to_owned(),
        code,
        detail: String::new(),
    }
}

/// Ids and codes of the results that wait.
async fn results(inbox: &Inbox) -> Vec<(String, CommandCode)> {
    let pending = inbox.pending_results().await.unwrap();
    pending
        .into_iter()
        .map(|result| (result.id, result.code))
        .collect()
}

#[tokio::test]
async fn a_command_is_given_out_once_however_often_it_comes() {
    let bench = Bench::new();
    let one = command("one", 1_000);
    let take = async |now_ms| bench.inbox.take_command(one.clone(), now_ms).await.unwrap();
    assert_eq!(take(0).await, Taking::Taken);
    assert_eq!(take(0).await, Taking::UnderWay);
    assert_eq!(
        bench.inbox.begin_commands().await.unwrap(),
        std::slice::from_ref(&one)
    );
    assert_eq!(bench.inbox.begin_commands().await.unwrap(), []);
    assert_eq!(
        take(2_000).await,
        Taking::UnderWay,
        "begun in time, whatever the time is now"
    );
    let inbox = &bench.inbox;
    inbox
        .conclude_command(result("one", CommandCode::Succeeded))
        .await
        .unwrap();
    inbox
        .conclude_command(result("one", CommandCode::Failed))
        .await
        .unwrap();
    let said = [("one".to_owned(), CommandCode::Succeeded)];
    assert_eq!(results(inbox).await, said);
    inbox.acknowledge_results(vec!["one".to_owned()]).await.unwrap();
    assert_eq!(results(inbox).await, []);
    // The hub asks again, as one does whose database was restored: it is told the same.
    assert_eq!(take(0).await, Taking::Concluded);
    assert_eq!(results(inbox).await, said);
    assert_eq!(inbox.begin_commands().await.unwrap(), []);
}

#[tokio::test]
async fn a_command_that_was_under_way_in_a_crash_is_unknown_and_not_begun_again() {
    let bench = Bench::new();
    for id in ["begun", "not begun", "ended"] {
        let taking = bench.inbox.take_command(command(id, 1_000), 0).await.unwrap();
        assert_eq!(taking, Taking::Taken);
    }
    bench.inbox.begin_commands().await.unwrap();
    bench
        .inbox
        .conclude_command(result("ended", CommandCode::Failed))
        .await
        .unwrap();
    let bench = bench.reopen();
    let pending = bench.inbox.pending_results().await.unwrap();
    let codes: Vec<_> = pending.iter().map(|result| result.code).collect();
    assert_eq!(
        codes,
        [CommandCode::Unknown, CommandCode::Unknown, CommandCode::Failed]
    );
    assert_eq!(pending[0].detail, "unknown: the cluster agent ended while it ran");
    let taking = bench
        .inbox
        .take_command(command("begun", 1_000), 0)
        .await
        .unwrap();
    assert_eq!(taking, Taking::Concluded);
    assert_eq!(bench.inbox.begin_commands().await.unwrap(), []);
    // What it says after its end comes too late.
    let late = result("begun", CommandCode::Succeeded);
    bench.inbox.conclude_command(late).await.unwrap();
    assert_eq!(results(&bench.inbox).await[0].1, CommandCode::Unknown);
}

#[tokio::test]
async fn a_command_that_is_over_is_not_begun_and_an_id_outlives_its_expiry() {
    let bench = Bench::new();
    let inbox = &bench.inbox;
    assert_eq!(
        inbox.take_command(command("late", 1_000), 1_000).await.unwrap(),
        Taking::Concluded
    );
    assert_eq!(results(inbox).await, [("late".to_owned(), CommandCode::Expired)]);
    assert_eq!(
        inbox.take_command(command("done", 1_000), 0).await.unwrap(),
        Taking::Taken
    );
    inbox
        .conclude_command(result("done", CommandCode::Succeeded))
        .await
        .unwrap();
    inbox
        .acknowledge_results(vec!["late".to_owned(), "done".to_owned()])
        .await
        .unwrap();
    let day = 24 * 60 * 60 * 1_000;
    // Acknowledged, and long over: still known.
    inbox.take_command(command("other", 1_000), day).await.unwrap();
    assert_eq!(
        inbox.take_command(command("done", 1_000), day).await.unwrap(),
        Taking::Concluded
    );
    let done = ("done".to_owned(), CommandCode::Succeeded);
    assert!(results(inbox).await.contains(&done));
    inbox.acknowledge_results(vec!["done".to_owned()]).await.unwrap();
    // Then it is forgotten; whoever asks is not told that it never ran.
    inbox.take_command(command("done", 1_000), 2 * day).await.unwrap();
    let forgotten = ("done".to_owned(), CommandCode::Unknown);
    assert!(results(inbox).await.contains(&forgotten));
    assert_eq!(inbox.begin_commands().await.unwrap(), []);
}

#[tokio::test]
async fn an_inbox_of_an_earlier_version_gets_its_journal() {
    let bench = Bench::new();
    let path = bench.folder.path().join("inbox.db");
    let Bench { folder, inbox } = bench;
    drop(inbox);
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch("DROP TABLE commands; PRAGMA user_version = 2;")
        .unwrap();
    drop(old);
    let inbox = Inbox::open_inline(&path).unwrap();
    let taking = inbox.take_command(command("one", 1_000), 0).await.unwrap();
    assert_eq!(taking, Taking::Taken);
    drop(folder);
}

/// A journal that is full: each command in it is acknowledged and its time is over at 1 000.
fn full(core: &mut core::Core, acknowledged: bool) {
    core.connection
        .execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000)
             INSERT INTO commands (id, expires_ms, act, code, detail, acknowledged)
             SELECT 'old ' || n, 1000, '{}', 1, '', ?1 FROM n",
            [acknowledged],
        )
        .unwrap();
}

fn codes(core: &core::Core) -> BTreeMap<String, CommandCode> {
    let pending = core.pending_results().unwrap();
    pending
        .into_iter()
        .map(|result| (result.id, result.code))
        .collect()
}

#[test]
fn a_full_journal_forgets_what_is_over_and_begins_none_of_it_again() {
    let mut core = core::Core::in_memory().unwrap();
    full(&mut core, true);
    let take =
        |core: &mut core::Core, id: &str, ends, now| core.take_command(&command(id, ends), now).unwrap();
    assert_eq!(take(&mut core, "new", 9_000, 2_000), Taking::Taken);
    // The hub sends again what was forgotten, also when its clock has gone back: it is not begun.
    assert_eq!(take(&mut core, "old 1", 1_000, 2_000), Taking::Concluded);
    assert_eq!(take(&mut core, "old 2", 1_000, 500), Taking::Concluded);
    let unknown = ["old 1", "old 2"].map(|id| (id.to_owned(), CommandCode::Unknown));
    assert_eq!(codes(&core), BTreeMap::from(unknown));
    let begun = core.begin_commands().unwrap();
    assert_eq!(begun, [command("new", 9_000)]);
}

#[test]
fn a_command_for_which_there_is_no_room_is_refused_and_its_id_known() {
    let mut core = core::Core::in_memory().unwrap();
    full(&mut core, false);
    // What the hub has not acknowledged is not forgotten.
    let new = command("new", 9_000);
    assert_eq!(core.take_command(&new, 2_000).unwrap(), Taking::Concluded);
    assert_eq!(core.begin_commands().unwrap(), []);
    core.connection
        .execute("UPDATE commands SET acknowledged = 1 WHERE id <> 'new'", [])
        .unwrap();
    assert_eq!(codes(&core)["new"], CommandCode::Refused);
    // Now there is room; what was refused stays refused.
    assert_eq!(core.take_command(&new, 2_000).unwrap(), Taking::Concluded);
    assert_eq!(core.begin_commands().unwrap(), []);
    assert_eq!(
        core.take_command(&command("next", 9_000), 2_000).unwrap(),
        Taking::Taken
    );
}

#[test]
fn a_row_that_cannot_be_read_keeps_no_other_command_from_being_begun_later() {
    let mut core = core::Core::in_memory().unwrap();
    for id in ["one", "two"] {
        core.take_command(&command(id, 1_000), 0).unwrap();
    }
    let act: String = core
        .connection
        .query_row("SELECT act FROM commands WHERE id = 'two'", [], |row| row.get(0))
        .unwrap();
    let write = |core: &core::Core, act: &str| {
        let sql = "UPDATE commands SET act = ?1 WHERE id = 'two'";
        core.connection.execute(sql, [act]).unwrap();
    };
    write(&core, "not an act");
    core.begin_commands().unwrap_err();
    write(&core, &act);
    let begun = core.begin_commands().unwrap();
    assert_eq!(begun, [command("one", 1_000), command("two", 1_000)]);
}

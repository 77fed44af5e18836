//! A hub that repeats, reorders and invents: what it says twice changes nothing, what it leaves out deletes nothing.

use roadstead_contract::fleet::{
    Batch, Change, HaveRequest, Mode, SnapshotBegin, SnapshotEnd, Stage, StateSum, Tombstone, Upsert,
    batch::Purpose, change::What, cluster_frame::Body, document_digest, hub_frame,
};
use roadstead_simulation::{
    agent::ClusterAgent,
    prompt,
    scripted::{Script, ScriptedHub},
};
use std::collections::BTreeMap;

fn upsert(revision: u64, uid: &str, generation: u64, text: &str) -> Change {
    let document = prompt(uid, text);
    let upsert = Upsert {
        revision,
        uid: uid.to_owned(),
        generation,
        kind: document.kind,
        project: document.project,
        name: document.name,
        digest: document_digest(&document.json).to_vec(),
        size: document.json.len() as u64,
        inline: Some(document.json),
    };
    Change {
        what: Some(What::Upsert(upsert)),
    }
}

fn tombstone(revision: u64, uid: &str, generation: u64) -> Change {
    Change {
        what: Some(What::Tombstone(Tombstone {
            revision,
            uid: uid.to_owned(),
            generation,
        })),
    }
}

fn batch(from: u64, through: u64, purpose: Purpose, changes: Vec<Change>) -> hub_frame::Body {
    hub_frame::Body::Batch(Batch {
        from,
        through,
        root: Vec::new(),
        changes,
        purpose: purpose.into(),
    })
}

fn delta(from: u64, through: u64, changes: Vec<Change>) -> hub_frame::Body {
    batch(from, through, Purpose::Delta, changes)
}

async fn opened(mode: Mode) -> (ScriptedHub, ClusterAgent, Script) {
    let mut hub = ScriptedHub::start().await;
    let agent = ClusterAgent::join(&hub.address.to_string(), &hub.token);
    let mut script = hub.session().await;
    script.welcome(mode, 0).await;
    (hub, agent, script)
}

/// The next acknowledgement of what is on disk.
async fn persisted(script: &mut Script) -> u64 {
    loop {
        match script.hear().await.expect("the session lives") {
            Body::Ack(ack) if ack.stage() == Stage::Persisted => return ack.revision,
            _ => {}
        }
    }
}

async fn generations(agent: &ClusterAgent) -> BTreeMap<String, u64> {
    let (_, documents) = agent.inbox.documents().await.expect("the inbox answers");
    documents
        .into_iter()
        .map(|document| (document.uid, document.generation))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s50_replayed_and_reordered_frames_change_nothing() {
    let (_hub, agent, mut script) = opened(Mode::Delta).await;
    let first = delta(0, 1, vec![upsert(1, "a", 1, "one"), upsert(1, "b", 1, "one")]);
    let second = delta(1, 2, vec![upsert(2, "a", 2, "two"), tombstone(2, "b", 1)]);
    script.say(first.clone()).await;
    script.say(second.clone()).await;
    assert_eq!(
        (persisted(&mut script).await, persisted(&mut script).await),
        (1, 2)
    );
    let held = generations(&agent).await;
    assert_eq!(held, BTreeMap::from([("a".to_owned(), 2)]));
    // Each is said again; the answer is the cursor, and nothing else changes.
    for frame in [first.clone(), second, first] {
        script.say(frame).await;
        assert_eq!(persisted(&mut script).await, 2);
        assert_eq!(generations(&agent).await, held);
    }
    // A frame from the future is not taken; the cluster agent says where it is, once.
    for _ in 0..2 {
        script.say(delta(7, 8, vec![upsert(8, "c", 1, "x")])).await;
    }
    match script.hear().await {
        Some(Body::Resume(resume)) => assert_eq!(resume.cursor, 2),
        other => panic!("expected a Resume, found {other:?}"),
    }
    script.say(delta(2, 3, vec![upsert(3, "c", 1, "x")])).await;
    assert_eq!(persisted(&mut script).await, 3);
    assert_eq!(generations(&agent).await.len(), 2);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s50_an_older_generation_never_overwrites_a_newer_one() {
    let (_hub, agent, mut script) = opened(Mode::Delta).await;
    script.say(delta(0, 1, vec![upsert(1, "a", 5, "five")])).await;
    persisted(&mut script).await;
    for (revision, purpose) in [(2, Purpose::Delta), (3, Purpose::Delta)] {
        script
            .say(batch(
                revision - 1,
                revision,
                purpose,
                vec![upsert(revision, "a", 4, "four")],
            ))
            .await;
        persisted(&mut script).await;
    }
    script
        .say(batch(3, 3, Purpose::Repair, vec![upsert(3, "a", 4, "four")]))
        .await;
    script.say(delta(3, 4, vec![])).await;
    persisted(&mut script).await;
    assert_eq!(generations(&agent).await, BTreeMap::from([("a".to_owned(), 5)]));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_or_lying_snapshot_deletes_nothing() {
    let (mut hub, agent, mut script) = opened(Mode::Delta).await;
    script
        .say(delta(0, 1, vec![upsert(1, "a", 1, "x"), upsert(1, "b", 1, "x")]))
        .await;
    persisted(&mut script).await;
    let root = StateSum::of([("a", 1, document_digest(&prompt("a", "x").json))])
        .root()
        .to_vec();
    let honest = SnapshotEnd {
        revision: 5,
        count: 1,
        root,
        complete: true,
        approved_deletes: 0,
    };
    let lies = [
        SnapshotEnd {
            complete: false,
            ..honest.clone()
        },
        SnapshotEnd {
            count: 2,
            ..honest.clone()
        },
        SnapshotEnd {
            root: vec![0; 32],
            ..honest.clone()
        },
    ];
    for lie in lies {
        script
            .say(hub_frame::Body::SnapshotBegin(SnapshotBegin {
                revision: 5,
                count: 1,
            }))
            .await;
        script
            .say(batch(5, 5, Purpose::Snapshot, vec![upsert(1, "a", 1, "x")]))
            .await;
        script.say(hub_frame::Body::SnapshotEnd(lie)).await;
        // The cluster agent leaves such a session and comes back where it was.
        script = hub.session().await;
        assert_eq!(script.welcome(Mode::Snapshot, 5).await.cursor, 1);
        assert_eq!(generations(&agent).await.len(), 2);
    }
    script
        .say(hub_frame::Body::SnapshotBegin(SnapshotBegin {
            revision: 5,
            count: 1,
        }))
        .await;
    script
        .say(batch(5, 5, Purpose::Snapshot, vec![upsert(1, "a", 1, "x")]))
        .await;
    script.say(hub_frame::Body::SnapshotEnd(honest)).await;
    assert_eq!(persisted(&mut script).await, 5);
    assert_eq!(generations(&agent).await, BTreeMap::from([("a".to_owned(), 1)]));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_is_listed_in_pages() {
    let (_hub, agent, mut script) = opened(Mode::Diff).await;
    let uids: Vec<_> = (0..2_500).map(|n| format!("d{n:04}")).collect();
    for (n, uids) in uids.chunks(500).enumerate() {
        let (from, through) = (n as u64, n as u64 + 1);
        let changes = uids.iter().map(|uid| upsert(through, uid, 1, "x")).collect();
        script.say(delta(from, through, changes)).await;
        assert_eq!(persisted(&mut script).await, through);
    }
    script
        .say(hub_frame::Body::HaveRequest(HaveRequest { request: 7 }))
        .await;
    let mut listed = Vec::new();
    for page in 0..3 {
        let have = loop {
            if let Some(Body::Have(have)) = script.hear().await {
                break have;
            }
        };
        assert_eq!(
            (have.request, have.page, have.last, have.cursor),
            (7, page, page == 2, 5)
        );
        listed.extend(have.entries.into_iter().map(|entry| entry.uid));
    }
    assert_eq!(listed, uids);
    agent.stop().await.unwrap();
}

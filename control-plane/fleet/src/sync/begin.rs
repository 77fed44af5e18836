//! How a session begins: Hello, admission, the store's epoch, the Welcome.

use super::{
    diff::Diff,
    frames::hub,
    hear::waiting,
    mode::{self, Resume},
    owed::Owed,
    session::{End, FRAMES, RENEWALS, RESUMES, ROOTS, Seated, Session},
    trust::Trust,
    write::Writer,
};
use crate::store::Taken;
use crate::{
    bucket::Bucket,
    listen::{Peer, status},
    registry::Greeting,
    serve::Inner,
    store::{Begun, Event, Hello, Session as Fence, StoreError, What},
};
use roadstead_contract::fleet::{
    self, ClusterFrame, HAVE_PAGE, HubFrame, Limits, MAX_FRAME, MAX_INLINE, Mode, PROTOCOL_MAX, PROTOCOL_MIN,
    Revoked, Throttle, Welcome, cluster_frame, hub_frame::Body,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Status, Streaming};

const HELLO_WITHIN: Duration = Duration::from_secs(15);
/// Run records in one frame.
const RUNS: u32 = 64;
/// Texts of a Hello; versions and random ids are much shorter.
const MAX_TEXT: usize = 128;
/// Revisions and generations that a cluster agent may name. Accepted after a restore (protocol.md §4) they become the
/// hub's own, which must be able to count on from there.
pub(super) const MAX_NUMBER: u64 = 1 << 53;

pub(super) async fn begin(
    hub: Arc<Inner>,
    peer: Peer,
    mut inbound: Streaming<ClusterFrame>,
    frames: mpsc::Sender<Result<HubFrame, Status>>,
    greeting: Greeting,
) -> Result<Session, End> {
    let hello = first(&mut inbound).await?;
    drop(greeting);
    let (identity, _) = peer.identified().map_err(End::Status)?.clone();
    // The cluster's own share first: what one takes too often is not taken from all (S39).
    if let Err(wait) = hub
        .registry
        .admit(identity.cluster)
        .and_then(|()| hub.sessions.take_or_queue())
    {
        return Err(End::last(throttle(wait)));
    }
    let protocol = protocol(&hello)?;
    let said = said(&hello)?;
    // Before the certificate's root is looked at: what changes after it is heard.
    let trust = Trust::new(&hub.authority);
    let begun = match begin_stored(&hub, &peer, &said).await {
        Ok(begun) => begun,
        Err(error @ StoreError::Refused(_)) => {
            hub.refuse(&peer, "session", &error).await;
            return Err(End::last(Body::Revoked(Revoked {
                reason: error.to_string(),
            })));
        }
        Err(error) => {
            hub.refuse(&peer, "session", &error).await;
            return Err(End::Status(status(&error)));
        }
    };
    suspect_clone(&hub, &peer, &said, &begun).await;
    let (held, stall) = (hello.held.is_some(), hub.settings.stall);
    let resume = resume(&hub, &peer, &said, &hello, &begun).await?;
    if resume == Resume::Snapshot
        && let Err(wait) = hub.snapshots.take_or_queue()
    {
        return Err(End::last(throttle(wait)));
    }
    let superseded = || End::Status(Status::aborted("a newer session of this cluster has begun"));
    let seat = hub
        .registry
        .seat(identity.clone(), begun.epoch)
        .ok_or_else(superseded)?;
    let seat = Seated {
        seat,
        hub: hub.clone(),
    };
    let welcome = welcome(&hub, &begun, &resume, protocol);
    let hints = hub.store.hints(&identity);
    let mut session = Session {
        hints,
        keys: hub.keys.subscribe(),
        writer: Writer::new(&said, &begun, &resume, (held, stall)),
        diff: Diff::default(),
        hub,
        peer,
        seat,
        fence: Fence {
            peer: identity,
            epoch: begun.epoch,
        },
        inbound,
        frames,
        held,
        accused: false,
        held_at: hello.held.as_ref().map_or(0, |held| held.revision),
        owed: Owed::default(),
        settling: None,
        taking: false,
        unwritten: 0,
        behind: matches!(resume, Resume::Behind(_)),
        ahead: false,
        flood: Bucket::new(FRAMES.0, FRAMES.1),
        resumes: Bucket::new(RESUMES.0, RESUMES.1),
        renewals: Bucket::new(RENEWALS.0, RENEWALS.1),
        trust,
        roots: Bucket::new(ROOTS.0, ROOTS.1),
        heard: Instant::now(),
    };
    session.keys.mark_unchanged();
    session.plan_renewal();
    let sent = timeout(stall, session.frames.send(Ok(hub_welcome(welcome)))).await;
    if !matches!(sent, Ok(Ok(()))) {
        return Err(End::Gone);
    }
    // What was said in the session before may have been lost with it: the Hello says what is on disk.
    match &hello.held {
        Some(held) => session.owed.held(waiting(held)),
        None if begun.held || begun.approved_deletes > 0 => session.owed.taken(Taken {
            approved: 0,
            held: false,
        }),
        None => {}
    }
    session.note_timeline(said.cursor, begun.frozen).await?;
    if matches!(resume, Resume::Delta | Resume::Diff) {
        session.owed.persisted(said.cursor);
    }
    session.write_owed();
    if resume == Resume::Diff {
        session.ask_difference().await?;
    }
    Ok(session)
}

/// The first frame, which must be a Hello.
async fn first(inbound: &mut Streaming<ClusterFrame>) -> Result<fleet::Hello, End> {
    let frame = timeout(HELLO_WITHIN, inbound.message()).await;
    let frame = frame.map_err(|_| End::Status(Status::deadline_exceeded("no Hello")))?;
    match frame.map_err(|_| End::Gone)?.and_then(|frame| frame.body) {
        Some(cluster_frame::Body::Hello(hello)) => Ok(hello),
        _ => Err(End::Status(Status::invalid_argument(
            "expected Hello as the first frame",
        ))),
    }
}

fn hub_welcome(welcome: Welcome) -> HubFrame {
    hub(Body::Welcome(welcome))
}

async fn begin_stored(hub: &Inner, peer: &Peer, said: &Hello) -> Result<Begun, StoreError> {
    let (identity, not_after) = peer
        .identified()
        .map_err(|status| StoreError::Refused(status.to_string()))?;
    hub.usable(peer, *not_after)
        .map_err(|why| StoreError::Refused(why.to_owned()))?;
    hub.store.begin_session(identity, said).await
}

fn throttle(wait: Duration) -> Body {
    let wait = wait.max(Duration::from_millis(100));
    Body::Throttle(Throttle {
        retry_after_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    })
}

/// The highest version that both speak.
fn protocol(hello: &fleet::Hello) -> Result<u32, End> {
    let highest = hello.protocol_max.min(PROTOCOL_MAX);
    if highest < hello.protocol_min.max(PROTOCOL_MIN) {
        return Err(End::Status(Status::failed_precondition(format!(
            "expected a cluster agent of protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, found {} to {}: upgrade it",
            hello.protocol_min, hello.protocol_max
        ))));
    }
    Ok(highest)
}

fn said(hello: &fleet::Hello) -> Result<Hello, End> {
    let texts = [&hello.version, &hello.instance_id, &hello.incarnation];
    let fits = |text: &String| text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !texts.into_iter().all(fits) || hello.incarnation.is_empty() || hello.instance_id.is_empty() {
        return Err(End::Status(Status::invalid_argument(
            "a text of the Hello is empty or malformed",
        )));
    }
    if hello.cursor > MAX_NUMBER {
        return Err(End::Status(Status::invalid_argument(
            "a cursor that no hub has given out",
        )));
    }
    Ok(Hello {
        version: hello.version.clone(),
        instance: hello.instance_id.clone(),
        incarnation: hello.incarnation.clone(),
        cursor: hello.cursor,
    })
}

/// Two cluster agents with one identity: their instances take turns, or another inbox comes with the same key.
async fn suspect_clone(hub: &Inner, peer: &Peer, said: &Hello, begun: &Begun) {
    let Ok((identity, _)) = peer.identified() else {
        return;
    };
    let turns = hub.registry.takes_turns(identity.cluster, &said.instance);
    let other_inbox = begun
        .previous_incarnation
        .as_ref()
        .is_some_and(|before| *before != said.incarnation);
    let detail = match (turns, other_inbox) {
        (true, _) => "two instances take turns with one certificate",
        (false, true) => "another inbox than before: wiped, or a second cluster agent with this certificate",
        (false, false) => return,
    };
    let event = Event {
        peer: Some(identity.clone()),
        source: peer.source,
        what: What::CloneSuspected,
        detail: detail.to_owned(),
    };
    hub.audit(event).await;
}

async fn resume(
    hub: &Inner,
    peer: &Peer,
    said: &Hello,
    hello: &fleet::Hello,
    begun: &Begun,
) -> Result<Resume, End> {
    let (identity, _) = peer.identified().map_err(End::Status)?;
    let root = match said.cursor == begun.revision {
        true => {
            let desired = hub
                .store
                .desired(identity)
                .await
                .map_err(|error| End::Status(status(&error)))?;
            // Something changed in between: the delta comes first.
            (desired.revision == begun.revision).then(|| desired.root())
        }
        false => None,
    };
    let held = hello.held.is_some();
    let resume = mode::resume(&hub.settings.version, said, &hello.state_root, begun, root, held);
    if let Resume::Behind(reason) = &resume {
        let event = Event {
            peer: Some(identity.clone()),
            source: peer.source,
            what: What::TimelineBehind,
            detail: reason.clone(),
        };
        hub.audit(event).await;
    }
    Ok(resume)
}

fn welcome(hub: &Inner, begun: &Begun, resume: &Resume, protocol: u32) -> Welcome {
    let (mode, reason) = match resume {
        Resume::Delta => (Mode::Delta, String::new()),
        Resume::Diff => (Mode::Diff, String::new()),
        Resume::Snapshot => (Mode::Snapshot, String::new()),
        Resume::Hold(reason) | Resume::Behind(reason) => (Mode::Hold, reason.clone()),
    };
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    Welcome {
        epoch: begun.epoch,
        mode: mode.into(),
        target_revision: begun.revision,
        heartbeat_ms: u32::try_from(hub.settings.heartbeat.as_millis()).unwrap_or(u32::MAX),
        reconnect_window_ms: hub.window_ms(),
        limits: Some(Limits {
            frame: size(MAX_FRAME),
            inline: size(MAX_INLINE),
            have_page: size(HAVE_PAGE),
            runs: RUNS,
        }),
        trust: Some(hub.trust()),
        keys: Some(hub.keys.borrow().clone()),
        protocol,
        reason,
        tunnel_streams: hub.settings.tunnel_streams,
    }
}

impl Inner {
    /// How widely the fleet of this replica is to spread its return: fleet ÷ admission rate (protocol.md §3 rule 9), where
    /// each is admitted twice, with its session and then with its tunnel.
    pub(crate) fn window_ms(&self) -> u32 {
        let seconds = 2.0 * self.registry.count() as f64 / self.settings.admission;
        (seconds * 1_000.0).clamp(10.0, 600_000.0) as u32
    }
}

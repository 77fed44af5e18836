//! How a session begins: Hello, admission, the store's epoch, the Welcome.

use super::{
    commands::Commands,
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
/// Capabilities of a Hello, and bytes of one.
const CAPABILITIES: usize = 64;
const MAX_CAPABILITY: usize = 64;
/// Revisions and generations that a cluster agent may name. Accepted after a restore (protocol.md §4) they become the
/// hub's own, which must be able to count on from there.
pub(super) const MAX_NUMBER: u64 = 1 << 53;

pub(super) async fn begin(
    hub: Arc<Inner>,
    peer: Peer,
    mut inbound: Streaming<ClusterFrame>,
    frames: Outgoing,
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
    let begun = begin_stored(&hub, &peer, &said).await?;
    suspect_clone(&hub, &peer, &said, &begun).await;
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
    let beginning = Beginning {
        held: hello.held,
        said,
        begun,
        resume,
    };
    let welcome = welcome(&hub, &beginning, protocol);
    let mut session = seated(hub, peer, seat, (inbound, frames), trust, &beginning)?;
    session.greet(welcome).await?;
    session.take_up(beginning).await?;
    Ok(session)
}

type Outgoing = mpsc::Sender<Result<HubFrame, Status>>;

/// What both sides have said.
struct Beginning {
    said: Hello,
    /// Deletions that wait in the cluster.
    held: Option<fleet::Held>,
    begun: Begun,
    resume: Resume,
}

/// A session as it begins.
fn seated(
    hub: Arc<Inner>,
    peer: Peer,
    seat: Seated,
    (inbound, frames): (Streaming<ClusterFrame>, Outgoing),
    trust: Trust,
    beginning: &Beginning,
) -> Result<Session, End> {
    let Beginning {
        said,
        held,
        begun,
        resume,
    } = beginning;
    let (identity, _) = peer.identified().map_err(End::Status)?.clone();
    let hints = hub.store.hints(&identity);
    let mut session = Session {
        hints,
        keys: hub.keys.subscribe(),
        writer: Writer::new(said, begun, resume, (held.is_some(), hub.settings.stall)),
        commands: Commands::new(begun.commands),
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
        held: held.is_some(),
        accused: false,
        held_at: held.as_ref().map_or(0, |held| held.revision),
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
    Ok(session)
}

impl Session {
    async fn greet(&self, welcome: Welcome) -> Result<(), End> {
        let frame = Ok(hub_welcome(welcome));
        match timeout(self.hub.settings.stall, self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// What was said in the session before may have been lost with it: the Hello says what is on disk.
    async fn take_up(&mut self, beginning: Beginning) -> Result<(), End> {
        let Beginning {
            said,
            held,
            begun,
            resume,
        } = beginning;
        match &held {
            Some(held) => self.owed.held(waiting(held)),
            None if begun.held || begun.approved_deletes > 0 => self.owed.taken(Taken {
                approved: 0,
                held: false,
            }),
            None => {}
        }
        self.note_timeline(said.cursor, begun.frozen).await?;
        if matches!(resume, Resume::Delta | Resume::Diff) {
            self.owed.persisted(said.cursor);
        }
        self.write_owed();
        match resume {
            Resume::Diff => self.ask_difference().await,
            _ => Ok(()),
        }
    }
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

/// The store's part. A refusal is audited, and the cluster agent told.
async fn begin_stored(hub: &Inner, peer: &Peer, said: &Hello) -> Result<Begun, End> {
    let (identity, not_after) = peer.identified().map_err(End::Status)?;
    let begun = match hub.usable(peer, *not_after) {
        Ok(()) => hub.store.begin_session(identity, said).await,
        Err(why) => Err(StoreError::Refused(why.to_owned())),
    };
    if let Err(error) = &begun {
        hub.refuse(peer, "session", error).await;
    }
    begun.map_err(|error| match error {
        StoreError::Refused(_) => End::last(Body::Revoked(Revoked {
            reason: error.to_string(),
        })),
        error => End::Status(status(&error)),
    })
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
    let capabilities = &hello.capabilities;
    let named = |text: &String| !text.is_empty() && text.len() <= MAX_CAPABILITY && fits(text);
    if capabilities.len() > CAPABILITIES || !capabilities.iter().all(named) {
        return Err(End::Status(Status::invalid_argument(
            "too many capabilities, or one that is malformed",
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
        capabilities: hello.capabilities.clone(),
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

fn welcome(hub: &Inner, beginning: &Beginning, protocol: u32) -> Welcome {
    let Beginning { begun, resume, .. } = beginning;
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
        now_ms: hub.clock.now_ms(),
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

//! Keeps a session alive: enrol, connect, live, wait, again.

use crate::{
    Clock, Dial, Identity, LinkError, LinkState, Random, Reports, TunnelHandler,
    backoff::{Backoff, Ending},
    channel::Route,
    clock::random_id,
    enrol::{self, describe},
    session::{self, Context, End, Line, Opened},
    tls, tunnel,
};
use parking_lot::Mutex;
use roadstead_contract::fleet::JoinToken;
use roadstead_inbox::{Inbox, InboxError};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How to reach the hub, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` of the hub's fleet port; the host must stand in the hub's certificate.
    pub hub: String,
    /// Where the identity is kept; the folder exists.
    pub folder: PathBuf,
    /// Used when the folder holds no valid identity.
    pub join: Option<JoinToken>,
    /// Version of the cluster agent, for the hub.
    pub version: String,
    /// What whoever begins the inbox's commands can do (`fleet::RESTART_ENGINE`), for the hub.
    pub capabilities: Vec<String>,
    /// Tunnel calls at once; more wait at the hub.
    pub calls: usize,
}

/// What the link works with.
#[derive(Clone)]
pub struct Parts {
    pub dial: Arc<dyn Dial>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub inbox: Inbox,
    pub handler: Arc<dyn TunnelHandler>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

/// The connection to the hub. [`Reports`] is its handle for the rest of the cluster agent.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    parts: Parts,
    reports: Reports,
}

impl Link {
    #[must_use]
    pub fn new(settings: Settings, parts: Parts) -> (Self, Reports) {
        let reports = Reports::new();
        let link = Self {
            settings,
            parts,
            reports: reports.clone(),
        };
        (link, reports)
    }

    /// Runs until `stop`, through every loss of the connection.
    ///
    /// # Errors
    /// What only a person can mend. Engines are to go on: the inbox stays as it is.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LinkError> {
        let reports = self.reports.clone();
        let ended = self.keep(&stop).await;
        let reason = match &ended {
            Ok(()) => "stopped".to_owned(),
            Err(error) => error.to_string(),
        };
        reports.shared().state.send_replace(LinkState::Away { reason });
        ended
    }

    async fn keep(self, stop: &CancellationToken) -> Result<(), LinkError> {
        let Self {
            settings,
            parts,
            reports,
        } = self;
        let route = Route {
            dial: parts.dial,
            address: settings.hub.clone(),
        };
        let Some(mut identity) = identify(&settings, &route, &parts.clock, &*parts.random, stop).await?
        else {
            return Ok(());
        };
        let (tunnels, target) = watch::channel(None);
        let pool = tunnel::serve(
            route.clone(),
            target,
            parts.handler,
            parts.random.clone(),
            settings.calls,
        );
        let _pool = AbortOnDropHandle::new(tokio::spawn(pool));
        let context = Arc::new(Context {
            route,
            inbox: parts.inbox,
            shared: reports.shared(),
            clock: parts.clock,
            random: parts.random.clone(),
            version: settings.version.clone(),
            capabilities: settings.capabilities.clone(),
            instance: random_id(&*parts.random),
            folder: settings.folder.clone(),
            tunnels,
            proofs: Mutex::default(),
        });
        let mut backoff = Backoff::new();
        let mut next: Option<Opened> = None;
        // A token that was given for a cluster whose certificate is worth nothing any more; until it is refused.
        let mut rejoin = settings.join.as_ref();
        while !stop.is_cancelled() {
            let opened = match next.take() {
                Some(opened) => Ok(opened),
                None => begin(&context, &identity).await,
            };
            let report = match opened {
                Ok(opened) => session::run(&context, opened, stop).await,
                Err(end) => session::Report {
                    end,
                    lived: None,
                    window: None,
                    identity: identity.clone(),
                },
            };
            if report.lived.is_some() {
                identity = report.identity;
            }
            backoff.window = report.window.unwrap_or(backoff.window);
            let worthless = matches!(report.end, End::Revoked(_) | End::Distrusted(_));
            let again = match worthless {
                true => again(&context, &settings.version, &identity, &mut rejoin).await,
                false => Again::Never,
            };
            if let Again::Joined(joined) = again {
                identity = *joined;
                continue;
            }
            let (ending, reason) = match report.end {
                End::Shutdown => return Ok(()),
                End::Handover(opened) => {
                    next = Some(*opened);
                    continue;
                }
                End::Revoked(reason) if matches!(again, Again::Never) => {
                    return Err(LinkError::Revoked(reason));
                }
                // The join token may still bring it back: the hub, or another way to it, is not there yet.
                End::Revoked(reason) => (Ending::Refused, reason),
                End::Distrusted(reason) => (Ending::Lost, reason),
                End::Inbox(error) if !error.may_pass() => return Err(error.into()),
                End::Inbox(error) => {
                    let mut wait = || backoff.next(Ending::Lost, Duration::ZERO, &*context.random);
                    writable(&context, error, &mut wait, stop).await;
                    continue;
                }
                End::Lost(reason) => (Ending::Lost, reason),
                End::Refused(reason) => (Ending::Refused, reason),
                End::Throttled(least) => (Ending::Throttled(least), "the hub is busy".to_owned()),
                End::Drained(within) => (Ending::Drained(within), "the hub replica drains".to_owned()),
            };
            if identity.expired(&*context.clock) {
                return Err(LinkError::Expired);
            }
            let wait = backoff.next(ending, report.lived.unwrap_or_default(), &*context.random);
            tracing::info!(reason, wait_ms = wait.as_millis(), "no session with the hub");
            context.shared.state.send_replace(LinkState::Away { reason });
            pause(wait, stop).await;
        }
        Ok(())
    }
}

/// What came of joining anew.
enum Again {
    Joined(Box<Identity>),
    /// Worth another attempt.
    Later,
    /// No join token, or none that is of use any more.
    Never,
}

/// Joins anew where the identity is worth nothing and a join token was given: as after the hub's root was retired while
/// this cluster was away. That it is worth nothing is what anybody on the way to the hub can make it look like: the token
/// must be one that was not used here, of no root that was retired, and bring this cluster's identity back. Otherwise the
/// kept one stays as it is.
async fn again(context: &Context, version: &str, kept: &Identity, rejoin: &mut Option<&JoinToken>) -> Again {
    let Some(token) = *rejoin else {
        return Again::Never;
    };
    match join(
        &context.route,
        token,
        version,
        &context.clock,
        Some(kept),
        &context.folder,
    )
    .await
    {
        Ok(identity) => {
            *rejoin = None;
            Again::Joined(Box::new(identity))
        }
        Err(enrol::Failure::Later(reason)) => {
            tracing::warn!(reason, "cannot join anew yet");
            Again::Later
        }
        Err(enrol::Failure::Final(error)) => {
            tracing::warn!(%error, "the join token brings no new identity");
            *rejoin = None;
            Again::Never
        }
    }
}

/// A join token becomes an identity, on disk; in the place of the kept one only if that admits it.
async fn join(
    route: &Route,
    token: &JoinToken,
    version: &str,
    clock: &Arc<dyn Clock>,
    kept: Option<&Identity>,
    folder: &Path,
) -> Result<Identity, enrol::Failure> {
    let never = enrol::Failure::Final;
    if let Some(kept) = kept {
        kept.admits(token).map_err(never)?;
    }
    let mut identity = enrol::enrol(route, token, version, clock.clone()).await?;
    if let Some(kept) = kept {
        identity = kept.rejoined(identity).map_err(never)?;
    }
    identity.save(folder).map_err(|error| never(error.into()))?;
    let (tenant, cluster) = (&identity.tenant, &identity.cluster);
    tracing::info!(tenant, cluster, "this cluster has joined");
    Ok(identity)
}

async fn begin(context: &Context, identity: &Identity) -> Result<Opened, End> {
    let line = connect(context, identity).await?;
    session::open(context, line).await
}

/// Waits until the inbox can be written again, as after a full disk. Without it a session could take nothing that the
/// hub sends, and the hub would be dialled for nothing.
async fn writable(
    context: &Context,
    mut error: InboxError,
    wait: &mut (dyn FnMut() -> Duration + Send),
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let wait = wait();
        let reason = format!("the inbox: {error}");
        tracing::error!(%error, wait_ms = wait.as_millis(), "no session: the inbox cannot be written");
        context.shared.trouble.send_replace(Some(error.to_string()));
        context.shared.state.send_replace(LinkState::Away { reason });
        pause(wait, stop).await;
        match context.inbox.check().await {
            Ok(()) => break,
            Err(still) => error = still,
        }
    }
    context.shared.trouble.send_replace(None);
}

async fn connect(context: &Context, identity: &Identity) -> Result<Line, End> {
    let tls = tls::mutual(identity, context.clock.clone()).map_err(|error| End::Lost(error.to_string()))?;
    let connection = context.route.connect(tls.clone()).await;
    let connection = connection.map_err(|error| match enrol::advice(&error) {
        Some(advice) => End::Distrusted(format!("{}: {advice}", describe(&error))),
        None => End::Lost(describe(&error)),
    })?;
    Ok(Line {
        identity: identity.clone(),
        tls,
        channel: connection.channel,
        hub: connection.hub,
        fresh: false,
    })
}

/// The identity from disk, or a new one by the join token. `None` when stopped meanwhile.
async fn identify(
    settings: &Settings,
    route: &Route,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
    stop: &CancellationToken,
) -> Result<Option<Identity>, LinkError> {
    let kept = Identity::load(&settings.folder)?;
    let expired = match &kept {
        Some(identity) if !identity.expired(&**clock) => {
            let (folder, token) = (&settings.folder, settings.join.as_ref());
            return Ok(kept.map(|identity| identity.remember_found(folder, token)));
        }
        Some(_) => LinkError::Expired,
        None => LinkError::NotEnrolled,
    };
    let kept = kept.map(|identity| identity.recall_found(&settings.folder, settings.join.as_ref()));
    let token = settings.join.as_ref().ok_or(expired)?;
    let mut backoff = Backoff::new();
    while !stop.is_cancelled() {
        let (version, folder) = (&settings.version, &settings.folder);
        match join(route, token, version, clock, kept.as_ref(), folder).await {
            Ok(identity) => return Ok(Some(identity)),
            Err(enrol::Failure::Final(error)) => return Err(error),
            Err(enrol::Failure::Later(reason)) => {
                let wait = backoff.next(Ending::Lost, Duration::ZERO, random);
                tracing::warn!(reason, wait_ms = wait.as_millis(), "cannot enrol yet");
                pause(wait, stop).await;
            }
        }
    }
    Ok(None)
}

async fn pause(wait: Duration, stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        OsRandom, SystemClock,
        channel::Io,
        identity::tests::{from_before, token},
    };
    use std::io;
    use tokio::sync::Notify;

    /// Tells of each attempt; none succeeds.
    #[derive(Debug, Default)]
    struct Told(Notify);

    #[async_trait::async_trait]
    impl Dial for Told {
        async fn dial(&self, _: &str) -> io::Result<Box<dyn Io>> {
            self.0.notify_one();
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    #[tokio::test]
    async fn s50_the_join_token_of_an_expired_identity_from_before_brings_no_other() {
        let folder = tempfile::tempdir().unwrap();
        // While it was good, the token that lay there was remembered.
        from_before(folder.path()).remember_found(folder.path(), Some(&token("first")));
        let dial = Arc::new(Told::default());
        let route = Route {
            dial: dial.clone(),
            address: "hub.test:443".to_owned(),
        };
        let settings = |join: &str| Settings {
            hub: route.address.clone(),
            folder: folder.path().to_owned(),
            join: Some(token(join)),
            version: "1.0.0".to_owned(),
            capabilities: Vec::new(),
            calls: 1,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let stop = CancellationToken::new();
        let first = settings("first");
        let tried = async {
            tokio::select! {
                biased;
                ended = identify(&first, &route, &clock, &OsRandom, &stop) => Some(ended),
                () = dial.0.notified() => None,
            }
        };
        let refused = tried.await.expect("the used token does not leave this machine");
        assert!(matches!(refused, Err(LinkError::NotAgain(_))), "{refused:?}");
        // Another one may.
        let later = settings("later");
        tokio::select! {
            biased;
            ended = identify(&later, &route, &clock, &OsRandom, &stop) => panic!("{ended:?}"),
            () = dial.0.notified() => {}
        }
        // Nothing is remembered where nothing was: the token that lies there is the one that is to be used.
        std::fs::remove_file(folder.path().join("join-token-found")).unwrap();
        tokio::select! {
            biased;
            ended = identify(&first, &route, &clock, &OsRandom, &stop) => panic!("{ended:?}"),
            () = dial.0.notified() => {}
        }
        assert!(!folder.path().join("join-token-found").exists());
    }
}

//! What the rest of the cluster agent says to the link, and sees of it.

use parking_lot::Mutex;
use roadstead_contract::fleet::{DocumentStatus, Nack};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{Notify, watch};

/// Whose tokens engines accept.
#[derive(Clone, Debug, PartialEq)]
pub struct HubKeys {
    /// JWK Set (RFC 7517).
    pub jwks: serde_json::Value,
    pub issuer: String,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// No session yet, or none any more; the reason is for people.
    Away { reason: String },
    /// A session lives.
    Connected { epoch: u64 },
    /// A session lives, and the hub sends nothing new; the reason is for people.
    Held { epoch: u64, reason: String },
}

/// The handle for the runtime: latest value wins, everything is said again to a new session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reports {
    shared: Arc<Shared>,
    keys: watch::Receiver<Option<HubKeys>>,
    state: watch::Receiver<LinkState>,
    trouble: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    said: Mutex<Said>,
    pub(crate) wake: Notify,
    pub(crate) keys: watch::Sender<Option<HubKeys>>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) trouble: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Said {
    /// Counts what was said.
    version: u64,
    applied: (u64, u64),
    statuses: BTreeMap<String, (u64, DocumentStatus)>,
    nacks: BTreeMap<String, (u64, Nack)>,
}

/// What was said after a version.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) version: u64,
    pub(crate) applied: Option<u64>,
    pub(crate) statuses: Vec<DocumentStatus>,
    pub(crate) nacks: Vec<Nack>,
}

impl Reports {
    pub(crate) fn new() -> Self {
        let (keys, see_keys) = watch::channel(None);
        let (state, see_state) = watch::channel(LinkState::Away {
            reason: "not connected yet".to_owned(),
        });
        let (trouble, see_trouble) = watch::channel(None);
        let shared = Shared {
            trouble,
            said: Mutex::default(),
            wake: Notify::new(),
            keys,
            state,
        };
        Self {
            shared: Arc::new(shared),
            keys: see_keys,
            state: see_state,
            trouble: see_trouble,
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Everything through this revision runs (or is refused by a Nack).
    pub fn applied(&self, revision: u64) {
        self.say(|said, version| {
            if revision > said.applied.1 {
                said.applied = (version, revision);
            }
        });
    }

    /// How a document is.
    pub fn status(&self, status: DocumentStatus) {
        self.say(|said, version| {
            let known = said.statuses.get(&status.uid);
            if known.is_none_or(|(_, before)| *before != status) {
                said.statuses.insert(status.uid.clone(), (version, status));
            }
        });
    }

    /// A document is not taken by the runtime or the engine.
    pub fn nack(&self, nack: Nack) {
        self.say(|said, version| {
            said.nacks.insert(nack.uid.clone(), (version, nack));
        });
    }

    /// A document is gone: nothing is said of it any more.
    pub fn forget(&self, uid: &str) {
        self.shared.forget(uid);
    }

    /// Why nothing that the hub sends can be kept now (a full disk); `None` while it can.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// Whose tokens engines accept; `None` until the hub has said so once.
    #[must_use]
    pub fn keys(&self) -> watch::Receiver<Option<HubKeys>> {
        self.keys.clone()
    }

    /// How the connection is.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    fn say(&self, what: impl FnOnce(&mut Said, u64)) {
        {
            let mut said = self.shared.said.lock();
            said.version += 1;
            let version = said.version;
            what(&mut said, version);
        }
        self.shared.wake.notify_one();
    }
}

impl Shared {
    pub(crate) fn forget(&self, uid: &str) {
        let mut said = self.said.lock();
        said.statuses.remove(uid);
        said.nacks.remove(uid);
    }

    /// What was said after `version`; everything for 0.
    pub(crate) fn news(&self, version: u64) -> News {
        let said = self.said.lock();
        let (at, revision) = said.applied;
        News {
            version: said.version,
            applied: (at > version).then_some(revision),
            statuses: said
                .statuses
                .values()
                .filter(|(at, _)| *at > version)
                .map(|(_, s)| s.clone())
                .collect(),
            nacks: said
                .nacks
                .values()
                .filter(|(at, _)| *at > version)
                .map(|(_, n)| n.clone())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, phase: &str) -> DocumentStatus {
        DocumentStatus {
            uid: uid.to_owned(),
            phase: phase.to_owned(),
            ..DocumentStatus::default()
        }
    }

    #[test]
    fn the_latest_word_wins_and_a_new_session_hears_all() {
        let reports = Reports::new();
        reports.status(status("a", "Pending"));
        reports.status(status("a", "Ready"));
        reports.status(status("b", "Ready"));
        reports.applied(4);
        reports.applied(3);
        let all = reports.shared.news(0);
        assert_eq!(all.statuses, [status("a", "Ready"), status("b", "Ready")]);
        assert_eq!(all.applied, Some(4));
        reports.status(status("b", "Ready"));
        assert!(reports.shared.news(all.version).statuses.is_empty());
        reports.forget("a");
        assert_eq!(reports.shared.news(0).statuses, [status("b", "Ready")]);
    }
}

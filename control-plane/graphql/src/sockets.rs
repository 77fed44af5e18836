//! How many sockets each actor has open: one token must not take them all.

use parking_lot::Mutex;
use roadstead_authz::TenantContext;
use roadstead_domain::TenantId;
use std::{collections::HashMap, sync::Arc};

type Key = (TenantId, String);

/// The open sockets, by tenant and actor.
#[derive(Debug)]
pub(crate) struct Sockets {
    most: usize,
    open: Mutex<HashMap<Key, usize>>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    sockets: Arc<Sockets>,
    key: Key,
}

impl Sockets {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// A place for one more; `None` where the actor has as many as allowed.
    pub(crate) fn enter(self: &Arc<Self>, context: &TenantContext) -> Option<Place> {
        let key = (context.tenant(), context.actor().label());
        let mut open = self.open.lock();
        let own = open.entry(key.clone()).or_default();
        if *own >= self.most {
            return None;
        }
        *own += 1;
        Some(Place {
            sockets: Arc::clone(self),
            key,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sockets.open.lock();
        if let Some(own) = open.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.key);
            }
        }
    }
}

//! What is not worth a write each time: denials that repeat, and when a token was last used.
//!
//! Both are kept in memory and written by the hub's housekeeping. A denial's first time is written at once, by its use
//! case; the same one again within a minute is counted, and the count is written afterwards. So somebody who knocks
//! all day costs a record a minute, and not a write each time (S39). A hub that is killed loses the counts of its last
//! minute, never a first time.

use parking_lot::Mutex;
use roadstead_authz::TenantContext;
use roadstead_domain::{TenantId, TokenId};
use std::collections::HashMap;

/// How long the same denial is counted before it is a first time again.
const WINDOW_MS: i64 = 60_000;
/// Denials that are remembered at once; beyond that each one is written.
const CAPACITY: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantId,
    actor: String,
    action: String,
    object: String,
}

#[derive(Debug)]
struct Seen {
    since_ms: i64,
    again: u64,
    ctx: TenantContext,
}

/// Denials that were counted and not written.
#[derive(Debug)]
pub struct Repeated {
    /// Of the last of them.
    pub ctx: TenantContext,
    pub action: String,
    pub object: String,
    pub times: u64,
}

/// A token's last use that is not yet written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub token: TokenId,
    pub at_ms: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Repeats {
    denials: Mutex<HashMap<Key, Seen>>,
    uses: Mutex<HashMap<(TenantId, TokenId), i64>>,
}

impl Repeats {
    /// `true` when the same was denied within the last minute: it is counted and needs no record of its own.
    pub(crate) fn again(&self, ctx: &TenantContext, action: &str, object: &str, now_ms: i64) -> bool {
        let key = Key {
            tenant: ctx.tenant(),
            actor: ctx.actor().label(),
            action: action.to_owned(),
            object: object.to_owned(),
        };
        let mut denials = self.denials.lock();
        if let Some(seen) = denials.get_mut(&key)
            && now_ms - seen.since_ms < WINDOW_MS
        {
            seen.again += 1;
            seen.ctx = ctx.clone();
            return true;
        }
        if denials.len() < CAPACITY || denials.contains_key(&key) {
            let again = denials.get(&key).map_or(0, |seen| seen.again);
            let seen = Seen {
                since_ms: now_ms,
                again,
                ctx: ctx.clone(),
            };
            denials.insert(key, seen);
        }
        false
    }

    /// Takes the counts out; what is older than the window is forgotten.
    pub(crate) fn take(&self, now_ms: i64) -> Vec<Repeated> {
        let mut denials = self.denials.lock();
        let mut taken = Vec::new();
        for (key, seen) in denials.iter_mut() {
            let times = std::mem::take(&mut seen.again);
            if times > 0 {
                taken.push(Repeated {
                    ctx: seen.ctx.clone(),
                    action: key.action.clone(),
                    object: key.object.clone(),
                    times,
                });
            }
        }
        denials.retain(|_, seen| now_ms - seen.since_ms < WINDOW_MS);
        taken
    }

    pub(crate) fn used(&self, tenant: TenantId, token: TokenId, now_ms: i64) {
        self.uses.lock().insert((tenant, token), now_ms);
    }

    pub(crate) fn take_uses(&self) -> HashMap<TenantId, Vec<Use>> {
        let mut tenants: HashMap<TenantId, Vec<Use>> = HashMap::new();
        for ((tenant, token), at_ms) in std::mem::take(&mut *self.uses.lock()) {
            tenants.entry(tenant).or_default().push(Use { token, at_ms });
        }
        tenants
    }
}

//! Whose turn it is: how many transactions one tenant may have at once (S39).
//!
//! A transaction of a tenant takes a place here before it takes a connection. So a tenant that sends more than the
//! database can do waits for itself, and leaves connections (on SQLite: places in the one writer's queue) to the others.

use crate::open::ACQUIRE;
use parking_lot::Mutex;
use roadstead_domain::{Error, TenantId};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Transactions of one tenant at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) reading: usize,
    pub(crate) writing: usize,
}

#[derive(Clone, Debug)]
struct Tenant {
    reading: Arc<Semaphore>,
    writing: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) struct Turns {
    places: Places,
    tenants: Mutex<HashMap<TenantId, Tenant>>,
}

/// Tenants that are remembered; beyond that the idle ones are forgotten.
const REMEMBERED: usize = 4_096;

impl Turns {
    pub(crate) fn new(places: Places) -> Self {
        Self {
            places,
            tenants: Mutex::default(),
        }
    }

    fn of(&self, tenant: TenantId) -> Tenant {
        let mut tenants = self.tenants.lock();
        if tenants.len() >= REMEMBERED {
            let Places { reading, writing } = self.places;
            tenants.retain(|_, t| {
                t.reading.available_permits() < reading || t.writing.available_permits() < writing
            });
        }
        let fresh = || Tenant {
            reading: Arc::new(Semaphore::new(self.places.reading)),
            writing: Arc::new(Semaphore::new(self.places.writing)),
        };
        tenants.entry(tenant).or_insert_with(fresh).clone()
    }

    /// A place for a transaction that reads; given back when dropped.
    pub(crate) async fn read(&self, tenant: TenantId) -> Result<OwnedSemaphorePermit, Error> {
        let semaphore = self.of(tenant).reading;
        wait(semaphore, "reads").await
    }

    /// A place for a transaction that writes.
    pub(crate) async fn write(&self, tenant: TenantId) -> Result<OwnedSemaphorePermit, Error> {
        let semaphore = self.of(tenant).writing;
        wait(semaphore, "writes").await
    }
}

async fn wait(semaphore: Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Error> {
    match tokio::time::timeout(ACQUIRE, semaphore.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Error::Unavailable {
            message: format!(
                "this tenant has too many {what} at once; nothing was changed, try again in a moment"
            ),
            detail: None,
        }),
    }
}

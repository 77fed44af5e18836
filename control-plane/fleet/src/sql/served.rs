//! What sessions of a tenant read and write most often, served together: changes after a revision, and reports.

use super::{row, unanswered, wire};
use crate::{
    store::{Changes, StoreError},
    together::{Request, Serve},
};
use async_trait::async_trait;
use roadstead_authz::TenantContext;
use roadstead_contract::fleet::MAX_INLINE;
use roadstead_domain::{ClusterId, ObjectId};
use roadstead_service::{
    fleet,
    together::{self, Report, Said},
};
use roadstead_store::Store;
use std::sync::Arc;

/// Rows of all the clusters that are read together: with documents of the largest inline size 8 MiB for a moment.
const ROWS: u32 = 128;

/// A cluster asks what has changed.
#[derive(Debug)]
pub(super) struct Asks {
    pub(super) cluster: ClusterId,
    pub(super) context: Arc<TenantContext>,
    pub(super) after: u64,
    pub(super) limit: u32,
}

impl Request for Asks {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }
    fn weight(&self) -> usize {
        1
    }
}

/// Changes of clusters.
pub(super) struct Reads(pub(super) Store);

#[async_trait]
impl Serve for Reads {
    type Request = Asks;
    type Answer = Result<Changes, StoreError>;
    const MOST: usize = 64;

    async fn together(&self, requests: &[Asks]) -> Vec<Option<Self::Answer>> {
        let asked: Vec<_> = requests
            .iter()
            .map(|request| (&*request.context, request.after))
            .collect();
        let Ok(read) = together::changes(&self.0, &asked, ROWS, MAX_INLINE).await else {
            return Vec::new();
        };
        let answers = read.into_iter().zip(requests).map(|(since, request)| {
            // More than was asked for is not cut here: revisions are whole.
            let since = since.filter(|since| since.changes.len() <= request.limit as usize)?;
            Some(Ok(Changes {
                revision: since.revision,
                rows: since.changes.into_iter().map(row).collect(),
            }))
        });
        answers.collect()
    }

    async fn alone(&self, request: Asks) -> Self::Answer {
        let read = fleet::changes_since(&request.context, &self.0, request.after, request.limit).await;
        let read = read.map_err(|error| wire(&error))?;
        Ok(Changes {
            revision: read.revision,
            rows: read.changes.into_iter().map(row).collect(),
        })
    }

    fn away() -> Self::Answer {
        Err(unanswered())
    }
}

/// A cluster says how it is.
#[derive(Debug)]
pub(super) struct Says {
    pub(super) cluster: ClusterId,
    pub(super) context: Arc<TenantContext>,
    pub(super) epoch: u64,
    pub(super) report: Report,
}

impl Request for Says {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }
    fn weight(&self) -> usize {
        1 + self.report.statuses.len()
    }
}

/// Reports of clusters.
pub(super) struct Writes(pub(super) Store);

#[async_trait]
impl Serve for Writes {
    type Request = Says;
    type Answer = Result<Vec<ObjectId>, StoreError>;
    const MOST: usize = 512;

    async fn together(&self, requests: &[Says]) -> Vec<Option<Self::Answer>> {
        let said: Vec<_> = requests
            .iter()
            .map(|request| Said {
                ctx: &request.context,
                epoch: request.epoch,
                report: &request.report,
            })
            .collect();
        match together::reports(&self.0, &said).await {
            Ok(heard) => {
                let wired = heard
                    .into_iter()
                    .map(|heard| heard.map(|heard| heard.map_err(|error| wire(&error))));
                wired.collect()
            }
            // Nothing of anybody was kept: whoever it was that failed fails alone.
            Err(_) => Vec::new(),
        }
    }

    async fn alone(&self, request: Says) -> Self::Answer {
        let Says {
            context,
            epoch,
            report,
            ..
        } = request;
        let heard = together::report(&context, &self.0, epoch, &report).await;
        heard.map_err(|error| wire(&error))
    }

    fn away() -> Self::Answer {
        Err(unanswered())
    }
}

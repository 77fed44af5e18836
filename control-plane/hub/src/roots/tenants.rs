//! What is done for every tenant: several at once, and again where the database did not do it.

use futures::{StreamExt as _, stream};
use roadstead_authz::TenantRecord;
use roadstead_domain::Error;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Tenants at once; the running hubs work with the same database.
const AT_ONCE: usize = 4;
/// What has not been done for one tenant by then waits for a lock or is not answered.
const ONE: Duration = Duration::from_secs(15);
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// What came of it.
#[derive(Debug)]
pub(super) struct Each<T> {
    pub(super) done: Vec<T>,
    /// Why it was not done for all.
    pub(super) left: Option<Left>,
}

/// It was not done for these tenants. None are named where the tenants themselves cannot be listed.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) tenants: Vec<String>,
    /// The last one's.
    pub(super) why: Error,
}

/// Does it for each tenant in the list, and tries again what failed for as long as there is time.
pub(super) async fn each<T>(
    within: Duration,
    list: impl AsyncFn() -> Result<Vec<TenantRecord>, Error>,
    act: impl AsyncFn(TenantRecord) -> Result<T, Error>,
) -> Each<T> {
    let until = Instant::now() + within;
    let mut done = Vec::new();
    let mut waiting = loop {
        match limited(until, list()).await {
            Ok(tenants) => break tenants,
            Err(why) if is_over(until) => {
                let tenants = Vec::new();
                let left = Some(Left { tenants, why });
                return Each { done, left };
            }
            Err(_) => sleep(PAUSE).await,
        }
    };
    loop {
        let mut failed = None;
        let act = &act;
        let tried = std::mem::take(&mut waiting).into_iter().map(|tenant| async move {
            let acted = limited(until, act(tenant.clone())).await;
            (tenant, acted)
        });
        let mut tried = stream::iter(tried).buffer_unordered(AT_ONCE);
        while let Some((tenant, acted)) = tried.next().await {
            match acted {
                Ok(acted) => done.push(acted),
                Err(error) => {
                    waiting.push(tenant);
                    failed = Some(error);
                }
            }
        }
        drop(tried);
        let Some(why) = failed else {
            return Each { done, left: None };
        };
        if is_over(until) {
            let tenants = waiting.into_iter().map(|tenant| tenant.name).collect();
            let left = Some(Left { tenants, why });
            return Each { done, left };
        }
        sleep(PAUSE).await;
    }
}

/// Whether nothing is tried any more.
fn is_over(until: Instant) -> bool {
    Instant::now() + PAUSE >= until
}

async fn limited<T>(until: Instant, act: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let now = Instant::now();
    let late = || Error::Unavailable {
        message: "the database has not done it in time".to_owned(),
        detail: None,
    };
    if now >= until {
        return Err(late());
    }
    let limited = timeout_at(until.min(now + ONE), act).await;
    limited.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{FakeClock, SeededRandom, TenantId};
    use std::cell::Cell;

    const WITHIN: Duration = Duration::from_secs(60);

    fn tenants(number: u32) -> Vec<TenantRecord> {
        let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
        let tenant = |n| TenantRecord {
            id: TenantId::generate(&clock, &random),
            name: format!("t{n}"),
        };
        (0..number).map(tenant).collect()
    }

    fn away() -> Error {
        Error::Unavailable {
            message: "away".to_owned(),
            detail: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_moment_is_done_and_nothing_twice() {
        let (lists, tries) = (Cell::new(0), Cell::new(0));
        let list = async || {
            lists.set(lists.get() + 1);
            if lists.get() < 3 {
                Err(away())
            } else {
                Ok(tenants(10))
            }
        };
        let act = async |tenant: TenantRecord| {
            tries.set(tries.get() + 1);
            if tries.get() % 3 == 0 {
                Err(away())
            } else {
                Ok(tenant.name)
            }
        };
        let Each { mut done, left } = each(WITHIN, list, act).await;
        assert!(left.is_none());
        done.sort();
        let all: Vec<_> = tenants(10).into_iter().map(|tenant| tenant.name).collect();
        assert_eq!(done, all);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_up_no_other_and_nobody_for_ever() {
        let begun = Instant::now();
        let act = async |tenant: TenantRecord| match tenant.name.as_str() {
            "t3" => std::future::pending().await,
            _ => Ok(()),
        };
        let found = each(WITHIN, async || Ok(tenants(100)), act).await;
        assert_eq!(found.done.len(), 99);
        assert_eq!(found.left.unwrap().tenants, ["t3"]);
        assert!(begun.elapsed() <= WITHIN + PAUSE);
        let begun = Instant::now();
        let act = async |_: TenantRecord| std::future::pending::<Result<(), Error>>().await;
        let short = Duration::from_secs(5);
        let found = each(short, async || Ok(tenants(10_000)), act).await;
        assert_eq!(found.left.unwrap().tenants.len(), 10_000);
        assert!(begun.elapsed() <= short + PAUSE);
        let nobody = each(short, async || Err(away()), act).await;
        assert!(nobody.left.unwrap().tenants.is_empty());
    }
}

//! Requests of one tenant's clusters that wait at the same moment are served at the same moment: one transaction for
//! all of them instead of one for each. While one is under way the next ones gather, so an idle hub makes nobody wait.
//!
//! Requests of two tenants are never served together, nor two of one cluster, which stay in their order. What cannot be
//! served together is served alone, beside the rest: one that fails, waits for a lock or is never answered by the
//! database holds nobody up for longer than [`LONGEST`], once for those beside it and once for those that are served alone
//! with it.

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use roadstead_domain::{ClusterId, TenantId};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

/// Requests that are served together.
const MOST: usize = 128;

/// Of a batch, those that are served alone at the same moment: when a database fails everybody, it is not asked by
/// everybody at once.
const ALONE: usize = 4;

/// Longer than a database works on a statement before it gives up (30 s). One that is away without a word, by a cut
/// connection, would else keep the whole queue for as long as TCP does.
pub(crate) const LONGEST: Duration = Duration::from_secs(35);

/// A request of a cluster.
pub(crate) trait Request: Send + Sync + 'static {
    fn cluster(&self) -> ClusterId;
    /// What it adds to a transaction, of [`Serve::MOST`].
    fn weight(&self) -> usize;
}

/// Who serves them.
#[async_trait]
pub(crate) trait Serve: Send + Sync + 'static {
    type Request: Request;
    type Answer: Send + 'static;
    /// The most that is served together, by weight; a single request may have more.
    const MOST: usize;

    /// Of requests of one tenant, each of another cluster, the answers in the same order; `None` for one that is to be
    /// served alone.
    async fn together(&self, requests: &[Self::Request]) -> Vec<Option<Self::Answer>>;

    async fn alone(&self, request: Self::Request) -> Self::Answer;

    /// For a request that was not answered in time. It may have been served.
    fn away() -> Self::Answer;
}

type Waiting<S> = (<S as Serve>::Request, oneshot::Sender<<S as Serve>::Answer>);

/// The queues of every tenant. A tenant has one while it has requests.
pub(crate) struct Together<S: Serve> {
    serve: S,
    tenants: Mutex<HashMap<TenantId, VecDeque<Waiting<S>>>>,
}

impl<S: Serve> fmt::Debug for Together<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Together")
    }
}

impl<S: Serve> Together<S> {
    pub(crate) fn new(serve: S) -> Arc<Self> {
        Arc::new(Self {
            serve,
            tenants: Mutex::default(),
        })
    }

    /// The answer; `None` when serving it panicked. What is asked may be done even if nobody waits for it any more.
    pub(crate) async fn ask(self: &Arc<Self>, tenant: TenantId, request: S::Request) -> Option<S::Answer> {
        let (answer, answered) = oneshot::channel();
        let first = {
            let mut tenants = self.tenants.lock();
            let first = !tenants.contains_key(&tenant);
            tenants.entry(tenant).or_default().push_back((request, answer));
            first
        };
        if first {
            tokio::spawn(self.clone().serve(tenant));
        }
        answered.await.ok()
    }

    /// The answer of one that is not to wait for others.
    pub(crate) async fn alone(&self, request: S::Request) -> S::Answer {
        let served = timeout(LONGEST, self.serve.alone(request)).await;
        served.unwrap_or_else(|_| S::away())
    }

    async fn serve(self: Arc<Self>, tenant: TenantId) {
        let mut turn = Turn {
            together: &self,
            tenant,
        };
        while let Some(batch) = turn.next() {
            let (requests, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let served = timeout(LONGEST, self.serve.together(&requests)).await;
            let served = served.unwrap_or_default().into_iter();
            let mut served = served.chain(std::iter::repeat_with(|| None));
            let mut left = Vec::new();
            for (request, answer) in requests.into_iter().zip(answers) {
                match served.next().flatten() {
                    // Who asked may be gone.
                    Some(done) => drop(answer.send(done)),
                    None => left.push((request, answer)),
                }
            }
            if !left.is_empty() {
                tokio::spawn(self.clone().each_alone(left));
            }
        }
    }

    /// All of them within one time: the last of many waits no longer for its answer than the first.
    async fn each_alone(self: Arc<Self>, left: Vec<Waiting<S>>) {
        let together = &self;
        let until = Instant::now() + LONGEST;
        let each = |(request, answer): Waiting<S>| async move {
            // Nobody waits for it any more.
            if answer.is_closed() {
                return;
            }
            let served = match Instant::now() < until {
                true => timeout_at(until, together.serve.alone(request)).await.ok(),
                false => None,
            };
            // Who asked may be gone meanwhile.
            drop(answer.send(served.unwrap_or_else(S::away)));
        };
        stream::iter(left).for_each_concurrent(ALONE, each).await;
    }
}

/// Whoever serves a tenant's queue. One that ends by a panic leaves no queue behind that nobody serves.
struct Turn<'t, S: Serve> {
    together: &'t Together<S>,
    tenant: TenantId,
}

impl<S: Serve> Turn<'_, S> {
    /// The next ones, or the end of the queue.
    fn next(&mut self) -> Option<Vec<Waiting<S>>> {
        let mut tenants = self.together.tenants.lock();
        let queue = tenants.get_mut(&self.tenant)?;
        if queue.is_empty() {
            tenants.remove(&self.tenant);
            return None;
        }
        Some(batch::<S>(queue))
    }
}

impl<S: Serve> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.together.tenants.lock().remove(&self.tenant);
        }
    }
}

/// The first of each cluster, in their order, up to the weight that is served together.
fn batch<S: Serve>(queue: &mut VecDeque<Waiting<S>>) -> Vec<Waiting<S>> {
    let mut clusters = BTreeSet::new();
    let (mut batch, mut left, mut weight) = (Vec::new(), VecDeque::new(), 0);
    while let Some(waiting) = queue.pop_front() {
        let heavy = weight + waiting.0.weight() > S::MOST || batch.len() >= MOST;
        if heavy && !batch.is_empty() {
            left.push_back(waiting);
            break;
        }
        match clusters.insert(waiting.0.cluster()) {
            true => {
                weight += waiting.0.weight();
                batch.push(waiting);
            }
            false => left.push_back(waiting),
        }
    }
    left.append(queue);
    *queue = left;
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{FakeClock, SeededRandom};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// A cluster asks for its number.
    #[derive(Debug)]
    struct Ask(ClusterId, usize);

    impl Request for Ask {
        fn cluster(&self) -> ClusterId {
            self.0
        }
        fn weight(&self) -> usize {
            usize::from(self.1 != HANGS)
        }
    }

    /// Answers when it is allowed to: with the number, and with how many others.
    #[derive(Clone)]
    struct Answers {
        allowed: Arc<Semaphore>,
        alone: Arc<AtomicUsize>,
    }

    const ALONE: usize = 1_000;
    const PANICS: usize = 2_000;
    const HANGS: usize = 3_000;
    const AWAY: usize = 4_000;

    #[async_trait]
    impl Serve for Answers {
        type Request = Ask;
        type Answer = (usize, usize);
        const MOST: usize = 4;

        async fn together(&self, requests: &[Ask]) -> Vec<Option<(usize, usize)>> {
            self.allowed.acquire().await.unwrap().forget();
            assert!(requests.iter().all(|ask| ask.1 != PANICS), "as the test wishes");
            if requests.iter().any(|ask| ask.1 == HANGS) {
                std::future::pending::<()>().await;
            }
            let answer = |ask: &Ask| (ask.1 != ALONE).then_some((ask.1, requests.len()));
            requests.iter().map(answer).collect()
        }

        async fn alone(&self, request: Ask) -> (usize, usize) {
            self.alone.fetch_add(1, Ordering::Relaxed);
            if request.1 == HANGS {
                std::future::pending::<()>().await;
            }
            (request.1, 1)
        }

        fn away() -> (usize, usize) {
            (AWAY, 0)
        }
    }

    struct World {
        together: Arc<Together<Answers>>,
        answers: Answers,
        tenants: [TenantId; 2],
        clusters: Vec<ClusterId>,
    }

    fn world() -> World {
        let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
        let answers = Answers {
            allowed: Arc::new(Semaphore::new(0)),
            alone: Arc::default(),
        };
        World {
            together: Together::new(answers.clone()),
            answers,
            tenants: [(); 2].map(|()| TenantId::generate(&clock, &random)),
            clusters: (0..10).map(|_| ClusterId::generate(&clock, &random)).collect(),
        }
    }

    impl World {
        /// Asks, in this order, and waits for all answers.
        async fn ask(&self, asks: &[(usize, usize, usize)]) -> Vec<Option<(usize, usize)>> {
            let asks = asks.iter().map(|(tenant, cluster, number)| {
                let ask = Ask(self.clusters[*cluster], *number);
                self.together.ask(self.tenants[*tenant], ask)
            });
            futures::future::join_all(asks).await
        }

        fn allow(&self, times: usize) {
            self.answers.allowed.add_permits(times);
        }
    }

    #[tokio::test]
    async fn what_waits_is_served_together_up_to_a_weight_and_each_has_its_own_answer() {
        let world = world();
        world.allow(10);
        let asks: Vec<_> = (0..6).map(|n| (0, n, n)).collect();
        let answers = world.ask(&asks).await;
        let together = [4, 4, 4, 4, 2, 2];
        let expected: Vec<_> = together.into_iter().enumerate().map(Some).collect();
        assert_eq!(answers, expected);
        assert!(world.together.tenants.lock().is_empty(), "no queue is left");
    }

    #[tokio::test]
    async fn s37_two_tenants_are_never_served_together() {
        let world = world();
        world.allow(2);
        let answers = world.ask(&[(0, 0, 0), (1, 1, 1), (0, 2, 2), (1, 3, 3)]).await;
        assert_eq!(answers, [0, 1, 2, 3].map(|n| Some((n, 2))));
    }

    #[tokio::test]
    async fn requests_of_one_cluster_stay_in_their_order() {
        let world = world();
        world.allow(10);
        let answers = world.ask(&[(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 0, 3)]).await;
        // The first of each, then the second of the first cluster, then its third.
        let expected = [(0, 2), (1, 1), (2, 2), (3, 1)];
        assert_eq!(answers, expected.map(Some));
    }

    #[tokio::test]
    async fn one_that_cannot_be_served_together_is_served_alone_and_holds_nobody_up() {
        let world = world();
        world.allow(1);
        let answers = world.ask(&[(0, 0, 0), (0, 1, ALONE), (0, 2, 2)]).await;
        assert_eq!(answers, [Some((0, 3)), Some((ALONE, 1)), Some((2, 3))]);
        assert_eq!(world.answers.alone.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn one_tenant_that_waits_keeps_no_other_waiting() {
        let world = world();
        let (one, other) = ([(0, 0, 0)], [(1, 1, 1)]);
        let mut waits = Box::pin(world.ask(&one));
        assert!(futures::poll!(&mut waits).is_pending());
        let mut asks = Box::pin(world.ask(&other));
        assert!(futures::poll!(&mut asks).is_pending());
        assert_eq!(
            world.together.tenants.lock().len(),
            2,
            "each has a queue of its own"
        );
        world.allow(2);
        assert_eq!((waits.await.len(), asks.await.len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_never_answers_holds_a_tenant_up_for_a_time_only() {
        let world = world();
        world.allow(10);
        let answers = world.ask(&[(0, 0, 0), (0, 1, HANGS), (0, 0, 2)]).await;
        assert_eq!(answers, [Some((0, 1)), Some((AWAY, 0)), Some((2, 1))]);
        assert!(world.together.tenants.lock().is_empty(), "no queue is left");
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_are_never_answered_hold_a_tenant_up_for_no_longer_than_one() {
        let world = world();
        world.allow(10);
        let asks: Vec<_> = (0..10).map(|n| (0, n, HANGS)).collect();
        let begun = Instant::now();
        let answers = world.ask(&asks).await;
        assert_eq!(answers, vec![Some((AWAY, 0)); 10]);
        // Together, and then each alone.
        assert!(begun.elapsed() < 2 * LONGEST + Duration::from_secs(1));
        let begun = world.answers.alone.load(Ordering::Relaxed);
        assert_eq!(
            begun,
            super::ALONE,
            "what is answered so is not done later all the same"
        );
    }

    #[tokio::test]
    async fn a_panic_leaves_no_queue_that_nobody_serves() {
        let world = world();
        world.allow(10);
        assert_eq!(world.ask(&[(0, 0, 0), (0, 1, PANICS)]).await, [None, None]);
        assert_eq!(world.ask(&[(0, 0, 5)]).await, [Some((5, 1))]);
    }
}

//! What can be followed.

use crate::{
    calls,
    error::{Fault, Result},
    fleet::LogRequest,
};
use async_graphql::{Context, SimpleObject, Subscription};
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt as _, TryStreamExt as _, future::ready, stream};
use roadstead_authz::act::ReadLogs;
use roadstead_contract::documents::Kind;
use roadstead_domain::{Error, Problem};
use roadstead_service::invocable;

/// One line of an engine's log.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct LogLine {
    /// The cluster's name.
    cluster: String,
    /// Null where the cluster agent gave none.
    time: Option<DateTime<Utc>>,
    line: String,
}

/// The most lines of the past that can be asked for.
const MAX_TAIL: u32 = 10_000;

pub(crate) struct Subscription;

#[Subscription]
impl Subscription {
    /// The last `tail` lines of each engine of the agent, then (`follow`) new ones as they come; ends otherwise. An
    /// engine whose cluster is away ends the subscription with UNAVAILABLE once the others have been read.
    #[graphql(complexity = "100 + child_complexity")]
    async fn agent_logs(
        &self,
        ctx: &Context<'_>,
        project: String,
        name: String,
        #[graphql(default = 100, desc = "At most 10000.")] tail: u32,
        #[graphql(default)] follow: bool,
        #[graphql(desc = "Of those lines only what was read at this moment or later, and what has no time.")]
        since: Option<DateTime<Utc>>,
    ) -> Result<impl Stream<Item = Result<LogLine>> + use<>> {
        if tail > MAX_TAIL {
            let problem = Problem::new(
                "tail",
                format!("at most {MAX_TAIL}"),
                tail.to_string(),
                "too many lines",
            );
            return Err(Error::invalid(problem).into());
        }
        let (caller, store) = calls::both(ctx);
        let target = calls::by_name(Kind::Agent, &project, &name)?;
        let found = invocable::<ReadLogs>(caller, store, &target).await?;
        if found.placed.is_empty() {
            let message = "the agent is not placed on any cluster, so it has no log".to_owned();
            return Err(Error::Unavailable {
                message,
                detail: None,
            }
            .into());
        }
        let request = LogRequest {
            agent: found.agent,
            tail,
            follow,
        };
        let mut lines = Vec::new();
        let mut away = Vec::new();
        for placed in found.placed {
            match calls::app(ctx).fleet.logs(placed.cluster, request).await {
                Ok(read) => {
                    let cluster = placed.cluster_name;
                    let line = move |l: crate::LogLine| LogLine {
                        cluster: cluster.clone(),
                        time: l.time,
                        line: l.line,
                    };
                    let wanted =
                        move |l: &crate::LogLine| l.time.zip(since).is_none_or(|(at, since)| at >= since);
                    let read = read.try_filter(move |l| ready(wanted(l)));
                    lines.push(read.map_ok(line).map_err(Fault::from).boxed());
                }
                Err(error) => away.push(Err(Fault::from(error))),
            }
        }
        Ok(stream::select_all(lines).chain(stream::iter(away)))
    }
}

//! What a session does with the hub's commands and their results (protocol.md §3 rule 12): a command goes into the
//! inbox's journal, whose word it is whether it is to be done; results go up until the hub has them.

use super::{End, Session};
use roadstead_contract::fleet::{
    Command, CommandAck, CommandCode, CommandResult, cluster_frame::Body, command,
};
use roadstead_inbox::{Act, Taking};
use std::time::Duration;
use tokio::time::Instant;

/// Results without an acknowledgement are said again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// How far the clocks of hub and cluster may be apart (protocol.md §4), in milliseconds.
const SKEW_MS: i64 = 5 * 60 * 1000;
/// Ids that the hub gives are shorter.
const MAX_ID: usize = 64;
/// Longest detail of a result, in characters.
const DETAIL: usize = 512;

/// The hub's clock, as far as this session knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct HubClock(Option<(i64, Instant)>);

impl HubClock {
    pub(super) fn new(now_ms: i64) -> Self {
        let mut clock = Self(None);
        clock.told(now_ms);
        clock
    }

    /// The hub said its time; 0 says nothing. What took long on its way is behind what is known already.
    pub(super) fn told(&mut self, now_ms: i64) {
        if now_ms > 0 && self.0.is_none_or(|_| now_ms > self.now_ms(0)) {
            self.0 = Some((now_ms, Instant::now()));
        }
    }

    /// The time to judge an expiry by: the hub's own; without it this machine's, as far behind as the hub's may be.
    fn now_ms(self, own_ms: i64) -> i64 {
        match self.0 {
            Some((told, at)) => {
                let since = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
                told.saturating_add(since)
            }
            None => own_ms.saturating_sub(SKEW_MS),
        }
    }
}

impl Session<'_> {
    pub(super) async fn command(&mut self, command: Command) -> Result<(), End> {
        let Some(taken) = parsed(command) else {
            tracing::warn!("a command that this cluster agent does not know is left alone");
            return Ok(());
        };
        let now_ms = self.hub_clock.now_ms(self.context.clock.now_ms());
        let id = taken.id.clone();
        let taking = self.context.inbox.take_command(taken, now_ms).await;
        match taking.map_err(End::Inbox)? {
            Taking::Taken => tracing::info!(command = id, "a command of the hub"),
            Taking::NoRoom => {
                tracing::warn!(command = id, "no room for a command of the hub: it is refused");
                return self
                    .send(Body::CommandResult(CommandResult {
                        id,
                        code: CommandCode::Refused.into(),
                        detail: "the cluster agent's journal of commands is full: try again later".to_owned(),
                    }))
                    .await;
            }
            Taking::Closed => tracing::info!(
                command = id,
                "a command that comes at the end is left to the next start"
            ),
            // The journal's watch brings the result up; what is under way will have one.
            Taking::Concluded | Taking::UnderWay => {}
        }
        Ok(())
    }

    /// Says every result that the hub has not acknowledged.
    pub(super) async fn send_results(&mut self) -> Result<(), End> {
        let pending = self.context.inbox.pending_results().await.map_err(End::Inbox)?;
        self.results_again = (!pending.is_empty()).then(|| Instant::now() + AGAIN);
        for result in pending {
            let detail = result.detail.chars().take(DETAIL).collect();
            self.send(Body::CommandResult(CommandResult {
                id: result.id,
                code: result.code.into(),
                detail,
            }))
            .await?;
        }
        Ok(())
    }

    pub(super) async fn results_kept(&mut self, ack: CommandAck) -> Result<(), End> {
        for refused in &ack.refused {
            let (command, reason) = (&refused.id, &refused.reason);
            tracing::warn!(command, reason, "the hub refuses the result of a command");
        }
        let refused = ack.refused.into_iter().map(|refused| refused.id);
        let ids = ack.kept.into_iter().chain(refused).collect();
        let acknowledged = self.context.inbox.acknowledge_results(ids).await;
        acknowledged.map_err(End::Inbox)
    }
}

/// As the journal keeps it; `None` for an act that this version does not know, and for what no hub sends.
fn parsed(command: Command) -> Option<roadstead_inbox::Command> {
    let fits = |id: &str| !id.is_empty() && id.len() <= MAX_ID;
    let act = match command.act? {
        command::Act::RestartEngine(act) if fits(&act.agent_uid) => Act::RestartEngine {
            agent_uid: act.agent_uid,
        },
        command::Act::RestartEngine(_) => return None,
    };
    fits(&command.id).then_some(roadstead_inbox::Command {
        id: command.id,
        expires_ms: command.expires_at_ms,
        act,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn expiry_is_judged_by_the_hubs_clock_else_by_the_own_one_with_tolerance() {
        let mut clock = HubClock::new(0);
        assert_eq!(clock.now_ms(1_000_000), 700_000);
        clock.told(5_000);
        tokio::time::advance(Duration::from_secs(2)).await;
        clock.told(0);
        clock.told(6_500);
        assert_eq!(clock.now_ms(1_000_000), 7_000);
        clock.told(8_000);
        assert_eq!(clock.now_ms(1_000_000), 8_000);
    }
}

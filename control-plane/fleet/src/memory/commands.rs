//! Commands, as the model has them.

use super::{Cluster, Memory};
use crate::store::{CommandResult, ResultVerdict};
use roadstead_contract::fleet::{Command, CommandCode, RESTART_ENGINE, RestartEngine, command::Act};
use roadstead_domain::ClusterId;
use std::collections::BTreeMap;

/// A command of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commanded {
    pub id: String,
    pub agent_uid: String,
    pub expires_ms: i64,
    /// To the session of this epoch, whose inbox was of this incarnation.
    sent: Option<(u64, String)>,
    pub result: Option<CommandCode>,
    /// Said by the cluster, not concluded by the hub.
    pub answered: bool,
}

impl Commanded {
    pub(super) fn is_open(&self) -> bool {
        self.result.is_none()
    }

    /// It has no result, and the session of this epoch was not told.
    pub(super) fn is_untold(&self, epoch: u64) -> bool {
        let told = self.sent.as_ref().is_some_and(|(told, _)| *told == epoch);
        self.is_open() && !told
    }

    fn conclude(&mut self, code: CommandCode) {
        self.result = Some(code);
    }
}

impl Memory {
    /// Makes a command: the agent's engine is to be restarted.
    pub fn command(&self, cluster: ClusterId, id: &str, agent_uid: &str, expires_ms: i64) {
        self.with(cluster, |cluster| {
            cluster.commands.push(Commanded {
                id: id.to_owned(),
                agent_uid: agent_uid.to_owned(),
                expires_ms,
                sent: None,
                result: None,
                answered: false,
            });
        });
        if let Some(hints) = self.state.lock().hints.get(&cluster) {
            hints.send_modify(|(_, commands)| *commands += 1);
        }
    }

    /// How the commands of a cluster ended, as whoever asks now is told; `None` for one without a result.
    #[must_use]
    pub fn results(&self, cluster: ClusterId) -> BTreeMap<String, Option<CommandCode>> {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let commands = state
            .clusters
            .get(&cluster)
            .map(|cluster| cluster.commands.iter());
        let told = commands.into_iter().flatten().map(|command| {
            let over = command.sent.is_none() && command.expires_ms <= now;
            let result = command.result.or(over.then_some(CommandCode::Expired));
            (command.id.clone(), result)
        });
        told.collect()
    }
}

impl Cluster {
    /// As [`crate::FleetStore::commands`].
    pub(super) fn send_commands(&mut self, epoch: u64, now_ms: i64) -> Vec<Command> {
        let incarnation = self.incarnation.clone().unwrap_or_default();
        let able = self.capabilities.iter().any(|word| word == RESTART_ENGINE);
        for command in self
            .commands
            .iter_mut()
            .filter(|command| command.result.is_none())
        {
            match &command.sent {
                None if command.expires_ms <= now_ms => command.conclude(CommandCode::Expired),
                None if !able => command.conclude(CommandCode::Refused),
                Some((_, journal)) if *journal != incarnation => command.conclude(CommandCode::Unknown),
                _ => command.sent = Some((epoch, incarnation.clone())),
            }
        }
        let open = self
            .commands
            .iter()
            .filter(|command| able && command.result.is_none());
        let due = open.map(|command| Command {
            id: command.id.clone(),
            expires_at_ms: command.expires_ms,
            act: Some(Act::RestartEngine(RestartEngine {
                agent_uid: command.agent_uid.clone(),
            })),
        });
        due.collect()
    }

    /// As [`crate::FleetStore::record_results`], of one.
    pub(super) fn record_result(&mut self, result: &CommandResult) -> ResultVerdict {
        let Some(command) = self.commands.iter_mut().find(|command| command.id == result.id) else {
            return ResultVerdict::Foreign("there is no such command".to_owned());
        };
        match (command.result, &command.sent) {
            (Some(_), _) if command.answered => ResultVerdict::Kept,
            (Some(_), Some(_)) => {
                ResultVerdict::Late("the command was given up, and has its result".to_owned())
            }
            (_, None) => ResultVerdict::Late("the command was never sent".to_owned()),
            (None, Some(_)) => {
                (command.result, command.answered) = (Some(result.code), true);
                ResultVerdict::Kept
            }
        }
    }
}

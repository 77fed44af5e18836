//! From a plan to the steps that reach it.

use crate::{EngineUnit, Observed, Plan};

/// One step for a runtime. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a process for an agent that has none.
    Start(Box<EngineUnit>),
    /// Hand a revision, peers or callers to the running process.
    HandOver(Box<EngineUnit>),
    /// Drain the process and start another: only for what a process cannot change ([`crate::Process`]).
    Restart(Box<EngineUnit>),
    /// Drain the process and end it: the agent belongs here no more.
    Stop { uid: String },
}

impl Action {
    /// The agent that the step is about.
    #[must_use]
    pub fn uid(&self) -> &str {
        match self {
            Self::Start(unit) | Self::HandOver(unit) | Self::Restart(unit) => unit.uid(),
            Self::Stop { uid } => uid,
        }
    }
}

/// The steps from `observed` to `plan`: first what ends (it frees its agent's name), then the rest by uid.
#[must_use]
pub fn actions(plan: &Plan, observed: &Observed) -> Vec<Action> {
    let gone = observed
        .engines
        .keys()
        .filter(|uid| !plan.engines.contains_key(*uid));
    let mut steps: Vec<Action> = gone.map(|uid| Action::Stop { uid: uid.clone() }).collect();
    for (uid, wanted) in &plan.engines {
        let unit = || Box::new(wanted.clone());
        match observed.engines.get(uid) {
            None => steps.push(Action::Start(unit())),
            Some(held) if held.process != wanted.process => steps.push(Action::Restart(unit())),
            Some(held) if held != wanted => steps.push(Action::HandOver(unit())),
            Some(_) => {}
        }
    }
    steps
}

impl Observed {
    /// What a runtime holds after it took `steps`.
    pub fn take(&mut self, steps: &[Action]) {
        for step in steps {
            match step {
                Action::Start(unit) | Action::HandOver(unit) | Action::Restart(unit) => {
                    self.engines.insert(unit.uid().to_owned(), (**unit).clone());
                }
                Action::Stop { uid } => {
                    self.engines.remove(uid);
                    self.stored.remove(uid);
                }
            }
        }
    }
}

//! What the hub is told: a status for each document, a Nack for each that is not taken, and whether everything has
//! its answer. Pure: from the documents, the plan and what the runtime sees.

use roadstead_contract::fleet::{Condition, DocumentStatus, Nack, NackCode};
use roadstead_plan::{Code, EngineUnit, Item, Plan};
use roadstead_runtime::{EngineStatus, Phase};
use std::collections::BTreeMap;

/// Processes that died one after another without taking a revision, before that counts as its answer. With the
/// runtime's backoff that is about a second; the engine is tried further.
const HOPELESS: u32 = 3;
/// Longest detail of a Nack or condition, in bytes (fleet.proto).
const DETAIL: usize = 1024;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) statuses: BTreeMap<String, DocumentStatus>,
    pub(crate) nacks: BTreeMap<String, Nack>,
    /// Every document runs, has no need to, or is refused.
    pub(crate) settled: bool,
}

/// The answer of an engine to the unit that the plan wants.
enum Answer {
    None,
    Serves,
    Refused(String),
}

pub(crate) fn report(items: &[&Item], plan: &Plan, engines: &BTreeMap<String, EngineStatus>) -> Report {
    let answers: BTreeMap<&str, Answer> = plan
        .engines
        .iter()
        .map(|(uid, unit)| (uid.as_str(), answer(unit, engines.get(uid))))
        .collect();
    let mut report = Report {
        settled: !answers.values().any(|answer| matches!(answer, Answer::None)),
        ..Report::default()
    };
    for problem in &plan.problems {
        let nack = report.nacks.entry(problem.uid.clone()).or_insert_with(|| Nack {
            uid: problem.uid.clone(),
            generation: problem.generation,
            code: nack_code(problem.code).into(),
            detail: String::new(),
        });
        let separator = if nack.detail.is_empty() { "" } else { "; " };
        nack.detail = cut(&format!("{}{separator}{}", nack.detail, problem.detail));
    }
    for (uid, answer) in &answers {
        let unit = &plan.engines[*uid];
        if let Answer::Refused(reason) = answer {
            // A unit that goes on after its document was refused has that Nack already.
            report.nacks.entry((*uid).to_owned()).or_insert_with(|| Nack {
                uid: (*uid).to_owned(),
                generation: unit.bundle.generation,
                code: NackCode::NackRefused.into(),
                detail: cut(reason),
            });
        }
    }
    for item in items {
        let status = match report.nacks.get(&item.uid) {
            Some(nack) => refused(item, nack, engines.get(&item.uid)),
            None => match plan.engines.get(&item.uid) {
                Some(unit) => agent(item, unit, engines.get(&item.uid), plan.held.get(&item.uid)),
                None => used(item, plan, &answers),
            },
        };
        report.statuses.insert(item.uid.clone(), status);
    }
    report
}

fn answer(unit: &EngineUnit, status: Option<&EngineStatus>) -> Answer {
    let Some(status) = status.filter(|status| status.wanted.1 == unit.digest) else {
        return Answer::None;
    };
    if status
        .applied
        .as_ref()
        .is_some_and(|(_, digest)| *digest == unit.digest)
    {
        return Answer::Serves;
    }
    match &status.refused {
        Some(refused) if refused.digest == unit.digest => Answer::Refused(refused.reason.clone()),
        _ if status.failures >= HOPELESS => Answer::Refused(status.reason.clone()),
        _ => Answer::None,
    }
}

fn nack_code(code: Code) -> NackCode {
    match code {
        Code::Unreadable | Code::Dangling | Code::DuplicateName | Code::MalformedUid => NackCode::NackInvalid,
        Code::Unsupported | Code::Environment | Code::Program | Code::Dependency => NackCode::NackRefused,
    }
}

/// A document that is not taken. `Failed` even where an agent goes on with an earlier revision: the phase is that of
/// this generation, and what serves is in the conditions.
fn refused(item: &Item, nack: &Nack, engine: Option<&EngineStatus>) -> DocumentStatus {
    let reason = match nack.code() {
        NackCode::NackInvalid => "Invalid",
        _ => "Refused",
    };
    let mut conditions = vec![condition("Accepted", false, reason, &nack.detail)];
    let earlier = engine
        .filter(|engine| engine.ready())
        .and_then(|engine| engine.applied.as_ref());
    if let Some((generation, _)) = earlier {
        let detail = format!("generation {generation} goes on");
        conditions.push(condition("Ready", true, "ServesEarlier", &detail));
    }
    status(item, "Failed", conditions)
}

fn agent(
    item: &Item,
    unit: &EngineUnit,
    engine: Option<&EngineStatus>,
    held: Option<&String>,
) -> DocumentStatus {
    let mut conditions = Vec::new();
    if let Some(why) = held {
        conditions.push(condition("Accepted", false, "Held", why));
    }
    let wishes = engine
        .map(|engine| engine.unenforced.join(", "))
        .unwrap_or_default();
    if !wishes.is_empty() {
        let detail = format!("the local runtime does not enforce {wishes}");
        conditions.push(condition("Enforced", false, "NotSupported", &detail));
    }
    let serves = matches!(answer(unit, engine), Answer::Serves);
    let phase = match engine {
        Some(engine) if engine.ready() && serves && held.is_some() => "Degraded",
        Some(engine) if engine.ready() && serves => "Ready",
        Some(engine) if engine.ready() => "Pending",
        Some(engine) if engine.phase == Phase::Waiting => "Failed",
        Some(engine) if engine.phase == Phase::NotReady => "Degraded",
        _ => "Pending",
    };
    let ready = phase == "Ready" || phase == "Degraded" && engine.is_some_and(EngineStatus::ready);
    let (reason, detail) = match engine {
        Some(_) if ready => ("Serves", ""),
        Some(engine) => (reason(engine.phase), engine.reason.as_str()),
        None => ("Starting", ""),
    };
    conditions.push(condition("Ready", ready, reason, detail));
    status(item, phase, conditions)
}

fn reason(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting | Phase::Ready => "Starting",
        Phase::NotReady => "NotReady",
        Phase::Waiting => "Crashed",
        Phase::Draining | Phase::Ended => "Ending",
    }
}

/// A document that has no engine of its own: as far as those that use it are.
fn used(item: &Item, plan: &Plan, answers: &BTreeMap<&str, Answer>) -> DocumentStatus {
    let users = plan
        .engines
        .iter()
        .filter(|(_, unit)| unit.sources.contains_key(&item.uid));
    let waits = users
        .filter(|(uid, unit)| {
            let current = unit.sources.get(&item.uid) == Some(&item.generation);
            current && matches!(answers.get(uid.as_str()), Some(Answer::None))
        })
        .count();
    let phase = if waits == 0 { "Ready" } else { "Pending" };
    status(item, phase, Vec::new())
}

fn status(item: &Item, phase: &str, conditions: Vec<Condition>) -> DocumentStatus {
    DocumentStatus {
        uid: item.uid.clone(),
        observed_generation: item.generation,
        phase: phase.to_owned(),
        conditions,
    }
}

fn condition(kind: &str, is: bool, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: cut(message),
    }
}

fn cut(text: &str) -> String {
    if text.len() <= DETAIL {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(DETAIL - '…'.len_utf8());
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agent as spec, item, model};
    use roadstead_plan::{Abilities, Observed, desired};
    use roadstead_runtime::Refusal;
    use serde_json::json;

    struct Case {
        items: Vec<Item>,
        plan: Plan,
        engines: BTreeMap<String, EngineStatus>,
    }

    impl Case {
        fn new(items: Vec<Item>) -> Self {
            let plan = desired(&items, &Observed::default(), &Abilities::local([]));
            Self {
                items,
                plan,
                engines: BTreeMap::new(),
            }
        }

        /// An engine that was given the planned unit.
        fn engine(&mut self, uid: &str, change: impl FnOnce(&mut EngineStatus, &str)) {
            let digest = self.plan.engines[uid].digest.clone();
            let mut status = EngineStatus {
                wanted: (1, digest.clone()),
                ..EngineStatus::default()
            };
            change(&mut status, &digest);
            self.engines.insert(uid.to_owned(), status);
        }

        fn report(&self) -> Report {
            report(&self.items.iter().collect::<Vec<_>>(), &self.plan, &self.engines)
        }
    }

    fn fine() -> Case {
        Case::new(vec![
            item("m1", 1, "Model", "m", &model()),
            item("a1", 3, "Agent", "notes", &spec("")),
        ])
    }

    fn serves(status: &mut EngineStatus, digest: &str) {
        status.phase = Phase::Ready;
        status.applied = Some((3, digest.to_owned()));
    }

    #[test]
    fn nothing_is_applied_before_the_engine_has_answered() {
        let mut case = fine();
        assert!(!case.report().settled, "no engine yet");
        case.engine("a1", |_, _| {});
        let report = case.report();
        assert!(!report.settled);
        assert_eq!(report.statuses["a1"].phase, "Pending");
        assert_eq!(report.statuses["m1"].phase, "Pending");
        // Still on the revision before.
        case.engine("a1", |status, _| serves(status, "before"));
        assert!(!case.report().settled);
        assert_eq!(case.report().statuses["a1"].phase, "Pending");
        // The runtime has not been given the unit of this plan.
        case.engine("a1", |status, digest| {
            serves(status, digest);
            status.wanted.1 = "before".to_owned();
        });
        assert!(!case.report().settled);
        case.engine("a1", serves);
        let report = case.report();
        assert!(report.settled && report.nacks.is_empty());
        assert_eq!(report.statuses["a1"].phase, "Ready");
        assert_eq!(report.statuses["a1"].observed_generation, 3);
        assert_eq!(report.statuses["m1"].phase, "Ready");
    }

    #[test]
    fn a_refusal_of_the_engine_is_an_answer() {
        let mut case = fine();
        case.engine("a1", |status, digest| {
            serves(status, "before");
            status.refused = Some(Refusal {
                generation: 3,
                digest: digest.to_owned(),
                reason: "no such model".to_owned(),
            });
        });
        let report = case.report();
        assert!(report.settled);
        assert_eq!(report.nacks["a1"].code(), NackCode::NackRefused);
        assert_eq!(
            (report.nacks["a1"].generation, report.nacks["a1"].detail.as_str()),
            (3, "no such model")
        );
        let status = &report.statuses["a1"];
        assert_eq!(status.phase, "Failed", "of this generation");
        let ready = status.conditions.iter().find(|c| c.r#type == "Ready").unwrap();
        assert_eq!(ready.reason, "ServesEarlier");
    }

    #[test]
    fn an_engine_that_never_takes_it_is_an_answer_after_a_while() {
        let mut case = fine();
        let crash = |failures| {
            move |status: &mut EngineStatus, _: &str| {
                status.phase = Phase::Waiting;
                status.reason = "the engine ended with exit code 3".to_owned();
                status.failures = failures;
            }
        };
        case.engine("a1", crash(HOPELESS - 1));
        let report = case.report();
        assert!(!report.settled && report.nacks.is_empty());
        assert_eq!(report.statuses["a1"].phase, "Failed");
        case.engine("a1", crash(HOPELESS));
        let report = case.report();
        assert!(report.settled);
        assert_eq!(report.nacks["a1"].detail, "the engine ended with exit code 3");
        assert_eq!(report.statuses["a1"].phase, "Failed");
    }

    #[test]
    fn what_cannot_be_planned_holds_up_nobody() {
        let mut case = Case::new(vec![
            item("m1", 1, "Model", "m", &model()),
            item("a1", 3, "Agent", "notes", &spec("")),
            item(
                "a2",
                2,
                "Agent",
                "lost",
                &json!({"instructions": "Help.", "model": ["gone", "lost"]}),
            ),
        ]);
        case.engine("a1", serves);
        let report = case.report();
        assert!(report.settled);
        assert_eq!(report.nacks.keys().collect::<Vec<_>>(), ["a2"]);
        let nack = &report.nacks["a2"];
        assert_eq!(nack.code(), NackCode::NackInvalid);
        assert!(
            nack.detail.contains("gone") && nack.detail.contains("lost"),
            "{}",
            nack.detail
        );
        assert_eq!(report.statuses["a2"].phase, "Failed");
        assert_eq!(report.statuses["a1"].phase, "Ready");
    }

    #[test]
    fn wishes_that_are_not_enforced_are_said() {
        let mut case = fine();
        case.engine("a1", |status, digest| {
            serves(status, digest);
            status.unenforced = vec!["spec.runtime.resources.limits.cpu"];
        });
        let status = &case.report().statuses["a1"];
        assert_eq!(status.phase, "Ready");
        let condition = status.conditions.iter().find(|c| c.r#type == "Enforced").unwrap();
        assert!(condition.message.contains("limits.cpu"));
    }

    #[test]
    fn details_are_cut_to_what_a_nack_may_hold() {
        let cut = cut(&"é".repeat(2000));
        assert!(cut.len() <= DETAIL && cut.ends_with('…'), "{}", cut.len());
    }
}

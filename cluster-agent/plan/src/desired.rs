//! The join: every agent with what it refers to, or the reason why not.

use crate::{
    Code, Content, EngineUnit, Item, Observed, Plan, Problem, Process,
    check::{self, Abilities, environment},
};
use roadstead_contract::{
    bundle::{Bundle, Dangling, references},
    documents::{AgentSpec, Body, Document, Kind, Name, Quantities, Quantity, Runtime},
};
use std::collections::{BTreeMap, BTreeSet};

/// Longest uid, in bytes. A uid names a folder on disk, so its form is checked here, whatever the hub sends.
pub const MAX_UID: usize = 64;

/// What should run, given the documents of this cluster and what its runtime holds.
///
/// An agent that cannot be planned goes on with its last unit; without one it does not run. An agent with
/// `replicas: 0` does not run either, and that is no problem.
#[must_use]
pub fn desired<'a>(
    items: impl IntoIterator<Item = &'a Item>,
    observed: &Observed,
    abilities: &Abilities,
) -> Plan {
    let mut problems = BTreeSet::new();
    let set = Set::read(items, abilities, &mut problems);
    let mut plan = Plan::default();
    let mut kept = set.refused.clone();
    for entry in set.sound.values() {
        let Body::Agent(spec) = &entry.document.body else {
            continue;
        };
        match set.unit(entry, spec, observed) {
            Ok(unit) if spec.runtime.replicas > 0 => {
                plan.engines.insert(entry.uid.to_owned(), unit);
            }
            Ok(_) => {}
            Err(fault) => {
                set.blame(entry, fault, observed, &mut plan, &mut problems);
                kept.insert(entry.uid);
            }
        }
    }
    keep(&kept, observed, &mut plan.engines);
    introduce(&mut plan.engines);
    plan.problems = problems.into_iter().collect();
    plan
}

/// A document that was read and may be used.
struct Entry<'a> {
    uid: &'a str,
    generation: u64,
    project: &'a Name,
    document: &'a Document,
}

/// A document's place: what references find it by.
type Place<'a> = (Kind, &'a Name, &'a Name);

/// Everything on this cluster, by place.
#[derive(Default)]
struct Set<'a> {
    sound: BTreeMap<Place<'a>, Entry<'a>>,
    /// Places taken by documents that were refused for what they say.
    broken: BTreeMap<Place<'a>, Entry<'a>>,
    /// Uids of documents that were refused and may have an engine that goes on.
    refused: BTreeSet<&'a str>,
}

/// Why an agent cannot be joined.
enum Fault {
    Dangling(Vec<Dangling>),
    /// Something it refers to was refused: the path and the reference.
    Dependency(String),
}

impl<'a> Set<'a> {
    fn read(
        items: impl IntoIterator<Item = &'a Item>,
        abilities: &Abilities,
        problems: &mut BTreeSet<Problem>,
    ) -> Self {
        let mut places: BTreeMap<Place<'a>, Entry<'a>> = BTreeMap::new();
        let mut outlived = Vec::new();
        let mut set = Self::default();
        let mut refuse = |uid: &str, generation, code, detail| {
            problems.insert(Problem {
                uid: uid.to_owned(),
                generation,
                code,
                detail,
            });
        };
        for item in items {
            if !well_formed(&item.uid) {
                let detail = format!("expected 1 to {MAX_UID} of A-Z, a-z, 0-9, - and _ as the object's uid");
                refuse(&item.uid, item.generation, Code::MalformedUid, detail);
                continue;
            }
            let document = match &item.content {
                Content::Document(document) => document,
                Content::Unreadable(reason) => {
                    refuse(&item.uid, item.generation, Code::Unreadable, reason.clone());
                    set.refused.insert(&item.uid);
                    continue;
                }
            };
            let Some(project) = &document.metadata.project else {
                let detail = "metadata.project: expected the project's name, found nothing".to_owned();
                refuse(&item.uid, item.generation, Code::Unreadable, detail);
                set.refused.insert(&item.uid);
                continue;
            };
            let entry = Entry {
                uid: &item.uid,
                generation: item.generation,
                project,
                document,
            };
            let place = (document.kind(), project, &document.metadata.name);
            // Uids are UUIDv7: the greater one is the younger object, and the older is on its way out.
            match places.remove(&place) {
                Some(younger) if younger.uid > entry.uid => {
                    places.insert(place, younger);
                    outlived.push((place, entry));
                }
                older => {
                    places.insert(place, entry);
                    outlived.extend(older.map(|older| (place, older)));
                }
            }
        }
        for (place, older) in outlived {
            let detail = format!(
                "metadata.name: expected one {} named {}/{}, found a younger one with the uid {}",
                place.0, place.1, place.2, places[&place].uid
            );
            refuse(older.uid, older.generation, Code::DuplicateName, detail);
        }
        for (place, entry) in places {
            let faults = check::document(entry.document, abilities);
            if faults.is_empty() {
                set.sound.insert(place, entry);
                continue;
            }
            for (code, detail) in faults {
                refuse(entry.uid, entry.generation, code, detail);
            }
            set.refused.insert(entry.uid);
            set.broken.insert(place, entry);
        }
        set
    }

    /// The agent with everything it refers to.
    fn unit(&self, entry: &Entry<'a>, spec: &'a AgentSpec, observed: &Observed) -> Result<EngineUnit, Fault> {
        let found = references(spec);
        let mut sources = BTreeMap::from([(entry.uid.to_owned(), entry.generation)]);
        let mut peers = BTreeMap::new();
        for (path, kind, reference) in &found {
            let project = reference.project.as_ref().unwrap_or(entry.project);
            let place = (*kind, project, &reference.name);
            let sound = self.sound.get(&place);
            match (kind, sound.or_else(|| self.broken.get(&place))) {
                // An agent is called, not joined: whether it runs is its own affair.
                (Kind::Agent, Some(peer)) => {
                    if peer.uid != entry.uid {
                        peers.insert(reference.to_string(), peer.uid.to_owned());
                    }
                }
                (_, Some(used)) if sound.is_some() => {
                    sources.insert(used.uid.to_owned(), used.generation);
                }
                (_, Some(_)) => {
                    return Err(Fault::Dependency(format!(
                        "{path}: the {kind} {reference} was refused"
                    )));
                }
                (_, None) => {}
            }
        }
        let name = &entry.document.metadata.name;
        let bundle = Bundle::resolve(
            entry.project,
            (name, entry.uid, entry.generation, spec),
            |kind, reference| {
                let place = (kind, reference.project.as_ref()?, &reference.name);
                let entry = self.sound.get(&place).or_else(|| self.broken.get(&place))?;
                Some(entry.document)
            },
        )
        .map_err(Fault::Dangling)?;
        // Most agents are as they were, and comparing costs less than hashing.
        let same = observed
            .engines
            .get(entry.uid)
            .filter(|unit| unit.bundle == bundle);
        Ok(EngineUnit {
            digest: same.map_or_else(|| bundle.digest(), |unit| unit.digest.clone()),
            process: process(&spec.runtime),
            environment: environment(&bundle),
            callers: BTreeMap::new(),
            bundle,
            peers,
            sources,
        })
    }

    /// Says whose fault it is that an agent cannot be joined.
    fn blame(
        &self,
        entry: &Entry<'a>,
        fault: Fault,
        observed: &Observed,
        plan: &mut Plan,
        problems: &mut BTreeSet<Problem>,
    ) {
        let held = observed.last(entry.uid);
        let mut refuse = |code, detail| {
            problems.insert(Problem {
                uid: entry.uid.to_owned(),
                generation: entry.generation,
                code,
                detail,
            });
        };
        match fault {
            // What could not be read has no name, so a reference to it looks dangling.
            Fault::Dangling(list) if held.is_some_and(|unit| self.unread(unit, entry.generation)) => {
                let why = list.first().map_or_else(String::new, ToString::to_string);
                plan.held.insert(entry.uid.to_owned(), why);
            }
            Fault::Dangling(list) => {
                for dangling in list {
                    refuse(Code::Dangling, dangling.to_string());
                }
            }
            // The agent's own document is sound and already runs: the refusal belongs to the other document alone.
            Fault::Dependency(why) if held.is_some_and(|unit| unit.bundle.generation == entry.generation) => {
                plan.held.insert(entry.uid.to_owned(), why);
            }
            Fault::Dependency(why) => refuse(Code::Dependency, why),
        }
    }

    /// Whether a running unit of this generation uses a document that is there and was refused.
    fn unread(&self, unit: &EngineUnit, generation: u64) -> bool {
        let mut uses = unit.sources.keys().chain(unit.peers.values());
        unit.bundle.generation == generation && uses.any(|uid| self.refused.contains(uid.as_str()))
    }
}

/// Lets these agents go on as they were, unless another object has taken the name since.
fn keep(uids: &BTreeSet<&str>, observed: &Observed, engines: &mut BTreeMap<String, EngineUnit>) {
    let name = |unit: &EngineUnit| (unit.bundle.project.clone(), unit.bundle.name.clone());
    let mut taken: BTreeSet<_> = engines.values().map(name).collect();
    for uid in uids.iter().rev() {
        if let Some(unit) = observed.last(uid)
            && taken.insert(name(unit))
        {
            engines.insert((*uid).to_owned(), unit.clone());
        }
    }
}

fn well_formed(uid: &str) -> bool {
    (1..=MAX_UID).contains(&uid.len())
        && uid
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

/// The process settings of a checked document.
fn process(runtime: &Runtime) -> Process {
    let (requests, limits) = (&runtime.resources.requests, &runtime.resources.limits);
    let cpu = |of: &Quantities| {
        of.cpu
            .as_ref()
            .map(|cpu| u64::try_from(cpu.milli()).unwrap_or(u64::MAX))
    };
    let memory = |of: &Quantities| of.memory.as_ref().map(Quantity::units);
    Process {
        image: runtime.engine.image.clone(),
        port: runtime.engine.port,
        cpu_request: cpu(requests),
        cpu_limit: cpu(limits),
        memory_request: memory(requests),
        memory_limit: memory(limits),
    }
}

/// Tells every engine who may call it: those whose documents name it, and nobody else.
fn introduce(engines: &mut BTreeMap<String, EngineUnit>) {
    let mut callers: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for unit in engines.values() {
        let name = format!("{}/{}", unit.bundle.project, unit.bundle.name);
        for peer in unit.peers.values() {
            let of = callers.entry(peer.clone()).or_default();
            of.insert(unit.uid().to_owned(), name.clone());
        }
    }
    for (uid, unit) in engines {
        unit.callers = callers.remove(uid).unwrap_or_default();
    }
}

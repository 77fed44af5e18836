//! The plan with values.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use proptest::prelude::*;
use roadstead_contract::documents::{API_VERSION, Body, Document, Metadata};
use roadstead_plan::{Abilities, Action, Code, Content, Item, Observed, Plan, Programs, actions, desired};
use serde_json::{Value, json};

fn document(kind: &str, name: &str, spec: Value) -> Document {
    let body: Body = serde_json::from_value(json!({"kind": kind, "spec": spec})).unwrap();
    Document {
        api_version: API_VERSION,
        metadata: Metadata {
            name: name.parse().unwrap(),
            project: Some("support".parse().unwrap()),
            labels: Default::default(),
            annotations: Default::default(),
        },
        body,
    }
}

fn item(uid: &str, generation: u64, kind: &str, name: &str, spec: Value) -> Item {
    Item {
        uid: uid.to_owned(),
        generation,
        content: Content::Document(Box::new(document(kind, name, spec))),
    }
}

fn model(uid: &str, generation: u64, name: &str, key: Value) -> Item {
    let spec = json!({"provider": "openaiCompatible", "model": "m", "endpoint": "http://127.0.0.1:1/v1", "key": key});
    item(uid, generation, "Model", name, spec)
}

fn agent(uid: &str, generation: u64, name: &str, model: &str) -> Item {
    let spec = json!({"instructions": "Help.", "model": model});
    item(uid, generation, "Agent", name, spec)
}

fn local() -> Abilities {
    Abilities::local(["OPENAI_API_KEY".to_owned()])
}

fn fast() -> Item {
    model("m1", 1, "fast", json!({"env": "OPENAI_API_KEY"}))
}

fn plan(items: &[Item], observed: &Observed) -> Plan {
    desired(items, observed, &local())
}

/// What the runtime holds after the plan for `items` was carried out.
fn running(items: &[Item]) -> Observed {
    let mut observed = Observed::default();
    observed.take(&actions(&plan(items, &Observed::default()), &Observed::default()));
    observed
}

fn codes(plan: &Plan) -> Vec<(&str, Code)> {
    plan.problems.iter().map(|p| (p.uid.as_str(), p.code)).collect()
}

#[test]
fn an_agent_is_joined_with_its_model_and_the_variables_it_names() {
    let plan = plan(&[fast(), agent("a1", 3, "notes", "fast")], &Observed::default());
    let unit = &plan.engines["a1"];
    assert_eq!(plan.problems, []);
    assert_eq!(unit.environment.iter().collect::<Vec<_>>(), ["OPENAI_API_KEY"]);
    assert_eq!(unit.sources, [("a1".to_owned(), 3), ("m1".to_owned(), 1)].into());
    assert_eq!(unit.digest, unit.bundle.digest());
}

#[test]
fn a_changed_model_is_handed_over_and_changed_limits_restart() {
    let before = [fast(), agent("a1", 1, "notes", "fast")];
    let observed = running(&before);
    let mut spec =
        json!({"provider": "openaiCompatible", "model": "other", "endpoint": "http://127.0.0.1:1/v1"});
    let changed = [item("m1", 2, "Model", "fast", spec.take()), before[1].clone()];
    let steps = actions(&plan(&changed, &observed), &observed);
    assert!(
        matches!(&steps[..], [Action::HandOver(unit)] if unit.sources["m1"] == 2),
        "{steps:?}"
    );

    let spec = json!({"instructions": "Help.", "model": "fast",
        "runtime": {"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}});
    let limited = [fast(), item("a1", 2, "Agent", "notes", spec)];
    let steps = actions(&plan(&limited, &observed), &observed);
    assert!(
        matches!(&steps[..], [Action::Restart(unit)]
            if unit.process.memory_limit == Some(64 << 20) && unit.process.cpu_limit == Some(500)),
        "{steps:?}"
    );
}

#[test]
fn what_left_the_set_is_stopped() {
    let observed = running(&[fast(), agent("a1", 1, "notes", "fast")]);
    let steps = actions(&plan(&[fast()], &observed), &observed);
    assert_eq!(steps, [Action::Stop { uid: "a1".to_owned() }]);
}

#[test]
fn no_replicas_is_a_stop_without_a_problem() {
    let observed = running(&[fast(), agent("a1", 1, "notes", "fast")]);
    let spec = json!({"instructions": "Help.", "model": "fast", "runtime": {"replicas": 0}});
    let plan = plan(&[fast(), item("a1", 2, "Agent", "notes", spec)], &observed);
    assert_eq!(plan.problems, []);
    assert_eq!(actions(&plan, &observed), [Action::Stop { uid: "a1".to_owned() }]);
}

#[test]
fn a_dangling_reference_is_refused_and_the_last_good_one_kept() {
    let good = [
        fast(),
        agent("a1", 1, "notes", "fast"),
        agent("a2", 1, "other", "fast"),
    ];
    let observed = running(&good);
    let bad = [
        fast(),
        agent("a1", 2, "notes", "slow"),
        agent("a2", 2, "other", "fast"),
    ];
    let plan = plan(&bad, &observed);
    assert_eq!(codes(&plan), [("a1", Code::Dangling)]);
    assert_eq!(plan.problems[0].generation, 2);
    assert!(
        plan.problems[0].detail.contains("spec.model"),
        "{}",
        plan.problems[0].detail
    );
    assert_eq!(plan.engines["a1"], observed.engines["a1"]);
    assert_eq!(plan.engines["a2"].bundle.generation, 2, "others continue");
}

#[test]
fn the_local_runtime_refuses_what_needs_a_cluster() {
    let image = json!({"image": {"name": "registry.example.com/mcp:1@sha256:00", "port": 8080}});
    let own = json!({"instructions": "Help.", "model": "fast", "runtime": {"engine": {"image": "x"}}});
    let two = json!({"instructions": "Help.", "model": "fast", "runtime": {"replicas": 2}});
    let items = [
        fast(),
        model("m2", 1, "vaulted", json!({"secret": "openai", "key": "api_key"})),
        item("t1", 1, "ToolServer", "boxed", image),
        item("a1", 1, "Agent", "own", own),
        item("a2", 1, "Agent", "two", two),
        agent("a4", 1, "user", "vaulted"),
        agent("a5", 1, "fine", "fast"),
    ];
    let plan = plan(&items, &Observed::default());
    assert_eq!(
        codes(&plan),
        [
            ("a1", Code::Unsupported),
            ("a2", Code::Unsupported),
            ("a4", Code::Dependency),
            ("m2", Code::Unsupported),
            ("t1", Code::Unsupported),
        ]
    );
    assert_eq!(plan.engines.keys().collect::<Vec<_>>(), ["a5"]);
}

#[test]
fn only_offered_variables_can_be_named() {
    for (name, offered) in [("HOME", "OPENAI_API_KEY"), ("ROADSTEAD_STATE", "ROADSTEAD_STATE")] {
        let items = [
            model("m1", 1, "fast", json!({"env": name})),
            agent("a1", 1, "notes", "fast"),
        ];
        let plan = desired(
            &items,
            &Observed::default(),
            &Abilities::local([offered.to_owned()]),
        );
        assert_eq!(
            codes(&plan),
            [("a1", Code::Dependency), ("m1", Code::Environment)],
            "{name}"
        );
        assert!(plan.engines.is_empty());
    }
}

#[test]
fn s47_a_tool_server_runs_only_programs_that_the_cluster_allows() {
    let server = |program: &str| {
        let spec = json!({"stdio": {"command": [program, "--all"]}});
        item("t1", 1, "ToolServer", "tools", spec)
    };
    let allowed = |named: &[&str]| {
        let programs = Programs::of(named.iter().map(|name| (*name).to_owned()));
        Abilities::local([]).with_programs(programs)
    };
    for (program, named, runs) in [
        ("sh", &[][..], false),
        ("mcp-server-time", &[][..], false),
        ("mcp-server-time", &["mcp-server-time"][..], true),
        ("/tmp/mcp-server-time", &["mcp-server-time"][..], false),
        ("mcp-server-time", &["/opt/mcp-server-time"][..], false),
        ("*", &["mcp-server-time"][..], false),
        ("sh", &["*"][..], true),
    ] {
        let plan = desired(&[server(program)], &Observed::default(), &allowed(named));
        let expected: &[_] = if runs { &[] } else { &[("t1", Code::Program)] };
        assert_eq!(codes(&plan), expected, "{program} with {named:?}");
    }
}

#[test]
fn the_model_key_of_dev_can_be_offered() {
    let items = [
        model("m1", 1, "fast", json!({"env": roadstead_plan::MODEL_KEY})),
        agent("a1", 1, "notes", "fast"),
    ];
    let offered = Abilities::local([roadstead_plan::MODEL_KEY.to_owned()]);
    assert_eq!(desired(&items, &Observed::default(), &offered).problems, []);
}

#[test]
fn a_refused_model_is_not_the_fault_of_the_agent_that_already_runs() {
    let observed = running(&[fast(), agent("a1", 1, "notes", "fast")]);
    let vaulted = model("m1", 2, "fast", json!({"secret": "openai", "key": "api_key"}));
    let refused = plan(&[vaulted, agent("a1", 1, "notes", "fast")], &observed);
    assert_eq!(codes(&refused), [("m1", Code::Unsupported)]);
    assert!(refused.held.contains_key("a1"));
    assert_eq!(actions(&refused, &observed), []);

    let unread = Item {
        uid: "m1".to_owned(),
        generation: 2,
        content: Content::Unreadable("spec.model: expected a text".to_owned()),
    };
    let refused = plan(&[unread, agent("a1", 1, "notes", "fast")], &observed);
    assert_eq!(codes(&refused), [("m1", Code::Unreadable)]);
    assert!(refused.held.contains_key("a1"));
    assert_eq!(actions(&refused, &observed), []);
}

#[test]
fn an_unreadable_agent_goes_on_as_it_was() {
    let observed = running(&[fast(), agent("a1", 1, "notes", "fast")]);
    let unread = Item {
        uid: "a1".to_owned(),
        generation: 2,
        content: Content::Unreadable("spec: unknown field".to_owned()),
    };
    let plan = plan(&[fast(), unread], &observed);
    assert_eq!(codes(&plan), [("a1", Code::Unreadable)]);
    assert_eq!(actions(&plan, &observed), []);
}

#[test]
fn an_agent_whose_document_turned_bad_while_nothing_ran_starts_with_what_it_had() {
    let observed = Observed {
        stored: running(&[fast(), agent("a1", 1, "notes", "fast")]).engines,
        ..Observed::default()
    };
    let plan = plan(&[fast(), agent("a1", 2, "notes", "gone")], &observed);
    assert_eq!(codes(&plan), [("a1", Code::Dangling)]);
    let steps = actions(&plan, &observed);
    assert!(
        matches!(&steps[..], [Action::Start(unit)] if unit.bundle.generation == 1),
        "{steps:?}"
    );
}

#[test]
fn s47_a_uid_that_is_no_uid_never_becomes_a_path() {
    for uid in ["", "..", "../../etc", "a/b", "a.b", "a b", &"x".repeat(65), "é"] {
        let plan = plan(&[fast(), agent(uid, 1, "notes", "fast")], &Observed::default());
        assert_eq!(codes(&plan), [(uid, Code::MalformedUid)]);
        assert!(plan.engines.is_empty());
    }
}

#[test]
fn of_two_objects_with_one_name_the_younger_runs() {
    let observed = running(&[fast(), agent("a1", 4, "notes", "fast")]);
    let both = [
        fast(),
        agent("a1", 4, "notes", "fast"),
        agent("a2", 1, "notes", "fast"),
    ];
    let plan = plan(&both, &observed);
    assert_eq!(codes(&plan), [("a1", Code::DuplicateName)]);
    let steps = actions(&plan, &observed);
    assert!(
        matches!(&steps[..], [Action::Stop { uid }, Action::Start(unit)] if uid == "a1" && unit.uid() == "a2"),
        "{steps:?}"
    );
}

#[test]
fn s88_agents_may_call_whom_their_documents_name_and_nobody_else() {
    let spec = json!({"instructions": "Help.", "model": "fast",
        "agents": [{"name": "translator"}, {"name": "notes"}]});
    let items = [
        fast(),
        item("a1", 1, "Agent", "notes", spec),
        agent("a2", 1, "translator", "fast"),
        agent("a3", 1, "other", "fast"),
    ];
    let plan = plan(&items, &Observed::default());
    assert_eq!(
        plan.engines["a1"].peers,
        [("translator".to_owned(), "a2".to_owned())].into()
    );
    assert_eq!(
        plan.engines["a2"].callers,
        [("a1".to_owned(), "support/notes".to_owned())].into()
    );
    assert!(plan.engines["a1"].callers.is_empty() && plan.engines["a3"].callers.is_empty());
}

/// Sets of documents with faults of every sort: names and uids from small ranges, so that they meet.
fn item_strategy() -> impl Strategy<Value = Item> {
    let uid = (0..12u8).prop_map(|n| format!("u{n:02}"));
    let name = prop::sample::select(vec!["one", "two", "three", "four"]);
    let kind = 0..6u8;
    (uid, 1..4u64, kind, name.clone(), name).prop_map(|(uid, generation, kind, name, refers)| match kind {
        0 => model(&uid, generation, name, json!({"env": "OPENAI_API_KEY"})),
        1 => model(&uid, generation, name, json!({"secret": "vault", "key": "k"})),
        2 => Item {
            uid,
            generation,
            content: Content::Unreadable("spec: expected an object".to_owned()),
        },
        3 => {
            let spec = json!({"instructions": "Help.", "model": refers, "agents": [{"name": refers}],
                "runtime": {"replicas": generation - 1, "resources": {"limits": {"cpu": "1"}}}});
            item(&uid, generation, "Agent", name, spec)
        }
        4 => item(&uid, generation, "Prompt", name, json!({"text": refers})),
        _ => agent(&uid, generation, name, refers),
    })
}

/// At most one item for each uid, as an inbox has it.
fn set_strategy() -> impl Strategy<Value = Vec<Item>> {
    prop::collection::vec(item_strategy(), 0..14).prop_map(|items| {
        let by_uid: std::collections::BTreeMap<_, _> =
            items.into_iter().map(|i| (i.uid.clone(), i)).collect();
        by_uid.into_values().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_are_stable_and_order_does_not_matter(
        first in set_strategy(),
        (ordered, shuffled) in set_strategy().prop_flat_map(|set| (Just(set.clone()), Just(set).prop_shuffle())),
    ) {
        let observed = running(&first);
        prop_assert_eq!(plan(&ordered, &observed), plan(&shuffled, &observed));
        prop_assert_eq!(plan(&ordered, &observed), plan(&ordered, &observed));
    }

    #[test]
    fn taking_the_steps_leaves_no_step(first in set_strategy(), second in set_strategy()) {
        let mut observed = running(&first);
        let planned = plan(&second, &observed);
        observed.take(&actions(&planned, &observed));
        let again = plan(&second, &observed);
        prop_assert_eq!(actions(&again, &observed), vec![]);
        prop_assert_eq!(&planned.engines, &observed.engines);
        let names = planned.engines.values().map(|u| (&u.bundle.project, &u.bundle.name));
        prop_assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), planned.engines.len());
    }

    #[test]
    fn every_agent_runs_is_refused_or_is_wanted_nowhere(first in set_strategy(), second in set_strategy()) {
        let observed = running(&first);
        let planned = plan(&second, &observed);
        for item in &second {
            let Content::Document(document) = &item.content else { continue };
            let Body::Agent(spec) = &document.body else { continue };
            let runs = planned.engines.get(&item.uid).is_some_and(|u| u.bundle.generation == item.generation);
            let refused = planned.problems.iter().any(|p| p.uid == item.uid && p.generation == item.generation);
            prop_assert!(runs || refused || spec.runtime.replicas == 0, "{}", item.uid);
        }
    }

    #[test]
    fn s88_callers_are_the_inverse_of_peers(items in set_strategy()) {
        let planned = plan(&items, &Observed::default());
        for (uid, unit) in &planned.engines {
            for peer in unit.peers.values() {
                if let Some(called) = planned.engines.get(peer) {
                    prop_assert!(called.callers.contains_key(uid));
                }
            }
            for caller in unit.callers.keys() {
                prop_assert!(planned.engines[caller].peers.values().any(|peer| peer == uid));
            }
        }
    }
}

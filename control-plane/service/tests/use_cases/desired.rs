//! Desired sets: by example, and on random histories against a naive model.

crate::support::on_both!(
    what_a_cluster_gets_is_its_agents_and_what_they_refer_to,
    a_delta_is_whole_revisions_in_order,
    what_leaves_is_a_tombstone_and_may_come_back,
    a_selector_places_by_labels_on_later_clusters_too,
    random_histories_agree_with_a_naive_model,
);

mod tests {
    use crate::support::{World, agent, enrolled_in, model, name, pair, set};
    use roadstead_authz::TenantContext;
    use roadstead_contract::documents::Kind;
    use roadstead_domain::{Error, ObjectId, Random as _, SeededRandom};
    use roadstead_service::{DeleteInput, Target, clusters, fleet};
    use roadstead_store::{Change, Store};
    use std::collections::{BTreeMap, BTreeSet};

    type Held = BTreeMap<ObjectId, (u64, String)>;

    /// A cluster agent that follows the deltas, as the inbox does.
    struct Follower {
        ctx: TenantContext,
        cursor: u64,
        held: Held,
    }

    impl Follower {
        fn new(ctx: TenantContext) -> Self {
            Self {
                ctx,
                cursor: 0,
                held: Held::new(),
            }
        }

        async fn follow(&mut self, store: &Store, limit: u32) {
            loop {
                let changes = fleet::changes_since(&self.ctx, store, self.cursor, limit)
                    .await
                    .expect("answered");
                for change in &changes.changes {
                    assert!(change.revision() > self.cursor, "no revision is cut in two");
                    match change {
                        Change::Upsert {
                            uid,
                            generation,
                            name,
                            document,
                            digest,
                            ..
                        } => {
                            let bytes = roadstead_contract::fleet::document_digest(document.as_bytes());
                            assert_eq!(bytes, *digest);
                            self.held.insert(*uid, (*generation, name.clone()));
                        }
                        Change::Tombstone { uid, generation, .. } => {
                            let before = self.held.remove(uid);
                            assert!(before.is_none_or(|(held, _)| *generation >= held));
                        }
                    }
                }
                let Some(last) = changes.changes.last() else {
                    assert_eq!(changes.revision, self.cursor, "nothing more to come");
                    break;
                };
                self.cursor = last.revision();
            }
        }

        async fn desired(&self, store: &Store) -> BTreeMap<ObjectId, u64> {
            let desired = fleet::desired_set(&self.ctx, store).await.expect("answered");
            desired
                .entries
                .into_iter()
                .map(|e| (e.uid, e.generation))
                .collect()
        }

        fn names(&self) -> BTreeSet<&str> {
            self.held.values().map(|(_, name)| name.as_str()).collect()
        }
    }

    pub(super) async fn what_a_cluster_gets_is_its_agents_and_what_they_refer_to(world: World) {
        let mut edge = Follower::new(world.cluster_agent().await);
        let sub = "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {name: lead}\nspec:\n  instructions: Lead.\n  model: fast\n  agents: [{name: helper}]\n  placement: {clusters: [edge]}\n";
        world
            .apply(&set(&[
                model("fast", "m"),
                model("slow", "m"),
                model("unused", "m"),
                agent("helper", "Help.", "slow", "{}"),
                sub.to_owned(),
            ]))
            .await
            .expect("applied");
        edge.follow(&world.store, 100).await;
        assert_eq!(edge.names(), BTreeSet::from(["fast", "slow", "helper", "lead"]));
        assert_eq!(edge.cursor, 1, "one set is one revision");
    }

    pub(super) async fn a_delta_is_whole_revisions_in_order(world: World) {
        let edge = world.cluster_agent().await;
        for n in 0..3 {
            let (m, a) = (format!("m{n}"), format!("a{n}"));
            world
                .apply(&set(&[
                    model(&m, "x"),
                    agent(&a, "Go.", &m, "{clusters: [edge]}"),
                ]))
                .await
                .expect("applied");
        }
        let page = fleet::changes_since(&edge, &world.store, 0, 1)
            .await
            .expect("answered");
        assert_eq!(
            (page.changes.len(), page.revision),
            (2, 3),
            "a revision of two is not cut"
        );
        let page = fleet::changes_since(&edge, &world.store, 1, 3)
            .await
            .expect("answered");
        assert_eq!(
            page.changes.iter().map(Change::revision).collect::<Vec<_>>(),
            [2, 2, 3, 3]
        );
        world.apply(&set(&[model("m0", "y")])).await.expect("applied");
        let page = fleet::changes_since(&edge, &world.store, 3, 100)
            .await
            .expect("answered");
        assert!(
            matches!(&page.changes[..], [Change::Upsert { revision: 4, generation: 2, name, .. }] if name == "m0")
        );
        let Change::Upsert {
            digest,
            document,
            uid,
            ..
        } = &page.changes[0]
        else {
            panic!("an upsert")
        };
        assert_eq!(
            fleet::blob(&edge, &world.store, *digest)
                .await
                .expect("answered")
                .as_ref(),
            Some(document)
        );
        assert_eq!(
            fleet::rows(&edge, &world.store, &[*uid]).await.expect("answered"),
            page.changes
        );
    }

    pub(super) async fn what_leaves_is_a_tombstone_and_may_come_back(world: World) {
        let mut edge = Follower::new(world.cluster_agent().await);
        world.apply(&pair()).await.expect("applied");
        edge.follow(&world.store, 10).await;
        world
            .apply(&agent("helper", "Help.", "fast", "{}"))
            .await
            .expect("applied");
        edge.follow(&world.store, 10).await;
        assert!(edge.held.is_empty(), "the agent and its model have left");
        world
            .apply(&agent("helper", "Help.", "fast", "{clusters: [edge]}"))
            .await
            .expect("applied");
        edge.follow(&world.store, 10).await;
        assert_eq!(
            edge.names(),
            BTreeSet::from(["fast", "helper"]),
            "the model returns with its old generation"
        );
    }

    pub(super) async fn a_selector_places_by_labels_on_later_clusters_too(world: World) {
        world
            .apply(&set(&[
                model("fast", "m"),
                agent(
                    "helper",
                    "Help.",
                    "fast",
                    "{selector: {matchLabels: {region: eu}}}",
                ),
            ]))
            .await
            .expect("applied");
        for (cluster, region, expected) in [("berlin", "eu", 2), ("boston", "us", 0)] {
            let input = clusters::CreateInput {
                idempotency_key: None,
                name: name(cluster),
                labels: BTreeMap::from([("region".to_owned(), region.to_owned())]),
            };
            let made = clusters::create(&world.acme.owner, &world.store, input)
                .await
                .expect("made");
            let mut agent =
                Follower::new(enrolled_in(&world.store, &world.acme.owner, made.id, cluster).await);
            agent.follow(&world.store, 10).await;
            assert_eq!(agent.held.len(), expected);
        }
    }

    /// A tenant in the simplest words: names, what they refer to, where they are placed.
    #[derive(Default)]
    struct Naive {
        /// Agent → (model, sub-agent, clusters).
        agents: BTreeMap<String, (String, Option<String>, Vec<String>)>,
        models: BTreeSet<String>,
    }

    impl Naive {
        fn of(&self, cluster: &str) -> BTreeSet<(Kind, String)> {
            let mut set = BTreeSet::new();
            let mut grown = true;
            for (name, (_, _, clusters)) in &self.agents {
                if clusters.iter().any(|c| c == cluster) {
                    set.insert((Kind::Agent, name.clone()));
                }
            }
            while grown {
                let before = set.len();
                for (kind, name) in set.clone() {
                    if kind == Kind::Agent {
                        let (model, sub, _) = &self.agents[&name];
                        set.insert((Kind::Model, model.clone()));
                        set.extend(sub.iter().map(|s| (Kind::Agent, s.clone())));
                    }
                }
                grown = set.len() > before;
            }
            set
        }
    }

    struct Dice(SeededRandom);

    impl Dice {
        fn below(&self, n: u8) -> u8 {
            let mut byte = [0];
            self.0.fill(&mut byte);
            byte[0] % n
        }
    }

    async fn step(world: &World, naive: &mut Naive, dice: &Dice) {
        let model_name = format!("m{}", dice.below(3));
        let agent_name = format!("a{}", dice.below(4));
        match dice.below(6) {
            0 | 1 => {
                world
                    .apply(&model(&model_name, &format!("v{}", dice.below(200))))
                    .await
                    .expect("applied");
                naive.models.insert(model_name);
            }
            2 | 3 => {
                let clusters: Vec<String> = ["edge", "west", "east"]
                    .iter()
                    .filter(|_| dice.below(2) == 0)
                    .map(|c| (*c).to_owned())
                    .collect();
                let others: Vec<&String> = naive.agents.keys().filter(|a| **a < agent_name).collect();
                let sub = match dice.below(3) {
                    0 => others.get(usize::from(dice.below(4))).map(|a| (*a).clone()),
                    _ => None,
                };
                let subs = sub
                    .iter()
                    .map(|s| format!("{{name: {s}}}"))
                    .collect::<Vec<_>>()
                    .join(", ");
                let text = format!(
                    "{}  agents: [{subs}]\n",
                    agent(
                        &agent_name,
                        "Go.",
                        &model_name,
                        &format!("{{clusters: [{}]}}", clusters.join(", "))
                    )
                );
                // The model comes along when it is missing.
                let documents = match naive.models.insert(model_name.clone()) {
                    true => set(&[text, model(&model_name, "new")]),
                    false => text,
                };
                world.apply(&documents).await.expect("applied");
                naive.agents.insert(agent_name, (model_name, sub, clusters));
            }
            n => {
                let (kind, gone) = if n == 4 {
                    (Kind::Agent, agent_name)
                } else {
                    (Kind::Model, model_name)
                };
                let input = DeleteInput {
                    target: Target::Name {
                        project: name("support"),
                        kind,
                        name: name(&gone),
                    },
                    expected_revision: None,
                    idempotency_key: None,
                };
                let deleted =
                    roadstead_service::delete_document(&world.acme.owner, &world.store, &input).await;
                let used = |a: &(String, Option<String>, Vec<String>)| match kind {
                    Kind::Model => a.0 == gone,
                    _ => a.1.as_ref() == Some(&gone),
                };
                let there = match kind {
                    Kind::Model => naive.models.contains(&gone),
                    _ => naive.agents.contains_key(&gone),
                };
                match deleted {
                    Ok(_) => {
                        assert!(there && !naive.agents.values().any(used));
                        naive.models.remove(&gone);
                        if kind == Kind::Agent {
                            naive.agents.remove(&gone);
                        }
                    }
                    Err(Error::NotFound { .. }) => assert!(!there),
                    Err(Error::Conflict { .. }) => assert!(naive.agents.values().any(used)),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    pub(super) async fn random_histories_agree_with_a_naive_model(world: World) {
        let mut followers = vec![("edge", Follower::new(world.cluster_agent().await))];
        for cluster in ["west", "east"] {
            let input = clusters::CreateInput {
                idempotency_key: None,
                name: name(cluster),
                labels: BTreeMap::new(),
            };
            let made = clusters::create(&world.acme.owner, &world.store, input)
                .await
                .expect("made");
            let ctx = enrolled_in(&world.store, &world.acme.owner, made.id, cluster).await;
            followers.push((cluster, Follower::new(ctx)));
        }
        let mut naive = Naive::default();
        let seed = 20_261_123;
        let dice = Dice(SeededRandom::new(seed));
        for round in 0..150 {
            step(&world, &mut naive, &dice).await;
            for (cluster, follower) in &mut followers {
                // Followers lag by different lengths, so that changes coalesce.
                if dice.below(3) == 0 {
                    follower.follow(&world.store, u32::from(dice.below(4)) + 1).await;
                    let held: BTreeSet<(Kind, String)> = follower
                        .held
                        .iter()
                        .map(|(uid, (_, name))| (uid.kind(), name.clone()))
                        .collect();
                    assert_eq!(
                        held,
                        naive.of(cluster),
                        "seed {seed}, round {round}, cluster {cluster}"
                    );
                    let generations: BTreeMap<ObjectId, u64> = follower
                        .held
                        .iter()
                        .map(|(uid, (generation, _))| (*uid, *generation))
                        .collect();
                    assert_eq!(
                        follower.desired(&world.store).await,
                        generations,
                        "seed {seed}, round {round}"
                    );
                }
            }
        }
    }
}

//! Every step of a rotation, as values.

use crate::roots::{FOREIGN, Refusal, Ring, Root};
use proptest::prelude::*;
use roadstead_domain::{ClusterId, FakeClock, SeededRandom};
use roadstead_service::roots::Holders;
use roadstead_store::{ClusterTrust, HubReplica};

fn root(n: u8) -> Root {
    Root::new(vec![n; 3])
}

fn cluster(n: u64, generation: u64, of: &Root) -> (String, ClusterTrust) {
    let trust = ClusterTrust {
        id: ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(n)),
        name: format!("c{n}"),
        generation,
        root: of.id().to_string(),
        issued_ms: 0,
        not_after_ms: 1,
    };
    ("acme".to_owned(), trust)
}

fn clusters(clusters: Vec<(String, ClusterTrust)>) -> Holders {
    Holders {
        clusters,
        replicas: Vec::new(),
    }
}

fn announced() -> Ring {
    Ring::first(root(1)).add(root(2)).unwrap().ring
}

fn switched() -> Ring {
    announced().switch(&Holders::default(), 0, 0).unwrap().ring
}

#[test]
fn a_rotation_goes_through_its_phases() {
    let ring = announced();
    assert_eq!((ring.generation, ring.signer()), (1, &root(1)));
    assert_eq!(ring.trusted(), [&root(1), &root(2)]);
    let everybody = clusters(vec![cluster(1, 1, &root(1)), cluster(2, 1, &root(1))]);
    let ring = ring.switch(&everybody, 0, 0).unwrap().ring;
    assert_eq!((ring.generation, ring.signer()), (2, &root(2)));
    assert_eq!(ring.trusted(), [&root(2), &root(1)]);
    let renewed = clusters(vec![cluster(1, 2, &root(2)), cluster(2, 1, &root(2))]);
    let ring = ring.retire(&renewed, 0, 0).unwrap().ring;
    assert_eq!((ring.generation, ring.trusted()), (3, vec![&root(2)]));
    assert_eq!(ring.retired.len(), 1);
    assert!(!ring.retired[0].compromised);
}

#[test]
fn steps_out_of_turn_are_refused() {
    let one = Ring::first(root(1));
    let none = Holders::default();
    let refused = |refusal: Refusal| matches!(refusal, Refusal::Phase { .. });
    assert!(refused(one.abort().unwrap_err()));
    assert!(refused(one.switch(&none, 0, 0).unwrap_err()));
    assert!(refused(one.retire(&none, 0, 0).unwrap_err()));
    assert!(refused(announced().add(root(3)).unwrap_err()));
    assert!(refused(announced().retire(&none, 0, 0).unwrap_err()));
    assert!(
        refused(switched().abort().unwrap_err()),
        "no way back after the switch"
    );
    assert!(refused(switched().add(root(3)).unwrap_err()));
    assert!(refused(switched().switch(&none, 0, 0).unwrap_err()));
}

#[test]
fn whoever_has_not_kept_the_bundle_is_named_and_counted() {
    let holders = clusters(vec![cluster(1, 0, &root(1)), cluster(2, 1, &root(1))]);
    let refusal = announced().switch(&holders, 0, 0).unwrap_err();
    let text = refusal.to_string();
    assert!(text.contains("1 of 2 clusters: acme/c1: "), "{text}");
    assert!(!text.contains("c2"), "{text}");
    let other = announced().switch(&holders, 0, 2).unwrap_err();
    assert!(matches!(other, Refusal::Number { expected: 2, .. }));
    let step = announced().switch(&holders, 0, 1).unwrap();
    assert_eq!(step.behind.len(), 1);
    // An allowance for what is not there (any more) is none either.
    let all = clusters(vec![cluster(2, 1, &root(1))]);
    assert!(announced().switch(&all, 0, 1).is_err());
}

#[test]
fn the_old_root_stays_while_somebody_depends_on_it() {
    let ring = switched();
    for dependent in [
        cluster(1, 2, &root(1)),
        cluster(1, 0, &root(2)),
        cluster(1, 0, &root(1)),
    ] {
        let holders = clusters(vec![dependent, cluster(2, 2, &root(2))]);
        let refused = ring.retire(&holders, 0, 0).unwrap_err();
        assert!(matches!(refused, Refusal::Clusters { .. }), "{refused:?}");
        assert_eq!(ring.retire(&holders, 0, 1).unwrap().behind.len(), 1);
    }
}

#[test]
fn a_replica_that_has_other_roots_holds_up_switch_and_retirement() {
    let replica = |ring: &Ring, generation, seen_ms| HubReplica {
        id: "r".to_owned(),
        generation,
        digest: ring.digest().to_hex(),
        seen_ms,
    };
    let with = |replica| Holders {
        clusters: Vec::new(),
        replicas: vec![replica],
    };
    let (old, new) = (Ring::first(root(1)), announced());
    assert!(new.switch(&with(replica(&new, 1, 0)), 1_000, 0).is_ok());
    assert!(matches!(
        new.switch(&with(replica(&old, 0, 0)), 1_000, 0),
        Err(Refusal::Replicas { generation: 1, .. })
    ));
    // The same generation made twice, on two folders.
    let twin = Ring::first(root(1)).add(root(3)).unwrap().ring;
    assert!(new.switch(&with(replica(&twin, 1, 0)), 1_000, 0).is_err());
    assert!(
        new.switch(&with(replica(&old, 0, 0)), 100_000, 0).is_ok(),
        "it has ended"
    );
    assert!(switched().retire(&with(replica(&new, 1, 0)), 1_000, 0).is_err());
}

#[test]
fn an_aborted_or_retired_root_never_comes_back() {
    let ring = announced().abort().unwrap().ring;
    assert_eq!((ring.generation, ring.trusted()), (2, vec![&root(1)]));
    assert!(matches!(ring.add(root(2)), Err(Refusal::Again(_))));
    assert!(matches!(ring.add(root(1)), Err(Refusal::Again(_))));
    assert!(ring.add(root(3)).is_ok());
    let ring = switched().retire(&Holders::default(), 0, 0).unwrap().ring;
    assert!(matches!(ring.add(root(1)), Err(Refusal::Again(_))));
}

#[test]
fn a_compromised_root_ends_at_once_and_says_who_is_cut_off() {
    let everybody = clusters(vec![cluster(1, 0, &root(1)), cluster(2, 0, &root(1))]);
    let one = Ring::first(root(1));
    assert!(one.replace_now(root(2), &everybody, 1).is_err());
    for accepted in [2, 3] {
        let step = one.replace_now(root(2), &everybody, accepted).unwrap();
        assert_eq!(step.ring.trusted(), [&root(2)]);
        assert!(step.ring.retired[0].compromised);
        assert_eq!(step.behind.len(), 2);
    }
    assert!(one.replace_now(root(1), &everybody, 2).is_err());
}

#[test]
fn s44_during_a_rotation_the_keys_of_both_roots_may_be_lost() {
    let mixed = clusters(vec![cluster(1, 2, &root(2)), cluster(2, 2, &root(1))]);
    for ring in [announced(), switched()] {
        assert!(
            ring.replace_now(root(9), &mixed, 1).is_err(),
            "whoever has renewed, too"
        );
        let step = ring.replace_now(root(9), &mixed, 2).unwrap();
        assert_eq!(step.ring.trusted(), [&root(9)]);
        let compromised = step.ring.retired.iter().filter(|retired| retired.compromised);
        assert_eq!(compromised.count(), 2);
        assert!(ring.replace_now(root(2), &mixed, 2).is_err());
    }
}

#[test]
fn where_the_old_key_alone_is_lost_the_newer_root_may_stay() {
    let kept = clusters(vec![cluster(1, 1, &root(1))]);
    let step = announced().keep_new_now(&kept, 1).unwrap();
    assert_eq!(step.ring.trusted(), [&root(2)]);
    let mixed = clusters(vec![cluster(1, 2, &root(2)), cluster(2, 2, &root(1))]);
    let step = switched().keep_new_now(&mixed, 1).unwrap();
    assert_eq!(step.ring.trusted(), [&root(2)]);
    assert!(step.ring.retired[0].compromised);
    assert_eq!(step.behind, ["acme/c2: has not renewed its certificate"]);
    assert!(Ring::first(root(1)).keep_new_now(&kept, 1).is_err());
}

#[test]
fn s50_a_cluster_that_keeps_a_bundle_of_somebody_else_is_behind() {
    let misled = clusters(vec![cluster(1, FOREIGN, &root(2))]);
    let said = "acme/c1: keeps a bundle that this hub never made: must join anew";
    assert_eq!(announced().without_bundle(&misled), [said]);
    assert!(announced().switch(&misled, 0, 0).is_err());
    assert_eq!(switched().dependent(&misled), [said]);
    assert!(switched().retire(&misled, 0, 0).is_err());
}

#[test]
fn the_ring_at_rest_reads_as_it_was_written() {
    for ring in [Ring::first(root(1)), announced(), switched()] {
        let text = serde_json::to_string(&ring).unwrap();
        assert_eq!(serde_json::from_str::<Ring>(&text).unwrap(), ring);
    }
    assert!(serde_json::from_str::<Ring>("{\"generation\":1,\"phase\":{\"one\":{\"root\":\"0\"}}}").is_err());
}

proptest! {
    /// Whatever an operator tries, in whatever order: generations only grow, a step that is not forced leaves everybody
    /// with a way to the hub, and a root that has gone stays away.
    #[test]
    fn nobody_is_locked_out_unless_a_person_says_so(acts in prop::collection::vec((0_u8..4, 0_usize..3), 1..24)) {
        // Two clusters that follow whenever they can: after each step one of them, by chance, takes the bundle and renews.
        let mut ring = Ring::first(root(1));
        let mut holders = clusters(vec![cluster(0, 0, &root(1)), cluster(1, 0, &root(1))]);
        let mut fresh = 1;
        for (act, follows) in acts {
            let step = match act {
                0 => { fresh += 1; ring.add(root(fresh)) }
                1 => ring.abort(),
                2 => ring.switch(&holders, 0, 0),
                _ => ring.retire(&holders, 0, 0),
            };
            if let Ok(step) = step {
                prop_assert!(step.behind.is_empty());
                prop_assert_eq!(step.ring.generation, ring.generation + 1);
                for retired in &step.ring.retired {
                    prop_assert!(!step.ring.trusts(&retired.root.id()));
                }
                // Everybody's certificate is of a root that is trusted, and everybody trusts a root of the hub's chain.
                for (_, cluster) in &holders.clusters {
                    let roots = step.ring.trusted();
                    let own = roots.iter().any(|root| root.id().as_str() == cluster.root);
                    prop_assert!(own, "{:?} {:?}", cluster, step.ring);
                }
                ring = step.ring;
            }
            if let Some((_, cluster)) = holders.clusters.get_mut(follows) {
                cluster.generation = ring.generation;
                cluster.root = ring.signer().id().to_string();
            }
        }
    }
}

//! Looks at live clusters.

use super::*;
use crate::{keystore::Folder, memory::Memory, registry::Seat};
use roadstead_domain::{FakeClock, SeededRandom};

#[test]
fn s49_live_clusters_are_looked_up_by_tenant_in_pages_and_none_is_left_out() {
    let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
    let tenants = [(); 3].map(|()| TenantId::generate(&clock, &random));
    let peers: Vec<_> = (0..1_500)
        .map(|n| PeerIdentity {
            tenant: tenants[if n % 15 == 0 { 1 + n % 2 } else { 0 }],
            cluster: ClusterId::generate(&clock, &random),
            serial: format!("{n}"),
        })
        .collect();
    let pages = pages(peers.clone());
    let mut counts: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
    for page in &pages {
        assert!(page.iter().all(|peer| peer.tenant == page[0].tenant));
        counts.entry(page[0].tenant).or_default().push(page.len());
    }
    assert_eq!(counts[&tenants[0]], [500, 500, 400]);
    assert_eq!(
        (&counts[&tenants[1]], &counts[&tenants[2]]),
        (&vec![50], &vec![50])
    );
    let mut serials: Vec<_> = pages.iter().flatten().map(|peer| &peer.serial).collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), peers.len());
}

struct World {
    fleet: Fleet,
    memory: Memory,
    peers: [PeerIdentity; 3],
    seats: [Arc<Seat>; 3],
    _keys: tempfile::TempDir,
}

/// A replica with a session of three tenants' clusters each.
fn world() -> World {
    let (clock, random) = (Arc::new(FakeClock::at(1)), Arc::new(SeededRandom::new(1)));
    let memory = Memory::new(clock.clone());
    let keys = tempfile::tempdir().unwrap();
    let folder = Folder(keys.path().to_owned());
    let peers = [(); 3].map(|()| PeerIdentity {
        tenant: TenantId::generate(&*clock, &*random),
        cluster: ClusterId::generate(&*clock, &*random),
        serial: "01".to_owned(),
    });
    for peer in &peers {
        memory.add_cluster(peer.tenant, peer.cluster);
        memory.add_certificate(peer, i64::MAX);
    }
    let fleet = Fleet::new(Parts {
        store: Arc::new(memory.clone()),
        authority: Arc::new(Authority::open(&folder, "test", clock.clone(), random).unwrap()),
        clock,
        keys: HubKeys {
            jwks: String::new(),
            issuer: String::new(),
        },
        settings: Settings::new(Vec::new(), "1.0.0"),
    });
    let seat = |peer: &PeerIdentity| fleet.0.registry.seat(peer.clone(), 1).unwrap();
    let seats = peers.each_ref().map(seat);
    World {
        fleet,
        memory,
        peers,
        seats,
        _keys: keys,
    }
}

/// The time is simulated: it goes on when nothing else does.
#[tokio::test(start_paused = true)]
async fn s49_a_look_that_is_never_answered_hides_no_revocation() {
    let World {
        fleet,
        memory,
        peers: [hangs, other, third],
        seats: [hung, ended, stays],
        _keys,
    } = world();
    let _around = AbortOnDropHandle::new(tokio::spawn(look_around(fleet.0.clone())));
    let within = Duration::from_secs(5);
    // One of its connections is cut without a word. Others' revocations are seen all the same …
    memory.hang_looks_of(hangs.tenant, 1);
    tokio::time::sleep(LOOK + LOOK / 2).await;
    memory.revoke(other.cluster);
    timeout(within, ended.end.cancelled()).await.expect("in time");
    // … and its own too: another look begins beside the one that waits.
    memory.revoke(hangs.cluster);
    timeout(within, hung.end.cancelled()).await.expect("in time");
    fleet.0.registry.leave(&hung, 1);
    // Where the whole database is away looks do not become more and more, and it is seen when it comes back.
    memory.hang_looks_of(third.tenant, usize::MAX);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(memory.looks_that_hang() <= BESIDE, "{}", memory.looks_that_hang());
    memory.hang_looks_of(third.tenant, 0);
    memory.revoke(third.cluster);
    let back = LOOK_LIMIT + LOOK + within;
    timeout(back, stays.end.cancelled()).await.expect("seen");
}

/// The time is simulated: it goes on when nothing else does.
#[tokio::test(start_paused = true)]
async fn s51_looks_at_one_tenant_leave_places_to_the_others() {
    let World {
        fleet,
        memory,
        peers: [hangs, other, _],
        seats: [_hung, ended, _stays],
        _keys,
    } = world();
    memory.hang_looks_of(hangs.tenant, usize::MAX);
    let _many: Vec<_> = (0..2 * LOOKS)
        .map(|_| {
            let (inner, page) = (fleet.0.clone(), vec![hangs.clone()]);
            AbortOnDropHandle::new(tokio::spawn(async move { inner.look_at_page(page).await }))
        })
        .collect();
    while memory.looks_that_hang() < LOOKS_EACH {
        tokio::task::yield_now().await;
    }
    memory.revoke(other.cluster);
    let looked = timeout(LOOK_LIMIT / 2, fleet.0.look_at_page(vec![other])).await;
    looked.expect("a place for others");
    assert!(ended.end.is_cancelled());
    assert_eq!(memory.looks_that_hang(), LOOKS_EACH);
}

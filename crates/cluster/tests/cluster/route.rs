use crate::support::{replica, topology, view, with_down};
use kvorum_cluster::{Footing, Intent, Leaders, Mode, ReplicaId, Route, ShardId, View, route};
use kvorum_keyspace::Slot;
use proptest::prelude::*;

const READ: Intent = Intent::Read;
const WRITE: Intent = Intent::Write;

fn go(view: &View, me: ReplicaId, slots: &[u16], intent: Intent, readonly: bool) -> Route {
    go_on(view, me, slots, intent, if readonly { Footing::Follower } else { Footing::Any })
}

fn go_on(view: &View, me: ReplicaId, slots: &[u16], intent: Intent, footing: Footing) -> Route {
    route(view, me, slots.iter().map(|&slot| Slot::new(slot).unwrap()), intent, footing)
}

fn moved(slot: u16, port: u16) -> Route {
    Route::Moved { slot: Slot::new(slot).unwrap(), host: "127.0.0.1".to_owned(), port }
}

/// Shard 0 (slots 0-5460) is led on server 1; every other place a command can arrive at, with every intent.
#[test]
fn every_row_of_cluster_mode() {
    let known = view();
    let mut unknown = known.clone();
    unknown.leaders.depose(ShardId(0), 9);
    let leader = replica(&known, 0, 1);
    let follower = replica(&known, 0, 2);
    let stranger = replica(&known, 1, 2);
    let gone = ReplicaId(99);
    let row = |view, me, slots: &[u16]| {
        [(READ, false), (READ, true), (WRITE, false), (WRITE, true)]
            .map(|(intent, readonly)| go(view, me, slots, intent, readonly))
    };
    let all = |route: Route| [route.clone(), route.clone(), route.clone(), route];
    use Route::*;

    assert_eq!(row(&known, leader, &[5]), all(Local));
    assert_eq!(row(&known, leader, &[5, 5, 5]), all(Local));
    assert_eq!(row(&known, follower, &[5]), [moved(5, 7100), Stale, moved(5, 7100), moved(5, 7100)]);
    assert_eq!(row(&known, stranger, &[5]), all(moved(5, 7100)));
    assert_eq!(row(&known, gone, &[5]), all(moved(5, 7100)));
    assert_eq!(row(&known, leader, &[6000]), all(moved(6000, 7201)), "shard 1 is led on server 2");
    for me in [leader, follower, stranger, gone] {
        assert_eq!(row(&known, me, &[5, 6]), all(CrossSlot), "of one shard or not, slots do not mix");
        assert_eq!(row(&known, me, &[5, 5, 6000]), all(CrossSlot));
    }

    assert_eq!(row(&unknown, leader, &[5]), [Hold, Stale, Hold, Hold], "deposed: it is a follower now");
    assert_eq!(row(&unknown, follower, &[5]), [Hold, Stale, Hold, Hold]);
    assert_eq!(row(&unknown, stranger, &[5]), all(Hold));
    assert_eq!(row(&unknown, leader, &[5, 6]), all(CrossSlot));

    assert_eq!(row(&known, leader, &[]), all(Local));
    assert_eq!(row(&known, follower, &[]), [Stale, Stale, ReadOnly, ReadOnly]);
    assert_eq!(row(&unknown, follower, &[]), [Stale, Stale, Hold, Hold]);
    assert_eq!(row(&unknown, gone, &[]), [Stale, Stale, Hold, Hold]);
}

#[test]
fn slots_without_a_shard_are_not_served() {
    let mut layout = view().topology.layout().clone();
    layout.shards.remove(1);
    let view = View {
        topology: std::sync::Arc::new(layout.try_into().unwrap()),
        leaders: view().leaders,
        silent: Default::default(),
    };
    let me = replica(&view, 0, 1);
    assert_eq!(go(&view, me, &[6000], READ, false), Route::NotServed);
    assert_eq!(
        go(&view, me, &[6000, 5], READ, false),
        Route::NotServed,
        "the first key is looked at first, as in Redis"
    );
    assert_eq!(go(&view, me, &[5, 6000], READ, false), Route::CrossSlot);
    assert_eq!(go(&view, me, &[5], READ, false), Route::Local);
    assert_eq!(go(&view, me, &[16383], WRITE, false), moved(16383, 7302));
}

#[test]
fn every_row_of_standalone_mode() {
    let topology = topology(3, 1, Mode::Standalone);
    let mut view = View { topology, leaders: Leaders::default(), silent: Default::default() };
    let (one, two) = (replica(&view, 0, 1), replica(&view, 0, 2));
    for slots in [&[][..], &[5], &[5, 16000]] {
        assert_eq!(go(&view, one, slots, WRITE, false), Route::Hold);
        assert_eq!(go(&view, one, slots, READ, false), Route::Stale);
        for intent in [READ, WRITE] {
            assert_eq!(go_on(&view, one, slots, intent, Footing::Leader), Route::Hold);
        }
    }
    view.leaders.announce(ShardId(0), 1, one);
    for slots in [&[][..], &[5], &[5, 16000]] {
        for readonly in [false, true] {
            assert_eq!(go(&view, one, slots, WRITE, readonly), Route::Local);
            assert_eq!(go(&view, one, slots, READ, readonly), Route::Local);
            assert_eq!(go(&view, two, slots, WRITE, readonly), Route::ReadOnly);
            assert_eq!(go(&view, two, slots, READ, readonly), Route::Stale);
        }
        for intent in [READ, WRITE] {
            assert_eq!(go_on(&view, one, slots, intent, Footing::Leader), Route::Local);
            assert_eq!(go_on(&view, two, slots, intent, Footing::Leader), Route::Forward);
        }
    }
}

/// Clients of a cluster are redirected wherever they are connected.
#[test]
fn what_a_replica_was_does_not_matter_in_a_cluster() {
    let view = view();
    for me in [replica(&view, 0, 1), replica(&view, 0, 2), replica(&view, 1, 2)] {
        for slots in [&[][..], &[5], &[6000]] {
            for intent in [READ, WRITE] {
                let route = go_on(&view, me, slots, intent, Footing::Leader);
                assert_eq!(route, go_on(&view, me, slots, intent, Footing::Any));
            }
        }
    }
}

/// A failed server may still lead: its health is for showing.
#[test]
fn health_does_not_redirect() {
    let view = with_down(&view(), &[1]);
    assert_eq!(go(&view, replica(&view, 1, 2), &[5], READ, false), moved(5, 7100));
}

proptest! {
    #[test]
    fn invariants(
        standalone: bool,
        announced in prop::collection::vec((0u16..3, 0u64..6, prop::option::of(1u64..=11)), 0..8),
        me in 1u64..=11,
        slots in prop::collection::vec(0u16..16384, 0..3),
        write: bool,
        footing in prop::sample::select(vec![Footing::Any, Footing::Follower, Footing::Leader]),
    ) {
        let topology = if standalone { topology(3, 1, Mode::Standalone) } else { topology(3, 3, Mode::Cluster) };
        let mut leaders = Leaders::default();
        for (shard, term, replica) in announced {
            match replica {
                Some(replica) => leaders.announce(ShardId(shard), term, ReplicaId(replica)),
                None => leaders.depose(ShardId(shard), term),
            };
        }
        let view = View { topology, leaders, silent: Default::default() };
        let me = ReplicaId(me);
        let intent = if write { WRITE } else { READ };
        let leads = |shard: ShardId| view.topology.shard(shard).and_then(|shard| view.leader(shard)).is_some_and(|leader| leader.id == me);
        match go_on(&view, me, &slots, intent, footing) {
            Route::Moved { slot, host, port } => {
                prop_assert!(!standalone && slots.contains(&slot.number()));
                let shard = view.topology.shard_of_slot(slot).unwrap();
                let leader = view.leader(shard).unwrap().id;
                prop_assert_ne!(leader, me, "a MOVED never points at who answers it");
                prop_assert_eq!(view.topology.address(leader), Some((host.as_str(), port)));
                prop_assert_ne!(view.topology.address(me), Some((host.as_str(), port)));
            }
            Route::CrossSlot => prop_assert!(!standalone && slots.windows(2).any(|pair| pair[0] != pair[1])),
            Route::Local => {
                let mine = view.topology.replica(me).unwrap().0;
                prop_assert!(leads(mine.id));
                prop_assert!(slots.iter().all(|&slot| mine.slots.contains(Slot::new(slot).unwrap())));
            }
            Route::Stale => {
                prop_assert!(!write);
                prop_assert!(footing == Footing::Follower || slots.is_empty() || standalone);
                prop_assert!(!standalone || footing != Footing::Leader);
            }
            Route::ReadOnly => prop_assert!(write && (standalone || slots.is_empty())),
            Route::Hold => prop_assert!(write || !slots.is_empty() || standalone && footing == Footing::Leader),
            Route::Forward => {
                prop_assert!(standalone && footing == Footing::Leader);
                prop_assert!(!leads(ShardId(0)));
            }
            Route::NotServed => prop_assert!(false, "every slot has a shard here"),
        }
    }
}

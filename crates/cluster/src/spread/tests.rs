use super::*;
use crate::{Create, Durability, MetaMachine, Mode, NewServer};
use proptest::prelude::*;

fn host(server: u64) -> String {
    format!("10.0.0.{server}")
}

fn created(servers: u64, shards: u16, replicas: u16) -> Topology {
    let servers =
        (1..=servers).map(|id| NewServer { id: ServerId(id), host: host(id), base_port: 7100, peer: None });
    let create = MetaCommand::Create(Create {
        cluster_id: "test".to_owned(),
        mode: Mode::Cluster,
        durability: Durability::QuorumFsync,
        databases: 1,
        shards,
        replicas,
        hash_seed: [7; 16],
        id_seed: 42,
        servers: servers.collect(),
    });
    let mut meta = MetaMachine::new();
    meta.apply(0, &create.encode()).unwrap();
    (*meta.topology().unwrap()).clone()
}

fn after(topology: &Topology, command: &MetaCommand) -> Topology {
    // As it is in the log.
    assert_eq!(&MetaCommand::decode(&command.encode()).unwrap(), command);
    command
        .applied_to(topology)
        .unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"))
        .unwrap_or(topology.clone())
}

fn joined(topology: &Topology, tenure: Tenure) -> Topology {
    let id = topology.last_server().0 + 1;
    let add = MetaCommand::AddServer {
        hex: format!("{id:040x}"),
        host: host(id),
        base_port: 7100,
        peer: None,
        tenure,
    };
    let topology = after(topology, &add);
    assert_eq!(after(&topology, &add), topology, "who is in already comes in once");
    after(&topology, &MetaCommand::ServerUp { server: ServerId(id), up: true })
}

fn with_tenure(topology: &Topology, server: u64, tenure: Tenure) -> Topology {
    after(topology, &MetaCommand::SetTenure { server: ServerId(server), tenure })
}

fn down(topology: &Topology, server: u64) -> Topology {
    after(topology, &MetaCommand::ServerUp { server: ServerId(server), up: false })
}

/// What happens to each shard between two steps: who comes arrives, and then who goes leaves.
fn settled(mut topology: Topology) -> Topology {
    loop {
        let next = topology.all_replicas().find_map(|(shard, replica)| match replica.stage {
            Stage::Joining | Stage::Incoming => {
                Some(MetaCommand::ReplicaJoined { shard: shard.id, replica: replica.id })
            }
            Stage::Outgoing | Stage::Founder | Stage::Member => None,
        });
        let next = next.or_else(|| {
            topology.all_replicas().find_map(|(shard, replica)| {
                (replica.stage == Stage::Outgoing)
                    .then_some(MetaCommand::ReplicaLeft { shard: shard.id, replica: replica.id })
            })
        });
        match next {
            Some(command) => topology = after(&topology, &command),
            None => return topology,
        }
    }
}

/// Takes step after step until none is due; returns the steps.
fn driven(mut topology: Topology) -> (Topology, Vec<Step>) {
    let mut steps = Vec::new();
    loop {
        let due = due(&topology, 2);
        // Each is possible, not only the first.
        for step in &due {
            after(&topology, &step.command(topology.version << 8));
        }
        let Some(&step) = due.first() else { return (topology, steps) };
        topology = settled(after(&topology, &step.command(topology.version << 8)));
        steps.push(step);
        assert!(steps.len() < 2000, "it does not end: {:?}", &steps[1990..]);
    }
}

fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
    counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
}

fn assert_balanced(topology: &Topology) {
    let replicas = Load::of(topology).0;
    assert!(spread(replicas.values().copied()) <= 1, "{replicas:?}");
    let leads = leads(topology);
    assert!(spread(leads.values().copied()) <= 1, "{leads:?}");
}

fn moves(steps: &[Step]) -> usize {
    let is_move = |step: &&Step| matches!(step, Step::Move { .. } | Step::Replace { .. } | Step::Add { .. });
    steps.iter().filter(is_move).count()
}

#[test]
fn a_fourth_server_gets_its_share_by_two_moves() {
    let (topology, steps) = driven(joined(&created(3, 3, 3), Tenure::Settling));
    assert_eq!(moves(&steps), 2, "{steps:?}");
    assert_balanced(&topology);
    assert_eq!(topology.server(ServerId(4)).unwrap().tenure, Tenure::Settled);
    assert_eq!(topology.replicas_on(ServerId(4)).count(), 2);
}

#[test]
fn nothing_moves_to_a_server_that_settled_by_itself() {
    let (topology, steps) = driven(joined(&created(3, 3, 3), Tenure::Settled));
    assert_eq!((steps, topology.replicas_on(ServerId(4)).count()), (vec![], 0));
}

#[test]
fn who_leaves_leaves_nothing_behind() {
    let four = driven(joined(&created(3, 3, 3), Tenure::Settling)).0;
    assert_eq!(cannot_leave(&four, ServerId(1), false), None);
    let (topology, steps) = driven(with_tenure(&four, 1, Tenure::Leaving));
    assert_eq!(topology.server(ServerId(1)), None);
    assert!(topology.shards.iter().all(|shard| shard.replicas.len() == 3), "{topology:?}");
    assert!(moves(&steps) <= 3);
    assert_eq!(topology.last_server(), ServerId(4));
    // Nor does its id come back when it was the highest.
    let (topology, _) = driven(with_tenure(&four, 4, Tenure::Leaving));
    assert_eq!((topology.servers.len(), topology.last_server()), (3, ServerId(4)));
    assert_eq!(joined(&topology, Tenure::Settled).last_server(), ServerId(5));
}

#[test]
fn who_has_no_other_place_stays_unless_fewer_will_do() {
    let three = created(3, 3, 3);
    assert!(cannot_leave(&three, ServerId(1), false).unwrap().contains("3 replicas of shard 0"));
    // Somebody decided all the same: then it waits.
    assert_eq!(due(&with_tenure(&three, 1, Tenure::Leaving), 2), []);
    assert_eq!(cannot_leave(&three, ServerId(1), true), None);
    let (two, _) = driven(with_tenure(&three, 1, Tenure::LeavingWithFewer));
    assert!(
        two.servers.len() == 2 && two.shards.iter().all(|shard| shard.replicas.len() == 2 && shard.changed)
    );
    let (one, _) = driven(with_tenure(&two, 2, Tenure::LeavingWithFewer));
    assert!(one.servers.len() == 1 && one.shards.iter().all(|shard| shard.replicas.len() == 1));
    assert!(cannot_leave(&one, ServerId(3), true).unwrap().contains("last server"));
}

#[test]
fn two_do_not_leave_for_one_place() {
    let four = joined(&created(3, 3, 3), Tenure::Settled);
    assert_eq!(cannot_leave(&four, ServerId(1), false), None);
    let leaving = with_tenure(&four, 1, Tenure::Leaving);
    assert!(cannot_leave(&leaving, ServerId(2), false).is_some());
    assert_eq!(cannot_leave(&leaving, ServerId(1), false), None, "asked again");
    assert!(cannot_leave(&leaving, ServerId(4), false).is_some(), "it is the place");
}

#[test]
fn who_is_away_is_made_up_for_where_there_is_room() {
    let away = |topology: &Topology| with_tenure(&down(topology, 2), 2, Tenure::Away);
    assert_eq!(due(&away(&created(3, 3, 3)), 2), [], "there is no other server");
    let four = joined(&created(3, 3, 3), Tenure::Settled);
    let (topology, steps) = driven(away(&four));
    assert_eq!((moves(&steps), steps.len()), (3, 3), "{steps:?}");
    assert_eq!(topology.replicas_on(ServerId(2)).count(), 0);
    assert!(topology.server(ServerId(2)).is_some());
    // It is back, and can be given replicas again.
    let back = after(&topology, &MetaCommand::ServerUp { server: ServerId(2), up: true });
    let (topology, _) = driven(with_tenure(&back, 2, Tenure::Settling));
    assert_balanced(&topology);
}

#[test]
fn who_is_gone_is_made_up_for_or_given_up() {
    let gone = |topology: &Topology| with_tenure(&down(topology, 2), 2, Tenure::Gone);
    assert_eq!(cannot_remove(&down(&created(3, 3, 3), 2), ServerId(2)), None);
    let (three, _) = driven(gone(&joined(&created(3, 3, 3), Tenure::Settled)));
    assert!(three.servers.len() == 3 && three.shards.iter().all(|shard| shard.replicas.len() == 3));
    let (two, _) = driven(gone(&created(3, 3, 3)));
    assert!(two.servers.len() == 2 && two.shards.iter().all(|shard| shard.replicas.len() == 2));
    assert!(cannot_remove(&down(&two, 1), ServerId(1)).unwrap().contains("no majority"));
    let both = down(&down(&created(3, 3, 3), 1), 2);
    assert!(cannot_remove(&both, ServerId(2)).unwrap().contains("no majority"));
}

#[test]
fn a_cluster_grows_from_one_server_to_three() {
    let mut topology = created(1, 3, 1);
    for _ in 0..2 {
        topology = driven(joined(&topology, Tenure::Settling)).0;
    }
    let (topology, steps) = driven(after(&topology, &MetaCommand::WantReplicas { replicas: 3 }));
    assert!(topology.shards.iter().all(|shard| shard.replicas.len() == 3), "{steps:?}");
    let (topology, _) = driven(after(&topology, &MetaCommand::WantReplicas { replicas: 1 }));
    assert!(topology.shards.iter().all(|shard| shard.replicas.len() == 1));
}

#[test]
fn a_replica_that_moves_keeps_the_place_of_the_old_one_until_it_has_arrived() {
    let topology = joined(&created(3, 1, 3), Tenure::Settled);
    let command =
        MetaCommand::MoveReplica { shard: ShardId(0), old: ReplicaId(1), server: ServerId(4), id_seed: 9 };
    let moving = after(&topology, &command);
    let stages = |topology: &Topology| {
        let replicas = topology.shards[0].replicas.iter();
        replicas.map(|replica| (replica.id.0, replica.server.0, replica.stage)).collect::<Vec<_>>()
    };
    use Stage::{Founder, Incoming, Member, Outgoing};
    assert_eq!(stages(&moving), [(4, 4, Incoming), (2, 2, Founder), (3, 3, Founder), (1, 1, Outgoing)]);
    assert_eq!(moving.shards[0].members().map(|replica| replica.id.0).collect::<Vec<_>>(), [4, 2, 3]);
    // Nothing else begins in this shard, and nothing twice.
    assert_eq!(due(&moving, 2), []);
    assert!(command.applied_to(&moving).is_err());
    assert_eq!(stages(&settled(moving)), [(4, 4, Member), (2, 2, Founder), (3, 3, Founder)]);
}

#[test]
fn replicas_on_their_way_whose_servers_are_lost_are_not_waited_for() {
    let topology = joined(&joined(&created(3, 1, 3), Tenure::Settled), Tenure::Settled);
    let command =
        MetaCommand::MoveReplica { shard: ShardId(0), old: ReplicaId(1), server: ServerId(4), id_seed: 9 };
    let moving = after(&topology, &command);
    let incoming_lost = with_tenure(&down(&moving, 4), 4, Tenure::Away);
    let replaced = Step::Replace { shard: ShardId(0), old: ReplicaId(4), server: ServerId(5) };
    assert_eq!(due(&incoming_lost, 1), [replaced]);
    let again = after(&incoming_lost, &replaced.command(1));
    assert_eq!(again.shards[0].replicas[0].stage, Stage::Incoming);
    let outgoing_lost = with_tenure(&down(&moving, 1), 1, Tenure::Gone);
    assert_eq!(due(&outgoing_lost, 1)[0], Step::Drop { shard: ShardId(0), replica: ReplicaId(1) });
    assert_eq!(driven(outgoing_lost).0.shards[0].replicas.len(), 3);
}

#[test]
fn a_shard_without_anybody_who_has_its_data_is_refused() {
    let topology = joined(&created(1, 1, 1), Tenure::Settled);
    let command =
        MetaCommand::MoveReplica { shard: ShardId(0), old: ReplicaId(1), server: ServerId(2), id_seed: 9 };
    let moving = after(&topology, &command);
    let refused = |topology: &Topology, command: MetaCommand| command.applied_to(topology).is_err();
    let (shard, replica) = (ShardId(0), ReplicaId(1));
    assert!(refused(&topology, MetaCommand::DropReplica { shard, replica }));
    assert!(refused(&topology, MetaCommand::RetireReplica { shard, replica }));
    assert!(refused(&moving, MetaCommand::DropReplica { shard, replica }));
    assert!(refused(&topology, MetaCommand::ReplicaLeft { shard, replica }));
    assert!(
        refused(&topology, MetaCommand::RemoveServer { server: ServerId(2) }),
        "it is not on its way out"
    );
    let leaving = with_tenure(&topology, 1, Tenure::Leaving);
    assert!(refused(&leaving, MetaCommand::RemoveServer { server: ServerId(1) }), "it has a replica");
}

#[test]
fn the_meta_group_has_an_odd_number_of_voters_that_stay() {
    let ids = |ids: &[u64]| ids.iter().map(|&id| ServerId(id)).collect::<BTreeSet<_>>();
    let three = created(3, 1, 3);
    assert_eq!(meta_voters(&three, &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
    let four = joined(&three, Tenure::Settled);
    assert_eq!(meta_voters(&four, &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
    let five = joined(&four, Tenure::Settled);
    assert_eq!(meta_voters(&five, &ids(&[1, 2, 3])), ids(&[1, 2, 3, 4, 5]));
    let seven = joined(&joined(&five, Tenure::Settled), Tenure::Settled);
    assert_eq!(meta_voters(&seven, &ids(&[2, 3, 5, 6, 7])), ids(&[2, 3, 5, 6, 7]));
    // One that was never heard is not waited for.
    assert_eq!(meta_voters(&down(&five, 5), &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
    // One that is down for a moment stays, one that leaves goes, one that is away goes when there is another.
    assert_eq!(meta_voters(&down(&four, 1), &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
    assert_eq!(meta_voters(&with_tenure(&four, 1, Tenure::Leaving), &ids(&[1, 2, 3])), ids(&[2, 3, 4]));
    assert_eq!(meta_voters(&with_tenure(&three, 1, Tenure::Leaving), &ids(&[1, 2, 3])), ids(&[2, 3]));
    assert_eq!(meta_voters(&with_tenure(&four, 1, Tenure::Away), &ids(&[1, 2, 3])), ids(&[2, 3, 4]));
    assert_eq!(meta_voters(&with_tenure(&three, 1, Tenure::Away), &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
    // As many as an earlier version made.
    assert_eq!(meta_voters(&created(4, 1, 3), &ids(&[1, 2, 3, 4])), ids(&[1, 2, 3]));
}

proptest! {
    /// Whatever comes, leaves and is lost, in whatever order: steps are possible, come to an end, move few replicas and leave the cluster level
    /// where that was asked for.
    #[test]
    fn invariant_the_cluster_settles(
        servers in 1u64..6,
        shards in 1u16..20,
        replicas in 1u16..4,
        events in prop::collection::vec((0u8..6, 0usize..8), 1..8),
    ) {
        let replicas = replicas.min(u16::try_from(servers).unwrap());
        let mut topology = created(servers, shards, replicas);
        for (event, which) in events {
            let ids: Vec<ServerId> = topology.servers.keys().copied().collect();
            let server = ids[which % ids.len()];
            let held = topology.replicas_on(server).count();
            let (next, steps) = match event {
                0 | 1 => {
                    let (next, steps) = driven(joined(&topology, Tenure::Settling));
                    assert_balanced(&next);
                    let all = next.all_replicas().count();
                    prop_assert!(moves(&steps) <= all, "{steps:?}");
                    (next, steps)
                }
                2 => {
                    let fewer = which % 2 == 0;
                    if cannot_leave(&topology, server, fewer).is_some() {
                        continue;
                    }
                    let tenure = if fewer { Tenure::LeavingWithFewer } else { Tenure::Leaving };
                    let (next, steps) = driven(with_tenure(&topology, server.0, tenure));
                    prop_assert!(next.server(server).is_none(), "{steps:?}");
                    prop_assert!(moves(&steps) <= held);
                    (next, steps)
                }
                3 => {
                    let fallen = down(&topology, server.0);
                    if cannot_remove(&fallen, server).is_some() || ids.len() == 1 {
                        continue;
                    }
                    let (next, steps) = driven(with_tenure(&fallen, server.0, Tenure::Gone));
                    prop_assert!(next.server(server).is_none(), "{steps:?}");
                    prop_assert!(moves(&steps) <= held);
                    (next, steps)
                }
                4 => {
                    let fallen = with_tenure(&down(&topology, server.0), server.0, Tenure::Away);
                    if cannot_remove(&fallen, server).is_some() {
                        continue;
                    }
                    let (next, steps) = driven(fallen);
                    prop_assert_eq!(moves(&steps), steps.len());
                    let back = after(&next, &MetaCommand::ServerUp { server, up: true });
                    (with_tenure(&back, server.0, Tenure::Settled), steps)
                }
                _ => {
                    let all = topology.servers.keys().fold(topology.clone(), |topology, server| {
                        with_tenure(&topology, server.0, Tenure::Settling)
                    });
                    let (next, steps) = driven(all);
                    assert_balanced(&next);
                    (next, steps)
                }
            };
            prop_assert_eq!(&due(&next, 2), &[]);
            prop_assert!(steps.len() <= 6 * (next.all_replicas().count() + usize::from(shards) + 8));
            topology = next;
        }
    }
}

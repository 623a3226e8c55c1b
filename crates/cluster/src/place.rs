//! Where the replicas of a new cluster go.

use crate::{NodeId, Replica, ReplicaId, ServerId, Shard, ShardId, SlotSet, SplitMix64, Stage};
use kvorum_keyspace::{SLOTS, Slot};
use std::{collections::BTreeMap, ops::RangeInclusive};

/// Most shards of a cluster: the ports of a server from its base on, up to its peer port.
pub const MAX_SHARDS: u16 = 98;

/// The shards of a new cluster: slots spread as `redis-cli --cluster create` does, replicas and preferred leaders
/// spread over the servers so that two servers differ by at most one of each. Replica ids and Raft groups count
/// from 1, node ids follow from `seed`.
///
/// `servers` are distinct; `shards` is 1 to [`MAX_SHARDS`]; `replicas` per shard is 1 to the number of servers.
pub fn place(servers: &[ServerId], shards: u16, replicas: u16, seed: u64) -> Vec<Shard> {
    assert!((1..=MAX_SHARDS).contains(&shards), "{shards} shards");
    assert!(
        (1..=servers.len()).contains(&usize::from(replicas)),
        "{replicas} replicas on {} servers",
        servers.len()
    );
    let mut random = SplitMix64::new(seed);
    let mut leads: BTreeMap<ServerId, usize> = BTreeMap::new();
    let mut next = 0;
    let mut replica_id = 0;
    (0..shards)
        .map(|index| {
            // Dealt like cards: each server gets its next replica only when all others have got theirs.
            let mut hosts: Vec<ServerId> =
                (0..usize::from(replicas)).map(|n| servers[(next + n) % servers.len()]).collect();
            next = (next + hosts.len()) % servers.len();
            let leader = (0..hosts.len())
                .min_by_key(|&n| leads.get(&hosts[n]).copied().unwrap_or(0))
                .expect("a shard has replicas");
            *leads.entry(hosts[leader]).or_default() += 1;
            hosts.rotate_left(leader);
            let replicas = hosts
                .into_iter()
                .map(|server| {
                    replica_id += 1;
                    Replica {
                        id: ReplicaId(replica_id),
                        server,
                        node_id: node_id(&mut random),
                        stage: Stage::Founder,
                    }
                })
                .collect();
            Shard {
                id: ShardId(index),
                group: u64::from(index) + 1,
                slots: SlotSet::from(slots_of_shard(index, shards)),
                replicas,
                changed: false,
            }
        })
        .collect()
}

/// The slots of shard `index` of `shards`, spread evenly: for three 0-5460, 5461-10922 and 10923-16383.
pub fn slots_of_shard(index: u16, shards: u16) -> RangeInclusive<Slot> {
    // The boundary before a shard is the exact fraction, rounded to the nearest slot.
    let boundary = |n: u16| {
        let (n, shards) = (u32::from(n), u32::from(shards));
        (n * u32::from(SLOTS) * 2 + shards) / (2 * shards)
    };
    let slot = |number: u32| {
        u16::try_from(number)
            .ok()
            .and_then(Slot::new)
            .expect("a boundary lies between the first and the last slot")
    };
    slot(boundary(index))..=slot(boundary(index + 1) - 1)
}

pub(crate) fn node_id(random: &mut SplitMix64) -> NodeId {
    let mut id = [0; 20];
    for part in id.chunks_mut(8) {
        part.copy_from_slice(&random.draw().to_be_bytes()[..part.len()]);
    }
    NodeId(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn servers(count: u64) -> Vec<ServerId> {
        (1..=count).map(ServerId).collect()
    }

    #[test]
    fn slots_as_redis_cli_spreads_them() {
        let shown = |shards| {
            (0..shards)
                .map(|n| SlotSet::from(slots_of_shard(n, shards)).to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(shown(1), "0-16383");
        assert_eq!(shown(3), "0-5460 5461-10922 10923-16383");
        assert_eq!(shown(5), "0-3276 3277-6553 6554-9829 9830-13106 13107-16383");
        assert_eq!(shown(6), "0-2730 2731-5460 5461-8191 8192-10922 10923-13652 13653-16383");
    }

    #[test]
    fn three_by_three_leads_once_on_each_server() {
        let shards = place(&servers(3), 3, 3, 7);
        let hosts: Vec<Vec<u64>> = shards
            .iter()
            .map(|shard| shard.replicas.iter().map(|replica| replica.server.0).collect())
            .collect();
        assert_eq!(hosts, [[1, 2, 3], [2, 3, 1], [3, 1, 2]]);
    }

    /// Every size of a cluster: nothing doubled, nothing left out, and loads within one of each other.
    #[test]
    fn invariant_spread_evenly() {
        for count in 1..=7 {
            let servers = servers(count);
            for replicas in 1..=u16::try_from(count).unwrap() {
                for shard_count in 1..=MAX_SHARDS {
                    let shards = place(&servers, shard_count, replicas, 42);
                    let mut load: BTreeMap<ServerId, (usize, usize)> =
                        servers.iter().map(|&server| (server, (0, 0))).collect();
                    let mut ids = BTreeSet::new();
                    let mut node_ids = BTreeSet::new();
                    let mut slots = 0;
                    for shard in &shards {
                        slots += shard.slots.len();
                        let distinct: BTreeSet<_> =
                            shard.replicas.iter().map(|replica| replica.server).collect();
                        assert_eq!(distinct.len(), usize::from(replicas));
                        load.get_mut(&shard.replicas[0].server).unwrap().0 += 1;
                        for replica in &shard.replicas {
                            load.get_mut(&replica.server).unwrap().1 += 1;
                            assert!(ids.insert(replica.id) && node_ids.insert(replica.node_id));
                        }
                    }
                    assert_eq!(slots, usize::from(SLOTS));
                    let spread = |of: fn(&(usize, usize)) -> usize| {
                        load.values().map(of).max().unwrap() - load.values().map(of).min().unwrap()
                    };
                    let (leads, all) = (spread(|load| load.0), spread(|load| load.1));
                    assert!(leads <= 1 && all <= 1, "{count} {replicas} {shard_count}: {load:?}");
                }
            }
        }
    }
}

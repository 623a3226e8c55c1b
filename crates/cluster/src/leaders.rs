//! Who leads each shard, as far as this server has heard.

use crate::{Replica, ReplicaId, ServerId, Shard, ShardId, Topology};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The leader of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leader {
    /// Its Raft term.
    pub term: u64,
    /// The replica that leads.
    pub replica: ReplicaId,
}

/// What announcements have told about leaders. They arrive in any order and more than once, and the result is
/// always the same: the highest term wins, and within a term the highest replica (Raft as used here lets a
/// candidate with a higher id take over within a term).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaders {
    shards: BTreeMap<ShardId, Leadership>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Leadership {
    /// Highest term heard of.
    term: u64,
    /// The newest leader heard of, of that term or an earlier one.
    last: Option<Leader>,
}

impl Leaders {
    /// Takes note that `replica` leads `shard` in `term`. Returns whether that is news.
    pub fn announce(&mut self, shard: ShardId, term: u64, replica: ReplicaId) -> bool {
        let known = self.shards.entry(shard).or_default();
        let newer = known.last.is_none_or(|last| (term, replica) > (last.term, last.replica));
        if newer {
            known.last = Some(Leader { term, replica });
            known.term = known.term.max(term);
        }
        newer
    }

    /// Takes note that `shard` has reached `term`, whose leader is not known yet. Returns whether a known leader
    /// became unknown by that.
    pub fn depose(&mut self, shard: ShardId, term: u64) -> bool {
        let had = self.leader(shard).is_some();
        let known = self.shards.entry(shard).or_default();
        known.term = known.term.max(term);
        had && self.leader(shard).is_none()
    }

    /// The leader of a shard; `None` while its newest term has no known leader.
    pub fn leader(&self, shard: ShardId) -> Option<Leader> {
        let known = self.shards.get(&shard)?;
        known.last.filter(|last| last.term == known.term)
    }

    /// The newest leader ever heard of, which may have been deposed since.
    pub fn last(&self, shard: ShardId) -> Option<Leader> {
        self.shards.get(&shard)?.last
    }

    /// The highest term heard of, 0 for none.
    pub fn term(&self, shard: ShardId) -> u64 {
        self.shards.get(&shard).map_or(0, |known| known.term)
    }
}

/// What one server knows of the cluster at one moment: enough to route and to describe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Who is in the cluster.
    pub topology: Arc<Topology>,
    /// Who leads.
    pub leaders: Leaders,
    /// The other servers that this one has not heard of lately. Each server has its own opinion of that, so nothing that has to
    /// look alike on every server is made from it.
    pub silent: BTreeSet<ServerId>,
}

impl View {
    /// The replica that leads a shard; `None` while it is unknown or no member of the shard.
    pub fn leader<'a>(&self, shard: &'a Shard) -> Option<&'a Replica> {
        member(shard, self.leaders.leader(shard.id)?)
    }

    /// The replica that leads the shard of this one; `None` also when this one is no member of any.
    pub fn leader_of(&self, replica: ReplicaId) -> Option<&Replica> {
        self.topology.replica(replica).and_then(|(shard, _)| self.leader(shard))
    }

    /// Whether this replica leads its shard.
    pub fn leads(&self, replica: ReplicaId) -> bool {
        self.leader_of(replica).is_some_and(|leader| leader.id == replica)
    }

    /// The replica that is shown to clients as the master of a shard; exactly one at any time.
    ///
    /// It is the leader; while that is unknown, the last known one (the preferred one when there was none) unless
    /// its server is down or it has only just joined; then the first replica for which neither is so.
    pub fn master<'a>(&self, shard: &'a Shard) -> &'a Replica {
        if let Some(leader) = self.leader(shard) {
            return leader;
        }
        let last = self.leaders.last(shard.id).and_then(|last| member(shard, last));
        let usual = last.unwrap_or(&shard.replicas[0]);
        let fit = |replica: &Replica| self.is_up(replica) && replica.stage.has_arrived();
        if fit(usual) {
            return usual;
        }
        shard.replicas.iter().find(|replica| fit(replica)).unwrap_or(usual)
    }

    /// A shard that is led by another replica than its preferred one, its first, although all is well in the cluster: the lowest,
    /// so that whoever asks gets the same answer. While anything is not as it should be (a server with replicas is down, a replica comes or
    /// goes, a shard has no leader) there is none: leaders stay where they are until the trouble is over.
    pub fn out_of_place(&self) -> Option<(&Shard, &Replica)> {
        let calm = self
            .topology
            .all_replicas()
            .all(|(_, replica)| self.is_up(replica) && replica.stage.is_settled());
        let leaders: Option<Vec<_>> =
            self.topology.shards.iter().map(|shard| Some((shard, self.leader(shard)?))).collect();
        let mut leaders = leaders.filter(|_| calm)?.into_iter();
        leaders
            .find(|(shard, leader)| shard.replicas[0].id != leader.id)
            .map(|(shard, _)| (shard, &shard.replicas[0]))
    }

    /// Whether so few of a shard's replicas are heard, this server's own among them, that they cannot elect a leader.
    pub fn is_cut_off_from(&self, shard: &Shard) -> bool {
        let members = shard.members().count();
        let heard = shard.members().filter(|replica| !self.silent.contains(&replica.server)).count();
        heard <= members / 2
    }

    /// Whether the meta group hears from the replica's server.
    pub fn is_up(&self, replica: &Replica) -> bool {
        self.topology.server(replica.server).is_some_and(|server| server.up)
    }
}

fn member(shard: &Shard, leader: Leader) -> Option<&Replica> {
    shard.replicas.iter().find(|replica| replica.id == leader.replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARD: ShardId = ShardId(0);

    fn leader(term: u64, replica: u64) -> Option<Leader> {
        Some(Leader { term, replica: ReplicaId(replica) })
    }

    #[test]
    fn the_highest_term_wins() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.leader(SHARD), None);
        assert!(leaders.announce(SHARD, 3, ReplicaId(1)));
        assert!(!leaders.announce(SHARD, 3, ReplicaId(1)), "a repetition is no news");
        assert!(!leaders.announce(SHARD, 2, ReplicaId(2)), "an old term is no news");
        assert_eq!(leaders.leader(SHARD), leader(3, 1));
        assert!(leaders.announce(SHARD, 4, ReplicaId(2)));
        assert_eq!(leaders.leader(SHARD), leader(4, 2));
    }

    #[test]
    fn a_newer_term_deposes_until_its_leader_is_known() {
        let mut leaders = Leaders::default();
        leaders.announce(SHARD, 3, ReplicaId(1));
        assert!(!leaders.depose(SHARD, 3), "a follower of this term that has not heard of its leader yet");
        assert!(leaders.depose(SHARD, 5));
        assert_eq!((leaders.leader(SHARD), leaders.last(SHARD)), (None, leader(3, 1)));
        leaders.announce(SHARD, 4, ReplicaId(2));
        assert_eq!((leaders.leader(SHARD), leaders.last(SHARD)), (None, leader(4, 2)));
        assert!(leaders.announce(SHARD, 5, ReplicaId(3)));
        assert_eq!(leaders.leader(SHARD), leader(5, 3));
    }

    /// The shard that is out of place in a cluster of three by three in which `leaders` (of shard 0, 1, 2; 0 for nobody) lead.
    fn out_of_place(leaders: [u64; 3], change: impl Fn(&mut crate::Layout)) -> Option<(u16, u64)> {
        let servers: Vec<_> = (1..=3u16)
            .map(|n| crate::NewServer {
                id: crate::ServerId(n.into()),
                host: "h".to_owned(),
                base_port: 7000 + 100 * n,
                peer: None,
            })
            .collect();
        let create = crate::MetaCommand::Create(crate::Create {
            cluster_id: "c".to_owned(),
            mode: crate::Mode::Cluster,
            durability: crate::Durability::QuorumFsync,
            databases: 1,
            shards: 3,
            replicas: 3,
            hash_seed: [7; 16],
            id_seed: 1,
            servers,
        });
        let mut meta = crate::MetaMachine::new();
        meta.apply(0, &create.encode()).unwrap();
        let mut layout = meta.topology().unwrap().layout().clone();
        change(&mut layout);
        let mut view = View {
            topology: Arc::new(Topology::new(layout).unwrap()),
            leaders: Leaders::default(),
            silent: BTreeSet::new(),
        };
        for (shard, replica) in (0..).zip(leaders).filter(|(_, replica)| *replica > 0) {
            view.leaders.announce(ShardId(shard), 1, ReplicaId(replica));
        }
        view.out_of_place().map(|(shard, preferred)| (shard.id.0, preferred.id.0))
    }

    #[test]
    fn a_leadership_is_out_of_place_only_while_all_is_well() {
        // The preferred leaders are replicas 1, 4 and 7.
        assert_eq!(out_of_place([1, 4, 7], |_| ()), None);
        assert_eq!(out_of_place([1, 5, 8], |_| ()), Some((1, 4)), "the first of them");
        assert_eq!(out_of_place([1, 5, 0], |_| ()), None, "a shard has no leader");
        let down =
            |layout: &mut crate::Layout| layout.servers.get_mut(&crate::ServerId(3)).unwrap().up = false;
        assert_eq!(out_of_place([1, 5, 8], down), None);
        for stage in [crate::Stage::Joining, crate::Stage::Incoming, crate::Stage::Outgoing] {
            let on_its_way = |layout: &mut crate::Layout| layout.shards[0].replicas[2].stage = stage;
            assert_eq!(out_of_place([1, 5, 8], on_its_way), None, "{stage:?}");
        }
        let empty = |layout: &mut crate::Layout| {
            let mut server = layout.servers[&crate::ServerId(3)].clone();
            (server.id, server.base_port, server.up) = (crate::ServerId(9), 9000, false);
            layout.servers.insert(server.id, server);
        };
        assert_eq!(out_of_place([1, 5, 8], empty), Some((1, 4)), "a server without replicas is no trouble");
    }

    proptest! {
        /// Servers hear the same announcements in different orders and end with the same knowledge.
        #[test]
        fn invariant_order_does_not_matter(
            heard in prop::collection::vec((0u64..4, prop::option::of(1u64..4)), 0..12),
            swaps in prop::collection::vec((0usize..12, 0usize..12), 0..12),
        ) {
            let learn = |heard: &[(u64, Option<u64>)]| {
                let mut leaders = Leaders::default();
                for &(term, replica) in heard {
                    match replica {
                        Some(replica) => leaders.announce(SHARD, term, ReplicaId(replica)),
                        None => leaders.depose(SHARD, term),
                    };
                }
                leaders
            };
            let mut shuffled = heard.clone();
            for (a, b) in swaps {
                if a < shuffled.len() && b < shuffled.len() {
                    shuffled.swap(a, b);
                }
            }
            prop_assert_eq!(learn(&heard), learn(&shuffled));
        }
    }
}

//! What a server knows of the cluster at one moment, in Sentinel's terms. Pure: built once from the node, then only read.

use kvorum_cluster::{MasterNames, Replica, ReplicaId, ServerId, Shard, ShardId, Topology, View, quorum};
use kvorum_node::{Node, Peer};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// One moment.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) names: MasterNames,
    pub(crate) view: Arc<View>,
    pub(crate) me: ServerId,
    /// All servers.
    pub(crate) peers: BTreeMap<ServerId, Peer>,
    /// How far the logs of replicas are known to be applied.
    pub(crate) offsets: BTreeMap<ReplicaId, u64>,
    /// How long each shard has had its leader.
    pub(crate) led_for: BTreeMap<ShardId, Duration>,
    /// Shards that are being handed over from this server.
    pub(crate) handed_over: BTreeSet<ShardId>,
    /// A server that was silent for this long counts as down.
    pub(crate) silent_after: Duration,
}

impl Scene {
    /// What this node knows now; `None` while it belongs to no cluster.
    pub(crate) fn of(node: &Node) -> Option<Scene> {
        let view = node.view()?;
        let me = node.server().server_id?;
        let mut offsets = BTreeMap::new();
        for shard in node.shards().borrow().values() {
            let status = shard.status();
            offsets.extend(status.matched.iter().map(|(replica, matched)| (ReplicaId(*replica), *matched)));
            offsets.insert(shard.replica(), status.applied);
        }
        let ids = || view.topology.shards.iter().map(|shard| shard.id);
        Some(Scene {
            names: MasterNames::new(&node.config().master_name),
            me,
            peers: node.peers(),
            offsets,
            led_for: ids().map(|id| (id, node.led_for(id))).collect(),
            handed_over: ids().filter(|id| node.is_handing_over(*id)).collect(),
            silent_after: Duration::from_millis(node.config().timing.election_max_ms),
            view,
        })
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.view.topology
    }

    /// The masters, by shard.
    pub(crate) fn masters(&self) -> impl Iterator<Item = Master<'_>> {
        self.topology().shards.iter().map(|shard| self.master_of(shard))
    }

    /// The master of that name.
    pub(crate) fn master(&self, name: &[u8]) -> Option<Master<'_>> {
        self.names.find(self.topology(), name).map(|shard| self.master_of(shard))
    }

    fn master_of<'a>(&'a self, shard: &'a Shard) -> Master<'a> {
        let known = self.view.last_leader(shard);
        Master {
            scene: self,
            shard,
            // Who led last; before anybody was heard of, whoever is first to be shown somewhere.
            replica: known.map_or_else(|| self.view.master(shard), |(replica, _)| replica),
            is_known: known.is_some(),
            term: known.map_or(0, |(_, leader)| leader.term),
        }
    }

    /// How many servers have to agree.
    pub(crate) fn quorum(&self) -> usize {
        quorum(self.topology())
    }

    /// How many servers are heard, this one included.
    pub(crate) fn usable(&self) -> usize {
        self.topology().servers.keys().filter(|id| !self.is_silent(**id)).count()
    }

    /// Whether nothing was heard of a server lately.
    pub(crate) fn is_silent(&self, server: ServerId) -> bool {
        server != self.me && self.view.silent.contains(&server)
    }

    /// The other servers that answer as Sentinels.
    pub(crate) fn other_sentinels(&self) -> impl Iterator<Item = (ServerId, &Peer)> {
        let others = self.peers.iter().filter(|(id, peer)| **id != self.me && peer.sentinel.port > 0);
        others.map(|(id, peer)| (*id, peer))
    }

    /// How long ago a server was heard; an age for never.
    pub(crate) fn heard_ms(&self, server: ServerId) -> u64 {
        let heard = self.peers.get(&server).and_then(|peer| peer.heard);
        millis(heard.unwrap_or(Duration::from_millis(u64::from(u32::MAX))))
    }

    /// Host and client port.
    pub(crate) fn address(&self, replica: &Replica) -> (&str, u16) {
        self.topology().address(replica.id).unwrap_or(("", 0))
    }
}

/// One shard as a monitored master.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Master<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) shard: &'a Shard,
    pub(crate) replica: &'a Replica,
    /// Whether a leader was ever heard of.
    pub(crate) is_known: bool,
    /// The term in which it was elected.
    pub(crate) term: u64,
}

impl<'a> Master<'a> {
    pub(crate) fn name(&self) -> String {
        self.scene.names.of(self.scene.topology(), self.shard.id)
    }

    pub(crate) fn address(&self) -> (&'a str, u16) {
        self.scene.address(self.replica)
    }

    /// Where clients are to go; `None` while that is not known, or may be old: another Sentinel may know.
    pub(crate) fn reliable_address(&self) -> Option<(&'a str, u16)> {
        (self.is_known && !self.scene.view.is_cut_off()).then(|| self.address())
    }

    /// Whether this server takes it for down: it is silent, or so many are that this server is the one cut off.
    pub(crate) fn is_subjectively_down(&self) -> bool {
        self.scene.is_silent(self.replica.server) || self.scene.view.is_cut_off()
    }

    /// Whether the meta group says that it is down.
    pub(crate) fn is_objectively_down(&self) -> bool {
        !self.scene.view.is_up(self.replica)
    }

    /// Whether a replica leads, as far as is known, that is not silent.
    pub(crate) fn is_led(&self) -> bool {
        self.scene.view.leader(self.shard).is_some()
    }

    pub(crate) fn slaves(&self) -> impl Iterator<Item = &'a Replica> {
        let master = self.replica.id;
        self.shard.replicas.iter().filter(move |replica| replica.id != master)
    }
}

/// What SENTINEL SET sets. It is remembered and shown, and changes nothing: how soon a leader counts as lost is a setting of
/// the servers, and replicas are never reconfigured.
#[derive(Debug, Default)]
pub(crate) struct Tunables(Mutex<BTreeMap<ShardId, Tuned>>);

/// Of one master; `None` where nothing was set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuned {
    pub(crate) down_after_ms: Option<u64>,
    pub(crate) failover_timeout_ms: Option<u64>,
    pub(crate) parallel_syncs: Option<u64>,
}

impl Tunables {
    pub(crate) fn of(&self, shard: ShardId) -> Tuned {
        self.0.lock().get(&shard).copied().unwrap_or_default()
    }

    pub(crate) fn set(&self, shard: ShardId, change: impl FnOnce(&mut Tuned)) {
        change(self.0.lock().entry(shard).or_default());
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! The topology: who is in the cluster and which shard has which slots. The meta machine makes new versions;
//! everybody else reads.

use crate::{MAX_SHARDS, NodeId, ReplicaId, ServerId, ShardId, SlotSet, hex};
use kvorum_keyspace::{SLOTS, Slot};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Deref,
    str::FromStr,
};

/// An immutable, checked [`Layout`] with its look-ups. Its fields are read through `Deref`; a changed layout
/// becomes a topology again only through [`Topology::new`], so what was checked stays true.
///
/// Invariants: each slot belongs to at most one shard; the replicas of a shard are on different servers;
/// ids, node ids, Raft groups and addresses are unique; every port exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Layout", into = "Layout")]
pub struct Topology {
    layout: Layout,
    /// Index in `layout.shards` plus one for each slot, 0 for a slot without a shard.
    shard_of_slot: Box<[u8]>,
    /// Where each replica stands in `layout`, ascending by id.
    replicas: Vec<(ReplicaId, usize, usize)>,
}

/// What a topology says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Higher with every change.
    pub version: u64,
    /// Name of the cluster, given when it was created.
    pub cluster_id: String,
    /// What it looks like to clients.
    pub mode: Mode,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Number of databases.
    pub databases: u16,
    /// Secret key of the hash that orders keys.
    #[serde(with = "hex")]
    pub hash_seed: [u8; 16],
    /// The servers by id.
    pub servers: BTreeMap<ServerId, Server>,
    /// The shards, ascending by id.
    pub shards: Vec<Shard>,
    /// The highest replica id ever given, when that is not the highest in `shards`: ids never come back, also not those of
    /// replicas that are gone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_replica: u64,
    /// The highest server id ever given, when that is not the highest in `servers`: ids of servers never come back either.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_server: u64,
    /// How many replicas each shard shall have, as far as there are servers; 0 for as many as it has.
    #[serde(default, skip_serializing_if = "is_none_wanted")]
    pub wanted_replicas: u16,
}

/// A server process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Address that clients connect to.
    pub host: String,
    /// Client port of shard 0 at that address; the server uses this port and the 99 after it.
    pub base_port: u16,
    /// Where the other servers connect to, `host:port`, when that is not `host` and the port 98 above `base_port`: clients
    /// and servers may see a server at different addresses, as in containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Whether the meta group hears from it.
    pub up: bool,
    /// What its data directory calls itself (40 hex digits), for servers that came to a running cluster: a server that lost its
    /// directory is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
    /// Whether it comes, stays or goes.
    #[serde(default, skip_serializing_if = "Tenure::is_settled")]
    pub tenure: Tenure,
}

/// Whether a server comes, stays or goes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tenure {
    /// It stays.
    #[default]
    Settled,
    /// It stays, and replicas and preferred leaders are being spread evenly for its sake.
    Settling,
    /// Its replicas move to other servers, then it is no server of the cluster any more.
    Leaving,
    /// The same, and replicas for which there is no other server are given up while others of their shard are left.
    LeavingWithFewer,
    /// It has been down for long: its replicas are made anew on other servers, as far as there are any. It stays a server, and is settled
    /// when it is back.
    Away,
    /// It is down for good: its replicas are made anew on other servers, or given up; then it is no server of the cluster any more.
    Gone,
}

impl Tenure {
    fn is_settled(&self) -> bool {
        *self == Tenure::Settled
    }

    /// Whether it is on its way out.
    pub fn is_parting(self) -> bool {
        matches!(self, Tenure::Leaving | Tenure::LeavingWithFewer | Tenure::Gone)
    }

    /// Whether it may be given replicas.
    pub fn takes_replicas(self) -> bool {
        matches!(self, Tenure::Settled | Tenure::Settling)
    }
}

/// A shard: slots and the Raft group that owns them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Its Raft group; never reused, and never 0, which is the meta group.
    pub group: u64,
    /// Its slots.
    pub slots: SlotSet,
    /// Its replicas; the first is the preferred leader.
    pub replicas: Vec<Replica>,
    /// Its members are not those that it was created with: nobody founds its group any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
}

/// One member of a shard. To clients it is a Redis Cluster node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its id.
    pub id: ReplicaId,
    /// Where it lives.
    pub server: ServerId,
    /// What clients know it by.
    pub node_id: NodeId,
    /// How it came to the shard.
    #[serde(default, skip_serializing_if = "Stage::is_founder")]
    pub stage: Stage,
}

/// How a replica came to its shard, and whether it has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It was there when the shard was created, and may found the shard's Raft group.
    #[default]
    Founder,
    /// It took another's place and may not have all data yet; it never founds a group.
    Joining,
    /// It came later and has all data.
    Member,
    /// It comes in addition to the others, or in the place of one that stays until it has arrived, and may not have all data yet.
    Incoming,
    /// It has all data, votes until another has come in its place, and then leaves the shard.
    Outgoing,
}

impl Stage {
    fn is_founder(&self) -> bool {
        *self == Stage::Founder
    }

    /// Whether it has all data, as far as the meta group knows.
    pub fn has_arrived(self) -> bool {
        !matches!(self, Stage::Joining | Stage::Incoming)
    }

    /// Whether it is neither on its way in nor on its way out.
    pub fn is_settled(self) -> bool {
        matches!(self, Stage::Founder | Stage::Member)
    }
}

/// What a cluster looks like to clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Redis Cluster: slots, MOVED, CLUSTER commands.
    Cluster,
    /// A single Redis with replicas: one shard that has all slots, no redirections.
    Standalone,
}

/// What a majority has done with a write before it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// It is on disk.
    QuorumFsync,
    /// The kernel has it, and it goes to disk every second.
    QuorumMemory,
    /// The kernel has it. Only with one server.
    None,
}

/// Why a layout is no topology.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum TopologyError {
    #[error("a cluster has at least one database")]
    NoDatabase,
    #[error("a cluster has at least one server")]
    NoServer,
    #[error("a cluster has 1 to 98 shards, not {0}")]
    ShardCount(usize),
    #[error("a standalone cluster has one shard with all slots")]
    StandaloneShards,
    #[error("durability 'none' needs a cluster of exactly one server")]
    DurabilityNone,
    #[error("server {0} is filed under another id")]
    ServerFiledWrong(ServerId),
    #[error("server {0}: '{1}' is no host name or address")]
    Host(ServerId, String),
    #[error("server {0}: base port {1} is not between 1 and 65436")]
    BasePort(ServerId, u16),
    #[error("server {0}: '{1}' is no host and port")]
    Peer(ServerId, String),
    #[error("servers {0} and {1} have the same peer address")]
    PeerTwice(ServerId, ServerId),
    #[error("servers {0} and {1} use the same ports of one host")]
    PortsOverlap(ServerId, ServerId),
    #[error("shard {0} is not in order, stands twice or is beyond 97")]
    ShardOrder(ShardId),
    #[error("shard {0} uses Raft group {1}, which is taken")]
    GroupTaken(ShardId, u64),
    #[error("slot {0} belongs to two shards")]
    SlotTaken(Slot),
    #[error("shard {0} has no replica")]
    NoReplica(ShardId),
    #[error("shard {0} has two replicas on server {1}")]
    SameServer(ShardId, ServerId),
    #[error("replica {0} is on server {1}, which does not exist")]
    UnknownServer(ReplicaId, ServerId),
    #[error("replica {0} stands twice")]
    ReplicaTwice(ReplicaId),
    #[error("more than a minority of shard {0}'s replicas are joining")]
    TooManyJoining(ShardId),
    #[error("shard {0} would have no replica that has its data")]
    NobodyArrived(ShardId),
    #[error("node id {0} stands twice")]
    NodeIdTwice(NodeId),
}

impl Server {
    /// Ports that a server uses, from its base port on.
    pub const PORTS: u16 = 100;

    /// Port of the gRPC service for peers and administration.
    pub fn peer_port(&self) -> u16 {
        self.base_port + 98
    }

    /// Where the other servers reach it, `host:port`.
    pub fn peer_addr(&self) -> String {
        self.peer.clone().unwrap_or_else(|| format!("{}:{}", self.host, self.peer_port()))
    }

    /// Port of the HTTP service.
    pub fn http_port(&self) -> u16 {
        self.base_port + 99
    }

    /// Port of the server's replica of a shard.
    pub fn client_port(&self, shard: ShardId) -> u16 {
        self.base_port + shard.0
    }

    fn check(&self) -> Result<(), TopologyError> {
        if !is_host(&self.host) {
            return Err(TopologyError::Host(self.id, self.host.clone()));
        }
        if let Some(peer) = &self.peer {
            let usable = peer
                .rsplit_once(':')
                .is_some_and(|(host, port)| is_host(host) && port.parse().is_ok_and(|port: u16| port > 0));
            if !usable {
                return Err(TopologyError::Peer(self.id, peer.clone()));
            }
        }
        if self.base_port == 0 || self.base_port.checked_add(Server::PORTS - 1).is_none() {
            return Err(TopologyError::BasePort(self.id, self.base_port));
        }
        Ok(())
    }
}

impl Topology {
    /// Checks a layout and builds its look-ups.
    pub fn new(layout: Layout) -> Result<Topology, TopologyError> {
        check_cluster(&layout)?;
        check_servers(&layout)?;
        let shard_of_slot = check_shards(&layout)?;
        let replicas = check_replicas(&layout)?;
        Ok(Topology { layout, shard_of_slot, replicas })
    }

    /// The layout, to make the next version of it.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The server of that id.
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(&id)
    }

    /// The shard of that id.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        let index = self.shards.binary_search_by_key(&id, |shard| shard.id).ok()?;
        Some(&self.shards[index])
    }

    /// The shard that has a slot. Constant time.
    pub fn shard_of_slot(&self, slot: Slot) -> Option<&Shard> {
        let index = usize::from(self.shard_of_slot[slot.index()]).checked_sub(1)?;
        Some(&self.shards[index])
    }

    /// A replica and its shard.
    pub fn replica(&self, id: ReplicaId) -> Option<(&Shard, &Replica)> {
        let index = self.replicas.binary_search_by_key(&id, |&(replica, ..)| replica).ok()?;
        let (_, shard, replica) = self.replicas[index];
        let shard = &self.shards[shard];
        Some((shard, &shard.replicas[replica]))
    }

    /// The replica that clients know by this id, and its shard.
    pub fn replica_by_node_id(&self, id: NodeId) -> Option<(&Shard, &Replica)> {
        self.all_replicas().find(|(_, replica)| replica.node_id == id)
    }

    /// The server that a replica lives on.
    pub fn server_of(&self, replica: ReplicaId) -> Option<&Server> {
        self.replica(replica).and_then(|(_, replica)| self.server(replica.server))
    }

    /// Host and client port of a replica.
    pub fn address(&self, replica: ReplicaId) -> Option<(&str, u16)> {
        let (shard, replica) = self.replica(replica)?;
        let server = self.server(replica.server)?;
        Some((&server.host, server.client_port(shard.id)))
    }

    /// The highest replica id that was ever given.
    pub fn last_replica(&self) -> ReplicaId {
        let highest = self.replicas.last().map_or(0, |&(replica, ..)| replica.0);
        ReplicaId(highest.max(self.last_replica))
    }

    /// The highest server id that was ever given.
    pub fn last_server(&self) -> ServerId {
        let highest = self.servers.keys().next_back().map_or(0, |server| server.0);
        ServerId(highest.max(self.last_server))
    }

    /// All replicas with their shards: shards in order, replicas in the order of their shard.
    pub fn all_replicas(&self) -> impl Iterator<Item = (&Shard, &Replica)> {
        self.shards.iter().flat_map(|shard| shard.replicas.iter().map(move |replica| (shard, replica)))
    }

    /// The replicas on one server, with their shards.
    pub fn replicas_on(&self, server: ServerId) -> impl Iterator<Item = (&Shard, &Replica)> {
        self.all_replicas().filter(move |(_, replica)| replica.server == server)
    }
}

impl Shard {
    /// Its replica on a server.
    pub fn replica_on(&self, server: ServerId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.server == server)
    }

    /// Its replicas but for those that are on their way out: who shall be the members of its group.
    pub fn members(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|replica| replica.stage != Stage::Outgoing)
    }

    /// How many of those that vote now may be gone while the rest can still decide. One that comes in addition may not vote yet.
    fn minority(&self) -> usize {
        let voters = self.replicas.iter().filter(|replica| replica.stage != Stage::Incoming).count();
        voters.saturating_sub(1) / 2
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_none_wanted(replicas: &u16) -> bool {
    *replicas == 0
}

fn is_host(host: &str) -> bool {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ',' | '@');
    (1..=255).contains(&host.len()) && host.chars().all(plain)
}

fn check_cluster(layout: &Layout) -> Result<(), TopologyError> {
    if layout.databases == 0 {
        return Err(TopologyError::NoDatabase);
    }
    if layout.servers.is_empty() {
        return Err(TopologyError::NoServer);
    }
    if layout.durability == Durability::None && layout.servers.len() != 1 {
        return Err(TopologyError::DurabilityNone);
    }
    if !(1..=usize::from(MAX_SHARDS)).contains(&layout.shards.len()) {
        return Err(TopologyError::ShardCount(layout.shards.len()));
    }
    let whole = layout.shards.len() == 1 && layout.shards[0].slots == SlotSet::all();
    if layout.mode == Mode::Standalone && !whole {
        return Err(TopologyError::StandaloneShards);
    }
    Ok(())
}

fn check_servers(layout: &Layout) -> Result<(), TopologyError> {
    let mut ports: BTreeMap<(&str, u16), ServerId> = BTreeMap::new();
    let mut peers: BTreeMap<String, ServerId> = BTreeMap::new();
    for (&id, server) in &layout.servers {
        if server.id != id {
            return Err(TopologyError::ServerFiledWrong(id));
        }
        server.check()?;
        // Two servers of one host overlap exactly when their base ports are less than a server's span apart.
        let host = server.host.as_str();
        let low = (host, server.base_port.saturating_sub(Server::PORTS - 1));
        let high = (host, server.base_port.saturating_add(Server::PORTS - 1));
        if let Some((_, &other)) = ports.range(low..=high).next() {
            return Err(TopologyError::PortsOverlap(other, id));
        }
        ports.insert((host, server.base_port), id);
        if let Some(other) = peers.insert(server.peer_addr(), id) {
            return Err(TopologyError::PeerTwice(other, id));
        }
    }
    Ok(())
}

/// The table of slots, when the shards are in order and share nothing.
fn check_shards(layout: &Layout) -> Result<Box<[u8]>, TopologyError> {
    let mut table = vec![0u8; usize::from(SLOTS)].into_boxed_slice();
    let mut groups = BTreeSet::from([0]);
    let mut least = 0;
    for (index, shard) in layout.shards.iter().enumerate() {
        if shard.id.0 < least || shard.id.0 >= MAX_SHARDS {
            return Err(TopologyError::ShardOrder(shard.id));
        }
        least = shard.id.0 + 1;
        if !groups.insert(shard.group) {
            return Err(TopologyError::GroupTaken(shard.id, shard.group));
        }
        for slot in shard.slots.iter() {
            if table[slot.index()] != 0 {
                return Err(TopologyError::SlotTaken(slot));
            }
            table[slot.index()] = u8::try_from(index + 1).expect("there are at most 98 shards");
        }
    }
    Ok(table)
}

/// Where each replica stands, ascending by id.
fn check_replicas(layout: &Layout) -> Result<Vec<(ReplicaId, usize, usize)>, TopologyError> {
    let mut places = Vec::new();
    let mut node_ids = BTreeSet::new();
    for (shard_index, shard) in layout.shards.iter().enumerate() {
        if shard.replicas.is_empty() {
            return Err(TopologyError::NoReplica(shard.id));
        }
        let mut servers = BTreeSet::new();
        for (replica_index, replica) in shard.replicas.iter().enumerate() {
            if !layout.servers.contains_key(&replica.server) {
                return Err(TopologyError::UnknownServer(replica.id, replica.server));
            }
            if !servers.insert(replica.server) {
                return Err(TopologyError::SameServer(shard.id, replica.server));
            }
            if !node_ids.insert(replica.node_id) {
                return Err(TopologyError::NodeIdTwice(replica.node_id));
            }
            places.push((replica.id, shard_index, replica_index));
        }
        let joining = shard.replicas.iter().filter(|replica| replica.stage == Stage::Joining).count();
        if joining > shard.minority() {
            return Err(TopologyError::TooManyJoining(shard.id));
        }
        // One that has arrived and stays, or one that stays until another has arrived.
        let arrived = shard.replicas.iter().any(|replica| replica.stage.has_arrived());
        if !arrived || shard.members().next().is_none() {
            return Err(TopologyError::NobodyArrived(shard.id));
        }
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(TopologyError::ReplicaTwice(pair[0].0)),
        None => Ok(places),
    }
}

impl Deref for Topology {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl PartialEq for Topology {
    fn eq(&self, other: &Topology) -> bool {
        self.layout == other.layout
    }
}

impl Eq for Topology {}

impl TryFrom<Layout> for Topology {
    type Error = TopologyError;

    fn try_from(layout: Layout) -> Result<Topology, TopologyError> {
        Topology::new(layout)
    }
}

impl From<Topology> for Layout {
    fn from(topology: Topology) -> Layout {
        topology.layout
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Cluster => "cluster",
            Mode::Standalone => "standalone",
        })
    }
}

/// Text that names no mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a mode is 'cluster' or 'standalone'")]
pub struct ParseModeError;

impl FromStr for Mode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Mode, ParseModeError> {
        match text {
            "cluster" => Ok(Mode::Cluster),
            "standalone" => Ok(Mode::Standalone),
            _ => Err(ParseModeError),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Durability::QuorumFsync => "quorum-fsync",
            Durability::QuorumMemory => "quorum-memory",
            Durability::None => "none",
        })
    }
}

/// Text that names no durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a durability is 'quorum-fsync', 'quorum-memory' or 'none'")]
pub struct ParseDurabilityError;

impl FromStr for Durability {
    type Err = ParseDurabilityError;

    fn from_str(text: &str) -> Result<Durability, ParseDurabilityError> {
        match text {
            "quorum-fsync" => Ok(Durability::QuorumFsync),
            "quorum-memory" => Ok(Durability::QuorumMemory),
            "none" => Ok(Durability::None),
            _ => Err(ParseDurabilityError),
        }
    }
}

//! The state machine of the meta group: it alone makes new versions of the topology.
//! `docs/data-on-disk.md`, "Meta log entries", has the persisted form.
//!
//! Contract: deterministic. A command that cannot be done is refused, the same way on every server, and changes
//! nothing; an entry that this version cannot read stops the server. Each change gives a higher version; a command
//! that changes nothing keeps it.

use crate::{
    BASE_LEVEL, Durability, Layout, MAX_SHARDS, Mode, Replica, ReplicaId, RestoreError, SERVERS_LEVEL,
    Server, ServerId, Shard, ShardId, SplitMix64, Stage, Tenure, Topology, TopologyError, hex, place,
    place::node_id,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

const FORMAT: u32 = 1;

/// Format of the entries that replace replicas.
const FORMAT_REPLACE: u32 = 2;

/// Format of the entries by which servers come and go, and replicas with them.
const FORMAT_SERVERS: u32 = 3;

/// What the meta log can say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MetaCommand {
    /// Creates the cluster.
    Create(Create),
    /// Takes note that the meta group hears from a server, or does not any more.
    ServerUp {
        /// The server.
        server: ServerId,
        /// Whether it is up.
        up: bool,
    },
    /// Takes note that a server is at another address.
    ServerAddress {
        /// The server.
        server: ServerId,
        /// Its host.
        host: String,
        /// Its base port.
        base_port: u16,
        /// Its peer address, when it is not `host` and the port 98 above `base_port`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
    /// Puts a new replica in the place of one whose data or log cannot be trusted any more. The new one gets the next id that
    /// was never given, and joins.
    ReplaceReplica {
        /// The shard.
        shard: ShardId,
        /// The replica that goes.
        old: ReplicaId,
        /// Where the new one lives; a server without another replica of the shard.
        server: ServerId,
        /// What the new one's node id is drawn from.
        id_seed: u64,
    },
    /// Takes note that a replica that joined has all data and votes.
    ReplicaJoined {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Takes a server in, under the next id that was never given. One that is in already changes nothing. It counts as down until it is
    /// heard.
    AddServer {
        /// What its data directory calls itself.
        hex: String,
        /// Its host.
        host: String,
        /// Its base port.
        base_port: u16,
        /// Its peer address, when it is not `host` and the port 98 above `base_port`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
        /// Whether it stays as it is, or gets its share of replicas and preferred leaders.
        tenure: Tenure,
    },
    /// Whether a server comes, stays or goes.
    SetTenure {
        /// The server.
        server: ServerId,
        /// What becomes of it.
        tenure: Tenure,
    },
    /// Forgets a server that is on its way out and has no replica any more.
    RemoveServer {
        /// The server.
        server: ServerId,
    },
    /// Makes a new replica that takes the place of another, which stays until the new one has arrived.
    MoveReplica {
        /// The shard.
        shard: ShardId,
        /// The replica that goes.
        old: ReplicaId,
        /// Where the new one lives; a server without another replica of the shard.
        server: ServerId,
        /// What the new one's node id is drawn from.
        id_seed: u64,
    },
    /// Makes one replica more.
    AddReplica {
        /// The shard.
        shard: ShardId,
        /// Where it lives; a server without another replica of the shard.
        server: ServerId,
        /// What its node id is drawn from.
        id_seed: u64,
    },
    /// Sends a replica away, and puts none in its place.
    RetireReplica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Gives up a replica that is lost, and puts none in its place.
    DropReplica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Takes note that a replica that was on its way out votes no more.
    ReplicaLeft {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Makes a replica the preferred leader of its shard.
    Prefer {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// How many replicas each shard shall have.
    WantReplicas {
        /// So many, as far as there are servers; 0 for as many as it has.
        replicas: u16,
    },
}

/// A new cluster. Everything random in it was drawn by the proposer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Name of the cluster.
    pub cluster_id: String,
    /// What it looks like to clients.
    pub mode: Mode,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Number of databases.
    pub databases: u16,
    /// Number of shards, 1 to 98.
    pub shards: u16,
    /// Replicas of each shard, from 1 to the number of servers.
    pub replicas: u16,
    /// Secret key of the hash that orders keys.
    #[serde(with = "hex")]
    pub hash_seed: [u8; 16],
    /// What node ids are drawn from.
    pub id_seed: u64,
    /// The servers.
    pub servers: Vec<NewServer>,
}

/// A server of a new cluster; it counts as up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewServer {
    /// Its id.
    pub id: ServerId,
    /// Its host.
    pub host: String,
    /// Its base port.
    pub base_port: u16,
    /// Its peer address, when it is not `host` and the port 98 above `base_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The envelope of a command in the log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: u32,
    command: MetaCommand,
}

/// What stays readable of an envelope, or of a snapshot, of any format.
#[derive(Deserialize)]
struct AnyEnvelope {
    format: u32,
}

impl MetaCommand {
    /// The log entry.
    pub fn encode(&self) -> Vec<u8> {
        let envelope = Envelope { format: self.format(), command: self.clone() };
        serde_json::to_vec(&envelope).expect("numbers and texts have a JSON form")
    }

    /// Reads a log entry.
    pub fn decode(entry: &[u8]) -> Result<MetaCommand, MetaFault> {
        let malformed = |error: serde_json::Error| MetaFault::Malformed(error.to_string());
        let AnyEnvelope { format } = serde_json::from_slice(entry).map_err(malformed)?;
        if !(FORMAT..=FORMAT_SERVERS).contains(&format) {
            return Err(MetaFault::UnknownFormat(format));
        }
        let envelope: Envelope = serde_json::from_slice(entry).map_err(malformed)?;
        if envelope.command.format() != format {
            return Err(MetaFault::Malformed(format!("a command of another format than {format}")));
        }
        Ok(envelope.command)
    }

    /// The lowest format that has the command: an older version stops at what it does not know, and at nothing else.
    fn format(&self) -> u32 {
        match self {
            MetaCommand::Create(_) | MetaCommand::ServerUp { .. } | MetaCommand::ServerAddress { .. } => {
                FORMAT
            }
            MetaCommand::ReplaceReplica { .. } | MetaCommand::ReplicaJoined { .. } => FORMAT_REPLACE,
            MetaCommand::AddServer { .. }
            | MetaCommand::SetTenure { .. }
            | MetaCommand::RemoveServer { .. }
            | MetaCommand::MoveReplica { .. }
            | MetaCommand::AddReplica { .. }
            | MetaCommand::RetireReplica { .. }
            | MetaCommand::DropReplica { .. }
            | MetaCommand::ReplicaLeft { .. }
            | MetaCommand::Prefer { .. }
            | MetaCommand::WantReplicas { .. } => FORMAT_SERVERS,
        }
    }

    /// The feature level of the servers that know the command. Those that are below it stop at its entry.
    pub fn feature_level(&self) -> u16 {
        if self.format() < FORMAT_SERVERS { BASE_LEVEL } else { SERVERS_LEVEL }
    }

    /// What the command makes of a topology: the next version of it, or nothing when it changes nothing. What a leader asks
    /// before it proposes; the log decides.
    pub fn applied_to(&self, topology: &Topology) -> Result<Option<Topology>, MetaRefusal> {
        match self {
            MetaCommand::Create(_) => Err(MetaRefusal::AlreadyCreated(topology.cluster_id.clone())),
            MetaCommand::ServerUp { server, up } => changed(topology, |layout| {
                server_in(layout, *server)?.up = *up;
                Ok(())
            }),
            MetaCommand::ServerAddress { server, host, base_port, peer } => changed(topology, |layout| {
                let server = server_in(layout, *server)?;
                server.host.clone_from(host);
                server.base_port = *base_port;
                server.peer.clone_from(peer);
                Ok(())
            }),
            MetaCommand::ReplaceReplica { shard, old, server, id_seed } => changed(topology, |layout| {
                let new = new_replica(topology, layout, *server, *id_seed);
                let place = replica_in(layout, *shard, *old)?;
                match place.stage {
                    // It was to go, and it is gone.
                    Stage::Outgoing => remove_replica(layout, *shard, *old)?,
                    Stage::Incoming => *place = Replica { stage: Stage::Incoming, ..new },
                    Stage::Founder | Stage::Joining | Stage::Member => {
                        *place = Replica { stage: Stage::Joining, ..new };
                    }
                }
                Ok(())
            }),
            MetaCommand::ReplicaJoined { shard, replica } => changed(topology, |layout| {
                let replica = replica_in(layout, *shard, *replica)?;
                if !replica.stage.has_arrived() {
                    replica.stage = Stage::Member;
                }
                Ok(())
            }),
            MetaCommand::AddServer { hex, host, base_port, peer, tenure } => changed(topology, |layout| {
                if layout.servers.values().any(|server| server.hex.as_ref() == Some(hex)) {
                    return Ok(());
                }
                let id = ServerId(topology.last_server().0 + 1);
                let (host, peer, hex) = (host.clone(), peer.clone(), Some(hex.clone()));
                let server =
                    Server { id, host, base_port: *base_port, peer, up: false, hex, tenure: *tenure };
                layout.servers.insert(id, server);
                layout.last_server = id.0;
                Ok(())
            }),
            MetaCommand::SetTenure { server, tenure } => changed(topology, |layout| {
                server_in(layout, *server)?.tenure = *tenure;
                Ok(())
            }),
            MetaCommand::RemoveServer { server } => changed(topology, |layout| {
                if !server_in(layout, *server)?.tenure.is_parting() {
                    return Err(MetaRefusal::Stays(*server));
                }
                if topology.replicas_on(*server).next().is_some() {
                    return Err(MetaRefusal::HasReplicas(*server));
                }
                layout.servers.remove(server);
                layout.last_server = topology.last_server().0;
                Ok(())
            }),
            MetaCommand::MoveReplica { shard, old, server, id_seed } => changed(topology, |layout| {
                let new = new_replica(topology, layout, *server, *id_seed);
                let replicas = &mut shard_in(layout, *shard)?.replicas;
                let at = place_of(replicas, *shard, *old)?;
                if !replicas[at].stage.is_settled() {
                    return Err(MetaRefusal::Unsettled(*shard, *old));
                }
                let old = std::mem::replace(&mut replicas[at], Replica { stage: Stage::Incoming, ..new });
                replicas.push(Replica { stage: Stage::Outgoing, ..old });
                Ok(())
            }),
            MetaCommand::AddReplica { shard, server, id_seed } => changed(topology, |layout| {
                let new = new_replica(topology, layout, *server, *id_seed);
                shard_in(layout, *shard)?.replicas.push(Replica { stage: Stage::Incoming, ..new });
                Ok(())
            }),
            MetaCommand::RetireReplica { shard, replica } => changed(topology, |layout| {
                let replicas = &mut shard_in(layout, *shard)?.replicas;
                let at = place_of(replicas, *shard, *replica)?;
                if !replicas[at].stage.is_settled() {
                    return Err(MetaRefusal::Unsettled(*shard, *replica));
                }
                let old = replicas.remove(at);
                if !replicas.iter().any(|left| left.stage.is_settled()) {
                    return Err(TopologyError::NobodyArrived(*shard).into());
                }
                replicas.push(Replica { stage: Stage::Outgoing, ..old });
                Ok(())
            }),
            MetaCommand::DropReplica { shard, replica } => changed(topology, |layout| {
                replica_in(layout, *shard, *replica)?;
                remove_replica(layout, *shard, *replica)
            }),
            MetaCommand::ReplicaLeft { shard, replica } => changed(topology, |layout| {
                if replica_in(layout, *shard, *replica)?.stage != Stage::Outgoing {
                    return Err(MetaRefusal::NotOutgoing(*shard, *replica));
                }
                remove_replica(layout, *shard, *replica)
            }),
            MetaCommand::Prefer { shard, replica } => changed(topology, |layout| {
                let replicas = &mut shard_in(layout, *shard)?.replicas;
                let at = place_of(replicas, *shard, *replica)?;
                if replicas[at].stage == Stage::Outgoing {
                    return Err(MetaRefusal::Unsettled(*shard, *replica));
                }
                // The others keep their order.
                replicas[..=at].rotate_right(1);
                Ok(())
            }),
            MetaCommand::WantReplicas { replicas } => changed(topology, |layout| {
                layout.wanted_replicas = *replicas;
                Ok(())
            }),
        }
    }
}

/// What became of an entry that was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// Every server refuses it; the entry is applied, the state unchanged. The answer to the proposer.
    #[error(transparent)]
    Refused(#[from] MetaRefusal),
    /// This server cannot go on: others may understand what it does not.
    #[error(transparent)]
    Fault(#[from] MetaFault),
}

/// Why a command cannot be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum MetaRefusal {
    #[error("the cluster exists already: '{0}'")]
    AlreadyCreated(String),
    #[error("no cluster has been created")]
    NotCreated,
    #[error("'{0}' is no name of a cluster: 1 to 64 letters, digits, '-', '_' and '.'")]
    ClusterId(String),
    #[error("a cluster has 1 to {MAX_SHARDS} shards, not {0}")]
    Shards(u16),
    #[error("a shard has 1 to {servers} replicas on {servers} servers, not {replicas}")]
    Replicas { replicas: u16, servers: usize },
    #[error("server {0} stands twice")]
    ServerTwice(ServerId),
    #[error("there is no server {0}")]
    UnknownServer(ServerId),
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    #[error("shard {0} has no replica {1}")]
    UnknownReplica(ShardId, ReplicaId),
    #[error("server {0} is not on its way out")]
    Stays(ServerId),
    #[error("server {0} still has replicas")]
    HasReplicas(ServerId),
    #[error("replica {1} of shard {0} is on its way in or out")]
    Unsettled(ShardId, ReplicaId),
    #[error("replica {1} of shard {0} is not on its way out")]
    NotOutgoing(ShardId, ReplicaId),
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// Why a server cannot apply an entry of the meta log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum MetaFault {
    #[error("meta entry {got} came when {expected} was due")]
    IndexGap { expected: u64, got: u64 },
    #[error("meta entry format {0} is not known to this version")]
    UnknownFormat(u32),
    #[error("meta entry is not understood: {0}")]
    Malformed(String),
}

/// The state of the meta group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetaMachine {
    applied: Option<u64>,
    topology: Option<Arc<Topology>>,
}

/// The persisted form of the state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    applied: Option<u64>,
    topology: Option<Topology>,
}

impl MetaMachine {
    /// The state at the beginning of the log: there is no cluster.
    pub fn new() -> MetaMachine {
        MetaMachine::default()
    }

    /// Applies the entry at `index`, the one after the last (0 is the first). A refused entry counts as applied.
    pub fn apply(&mut self, index: u64, entry: &[u8]) -> Result<(), MetaError> {
        self.check_index(index)?;
        let command = MetaCommand::decode(entry)?;
        self.applied = Some(index);
        let Some(next) = self.after(command)? else { return Ok(()) };
        self.topology = Some(Arc::new(next));
        Ok(())
    }

    /// Passes an entry that is Raft's own: the no-op of a new leader, a change of members.
    pub fn advance(&mut self, index: u64) -> Result<(), MetaError> {
        self.check_index(index)?;
        self.applied = Some(index);
        Ok(())
    }

    /// The newest topology; `None` until a cluster was created.
    pub fn topology(&self) -> Option<Arc<Topology>> {
        self.topology.clone()
    }

    /// Index of the last entry applied; `None` before the first.
    pub fn applied(&self) -> Option<u64> {
        self.applied
    }

    /// The state as it is now, as JSON. `docs/data-on-disk.md`, "Snapshot content", has its fields.
    pub fn snapshot(&self) -> Vec<u8> {
        let topology = self.topology.as_deref().cloned();
        let state = State { format: FORMAT, applied: self.applied, topology };
        serde_json::to_vec(&state).expect("numbers and texts have a JSON form")
    }

    /// The state that a snapshot was taken of. What this version does not know is refused, not skipped.
    pub fn restore(snapshot: &[u8]) -> Result<MetaMachine, RestoreError> {
        let malformed = |error: serde_json::Error| RestoreError::Malformed(error.to_string());
        let AnyEnvelope { format } = serde_json::from_slice(snapshot).map_err(malformed)?;
        if format != FORMAT {
            return Err(RestoreError::UnknownFormat(format));
        }
        let State { applied, topology, .. } = serde_json::from_slice(snapshot).map_err(malformed)?;
        if applied.is_none() && topology.is_some() {
            return Err(RestoreError::Malformed("a cluster before the first entry".into()));
        }
        Ok(MetaMachine { applied, topology: topology.map(Arc::new) })
    }

    fn check_index(&self, index: u64) -> Result<(), MetaFault> {
        let expected = self.applied.map_or(0, |applied| applied + 1);
        if index == expected { Ok(()) } else { Err(MetaFault::IndexGap { expected, got: index }) }
    }

    /// The topology after a command; `None` when it changes nothing.
    fn after(&self, command: MetaCommand) -> Result<Option<Topology>, MetaRefusal> {
        match (&self.topology, command) {
            (Some(topology), command) => command.applied_to(topology),
            (None, MetaCommand::Create(create)) => created(create).map(Some),
            (None, _) => Err(MetaRefusal::NotCreated),
        }
    }
}

/// The next version of a topology, unless the change changes nothing.
fn changed(
    topology: &Topology,
    change: impl FnOnce(&mut Layout) -> Result<(), MetaRefusal>,
) -> Result<Option<Topology>, MetaRefusal> {
    let mut layout = topology.layout().clone();
    change(&mut layout)?;
    if &layout == topology.layout() {
        return Ok(None);
    }
    layout.version += 1;
    Ok(Some(Topology::new(layout)?))
}

fn server_in(layout: &mut Layout, id: ServerId) -> Result<&mut Server, MetaRefusal> {
    layout.servers.get_mut(&id).ok_or(MetaRefusal::UnknownServer(id))
}

fn shard_in(layout: &mut Layout, id: ShardId) -> Result<&mut Shard, MetaRefusal> {
    layout.shards.iter_mut().find(|shard| shard.id == id).ok_or(MetaRefusal::UnknownShard(id))
}

fn replica_in(layout: &mut Layout, shard: ShardId, id: ReplicaId) -> Result<&mut Replica, MetaRefusal> {
    let replicas = &mut shard_in(layout, shard)?.replicas;
    let at = place_of(replicas, shard, id)?;
    Ok(&mut replicas[at])
}

fn place_of(replicas: &[Replica], shard: ShardId, id: ReplicaId) -> Result<usize, MetaRefusal> {
    replicas.iter().position(|replica| replica.id == id).ok_or(MetaRefusal::UnknownReplica(shard, id))
}

/// A replica with the next id, which is given by that; its stage is the caller's.
fn new_replica(topology: &Topology, layout: &mut Layout, server: ServerId, id_seed: u64) -> Replica {
    let id = topology.last_replica().0 + 1;
    layout.last_replica = id;
    let node_id = node_id(&mut SplitMix64::new(id_seed));
    Replica { id: ReplicaId(id), server, node_id, stage: Stage::Incoming }
}

/// A replica is no part of its shard any more.
fn remove_replica(layout: &mut Layout, shard: ShardId, id: ReplicaId) -> Result<(), MetaRefusal> {
    let highest = layout.shards.iter().flat_map(|shard| &shard.replicas).map(|replica| replica.id.0).max();
    layout.last_replica = layout.last_replica.max(highest.unwrap_or(0));
    let shard = shard_in(layout, shard)?;
    shard.replicas.retain(|replica| replica.id != id);
    shard.changed = true;
    Ok(())
}

fn created(create: Create) -> Result<Topology, MetaRefusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !(1..=64).contains(&create.cluster_id.len()) || !create.cluster_id.chars().all(plain) {
        return Err(MetaRefusal::ClusterId(create.cluster_id));
    }
    if !(1..=MAX_SHARDS).contains(&create.shards) {
        return Err(MetaRefusal::Shards(create.shards));
    }
    let mut servers = BTreeMap::new();
    for NewServer { id, host, base_port, peer } in create.servers {
        if servers
            .insert(id, Server { id, host, base_port, peer, up: true, hex: None, tenure: Tenure::Settled })
            .is_some()
        {
            return Err(MetaRefusal::ServerTwice(id));
        }
    }
    if servers.is_empty() {
        return Err(TopologyError::NoServer.into());
    }
    if !(1..=servers.len()).contains(&usize::from(create.replicas)) {
        return Err(MetaRefusal::Replicas { replicas: create.replicas, servers: servers.len() });
    }
    let ids: Vec<ServerId> = servers.keys().copied().collect();
    let layout = Layout {
        version: 1,
        cluster_id: create.cluster_id,
        mode: create.mode,
        durability: create.durability,
        databases: create.databases,
        hash_seed: create.hash_seed,
        shards: place(&ids, create.shards, create.replicas, create.id_seed),
        last_replica: 0,
        last_server: 0,
        wanted_replicas: 0,
        servers,
    };
    Ok(Topology::new(layout)?)
}

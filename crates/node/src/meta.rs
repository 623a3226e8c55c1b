//! The meta group on this server: applies the topology's log, and, on its leader, proposes what the cluster
//! needs: its creation, and which servers are up.

use crate::views::Views;
use kvorum_cluster::{MetaCommand, MetaError, MetaMachine, ServerId, Topology};
use kvorum_raft::meta_store::MetaStore;
use kvorum_raft::{Committed, Fatal, Group, Image, Machine, ProposeError, give_way};
use parking_lot::Mutex;
use std::io::{self, Read};
use std::sync::Arc;
use tracing::{info, warn};

/// The meta group's number; shards' groups count from 1.
pub(crate) const META_GROUP: u64 = 0;

/// Key of the cached topology in the server's [`MetaStore`].
pub(crate) const CACHED_TOPOLOGY: &[u8] = b"topology";

/// Far beyond what the largest topology takes.
const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

/// Applies the meta group's log to the topology.
pub(crate) struct MetaReplica {
    machine: Mutex<MetaMachine>,
    views: Arc<Views>,
    store: Arc<dyn MetaStore>,
}

impl MetaReplica {
    pub(crate) fn new(views: Arc<Views>, store: Arc<dyn MetaStore>) -> Arc<MetaReplica> {
        Arc::new(MetaReplica { machine: Mutex::new(MetaMachine::new()), views, store })
    }

    fn publish(&self, topology: Arc<Topology>) {
        let bytes = serde_json::to_vec(&*topology).expect("a topology is plain data");
        // The cache only shortens a restart; the meta group's log is what counts.
        let cache = || self.store.put(CACHED_TOPOLOGY, &bytes).and_then(|()| self.store.flush());
        if let Err(error) = give_way(cache) {
            warn!(%error, "cannot cache the topology");
        }
        self.views.learn_topology(topology);
    }
}

impl Machine for MetaReplica {
    fn apply(&self, entry: Committed<'_>) -> Result<(), Fatal> {
        let mut machine = self.machine.lock();
        let before = machine.topology().map(|topology| topology.version);
        match machine.apply(entry.index, entry.data) {
            Ok(()) => {}
            // The same on every server; the topology shows its proposer that nothing changed.
            Err(MetaError::Refused(refusal)) => {
                warn!(%refusal, index = entry.index, "meta command refused");
                return Ok(());
            }
            Err(MetaError::Fault(fault)) => return Err(Fatal(fault.to_string())),
        }
        let Some(topology) = machine.topology() else { return Ok(()) };
        drop(machine);
        if before != Some(topology.version) {
            self.publish(topology);
        }
        Ok(())
    }

    fn blank(&self, index: u64, _: u64) {
        self.machine.lock().advance(index).expect("Raft hands entries over in order");
    }

    fn snapshot(&self) -> Box<dyn Image> {
        Box::new(Frozen(self.machine.lock().clone()))
    }

    fn restore(&self, content: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        content.take(SNAPSHOT_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| Fatal(error.to_string()))?;
        let restored = MetaMachine::restore(&bytes).map_err(|error| Fatal(error.to_string()))?;
        let topology = restored.topology();
        *self.machine.lock() = restored;
        if let Some(topology) = topology {
            self.publish(topology);
        }
        Ok(())
    }
}

/// The meta group's state at one place of its log.
struct Frozen(MetaMachine);

impl Image for Frozen {
    fn write(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.0.snapshot())
    }
}

/// Proposes one command; `Ok` once it is applied here.
pub(crate) async fn propose(group: &Group, command: &MetaCommand) -> Result<(), ProposeError> {
    group.propose(command.encode().into(), None).await?.await.map(|_| ())
}

/// One turn of the meta leader: what should be proposed, given who has been heard of lately?
pub(crate) async fn lead(
    group: &Group,
    views: &Views,
    create: &serde_json::Value,
    is_heard: impl Fn(ServerId) -> bool,
) {
    let commands = match views.current() {
        None => match serde_json::from_value::<MetaCommand>(create.clone()) {
            Ok(command) => vec![command],
            Err(error) => {
                warn!(%error, "the identity's creation command cannot be read");
                return;
            }
        },
        Some(view) => view
            .topology
            .servers
            .values()
            .filter(|server| server.up != is_heard(server.id))
            .map(|server| MetaCommand::ServerUp { server: server.id, up: !server.up })
            .collect(),
    };
    for command in commands {
        match propose(group, &command).await {
            Ok(()) => info!(command = name(&command), "meta command applied"),
            Err(error) => {
                warn!(%error, command = name(&command), "meta command not applied");
                return;
            }
        }
    }
}

/// What a log line says of a command: not its content, for a creation holds the cluster's secret hash seed.
pub(crate) fn name(command: &MetaCommand) -> String {
    match command {
        MetaCommand::Create(create) => format!("create cluster {}", create.cluster_id),
        MetaCommand::ServerUp { server, up } => {
            format!("server {server} is {}", if *up { "up" } else { "down" })
        }
        MetaCommand::ServerAddress { server, .. } => format!("server {server} moved"),
        MetaCommand::ReplaceReplica { shard, old, .. } => format!("replica {old} of shard {shard} replaced"),
        MetaCommand::ReplicaJoined { shard, replica } => format!("replica {replica} of shard {shard} joined"),
        MetaCommand::AddServer { host, base_port, .. } => format!("server at {host}:{base_port} added"),
        MetaCommand::SetTenure { server, tenure } => format!("server {server} is {tenure:?}"),
        MetaCommand::RemoveServer { server } => format!("server {server} removed"),
        MetaCommand::MoveReplica { shard, old, server, .. } => {
            format!("replica {old} of shard {shard} moves to server {server}")
        }
        MetaCommand::AddReplica { shard, server, .. } => {
            format!("shard {shard} gets a replica on server {server}")
        }
        MetaCommand::RetireReplica { shard, replica } => {
            format!("replica {replica} of shard {shard} retires")
        }
        MetaCommand::DropReplica { shard, replica } => format!("replica {replica} of shard {shard} given up"),
        MetaCommand::ReplicaLeft { shard, replica } => format!("replica {replica} of shard {shard} left"),
        MetaCommand::Prefer { shard, replica } => format!("replica {replica} of shard {shard} preferred"),
        MetaCommand::WantReplicas { replicas } => format!("{replicas} replicas wanted"),
    }
}

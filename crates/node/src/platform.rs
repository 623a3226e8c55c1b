//! What a node stands on: the disk, the network, the clocks, chance. Injected, so that whole clusters run in one process, on
//! simulated time, from one seed.

use crate::clock::{SystemTimeSource, TimeSource};
use crate::config::NodeConfig;
use crate::contact::{Contact, GrpcContact};
use crate::node::StartError;
use kvorum_cluster::{ReplicaId, ShardId, ShardMachine};
use kvorum_raft::disk::{Disk, StdDisk};
use kvorum_raft::meta_store::{MetaStore, SledMetaStore};
use kvorum_raft::{Connector, Environment, TcpConfig, TcpTransport, Transport};
use std::io;
use std::sync::Arc;

/// A server's surroundings. [`Node::start`](crate::Node::start) makes the real ones by itself.
pub struct Platform {
    /// Where the identity, the log and the snapshots are.
    pub disk: Arc<dyn Disk>,
    /// Where what can be rebuilt is.
    pub store: Arc<dyn MetaStore>,
    /// Raft's way to other servers.
    pub transport: Arc<dyn Transport>,
    /// The way to other servers for everything else.
    pub contact: Arc<dyn Contact>,
    /// Monotonic time, tasks, and chance.
    pub environment: Environment,
    /// Watches what replicas do; `None` in production.
    pub observer: Option<Arc<dyn Observer>>,
    /// Wall time, and the same monotonic time once more, for the log's clock.
    pub time: Arc<dyn TimeSource>,
    /// Another one after each start of the machine; empty when it is not known. What was written and not synced under
    /// another is in doubt.
    pub boot_id: String,
}

/// Watches the replicas of a server, so that a simulation can hold what they do against the invariants.
pub trait Observer: Send + Sync + 'static {
    /// A replica has applied an entry; `machine` is its state right after. `entry` is `None` for Raft's own entries.
    fn applied(
        &self,
        replica: (ShardId, ReplicaId),
        position: (u64, u64),
        entry: Option<&[u8]>,
        machine: &ShardMachine,
    );

    /// A replica has taken its state from a snapshot: its own at a start, or a leader's.
    fn restored(&self, replica: (ShardId, ReplicaId), machine: &ShardMachine) {
        let _ = (replica, machine);
    }
}

impl Platform {
    /// The machine's.
    pub(crate) fn real(config: &NodeConfig) -> Result<Platform, StartError> {
        std::fs::create_dir_all(&config.dir)
            .map_err(|source| StartError::Io { what: config.dir.display().to_string(), source })?;
        let store = SledMetaStore::open(&config.dir.join("meta.sled")).map_err(|error| StartError::Io {
            what: "opening the metadata store".to_owned(),
            source: io::Error::other(error.to_string()),
        })?;
        let tcp = TcpConfig::default();
        let connector = Connector::new(tcp.connect_timeout, config.peer_addresses.clone());
        Ok(Platform {
            disk: Arc::new(StdDisk),
            store: Arc::new(store),
            transport: Arc::new(TcpTransport::with_connector(tcp, connector.clone())),
            contact: Arc::new(GrpcContact::new(connector)),
            environment: Environment::real(),
            observer: None,
            time: Arc::new(SystemTimeSource),
            boot_id: boot_id(),
        })
    }
}

/// The kernel's boot id. The variable is for tests, which cannot start the machine again.
fn boot_id() -> String {
    let read = std::env::var("KVORUM_BOOT_ID")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    read.map(|id| id.trim().to_owned()).unwrap_or_default()
}

//! Settings of one server, as the node needs them. Who reads files and flags is the caller's business.

use kvorum_raft::{SnapshotConfig, wal::WalConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How a leader makes sure that its reads are linearizable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadMode {
    /// By its leader lease: no network round per read. The default.
    #[default]
    Lease,
    /// By a round to a majority for every batch of reads (Raft's read-index).
    Quorum,
}

/// Raft's timers, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Interval of a leader's heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_min_ms: u64,
    /// Longest election timeout; also the length of a leader's lease.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { heartbeat_ms: 100, election_min_ms: 150, election_max_ms: 500 }
    }
}

/// Settings of a [`crate::Node`].
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Data directory of this server; created when absent.
    pub dir: PathBuf,
    /// Host name or address that clients are told.
    pub host: String,
    /// Client port of shard 0 that clients are told: `base_port`, unless something on the way to them maps ports.
    pub announced_port: u16,
    /// Host name or address that the other servers are told.
    pub peer_host: String,
    /// By which address (`host:port`) this server reaches another one, for those where it is not the announced one.
    pub peer_addresses: BTreeMap<String, String>,
    /// Address to listen on.
    pub bind: String,
    /// Client port of shard 0; shard n listens on `base_port + n`, peers on `base_port + 98`.
    pub base_port: u16,
    /// What clients of Sentinel call the shard of a cluster that has one only; see [`kvorum_cluster::MasterNames`].
    pub master_name: String,
    /// Raft's timers.
    pub timing: Timing,
    /// How leader reads are made linearizable.
    pub read_mode: ReadMode,
    /// A write that has no outcome after this long is answered `-UNKNOWN`.
    pub write_timeout: Duration,
    /// A follower that does not have what its leader had this long ago answers stale reads `MASTERDOWN`.
    pub stale_bound: Duration,
    /// A write that is larger, packed, goes through the log in chunks of this many bytes: [`CHUNK_BYTES`].
    pub chunk_bytes: usize,
    /// The log's sizes and intervals.
    pub wal: WalConfig,
    /// When snapshots are taken and what is kept of the log behind them; they are in `snapshots/` of `dir`, whatever it says here.
    pub snapshots: SnapshotConfig,
    /// A server that is down for so long has its replicas made anew on others, where there is room; zero for never. What the server
    /// says counts that leads the meta group.
    pub server_replace_after: Duration,
    /// Leaderships return to the preferred leaders when nothing has changed in the cluster for this long; `None` for never.
    pub leader_balance: Option<Duration>,
    /// Worker threads of the runtime that Raft, the transport and apply share (never user work).
    pub raft_threads: usize,
}

impl NodeConfig {
    /// The defaults for a server that keeps its data in `dir` and listens from `base_port` on.
    pub fn new(dir: PathBuf, host: &str, base_port: u16) -> NodeConfig {
        NodeConfig {
            dir,
            host: host.to_owned(),
            announced_port: base_port,
            peer_host: host.to_owned(),
            peer_addresses: BTreeMap::new(),
            bind: host.to_owned(),
            base_port,
            master_name: "mymaster".to_owned(),
            timing: Timing::default(),
            read_mode: ReadMode::Lease,
            write_timeout: Duration::from_secs(5),
            stale_bound: Duration::from_secs(10),
            chunk_bytes: CHUNK_BYTES,
            wal: WalConfig::default(),
            snapshots: SnapshotConfig::default(),
            server_replace_after: Duration::from_secs(600),
            leader_balance: Some(LEADER_CALM),
            raft_threads: 2,
        }
    }

    /// `host:port` of this server's peer listener, as others are told.
    pub fn peer_addr(&self) -> String {
        format!("{}:{}", self.peer_host, self.base_port + PEER_PORT_OFFSET)
    }
}

/// How long all has to be well in the cluster before a leadership returns to the preferred leader.
pub const LEADER_CALM: Duration = Duration::from_secs(15);

/// Size of the chunks in which large writes go through the log, except in tests.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Peer port = base port + this.
pub(crate) const PEER_PORT_OFFSET: u16 = 98;

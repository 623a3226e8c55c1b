//! One client port: what its connections share, and what sessions ask of the replica behind it.
//!
//! To clients one port is one node of a Redis Cluster, so statistics, connections and settings are the port's.

use crate::clients::{Client, Clients};
use crate::control::Control;
use crate::crowd::Crowd;
use crate::gate::Gate;
use crate::latency::{COMMAND, FAST_COMMAND, LatencyMonitor};
use crate::limits::Limits;
use crate::monitor::Monitors;
use crate::saves::Saves;
use crate::settings::Settings;
use crate::slowlog::{SlowCommand, SlowLog};
use crate::stats::{KeyspaceCounts, PortStats};
use kvorum_cluster::{Mode, ReplicaId, View};
use kvorum_keyspace::{Flags, Slot};
use kvorum_node::SnapshotStats;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Redis's version that commands and replies follow.
pub(crate) const REDIS_VERSION: &str = "7.0.15";

/// What all connections of a port share.
#[derive(Debug)]
pub(crate) struct Port {
    /// Its number.
    pub(crate) number: u16,
    /// The port that is shown as the cluster bus: the server's peer port.
    pub(crate) peer_port: u16,
    /// 40 hex digits that name this run of the port.
    pub(crate) run_id: String,
    /// 40 hex digits that name the server while it belongs to no cluster.
    pub(crate) server_hex: String,
    /// When it was opened.
    pub(crate) started: Instant,
    /// Shared by the ports of the server.
    pub(crate) settings: Arc<Settings>,
    pub(crate) stats: PortStats,
    pub(crate) clients: Clients,
    pub(crate) monitors: Monitors,
    /// Who may come in.
    pub(crate) limits: Limits,
    /// What may run now.
    pub(crate) gate: Gate,
    /// Who has just come, or speaks up again.
    pub(crate) crowd: Crowd,
    pub(crate) slowlog: SlowLog,
    pub(crate) latency: LatencyMonitor,
    pub(crate) saves: Saves,
    /// The way to whoever runs the process.
    pub(crate) control: Control,
}

impl Port {
    pub(crate) fn new(
        number: u16,
        peer_port: u16,
        server_hex: String,
        settings: Arc<Settings>,
        control: Control,
    ) -> Port {
        Port {
            number,
            peer_port,
            run_id: random_hex(),
            server_hex,
            started: Instant::now(),
            settings,
            stats: PortStats::new(),
            clients: Clients::default(),
            monitors: Monitors::default(),
            limits: Limits::default(),
            gate: Gate::default(),
            crowd: Crowd::default(),
            slowlog: SlowLog::default(),
            latency: LatencyMonitor::default(),
            saves: Saves::default(),
            control,
        }
    }

    /// A command of this client ran for longer than somebody wants to hear of.
    pub(crate) fn note_slow(&self, slow: SlowCommand, client: &Client) {
        let event = if slow.command.flags.has(Flags::FAST) { FAST_COMMAND } else { COMMAND };
        self.latency.observe(event, slow.took, self.settings.latency_monitor_threshold());
        if self.settings.slowlog_slower_than().is_some_and(|least| slow.took >= least) {
            self.slowlog.push(slow, client.peer, &client.name(), self.settings.slowlog_max_len());
        }
    }
}

/// What a session asks of the replica behind its port. Every answer is short to get; none waits.
pub(crate) trait Replica: Send + Sync {
    /// What this server knows of the cluster.
    fn view(&self) -> Arc<View>;
    /// Which replica it is.
    fn id(&self) -> ReplicaId;
    /// Raft's view of it.
    fn standing(&self) -> Standing;
    /// Number of keys of a slot.
    fn count_in_slot(&self, db: u16, slot: Slot) -> usize;
    /// At most `limit` keys of a slot.
    fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>>;
    /// Sizes and counters of its keyspace.
    fn keyspace(&self) -> KeyspaceFacts;
    /// Figures of its snapshots.
    fn snapshots(&self) -> SnapshotStats;
    /// Whether keys whose time has come are removed though nobody touches them.
    fn set_active_expire(&self, on: bool);
}

/// Raft's view of a replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// `leader`, `follower`, `candidate` or `learner`.
    pub(crate) role: &'static str,
    /// The current term.
    pub(crate) term: u64,
    /// Whether it leads and may serve.
    pub(crate) serves: bool,
    /// Who leads, as far as it knows.
    pub(crate) leader: Option<u64>,
    /// Index of the last entry in its log.
    pub(crate) last: u64,
    /// Index of the last entry that a majority has.
    pub(crate) committed: u64,
    /// Index of the last entry it applied.
    pub(crate) applied: u64,
    /// On the leader: how far each replica's log is known to reach.
    pub(crate) matched: BTreeMap<u64, u64>,
    /// Why it stopped.
    pub(crate) failed: Option<String>,
}

/// Sizes and counters of a keyspace.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyspaceFacts {
    /// Keys, and keys with a deadline, of each database.
    pub(crate) databases: Vec<(usize, usize)>,
    /// Bytes that the data count for.
    pub(crate) used_bytes: u64,
    /// Counters.
    pub(crate) counts: KeyspaceCounts,
    /// Number of changes so far.
    pub(crate) sequence: u64,
}

/// A port and the replica behind it, if there is one: the server may not belong to a cluster yet.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) port: &'a Port,
    pub(crate) replica: Option<&'a dyn Replica>,
}

impl Place<'_> {
    /// How the cluster looks to clients; a server without one looks like an empty node of a Redis Cluster.
    pub(crate) fn mode(&self) -> Mode {
        self.replica.map_or(Mode::Cluster, |replica| replica.view().topology.mode)
    }

    /// Number of databases.
    pub(crate) fn databases(&self) -> u16 {
        self.replica.map_or(1, |replica| replica.view().topology.databases)
    }

    /// Whether the replica is the one that clients are shown as the master of its shard.
    pub(crate) fn is_master(&self) -> bool {
        let Some(replica) = self.replica else { return true };
        let (view, me) = (replica.view(), replica.id());
        view.topology.replica(me).is_some_and(|(shard, _)| view.master(shard).id == me)
    }
}

/// 40 hex digits. They only have to differ from each other; the hasher that protects std's maps is random enough.
fn random_hex() -> String {
    let digits: String = (0..3)
        .map(|_| format!("{:016x}", std::collections::hash_map::RandomState::new().build_hasher().finish()))
        .collect();
    digits[..40].to_owned()
}

/// Time since the Unix epoch.
pub(crate) fn wall_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

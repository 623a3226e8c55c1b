//! The Raft groups of one server: they share a log, a transport and an environment.

use std::{
    io,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use kvorum_proto::peer::{self, peer_server::PeerServer};
use openraft::{Config, SnapshotPolicy, async_runtime::WatchReceiver};
use openraft_rt::AsyncRuntime;
use parking_lot::Mutex;
use rand::RngExt;

use crate::{
    campaign::{Campaign, Hearing},
    clock::Environment,
    group::{Group, Parts, Raft},
    lease::{Lease, VoteGate},
    log_store::{LogStore, decode_vote, finish},
    machine::{Applier, Machine},
    network::Network,
    runtime::Runtime,
    snapshot::{self, Managed, SnapshotConfig, SnapshotStore, Snapshots},
    transport::{Inbound, NoteTaker, PeerIncoming, PeerService, Replica, Transport},
    wal::{GroupId, SyncMode, Wal},
};

/// Raft's intervals. The lease of a leader is the longest election time-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Milliseconds between heartbeats, which are also given that long to be answered. Default 100.
    pub heartbeat_ms: u64,
    /// Shortest time without a leader, after the lease of the last one, before a replica campaigns, milliseconds. Default 150.
    pub election_min_ms: u64,
    /// Longest such time; also the lease. Default 500.
    pub election_max_ms: u64,
    /// A leader without a majority is silent and sends heartbeats in turns of this length, milliseconds; at least
    /// twice the longest election time-out. Default 1200.
    pub quorum_loss_probe_ms: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { heartbeat_ms: 100, election_min_ms: 150, election_max_ms: 500, quorum_loss_probe_ms: 1200 }
    }
}

impl Timing {
    /// How long a voter that acknowledged a leader votes for no other.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.election_max_ms)
    }

    /// Between one follower's standing for election and the next one's, so that the first can win meanwhile.
    pub(crate) fn turn(&self) -> Duration {
        Duration::from_millis(self.election_min_ms / 2)
    }

    /// The longest election time-out.
    pub fn election_max(&self) -> Duration {
        Duration::from_millis(self.election_max_ms)
    }
}

/// Settings of a [`Host`].
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Id of this server; 0 while it belongs to no cluster (see [`Host::identify`]).
    pub server: u64,
    /// Id of the cluster; empty while it belongs to none.
    pub cluster: String,
    /// Raft's intervals, the same on all servers.
    pub timing: Timing,
    /// When snapshots are taken, and where they are; on the disk of the log.
    pub snapshots: SnapshotConfig,
}

/// Why a host or a group did not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The settings make no sense.
    #[error("Raft settings: {0}")]
    Config(String),
    /// The group is open on this server.
    #[error("group {0} is already open")]
    AlreadyOpen(GroupId),
    /// The log could not be read, or the machine refused what is in it.
    #[error("group {group} cannot start: {reason}")]
    Group {
        /// The group.
        group: GroupId,
        /// What went wrong.
        reason: String,
    },
    /// Something that the replica had is not there any more, or damaged: it will never start.
    #[error("group {group} cannot start again: {reason}")]
    Lost {
        /// The group.
        group: GroupId,
        /// What is missing.
        reason: String,
    },
}

/// Entries in one request to a follower, at most; bytes are limited, too.
const REQUEST_ENTRIES: u64 = 1024;

/// Entries that a learner may lack and still count as caught up.
const LEARNER_LAG: u64 = 1024;

/// Tells the randomness of the task for snapshots from that of the groups.
const SNAPSHOTS_SALT: u64 = u64::MAX;

/// Proposals and requests of peers that may wait for one group; then senders wait.
const QUEUE: u64 = 16 << 10;

/// The Raft groups of a server. Clones are the same host.
///
/// Call [`Host::start`] and [`Host::open`] in the tokio runtime that is to run Raft: everything they start stays there. The
/// handles may be used from any other.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

struct Shared {
    timing: Timing,
    raft: Arc<Config>,
    wal: Wal,
    transport: Arc<dyn Transport>,
    environment: Environment,
    inbound: Inbound,
    snapshot_config: SnapshotConfig,
    snapshots: Arc<Snapshots>,
    /// Groups that are being opened, so that two calls cannot open one group.
    opening: Mutex<Vec<GroupId>>,
}

impl Host {
    /// Starts to answer peers. No group runs yet.
    pub fn start(
        config: HostConfig,
        wal: Wal,
        transport: Arc<dyn Transport>,
        environment: Environment,
    ) -> Result<Host, HostError> {
        let raft = raft_config(&config.timing)?;
        let inbound = Inbound::default();
        inbound.identity().set(config.server, &config.cluster);
        transport.start(inbound.clone());
        let snapshots = Snapshots::new(config.snapshots.clone());
        let looking_after = Snapshots::run(Arc::downgrade(&snapshots));
        environment.spawn(environment.run(SNAPSHOTS_SALT, looking_after));
        let shared = Shared {
            timing: config.timing,
            raft: Arc::new(raft),
            wal,
            transport,
            environment,
            inbound,
            snapshot_config: config.snapshots,
            snapshots,
            opening: Mutex::default(),
        };
        Ok(Host { shared: Arc::new(shared) })
    }

    /// Tells who this server is, once it belongs to a cluster: requests for other servers or clusters are refused.
    pub fn identify(&self, server: u64, cluster: &str) {
        self.shared.inbound.identity().set(server, cluster);
    }

    /// Who answers the notes of other servers ([`Host::note`]); the first one that is given.
    pub fn take_notes(&self, taker: NoteTaker) {
        self.shared.inbound.take_notes(taker);
    }

    /// Sends a note to another server of the cluster, which does not wait behind entries, and brings what it says to it.
    ///
    /// # Errors
    /// A text. Whether the note arrived is unknown then.
    pub async fn note(
        &self,
        server: u64,
        addr: &str,
        note: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, String> {
        use peer::{control_reply::Reply, control_request::Request};
        let request = peer::ControlRequest { group: 0, to: 0, request: Some(Request::Note(note)) };
        let reply = self.shared.transport.link(server, addr).control(request, timeout).await;
        match reply.map_err(|error| error.to_string())?.reply {
            Some(Reply::Note(note)) => Ok(note),
            Some(Reply::Silent(reason)) => Err(reason),
            _ => Err("an answer to another question".to_owned()),
        }
    }

    /// What arrives at the peer port: serves what peers of this server's groups say over bare byte streams, and is a stream of all
    /// other connections, for tonic.
    pub fn peer_incoming(&self, listener: tokio::net::TcpListener) -> PeerIncoming {
        PeerIncoming::new(listener, self.shared.inbound.clone())
    }

    /// The service that they call; to be mounted on the peer port.
    pub fn peer_service(&self) -> PeerServer<PeerService> {
        PeerService::new(self.shared.inbound.clone())
    }

    /// The log all groups share.
    pub fn wal(&self) -> &Wal {
        &self.shared.wal
    }

    /// Opens the replica `me` of a group from its newest snapshot and the log, both of which may be empty. Applies what is known to be committed before
    /// it returns. A replica that has voted before answers and casts no votes during one lease from now on.
    pub async fn open(&self, group: GroupId, me: u64, machine: Arc<dyn Machine>) -> Result<Group, HostError> {
        {
            let mut opening = self.shared.opening.lock();
            if opening.contains(&group) || self.shared.inbound.contains(group.0) {
                return Err(HostError::AlreadyOpen(group));
            }
            opening.push(group);
        }
        // A caller that goes away while the group opens must not leave half of it behind.
        let host = self.clone();
        let salt = group.0.rotate_left(32) ^ me;
        let environment = &self.shared.environment;
        let opening = environment.spawn(environment.run(salt, async move {
            let opened = host.open_replica(group, me, machine).await;
            host.shared.opening.lock().retain(|other| *other != group);
            opened
        }));
        opening.await.unwrap_or_else(|panic| Err(HostError::Group { group, reason: panic.to_string() }))
    }

    async fn open_replica(
        &self,
        group: GroupId,
        me: u64,
        machine: Arc<dyn Machine>,
    ) -> Result<Group, HostError> {
        let Shared { timing, raft: config, wal, transport, environment, inbound, .. } = &*self.shared;
        let refused = |reason: String| HostError::Group { group, reason };
        let log = wal.group(group);
        let snapshot_config = &self.shared.snapshot_config;
        let (disk, reserve) = (wal.disk(), wal.config().reserve_bytes);
        let snapshots = SnapshotStore::open(disk, snapshot_config, group.0, environment.clone(), reserve);
        let snapshots = Arc::new(snapshots.map_err(|error| refused(error.to_string()))?);
        let started = snapshot::start(&snapshots, &machine, &log).await;
        let receiver = started.map_err(|error| {
            let reason = error.to_string();
            if error.is_final() { HostError::Lost { group, reason } } else { refused(reason) }
        });
        let receiver = Arc::new(receiver?);
        let state = log.state();
        let promised = state.vote.is_some() || state.last.is_some();
        let gate = Arc::new(VoteGate::new(environment.clone(), timing.lease(), promised));
        let lease = Arc::new(Lease::new(me, timing.lease(), environment.clone()));
        let store = LogStore::new(log.clone(), lease.clone(), machine.clone());
        let network = Network {
            group: group.0,
            me,
            transport: transport.clone(),
            lease: lease.clone(),
            snapshots: snapshots.clone(),
            streams: Arc::new(AtomicU64::new(1)),
        };
        // `build` reads the log and applies; nothing moves before `run`.
        let applier = Applier::new(machine, snapshots.clone());
        let raft = Raft::build(me, config.clone(), network, store, applier)
            .await
            .map_err(|fatal| refused(fatal.to_string()))?;
        if promised {
            raft.runtime_config().elect(false);
        }
        let mut metrics = raft.metrics();
        raft.run();
        // The first report of the running replica; an error means that it has ended, which its status will say.
        let _ = metrics.changed().await;
        let hearing = Arc::new(Hearing::new(environment.clone(), timing));
        let replica = Replica {
            raft: raft.clone(),
            gate: gate.clone(),
            hearing: hearing.clone(),
            snapshots: receiver.clone(),
        };
        inbound.insert(group.0, me, replica);
        let managed = Managed {
            group,
            raft: raft.clone(),
            log: log.clone(),
            store: snapshots,
            receiver,
            config: snapshot_config.clone(),
        };
        let managed = Arc::new(managed);
        self.shared.snapshots.insert(&managed);
        let group = Group::new(Parts {
            id: group,
            me,
            raft,
            log,
            managed,
            snapshots: self.shared.snapshots.clone(),
            last_at_start: state.last.map(|last| last.index),
            lease,
            environment: environment.clone(),
            timing: timing.clone(),
            inbound: inbound.clone(),
        });
        // Whoever acknowledges a leader stores that leader's vote first. A sole voter whose last vote is its own has
        // promised nothing to anybody, and there is nobody to wait for.
        let own_vote = state
            .vote
            .and_then(|vote| decode_vote(vote).ok())
            .is_some_and(|vote| vote.leader_id.voted_for == me);
        let alone = own_vote && group.status().borrow().voters.iter().eq([&me]);
        if promised && alone {
            group.raft().runtime_config().elect(true);
        } else if promised {
            // Rule 1 of the lease. Replicas that started together must not all campaign at one moment either.
            let jitter = Runtime::thread_rng().random_range(0..timing.election_min_ms);
            let pause = gate.closed_for() + Duration::from_millis(jitter);
            let raft = group.raft().clone();
            let gate = gate.clone();
            let waiting = Runtime::spawn(async move {
                // The clock may be another than the timer's.
                Runtime::sleep(pause).await;
                while !gate.closed_for().is_zero() {
                    Runtime::sleep(gate.closed_for()).await;
                }
                raft.runtime_config().elect(true);
            });
            group.keep(waiting.abort_handle());
        }
        let raft = group.raft().clone();
        let status = group.status();
        let campaign =
            Campaign { group: group.id().0, me, raft, status, hearing, gate, timing: timing.clone() };
        group.keep(Runtime::spawn(campaign.run()).abort_handle());
        Ok(group)
    }

    /// Drops the log and the snapshots of a group that is not open, so that a replica with another id can begin in their
    /// place; ends when nothing of it can come back, whatever happens.
    pub async fn forget(&self, group: GroupId) -> Result<(), HostError> {
        if self.shared.opening.lock().contains(&group) || self.shared.inbound.contains(group.0) {
            return Err(HostError::AlreadyOpen(group));
        }
        let Shared { wal, environment, .. } = &*self.shared;
        let refused = |error: io::Error| HostError::Group { group, reason: error.to_string() };
        let (disk, reserve) = (wal.disk(), wal.config().reserve_bytes);
        SnapshotStore::open(disk, &self.shared.snapshot_config, group.0, environment.clone(), reserve)
            .and_then(|snapshots| snapshots.clear())
            .map_err(refused)?;
        wal.group(group).forget();
        self.settle(group).await.map_err(refused)
    }

    /// Ends when everything that was written so far of a group that is not open is on disk. The group is
    /// [`SyncMode::Before`] from then on.
    pub async fn settle(&self, group: GroupId) -> io::Result<()> {
        let log = self.shared.wal.group(group);
        log.set_sync(SyncMode::Before);
        let last = log.state().last.map(|last| last.index);
        // Cuts nothing off, and is acknowledged behind all that was written before.
        finish(|done| log.truncate_after(last, done)).await
    }

    /// Stops the groups that still run, the links to peers, and their streams, which a graceful stop of the peer port would
    /// wait for. The log is closed by its owner afterwards.
    pub async fn shutdown(&self) {
        let replicas = self.shared.inbound.drain();
        futures::future::join_all(replicas.iter().map(|replica| replica.raft.shutdown())).await;
        self.shared.inbound.close();
        self.shared.transport.stop();
        // What is written after this would meet with the next start.
        self.shared.snapshots.close().await;
    }
}

fn raft_config(timing: &Timing) -> Result<Config, HostError> {
    let config = Config {
        cluster_name: "kvorum".to_owned(),
        // Timers are rounded up (see `runtime.rs`): a heartbeat that is due just after a tick would wait for the next.
        heartbeat_interval: timing.heartbeat_ms - timing.heartbeat_ms / 20,
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        quorum_loss_probe_interval: Some(timing.quorum_loss_probe_ms),
        enable_pre_vote: Some(true),
        // Rule 7 of the lease.
        enable_leader_restore: Some(false),
        // Both are decided by bytes, over all groups: see `snapshot/driver.rs`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // How near a new learner must be before openraft calls it caught up. It does not decide who is sent a snapshot: that is who
        // needs what was purged.
        replication_lag_threshold: LEARNER_LAG,
        max_payload_entries: REQUEST_ENTRIES,
        api_channel_size: Some(QUEUE),
        ..Config::default()
    };
    config.validate().map_err(|error| HostError::Config(error.to_string()))
}

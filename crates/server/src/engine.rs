//! The data behind a port, as connections use it.
//!
//! A trait, because there are two: the node's replica, and the scripted one that the tests of connections fail
//! and delay as they like.

use crate::dispatch;
use crate::port::{KeyspaceFacts, Replica, Standing};
use crate::resp::RespSink;
use crate::stats::KeyspaceCounts;
use kvorum_cluster::{Durability, ReplicaId, View};
use kvorum_keyspace::Slot;
use kvorum_node::{
    Batch, ForwardError, HandoverError, Node, ReadError, ReplySink, Role, Shard, SnapshotStats, SubmitError,
};
use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Why a submitted batch has no replies.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Definite: nothing of it ran, here it is again.
    NotLeader(Batch),
    /// Indefinite: nobody knows whether its writes ran.
    Unknown,
    /// Definite: nothing of it ran, and this is the error of each of its commands.
    Refused(Cow<'static, str>),
}

/// A replica that can run commands. Clones are cheap and mean the same replica.
pub(crate) trait Engine: Replica + Clone + 'static {
    /// Runs reads, linearizably, on the leader. On an error `out` is as it was.
    fn read(&self, batch: &Batch, out: &mut RespSink) -> impl Future<Output = Result<(), ReadError>> + Send;

    /// Runs reads on a follower's state. On an error `out` is as it was.
    fn read_stale(
        &self,
        batch: &Batch,
        out: &mut RespSink,
    ) -> impl Future<Output = Result<(), ReadError>> + Send;

    /// Takes a batch through the log. It has its place in the order of this connection's batches once this
    /// future was polled for the first time.
    fn submit(
        &self,
        batch: Batch,
        out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static;

    /// Lets the leader run a batch for that database. To be asked of a replica that does not lead.
    fn forward(
        &self,
        db: u16,
        batch: Batch,
        out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static;

    /// Waits until this many followers have everything that is applied here; returns how many have.
    fn wait_replicas(
        &self,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = usize> + Send + 'static;

    /// Waits until everything applied here is on the disks of so many followers and, if `local`, on the own one; returns whether it
    /// is on the own one, and on how many others.
    fn wait_on_disk(
        &self,
        local: bool,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = (bool, usize)> + Send + 'static;

    /// Writes a snapshot of everything applied here; the error is for the log.
    fn save(&self) -> impl Future<Output = Result<(), String>> + Send + 'static;

    /// Hands the shard's leadership to that replica, or to the follower that lags least.
    fn hand_over(
        &self,
        to: Option<ReplicaId>,
    ) -> impl Future<Output = Result<(), HandoverError>> + Send + 'static;

    /// Resolves when it is worth asking again who leads.
    fn leadership_changes(&self) -> impl Future<Output = ()> + Send + 'static;
}

/// The node's replica of a shard.
#[derive(Clone)]
pub(crate) struct NodeReplica {
    node: Node,
    shard: Shard,
    view: watch::Receiver<Option<Arc<View>>>,
}

impl NodeReplica {
    /// A replica of a node that has a view of its cluster, as it has once there are replicas.
    pub(crate) fn new(node: &Node, shard: Shard) -> NodeReplica {
        NodeReplica { node: node.clone(), shard, view: node.views() }
    }
}

impl Replica for NodeReplica {
    fn view(&self) -> Arc<View> {
        self.view.borrow().clone().expect("a replica is opened by the view that names it, and views stay")
    }

    fn id(&self) -> ReplicaId {
        self.shard.replica()
    }

    fn standing(&self) -> Standing {
        let status = self.shard.status();
        Standing {
            role: match status.role {
                Role::Leader => "leader",
                Role::Follower => "follower",
                Role::Candidate => "candidate",
                Role::Learner => "learner",
            },
            term: status.term,
            serves: self.shard.serves_for_sure(),
            leader: status.leader,
            last: status.last,
            committed: status.committed,
            applied: status.applied,
            matched: status.matched.clone(),
            failed: status.failed.clone(),
        }
    }

    fn count_in_slot(&self, db: u16, slot: Slot) -> usize {
        self.shard.count_in_slot(db, slot)
    }

    fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>> {
        self.shard.keys_in_slot(db, slot, limit)
    }

    fn keyspace(&self) -> KeyspaceFacts {
        self.shard.with_keyspace(|keyspace| {
            let stats = keyspace.stats();
            KeyspaceFacts {
                databases: (0..keyspace.databases())
                    .map(|db| (keyspace.len(db), keyspace.expiring(db)))
                    .collect(),
                used_bytes: keyspace.used_memory(),
                counts: KeyspaceCounts {
                    hits: stats.keyspace_hits,
                    misses: stats.keyspace_misses,
                    expired: stats.expired_keys,
                },
                sequence: keyspace.sequence(),
            }
        })
    }

    fn snapshots(&self) -> SnapshotStats {
        self.shard.snapshot_stats()
    }

    fn set_active_expire(&self, on: bool) {
        self.shard.set_active_expire(on);
    }
}

impl Engine for NodeReplica {
    async fn read(&self, batch: &Batch, out: &mut RespSink) -> Result<(), ReadError> {
        self.shard.read(batch, out).await
    }

    async fn read_stale(&self, batch: &Batch, out: &mut RespSink) -> Result<(), ReadError> {
        self.shard.read_stale(batch, out).await
    }

    fn submit(
        &self,
        batch: Batch,
        out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static {
        submit(self.shard.clone(), batch, out)
    }

    fn forward(
        &self,
        db: u16,
        batch: Batch,
        mut out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static {
        let (node, shard) = (self.node.clone(), self.shard.id());
        async move {
            let protocol = out.protocol().number().unsigned_abs() as u32;
            match node.forward(shard, db, protocol, batch).await {
                Ok(replies) => {
                    out.replies_of_another(&replies);
                    Ok(out)
                }
                Err(ForwardError::NotLeader(batch)) => Err(Failure::NotLeader(batch)),
                Err(ForwardError::NotTaken(_)) => Err(Failure::Refused(dispatch::READ_ONLY.into())),
                Err(ForwardError::Refused(text)) => Err(Failure::Refused(text.into())),
                Err(ForwardError::Unknown) => Err(Failure::Unknown),
            }
        }
    }

    fn wait_replicas(
        &self,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = usize> + Send + 'static {
        let shard = self.shard.clone();
        async move { shard.wait_replicas(replicas, patience).await }
    }

    fn wait_on_disk(
        &self,
        local: bool,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = (bool, usize)> + Send + 'static {
        let shard = self.shard.clone();
        // Without durability the log is written and never waited for, as with Redis's `appendfsync no`.
        let synced = self.view().topology.durability != Durability::QuorumMemory;
        async move { shard.wait_on_disk((local, replicas), synced, patience).await }
    }

    fn save(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let shard = self.shard.clone();
        async move { shard.snapshot().await.map_err(|error| error.to_string()) }
    }

    fn hand_over(
        &self,
        to: Option<ReplicaId>,
    ) -> impl Future<Output = Result<(), HandoverError>> + Send + 'static {
        let (node, shard) = (self.node.clone(), self.shard.id());
        async move { node.transfer(shard, to).await.map(drop) }
    }

    fn leadership_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut view = self.view.clone();
        view.mark_unchanged();
        async move {
            // Closed: the node has stopped, and nothing will change.
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Takes a batch through the log of a shard.
pub(crate) async fn submit(shard: Shard, batch: Batch, out: Box<RespSink>) -> Result<Box<RespSink>, Failure> {
    let refused = |text: &'static str| Err(Failure::Refused(text.into()));
    match shard.submit(batch, out).await {
        Ok(out) => Ok(own(out)),
        Err(SubmitError::NotLeader(batch, _)) => Err(Failure::NotLeader(batch)),
        Err(SubmitError::Unknown) => Err(Failure::Unknown),
        Err(SubmitError::TooLarge) => refused("ERR the command is larger than 1 GiB"),
        Err(SubmitError::NotSupported) => refused(
            "ERR not all servers of the cluster know this command, this option or commands so large: \
             upgrade them",
        ),
        Err(SubmitError::NoSpace) => {
            refused("MISCONF The disk is nearly full. Commands that may modify the data set are disabled.")
        }
    }
}

/// The sink that this connection gave away with a batch.
fn own(out: Box<dyn ReplySink>) -> Box<RespSink> {
    (out as Box<dyn Any>).downcast().expect("a batch comes back with the sink it went with")
}

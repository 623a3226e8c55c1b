//! The Kvorum database as a library: one server of a cluster, without any client protocol.
//!
//! A [`Node`] keeps its identity and log in a directory, talks to its peers, follows the topology and opens a
//! [`Shard`] for each replica that the topology puts on it. Callers hand a shard [`Batch`]es of commands and
//! get replies through a [`ReplySink`]; they ask the [`kvorum_cluster::View`] where a command belongs.
//!
//! Promise: a batch whose replies came back has its writes on a majority, as durably as the cluster is
//! configured; an error says whether the batch certainly did not run, or whether nobody knows.

mod admin;
mod balance;
mod batch;
mod checks;
mod clock;
mod config;
mod contact;
mod forward;
mod gather;
mod handover;
mod identity;
mod membership;
mod meta;
mod metrics;
mod node;
mod platform;
mod proposer;
mod ready;
mod replica;
mod running;
mod shard;
mod stopwatch;
#[cfg(test)]
mod testing;
mod timeline;
mod upload;
mod views;

pub use admin::{
    AdminClient, AdminError, ClusterStatus, CreateCluster, Description, ReplicaStatus, ServerStatus,
    ShardStatus,
};
pub use batch::{Batch, ReplySink};
pub use clock::{SystemTimeSource, TimeSource};
pub use config::{CHUNK_BYTES, LEADER_CALM, NodeConfig, ReadMode, Timing};
pub use contact::{Answer, Call, Contact};
pub use forward::{ForwardError, ForwardedReplies, RunsForwarded};
pub use handover::HandoverError;
pub use identity::IdentityError;
pub use kvorum_raft::metrics::{Buckets, Metrics};
pub use kvorum_raft::wal::WalConfig;
pub use kvorum_raft::{Role, Status};
pub use kvorum_raft::{SnapshotConfig, SnapshotError, SnapshotStats};
pub use node::{Node, ServerIdentity, StartError};
pub use platform::{Observer, Platform};
pub use proposer::SubmitError;
pub use running::RunningError;
pub use shard::{ReadError, Shard};
pub use timeline::{Peer, TIMELINE_LENGTH, TimelineEvent};

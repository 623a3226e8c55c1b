//! How servers reach each other: a [`Transport`] makes links to peers and hands what arrives to an [`Inbound`].
//!
//! A link has three paths. *Control* carries what must not wait: heartbeats, votes, pre-votes, transfers; requests are
//! independent and have a short deadline. *Append* carries entries: in order within a group, frames of all groups
//! interleaved, many requests in flight. openraft takes the heartbeat interval for the time-out of everything it sends, so a
//! heartbeat that waited behind entries would cost the leader its lease. *Snapshot* carries what is long and in no hurry, apart from
//! both: requests are independent, and whoever sends them waits for each reply.
//!
//! Contract of an implementation: a request is delivered at most once, to the server it is meant for or to
//! nobody; appends of one stream arrive in the order they were accepted in or not at all; everything that was accepted is resolved, at
//! the latest when the connection breaks; queues are bounded. It need not deliver anything: Raft repeats.
//!
//! [`TcpTransport`] is the real one, [`LocalNetwork`] connects hosts of one process and can cut them off.

mod connect;
mod framed;
mod inbound;
mod local;
mod tcp;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use kvorum_proto::{peer, raft};
use tokio::sync::oneshot;

pub use connect::Connector;
pub use inbound::{Identity, Inbound, NoteTaker};
pub use local::{LocalNetwork, LocalTransport, Weather};
pub use tcp::{PeerIncoming, PeerService, TcpConfig, TcpTransport};

pub(crate) use inbound::Replica;

/// Largest frame of entries, bytes: larger requests travel in parts, so that one group's cannot hold up another's.
pub const FRAME_BYTES: usize = 256 << 10;

/// Largest entry, bytes: larger values must be proposed in parts.
pub const ENTRY_BYTES: usize = 8 << 20;

/// Largest append request, bytes: one entry of the largest size, or several that are smaller together.
pub(crate) const APPEND_BYTES: usize = ENTRY_BYTES + FRAME_BYTES;

/// Makes links to peers.
pub trait Transport: Send + Sync + 'static {
    /// Tells where incoming requests go and who this server is. Called once, before any link is made.
    fn start(&self, inbound: Inbound);

    /// The link to a server at a peer address. The same server and address give the same link.
    fn link(&self, server: u64, addr: &str) -> Arc<dyn Link>;

    /// Ends all links; requests in flight fail.
    fn stop(&self);
}

/// A path to one peer.
pub trait Link: Send + Sync + 'static {
    /// Sends a request that does not wait behind entries; fails after `timeout` at the latest.
    fn control(
        &self,
        request: peer::ControlRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::ControlReply, LinkError>>;

    /// Queues a request; the first future ends when it is accepted into the queue (order within a stream is the order
    /// in which that happens), what it returns ends with the reply.
    fn append(&self, request: Append) -> BoxFuture<'_, Result<PendingReply, LinkError>>;

    /// Sends a piece of a snapshot, or what belongs to it; fails after `timeout` at the latest.
    fn snapshot(
        &self,
        request: peer::SnapshotRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::SnapshotReply, LinkError>>;
}

/// A request to append, with its address.
#[derive(Clone, Debug)]
pub struct Append {
    /// Group id.
    pub group: u64,
    /// Replica addressed.
    pub to: u64,
    /// Number of the sender's stream for this group.
    pub stream: u64,
    /// What is asked.
    pub request: raft::AppendRequest,
}

/// Why a request was not answered. Whether it arrived is unknown.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection, or it broke.
    #[error("not connected: {0}")]
    Unreachable(Arc<str>),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl LinkError {
    pub(crate) fn unreachable(reason: impl Into<Arc<str>>) -> LinkError {
        LinkError::Unreachable(reason.into())
    }
}

/// The reply to an [`Append`], once it comes.
#[must_use = "the reply comes when this is awaited"]
pub struct PendingReply {
    reply: oneshot::Receiver<raft::AppendReply>,
    /// Runs when nobody waits any more.
    _forget: Option<Forget>,
}

/// What a transport does about a request whose reply nobody waits for.
pub(crate) struct Forget(pub(crate) Box<dyn Fn() + Send + Sync>);

impl Drop for Forget {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl PendingReply {
    pub(crate) fn new(reply: oneshot::Receiver<raft::AppendReply>, forget: Option<Forget>) -> PendingReply {
        PendingReply { reply, _forget: forget }
    }
}

impl Future for PendingReply {
    type Output = Result<raft::AppendReply, LinkError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply)
            .poll(cx)
            .map(|reply| reply.map_err(|_| LinkError::unreachable("connection lost")))
    }
}

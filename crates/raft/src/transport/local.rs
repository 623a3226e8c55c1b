//! Hosts of one process, connected by memory. Any pair can be cut off and healed; a cut breaks what is in flight.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kvorum_proto::{peer, raft};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Append, Inbound, Link, LinkError, PendingReply, Transport};

/// Requests that may wait on one connection.
const QUEUE: usize = 128;

/// Connects the hosts of one process. Clones are the same network. Addresses do not matter.
#[derive(Clone, Default)]
pub struct LocalNetwork {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    hosts: Mutex<HashMap<u64, Inbound>>,
    /// Ordered pairs (from, to) that do not reach each other.
    cuts: Mutex<HashSet<(u64, u64)>>,
    /// Changes whenever something is cut off or leaves, so that connections look whether it was them.
    changes: watch::Sender<u64>,
    /// Connections for appends.
    connections: Mutex<HashMap<(u64, u64), Connection>>,
    delivered: AtomicU64,
}

#[derive(Clone)]
struct Connection {
    requests: mpsc::Sender<(Append, oneshot::Sender<raft::AppendReply>)>,
}

impl LocalNetwork {
    /// A network without hosts.
    pub fn new() -> LocalNetwork {
        LocalNetwork::default()
    }

    /// The transport of one server.
    pub fn transport(&self, server: u64) -> LocalTransport {
        LocalTransport { network: self.clone(), server }
    }

    /// Cuts both directions between two servers.
    pub fn cut(&self, a: u64, b: u64) {
        self.shared.cuts.lock().extend([(a, b), (b, a)]);
        self.shared.changed();
    }

    /// Cuts a server off from all others.
    pub fn isolate(&self, server: u64) {
        let others: Vec<u64> =
            self.shared.hosts.lock().keys().copied().filter(|other| *other != server).collect();
        for other in others {
            self.cut(server, other);
        }
    }

    /// Removes every cut.
    pub fn heal(&self) {
        self.shared.cuts.lock().clear();
        self.shared.changed();
    }

    /// Control requests delivered so far.
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn passes(&self, from: u64, to: u64) -> Result<(), LinkError> {
        if self.cuts.lock().contains(&(from, to)) {
            return Err(LinkError::unreachable("cut off"));
        }
        Ok(())
    }

    fn reach(&self, from: u64, to: u64) -> Result<Inbound, LinkError> {
        self.passes(from, to)?;
        self.hosts.lock().get(&to).cloned().ok_or_else(|| LinkError::unreachable("not there"))
    }

    fn connection(self: &Arc<Self>, from: u64, to: u64) -> Result<Connection, LinkError> {
        let inbound = self.reach(from, to)?;
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(&(from, to))
            && !connection.requests.is_closed()
        {
            return Ok(connection.clone());
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(carry(self.clone(), from, to, inbound, queue));
        let connection = Connection { requests };
        connections.insert((from, to), connection.clone());
        Ok(connection)
    }
}

/// Carries appends from one server to another until they are cut off from each other.
async fn carry(
    shared: Arc<Shared>,
    from: u64,
    to: u64,
    inbound: Inbound,
    mut queue: mpsc::Receiver<(Append, oneshot::Sender<raft::AppendReply>)>,
) {
    let (reply_sender, mut replies) = mpsc::channel(QUEUE);
    let mut session = inbound.session(reply_sender);
    let mut changes = shared.changes.subscribe();
    let mut pending: HashMap<u64, oneshot::Sender<raft::AppendReply>> = HashMap::new();
    let mut number = 0;
    loop {
        tokio::select! {
            biased;
            changed = changes.changed() => {
                if changed.is_err() || shared.reach(from, to).is_err() {
                    return;
                }
            }
            reply = replies.recv() => {
                let Some(peer::Reply { request, append: Some(append) }) = reply else { return };
                if let Some(waiting) = pending.remove(&request) {
                    let _ = waiting.send(append);
                }
            }
            next = queue.recv() => {
                let Some((append, waiting)) = next else { return };
                number += 1;
                pending.retain(|_, waiting| !waiting.is_closed());
                pending.insert(number, waiting);
                let content = Some(peer::frame::Content::Append(append.request));
                let frame = peer::Frame {
                    group: append.group,
                    to: append.to,
                    stream: append.stream,
                    request: number,
                    content,
                };
                if session.feed(frame).is_err() {
                    return;
                }
            }
        }
    }
}

/// A server's end of a [`LocalNetwork`].
pub struct LocalTransport {
    network: LocalNetwork,
    server: u64,
}

impl Transport for LocalTransport {
    fn start(&self, inbound: Inbound) {
        self.network.shared.hosts.lock().insert(self.server, inbound);
    }

    fn link(&self, server: u64, _addr: &str) -> Arc<dyn Link> {
        Arc::new(LocalLink { shared: self.network.shared.clone(), from: self.server, to: server })
    }

    fn stop(&self) {
        self.network.shared.hosts.lock().remove(&self.server);
        self.network.shared.changed();
    }
}

struct LocalLink {
    shared: Arc<Shared>,
    from: u64,
    to: u64,
}

impl Link for LocalLink {
    fn control(
        &self,
        request: peer::ControlRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::ControlReply, LinkError>> {
        let (shared, from, to) = (self.shared.clone(), self.from, self.to);
        async move {
            let inbound = shared.reach(from, to)?;
            shared.delivered.fetch_add(1, Ordering::Relaxed);
            let reply = tokio::time::timeout(timeout, inbound.control(request)).await;
            // The way back may have been cut meanwhile.
            shared.passes(to, from)?;
            reply.map_err(|_| LinkError::TimedOut(timeout))
        }
        .boxed()
    }

    fn append(&self, request: Append) -> BoxFuture<'_, Result<PendingReply, LinkError>> {
        async move {
            let connection = self.shared.connection(self.from, self.to)?;
            let (sender, receiver) = oneshot::channel();
            let sent = connection.requests.send((request, sender)).await;
            sent.map_err(|_| LinkError::unreachable("connection lost"))?;
            Ok(PendingReply::new(receiver, None))
        }
        .boxed()
    }
}

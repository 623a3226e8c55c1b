//! Hosts of one process, connected by memory, under a [`Weather`]: messages take time, overtake each other, arrive twice or not
//! at all; connections break; servers are cut off, in one direction or both, or frozen; bytes of snapshots change.
//!
//! Everything random comes from one seed. Without a weather messages arrive at once. What it leaves out: bandwidth.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kvorum_proto::{peer, raft};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{Append, Inbound, Link, LinkError, PendingReply, Transport};

/// Requests that may wait on one connection.
const QUEUE: usize = 128;

/// What messages go through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Shortest time a message takes.
    pub shortest: Duration,
    /// Longest time; control requests overtake each other within it.
    pub longest: Duration,
    /// Of a thousand control requests and of their replies, so many are lost each.
    pub lost_permille: u64,
    /// Of a thousand control requests, so many arrive twice.
    pub repeated_permille: u64,
    /// Of a thousand pieces of snapshots, so many arrive with a byte changed: what TCP lets through once in a while.
    pub garbled_permille: u64,
    /// Of a thousand appends, so many break their connection.
    pub broken_permille: u64,
}

/// Connects the hosts of one process. Clones are the same network. A host has the number of its server, unless its address was
/// given a number of its own: then whoever is at that address is reached, as in the real world.
#[derive(Clone, Default)]
pub struct LocalNetwork {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The hosts, each with the number of its start.
    hosts: Mutex<BTreeMap<u64, (Inbound, u64)>>,
    /// Numbers of addresses.
    names: Mutex<BTreeMap<String, u64>>,
    /// Ordered pairs (from, to) of which messages of the first do not reach the second.
    cuts: Mutex<BTreeSet<(u64, u64)>>,
    /// What goes to or comes from these waits.
    frozen: Mutex<BTreeSet<u64>>,
    /// Changes with the above, so that connections look whether it was them.
    changes: watch::Sender<u64>,
    /// Connections for appends.
    connections: Mutex<BTreeMap<(u64, u64), Connection>>,
    sky: Mutex<Sky>,
    starts: AtomicU64,
    delivered: AtomicU64,
}

/// The weather and its dice (SplitMix64).
#[derive(Default)]
struct Sky {
    weather: Weather,
    dice: u64,
}

#[derive(Clone)]
struct Connection {
    requests: mpsc::Sender<(Append, oneshot::Sender<raft::AppendReply>)>,
}

impl Sky {
    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, permille: u64) -> bool {
        permille > 0 && self.roll() % 1000 < permille
    }

    fn delay(&mut self) -> Duration {
        let Weather { shortest, longest, .. } = self.weather;
        let span = u64::try_from(longest.saturating_sub(shortest).as_micros()).unwrap_or(u64::MAX);
        if span == 0 { shortest } else { shortest + Duration::from_micros(self.roll() % span) }
    }
}

impl LocalNetwork {
    /// A network without hosts, in fair weather.
    pub fn new() -> LocalNetwork {
        LocalNetwork::default()
    }

    /// The transport of one server.
    pub fn transport(&self, server: u64) -> LocalTransport {
        LocalTransport { network: self.clone(), server }
    }

    /// Gives an address a number: links to it lead to the host of that number, whichever server it is.
    pub fn name(&self, addr: &str, number: u64) {
        self.shared.names.lock().insert(addr.to_owned(), number);
    }

    /// Changes the weather; its randomness comes from `seed` from now on.
    pub fn set_weather(&self, weather: Weather, seed: u64) {
        *self.shared.sky.lock() = Sky { weather, dice: seed };
    }

    /// Cuts both directions between two servers.
    pub fn cut(&self, a: u64, b: u64) {
        self.shared.cuts.lock().extend([(a, b), (b, a)]);
        self.shared.changed();
    }

    /// Cuts one direction.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.shared.cuts.lock().insert((from, to));
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

    /// Holds everything that goes to a server or comes from it, until [`LocalNetwork::thaw`]: it is suspended.
    pub fn freeze(&self, server: u64) {
        self.shared.frozen.lock().insert(server);
        self.shared.changed();
    }

    /// Lets go what was held.
    pub fn thaw(&self, server: u64) {
        self.shared.frozen.lock().remove(&server);
        self.shared.changed();
    }

    /// Removes every cut.
    pub fn heal(&self) {
        self.shared.cuts.lock().clear();
        self.shared.changed();
    }

    /// A server's process is gone, and its connections with it.
    pub fn disconnect(&self, server: u64) {
        self.shared.hosts.lock().remove(&server);
        self.shared.connections.lock().retain(|(from, to), _| *from != server && *to != server);
        self.shared.changed();
    }

    /// Takes a message of the caller's from one server to another: ends when it has arrived, which may be never.
    ///
    /// # Errors
    /// When there is no way.
    pub async fn travel(&self, from: u64, to: u64) -> Result<(), LinkError> {
        self.shared.travel(from, to).await
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

    fn holds(&self, from: u64, to: u64) -> bool {
        let frozen = self.frozen.lock();
        frozen.contains(&from) || frozen.contains(&to)
    }

    fn reach(&self, from: u64, to: u64) -> Result<(Inbound, u64), LinkError> {
        self.passes(from, to)?;
        self.hosts.lock().get(&to).cloned().ok_or_else(|| LinkError::unreachable("not there"))
    }

    async fn travel(&self, from: u64, to: u64) -> Result<(), LinkError> {
        self.passes(from, to)?;
        let (delay, lost) = {
            let mut sky = self.sky.lock();
            let lost = sky.weather.lost_permille;
            (sky.delay(), sky.happens(lost))
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut changes = self.changes.subscribe();
        while self.holds(from, to) {
            // The sender lives as long as the network.
            let _ = changes.changed().await;
        }
        if lost {
            std::future::pending::<()>().await;
        }
        self.passes(from, to)
    }

    fn garble(&self, mut request: peer::SnapshotRequest) -> peer::SnapshotRequest {
        let mut sky = self.sky.lock();
        let permille = sky.weather.garbled_permille;
        if let Some(peer::snapshot_request::Request::Chunk(chunk)) = &mut request.request
            && !chunk.content.is_empty()
            && sky.happens(permille)
        {
            let mut content = chunk.content.to_vec();
            let at = sky.roll() % content.len() as u64;
            content[at as usize] ^= 1 << (sky.roll() % 8);
            chunk.content = content.into();
        }
        request
    }

    fn connection(self: &Arc<Self>, from: u64, to: u64) -> Result<Connection, LinkError> {
        let (inbound, start) = self.reach(from, to)?;
        // Replies need the way back.
        self.passes(to, from)?;
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(&(from, to))
            && !connection.requests.is_closed()
        {
            return Ok(connection.clone());
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let carrier = Carrier { shared: self.clone(), from, to, start };
        tokio::spawn(carrier.carry(inbound, queue));
        let connection = Connection { requests };
        connections.insert((from, to), connection.clone());
        Ok(connection)
    }
}

/// Carries appends from one server to another, and their replies back, in order, until something is in the way.
struct Carrier {
    shared: Arc<Shared>,
    from: u64,
    to: u64,
    /// Which start of the receiver it is connected to.
    start: u64,
}

/// Messages on their way in one direction, in order, each with the time of its arrival.
struct Lane<T> {
    messages: VecDeque<(Instant, T)>,
}

impl<T> Lane<T> {
    fn put(&mut self, delay: Duration, message: T) {
        let arrival = Instant::now() + delay;
        let arrival = self.messages.back().map_or(arrival, |(last, _)| arrival.max(*last));
        self.messages.push_back((arrival, message));
    }

    /// The next message, once it has arrived.
    async fn next(&mut self) -> Option<T> {
        match self.messages.front() {
            Some((arrival, _)) => tokio::time::sleep_until(*arrival).await,
            None => std::future::pending().await,
        }
        self.messages.pop_front().map(|(_, message)| message)
    }
}

impl Carrier {
    fn is_broken(&self) -> bool {
        let gone = self.shared.reach(self.from, self.to).map_or(true, |(_, start)| start != self.start);
        gone || self.shared.passes(self.to, self.from).is_err()
    }

    async fn carry(
        self,
        inbound: Inbound,
        mut queue: mpsc::Receiver<(Append, oneshot::Sender<raft::AppendReply>)>,
    ) {
        let (reply_sender, mut replies) = mpsc::channel(QUEUE);
        let mut session = inbound.session(reply_sender);
        let mut changes = self.shared.changes.subscribe();
        let mut pending: HashMap<u64, oneshot::Sender<raft::AppendReply>> = HashMap::new();
        let mut number = 0;
        let (mut out, mut back) = (Lane { messages: VecDeque::new() }, Lane { messages: VecDeque::new() });
        let mut held = self.shared.holds(self.from, self.to);
        loop {
            tokio::select! {
                biased;
                _ = changes.changed() => {
                    if self.is_broken() {
                        return;
                    }
                    held = self.shared.holds(self.from, self.to);
                }
                Some((request, append)) = back.next(), if !held => {
                    if let Some(waiting) = pending.remove(&request) {
                        let _ = waiting.send(append);
                    }
                }
                Some(frame) = out.next(), if !held => {
                    if session.feed(frame).is_err() {
                        return;
                    }
                }
                reply = replies.recv() => {
                    let Some(peer::Reply { request, append: Some(append) }) = reply else { return };
                    back.put(self.shared.sky.lock().delay(), (request, append));
                }
                next = queue.recv(), if out.messages.len() < QUEUE => {
                    let Some((append, waiting)) = next else { return };
                    let delay = {
                        let mut sky = self.shared.sky.lock();
                        let broken = sky.weather.broken_permille;
                        if sky.happens(broken) {
                            return;
                        }
                        sky.delay()
                    };
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
                    out.put(delay, frame);
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
        let start = self.network.shared.starts.fetch_add(1, Ordering::Relaxed);
        self.network.shared.hosts.lock().insert(self.server, (inbound, start));
    }

    fn link(&self, server: u64, addr: &str) -> Arc<dyn Link> {
        let to = self.network.shared.names.lock().get(addr).copied().unwrap_or(server);
        Arc::new(LocalLink { shared: self.network.shared.clone(), from: self.server, to })
    }

    fn stop(&self) {
        self.network.disconnect(self.server);
    }
}

struct LocalLink {
    shared: Arc<Shared>,
    from: u64,
    to: u64,
}

/// The outcome of an exchange, if it ends in time.
async fn within<T>(
    timeout: Duration,
    exchange: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let outcome = tokio::time::timeout(timeout, exchange).await;
    outcome.unwrap_or(Err(LinkError::TimedOut(timeout)))
}

impl Link for LocalLink {
    fn control(
        &self,
        request: peer::ControlRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::ControlReply, LinkError>> {
        let (shared, from, to) = (self.shared.clone(), self.from, self.to);
        let exchange = async move {
            shared.travel(from, to).await?;
            let (inbound, _) = shared.reach(from, to)?;
            shared.delivered.fetch_add(1, Ordering::Relaxed);
            let repeated = {
                let mut sky = shared.sky.lock();
                let permille = sky.weather.repeated_permille;
                sky.happens(permille).then(|| sky.delay())
            };
            if let Some(later) = repeated {
                let (inbound, request) = (inbound.clone(), request.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(later).await;
                    let _nobody_asked = inbound.control(request).await;
                });
            }
            // What has arrived is answered, whether or not somebody still waits.
            let answering = tokio::spawn(async move { inbound.control(request).await });
            let reply = answering.await.map_err(|_| LinkError::unreachable("the receiver is gone"))?;
            shared.travel(to, from).await?;
            Ok(reply)
        };
        within(timeout, exchange).boxed()
    }

    fn snapshot(
        &self,
        request: peer::SnapshotRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::SnapshotReply, LinkError>> {
        let (shared, from, to) = (self.shared.clone(), self.from, self.to);
        let exchange = async move {
            shared.travel(from, to).await?;
            let (inbound, _) = shared.reach(from, to)?;
            let request = shared.garble(request);
            let reply = inbound.snapshot(request).await;
            shared.travel(to, from).await?;
            Ok(reply)
        };
        within(timeout, exchange).boxed()
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

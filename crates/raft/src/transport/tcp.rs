//! The real transport, three connections per peer over TCP.
//!
//! The *append* and the *control* connection are bare byte streams (`framed.rs`). Each is kept up by a task of its own, which connects again after a short,
//! growing pause and looks the address up anew each time. When one breaks, everything in flight on it fails at once. The *snapshot* connection is a
//! tonic channel that connects when it is used.
//!
//! The receiving side is [`PeerIncoming`], which serves the byte streams and leaves all else to tonic, and [`PeerService`], a tonic service. The
//! owner of the peer port mounts both.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, Stream, future::BoxFuture};
use kvorum_proto::{
    peer::{
        self, Frame, Question, frame::Content, open::Lane as LaneKind, peer_client::PeerClient,
        peer_server::PeerServer,
    },
    raft,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{AbortHandle, JoinSet},
};
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    Append, Connector, FRAME_BYTES, Forget, Inbound, Link, LinkError, PendingReply, Transport,
    framed::{self, Outbox},
    inbound::Replies,
};

/// Bytes that HTTP/2 lets one stream, and all streams of a connection, have under way.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Control requests of one peer that may be under way here. What is more gets no answer: after a stall there are many, and all are late.
const CONTROL_REQUESTS: usize = 1024;

/// Pause after a connection could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const CLUSTER_KEY: &str = "kvorum-cluster";
const FROM_KEY: &str = "kvorum-from";
const TO_KEY: &str = "kvorum-to";

/// Settings of a [`TcpTransport`].
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Longest time for looking up an address and connecting to it. Default 1 s.
    pub connect_timeout: Duration,
    /// First and longest pause before connecting again; it doubles in between. Default 25 ms and 400 ms.
    pub reconnect_pause: (Duration, Duration),
    /// On the snapshot connection while it is used, time without a sign of life after which the peer is asked for one, and time it has to give it.
    /// Default 500 ms and 1 s.
    pub keep_alive: (Duration, Duration),
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig {
            connect_timeout: Duration::from_secs(1),
            reconnect_pause: (Duration::from_millis(25), Duration::from_millis(400)),
            keep_alive: (Duration::from_millis(500), Duration::from_secs(1)),
        }
    }
}

/// Links over TCP.
pub struct TcpTransport {
    config: TcpConfig,
    connector: Connector,
    inbound: OnceLock<Inbound>,
    /// By server and address.
    links: Mutex<HashMap<(u64, String), Arc<TcpLink>>>,
}

impl TcpTransport {
    /// A transport without links, which connects by the announced addresses.
    pub fn new(config: TcpConfig) -> TcpTransport {
        let connector = Connector::new(config.connect_timeout, BTreeMap::new());
        TcpTransport::with_connector(config, connector)
    }

    /// The same, connecting as `connector` does, whose time-out counts.
    pub fn with_connector(config: TcpConfig, connector: Connector) -> TcpTransport {
        TcpTransport { config, connector, inbound: OnceLock::new(), links: Mutex::default() }
    }
}

impl Transport for TcpTransport {
    fn start(&self, inbound: Inbound) {
        // A transport serves one host; a second start would be a second host and is ignored.
        let _ = self.inbound.set(inbound);
    }

    fn link(&self, server: u64, addr: &str) -> Arc<dyn Link> {
        let mut links = self.links.lock();
        // A link to an old address goes when nobody else holds it any more.
        links.retain(|(other, old), link| *other != server || old == addr || Arc::strong_count(link) > 1);
        if let Some(link) = links.get(&(server, addr.to_owned())) {
            return link.clone();
        }
        let inbound = self.inbound.get().cloned().unwrap_or_default();
        let target = Target {
            server,
            addr: addr.to_owned(),
            config: self.config.clone(),
            connector: self.connector.clone(),
            inbound,
        };
        let link = Arc::new(TcpLink::open(target));
        links.insert((server, addr.to_owned()), link.clone());
        link
    }

    fn stop(&self) {
        for link in self.links.lock().drain() {
            link.1.close();
        }
    }
}

/// A peer: where it is, and who asks.
struct Target {
    server: u64,
    addr: String,
    config: TcpConfig,
    connector: Connector,
    inbound: Inbound,
}

impl Target {
    /// To be used with the connector, which has its own time-out.
    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        let (interval, timeout) = self.config.keep_alive;
        Ok(Endpoint::from_shared(format!("http://{}", self.addr))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout))
    }

    async fn connect(&self, lane: LaneKind) -> Result<framed::Connection, String> {
        let stream = self.connector.connect(&self.addr).await.map_err(|error| error.to_string())?;
        framed::open(stream, &self.open(lane)).await
    }

    /// The greeting of a byte stream: who asks and who is meant.
    fn open(&self, lane: LaneKind) -> peer::Open {
        let (from, cluster) = self.inbound.identity().get();
        peer::Open { lane: lane.into(), cluster: cluster.to_string(), from, to: self.server }
    }

    /// The same for a call.
    fn address<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let (from, cluster) = self.inbound.identity().get();
        let metadata = request.metadata_mut();
        metadata.insert(FROM_KEY, from.into());
        metadata.insert(TO_KEY, self.server.into());
        if let Ok(cluster) = cluster.parse() {
            metadata.insert(CLUSTER_KEY, cluster);
        }
        request
    }
}

struct TcpLink {
    target: Arc<Target>,
    /// Connects when first used, and again after it broke.
    snapshots: Option<Channel>,
    append: Arc<Lane<peer::Reply>>,
    control: Arc<Lane<peer::Answer>>,
    keepers: [AbortHandle; 2],
}

/// The sending end of a byte stream to a peer; `A` is what answers on it.
struct Lane<A: Answered> {
    state: watch::Sender<State>,
    /// Who waits for an answer, by request number.
    pending: Mutex<HashMap<u64, oneshot::Sender<A::Body>>>,
    next_request: AtomicU64,
}

#[derive(Clone)]
enum State {
    Connecting,
    /// Until the next attempt.
    Down,
    Up(Outbox),
}

/// A message that answers a request.
trait Answered: Message + Default + 'static {
    type Body: Send + 'static;
    const LANE: LaneKind;
    /// The number of the request, and the answer.
    fn parts(self) -> (u64, Option<Self::Body>);
}

impl Answered for peer::Reply {
    type Body = raft::AppendReply;
    const LANE: LaneKind = LaneKind::Append;

    fn parts(self) -> (u64, Option<raft::AppendReply>) {
        (self.request, self.append)
    }
}

impl Answered for peer::Answer {
    type Body = peer::ControlReply;
    const LANE: LaneKind = LaneKind::Control;

    fn parts(self) -> (u64, Option<peer::ControlReply>) {
        (self.request, self.control)
    }
}

impl<A: Answered> Lane<A> {
    fn new() -> Arc<Lane<A>> {
        Arc::new(Lane {
            state: watch::Sender::new(State::Connecting),
            pending: Mutex::default(),
            next_request: AtomicU64::new(1),
        })
    }

    /// Draws a number and waits for the answer to it: what is returned does, until it is dropped.
    fn expect(self: &Arc<Self>) -> (u64, oneshot::Receiver<A::Body>, Forget) {
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().insert(number, sender);
        let lane = self.clone();
        let forget = move || {
            lane.pending.lock().remove(&number);
        };
        (number, receiver, Forget(Box::new(forget)))
    }

    /// The connection, if it is up.
    fn connection(&self) -> Result<Outbox, LinkError> {
        match &*self.state.borrow() {
            State::Up(outbox) => Ok(outbox.clone()),
            State::Connecting | State::Down => Err(LinkError::unreachable("connecting")),
        }
    }

    /// The same, after an attempt that is under way.
    async fn connected(&self) -> Result<Outbox, LinkError> {
        let mut state = self.state.subscribe();
        // Fails only when the sender is gone, and `self` has it.
        let _ = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        self.connection()
    }

    /// Keeps the connection up until it is aborted.
    async fn keep_connected(self: Arc<Self>, target: Arc<Target>) {
        let (first_pause, longest_pause) = target.config.reconnect_pause;
        let (server, addr, lane) = (target.server, target.addr.as_str(), A::LANE.as_str_name());
        let mut pause = first_pause;
        let mut warned = false;
        loop {
            self.state.send_replace(State::Connecting);
            match target.connect(A::LANE).await {
                Ok(connection) => {
                    pause = first_pause;
                    warned = false;
                    tracing::info!(server, addr, lane, "connected to peer");
                    self.state.send_replace(State::Up(connection.outbox()));
                    let reason = connection.run(|message| self.deliver(message)).await;
                    // Whoever waits for an answer hears that the connection is gone.
                    self.close();
                    tracing::info!(server, addr, lane, reason, "lost the connection to peer");
                }
                Err(reason) => {
                    self.state.send_replace(State::Down);
                    // Once per outage: a peer that is down would fill the log.
                    if !warned {
                        tracing::warn!(server, addr, lane, reason, "cannot connect to peer");
                        warned = true;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest_pause);
        }
    }

    /// Nobody keeps the connection up any more.
    fn close(&self) {
        self.state.send_replace(State::Down);
        self.pending.lock().clear();
    }

    /// Takes an answer to who waits for it.
    fn deliver(&self, message: Bytes) -> Result<(), String> {
        let (number, body) = A::decode(message).map_err(|error| error.to_string())?.parts();
        let waiting = self.pending.lock().remove(&number);
        if let (Some(waiting), Some(body)) = (waiting, body) {
            // Nobody may wait any more.
            let _ = waiting.send(body);
        }
        Ok(())
    }
}

impl TcpLink {
    fn open(target: Target) -> TcpLink {
        let target = Arc::new(target);
        let snapshots = match target.endpoint() {
            Ok(endpoint) => Some(endpoint.connect_with_connector_lazy(target.connector.clone())),
            Err(error) => {
                tracing::error!(server = target.server, addr = target.addr, %error, "not a peer address");
                None
            }
        };
        let (append, control) = (Lane::new(), Lane::new());
        let keepers = [
            tokio::spawn(append.clone().keep_connected(target.clone())).abort_handle(),
            tokio::spawn(control.clone().keep_connected(target.clone())).abort_handle(),
        ];
        TcpLink { target, snapshots, append, control, keepers }
    }

    fn close(&self) {
        for keeper in &self.keepers {
            keeper.abort();
        }
        self.append.close();
        self.control.close();
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link for TcpLink {
    fn control(
        &self,
        request: peer::ControlRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::ControlReply, LinkError>> {
        let lane = self.control.clone();
        let asking = async move {
            let connection = lane.connected().await?;
            let (number, reply, _forget) = lane.expect();
            // What does not go out at once would be late.
            if !connection.has_room()
                || !connection.push(&Question { request: number, control: Some(request) })
            {
                return Err(LinkError::unreachable("connection lost"));
            }
            reply.await.map_err(|_| LinkError::unreachable("connection lost"))
        };
        async move { tokio::time::timeout(timeout, asking).await.unwrap_or(Err(LinkError::TimedOut(timeout))) }
            .boxed()
    }

    fn snapshot(
        &self,
        request: peer::SnapshotRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::SnapshotReply, LinkError>> {
        let channel = self.snapshots.clone();
        let request = self.target.address(request);
        async move {
            let channel = channel.ok_or_else(|| LinkError::unreachable("not a peer address"))?;
            let mut client = PeerClient::new(channel);
            match tokio::time::timeout(timeout, client.snapshot(request)).await {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(LinkError::unreachable(status_text(&status))),
                Err(_) => Err(LinkError::TimedOut(timeout)),
            }
        }
        .boxed()
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<PendingReply, LinkError>> {
        async move {
            let connection = self.append.connection()?;
            let (number, reply, forget) = self.append.expect();
            let reply = PendingReply::new(reply, Some(forget));
            let Append { group, to, stream, request } = append;
            for content in into_frames(request) {
                let frame = Frame { group, to, stream, request: number, content: Some(content) };
                if !connection.room().await || !connection.push(&frame) {
                    return Err(LinkError::unreachable("connection lost"));
                }
            }
            Ok(reply)
        }
        .boxed()
    }
}

/// The frames of a request: itself when it is small, else its encoding in parts.
fn into_frames(request: raft::AppendRequest) -> impl Iterator<Item = Content> + Send {
    let bytes = request.encoded_len();
    let (whole, mut rest) = if bytes <= FRAME_BYTES {
        (Some(Content::Append(request)), Bytes::new())
    } else {
        (None, Bytes::from(request.encode_to_vec()))
    };
    let parts = std::iter::from_fn(move || {
        if rest.is_empty() {
            None
        } else if rest.len() > FRAME_BYTES {
            Some(Content::Part(rest.split_to(FRAME_BYTES)))
        } else {
            Some(Content::LastPart(std::mem::take(&mut rest)))
        }
    });
    whole.into_iter().chain(parts)
}

/// What arrives at the peer port: serves the byte streams of peers and is a stream of all other connections, for tonic.
/// Everything that it serves ends when it is dropped. Made by [`Host::peer_incoming`](crate::Host::peer_incoming).
pub struct PeerIncoming {
    listener: TcpListener,
    inbound: Inbound,
    connections: JoinSet<Option<TcpStream>>,
}

impl PeerIncoming {
    pub(crate) fn new(listener: TcpListener, inbound: Inbound) -> PeerIncoming {
        PeerIncoming { listener, inbound, connections: JoinSet::new() }
    }

    /// The stream.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<TcpStream>> + Send {
        futures::stream::unfold(self, |mut incoming| async move {
            let stream = incoming.next().await;
            Some((Ok(stream), incoming))
        })
    }

    async fn next(&mut self) -> TcpStream {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        self.connections.spawn(receive(stream, self.inbound.clone()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no connection of a peer was accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(done) = self.connections.join_next() => {
                    if let Ok(Some(stream)) = done {
                        return stream;
                    }
                }
            }
        }
    }
}

/// Serves a connection until it ends, unless it is one for tonic.
async fn receive(stream: TcpStream, inbound: Inbound) -> Option<TcpStream> {
    // Fails for a connection that is gone already.
    let _ = stream.set_nodelay(true);
    if !framed::is_framed(&stream).await.ok()? {
        return Some(stream);
    }
    let identity = inbound.identity();
    let accepting = framed::accept(stream, |open| identity.check(open.to, &open.cluster));
    match accepting.await {
        Ok((connection, open)) => {
            let reason = tokio::select! {
                reason = serve(connection, open.lane(), &inbound) => reason,
                reason = identity.refuses(open.to, &open.cluster) => reason,
                () = inbound.closed() => "closing".to_owned(),
            };
            tracing::debug!(reason, "a connection of a peer ended");
        }
        Err(reason) => tracing::debug!(reason, "a connection of a peer was refused"),
    }
    None
}

async fn serve(connection: framed::Connection, lane: LaneKind, inbound: &Inbound) -> String {
    let outbox = connection.outbox();
    if lane == LaneKind::Append {
        // The session and its streams end with the connection.
        let mut session = inbound.session(outbox);
        let take = |message: Bytes| {
            // Entries are kept, and each would keep the buffer that it was read into, with what else came in it.
            let message = Bytes::copy_from_slice(&message);
            let frame = Frame::decode(message).map_err(|error| error.to_string())?;
            session.feed(frame).map_err(|error| error.to_string())
        };
        return connection.run(take).await;
    }
    let under_way = Arc::new(AtomicUsize::new(0));
    let take = |message| {
        let Question { request, control } = Question::decode(message).map_err(|error| error.to_string())?;
        let control = control.unwrap_or_default();
        if under_way.fetch_add(1, Ordering::Relaxed) >= CONTROL_REQUESTS || !outbox.has_room() {
            under_way.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let (inbound, outbox, under_way) = (inbound.clone(), outbox.clone(), under_way.clone());
        // Independent of each other; a vote may wait for the disk. What was begun is ended, whether or not somebody still waits.
        tokio::spawn(async move {
            let control = Some(inbound.control(control).await);
            outbox.push(&peer::Answer { request, control });
            under_way.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(())
    };
    connection.run(take).await
}

impl Replies for Outbox {
    async fn send(&self, reply: peer::Reply) -> bool {
        self.room().await && self.push(&reply)
    }

    fn try_send(&self, reply: peer::Reply) {
        if self.has_room() {
            self.push(&reply);
        }
    }
}

/// The receiving side: a tonic service for the peer port. Made by [`Host::peer_service`](crate::Host::peer_service).
#[derive(Clone)]
pub struct PeerService {
    inbound: Inbound,
}

impl PeerService {
    pub(crate) fn new(inbound: Inbound) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { inbound })
    }

    /// Refuses what is meant for somebody else: addresses are reused, identities are not.
    fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or("");
        let to = text(TO_KEY).parse().unwrap_or(0);
        self.inbound.identity().check(to, text(CLUSTER_KEY)).map_err(Status::failed_precondition)
    }
}

#[tonic::async_trait]
impl peer::peer_server::Peer for PeerService {
    async fn snapshot(
        &self,
        request: Request<peer::SnapshotRequest>,
    ) -> Result<Response<peer::SnapshotReply>, Status> {
        self.check(request.metadata())?;
        Ok(Response::new(self.inbound.snapshot(request.into_inner()).await))
    }
}

fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize) -> raft::AppendRequest {
        let payload = Bytes::from(vec![7; bytes]);
        raft::AppendRequest {
            entries: vec![raft::Entry { term: 1, index: 1, payload }],
            ..Default::default()
        }
    }

    /// Serves the peer service until the returned runtime goes.
    fn serve(inbound: &Inbound) -> (std::net::SocketAddr, tokio::runtime::Runtime) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (service, inbound) = (PeerService::new(inbound.clone()), inbound.clone());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = PeerIncoming::new(listener, inbound).into_stream();
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        (address, runtime)
    }

    #[tokio::test]
    async fn a_peer_is_found_again_where_its_name_has_moved_to() {
        let inbound = Inbound::default();
        let (first, first_runs) = serve(&inbound);
        let (second, second_runs) = serve(&inbound);
        let current = Arc::new(Mutex::new(first));
        let lookup = {
            let current = Arc::clone(&current);
            move |_| {
                let address = *current.lock();
                async move { Ok(vec![address]) }.boxed()
            }
        };
        let connector = Connector::with_lookup(Duration::from_secs(1), BTreeMap::new(), lookup);
        let transport = TcpTransport::with_connector(TcpConfig::default(), connector);
        transport.start(inbound);
        let link = transport.link(0, "name:7198");
        let ask = || {
            let request = peer::ControlRequest { group: 1, to: 1, request: None };
            link.control(request, Duration::from_secs(1))
        };
        ask().await.unwrap();
        first_runs.shutdown_background();
        *current.lock() = second;
        let mut tries = 0;
        while let Err(error) = ask().await {
            tries += 1;
            assert!(tries < 100, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        second_runs.shutdown_background();
    }

    #[tokio::test]
    async fn what_was_meant_for_nobody_in_particular_ends_when_the_server_becomes_somebody_else() {
        let served = Inbound::default();
        let (address, runs) = serve(&served);
        let inbound = Inbound::default();
        inbound.identity().set(1, "a");
        let transport = TcpTransport::new(TcpConfig::default());
        transport.start(inbound);
        let link = transport.link(2, &address.to_string());
        let ask = || {
            let request = peer::ControlRequest { group: 1, to: 1, request: None };
            link.control(request, Duration::from_secs(1))
        };
        ask().await.unwrap();
        served.identity().set(2, "a");
        ask().await.unwrap();
        served.identity().set(2, "b");
        let mut tries = 0;
        while ask().await.is_ok() {
            tries += 1;
            assert!(tries < 100, "a server of another cluster answers");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ask().await.is_err(), "it answers again");
        runs.shutdown_background();
    }

    #[test]
    fn large_requests_travel_in_parts_that_make_them_whole_again() {
        let small: Vec<Content> = into_frames(request(1000)).collect();
        assert!(matches!(&small[..], [Content::Append(append)] if *append == request(1000)));

        let mut whole = Vec::new();
        let mut last = false;
        for content in into_frames(request(3 * FRAME_BYTES)) {
            assert!(!last);
            let part = match content {
                Content::Part(part) => part,
                Content::LastPart(part) => {
                    last = true;
                    part
                }
                Content::Append(_) => panic!("too large for one frame"),
            };
            assert!(part.len() <= FRAME_BYTES);
            whole.extend_from_slice(&part);
        }
        assert!(last);
        assert_eq!(raft::AppendRequest::decode(&whole[..]).unwrap(), request(3 * FRAME_BYTES));
    }
}

//! The real transport: tonic over TCP, three connections per peer.
//!
//! The *control* and the *snapshot* connection are tonic channels that connect when they are used. The *append* connection carries one bidirectional stream; it is
//! kept up by a task of its own, which connects again after a short, growing pause and looks the address up anew each time.
//! When it breaks, everything in flight on it fails at once. HTTP/2 pings find out about dead peers.
//!
//! The receiving side is [`PeerService`], a tonic service that the owner of the peer port mounts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use kvorum_proto::{
    peer::{
        self, Frame, FrameBatch, Reply, ReplyBatch, frame::Content, peer_client::PeerClient,
        peer_server::PeerServer,
    },
    raft,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    APPEND_BYTES, Append, Connector, FRAME_BYTES, Forget, Inbound, Link, LinkError, PendingReply, Transport,
};

/// Frames that may wait on one connection; a frame has at most [`FRAME_BYTES`].
const QUEUE_FRAMES: usize = 64;

/// Replies that may wait on one connection.
const QUEUE_REPLIES: usize = 1024;

/// Bytes that HTTP/2 lets one stream, and all streams of a connection, have under way.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

const CLUSTER_KEY: &str = "kvorum-cluster";
const FROM_KEY: &str = "kvorum-from";
const TO_KEY: &str = "kvorum-to";

/// Settings of a [`GrpcTransport`].
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// Longest time for looking up an address and connecting to it. Default 1 s.
    pub connect_timeout: Duration,
    /// First and longest pause before connecting again; it doubles in between. Default 25 ms and 400 ms.
    pub reconnect_pause: (Duration, Duration),
    /// Time without a sign of life after which the peer is asked for one, and time it has to give it.
    /// Default 500 ms and 1 s.
    pub keep_alive: (Duration, Duration),
}

impl Default for GrpcConfig {
    fn default() -> GrpcConfig {
        GrpcConfig {
            connect_timeout: Duration::from_secs(1),
            reconnect_pause: (Duration::from_millis(25), Duration::from_millis(400)),
            keep_alive: (Duration::from_millis(500), Duration::from_secs(1)),
        }
    }
}

/// Links over TCP.
pub struct GrpcTransport {
    config: GrpcConfig,
    connector: Connector,
    inbound: OnceLock<Inbound>,
    /// By server; the newest address counts.
    links: Mutex<HashMap<u64, Arc<GrpcLink>>>,
}

impl GrpcTransport {
    /// A transport without links, which connects by the announced addresses.
    pub fn new(config: GrpcConfig) -> GrpcTransport {
        let connector = Connector::new(config.connect_timeout, BTreeMap::new());
        GrpcTransport::with_connector(config, connector)
    }

    /// The same, connecting as `connector` does, whose time-out counts.
    pub fn with_connector(config: GrpcConfig, connector: Connector) -> GrpcTransport {
        GrpcTransport { config, connector, inbound: OnceLock::new(), links: Mutex::default() }
    }
}

impl Transport for GrpcTransport {
    fn start(&self, inbound: Inbound) {
        // A transport serves one host; a second start would be a second host and is ignored.
        let _ = self.inbound.set(inbound);
    }

    fn link(&self, server: u64, addr: &str) -> Arc<dyn Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&server).filter(|link| link.target.addr == addr) {
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
        let link = Arc::new(GrpcLink::open(target));
        // A link to an old address goes with the last client that holds it.
        links.insert(server, link.clone());
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
    config: GrpcConfig,
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
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true))
    }

    /// Says who asks and who is meant.
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

struct GrpcLink {
    target: Arc<Target>,
    /// Connects when first used, and again after it broke.
    control: Option<Channel>,
    /// The same, for what is long.
    snapshots: Option<Channel>,
    connection: Arc<Mutex<Option<Connection>>>,
    next_request: AtomicU64,
    keeper: AbortHandle,
}

/// The append connection while it is up.
#[derive(Clone)]
struct Connection {
    frames: mpsc::Sender<Frame>,
    pending: Pending,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<raft::AppendReply>>>>;

impl GrpcLink {
    fn open(target: Target) -> GrpcLink {
        let target = Arc::new(target);
        let (control, snapshots) = match target.endpoint() {
            Ok(endpoint) => {
                let connect = || endpoint.connect_with_connector_lazy(target.connector.clone());
                (Some(connect()), Some(connect()))
            }
            Err(error) => {
                tracing::error!(server = target.server, addr = target.addr, %error, "not a peer address");
                (None, None)
            }
        };
        let connection = Arc::new(Mutex::new(None));
        let keeper = tokio::spawn(keep_connected(target.clone(), connection.clone())).abort_handle();
        GrpcLink { target, control, snapshots, connection, next_request: AtomicU64::new(1), keeper }
    }

    fn close(&self) {
        self.keeper.abort();
        self.connection.lock().take();
    }
}

impl Drop for GrpcLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link for GrpcLink {
    fn control(
        &self,
        request: peer::ControlRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer::ControlReply, LinkError>> {
        let channel = self.control.clone();
        let request = self.target.address(request);
        async move {
            let channel = channel.ok_or_else(|| LinkError::unreachable("not a peer address"))?;
            let mut client = PeerClient::new(channel);
            match tokio::time::timeout(timeout, client.control(request)).await {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(LinkError::unreachable(status_text(&status))),
                Err(_) => Err(LinkError::TimedOut(timeout)),
            }
        }
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
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        async move {
            let connection = self.connection.lock().clone();
            let Some(Connection { frames, pending }) = connection else {
                return Err(LinkError::unreachable("connecting"));
            };
            let (sender, receiver) = oneshot::channel();
            pending.lock().insert(number, sender);
            let forget = {
                let pending = pending.clone();
                Forget(Box::new(move || {
                    pending.lock().remove(&number);
                }))
            };
            let reply = PendingReply::new(receiver, Some(forget));
            let Append { group, to, stream, request } = append;
            for content in into_frames(request) {
                let frame = Frame { group, to, stream, request: number, content: Some(content) };
                frames.send(frame).await.map_err(|_| LinkError::unreachable("connection lost"))?;
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

/// Keeps the append connection of a link up until it is aborted.
async fn keep_connected(target: Arc<Target>, slot: Arc<Mutex<Option<Connection>>>) {
    let (first_pause, longest_pause) = target.config.reconnect_pause;
    let mut pause = first_pause;
    let mut warned = false;
    loop {
        match connect(&target).await {
            Ok((connection, replies)) => {
                pause = first_pause;
                warned = false;
                tracing::info!(server = target.server, addr = target.addr, "connected to peer");
                let pending = connection.pending.clone();
                *slot.lock() = Some(connection);
                let reason = deliver(replies, &pending).await;
                slot.lock().take();
                // Whoever waits for one of these hears that the connection is gone.
                pending.lock().clear();
                tracing::info!(
                    server = target.server,
                    addr = target.addr,
                    reason,
                    "lost the connection to peer"
                );
            }
            Err(reason) => {
                // Once per outage: a peer that is down would fill the log.
                if !warned {
                    tracing::warn!(
                        server = target.server,
                        addr = target.addr,
                        reason,
                        "cannot connect to peer"
                    );
                    warned = true;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest_pause);
    }
}

async fn connect(target: &Target) -> Result<(Connection, Streaming<ReplyBatch>), String> {
    let connecting = async {
        let endpoint = target.endpoint().map_err(|error| error_text(&error))?;
        let channel = endpoint.connect_with_connector(target.connector.clone()).await;
        let channel = channel.map_err(|error| error_text(&error))?;
        let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
        let request = target.address(batches(queue));
        let mut client = PeerClient::new(channel).max_decoding_message_size(APPEND_BYTES);
        let replies = client.exchange(request).await.map_err(|status| status_text(&status))?;
        Ok((Connection { frames, pending: Pending::default() }, replies.into_inner()))
    };
    // The handshake may take its time, too.
    let deadline = target.config.connect_timeout * 2;
    tokio::time::timeout(deadline, connecting).await.unwrap_or_else(|_| Err("timed out".to_owned()))
}

/// Takes replies to who waits for them until the connection ends; returns why it did.
async fn deliver(mut replies: Streaming<ReplyBatch>, pending: &Pending) -> String {
    loop {
        match replies.next().await {
            Some(Ok(batch)) => {
                let mut pending = pending.lock();
                for Reply { request, append } in batch.replies {
                    if let (Some(waiting), Some(append)) = (pending.remove(&request), append) {
                        // Nobody may wait any more.
                        let _ = waiting.send(append);
                    }
                }
            }
            Some(Err(status)) => return status_text(&status),
            None => return "closed by the peer".to_owned(),
        }
    }
}

/// What waits in the queue, joined into messages of about one frame's size.
fn batches(queue: mpsc::Receiver<Frame>) -> impl Stream<Item = FrameBatch> + Send {
    stream::unfold(queue, |mut queue| async move {
        let first = queue.recv().await?;
        let mut bytes = first.encoded_len();
        let mut frames = vec![first];
        while bytes < FRAME_BYTES {
            let Ok(frame) = queue.try_recv() else { break };
            bytes += frame.encoded_len();
            frames.push(frame);
        }
        Some((FrameBatch { frames }, queue))
    })
}

/// The receiving side: a tonic service for the peer port. Made by [`Host::peer_service`](crate::Host::peer_service).
#[derive(Clone)]
pub struct PeerService {
    inbound: Inbound,
}

impl PeerService {
    pub(crate) fn new(inbound: Inbound) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { inbound }).max_decoding_message_size(APPEND_BYTES)
    }

    /// Refuses what is meant for somebody else: addresses are reused, identities are not.
    fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or("");
        let to = text(TO_KEY).parse().unwrap_or(0);
        let cluster = text(CLUSTER_KEY);
        let identity = self.inbound.identity();
        if identity.accepts(to, cluster) {
            Ok(())
        } else {
            let (server, here) = identity.get();
            let reason =
                format!("this is server {server} of cluster {here}, not server {to} of cluster {cluster}");
            Err(Status::failed_precondition(reason))
        }
    }
}

#[tonic::async_trait]
impl peer::peer_server::Peer for PeerService {
    type ExchangeStream = BoxStream<'static, Result<ReplyBatch, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<FrameBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        self.check(request.metadata())?;
        let mut batches = request.into_inner();
        let (replies, queue) = mpsc::channel(QUEUE_REPLIES);
        let (failure, failed) = oneshot::channel();
        let mut session = self.inbound.session(replies);
        tokio::spawn(async move {
            // Ends with the connection; the session and its streams end with this task.
            while let Some(Ok(batch)) = batches.next().await {
                for frame in batch.frames {
                    if let Err(error) = session.feed(frame) {
                        let _ = failure.send(Status::invalid_argument(error.to_string()));
                        return;
                    }
                }
            }
        });
        let replies = stream::unfold(queue, |mut queue| async move {
            let mut replies = Vec::new();
            let count = queue.recv_many(&mut replies, QUEUE_REPLIES).await;
            (count > 0).then_some((Ok(ReplyBatch { replies }), queue))
        });
        let inbound = self.inbound.clone();
        let replies = replies.take_until(async move { inbound.closed().await });
        let failed = failed.into_stream().filter_map(|status| async { status.ok().map(Err) });
        Ok(Response::new(replies.chain(failed).boxed()))
    }

    async fn control(
        &self,
        request: Request<peer::ControlRequest>,
    ) -> Result<Response<peer::ControlReply>, Status> {
        self.check(request.metadata())?;
        Ok(Response::new(self.inbound.control(request.into_inner()).await))
    }

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

/// An error with its causes: tonic's own text says no more than "transport error".
fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
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
        let service = PeerService::new(inbound.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
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
        let transport = GrpcTransport::with_connector(GrpcConfig::default(), connector);
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

//! One connection of the Sentinel port: bytes in and out, events in between, and what waits for a handover.

use super::scene::{Scene, Tunables};
use super::session::{Session, Step, Surroundings};
use crate::clients::Client;
use crate::port::Port;
use crate::resp::RespSink;
use crate::stats::count_error;
use futures::future::BoxFuture;
use kvorum_cluster::ReplicaId;
use kvorum_node::{HandoverError, Node, TimelineEvent};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 * 1024;

/// Replies that the client has not taken, beyond which it is not read from.
const UNSENT_BYTES: usize = 1 << 20;

/// How often a client that does not read is looked at, for the soft limit.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A client has this long to take the last replies.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// What the connections of the port share.
pub(crate) struct Shared {
    pub(crate) port: Port,
    /// The port's number as clients know it, if it is another one.
    pub(super) announced: Option<u16>,
    pub(super) node: Node,
    pub(super) tunables: Tunables,
    pub(super) draining: AtomicBool,
}

struct Connection {
    shared: Arc<Shared>,
    client: Arc<Client>,
    stream: TcpStream,
    session: Session,
    out: RespSink,
    /// Bytes of `out` that the client has.
    sent: usize,
    feed: Option<broadcast::Receiver<Arc<TimelineEvent>>>,
    step: Step,
    /// What the client waits for.
    work: Option<Work>,
}

type Work = BoxFuture<'static, Outcome>;

/// What a client waited for.
enum Outcome {
    /// SENTINEL FAILOVER.
    Handover(Result<ReplicaId, HandoverError>),
    /// Somebody called off the shutdown that the client asked for.
    Withdrawn,
}

/// Takes a client off the port's list, however its connection ended.
struct Registration(Arc<Shared>, Arc<Client>);

impl Drop for Registration {
    fn drop(&mut self) {
        let port = &self.0.port;
        port.clients.leave(&self.1);
        port.stats.connections_closed.fetch_add(1, Ordering::Relaxed);
        port.limits.leave(self.1.peer.ip(), &self.1.name());
    }
}

/// Serves one client until it goes, is told to go, or the port closes.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, client: Arc<Client>) {
    let _registration = Registration(Arc::clone(&shared), Arc::clone(&client));
    let mut connection = Connection {
        session: Session::new(Arc::clone(&client), &shared.port),
        shared,
        client: Arc::clone(&client),
        stream,
        out: RespSink::default(),
        sent: 0,
        feed: None,
        step: Step::Read,
        work: None,
    };
    if let Err(error) = connection.run().await {
        debug!(client = %client.peer, %error, "connection lost");
    }
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let client = Arc::clone(&self.client);
        let mut closing_since = None;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.write()?;
            let unsent = self.unsent();
            if client.is_killed() || self.is_over_limit(unsent) {
                return Ok(());
            }
            let is_over = self.step == Step::Close || shared.draining.load(Ordering::Acquire);
            if is_over && unsent == 0 && self.work.is_none() {
                return self.stream.shutdown().await;
            }
            if self.step == Step::Close
                && closing_since.get_or_insert_with(Instant::now).elapsed() > GOODBYE_PATIENCE
            {
                return Ok(());
            }
            if self.step == Step::Again && unsent <= UNSENT_BYTES && self.work.is_none() && !is_over {
                self.turn();
                tokio::task::yield_now().await;
                continue;
            }
            let reads = self.step == Step::Read && unsent <= UNSENT_BYTES && !is_over;
            tokio::select! {
                () = client.told() => {}
                readable = self.stream.readable(), if reads => {
                    readable?;
                    if !self.read()? {
                        return Ok(());
                    }
                }
                writable = self.stream.writable(), if unsent > 0 => writable?,
                event = next_event(&mut self.feed) => match event {
                    Ok(event) => self.session.on_event(&event, &mut self.out),
                    Err(RecvError::Lagged(missed)) => {
                        shared.port.stats.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
                        warn!(client = %client.describe(Instant::now()), missed, "a client did not take its events and is disconnected");
                        return Ok(());
                    }
                    // The node has gone.
                    Err(RecvError::Closed) => self.feed = None,
                },
                outcome = work(&mut self.work) => {
                    self.work = None;
                    match outcome {
                        Outcome::Handover(handover) => self.session.failed_over(handover, &mut self.out),
                        Outcome::Withdrawn => self.session.shutdown_withdrawn(&mut self.out),
                    }
                    self.count_errors();
                    self.step = Step::Again;
                }
                _ = look.tick(), if unsent > 0 => {}
            }
        }
    }

    fn unsent(&self) -> usize {
        self.out.bytes().len() - self.sent
    }

    /// Reads what is there; `false` when the client has gone, or sends too much.
    fn read(&mut self) -> io::Result<bool> {
        let read = self.stream.try_read_buf(self.session.input(READ_BYTES));
        match read {
            Ok(0) => return Ok(false),
            Ok(bytes) => {
                let stats = &self.shared.port.stats;
                stats.input_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                stats.reads.fetch_add(1, Ordering::Relaxed);
                self.client.meters.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                self.client.note_active(Instant::now());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        self.turn();
        if self.step == Step::Read && self.session.is_flooded() {
            self.shared.port.stats.query_limit_disconnections.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        Ok(true)
    }

    /// Answers requests.
    fn turn(&mut self) {
        let shared = Arc::clone(&self.shared);
        // Whoever subscribes now is told of everything from now on.
        let feed = self.feed.take().unwrap_or_else(|| shared.node.timeline_feed());
        let id = shared.node.server().server_hex;
        let around = Surroundings {
            port: &shared.port,
            id: &id,
            announced_port: shared.announced,
            tunables: &shared.tunables,
            scene: &|| Scene::of(&shared.node),
            publish: &|master, event, payload| {
                shared.node.tell_listeners(master.shard.id, master.name(), event, payload);
            },
        };
        self.step = self.session.turn(&around, &mut self.out);
        let commands = self.session.take_commands();
        shared.port.stats.commands_processed.fetch_add(commands, Ordering::Relaxed);
        self.count_errors();
        if self.session.is_subscriber() {
            self.feed = Some(feed);
        }
        match self.step {
            Step::Failover(shard) => {
                let node = shared.node.clone();
                let handover = async move { Outcome::Handover(node.transfer(shard, None).await) };
                self.work = Some(Box::pin(handover));
            }
            Step::Shutdown => {
                let control = shared.port.control.clone();
                let withdrawal = async move {
                    control.withdrawn().await;
                    Outcome::Withdrawn
                };
                self.work = Some(Box::pin(withdrawal));
            }
            Step::Read | Step::Again | Step::Close => {}
        }
    }

    /// Counts the errors that were written since the last time.
    fn count_errors(&mut self) {
        self.out.errors().for_each(|(_, text)| count_error(&self.shared.port.stats, text));
        self.out.reset_counts();
    }

    /// Writes as much as the client takes.
    fn write(&mut self) -> io::Result<()> {
        let stats = &self.shared.port.stats;
        while self.sent < self.out.bytes().len() {
            match self.stream.try_write(&self.out.bytes()[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.sent += bytes;
                    stats.output_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                    stats.writes.fetch_add(1, Ordering::Relaxed);
                    self.client.meters.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.out.bytes().len() {
            self.out.clear();
            self.sent = 0;
        }
        let meters = &self.client.meters;
        meters.output_bytes.store(self.unsent(), Ordering::Relaxed);
        meters.output_capacity.store(self.out.capacity(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether more waits for the client than may, of its class.
    fn is_over_limit(&self, unsent: usize) -> bool {
        let limits = &self.shared.port.settings.output_limits;
        let limit = if self.session.is_subscriber() { limits.pubsub() } else { limits.normal() };
        let now = Instant::now();
        let over = limit.hard_bytes > 0 && unsent as u64 > limit.hard_bytes
            || limit.soft_bytes > 0 && self.client.is_over_soft_limit(limit, now);
        if over {
            self.shared.port.stats.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
            warn!(client = %self.client.describe(now), "a client left too much unread and is disconnected");
        }
        over
    }
}

async fn next_event(
    feed: &mut Option<broadcast::Receiver<Arc<TimelineEvent>>>,
) -> Result<Arc<TimelineEvent>, RecvError> {
    match feed {
        Some(feed) => feed.recv().await,
        None => pending().await,
    }
}

async fn work(work: &mut Option<Work>) -> Outcome {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

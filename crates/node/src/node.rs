//! One server of the cluster: opens what is on disk, joins its groups, follows the topology, and keeps
//! everybody informed about who leads.

use crate::admin::{self, AdminService};
use crate::checks::Checks;
use crate::clock::LogClock;
use crate::config::{NodeConfig, PEER_PORT_OFFSET};
use crate::contact::Contact;
use crate::forward::RunsForwarded;
use crate::handover::Handovers;
use crate::identity::{Identity, IdentityError, Membership};
use crate::membership::{Requests, members};
use crate::meta::{self, CACHED_TOPOLOGY, META_GROUP, MetaReplica};
use crate::platform::Platform;
use crate::proposer::Proposer;
use crate::replica::Replica;
use crate::running::{Running, RunningError};
use crate::shard::Shard;
use crate::timeline::{Introductions, Timeline};
use crate::views::Views;
use kvorum_cluster::{
    Configure, Durability, FEATURE_LEVEL, ReplicaId, ServerId, ShardId, Stage, Topology, View,
};
use kvorum_raft::wal::{Wal, WalError};
use kvorum_raft::{
    Environment, Group, GroupId, Host, HostConfig, HostError, Member, SnapshotConfig, SyncMode, Timing,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// How often a server tells the others which shards it leads; also their sign of life.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(200);

/// A server nobody heard of for this long is down, says the meta group's leader.
pub(crate) const DOWN_AFTER: Duration = Duration::from_secs(2);

/// The server that should found a group has this long before the others do it in its place.
const FOUNDER_PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts to hand a leadership over.
const HANDOVER_PAUSE: Duration = Duration::from_millis(20);

/// At shutdown a shard's leadership has this long to move to another server.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(2);

/// What a peer may send on one stream before it waits for us to read: more than an entry takes in flight.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Requests that a peer may give up before we looked at them.
const GIVEN_UP_REQUESTS: usize = 1024;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity is missing its log, damaged or unreadable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is not known which logs are to be trusted.
    #[error(transparent)]
    Running(#[from] RunningError),
    /// The log cannot be opened.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The Raft host cannot start.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The peer port is taken, or the data directory unusable.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Who a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerIdentity {
    /// 40 hex digits drawn at the first start.
    pub server_hex: String,
    /// Its number in the cluster; `None` while it belongs to none.
    pub server_id: Option<ServerId>,
    /// The cluster's id; `None` while it belongs to none.
    pub cluster_id: Option<String>,
}

/// A running server. Clones are cheap and mean the same server.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    identity: Mutex<Identity>,
    platform: Platform,
    pub(crate) wal: Wal,
    pub(crate) host: Host,
    pub(crate) running: Running,
    pub(crate) requests: Requests,
    pub(crate) views: Arc<Views>,
    pub(crate) shards: watch::Sender<BTreeMap<ShardId, Shard>>,
    meta: Mutex<Option<Group>>,
    pub(crate) checks: Arc<Checks>,
    /// When each other server was last heard, by the environment's clock.
    heard: Mutex<BTreeMap<ServerId, Duration>>,
    /// What servers said of themselves.
    pub(crate) introductions: Introductions,
    pub(crate) timeline: Timeline,
    pub(crate) handovers: Handovers,
    /// Who runs what other servers forward.
    pub(crate) host_of_guests: OnceLock<Arc<dyn RunsForwarded>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Raft, the transport, apply and the drivers run here, never user work. `None` when it is the caller's.
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
    pub(crate) handle: tokio::runtime::Handle,
    stopping: AtomicBool,
}

impl Node {
    /// Opens the data directory and the peer port and joins the groups this server belongs to. A server
    /// without a cluster waits to be taken into one.
    ///
    /// # Errors
    /// See [`StartError`]; the text is for the person at the terminal.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.raft_threads.max(1))
            .thread_name("kvorum-raft")
            .enable_all()
            .build()
            .map_err(|source| StartError::Io { what: "starting threads".to_owned(), source })?;
        let handle = runtime.handle().clone();
        let started = handle.spawn(Node::start_on(config, runtime));
        started.await.expect("starting does not panic")
    }

    async fn start_on(config: NodeConfig, runtime: tokio::runtime::Runtime) -> Result<Node, StartError> {
        // From here on dropping the runtime inside itself would panic: on failure it ends in the background.
        let started = async {
            let address = format!("{}:{}", config.bind, config.base_port + PEER_PORT_OFFSET);
            let listener = tokio::net::TcpListener::bind(&address).await.map_err(|source| {
                StartError::Io { what: format!("listening for peers on {address}"), source }
            })?;
            let platform = Platform::real(&config)?;
            Ok((Node::open(config, platform)?, listener))
        };
        match started.await {
            Ok((node, listener)) => {
                *node.0.runtime.lock() = Some(runtime);
                // Whoever is told from here on to take this server in, does all that follows from it.
                let membership = node.membership();
                node.serve_peers(listener);
                if let Err(error) = node.resume(membership).await {
                    node.shutdown().await;
                    return Err(error);
                }
                Ok(node)
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// The same on surroundings of the caller's and on the current tokio runtime. Listens nowhere: peers reach it as the
    /// platform's transport and contact have it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with(config: NodeConfig, platform: Platform) -> Result<Node, StartError> {
        let node = Node::open(config, platform)?;
        node.resume(node.membership()).await?;
        Ok(node)
    }

    /// Its place in a cluster, if it has one.
    fn membership(&self) -> Option<Membership> {
        self.0.identity.lock().cluster.clone()
    }

    /// Opens what is on disk. To be called on the runtime that is to run the node.
    fn open(config: NodeConfig, platform: Platform) -> Result<Node, StartError> {
        let Platform { disk, transport, environment, .. } = &platform;
        let wal_dir = config.dir.join("wal");
        let identity = Identity::load(&**disk, &config.dir, &wal_dir, environment)?;
        let running = Running::load(Arc::clone(disk), &config.dir, &platform.boot_id)?;
        let (wal, recovery) = Wal::open_in(environment, Arc::clone(disk), wal_dir, config.wal.clone())?;
        info!(?recovery, "log opened");
        let timing = Timing {
            heartbeat_ms: config.timing.heartbeat_ms,
            election_min_ms: config.timing.election_min_ms,
            election_max_ms: config.timing.election_max_ms,
            ..Timing::default()
        };
        let (server, cluster) = match &identity.cluster {
            Some(membership) => (membership.server_id, membership.cluster_id.clone()),
            None => (0, String::new()),
        };
        let snapshots = SnapshotConfig { dir: config.dir.join("snapshots"), ..config.snapshots.clone() };
        let host_config = HostConfig { server, cluster, timing, snapshots };
        let host = Host::start(host_config, wal.clone(), Arc::clone(transport), environment.clone())?;
        let node = Node(Arc::new(Inner {
            config,
            identity: Mutex::new(identity),
            platform,
            wal,
            host,
            running,
            requests: Requests::default(),
            views: Views::new(),
            shards: watch::Sender::new(BTreeMap::new()),
            meta: Mutex::new(None),
            checks: Arc::default(),
            heard: Mutex::new(BTreeMap::new()),
            introductions: Introductions::default(),
            timeline: Timeline::default(),
            handovers: Handovers::default(),
            host_of_guests: OnceLock::new(),
            tasks: Mutex::new(Vec::new()),
            runtime: Mutex::new(None),
            handle: tokio::runtime::Handle::current(),
            stopping: AtomicBool::new(false),
        }));
        node.take_announcements();
        Ok(node)
    }

    /// Takes up the place in the cluster that it had when it was started, if it had one.
    async fn resume(&self, membership: Option<Membership>) -> Result<(), StartError> {
        if let Some(membership) = membership {
            if let Some(topology) = self.cached_topology() {
                self.0.views.learn_topology(Arc::new(topology));
            }
            self.join(membership).await?;
        }
        Ok(())
    }

    /// What this server knows of the cluster; `None` until it belongs to one.
    pub fn view(&self) -> Option<Arc<View>> {
        self.0.views.current()
    }

    /// The same, with a way to wait for changes.
    pub fn views(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.0.views.subscribe()
    }

    /// This server's replica of a shard, if it has one.
    pub fn shard(&self, id: ShardId) -> Option<Shard> {
        self.0.shards.borrow().get(&id).cloned()
    }

    /// All replicas on this server, with a way to wait for more.
    pub fn shards(&self) -> watch::Receiver<BTreeMap<ShardId, Shard>> {
        self.0.shards.subscribe()
    }

    /// Who this server is.
    pub fn server(&self) -> ServerIdentity {
        let identity = self.0.identity.lock();
        let cluster = identity.cluster.as_ref();
        ServerIdentity {
            server_hex: identity.server_hex.clone(),
            server_id: cluster.map(|cluster| ServerId(cluster.server_id)),
            cluster_id: cluster.map(|cluster| cluster.cluster_id.clone()),
        }
    }

    /// Resolves when the server cannot go on: its log failed, and nothing is known about the disk any more.
    /// The process should end; what was acknowledged is on a majority.
    pub async fn failure(&self) -> String {
        let mut turn = tokio::time::interval(ANNOUNCE_INTERVAL);
        loop {
            turn.tick().await;
            if let Some(reason) = self.0.wal.failure() {
                return reason;
            }
        }
    }

    /// The error that ended the log, if one did.
    pub fn wal_failure(&self) -> Option<String> {
        self.0.wal.failure()
    }

    /// Settings this server runs with.
    pub fn config(&self) -> &NodeConfig {
        &self.0.config
    }

    /// Hands leaderships over, stops the groups and closes the log. Submitted batches that have no outcome
    /// by then are answered as unknown.
    pub async fn shutdown(&self) {
        if self.0.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.hand_over().await;
        let node = self.clone();
        let stopped = self.0.handle.spawn(async move { node.stop().await });
        if let Err(error) = stopped.await {
            error!(%error, "stopping failed");
        }
        if let Some(runtime) = self.0.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    /// Moves the leaderships of this server to others, as far as others can take them; bounded in time.
    pub async fn hand_over(&self) {
        let node = self.clone();
        let handed_over = self.0.handle.spawn(async move {
            let shards: Vec<Shard> = node.0.shards.borrow().values().cloned().collect();
            futures::future::join_all(shards.iter().map(|shard| node.hand_over_shard(shard))).await;
        });
        if let Err(error) = handed_over.await {
            error!(%error, "handing leaderships over failed");
        }
    }

    /// Moves a shard's leadership to the follower that has most of the log, if this replica leads.
    pub(crate) async fn hand_over_shard(&self, shard: &Shard) {
        let deadline = self.now() + HANDOVER_PATIENCE;
        while self.now() < deadline {
            let status = shard.status();
            let me = shard.replica();
            if status.leader != Some(me.0) || status.failed.is_some() {
                return;
            }
            let Some(target) = self.heir(&status, me) else { return };
            match shard.group().transfer_leader(target).await {
                Ok(()) => info!(shard = shard.id().0, target, "leadership handed over"),
                Err(error) => warn!(shard = shard.id().0, target, %error, "cannot hand leadership over"),
            }
            tokio::time::sleep(HANDOVER_PAUSE).await;
        }
    }

    async fn stop(&self) {
        for task in self.0.tasks.lock().drain(..) {
            task.abort();
        }
        self.0.host.shutdown().await;
        // What is synced late, too: a log without an end is worth a note that it has none only if that is true.
        let settled = self.0.host.settle(GroupId(META_GROUP)).await;
        self.0.wal.close();
        let noted = match settled {
            Ok(()) => self.0.running.stopped().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = noted {
            warn!(error, "not stopped cleanly");
        }
        info!("stopped");
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _on_it = self.0.handle.enter();
        let handle = self.environment().spawn(task);
        self.0.tasks.lock().push(handle);
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.0.platform.environment
    }

    /// The environment's clock.
    pub(crate) fn now(&self) -> Duration {
        self.environment().now()
    }

    /// Wall time, milliseconds since the Unix epoch.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.0.platform.time.wall_ms()
    }

    /// This server's member of the meta group, once it belongs to a cluster.
    pub(crate) fn meta_group(&self) -> Option<Group> {
        self.0.meta.lock().clone()
    }

    /// The way to other servers beside Raft's.
    pub(crate) fn contact(&self) -> &dyn Contact {
        &*self.0.platform.contact
    }

    fn serve_peers(&self, listener: tokio::net::TcpListener) {
        // A peer gives up requests that are late. After a stall there may be many of them at once, and that is no attack.
        let routes = tonic::transport::Server::builder()
            .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_REQUESTS))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
            .add_service(self.0.host.peer_service())
            .add_service(AdminService::new(self.clone()).into_server());
        let incoming = self.0.host.peer_incoming(listener);
        self.spawn(async move {
            if let Err(error) = routes.serve_with_incoming(incoming.into_stream()).await {
                error!(%error, "the peer listener ended");
            }
        });
    }

    fn cached_topology(&self) -> Option<Topology> {
        let bytes = self.0.platform.store.get(CACHED_TOPOLOGY).ok().flatten()?;
        match serde_json::from_slice(&bytes) {
            Ok(topology) => Some(topology),
            Err(error) => {
                warn!(%error, "the cached topology is unusable; waiting for the meta group");
                None
            }
        }
    }

    /// Takes this virgin server into a cluster, durably. Being asked again for the same place is fine.
    pub(crate) async fn adopt(&self, membership: Membership) -> Result<(), AdoptError> {
        {
            let mut identity = self.0.identity.lock();
            match &identity.cluster {
                Some(current) if *current == membership => return Ok(()),
                Some(current) => return Err(AdoptError::Taken { cluster_id: current.cluster_id.clone() }),
                None => {
                    let adopted = identity.with(membership.clone());
                    adopted.save(&*self.0.platform.disk, &self.0.config.dir)?;
                    *identity = adopted;
                }
            }
        }
        self.join(membership).await.map_err(AdoptError::Host)
    }

    /// Joins the meta group and starts everything that follows from the topology.
    async fn join(&self, membership: Membership) -> Result<(), HostError> {
        let me = ServerId(membership.server_id);
        self.0.host.identify(me.0, &membership.cluster_id);
        self.0.wal.group(GroupId(META_GROUP)).set_sync(SyncMode::Before);
        let machine = MetaReplica::new(Arc::clone(&self.0.views), Arc::clone(&self.0.platform.store));
        let group = self.0.host.open(GroupId(META_GROUP), me.0, machine).await?;
        *self.0.meta.lock() = Some(group.clone());
        let members: BTreeMap<u64, Member> = membership
            .meta_members
            .iter()
            .map(|member| (member.server, Member { server: member.server, addr: member.addr.clone() }))
            .collect();
        if !membership.joined {
            let founder = members.keys().next() == Some(&me.0);
            self.spawn(found(group.clone(), members, founder));
        }
        self.spawn(self.clone().drive_meta(group.clone(), membership));
        self.spawn(self.clone().drive_servers(group, me));
        self.follow_members(me);
        self.spawn(self.clone().balance_leaders());
        self.spawn(self.clone().announce(me));
        self.spawn(self.clone().watch_failovers(me));
        Ok(())
    }

    async fn drive_meta(self, group: Group, membership: Membership) {
        let mut turn = tokio::time::interval(ANNOUNCE_INTERVAL);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let me = ServerId(membership.server_id);
        let mut leading_since = None;
        loop {
            turn.tick().await;
            if !group.status().borrow().ready {
                leading_since = None;
                continue;
            }
            // A new leader has heard nobody yet; it gives everybody the time that a silent server gets.
            let since = *leading_since.get_or_insert_with(|| self.now());
            let node = &self;
            let is_heard = |server: ServerId| {
                server == me
                    || node.now().saturating_sub(since) < DOWN_AFTER && node.was_up(server)
                    || node.heard_within(server, DOWN_AFTER)
            };
            meta::lead(&group, &self.0.views, &membership.create, is_heard).await;
        }
    }

    fn was_up(&self, server: ServerId) -> bool {
        self.view()
            .and_then(|view| view.topology.servers.get(&server).map(|server| server.up))
            .unwrap_or(true)
    }

    pub(crate) fn heard_within(&self, server: ServerId, bound: Duration) -> bool {
        self.since_heard(server).is_some_and(|since| since <= bound)
    }

    /// How long ago another server gave a sign of life.
    pub(crate) fn since_heard(&self, server: ServerId) -> Option<Duration> {
        self.0.heard.lock().get(&server).map(|heard| self.now().saturating_sub(*heard))
    }

    /// Another server gave a sign of life.
    pub(crate) fn hear(&self, server: ServerId) {
        self.0.heard.lock().insert(server, self.now());
    }

    /// Opens a replica whose log is its own, or empty.
    pub(crate) async fn open_replica(
        &self,
        topology: &Arc<Topology>,
        shard: &kvorum_cluster::Shard,
        me: ReplicaId,
    ) -> Result<(), HostError> {
        let inner = &self.0;
        inner.wal.group(GroupId(shard.group)).set_sync(match topology.durability {
            Durability::QuorumFsync => SyncMode::Before,
            Durability::QuorumMemory => SyncMode::Lazy,
            Durability::None => SyncMode::Never,
        });
        let replica = Replica::new(
            (shard.id, me),
            LogClock::new(Arc::clone(&inner.platform.time)),
            Arc::clone(&inner.views),
            inner.platform.observer.clone(),
        );
        let group = inner.host.open(GroupId(shard.group), me.0, Arc::clone(&replica) as _).await?;
        // A group is founded by those who were there from the beginning. A shard in which one came or went has been founded.
        if !shard.changed && shard.replicas.iter().all(|replica| replica.stage == Stage::Founder) {
            let founder = shard.replicas.first().is_some_and(|first| first.id == me);
            self.spawn(found(group.clone(), members(topology, shard), founder));
        }
        let (_, configuration) = watch::channel(Some(Configure::of(topology, shard)));
        let proposer = Proposer {
            group: group.clone(),
            replica: Arc::clone(&replica),
            wal: inner.wal.clone(),
            environment: self.environment().clone(),
            configuration,
            checks: Arc::clone(&inner.checks),
            since: self.environment().now(),
            chunk_bytes: inner.config.chunk_bytes,
            patience: inner.config.write_timeout,
        }
        .spawn();
        let handle =
            Shard::new((shard.id, me), group, replica, proposer, self.environment().clone(), &inner.config);
        self.spawn(self.clone().follow_leader(handle.clone()));
        inner.shards.send_modify(|shards| {
            shards.insert(shard.id, handle);
        });
        info!(shard = shard.id.0, replica = me.0, group = shard.group, "replica opened");
        Ok(())
    }

    /// The shards this server leads and serves.
    pub(crate) fn led(&self) -> Vec<Shard> {
        self.0.shards.borrow().values().filter(|shard| shard.serves()).cloned().collect()
    }

    /// Keeps the view informed about who leads a shard that has a replica here.
    async fn follow_leader(self, shard: Shard) {
        let views = &self.0.views;
        let mut statuses = shard.group().status();
        loop {
            let status = statuses.borrow_and_update().clone();
            let me = shard.replica();
            if let Some(reason) = &status.failed {
                // The others elect a leader without it; their announcements tell who. One that was closed is no matter.
                let here = self.shard(shard.id()).is_some_and(|here| here.replica() == me);
                if here {
                    error!(shard = shard.id().0, replica = me.0, reason, "replica stopped for good");
                }
                return;
            }
            match status.leader {
                // A leader is announced only once it can serve.
                Some(leader) if leader == me.0 => {
                    if shard.serves() {
                        views.learn_leader(shard.id(), status.term, me);
                    } else {
                        views.learn_vacancy(shard.id(), status.term);
                        // The configuration is no change of Raft's status: look again soon.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        continue;
                    }
                }
                Some(leader) => views.learn_leader(shard.id(), status.term, ReplicaId(leader)),
                None => views.learn_vacancy(shard.id(), status.term),
            }
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells every other server, again and again, which shards this one leads.
    async fn announce(self, me: ServerId) {
        let mut turn = tokio::time::interval(ANNOUNCE_INTERVAL);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut views = self.views();
        let mut peers: BTreeMap<ServerId, admin::Announcer> = BTreeMap::new();
        self.0.checks.hear(me, FEATURE_LEVEL);
        loop {
            tokio::select! {
                _ = turn.tick() => self.judge_replicas(),
                Ok(()) = views.changed() => {}
            }
            let Some(view) = views.borrow_and_update().clone() else { continue };
            let others = || view.topology.servers.values().filter(|server| server.id != me);
            let silent_after = self.silence();
            let silent = others().map(|server| server.id).filter(|&id| !self.heard_within(id, silent_after));
            self.0.views.learn_silence(silent.collect());
            peers.retain(|server, _| view.topology.server(*server).is_some());
            for server in others() {
                let addr = server.peer_addr();
                let node = &self;
                let peer = peers
                    .entry(server.id)
                    .or_insert_with(|| admin::Announcer::start(node.clone(), me, server.id, addr.clone()));
                peer.announce(&addr);
            }
        }
    }
}

/// Why a server does not join a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("this server already belongs to cluster {cluster_id}")]
    Taken { cluster_id: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Host(HostError),
}

/// Gives a new group its first membership. One member does it at once; the others step in when it does not.
async fn found(group: Group, members: BTreeMap<u64, Member>, founder: bool) {
    if !founder {
        tokio::time::sleep(FOUNDER_PATIENCE).await;
    }
    while !group.is_initialized().await {
        match group.initialize(members.clone()).await {
            Ok(()) => info!(members = members.len(), "group founded"),
            Err(error) => warn!(%error, "cannot found a group yet"),
        }
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
    }
}

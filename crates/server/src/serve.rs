//! The ports: one listener for each shard that has a replica here.
//!
//! While the server belongs to no cluster, its base port listens too and answers as an empty node of a Redis
//! Cluster does, so that `redis-cli` finds somebody to talk to.

use crate::connection::Shared;
use crate::control::Control;
use crate::engine::NodeReplica;
use crate::forward;
use crate::http;
use crate::latency::WAL_SYNC;
use crate::limits::LimitConfig;
use crate::listener::{self, listen};
use crate::metrics::{self, Exposition};
use crate::password::{Password, RequirePass};
use crate::port::{Port, Replica};
use crate::sentinel::{self, SentinelPort};
use crate::settings::{DebugCommand, OutputSettings, Settings};
use crate::stats::SAMPLE_INTERVAL;
use kvorum_cluster::{Mode, ShardId};
use kvorum_node::{Node, NodeConfig, ReadMode};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// Peer port = base port + this.
const PEER_PORT_OFFSET: u16 = 98;

/// A port whose replica has left the server redirects clients for so long.
const REDIRECTED_FOR: Duration = Duration::from_secs(30);

/// Settings of the client ports. What the node knows (ports, data, timing) is asked of it.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Address to listen on.
    pub bind: IpAddr,
    /// Where probes and scrapers are answered (HTTP); `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// Where clients of Redis Sentinel are answered; `None` for nowhere.
    pub sentinel: Option<SentinelConfig>,
    /// The configuration file that all this comes from, for CONFIG REWRITE.
    pub file: Option<PathBuf>,
    /// Who may use DEBUG.
    pub debug_command: DebugCommand,
    /// How SHUTDOWN gets to whoever runs the process.
    pub control: Control,
    /// What clients must give before they may do anything else; empty for nothing.
    pub requirepass: Password,
    /// Most connections of one port at a time.
    pub max_clients: u32,
    /// Close a connection that was silent for this long; zero for never. Whole seconds.
    pub idle_timeout: Duration,
    /// How long a client may be silent before TCP asks whether it is still there; zero for never. Whole seconds.
    pub tcp_keepalive: Duration,
    /// How much a client may send and leave waiting, and who is let in.
    pub limits: LimitConfig,
    /// How long a client may be held while its shard elects a leader, before it gets `CLUSTERDOWN`.
    pub failover_hold: Duration,
    /// What is measured of commands, and what is remembered of slow ones.
    pub measure: MeasureConfig,
}

/// Where clients of Redis Sentinel are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SentinelConfig {
    /// The address to listen on.
    pub address: SocketAddr,
    /// The port that is told to clients and servers, where that is another one.
    pub announced: Option<u16>,
    /// Whether to go on without when it is taken: it is the usual port, and nobody asked for it.
    pub optional: bool,
}

/// What is measured of commands, and what is remembered of slow ones.
#[derive(Clone, PartialEq, Debug)]
pub struct MeasureConfig {
    /// Commands that run for at least so many microseconds stand in the slow log; negative for none.
    pub slowlog_log_slower_than_us: i64,
    /// Entries of a port's slow log.
    pub slowlog_max_len: u64,
    /// What takes at least so many milliseconds is noted for LATENCY; 0 for nothing.
    pub latency_monitor_threshold_ms: u64,
    /// Whether the latencies of commands are counted.
    pub latency_tracking: bool,
    /// Percentiles in INFO latencystats, each between 0 and 100.
    pub latency_percentiles: Vec<f64>,
}

impl Default for MeasureConfig {
    fn default() -> MeasureConfig {
        MeasureConfig {
            slowlog_log_slower_than_us: 10_000,
            slowlog_max_len: 128,
            latency_monitor_threshold_ms: 0,
            latency_tracking: true,
            latency_percentiles: vec![50.0, 99.0, 99.9],
        }
    }
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            bind: IpAddr::from([127, 0, 0, 1]),
            http: None,
            sentinel: None,
            file: None,
            debug_command: DebugCommand::default(),
            control: Control::default(),
            requirepass: Password::default(),
            max_clients: 10_000,
            idle_timeout: Duration::ZERO,
            tcp_keepalive: Duration::from_secs(300),
            limits: LimitConfig::default(),
            failover_hold: Duration::from_secs(5),
            measure: MeasureConfig::default(),
        }
    }
}

/// Why clients cannot be served (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port is taken, or may not be used.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Serves clients until `shutdown` resolves; then takes no more connections, finishes what was sent so far, and
/// returns. The node is left running: it is stopped afterwards.
///
/// # Errors
/// [`ServeError::Listen`] when a port cannot be opened.
pub async fn serve(
    node: Node,
    config: ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let settings = Arc::new(settings(&config, node.config()));
    let open = Arc::new(RwLock::default());
    let sentinel = open_sentinel(&node, &config, &settings)?;
    let http = match config.http {
        Some(address) => {
            let listener =
                TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
            info!(%address, "serving HTTP");
            let subject = Figures {
                node: node.clone(),
                open: Arc::clone(&open),
                sentinel: sentinel.as_ref().map(SentinelPort::shared),
            };
            Some(AbortOnDrop(tokio::spawn(http::serve(listener, Arc::new(subject)))))
        }
        None => None,
    };
    forward::run_forwarded(&node);
    let mut ports = Ports { node: node.clone(), config, settings, open: BTreeMap::new(), shown: open };
    let mut shards = node.shards();
    let mut views = node.views();
    tokio::pin!(shutdown);
    let mut look = tokio::time::interval(SAMPLE_INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let served = loop {
        if let Err(error) = ports.follow().await {
            break Err(error);
        }
        // Both senders live as long as the node, of which we hold one.
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            // The log is the server's: a slow sync holds up every port.
            never = async { loop {
                look.tick().await;
                ports.note_sync(node.longest_sync());
            } } => never,
            changed = shards.changed() => if changed.is_err() { break Ok(()) },
            changed = views.changed() => if changed.is_err() { break Ok(()) },
            () = ports.next_closing() => {}
        }
    };
    if let Some(sentinel) = sentinel {
        sentinel.close().await;
    }
    ports.close().await;
    // To the last, whoever watches the server sees what it does.
    drop(http);
    served
}

/// Opens the Sentinel port, and lets the other servers know of it.
fn open_sentinel(
    node: &Node,
    config: &ServeConfig,
    settings: &Arc<Settings>,
) -> Result<Option<SentinelPort>, ServeError> {
    let Some(SentinelConfig { address, announced, optional }) = config.sentinel else { return Ok(None) };
    let listener = match listener::open(address) {
        Ok(listener) => listener,
        Err(source) if optional && source.kind() == io::ErrorKind::AddrInUse => {
            warn!(%address, "another program has the port for clients of Sentinel, so there are none; see sentinel-port");
            return Ok(None);
        }
        Err(source) => return Err(ServeError::Listen { address, source }),
    };
    let peer_port = node.config().base_port + PEER_PORT_OFFSET;
    let id = node.server().server_hex;
    let port = Port::new(address.port(), peer_port, id, Arc::clone(settings), config.control.clone());
    node.announce_sentinel(announced.unwrap_or(address.port()));
    info!(%address, "serving clients of Sentinel");
    Ok(Some(sentinel::open(listener, port, announced, node.clone())))
}

/// What the HTTP port tells.
struct Figures {
    node: Node,
    open: Shown,
    sentinel: Option<Arc<sentinel::Shared>>,
}

/// The open ports, for those who look at them.
type Shown = Arc<RwLock<BTreeMap<ShardId, Arc<Shared<NodeReplica>>>>>;

impl http::Subject for Figures {
    fn unready(&self) -> Vec<String> {
        self.node.unready()
    }

    fn events(&self) -> String {
        self.node.timeline_json()
    }

    fn metrics(&self) -> String {
        let mut out = Exposition::default();
        let open = self.open.read().clone();
        for (id, shared) in open {
            let keyspace = shared.engine().map(|engine| engine.keyspace()).unwrap_or_default();
            metrics::port(&id.0.to_string(), &shared.port, &keyspace, &mut out);
        }
        if let Some(sentinel) = &self.sentinel {
            metrics::sentinel(&sentinel.port, self.node.events_told(), &mut out);
        }
        self.node.metrics(&mut out);
        metrics::process(&mut out);
        out.text()
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the ports share, as the server starts.
pub(crate) fn settings(config: &ServeConfig, node: &NodeConfig) -> Settings {
    Settings {
        bind: config.bind.to_string(),
        dir: node.dir.display().to_string(),
        file: config.file.clone(),
        debug_command: config.debug_command,
        requirepass: RequirePass::new(config.requirepass.clone()),
        timeout_s: config.idle_timeout.as_secs().into(),
        maxclients: u64::from(config.max_clients).into(),
        tcp_keepalive_s: config.tcp_keepalive.as_secs().into(),
        failover_hold_ms: millis(config.failover_hold).into(),
        election_timeout_ms: node.timing.election_max_ms,
        write_timeout_ms: millis(node.write_timeout),
        read_mode: match node.read_mode {
            ReadMode::Lease => "lease",
            ReadMode::Quorum => "quorum",
        },
        proto_max_bulk_len: config.limits.proto_max_bulk_len.into(),
        query_buffer_limit: config.limits.client_query_buffer_limit.into(),
        output_limits: OutputSettings::new(config.limits.client_output_buffer_limit),
        rules: config.limits.rules.clone().into(),
        slowlog_log_slower_than_us: config.measure.slowlog_log_slower_than_us.into(),
        slowlog_max_len: config.measure.slowlog_max_len.into(),
        latency_monitor_threshold_ms: config.measure.latency_monitor_threshold_ms.into(),
        latency_tracking: config.measure.latency_tracking.into(),
        latency_percentiles: config.measure.latency_percentiles.clone().into(),
    }
}

/// The open ports of a server.
struct Ports {
    node: Node,
    config: ServeConfig,
    settings: Arc<Settings>,
    open: BTreeMap<ShardId, OpenPort>,
    shown: Shown,
}

struct OpenPort {
    shared: Arc<Shared<NodeReplica>>,
    /// Dropping it closes the port.
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
    /// Its replica has left this server: clients are redirected from here until then, and it closes.
    closes: Option<Instant>,
}

impl Ports {
    /// Opens the ports that have a replica by now.
    async fn follow(&mut self) -> Result<(), ServeError> {
        const BASE: ShardId = ShardId(0);
        let shards = self.node.shards().borrow().clone();
        let server = self.node.server();
        if server.cluster_id.is_none() && !self.open.contains_key(&BASE) {
            self.open_port(BASE).await?;
        }
        for (id, shard) in shards {
            if !self.open.contains_key(&id) {
                self.open_port(id).await?;
            }
            let shared = &self.open[&id].shared;
            if shared.engine().is_none_or(|engine| engine.id() != shard.replica()) {
                let replica = shard.replica().0;
                shared.set_engine(NodeReplica::new(&self.node, shard));
                info!(shard = id.0, replica, port = shared.port.number, "serving clients");
            }
        }
        // In a larger cluster this server may have no replica of a shard, and then nobody to answer for it.
        let Some((server, view)) = server.server_id.zip(self.node.view()) else { return Ok(()) };
        let now = Instant::now();
        for (id, port) in &mut self.open {
            if view.topology.mode == Mode::Standalone
                && let Some(engine) = port.shared.engine()
            {
                port.shared.note_leader(&view, engine.id());
            }
            let placed = view.topology.shard(*id).is_none_or(|shard| shard.replica_on(server).is_some());
            port.closes = match port.closes {
                _ if placed => None,
                // Nobody was served here yet, or nobody can be redirected.
                None if port.shared.engine().is_none() || view.topology.mode == Mode::Standalone => Some(now),
                closes => closes.or(Some(now + REDIRECTED_FOR)),
            };
        }
        let due = self.open.iter().filter(|(_, port)| port.closes.is_some_and(|closes| closes <= now));
        let due: Vec<ShardId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(port) = self.open.remove(&id) else { continue };
            self.shown.write().remove(&id);
            info!(shard = id.0, port = port.shared.port.number, "no replica is here: the port closes");
            port.close().await;
        }
        Ok(())
    }

    /// Ends when the next port is to be closed.
    async fn next_closing(&self) {
        match self.open.values().filter_map(|port| port.closes).min() {
            Some(closes) => tokio::time::sleep_until(closes).await,
            None => std::future::pending().await,
        }
    }

    async fn open_port(&mut self, id: ShardId) -> Result<(), ServeError> {
        let node = self.node.config();
        let number = node.base_port + id.0;
        let address = SocketAddr::new(self.config.bind, number);
        let listener = listener::open(address).map_err(|source| ServeError::Listen { address, source })?;
        let peer_port = node.base_port + PEER_PORT_OFFSET;
        let port = Port::new(
            number,
            peer_port,
            self.node.server().server_hex,
            Arc::clone(&self.settings),
            self.config.control.clone(),
        );
        let shared = Arc::new(Shared::new(port));
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(listen(listener, Arc::clone(&shared), stopped));
        self.shown.write().insert(id, Arc::clone(&shared));
        self.open.insert(id, OpenPort { shared, stop, task, closes: None });
        Ok(())
    }

    /// A sync of the log took so long, and no other one of late longer.
    fn note_sync(&self, took: Duration) {
        let threshold = self.settings.latency_monitor_threshold();
        for port in self.open.values() {
            port.shared.port.latency.observe(WAL_SYNC, took, threshold);
        }
    }

    async fn close(self) {
        futures::future::join_all(self.open.into_values().map(OpenPort::close)).await;
    }
}

impl OpenPort {
    async fn close(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            error!(%error, "a listener failed");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

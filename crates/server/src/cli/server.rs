//! `kvorum server`: one server, in the foreground, until it is told to stop.
//!
//! Reads the configuration, takes the data directory, starts the node and the client listeners, and on SIGTERM
//! or SIGINT hands leadership over, stops and exits with 0. What keeps it from starting is one line on standard
//! error and exit code 1.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kvorum::{
    Control, DebugCommand, LimitConfig, MeasureConfig, Rules, SentinelConfig, ServeConfig, ServeError,
};
use kvorum_node::{Node, NodeConfig, SnapshotConfig, Timing};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};

use super::lock::DirLock;
use super::logging;
use super::ports::{self, PortError};
use super::signals::StopSignals;
use crate::config::{self, Config, ReadMode, Settings};

/// How long a server may take to finish with its clients, to hand its leaderships over and to close its log.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Arguments of `kvorum server`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stop when this process, which must be the parent, ends
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<i32>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the server until it is told to stop.
pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(parent) = args.exit_with_parent {
        exit_with_parent(parent)?;
    }
    let env = |name: &str| std::env::var(name).ok();
    let config = Config::load(args.config.as_deref(), &env, args.settings)?;
    logging::start(&config)?;
    let _lock = DirLock::take(&config.dir, "server")?;
    ports::check_free(SocketAddr::new(config.bind, config.peer_port()))?;
    if let Some(http) = config.http() {
        ports::check_free(http)?;
    }
    if let (Some(sentinel), Some(_)) = (config.sentinel(), config.sentinel_port.0) {
        ports::check_free(sentinel)?;
    }
    raise_file_limit(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(client_threads(&config))
        .thread_name("clients")
        .enable_all()
        .build()
        .context("starting tokio")?;
    runtime.block_on(serve(config, args.config))
}

async fn serve(config: Config, file: Option<PathBuf>) -> Result<()> {
    let mut stop = StopSignals::new()?;
    let node = Node::start(node_config(&config)).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        host = config.announce_host,
        base_port = config.base_port,
        dir = %config.dir.display(),
        "server started"
    );
    if node.server().cluster_id.is_none() {
        info!("this server belongs to no cluster yet; `kvorum cluster create` makes one");
    }
    let (finish, finished) = oneshot::channel::<()>();
    let control = Control::default();
    let serve_config = ServeConfig { file, control: control.clone(), ..serve_config(&config) };
    let clients = kvorum::serve(node.clone(), serve_config, async move {
        let _ = finished.await;
    });
    tokio::pin!(clients);
    let (failure, mut ended) = loop {
        let failure = tokio::select! {
            () = stop.received() => None,
            () = control.asked() => None,
            why = node.failure() => Some(anyhow!("the log failed: {why}")),
            ended = &mut clients => Some(match ended {
                Ok(()) => anyhow!("the client ports closed"),
                Err(e) => explain(e),
            }),
        };
        info!("stopping");
        if failure.is_some() {
            // Without clients there is nothing to finish, and a future that has ended is not polled again.
            break (failure, true);
        }
        // Leaders go first, while clients are still served: they are redirected instead of cut off.
        tokio::select! {
            () = node.hand_over() => break (None, false),
            _ = &mut clients => break (None, true),
            () = control.withdrawn(), if control.is_asked() => info!("not stopping after all: SHUTDOWN ABORT"),
            () = stop.received() => {
                warn!("stopped at once");
                return Ok(());
            }
        }
    };
    control.commit();
    let stopped = async {
        drop(finish);
        if !std::mem::replace(&mut ended, true)
            && let Err(e) = clients.as_mut().await
        {
            warn!(error = %e, "the client ports did not close in order");
        }
        node.shutdown().await;
    };
    tokio::select! {
        done = timeout(STOP_TIMEOUT, stopped) => {
            if done.is_err() {
                warn!(after_s = STOP_TIMEOUT.as_secs(), "stopping takes too long; the next start reads the log");
            }
        }
        // Asked twice: at once. Nothing acknowledged is lost by that.
        () = stop.received() => warn!("stopped at once"),
    }
    failure.map_or(Ok(()), Err)
}

/// A port that is in use gets the name of who uses it.
fn explain(error: ServeError) -> anyhow::Error {
    let ServeError::Listen { address, ref source } = error;
    if source.kind() == io::ErrorKind::AddrInUse {
        return PortError::Busy(address, ports::holder_of(address)).into();
    }
    error.into()
}

fn serve_config(config: &Config) -> ServeConfig {
    ServeConfig {
        bind: config.bind,
        http: config.http(),
        sentinel: config.sentinel().map(|address| SentinelConfig {
            address,
            announced: config.announced_sentinel_port(),
            optional: config.sentinel_port.0.is_none(),
        }),
        debug_command: match config.enable_debug_command {
            config::DebugCommand::No => DebugCommand::No,
            config::DebugCommand::Local => DebugCommand::Local,
            config::DebugCommand::Yes => DebugCommand::Yes,
        },
        requirepass: config.requirepass.clone(),
        max_clients: config.maxclients,
        idle_timeout: Duration::from_secs(config.timeout),
        tcp_keepalive: Duration::from_secs(config.tcp_keepalive),
        limits: LimitConfig {
            proto_max_bulk_len: config.proto_max_bulk_len,
            client_query_buffer_limit: config.client_query_buffer_limit,
            client_output_buffer_limit: config.client_output_buffer_limit,
            rules: Rules {
                per_address: config.maxclients_per_address,
                per_name: config.maxclients_per_name,
                reserve: config.maxclients_reserve.into(),
                trusted: config.trusted_addresses.clone(),
                accept_rate: config.accept_rate.into(),
                accept_rate_per_address: config.accept_rate_per_address.into(),
            },
        },
        failover_hold: Duration::from_millis(config.failover_hold_ms),
        measure: MeasureConfig {
            slowlog_log_slower_than_us: config.slowlog_log_slower_than,
            slowlog_max_len: config.slowlog_max_len,
            latency_monitor_threshold_ms: config.latency_monitor_threshold,
            latency_tracking: config.latency_tracking,
            latency_percentiles: config.latency_tracking_info_percentiles.0.clone(),
        },
        ..ServeConfig::default()
    }
}

fn node_config(config: &Config) -> NodeConfig {
    NodeConfig {
        bind: match config.bind {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        },
        timing: Timing {
            heartbeat_ms: config.heartbeat_ms,
            election_min_ms: config.election_timeout_min_ms,
            election_max_ms: config.election_timeout_max_ms,
        },
        read_mode: match config.read_mode {
            ReadMode::Lease => kvorum_node::ReadMode::Lease,
            ReadMode::Quorum => kvorum_node::ReadMode::Quorum,
        },
        write_timeout: Duration::from_millis(config.write_timeout_ms),
        stale_bound: Duration::from_millis(config.stale_read_limit_ms),
        server_replace_after: Duration::from_secs(config.server_replace_after),
        leader_balance: config.leader_balance.then_some(kvorum_node::LEADER_CALM),
        raft_threads: raft_threads(config),
        announced_port: config.announced_port(),
        peer_host: config.peer_host().to_owned(),
        master_name: config.sentinel_master_name.clone(),
        snapshots: SnapshotConfig {
            log_bytes: config.snapshot_log_bytes,
            bytes_per_second: config.snapshot_bytes_per_second,
            ..SnapshotConfig::default()
        },
        peer_addresses: config.peer_addresses.0.clone(),
        ..NodeConfig::new(config.dir.clone(), &config.announce_host, config.base_port)
    }
}

/// Lets the kernel end this process, in order, when its parent ends.
fn exit_with_parent(parent: i32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("watching the parent process")?;
    // The parent may have ended before the kernel was told to watch it.
    if rustix::process::getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get()) != Some(parent) {
        bail!("the process that started this server has ended");
    }
    Ok(())
}

/// One file descriptor per client connection, and some for logs, peers and listeners.
fn raise_file_limit(config: &Config) {
    const OTHER_FILES: u64 = 1024;
    let wanted = u64::from(config.maxclients) + OTHER_FILES;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit });
    if raised.is_err() || current < wanted {
        warn!(
            limit = current,
            wanted,
            "the limit of open files is too low for maxclients; raise it (ulimit -n) or lower maxclients"
        );
    }
}

fn client_threads(config: &Config) -> usize {
    match config.client_threads {
        0 => cpus(),
        n => usize::from(n),
    }
}

fn raft_threads(config: &Config) -> usize {
    match config.raft_threads {
        0 => (cpus() / 2).max(1),
        n => usize::from(n),
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

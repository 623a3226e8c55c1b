//! `kvorum server`: one server, in the foreground, until it is told to stop.
//!
//! Reads the configuration, takes the data directory, starts the node and the client listeners, and on SIGTERM
//! or SIGINT hands leadership over, stops and exits with 0. What keeps it from starting is one line on standard
//! error and exit code 1.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tracing::{info, warn};

use super::lock::DirLock;
use super::logging;
use super::ports;
use super::signals::StopSignals;
use crate::config::{Config, Settings};

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
    ports::check_free(SocketAddr::new(config.bind, config.http_port()))?;
    raise_file_limit(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(client_threads(&config))
        .thread_name("clients")
        .enable_all()
        .build()
        .context("starting tokio")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let mut stop = StopSignals::new()?;
    info!(port = config.base_port, "started");
    stop.received().await;
    bail!("stopped")
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
        0 => (cpus() / 2).max(2),
        n => usize::from(n),
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

//! One machine of the simulation: its disk and clocks stay, its process comes and goes.

use crate::clock::MachineClock;
use crate::judge::Judge;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvorum_cluster::ServerId;
use kvorum_node::{
    Answer, Call, Contact, Node, NodeConfig, Observer, Platform, SnapshotConfig, TimeSource, WalConfig,
};
use kvorum_raft::disk::MemoryDisk;
use kvorum_raft::meta_store::MemoryMetaStore;
use kvorum_raft::{Clock, Environment, LocalNetwork};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A machine.
pub(crate) struct Machine {
    pub(crate) id: u64,
    pub(crate) disk: MemoryDisk,
    pub(crate) store: Arc<MemoryMetaStore>,
    pub(crate) clock: Arc<MachineClock>,
    pub(crate) process: Option<Process>,
    /// Processes started so far.
    pub(crate) starts: u64,
    /// Times the machine itself was started.
    pub(crate) boots: u64,
    /// Client calls wait while it is suspended.
    pub(crate) suspended: bool,
    /// How long a server is down before its replicas are made anew on others.
    pub(crate) replace_after: Duration,
}

/// A running server.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) node: Node,
    pub(crate) environment: Environment,
    /// The machine's disk, as this process sees it.
    pub(crate) disk: MemoryDisk,
}

/// The nodes that can be asked, by server.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<BTreeMap<u64, Process>>>);

impl Directory {
    pub(crate) fn enter(&self, server: u64, process: Process) {
        self.0.lock().insert(server, process);
    }

    pub(crate) fn leave(&self, server: u64) {
        self.0.lock().remove(&server);
    }

    pub(crate) fn get(&self, server: u64) -> Option<Process> {
        self.0.lock().get(&server).cloned()
    }
}

/// Asks other nodes through the simulated network.
struct SimContact {
    from: u64,
    network: LocalNetwork,
    directory: Directory,
}

impl Contact for SimContact {
    fn call(
        &self,
        to: ServerId,
        addr: &str,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Answer, String>> {
        let (from, network, directory) = (self.from, self.network.clone(), self.directory.clone());
        let to = addr.split(':').next().and_then(machine_at).unwrap_or(to.0);
        let exchange = async move {
            network.travel(from, to).await.map_err(|error| error.to_string())?;
            let process = directory.get(to).ok_or_else(|| "nobody listens".to_owned())?;
            let node = process.node.clone();
            let answer = process.environment.spawn(async move { node.answer(call).await });
            let answer = answer.await.map_err(|_| "the process has ended".to_owned())??;
            network.travel(to, from).await.map_err(|error| error.to_string())?;
            Ok(answer)
        };
        async move {
            let outcome = tokio::time::timeout(timeout, exchange).await;
            outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        }
        .boxed()
    }
}

impl Machine {
    /// Starts the server's process on what its disk holds.
    pub(crate) async fn start(
        &mut self,
        seed: u64,
        network: &LocalNetwork,
        directory: &Directory,
        judge: &Arc<Judge>,
    ) -> Result<(), String> {
        self.starts += 1;
        let clock: Arc<dyn Clock> = self.clock.clone();
        let environment = Environment::simulated(clock, seed ^ (self.id << 32) ^ (self.starts << 40));
        let platform = Platform {
            disk: Arc::new(self.disk.clone()),
            store: self.store.clone(),
            transport: Arc::new(network.transport(self.id)),
            contact: Arc::new(SimContact {
                from: self.id,
                network: network.clone(),
                directory: directory.clone(),
            }),
            environment: environment.clone(),
            observer: Some(Arc::clone(judge) as Arc<dyn Observer>),
            time: self.clock.clone() as Arc<dyn TimeSource>,
            boot_id: format!("{}-{}", self.id, self.boots),
        };
        let starting = environment.spawn(Node::start_with(config(self.id, self.replace_after), platform));
        let node = match starting.await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(format!("starting: {error}")),
        };
        let process = Process { node, environment, disk: self.disk.clone() };
        directory.enter(self.id, process.clone());
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process from one moment to the next.
    pub(crate) fn kill(&mut self, network: &LocalNetwork, directory: &Directory) {
        if let Some(process) = self.process.take() {
            process.environment.kill();
        }
        directory.leave(self.id);
        network.disconnect(self.id);
    }
}

fn config(id: u64, replace_after: Duration) -> NodeConfig {
    let mut config = NodeConfig::new(PathBuf::from("/data"), &host(id), base_port());
    config.wal = WalConfig {
        segment_bytes: 64 << 10,
        tail_bytes: 32 << 10,
        queue_bytes: 1 << 20,
        batch_bytes: 64 << 10,
        reserve_bytes: 256 << 10,
        lazy_sync_interval: Duration::from_millis(300),
        spare_segments: 1,
    };
    config.snapshots = SnapshotConfig {
        log_bytes: 12 << 10,
        keep_entries: 16,
        keep_bytes: 1 << 10,
        pinned_bytes: 128 << 10,
        block_bytes: 1 << 10,
        bytes_per_second: 0,
        interval: Duration::from_millis(200),
        ..SnapshotConfig::default()
    };
    config.write_timeout = Duration::from_secs(3);
    config.chunk_bytes = 32;
    config.server_replace_after = replace_after;
    config.leader_balance = Some(Duration::from_secs(1));
    config
}

pub(crate) fn host(id: u64) -> String {
    format!("10.0.0.{id}")
}

/// The machine at an address.
pub(crate) fn machine_at(host: &str) -> Option<u64> {
    host.rsplit('.').next()?.parse().ok()
}

pub(crate) fn base_port() -> u16 {
    7000
}

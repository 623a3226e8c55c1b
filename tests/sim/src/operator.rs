//! Operators: they let servers join, leave and be removed while things go wrong, and try again until it is done.

use crate::server::Directory;
use crate::trace::{Trace, say};
use kvorum_cluster::Topology;
use kvorum_node::Call;
use kvorum_proto::admin as rpc;
use kvorum_proto::admin::change_request::Change;
use kvorum_testkit::random::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long an operator waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// And one who is in a hurry.
const HURRY: Duration = Duration::from_millis(300);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Somebody at a terminal.
#[derive(Clone)]
pub(crate) struct Operator {
    pub(crate) directory: Directory,
    pub(crate) trace: Trace,
    /// Nobody begins anything any more.
    pub(crate) closing: Arc<AtomicBool>,
    pub(crate) machines: u64,
    pub(crate) random: Random,
    pub(crate) patience: Duration,
}

impl Operator {
    /// Asks somebody.
    async fn ask(&mut self, change: Change) -> Result<u64, String> {
        let process = self.directory.get(self.random.below(self.machines) + 1).ok_or("it is not there")?;
        let node = process.node.clone();
        let asking = process.environment.spawn(async move { node.change(change).await });
        let answer = tokio::time::timeout(self.patience, asking).await.map_err(|_| "no answer")?;
        answer.map_err(|_| "the process has ended".to_owned())?.map(|reply| reply.server)
    }

    /// Asks until it is agreed to; nothing when there is peace and nobody agrees.
    async fn insist(&mut self, change: Change) -> Option<u64> {
        while !self.closing.load(Ordering::Relaxed) {
            match self.ask(change.clone()).await {
                Ok(server) => {
                    say!(self.trace, "operator: {change:?}: {server}");
                    return Some(server);
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        None
    }

    /// `kvorum cluster join`; whether it was done.
    pub(crate) async fn join(mut self, machine: u64) -> bool {
        while !self.closing.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE).await;
            let Some(process) = self.directory.get(machine) else { continue };
            let described = process.node.describe();
            if described.cluster_id.is_some() {
                return true;
            }
            let add = rpc::AddServer {
                server_hex: described.server_hex,
                host: described.host,
                base_port: described.base_port.into(),
                peer: String::new(),
                rebalance: true,
            };
            let Ok(server_id) = self.ask(Change::Add(add)).await else { continue };
            let cluster_id = "simulated".to_owned();
            let adopt = rpc::AdoptRequest { cluster_id, server_id, joins: true, ..Default::default() };
            let node = process.node.clone();
            let adopting = process.environment.spawn(async move { node.answer(Call::Adopt(adopt)).await });
            if let Ok(Ok(Ok(_))) = tokio::time::timeout(PATIENCE, adopting).await {
                say!(self.trace, "operator: machine {machine} is server {server_id}");
                return true;
            }
        }
        false
    }

    /// `kvorum cluster leave`, tried once: it may be refused.
    pub(crate) async fn leave(mut self, server: u64) {
        let outcome = self.ask(Change::Leave(rpc::Leave { server, fewer_replicas: false })).await;
        say!(self.trace, "operator: server {server} leaves: {outcome:?}");
    }

    /// A machine has lost everything: its server is removed, and comes back as another.
    pub(crate) async fn replace(mut self, machine: u64, server: u64) {
        // Operators make mistakes: first it is asked to join as it is.
        let early = Operator { patience: HURRY, ..self.clone() };
        if tokio::time::timeout(PATIENCE, early.join(machine)).await == Ok(true) {
            // Which a server that votes with what it has forgotten would make possible.
            return;
        }
        if self.insist(Change::Remove(rpc::Remove { server })).await.is_none() {
            return;
        }
        self.clone().join(machine).await;
        self.insist(Change::Want(rpc::WantReplicas { replicas: 3 })).await;
    }

    /// `kvorum cluster rebalance`, tried once.
    pub(crate) async fn spread(mut self) {
        let outcome = self.ask(Change::Rebalance(rpc::Rebalance {})).await;
        say!(self.trace, "operator: rebalance: {outcome:?}");
    }
}

/// The newest topology that anybody knows.
pub(crate) fn topology(directory: &Directory, machines: u64) -> Option<Arc<Topology>> {
    let nodes = (1..=machines).filter_map(|machine| directory.get(machine)).map(|process| process.node);
    let topologies = nodes.filter_map(|node| Some(Arc::clone(&node.view()?.topology)));
    topologies.max_by_key(|topology| topology.version)
}

//! A server in this process.

use kvorum::{ServeConfig, serve};
use kvorum_cluster::{Durability, Mode};
use kvorum_node::{AdminClient, CreateCluster, Node, NodeConfig};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A base port whose client and peer ports are free at the moment.
pub(crate) fn free_base_port() -> u16 {
    for _ in 0..100 {
        let base = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if base < 60_000 && free(base + 1) && free(base + 98) && free(base + 99) {
            return base;
        }
    }
    panic!("no free ports");
}

pub(crate) struct Server {
    pub(crate) node: Node,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    #[allow(dead_code, reason = "not every test wants the defaults")]
    pub(crate) async fn start(dir: &Path, base_port: u16) -> Server {
        Server::start_with(dir, base_port, ServeConfig::default()).await
    }

    pub(crate) async fn start_with(dir: &Path, base_port: u16, config: ServeConfig) -> Server {
        let node = Node::start(NodeConfig::new(dir.to_owned(), "127.0.0.1", base_port)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = serve(node.clone(), config, async move {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Server { node, stop, task }
    }

    pub(crate) async fn stop(self) {
        drop(self.stop);
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
        self.node.shutdown().await;
    }
}

pub(crate) async fn create(base_port: u16, mode: Mode, shards: u16, databases: u16) {
    let peer = format!("127.0.0.1:{}", base_port + 98);
    let mut admin = AdminClient::connect(&peer).await.unwrap();
    let create = CreateCluster {
        servers: vec![peer],
        shards,
        replicas: 1,
        mode,
        durability: Durability::QuorumFsync,
        databases,
    };
    admin.create_cluster(&create).await.unwrap();
}

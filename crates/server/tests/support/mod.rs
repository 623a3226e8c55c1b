//! A server in this process.

use kvorum::{ServeConfig, serve};
use kvorum_cluster::{Durability, Mode};
use kvorum_node::{AdminClient, CreateCluster, Node, NodeConfig};
use kvorum_testkit::ports::PortBlock;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) node: Node,
    ports: PortBlock,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// A server on ports that are its own while it lives; the configuration may want to know the first of them.
    #[allow(dead_code, reason = "not every test wants a configuration")]
    pub(crate) async fn start_with(dir: &Path, config: impl FnOnce(u16) -> ServeConfig) -> Server {
        let ports = PortBlock::take().unwrap();
        let config = config(ports.base());
        Server::start(dir, ports, config).await
    }

    pub(crate) async fn start(dir: &Path, ports: PortBlock, config: ServeConfig) -> Server {
        let node = Node::start(NodeConfig::new(dir.to_owned(), "127.0.0.1", ports.base())).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = serve(node.clone(), config, async move {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Server { node, ports, stop, task }
    }

    pub(crate) fn base_port(&self) -> u16 {
        self.ports.base()
    }

    /// Ends it; its ports are there for the next one.
    pub(crate) async fn stop(self) -> PortBlock {
        drop(self.stop);
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
        self.node.shutdown().await;
        self.ports
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

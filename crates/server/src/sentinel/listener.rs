//! The listener of the Sentinel port.

use super::connection::{self, Shared};
use super::scene::Tunables;
use crate::listener::accept_until;
use crate::port::Port;
use kvorum_node::Node;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::error;

/// An open Sentinel port.
pub(crate) struct SentinelPort {
    shared: Arc<Shared>,
    /// Dropping it closes the port.
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Serves clients of this listener, who know it under the number `announced` if that is another one.
pub(crate) fn open(listener: TcpListener, port: Port, announced: Option<u16>, node: Node) -> SentinelPort {
    let shared = Arc::new(Shared {
        port,
        announced,
        node,
        tunables: Tunables::default(),
        draining: AtomicBool::new(false),
    });
    let (stop, stopped) = watch::channel(());
    let own = Arc::clone(&shared);
    let listening = async move {
        let serve = |stream, client| connection::serve(Arc::clone(&own), stream, client);
        accept_until((listener, stopped), &own.port, &own.draining, serve, |_| ()).await;
    };
    SentinelPort { shared, stop, task: tokio::spawn(listening) }
}

impl SentinelPort {
    /// What its connections share, for those who look at the port.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Takes no more clients and waits for those that are there.
    pub(crate) async fn close(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            error!(%error, "the Sentinel port failed");
        }
    }
}

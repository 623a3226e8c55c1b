//! The listener of the Sentinel port.

use super::connection::{self, Shared};
use super::scene::Tunables;
use crate::listener::{ACCEPT_PAUSE, ACCEPT_TURN, DRAIN_PATIENCE, admit, end_idle};
use crate::port::Port;
use crate::stats::SAMPLE_INTERVAL;
use futures::FutureExt;
use kvorum_node::Node;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, warn};

/// An open Sentinel port.
pub(crate) struct SentinelPort {
    /// Dropping it closes the port.
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Serves clients of this listener.
pub(crate) fn open(listener: TcpListener, port: Port, node: Node) -> SentinelPort {
    let shared =
        Arc::new(Shared { port, node, tunables: Tunables::default(), draining: AtomicBool::new(false) });
    let (stop, stopped) = watch::channel(());
    SentinelPort { stop, task: tokio::spawn(listen(listener, shared, stopped)) }
}

impl SentinelPort {
    /// Takes no more clients and waits for those that are there.
    pub(crate) async fn close(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            error!(%error, "the Sentinel port failed");
        }
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
    sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok(first) => {
                    let others = std::iter::from_fn(|| listener.accept().now_or_never().and_then(Result::ok));
                    for (stream, peer) in std::iter::once(first).chain(others).take(ACCEPT_TURN) {
                        if let Some(client) = admit(&shared.port, &stream, peer) {
                            connections.spawn(connection::serve(Arc::clone(&shared), stream, client));
                        }
                    }
                }
                Err(error) => {
                    warn!(port = shared.port.number, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = sample.tick() => {
                let now = Instant::now();
                shared.port.stats.sample(now);
                end_idle(&shared.port, now);
            }
        }
    }
    drop(listener);
    shared.draining.store(true, Ordering::Release);
    shared.port.clients.all().iter().for_each(|client| client.tell());
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_PATIENCE, drained).await.is_err() {
        warn!(port = shared.port.number, left = shared.port.clients.len(), "some connections are cut");
    }
}

//! The listener of one client port: lets connections in, and ends those that stay silent or take too little.
//!
//! Connections are accepted a few at a time, with a turn for the others in between; who has to wait does so in the kernel's
//! queue, and is not lost.

use crate::clients::Client;
use crate::connection::{self, Shared};
use crate::engine::Engine;
use crate::limits::Refusal;
use crate::port::Port;
use crate::stats::SAMPLE_INTERVAL;
use futures::FutureExt;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, warn};

/// Pause after a failed accept: out of file descriptors, most likely, which only time or a client can cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to finish when the server stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps for us to accept: a burst of them is taken, not turned away.
const BACKLOG: u32 = 4096;
/// Connections accepted before others have their turn.
const ACCEPT_TURN: usize = 16;
/// How often it is said that clients are refused.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// Listens on an address.
///
/// # Errors
/// When it is taken, or may not be used.
pub(crate) fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections of a data port until `stopped` closes, then waits for them to finish.
pub(crate) async fn listen<E: Engine>(
    listener: TcpListener,
    shared: Arc<Shared<E>>,
    stopped: watch::Receiver<()>,
) {
    let (mut refused, mut refusals_told) = (0, Instant::now());
    let look = |now: Instant| {
        if let Some(engine) = shared.engine() {
            shared.port.saves.observe(engine.snapshots().built, || engine.keyspace().sequence);
        }
        end_unread(&shared, now);
        if now.duration_since(refusals_told) >= REFUSAL_INTERVAL {
            refusals_told = now;
            tell_refusals(&shared.port, &mut refused);
        }
    };
    let serve = |stream, client| connection::serve(Arc::clone(&shared), stream, client);
    accept_until((listener, stopped), &shared.port, &shared.draining, serve, look).await;
}

/// Accepts connections of a port until `stopped` closes and has each served; then sets `draining` and waits for them to finish. `look`
/// is called every now and then.
pub(crate) async fn accept_until<C>(
    (listener, mut stopped): (TcpListener, watch::Receiver<()>),
    port: &Port,
    draining: &AtomicBool,
    serve: impl Fn(TcpStream, Arc<Client>) -> C,
    mut look: impl FnMut(Instant),
) where
    C: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
    sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok(first) => {
                    // Those that wait behind it come along, so that a burst does not cost a round for each.
                    let others = std::iter::from_fn(|| listener.accept().now_or_never().and_then(Result::ok));
                    for (stream, peer) in std::iter::once(first).chain(others).take(ACCEPT_TURN) {
                        if let Some(client) = admit(port, &stream, peer) {
                            connections.spawn(serve(stream, client));
                        }
                    }
                }
                Err(error) => {
                    // The connection that could not be accepted is still there: do not spin on it.
                    warn!(port = port.number, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => report(ended),
            _ = sample.tick() => {
                let now = Instant::now();
                port.stats.sample(now);
                end_idle(port, now);
                look(now);
            }
        }
    }
    drop(listener);
    draining.store(true, Ordering::Release);
    port.clients.all().iter().for_each(|client| client.tell());
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(DRAIN_PATIENCE, drained).await.is_err() {
        let left = port.clients.len();
        warn!(port = port.number, left, "some connections do not finish and are cut");
    }
}

/// Says how many clients were refused of late.
fn tell_refusals(port: &Port, told: &mut u64) {
    let counts: Vec<(Refusal, u64)> = port.limits.refused().filter(|(_, count)| *count > 0).collect();
    let total = counts.iter().map(|(_, count)| count).sum();
    if total > *told {
        let why: Vec<String> =
            counts.iter().map(|(refusal, count)| format!("{}={count}", refusal.word())).collect();
        warn!(
            port = port.number,
            refused = total - *told,
            since_start = why.join(" "),
            "clients are refused"
        );
    }
    *told = total;
}

/// Lets a client in, unless there are too many.
fn admit(port: &Port, stream: &TcpStream, peer: SocketAddr) -> Option<Arc<Client>> {
    // A client that is gone already has no address any more.
    let local = stream.local_addr().ok()?;
    let most = port.settings.maxclients.load(Ordering::Relaxed);
    let admitted = port.limits.admit(&port.settings.rules.read(), most, peer.ip(), Instant::now());
    if let Err(refusal) = admitted {
        port.stats.connections_rejected.fetch_add(1, Ordering::Relaxed);
        // As Redis: one attempt, for the buffer of a new connection takes it.
        let _ = stream.try_write(format!("-{}\r\n", refusal.text()).as_bytes());
        // What it has sent already would turn our goodbye into a reset, and it would not see why.
        let _ = stream.try_read(&mut [0; 1024]);
        return None;
    }
    let keepalive_s = port.settings.tcp_keepalive_s.load(Ordering::Relaxed);
    if keepalive_s > 0 {
        let time = Duration::from_secs(keepalive_s);
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(time / 3);
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    port.stats.connections_received.fetch_add(1, Ordering::Relaxed);
    Some(port.clients.enter(peer, local, stream.as_raw_fd()))
}

/// Ends connections that were silent for too long.
fn end_idle(port: &Port, now: Instant) {
    let Some(timeout) = port.settings.timeout() else { return };
    for client in port.clients.all() {
        if client.idle(now) < timeout || client.is_blocked() {
            continue;
        }
        // As Redis: who waits in a command or for what others do is not idle.
        let profile = client.profile();
        if !profile.monitor && !profile.is_subscriber() {
            client.kill();
        }
    }
}

/// Ends connections that leave too much unread for too long: the soft limit of `client-output-buffer-limit`.
fn end_unread<E: Engine>(shared: &Shared<E>, now: Instant) {
    let limit = shared.port.settings.output_limits.normal();
    if limit.soft_bytes == 0 {
        return;
    }
    for client in shared.port.clients.all() {
        if client.is_over_soft_limit(limit, now) && !client.is_killed() {
            shared.port.stats.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
            warn!(client = %client.describe(now), "a client left too much unread for too long and is disconnected");
            client.kill();
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Scripted, port};

    #[tokio::test]
    async fn every_connection_has_its_options_as_they_are_set_when_it_is_let_in() {
        let listener = open(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::<Scripted>::new(port());
        for keepalive_s in [300, 60, 0] {
            let _client = TcpStream::connect(address).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            // It waited to be accepted when this was changed.
            shared.port.settings.tcp_keepalive_s.store(keepalive_s, Ordering::Relaxed);
            let client = admit(&shared.port, &stream, peer).unwrap();
            assert_eq!((client.peer, client.local), (peer, address));
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.keepalive().unwrap(), keepalive_s > 0);
            if keepalive_s > 0 {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(keepalive_s));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(keepalive_s / 3));
            }
        }
    }
}

//! Subscribers of the Sentinel port that do not take their events: what the server keeps for them is bounded.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum::{OutputLimits, SentinelConfig, ServeConfig};
use kvorum_cluster::{Mode, ShardId};
use kvorum_node::Node;
use kvorum_testkit::http::{self, Exposition};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Events that may wait for a listener.
const FEED_LENGTH: usize = 4096;
/// The size of each payload, and of the message that carries it.
const PAYLOAD_BYTES: usize = 4096;
const MESSAGE_BYTES: usize = "*3\r\n$7\r\nmessage\r\n$4\r\n+set\r\n$4096\r\n\r\n".len() + PAYLOAD_BYTES;
const LARGE: u32 = 1 << 20;
const SMALL: u32 = 16 << 10;

async fn start(dir: &Path, output_limits: &str) -> Server {
    let output_limits = OutputLimits::default().changed(output_limits).unwrap();
    let config = |base_port| {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let sentinel = SentinelConfig { address: local(base_port + 97), announced: None, optional: false };
        let mut config = ServeConfig {
            http: Some(local(base_port + 99)),
            sentinel: Some(sentinel),
            ..ServeConfig::default()
        };
        config.limits.client_output_buffer_limit = output_limits;
        config
    };
    let server = Server::start_with(dir, config).await;
    create(server.base_port(), Mode::Standalone, 1, 1).await;
    // What the server itself has to tell is told before anybody counts.
    let begun = Instant::now();
    while server.node.events_told() == 0 {
        assert!(begun.elapsed() < PATIENCE, "no leader");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server
}

/// A client that is told of `+set`, and how much it takes without reading.
async fn subscribe(server: &Server, receive_buffer: u32) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.base_port() + 97));
    let start = Instant::now();
    let mut stream = loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        match socket.connect(address).await {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let (request, reply) = (b"SUBSCRIBE +set\r\n", b"*3\r\n$9\r\nsubscribe\r\n$4\r\n+set\r\n:1\r\n");
    stream.write_all(request).await.unwrap();
    let mut said = vec![0; reply.len()];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(said, reply);
    stream
}

/// Tells of so many events without letting anybody else have a turn.
fn tell(node: &Node, events: usize) {
    for n in 0..events {
        let payload = format!("{n:0PAYLOAD_BYTES$}");
        node.tell_listeners(ShardId(0), "mymaster".to_owned(), "+set", payload);
    }
}

async fn figure(server: &Server, name: &str) -> f64 {
    let address = format!("127.0.0.1:{}", server.base_port() + 99);
    let body = http::get(&address, "/metrics").await.unwrap().body;
    Exposition::parse(&body).unwrap().value(name, &[])
}

/// Reads until the server hangs up; a client that it keeps waits in vain.
async fn rest(stream: &mut TcpStream) -> usize {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // What was on its way to a client that has not read may end with a reset.
    let _ = read.expect("the server hangs up");
    bytes.len()
}

const DROPPED: &str = "kvorum_sentinel_output_buffer_limit_disconnections_total";

#[tokio::test]
async fn one_that_misses_events_is_disconnected() {
    let dir = tempfile::tempdir().unwrap();
    // The size of the output is not what ends it.
    let server = start(dir.path(), "pubsub 0 0 0").await;
    let mut client = subscribe(&server, LARGE).await;
    // As many as may wait come all.
    tell(&server.node, FEED_LENGTH);
    let mut said = vec![0; FEED_LENGTH * MESSAGE_BYTES];
    client.read_exact(&mut said).await.unwrap();
    assert!(said.ends_with(format!("{:0PAYLOAD_BYTES$}\r\n", FEED_LENGTH - 1).as_bytes()));
    assert_eq!(figure(&server, DROPPED).await, 0.0);
    // Of one more the first would be missing: it hears nothing rather than something else than happened.
    tell(&server.node, FEED_LENGTH + 1);
    assert_eq!(rest(&mut client).await, 0);
    assert_eq!(figure(&server, DROPPED).await, 1.0);
    server.stop().await;
}

#[tokio::test]
async fn one_that_leaves_too_much_unread_for_too_long_is_disconnected() {
    const EVENTS: usize = 2000;
    const SOFT_LIMIT: Duration = Duration::from_secs(3);
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), "pubsub 0 65536 3").await;
    let (mut slow, mut deaf) = (subscribe(&server, LARGE).await, subscribe(&server, SMALL).await);
    tell(&server.node, EVENTS);
    let told = Instant::now();
    // Above the limit for less than its time: one that reads then has everything, and stays.
    let mut said = vec![0; EVENTS * MESSAGE_BYTES];
    tokio::time::sleep(Duration::from_millis(500)).await;
    slow.read_exact(&mut said).await.unwrap();
    while figure(&server, DROPPED).await == 0.0 {
        assert!(told.elapsed() < PATIENCE, "a client that does not read is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(told.elapsed() >= SOFT_LIMIT, "it was disconnected after {:?}", told.elapsed());
    let had = rest(&mut deaf).await;
    assert!(had < EVENTS * MESSAGE_BYTES, "it got everything");
    tell(&server.node, 1);
    slow.read_exact(&mut said[..MESSAGE_BYTES]).await.unwrap();
    assert_eq!(figure(&server, DROPPED).await, 1.0);
    assert_eq!(figure(&server, "kvorum_sentinel_subscribers").await, 1.0);
    server.stop().await;
}

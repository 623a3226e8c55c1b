//! The HTTP port of a server, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum::ServeConfig;
use kvorum_cluster::Mode;
use kvorum_testkit::http::{self, Exposition, Response};
use kvorum_testkit::resp::{Connection, words};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Address of the port, once it is open.
async fn open(port: u16) -> String {
    let start = Instant::now();
    while let Err(error) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        assert!(start.elapsed() < PATIENCE, "port {port}: {error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    format!("127.0.0.1:{port}")
}

async fn send(port: u16, request: &str) -> Response {
    http::send(&open(port).await, request.as_bytes()).await.unwrap()
}

async fn get(port: u16, path: &str) -> Response {
    http::get(&open(port).await, path).await.unwrap()
}

async fn scrape(port: u16) -> Exposition {
    Exposition::parse(&get(port, "/metrics").await.body).unwrap()
}

async fn start(dir: &std::path::Path) -> (Server, u16) {
    let config = |base_port| {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + 99));
        ServeConfig { http: Some(http), ..ServeConfig::default() }
    };
    let server = Server::start_with(dir, config).await;
    let base_port = server.base_port();
    (server, base_port)
}

async fn until_ready(port: u16) {
    let start = Instant::now();
    loop {
        let response = get(port, "/readyz").await;
        if response.status == 200 {
            return;
        }
        assert_eq!(response.status, 503);
        assert!(start.elapsed() < PATIENCE, "not ready: {}", response.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_say_whether_the_server_lives_and_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (server, base_port) = start(dir.path()).await;
    let http = base_port + 99;
    let alive = get(http, "/healthz").await;
    assert_eq!((alive.status, alive.body.as_str()), (200, "ok\n"));
    let ready = get(http, "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "the server belongs to no cluster\n"));
    let events = get(http, "/events").await;
    assert_eq!((events.status, events.body.as_str()), (200, "[]\n"));
    scrape(http).await;
    create(base_port, Mode::Cluster, 2, 1).await;
    until_ready(http).await;

    assert_eq!(get(http, "/").await.status, 404);
    assert_eq!(get(http, "/metrics/x?y").await.status, 404);
    assert_eq!(get(http, "/healthz?verbose").await.status, 200);
    let refused = send(http, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(refused.status, 405);
    assert!(refused.head.contains("allow: get, head"), "{}", refused.head);
    let head = send(http, "HEAD /metrics HTTP/1.0\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.head.contains("content-type: text/plain; version=0.0.4"), "{}", head.head);
    assert_eq!(send(http, "nonsense\r\n\r\n").await.status, 400);
    let long = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(send(http, &long).await.status, 431);
    server.stop().await;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, http)).await.is_err(), "it stops with the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_clients_and_raft_do() {
    let dir = tempfile::tempdir().unwrap();
    let (server, base_port) = start(dir.path()).await;
    let http = base_port + 99;
    create(base_port, Mode::Standalone, 1, 16).await;
    until_ready(http).await;
    let before = scrape(http).await;
    let mut client = Connection::open(&format!("127.0.0.1:{base_port}")).await.unwrap();
    for line in [
        "SET k v",
        "GET k",
        "GET nosuch",
        "MGET k k",
        "INCR k",
        "NOSUCH",
        "SET k v PX 1",
        "SELECT 3",
        "SET x 1",
    ] {
        client.call(&words(line)).await.unwrap();
    }
    // What a client makes up is no label.
    client.call(&words("CLIENT SETNAME me")).await.unwrap();
    let start = Instant::now();
    let after = loop {
        let after = scrape(http).await;
        if after.value("kvorum_expired_keys_total", &[]) > 0.0 {
            break after;
        }
        assert!(start.elapsed() < PATIENCE, "the key expires");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let shard = ("shard", "0");
    let counted = |name: &str, labels: &[(&str, &str)]| after.value(name, labels);
    assert_eq!(counted("kvorum_connected_clients", &[shard]), 1.0);
    assert_eq!(counted("kvorum_client_connections_opened_total", &[shard]), 1.0);
    assert_eq!(counted("kvorum_client_connections_refused_total", &[shard, ("reason", "maxclients")]), 0.0);
    assert_eq!(counted("kvorum_commands_total", &[shard, ("command", "get")]), 2.0);
    assert_eq!(counted("kvorum_commands_failed_total", &[shard, ("command", "incr")]), 1.0);
    assert_eq!(counted("kvorum_command_duration_seconds", &[shard, ("command", "set")]), 3.0);
    assert_eq!(counted("kvorum_gets_total", &[shard]), 3.0);
    assert_eq!(counted("kvorum_sets_total", &[shard]), 3.0);
    assert_eq!(counted("kvorum_keyspace_hits_total", &[shard]), 3.0);
    assert_eq!(counted("kvorum_keyspace_misses_total", &[shard]), 1.0);
    assert_eq!(counted("kvorum_errors_total", &[shard, ("code", "ERR")]), 2.0);
    assert_eq!(counted("kvorum_evicted_keys_total", &[shard]), 0.0);
    assert_eq!(counted("kvorum_db_keys", &[shard, ("db", "3")]), 1.0);
    assert_eq!(counted("kvorum_raft_role", &[shard, ("role", "leader")]), 1.0);
    assert_eq!(counted("kvorum_raft_role", &[("shard", "meta"), ("role", "follower")]), 0.0);
    assert_eq!(counted("kvorum_raft_has_leader", &[shard]), 1.0);
    assert!(counted("kvorum_raft_elections_won_total", &[shard]) >= 1.0);
    assert!(counted("kvorum_raft_term", &[shard]) >= 1.0);
    assert!(
        counted("kvorum_raft_applied_index", &[shard]) > before.value("kvorum_raft_applied_index", &[shard])
    );
    assert!(
        counted("kvorum_wal_sync_duration_seconds", &[])
            > before.value("kvorum_wal_sync_duration_seconds", &[])
    );
    assert!(counted("kvorum_wal_written_bytes_total", &[]) > 0.0);
    assert!(counted("process_resident_memory_bytes", &[]) > 1e6);
    assert!(counted("process_open_fds", &[]) > 3.0);
    assert_eq!(counted("kvorum_build_info", &[("redis_version", "7.0.15")]), 1.0);
    client.call(&words("QUIT")).await.unwrap();
    let start = Instant::now();
    while scrape(http).await.value("kvorum_client_connections_closed_total", &[shard]) < 1.0 {
        assert!(start.elapsed() < PATIENCE, "the connection is counted as closed");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_http_port_does_not_hold_it_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (server, base_port) = start(dir.path()).await;
    let http = base_port + 99;
    assert_eq!(get(http, "/healthz").await.status, 200);
    // More than there is room for: who asked before may have been there still.
    let mut silent = Vec::new();
    for _ in 0..70 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, http)).await.unwrap();
        let _ = stream.write_all(b"GET /healthz HT").await;
        silent.push(stream);
    }
    // There is room for no other; it is told so by a closed connection, until the silent ones were silent for too long.
    let start = Instant::now();
    loop {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, http)).await.unwrap();
        let mut text = String::new();
        let sent = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let read = stream.read_to_string(&mut text).await;
        if sent.is_ok() && read.is_ok() && text.starts_with("HTTP/1.1 200 OK") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "silent connections are closed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(2), "the others had the places");
    server.stop().await;
}

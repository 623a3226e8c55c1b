//! The HTTP port of a server, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum::ServeConfig;
use kvorum_cluster::Mode;
use kvorum_testkit::resp::{Connection, words};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, create, free_base_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Response {
    status: u16,
    head: String,
    body: String,
}

/// Connects, once the port is open.
async fn connect(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "port {port}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn send(port: u16, request: &str) -> Response {
    let mut stream = connect(port).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_lowercase(), body: body.to_owned() }
}

async fn get(port: u16, path: &str) -> Response {
    send(port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

async fn start(dir: &std::path::Path) -> (Server, u16) {
    let base_port = free_base_port();
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + 99));
    let config = ServeConfig { http: Some(http), ..ServeConfig::default() };
    (Server::start_with(dir, base_port, config).await, base_port)
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

/// One metric family of the text format, as strictly as its specification has it.
#[derive(Default, Debug)]
struct Family {
    kind: String,
    /// Labels, with the suffix of the name in front, and the value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Parses Prometheus's text format 0.0.4. Every family has HELP and TYPE in front of all its samples, which stand together; no sample
/// stands twice; counters end in `_total`; the buckets of histograms ascend and end with the count.
fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line ends");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut help = None;
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && words.ends_with('.'), "{line}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(help.take().as_deref(), Some(name), "HELP stands before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            let family = Family { kind: kind.to_owned(), samples: Vec::new() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} stands twice");
            current = name.to_owned();
        } else {
            let end = line.find(['{', ' ']).unwrap();
            let (full, mut rest) = line.split_at(end);
            let suffix = full.strip_prefix(&current).unwrap_or_else(|| panic!("{line} belongs to {current}"));
            let mut labels = BTreeMap::new();
            if let Some(inside) = rest.strip_prefix('{') {
                let (inside, behind) = inside.split_once('}').unwrap();
                for pair in inside.split(',') {
                    let (name, value) = pair.split_once('=').unwrap();
                    let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                    assert!(is_name(name) && !value.contains(['"', '\\']), "{line}");
                    assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "{line}");
                }
                rest = behind;
            }
            let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(seen.insert((full.to_owned(), labels.clone())), "{line} stands twice");
            let family = families.get_mut(&current).unwrap();
            let suffixes: &[&str] =
                if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            assert_eq!(suffix == "_bucket", labels.contains_key("le"), "{line}");
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    for (name, family) in &families {
        assert!(!family.samples.is_empty(), "{name} has samples");
        let mut last: Option<(BTreeMap<String, String>, f64, f64)> = None;
        for (suffix, labels, value) in &family.samples {
            let mut labels = labels.clone();
            let bound = labels.remove("le").map(|bound| bound.replace("+Inf", "inf").parse::<f64>().unwrap());
            match (suffix.as_str(), bound) {
                ("_bucket", Some(bound)) => {
                    if let Some((same, before, count)) = &last
                        && *same == labels
                    {
                        assert!(bound > *before && value >= count, "buckets of {name} ascend");
                    }
                    last = Some((labels, bound, *value));
                }
                ("_count", None) => {
                    let (same, bound, count) = last.take().unwrap();
                    assert!(same == labels && bound.is_infinite() && count == *value, "{name} is whole");
                }
                _ => {}
            }
        }
    }
    families
}

/// The value of the sample with these labels, among others.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let family = families.get(name).unwrap_or_else(|| panic!("{name} is there"));
    let matches = |have: &BTreeMap<String, String>| {
        labels.iter().all(|(name, value)| have.get(*name).is_some_and(|have| have == value))
    };
    let found = family
        .samples
        .iter()
        .find(|(suffix, have, _)| suffix != "_bucket" && suffix != "_sum" && matches(have));
    found.unwrap_or_else(|| panic!("{name} has {labels:?}: {family:?}")).2
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
    parse(&get(http, "/metrics").await.body);
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
    let before = parse(&get(http, "/metrics").await.body);
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
        let after = parse(&get(http, "/metrics").await.body);
        if value(&after, "kvorum_expired_keys_total", &[]) > 0.0 {
            break after;
        }
        assert!(start.elapsed() < PATIENCE, "the key expires");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let shard = ("shard", "0");
    let counted = |name: &str, labels: &[(&str, &str)]| value(&after, name, labels);
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
        counted("kvorum_raft_applied_index", &[shard])
            > value(&before, "kvorum_raft_applied_index", &[shard])
    );
    assert!(
        counted("kvorum_wal_sync_duration_seconds", &[])
            > value(&before, "kvorum_wal_sync_duration_seconds", &[])
    );
    assert!(counted("kvorum_wal_written_bytes_total", &[]) > 0.0);
    assert!(counted("process_resident_memory_bytes", &[]) > 1e6);
    assert!(counted("process_open_fds", &[]) > 3.0);
    assert_eq!(counted("kvorum_build_info", &[("redis_version", "7.0.15")]), 1.0);
    client.call(&words("QUIT")).await.unwrap();
    let start = Instant::now();
    while value(&parse(&get(http, "/metrics").await.body), "kvorum_client_connections_closed_total", &[shard])
        < 1.0
    {
        assert!(start.elapsed() < PATIENCE, "the connection is counted as closed");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_http_port_does_not_hold_it_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (server, base_port) = start(dir.path()).await;
    let http = base_port + 99;
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut stream = connect(http).await;
        stream.write_all(b"GET /healthz HT").await.unwrap();
        silent.push(stream);
    }
    // There is room for no other; it is told so by a closed connection, until the silent ones were silent for too long.
    let start = Instant::now();
    loop {
        let mut stream = connect(http).await;
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

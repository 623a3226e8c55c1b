//! Commands about the server, on a server with data, a log and a clock.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum::ServeConfig;
use kvorum_cluster::Mode;
use kvorum_testkit::resp::{Connection, Value};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, create};

/// Connects as soon as the server listens.
async fn connect(port: u16) -> Connection {
    let start = Instant::now();
    loop {
        match Connection::open(&format!("127.0.0.1:{port}")).await {
            Ok(connection) => return connection,
            Err(error) => assert!(start.elapsed() < PATIENCE, "nobody listens: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn standalone() -> (tempfile::TempDir, Server, Connection) {
    standalone_with(|_| ServeConfig::default()).await
}

async fn standalone_with(
    config: impl FnOnce(&Path) -> ServeConfig,
) -> (tempfile::TempDir, Server, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |_| config(dir.path())).await;
    let base_port = server.base_port();
    create(base_port, Mode::Standalone, 1, 16).await;
    let mut client = connect(base_port).await;
    let start = Instant::now();
    while client.call(&["SET", "k", "v"]).await.unwrap() != Value::ok() {
        assert!(start.elapsed() < PATIENCE, "nobody leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (dir, server, client)
}

fn texts(value: &Value) -> Vec<String> {
    value.items().unwrap().iter().map(|word| word.text().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_commands_are_noted_with_their_arguments() {
    let (_dir, server, mut client) = standalone().await;
    client.call(&["CLIENT", "SETNAME", "me"]).await.unwrap();
    client.call(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await.unwrap();
    client.call(&["SLOWLOG", "RESET"]).await.unwrap();
    // A batch of its own each, then writes and reads in one.
    client.call(&["SET", "k", "1"]).await.unwrap();
    client.call(&["GET", "k"]).await.unwrap();
    client.pipeline(&["APPEND k 2", "STRLEN k", "INCR k"].map(kvorum_testkit::resp::words)).await.unwrap();
    let log = client.call(&["SLOWLOG", "GET", "6"]).await.unwrap();
    let noted: Vec<Vec<String>> =
        log.items().unwrap().iter().map(|entry| texts(&entry.items().unwrap()[3])).collect();
    assert_eq!(
        noted,
        [
            vec!["INCR", "k"],
            vec!["STRLEN", "k"],
            vec!["APPEND", "k", "2"],
            vec!["GET", "k"],
            vec!["SET", "k", "1"],
            vec!["SLOWLOG", "RESET"],
        ]
    );
    let entry = log.items().unwrap()[0].items().unwrap();
    assert!(entry[2].integer().unwrap() < 1_000_000, "the time of the run, in microseconds: {entry:?}");
    assert!(entry[4].text().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(entry[5].text().unwrap(), "me");
    // Nothing is slow now.
    client.call(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"]).await.unwrap();
    client.call(&["SLOWLOG", "RESET"]).await.unwrap();
    client.call(&["GET", "k"]).await.unwrap();
    assert_eq!(client.call(&["SLOWLOG", "LEN"]).await.unwrap(), Value::Integer(0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latencies_of_commands_are_counted() {
    let (_dir, server, mut client) = standalone().await;
    client.call(&["CONFIG", "RESETSTAT"]).await.unwrap();
    for _ in 0..10 {
        client.call(&["SET", "k", "1"]).await.unwrap();
        client.call(&["GET", "k"]).await.unwrap();
    }
    let shown = client.call(&["LATENCY", "HISTOGRAM", "get", "set", "incr"]).await.unwrap();
    let shown = shown.items().unwrap();
    assert_eq!(shown.len(), 4, "only commands that were called: {shown:?}");
    for histogram in [&shown[1], &shown[3]] {
        let fields = histogram.items().unwrap();
        assert_eq!(fields[1], Value::Integer(10));
        assert_eq!(fields[3].items().unwrap().last(), Some(&Value::Integer(10)), "the last bucket has all");
    }
    let info = client.call(&["INFO", "latencystats"]).await.unwrap().text().unwrap();
    assert!(info.contains("\r\nlatency_percentiles_usec_set:p50="), "{info}");
    client.call(&["CONFIG", "SET", "latency-tracking", "no"]).await.unwrap();
    client.call(&["CONFIG", "RESETSTAT"]).await.unwrap();
    client.call(&["GET", "k"]).await.unwrap();
    assert_eq!(client.call(&["LATENCY", "HISTOGRAM", "get"]).await.unwrap(), Value::Array(vec![]));
    server.stop().await;
}

async fn info(client: &mut Connection, section: &str, field: &str) -> String {
    let text = client.call(&["INFO", section]).await.unwrap().text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("{field} in {text}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saving_writes_a_snapshot() {
    let (dir, server, mut client) = standalone().await;
    assert_eq!(info(&mut client, "persistence", "rdb_saves").await, "0");
    assert_ne!(info(&mut client, "persistence", "rdb_changes_since_last_save").await, "0");
    let before = client.call(&["LASTSAVE"]).await.unwrap().integer().unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(client.call(&["SAVE"]).await.unwrap(), Value::ok());
    assert_eq!(info(&mut client, "persistence", "rdb_saves").await, "1");
    assert_eq!(info(&mut client, "persistence", "rdb_changes_since_last_save").await, "0");
    assert!(client.call(&["LASTSAVE"]).await.unwrap().integer().unwrap() > before);
    let files = || std::fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    assert!(files() > 0, "there is a snapshot");
    client.call(&["SET", "k", "2"]).await.unwrap();
    let started = Value::Status("Background saving started".to_owned());
    assert_eq!(client.call(&["BGSAVE"]).await.unwrap(), started);
    let start = Instant::now();
    while info(&mut client, "persistence", "rdb_saves").await != "2" {
        assert!(start.elapsed() < PATIENCE, "the snapshot is written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_on_disk() {
    let (_dir, server, mut client) = standalone().await;
    client.call(&["SET", "k", "2"]).await.unwrap();
    let both = Value::Array(vec![Value::Integer(1), Value::Integer(0)]);
    assert_eq!(client.call(&["WAITAOF", "1", "0", "0"]).await.unwrap(), both);
    // There is no other replica to wait for.
    let start = Instant::now();
    assert_eq!(client.call(&["WAITAOF", "1", "1", "100"]).await.unwrap(), both);
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(client.call(&["WAIT", "0", "0"]).await.unwrap(), Value::Integer(0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_not_removed_while_a_suite_says_so() {
    let (_dir, server, mut client) = standalone().await;
    assert_eq!(client.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).await.unwrap(), Value::ok());
    client.call(&["SET", "gone", "1", "PX", "1"]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.call(&["GET", "gone"]).await.unwrap(), Value::Null);
    assert_eq!(
        client.call(&["DBSIZE"]).await.unwrap(),
        Value::Integer(2),
        "it is counted until it is removed"
    );
    assert_eq!(client.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"]).await.unwrap(), Value::ok());
    let start = Instant::now();
    while client.call(&["DBSIZE"]).await.unwrap() != Value::Integer(1) {
        assert!(start.elapsed() < PATIENCE, "it is removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_settings_are_written_to_the_file() {
    let (dir, server, mut client) = standalone_with(|dir| {
        let file = dir.join("kvorum.toml");
        std::fs::write(&file, "# Mine.\nbase-port = 7100\ntimeout = 5 # short\n").unwrap();
        ServeConfig { file: Some(file), ..ServeConfig::default() }
    })
    .await;
    let set = ["CONFIG", "SET", "timeout", "0", "slowlog-max-len", "7", "latency-tracking", "no"];
    assert_eq!(client.call(&set).await.unwrap(), Value::ok());
    assert_eq!(client.call(&["CONFIG", "REWRITE"]).await.unwrap(), Value::ok());
    assert_eq!(
        std::fs::read_to_string(dir.path().join("kvorum.toml")).unwrap(),
        "# Mine.\nbase-port = 7100\ntimeout = 0 # short\nslowlog-max-len = 7\nlatency-tracking = false\n"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_events_are_observed() {
    let (_dir, server, mut client) = standalone().await;
    client.call(&["CONFIG", "SET", "latency-monitor-threshold", "1"]).await.unwrap();
    client.call(&["DEBUG", "SLEEP", "0.05"]).await.unwrap();
    let latest = client.call(&["LATENCY", "LATEST"]).await.unwrap();
    let command = |latest: &Value, name: &str| {
        let events = latest.items().unwrap().to_vec();
        events.into_iter().find(|event| event.items().unwrap()[0].text().as_deref() == Some(name))
    };
    let slept = command(&latest, "command").unwrap_or_else(|| panic!("{latest:?}"));
    assert!((50..5_000).contains(&slept.items().unwrap()[2].integer().unwrap()), "{slept:?}");
    // A write of a megabyte takes the disk a millisecond; once in a while is enough.
    let start = Instant::now();
    while command(&client.call(&["LATENCY", "LATEST"]).await.unwrap(), "wal-sync").is_none() {
        assert!(start.elapsed() < PATIENCE, "a slow sync is observed");
        client.call(&["SET", "k", &"x".repeat(1 << 20)]).await.unwrap();
    }
    assert!(
        client.call(&["LATENCY", "DOCTOR"]).await.unwrap().text().unwrap().contains("The disk takes long")
    );
    server.stop().await;
}

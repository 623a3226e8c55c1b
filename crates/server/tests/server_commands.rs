//! Commands about the server, on a server with data, a log and a clock.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum_cluster::Mode;
use kvorum_testkit::resp::{Connection, Value};
use support::{PATIENCE, Server, create, free_base_port};

async fn connect(port: u16) -> Connection {
    Connection::open(&format!("127.0.0.1:{port}")).await.unwrap()
}

async fn standalone() -> (tempfile::TempDir, Server, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let base_port = free_base_port();
    let server = Server::start(dir.path(), base_port).await;
    create(base_port, Mode::Standalone, 1, 16).await;
    let mut client = connect(base_port).await;
    let start = std::time::Instant::now();
    while client.call(&["SET", "k", "v"]).await.unwrap() != Value::ok() {
        assert!(start.elapsed() < PATIENCE, "nobody leads");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
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

//! One server in this process, from its first start to its second, over a real socket.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

use kvorum::ServeConfig;
use kvorum_cluster::Mode;
use kvorum_testkit::ports::PortBlock;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Client(TcpStream);

impl Client {
    async fn connect(port: u16) -> Client {
        let start = Instant::now();
        loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                Ok(stream) => return Client(stream),
                Err(error) => assert!(start.elapsed() < PATIENCE, "port {port}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn expect(&mut self, requests: &str, replies: &str) {
        self.0.write_all(requests.as_bytes()).await.unwrap();
        let mut got = vec![0; replies.len()];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut got)).await;
        assert_eq!(String::from_utf8_lossy(&got), replies, "{requests} ({read:?})");
    }

    /// Sends one request until its reply is this one.
    async fn expect_in_time(&mut self, request: &str, reply: &str) {
        let start = Instant::now();
        loop {
            self.0.write_all(request.as_bytes()).await.unwrap();
            let mut got = vec![0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.0.read(&mut got)).await.unwrap().unwrap();
            let got = String::from_utf8_lossy(&got[..read]).into_owned();
            if got == reply {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{request}: {got}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), PortBlock::take().unwrap(), ServeConfig::default()).await;
    let base_port = server.base_port();

    // Before there is a cluster, the base port answers for an empty node.
    let mut client = Client::connect(base_port).await;
    client
        .expect("PING\r\nGET bar\r\nDBSIZE\r\n", "+PONG\r\n-CLUSTERDOWN Hash slot not served\r\n:0\r\n")
        .await;

    create(base_port, Mode::Cluster, 2, 1).await;
    // The same connection serves as soon as there is a leader; slots of the other shard are on the next port.
    client.expect_in_time("SET bar 1\r\n", "+OK\r\n").await;
    let moved = format!("-MOVED 12182 127.0.0.1:{}\r\n", base_port + 1);
    client.expect_in_time("GET foo\r\n", &moved).await;
    client
        .expect(
            "INCR bar\r\nGET bar\r\nMGET bar foo\r\nSET bar 5 PX 1\r\nEXPIRE bar x\r\nPING\r\n",
            ":2\r\n$1\r\n2\r\n-CROSSSLOT Keys in request don't hash to the same slot\r\n+OK\r\n\
             -ERR value is not an integer or out of range\r\n+PONG\r\n",
        )
        .await;
    client.expect_in_time("GET bar\r\n", "$-1\r\n").await;
    let mut other = Client::connect(base_port + 1).await;
    other.expect("SET foo hello\r\nSTRLEN foo\r\nDBSIZE\r\n", "+OK\r\n:5\r\n:1\r\n").await;
    let pipeline = "APPEND foo !\r\n".repeat(1_000);
    let replies: String = (6..1_006).map(|length| format!(":{length}\r\n")).collect();
    other.expect(&pipeline, &replies).await;
    // Larger than an entry of the log may be: it goes in chunks, and what comes behind it runs behind it.
    let large = "x".repeat(9 << 20);
    let pipeline = format!(
        "SET foo first\r\n*3\r\n$3\r\nSET\r\n$3\r\nfoo\r\n${}\r\n{large}\r\nSTRLEN foo\r\nAPPEND foo !\r\nGET foo\r\n",
        large.len()
    );
    let replies = format!("+OK\r\n+OK\r\n:{0}\r\n:{1}\r\n${1}\r\n{large}!\r\n", large.len(), large.len() + 1);
    other.expect(&pipeline, &replies).await;
    other.expect("SET foo small\r\n", "+OK\r\n").await;
    let mset = format!(
        "*5\r\n$4\r\nMSET\r\n$3\r\nfoo\r\n${0}\r\n{large}\r\n$8\r\n{{foo}}bar\r\n${0}\r\n{large}\r\n",
        large.len()
    );
    other.expect(&mset, "+OK\r\n").await;
    let ports = server.stop().await;

    // What was acknowledged is there after a restart.
    let server = Server::start(dir.path(), ports, ServeConfig::default()).await;
    let mut other = Client::connect(base_port + 1).await;
    other.expect("STRLEN foo\r\nSTRLEN {foo}bar\r\nDBSIZE\r\n", ":9437184\r\n:9437184\r\n:2\r\n").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), PortBlock::take().unwrap(), ServeConfig::default()).await;
    let base_port = server.base_port();
    create(base_port, Mode::Standalone, 1, 16).await;
    let mut client = Client::connect(base_port).await;
    client.expect_in_time("SET a 1\r\n", "+OK\r\n").await;
    client
        .expect(
            "MSET b 2 foo 3\r\nMGET a b foo\r\nSELECT 9\r\nGET a\r\nSET a 9\r\nSELECT 0\r\nGET a\r\n",
            "+OK\r\n*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n+OK\r\n$-1\r\n+OK\r\n+OK\r\n$1\r\n1\r\n",
        )
        .await;
    client.expect("CLUSTER INFO\r\n", "-ERR This instance has cluster support disabled\r\n").await;
    server.stop().await;
}

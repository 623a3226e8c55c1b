//! Connections over real sockets, in front of a scripted replica.

use crate::connection::Shared;
use crate::listener::listen;
use crate::testing::{Scripted, Step, port};
use kvorum_cluster::Mode;
use kvorum_node::ReadError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Long enough for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to believe that something does not happen.
const SILENCE: Duration = Duration::from_millis(100);

/// A port in front of a replica.
struct Server {
    shared: Arc<Shared<Scripted>>,
    address: SocketAddr,
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(replica: Option<&Scripted>) -> Server {
        let shared = Arc::new(Shared::new(port()));
        if let Some(replica) = replica {
            shared.set_engine(replica.clone());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(listen(listener, Arc::clone(&shared), stopped));
        Server { shared, address, stop, task }
    }

    async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    fn held(&self) -> u64 {
        self.shared.port.stats.holds.load(Ordering::Relaxed)
    }
}

/// A connection from an address that nobody trusts.
async fn stranger(server: &Server, last: u8) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    Client(socket.connect(server.address).await.unwrap())
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, requests: &str) {
        self.0.write_all(requests.as_bytes()).await.unwrap();
    }

    /// The next bytes must be exactly these.
    async fn expect(&mut self, replies: &str) {
        let mut got = vec![0; replies.len()];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut got)).await;
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(read.is_ok(), "expected {replies:?}, got {got:?} so far");
        read.unwrap().unwrap();
        assert_eq!(got, replies);
    }

    async fn expect_silence(&mut self) {
        let mut byte = [0];
        let read = tokio::time::timeout(SILENCE, self.0.read(&mut byte)).await;
        assert!(read.is_err(), "expected nothing yet, got {read:?} {byte:?}");
    }

    async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.unwrap();
        // A reset is an end, too.
        assert!(rest.is_empty() && !matches!(read, Ok(1..)), "{:?}", String::from_utf8_lossy(&rest));
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const DOWN: &str = "-CLUSTERDOWN The cluster is down\r\n";

/// Another replica takes its place on this server; clients keep their connections.
#[tokio::test]
async fn a_connection_goes_on_with_the_replica_that_is_behind_the_port_now() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\nGET bar\r\n").await;
    client.expect("+OK\r\n$1\r\n1\r\n").await;
    server.shared.set_engine(Scripted::leading(Mode::Cluster));
    client.send("GET bar\r\nSET bar 2\r\n").await;
    client.expect("$-1\r\n+OK\r\n").await;
}

#[tokio::test]
async fn who_asked_for_a_shutdown_waits_until_it_is_called_off_or_the_port_closes() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    client.send("SET bar 1\r\nSHUTDOWN\r\nGET bar\r\n").await;
    client.expect("+OK\r\n").await;
    until("the wish arrives", || server.shared.port.control.is_asked()).await;
    client.expect_silence().await;
    other.send("SHUTDOWN ABORT\r\nSET bar 2\r\n").await;
    other.expect("+OK\r\n+OK\r\n").await;
    client.expect("-ERR Errors trying to SHUTDOWN. Check logs.\r\n$1\r\n2\r\n").await;

    other.send("SHUTDOWN NOW\r\nGET bar\r\n").await;
    until("the wish arrives", || server.shared.port.control.is_asked()).await;
    server.shared.port.control.commit();
    drop(server.stop);
    other.expect_end().await;
    tokio::time::timeout(PATIENCE, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pipeline_is_answered_in_its_order() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client
        .send(
            "GET bar\r\nSET bar 1\r\nINCR bar\r\nPING\r\nGET bar\r\nGET foo\r\nMGET bar foo\r\nNOPE\r\nGET\r\n\
             INCR bar\r\nCLUSTER COUNTKEYSINSLOT 5061\r\nSET bar x\r\nINCR bar\r\nGET bar\r\n",
        )
        .await;
    client
        .expect(
            "$-1\r\n+OK\r\n:2\r\n+PONG\r\n$1\r\n2\r\n-MOVED 12182 10.0.0.3:7002\r\n\
             -CROSSSLOT Keys in request don't hash to the same slot\r\n\
             -ERR unknown command 'NOPE', with args beginning with: \r\n\
             -ERR wrong number of arguments for 'get' command\r\n:3\r\n:1\r\n+OK\r\n\
             -ERR value is not an integer or out of range\r\n$1\r\nx\r\n",
        )
        .await;
    let stats = &server.shared.port.stats;
    until("statistics are added at the end of a turn", || {
        stats.commands().any(|stats| stats.name == "incr" && (stats.calls, stats.failed) == (3, 1))
    })
    .await;
    let get = stats.commands().find(|stats| stats.name == "get").unwrap();
    assert_eq!((get.calls, get.rejected), (3, 2));
    let errors = stats.errors();
    assert!(
        errors.contains(&("MOVED".to_owned(), 1)) && errors.contains(&("ERR".to_owned(), 3)),
        "{errors:?}"
    );
}

/// StackExchange.Redis sends its whole handshake at once; a reply that is lost would shift all those behind it.
#[tokio::test]
async fn a_wrong_password_within_a_pipeline_costs_no_reply() {
    const NO_AUTH: &str = "-NOAUTH Authentication required.\r\n";
    const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    server.shared.port.settings.requirepass.set("secret".parse().unwrap());
    let mut client = server.client().await;
    client
        .send(
            "AUTH wrong\r\nHELLO 3\r\nCLIENT SETNAME x\r\nCONFIG GET timeout\r\nGET bar\r\nSET bar 1\r\nECHO tracer\r\n\
             NOPE\r\nAUTH secret\r\nSET bar 1\r\nAUTH wrong\r\nGET bar\r\nECHO tracer\r\n",
        )
        .await;
    client.expect(WRONG).await;
    client.expect("-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n").await;
    client.expect(&NO_AUTH.repeat(5)).await;
    client.expect("-ERR unknown command 'NOPE', with args beginning with: \r\n+OK\r\n+OK\r\n").await;
    client.expect(WRONG).await;
    client.expect("$1\r\n1\r\n$6\r\ntracer\r\n").await;
}

#[tokio::test]
async fn who_has_not_authenticated_sends_small_requests() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    server.shared.port.settings.requirepass.set("secret".parse().unwrap());
    let mut client = server.client().await;
    client.send("PING\r\n*11\r\n").await;
    client
        .expect(
            "-NOAUTH Authentication required.\r\n-ERR Protocol error: unauthenticated multibulk length\r\n",
        )
        .await;
    client.expect_end().await;
    // What is behind an AUTH in the same bytes is that of a client that has authenticated.
    let mut client = server.client().await;
    client.send("*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*12\r\n$3\r\nDEL\r\n").await;
    client.send(&"$3\r\nbar\r\n".repeat(11)).await;
    client.expect("+OK\r\n:0\r\n").await;
}

#[tokio::test]
async fn a_read_does_not_overtake_a_write_that_is_pending() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut client = server.client().await;
    client.send("SET bar 1\r\n").await;
    client.expect_silence().await;
    client.send("GET bar\r\nPING\r\n").await;
    client.expect_silence().await;
    assert!(decide.send(Step::Run).is_ok());
    client.expect("+OK\r\n$1\r\n1\r\n+PONG\r\n").await;
    assert_eq!(replica.log(), ["SET bar 1", "GET bar"], "the read went behind the write");
}

#[tokio::test]
async fn what_is_sent_during_an_election_waits_and_then_runs_in_order() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\nPING\r\nINCR bar\r\nGET foo\r\nGET bar\r\n").await;
    client.expect_silence().await;
    assert_eq!(server.held(), 1);
    replica.elect(0, 2, 1);
    client.expect("+OK\r\n+PONG\r\n:2\r\n-MOVED 12182 10.0.0.3:7002\r\n$1\r\n2\r\n").await;
}

#[tokio::test]
async fn who_waited_is_sent_to_the_new_leader() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\nGET bar\r\nDBSIZE\r\n").await;
    client.expect_silence().await;
    replica.elect(0, 2, 2);
    client.expect("-MOVED 5061 10.0.0.2:7000\r\n-MOVED 5061 10.0.0.2:7000\r\n:0\r\n").await;
    assert!(replica.log().is_empty());
}

#[tokio::test]
async fn holding_ends_with_an_error() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.failover_hold_ms.store(150, Ordering::Relaxed);
    let mut client = server.client().await;
    let start = Instant::now();
    client.send("SET bar 1\r\nGET bar\r\nPING\r\n").await;
    client.expect(&format!("{DOWN}{DOWN}+PONG\r\n")).await;
    assert!(start.elapsed() >= Duration::from_millis(150));
    // And the connection is as good as before.
    replica.elect(0, 2, 1);
    client.send("SET bar 2\r\n").await;
    client.expect("+OK\r\n").await;
    assert_eq!(replica.log(), ["SET bar 2"]);
}

/// A leader that lost its majority still takes batches, and gives them back.
#[tokio::test]
async fn holding_ends_at_a_leader_without_a_majority_too() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.failover_hold_ms.store(150, Ordering::Relaxed);
    let mut client = server.client().await;
    let mut began = Instant::now();
    for command in ["SET bar 1\r\n", "GET bar\r\n"] {
        replica.expect((0..200).map(|_| Step::NotLeader));
        replica.fail_reads((0..200).map(|_| ReadError::NotLeader));
        client.send(command).await;
        client.expect(DOWN).await;
        let held = began.elapsed();
        assert!((150..450).contains(&held.as_millis()), "{command} was held for {held:?}");
        began = Instant::now();
    }
}

/// It cannot elect anybody, so it lets clients go to those who may have.
#[tokio::test]
async fn a_server_that_is_cut_off_holds_nobody_for_longer_than_an_election() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.failover_hold_ms.store(60_000, Ordering::Relaxed);
    replica.depose(0, 2);
    let mut client = server.client().await;
    replica.silence(&[3]);
    client.send("SET bar 1\r\n").await;
    client.expect_silence().await;
    until("it is held", || server.held() == 1).await;
    replica.silence(&[2, 3]);
    client.expect(DOWN).await;
    assert!(replica.log().is_empty());
}

/// Each wait is counted for itself.
#[tokio::test]
async fn a_client_that_was_redirected_is_held_anew() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.failover_hold_ms.store(200, Ordering::Relaxed);
    let mut client = server.client().await;
    client.send("SET bar 1\r\n").await;
    until("it is held", || server.held() == 1).await;
    replica.elect(0, 2, 2);
    client.expect("-MOVED 5061 10.0.0.2:7000\r\n").await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    replica.depose(0, 3);
    client.send("SET bar 2\r\n").await;
    client.expect_silence().await;
    replica.elect(0, 3, 1);
    client.expect("+OK\r\n").await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_not_held() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\n").await;
    until("it is held", || server.held() == 1).await;
    drop(client);
    until("it is gone", || server.shared.port.clients.len() == 0).await;
    replica.elect(0, 2, 1);
    tokio::time::sleep(SILENCE).await;
    assert!(replica.log().is_empty(), "what was held was dropped");
}

#[tokio::test]
async fn a_batch_that_found_no_leader_runs_when_there_is_one() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    replica.expect([Step::NotLeader, Step::NotLeader]);
    let mut client = server.client().await;
    client.send("SET bar 1\r\nINCR bar\r\nPING\r\n").await;
    client.expect("+OK\r\n:2\r\n+PONG\r\n").await;
    assert_eq!(replica.log(), ["SET bar 1", "INCR bar"]);
}

#[tokio::test]
async fn a_batch_does_not_run_after_one_that_was_sent_later() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let (first, second, third) = (replica.expect_later(), replica.expect_later(), replica.expect_later());
    let mut client = server.client().await;
    for request in ["SET bar 1\r\n", "SET bar 2\r\n", "SET bar 3\r\n"] {
        client.send(request).await;
        client.expect_silence().await;
    }
    assert!(first.send(Step::NotLeader).is_ok());
    client.expect_silence().await;
    assert!(third.send(Step::NotLeader).is_ok());
    assert!(second.send(Step::Run).is_ok());
    client.expect(&format!("{DOWN}+OK\r\n+OK\r\n")).await;
    assert_eq!(replica.log(), ["SET bar 2", "SET bar 3"]);
}

#[tokio::test]
async fn an_unknown_outcome_is_told_for_each_command_and_nothing_runs_twice() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    replica.expect([Step::Unknown]);
    let mut client = server.client().await;
    client.send("INCR bar\r\nINCR bar\r\n").await;
    client.expect("-UNKNOWN ").await;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n-UNKNOWN ") {
        line.push(client.0.read_u8().await.unwrap());
    }
    while !line.ends_with(b"\r\n") {
        line.push(client.0.read_u8().await.unwrap());
    }
    client.send("PING\r\n").await;
    client.expect("+PONG\r\n").await;
    assert!(replica.log().is_empty());
    assert_eq!(server.shared.port.stats.unknown_outcomes.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn reads_without_a_lease_wait_for_one() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    replica.fail_reads([ReadError::NotLeader, ReadError::NotLeader]);
    let mut client = server.client().await;
    client.send("GET bar\r\nPING\r\nEXISTS bar\r\n").await;
    client.expect("$-1\r\n+PONG\r\n:0\r\n").await;
    assert!(server.held() >= 1);
}

#[tokio::test]
async fn followers_serve_reads_after_readonly_as_long_as_they_are_fresh() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.elect(0, 2, 2);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("GET bar\r\nREADONLY\r\nGET bar\r\nSET bar 1\r\n").await;
    let moved = "-MOVED 5061 10.0.0.2:7000\r\n";
    client.expect(&format!("{moved}+OK\r\n$-1\r\n{moved}")).await;
    replica.fail_reads([ReadError::TooStale]);
    client.send("GET bar\r\nREADWRITE\r\nGET bar\r\n").await;
    let too_old = "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n";
    client.expect(&format!("{too_old}+OK\r\n{moved}")).await;
    client.send("FLUSHALL\r\n").await;
    client.expect("-READONLY You can't write against a read only replica.\r\n").await;
}

#[tokio::test]
async fn who_came_to_the_leader_of_a_standalone_cluster_is_served_by_the_next_one() {
    let replica = Scripted::leading(Mode::Standalone);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SELECT 3\r\nSET bar 1\r\n").await;
    client.expect("+OK\r\n+OK\r\n").await;
    replica.elect(0, 2, 2);
    client.send("INCR bar\r\nGET bar\r\nPING\r\nINCRBY bar x\r\n").await;
    client.expect(":2\r\n$1\r\n2\r\n+PONG\r\n-ERR value is not an integer or out of range\r\n").await;
    let forwarded = replica.log().iter().filter(|line| *line == "forwarded to database 3").count();
    assert!(forwarded >= 2, "{:?}", replica.log());

    // The one after that does not lead when it is asked; then it is there.
    replica.expect([Step::NotLeader]);
    client.send("INCR bar\r\n").await;
    client.expect(":3\r\n").await;
    // It finds no leader, and when there is one, it is this replica.
    let decide = replica.expect_later();
    client.send("DECR bar\r\n").await;
    client.expect_silence().await;
    replica.elect(0, 3, 1);
    assert!(decide.send(Step::NotLeader).is_ok());
    client.expect(":2\r\n").await;
    assert_eq!(replica.log().last().unwrap(), "DECR bar", "it is not forwarded");
    replica.elect(0, 4, 2);
    client.send("INCR bar\r\n").await;
    client.expect(":3\r\n").await;
    // Nobody knows what became of this one.
    replica.expect([Step::Unknown]);
    client.send("INCR bar\r\n").await;
    client.expect(&format!("-{}\r\n", crate::dispatch::UNKNOWN)).await;
    client.send("GET bar\r\n").await;
    client.expect("$1\r\n3\r\n").await;

    // Who asks a follower is told, when it has been one for a while.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut other = server.client().await;
    other.send("SELECT 3\r\nGET bar\r\nINCR bar\r\n").await;
    let read_only = "-READONLY You can't write against a read only replica.\r\n";
    other.expect(&format!("+OK\r\n$1\r\n3\r\n{read_only}")).await;
}

#[tokio::test]
async fn who_came_to_the_leader_does_not_read_the_past_of_a_deposed_one() {
    let replica = Scripted::leading(Mode::Standalone);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\n").await;
    client.expect("+OK\r\n").await;
    replica.depose(0, 2);
    client.send("GET bar\r\nSET bar 2\r\n").await;
    client.expect_silence().await;
    replica.elect(0, 3, 3);
    client.expect("$1\r\n1\r\n+OK\r\n").await;
    replica.depose(0, 4);
    replica.silence(&[2, 3]);
    client.send("GET bar\r\n").await;
    client.expect(DOWN).await;
}

#[tokio::test]
async fn who_came_to_a_deposed_leader_is_let_go_when_it_has_nothing_to_do() {
    let replica = Scripted::leading(Mode::Standalone);
    let server = Server::start(Some(&replica)).await;
    let (mut idle, mut busy) = (server.client().await, server.client().await);
    for client in [&mut idle, &mut busy] {
        client.send("SET bar 1\r\n").await;
        client.expect("+OK\r\n").await;
    }
    replica.elect(0, 2, 2);
    // Somebody was told a moment ago that the leader is here, and comes before the port's own task has seen that it is not: that tells
    // the idle one as well.
    let mut late = server.client().await;
    late.send("INCR bar\r\n").await;
    late.expect(":2\r\n").await;
    let began = Instant::now();
    let ending = tokio::spawn(async move { idle.expect_end().await });
    while !ending.is_finished() {
        assert!(began.elapsed() < PATIENCE, "an idle client stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
        busy.send("GET bar\r\n").await;
        busy.expect("$1\r\n2\r\n").await;
    }
    ending.await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Who asks for a follower has one.
    let mut reader = server.client().await;
    reader.send("GET bar\r\n").await;
    reader.expect("$1\r\n2\r\n").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    reader.send("GET bar\r\nINCR bar\r\n").await;
    reader.expect("$1\r\n2\r\n-READONLY You can't write against a read only replica.\r\n").await;
    busy.expect_end().await;
    late.expect_end().await;
}

#[tokio::test]
async fn replies_can_be_turned_off() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client
        .send(
            "CLIENT REPLY OFF\r\nSET bar 1\r\nGET bar\r\nPING\r\nNOPE\r\nGET foo\r\nCLIENT REPLY ON\r\n\
             CLIENT REPLY SKIP\r\nINCR bar\r\nINCR bar\r\n",
        )
        .await;
    client.expect("+OK\r\n:3\r\n").await;
    client.expect_silence().await;
}

#[tokio::test]
async fn hello_switches_the_protocol_of_what_follows() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut client = server.client().await;
    client.send("SET bar 1 GET\r\nHELLO 3\r\nGET nosuch{bar}\r\n").await;
    client.expect_silence().await;
    assert!(decide.send(Step::Run).is_ok());
    client
        .expect(
            "$-1\r\n%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n\
             $2\r\nid\r\n:1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n\
             *0\r\n_\r\n",
        )
        .await;
}

#[tokio::test]
async fn bytes_that_are_no_request_end_the_connection_after_earlier_replies() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\nGET bar\r\n*1\r\n:1\r\nGET bar\r\n").await;
    client.expect("+OK\r\n$1\r\n1\r\n-ERR Protocol error: expected '$', got ':'\r\n").await;
    client.expect_end().await;
    let mut client = server.client().await;
    client.send("INCR bar\r\nQUIT\r\nINCR bar\r\n").await;
    client.expect(":2\r\n+OK\r\n").await;
    client.expect_end().await;
    assert_eq!(replica.log().last().unwrap(), "INCR bar");
    assert_eq!(replica.log().iter().filter(|command| *command == "INCR bar").count(), 1);
}

#[tokio::test]
async fn half_a_connection_still_gets_its_replies() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("SET bar 1\r\nGET bar\r\nGET b").await;
    client.0.shutdown().await.unwrap();
    client.expect("+OK\r\n$1\r\n1\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn a_large_pipeline_is_answered_and_others_have_their_turn() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut greedy = server.client().await;
    const COMMANDS: usize = 50_000;
    let (mut read, mut write) = greedy.0.into_split();
    let writer = tokio::spawn(async move {
        write.write_all("SET bar 12345\r\nGET bar\r\n".repeat(COMMANDS).as_bytes()).await.unwrap();
        write
    });
    let mut other = server.client().await;
    for _ in 0..20 {
        other.send("PING\r\n").await;
        other.expect("+PONG\r\n").await;
    }
    let reply = "+OK\r\n$5\r\n12345\r\n";
    let mut got = vec![0; reply.len() * COMMANDS];
    tokio::time::timeout(6 * PATIENCE, read.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got == reply.repeat(COMMANDS).as_bytes());
    greedy = Client(read.reunite(writer.await.unwrap()).unwrap());
    greedy.send("PING\r\n").await;
    greedy.expect("+PONG\r\n").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send(&format!("SET bar {}\r\n", "x".repeat(50_000))).await;
    client.expect("+OK\r\n").await;
    // 5,000 replies of 50,000 bytes: 250 MB that nobody reads.
    let requests = "GET bar\r\n".repeat(5_000);
    client.send(&requests).await;
    let stats = &server.shared.port.stats;
    let mut last = 0;
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = stats.commands_processed.load(Ordering::Relaxed);
        if now == last && now > 1 {
            break;
        }
        last = now;
    }
    assert!(last < 1_000, "{last} commands run for a client that takes no replies");
    let reply = format!("$50000\r\n{}\r\n", "x".repeat(50_000));
    for _ in 0..5_000 {
        client.expect(&reply).await;
    }
}

#[tokio::test]
async fn too_many_clients_are_turned_away() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.maxclients.store(1, Ordering::Relaxed);
    let mut first = server.client().await;
    first.send("PING\r\n").await;
    first.expect("+PONG\r\n").await;
    let mut second = server.client().await;
    second.expect("-ERR max number of clients reached\r\n").await;
    second.expect_end().await;
    drop(first);
    until("the first is gone", || server.shared.port.clients.len() == 0).await;
    let mut third = server.client().await;
    third.send("PING\r\n").await;
    third.expect("+PONG\r\n").await;
    assert_eq!(server.shared.port.stats.connections_rejected.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn silent_clients_are_ended_after_the_timeout() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("CONFIG SET timeout 1\r\n").await;
    client.expect("+OK\r\n").await;
    client.expect_end().await;
}

#[tokio::test]
async fn clients_can_be_killed() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let (mut victim, mut killer) = (server.client().await, server.client().await);
    victim.send("CLIENT ID\r\n").await;
    victim.expect(":1\r\n").await;
    killer.send("CLIENT KILL ID 1\r\nCLIENT KILL ID 1 SKIPME no\r\n").await;
    killer.expect(":1\r\n").await;
    victim.expect_end().await;
    killer.send("CLIENT KILL ID 2 SKIPME no\r\n").await;
    let mut rest = String::new();
    killer.0.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with(":1\r\n"), "{rest}");
}

#[tokio::test]
async fn stopping_finishes_what_was_sent() {
    let replica = Scripted::leading(Mode::Cluster);
    let Server { shared, address, stop, task } = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut busy = Client(TcpStream::connect(address).await.unwrap());
    let mut idle = Client(TcpStream::connect(address).await.unwrap());
    busy.send("SET bar 1\r\nGET bar\r\n").await;
    until("both are there", || shared.port.clients.len() == 2).await;
    busy.expect_silence().await;
    drop(stop);
    idle.expect_end().await;
    assert!(decide.send(Step::Run).is_ok());
    busy.expect("+OK\r\n$1\r\n1\r\n").await;
    busy.expect_end().await;
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_server_without_a_cluster_looks_like_an_empty_node() {
    let server = Server::start(None).await;
    let mut client = server.client().await;
    client.send("PING\r\nGET bar\r\nMGET a b\r\nDBSIZE\r\nKEYS *\r\nFLUSHALL\r\nWAIT 0 0\r\n").await;
    let not_served = "-CLUSTERDOWN Hash slot not served\r\n";
    client.expect(&format!("+PONG\r\n{not_served}{not_served}:0\r\n*0\r\n{not_served}:0\r\n")).await;
}

#[tokio::test]
async fn a_standalone_leader_takes_keys_of_all_slots() {
    let replica = Scripted::leading(Mode::Standalone);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("MSET a 1 b 2\r\nMGET a b foo\r\nSELECT 3\r\nCLUSTER INFO\r\n").await;
    client
        .expect(
            "+OK\r\n*3\r\n$1\r\n1\r\n$1\r\n2\r\n$-1\r\n+OK\r\n\
             -ERR This instance has cluster support disabled\r\n",
        )
        .await;
    replica.elect(0, 2, 2);
    client.send("GET a\r\n").await;
    client.expect("$1\r\n1\r\n").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut client = server.client().await;
    client.send("SELECT 0\r\nSET a 1\r\nGET a\r\n").await;
    client.expect("+OK\r\n-READONLY You can't write against a read only replica.\r\n$1\r\n1\r\n").await;
}

#[tokio::test]
async fn wait_answers_in_its_place() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut client = server.client().await;
    client.send("SET bar 1\r\nWAIT 5 100\r\nPING\r\n").await;
    client.expect_silence().await;
    assert!(decide.send(Step::Run).is_ok());
    client.expect("+OK\r\n:2\r\n+PONG\r\n").await;
}

#[tokio::test]
async fn who_is_held_when_the_port_closes_is_told() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.depose(0, 2);
    let Server { shared, address, stop, task } = Server::start(Some(&replica)).await;
    let mut client = Client(TcpStream::connect(address).await.unwrap());
    client.send("SET bar 1\r\n").await;
    until("it is held", || shared.port.stats.holds.load(Ordering::Relaxed) == 1).await;
    drop(stop);
    client.expect(DOWN).await;
    client.expect_end().await;
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn replies_do_not_pile_up_behind_a_write_that_is_pending() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut client = server.client().await;
    let echo = format!("ECHO {}\r\n", "x".repeat(20_000));
    client.send("SET bar 1\r\n").await;
    let (mut read, mut write) = client.0.into_split();
    let writer = tokio::spawn(async move {
        for _ in 0..2_000 {
            write.write_all(echo.as_bytes()).await.unwrap();
        }
    });
    let stats = &server.shared.port.stats;
    let mut last = 0;
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = stats.input_bytes.load(Ordering::Relaxed);
        if now == last && now > 1_000_000 {
            break;
        }
        last = now;
    }
    assert!(last < 4_000_000, "{last} of 40,000,000 bytes taken while a write is pending");
    assert!(decide.send(Step::Run).is_ok());
    let reply = format!("$20000\r\n{}\r\n", "x".repeat(20_000));
    let mut got = vec![0; 5 + 2_000 * reply.len()];
    tokio::time::timeout(PATIENCE, read.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got == format!("+OK\r\n{}", reply.repeat(2_000)).as_bytes());
    writer.await.unwrap();
}

#[tokio::test]
async fn waiting_for_ever_ends_with_the_client() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.wait_for_ever();
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("WAIT 3 0\r\n").await;
    until("it is there", || server.shared.port.clients.len() == 1).await;
    client.expect_silence().await;
    drop(client);
    until("it is gone", || server.shared.port.clients.len() == 0).await;
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A pipeline against a replica that loses and finds its leader, refuses and forgets at random. Whatever happens:
/// one reply for each request, writes run in their order and at most once, `+OK` if and only if the write ran or
/// `UNKNOWN` was said, and a read sees every earlier write of its connection that was acknowledged.
async fn invariant_order(seed: u64) {
    const REQUESTS: usize = 120;
    let mut random = Random(seed);
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    server.shared.port.settings.failover_hold_ms.store(60, Ordering::Relaxed);
    for _ in 0..40 {
        replica.expect([match random.below(6) {
            0 | 1 => Step::NotLeader,
            2 => Step::Unknown,
            _ => Step::Run,
        }]);
        if random.below(3) == 0 {
            replica.fail_reads([ReadError::NotLeader]);
        }
    }
    let requests: Vec<String> = (1..=REQUESTS)
        .map(|n| match random.below(5) {
            0 => format!("PING {n}\r\n"),
            1 | 2 => "GET bar\r\n".to_owned(),
            _ => format!("SET bar {n}\r\n"),
        })
        .collect();
    let (read, mut write) = server.client().await.0.into_split();
    let mut pieces = Vec::new();
    let mut rest = &requests[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(1 + random.below(12) as usize));
        pieces.push(piece.concat());
        rest = after;
    }
    let elections = replica.clone();
    let writer = tokio::spawn(async move {
        let mut term = 1;
        for piece in pieces {
            write.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_micros(200 * random.below(10))).await;
            term += 1;
            match random.below(4) {
                0 => elections.depose(0, term),
                _ => elections.elect(0, term, 1),
            }
        }
        elections.elect(0, term + 1, 1);
        write
    });
    let mut read = tokio::io::BufReader::new(read);
    let mut acknowledged = 0;
    for (n, request) in (1..).zip(&requests) {
        let reply = tokio::time::timeout(PATIENCE, one_reply(&mut read)).await;
        let reply = reply.unwrap_or_else(|_| panic!("seed {seed}: no reply to request {n}"));
        let logged = replica.log().contains(&request.trim().to_owned());
        match (&request[..4], reply.as_str()) {
            ("PING", reply) => assert_eq!(reply, n.to_string(), "seed {seed}"),
            (_, reply) if reply.starts_with("-CLUSTERDOWN") => {
                assert!(request.starts_with("GET") || !logged, "seed {seed}: a definite error for {request}");
            }
            (_, reply) if reply.starts_with("-UNKNOWN") => {}
            ("SET ", reply) => {
                assert!(reply == "+OK" && logged, "seed {seed}: {reply} to {request}");
                acknowledged = n;
            }
            (_, reply) => {
                let seen: u64 = if reply == "$-1" { 0 } else { reply.parse().unwrap() };
                assert!(seen >= acknowledged && seen <= n, "seed {seed}: read {seen} after {acknowledged}");
            }
        }
    }
    let numbers: Vec<u64> = replica
        .log()
        .iter()
        .filter_map(|command| command.strip_prefix("SET bar "))
        .map(|number| number.parse().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "seed {seed}: {numbers:?}");
    drop(writer.await.unwrap());
}

/// A line, or the content of a bulk string.
async fn one_reply(read: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> String {
    use tokio::io::AsyncBufReadExt;
    let mut line = String::new();
    read.read_line(&mut line).await.unwrap();
    if line.starts_with('$') && line != "$-1\r\n" {
        line.clear();
        read.read_line(&mut line).await.unwrap();
    }
    line.trim_end().to_owned()
}

#[tokio::test]
async fn order_holds_whatever_happens() {
    for seed in 0..40 {
        invariant_order(seed).await;
    }
}

/// The line of CLIENT LIST of a connection.
fn described(server: &Server, id: u64) -> String {
    server.shared.port.clients.get(id).map(|client| client.describe(Instant::now())).unwrap_or_default()
}

#[tokio::test]
async fn a_pause_holds_clients_and_refuses_nothing() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let (mut admin, mut client) = (server.client().await, server.client().await);
    admin.send("CLIENT PAUSE 60000 WRITE\r\n").await;
    admin.expect("+OK\r\n").await;
    client.send("GET bar\r\nPING\r\n").await;
    client.expect("$-1\r\n+PONG\r\n").await;
    // What stands behind a write waits with it, and nothing of it is lost or turned round.
    client.send("GET bar\r\nSET bar 1\r\nGET bar\r\nPING\r\nINCR bar\r\nNOPE\r\n").await;
    client.expect("$-1\r\n").await;
    client.expect_silence().await;
    until("a held client is shown as such", || described(&server, 2).contains(" flags=b ")).await;
    assert!(described(&server, 2).contains(" cmd=set "), "{}", described(&server, 2));
    assert_eq!(server.shared.port.clients.blocked(), 1);
    assert_eq!(replica.log(), [""; 0]);
    admin.send("CLIENT UNPAUSE\r\n").await;
    admin.expect("+OK\r\n").await;
    client
        .expect(
            "+OK\r\n$1\r\n1\r\n+PONG\r\n:2\r\n-ERR unknown command 'NOPE', with args beginning with: \r\n",
        )
        .await;
    until("it is held no more", || server.shared.port.clients.blocked() == 0).await;
    assert_eq!(server.held(), 0, "no hold for want of a leader");
}

#[tokio::test]
async fn a_pause_of_everything_ends_by_itself() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut admin, mut client) = (server.client().await, server.client().await);
    admin.send("CLIENT PAUSE 400\r\n").await;
    admin.expect("+OK\r\n").await;
    let start = Instant::now();
    // What is refused is refused at once, as in Redis.
    client.send("NOPE\r\nGET\r\nPING\r\nGET bar\r\n").await;
    client
        .expect(
            "-ERR unknown command 'NOPE', with args beginning with: \r\n\
             -ERR wrong number of arguments for 'get' command\r\n",
        )
        .await;
    admin.send("CLIENT UNPAUSE\r\n").await;
    admin.expect_silence().await;
    client.expect("+PONG\r\n$-1\r\n").await;
    assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
    admin.expect("+OK\r\n").await;
}

#[tokio::test]
async fn who_sleeps_is_answered_when_it_wakes_and_the_port_stands_still_meanwhile() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut sleeper, mut client) = (server.client().await, server.client().await);
    let start = Instant::now();
    sleeper.send("PING\r\nDEBUG SLEEP 0.3\r\nPING\r\n").await;
    sleeper.expect("+PONG\r\n").await;
    client.send("NOPE\r\n").await;
    sleeper.expect_silence().await;
    client.expect("-ERR unknown command 'NOPE', with args beginning with: \r\n").await;
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    sleeper.expect("+OK\r\n+PONG\r\n").await;
    let stats = &server.shared.port.stats;
    until("the time it slept is counted", || {
        stats
            .commands()
            .any(|stats| stats.name == "debug|sleep" && stats.calls == 1 && stats.micros >= 300_000)
    })
    .await;
}

#[tokio::test]
async fn who_is_paused_when_the_port_closes_is_told() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut admin, mut client) = (server.client().await, server.client().await);
    admin.send("CLIENT PAUSE 60000\r\n").await;
    admin.expect("+OK\r\n").await;
    client.send("SET bar 1\r\nPING\r\n").await;
    client.expect_silence().await;
    drop(server.stop);
    client.expect(&DOWN.repeat(2)).await;
    client.expect_end().await;
    tokio::time::timeout(PATIENCE, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_wait_can_be_ended_by_others() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.wait_for_ever();
    let server = Server::start(Some(&replica)).await;
    let (mut admin, mut client) = (server.client().await, server.client().await);
    client.send("PING\r\n").await;
    client.expect("+PONG\r\n").await;
    for (how, reply) in [
        ("", ":2\r\n"),
        (" TIMEOUT", ":2\r\n"),
        (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
    ] {
        client.send("WAIT 3 0\r\nPING\r\n").await;
        until("it waits", || described(&server, 2).contains(" flags=b ")).await;
        admin.send(&format!("CLIENT UNBLOCK 2{how}\r\n")).await;
        admin.expect(":1\r\n").await;
        client.expect(reply).await;
        client.expect("+PONG\r\n").await;
    }
    until("it waits no more", || !described(&server, 2).contains(" flags=b ")).await;
    admin.send("CLIENT UNBLOCK 2\r\n").await;
    admin.expect(":0\r\n").await;
}

#[tokio::test]
async fn monitors_see_what_runs() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut monitor, mut client) = (server.client().await, server.client().await);
    monitor.send("MONITOR\r\n").await;
    monitor.expect("+OK\r\n").await;
    client
        .send(
            "SET bar \"a b\"\r\nGET foo\r\nNOPE\r\nGET\r\nAUTH default secret\r\nCONFIG GET timeout\r\nECHO x\r\n",
        )
        .await;
    client.expect("+OK\r\n-MOVED 12182 10.0.0.3:7002\r\n").await;
    let address = client.0.local_addr().unwrap();
    let mut seen = String::new();
    while !seen.contains("ECHO") {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(PATIENCE, monitor.0.read(&mut bytes)).await.unwrap().unwrap();
        seen += std::str::from_utf8(&bytes[..read]).unwrap();
    }
    let shown: Vec<&str> = seen.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let expected = [
        format!("[0 {address}] \"SET\" \"bar\" \"a b\""),
        format!("[0 {address}] \"AUTH\" \"(redacted)\" \"(redacted)\""),
        format!("[0 {address}] \"ECHO\" \"x\""),
    ];
    assert_eq!(shown, expected);
    // It can leave, and then sees nothing.
    monitor.send("RESET\r\nGET bar\r\n").await;
    monitor.expect("+RESET\r\n$3\r\na b\r\n").await;
    client.send("PING\r\n").await;
    monitor.expect_silence().await;
}

#[tokio::test]
async fn a_monitor_that_does_not_read_is_cut_off() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let (mut monitor, mut client) = (server.client().await, server.client().await);
    monitor.send("MONITOR\r\n").await;
    monitor.expect("+OK\r\n").await;
    let echo = format!("*2\r\n$4\r\nECHO\r\n$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    let reply = format!("$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    let start = Instant::now();
    let stats = &server.shared.port.stats;
    while stats.output_limit_disconnections.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < PATIENCE, "{}", described(&server, 1));
        client.send(&echo).await;
        client.expect(&reply).await;
    }
    until("it is gone", || server.shared.port.clients.len() == 1).await;
    client.send("PING\r\n").await;
    client.expect("+PONG\r\n").await;
}

/// The numbers of CLIENT LIST are measured, not made up.
#[tokio::test]
async fn buffers_and_traffic_are_shown() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let mut client = server.client().await;
    client.send("PING\r\nECHO abc\r\nPI").await;
    client.expect("+PONG\r\n$3\r\nabc\r\n").await;
    until("what was read and written is shown", || {
        let line = described(&server, 1);
        line.contains(" qbuf=2 ") && line.contains(" tot-net-in=18 tot-net-out=16 tot-cmds=2")
    })
    .await;
    client.send("NG\r\n").await;
    client.expect("+PONG\r\n").await;
    // Replies that nobody takes are shown, too.
    let echo = format!("*2\r\n$4\r\nECHO\r\n$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    client.0.set_nodelay(true).unwrap();
    for _ in 0..8 {
        // The server stops reading at some point, so not all of it may get there.
        let _ = tokio::time::timeout(SILENCE, client.0.write_all(echo.as_bytes())).await;
    }
    until("unsent replies are shown", || {
        let line = described(&server, 1);
        line.contains(" events=rw ") && line.contains(" obl=16384 ") && !line.contains(" omem=0 ")
    })
    .await;
}

#[tokio::test]
async fn who_is_refused_is_told_why_and_operators_still_get_in() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let port = &server.shared.port;
    port.settings.maxclients.store(200, Ordering::Relaxed);
    {
        let mut rules = port.settings.rules.write();
        rules.per_address = "2".parse().unwrap();
        rules.per_name = "2".parse().unwrap();
    }
    let (mut first, mut second) = (stranger(&server, 2).await, stranger(&server, 2).await);
    for client in [&mut first, &mut second] {
        client.send("CLIENT SETNAME web\r\nPING\r\n").await;
        client.expect("+OK\r\n+PONG\r\n").await;
    }
    let mut third = stranger(&server, 2).await;
    third.expect("-ERR max number of clients of this address reached (maxclients-per-address)\r\n").await;
    third.expect_end().await;
    // One that is too many of its name hears so and goes, whatever else it has sent.
    let name = "-ERR max number of clients of this name reached (maxclients-per-name)\r\n";
    for greeting in ["CLIENT SETNAME web", "HELLO 3 SETNAME web"] {
        let mut third = stranger(&server, 3).await;
        third.send(&format!("PING\r\n{greeting}\r\nPING\r\n")).await;
        third.expect(&format!("+PONG\r\n{name}")).await;
        third.expect_end().await;
    }
    let mut other = stranger(&server, 3).await;
    other.send("CLIENT SETNAME batch\r\n").await;
    other.expect("+OK\r\n").await;
    drop(first);
    until("its place is free", || port.clients.len() == 2).await;
    let mut third = stranger(&server, 2).await;
    third.send("HELLO 2 SETNAME web\r\nCLIENT GETNAME\r\n").await;
    until("it has the name", || {
        port.clients.all().iter().any(|client| client.id > 5 && client.name() == b"web")
    })
    .await;
    // The last places are for operators.
    port.settings.rules.write().per_address = crate::Quota::None;
    let mut all = Vec::new();
    while port.clients.len() < 198 {
        let mut client = stranger(&server, 4).await;
        client.send("PING\r\n").await;
        client.expect("+PONG\r\n").await;
        all.push(client);
    }
    let full = "-ERR max number of clients reached\r\n";
    stranger(&server, 5).await.expect(full).await;
    let mut operator = server.client().await;
    operator.send("PING\r\n").await;
    operator.expect("+PONG\r\n").await;
    port.settings.rules.write().accept_rate_per_address = 1;
    drop(all);
    until("they are gone", || port.clients.len() < 10).await;
    let rate =
        "-ERR too many new connections of this address, try again in a second (accept-rate-per-address)\r\n";
    let start = Instant::now();
    let mut told = String::new();
    while told.is_empty() {
        // On a slow machine more than a second may go by between two of them.
        assert!(start.elapsed() < PATIENCE, "none is refused");
        let mut client = stranger(&server, 6).await;
        let mut bytes = [0; 256];
        if let Ok(read) = tokio::time::timeout(SILENCE, client.0.read(&mut bytes)).await {
            told = String::from_utf8_lossy(&bytes[..read.unwrap()]).into_owned();
        }
    }
    assert_eq!(told, rate);
    let refused: Vec<_> = port.limits.refused().map(|(refusal, count)| (refusal.word(), count)).collect();
    assert_eq!(refused[..4], [("maxclients", 1), ("address", 1), ("name", 2), ("rate", 0)]);
    let at_the_door = refused.iter().map(|(_, count)| count).sum::<u64>() - 2;
    assert_eq!(port.stats.connections_rejected.load(Ordering::Relaxed), at_the_door);
    operator.send("INFO stats\r\n").await;
    let mut info = vec![0; 4096];
    let read = operator.0.read(&mut info).await.unwrap();
    let info = String::from_utf8_lossy(&info[..read]).into_owned();
    assert!(
        info.contains("clients_refused:maxclients=1,address=1,name=2,rate=0,address_rate=1\r\n"),
        "{info}"
    );
}

/// A value of a million bytes.
async fn with_large_value(server: &Server) {
    let mut client = server.client().await;
    client.send(&format!("*3\r\n$3\r\nSET\r\n$3\r\nbar\r\n$1000000\r\n{}\r\n", "x".repeat(1_000_000))).await;
    client.expect("+OK\r\n").await;
}

/// Sends as much as gets there.
async fn flood(client: &mut Client, request: &str, times: usize) {
    let requests = request.repeat(times);
    let _ = tokio::time::timeout(SILENCE, client.0.write_all(requests.as_bytes())).await;
}

#[tokio::test]
async fn who_does_not_read_costs_little_and_loses_nothing() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    with_large_value(&server).await;
    let mut client = server.client().await;
    // A thousand replies of a million bytes each, all asked for at once.
    client.send(&"GET bar\r\n".repeat(1_000)).await;
    until("replies wait", || described(&server, 2).contains(" events=rw ")).await;
    tokio::time::sleep(SILENCE).await;
    let waiting = server.shared.port.clients.get(2).unwrap().meters.output_peak.load(Ordering::Relaxed);
    assert!(waiting < 4_000_000, "{waiting} bytes");
    assert!(!server.shared.port.clients.get(2).unwrap().is_killed());
    let reply = format!("$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    for _ in 0..20 {
        client.expect(&reply).await;
    }
    // It does not matter what is in between.
    let mut client = server.client().await;
    client.send("GET bar\r\nGET foo\r\nGET bar\r\nPING\r\nNOPE\r\nGET bar\r\nSET bar 1\r\nGET bar\r\n").await;
    client.expect(&reply).await;
    client.expect("-MOVED 12182 10.0.0.3:7002\r\n").await;
    client.expect(&reply).await;
    client.expect("+PONG\r\n-ERR unknown command 'NOPE', with args beginning with: \r\n").await;
    client.expect(&reply).await;
    client.expect("+OK\r\n$1\r\n1\r\n").await;
}

#[tokio::test]
async fn a_hard_limit_ends_who_does_not_read() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    with_large_value(&server).await;
    let stats = &server.shared.port.stats;
    let mut admin = server.client().await;
    admin.send("CONFIG SET client-output-buffer-limit \"normal 12000000 0 0\"\r\n").await;
    admin.expect("+OK\r\n").await;
    // Who reads stays, however much it asks for.
    let mut reader = server.client().await;
    let reply = format!("$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    for _ in 0..20 {
        reader.send("GET bar\r\n").await;
        reader.expect(&reply).await;
    }
    let mut client = server.client().await;
    flood(&mut client, "GET bar\r\n", 100).await;
    until("it is disconnected", || stats.output_limit_disconnections.load(Ordering::Relaxed) == 1).await;
    until("and gone", || server.shared.port.clients.get(4).is_none()).await;
    reader.send("PING\r\n").await;
    reader.expect("+PONG\r\n").await;
}

#[tokio::test]
async fn a_soft_limit_has_patience() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    with_large_value(&server).await;
    let stats = &server.shared.port.stats;
    let mut admin = server.client().await;
    admin.send("CONFIG SET client-output-buffer-limit \"normal 0 100000 1\"\r\n").await;
    admin.expect("+OK\r\n").await;
    let mut client = server.client().await;
    let start = Instant::now();
    flood(&mut client, "GET bar\r\n", 100).await;
    until("it is disconnected", || stats.output_limit_disconnections.load(Ordering::Relaxed) == 1).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    until("and gone", || server.shared.port.clients.get(3).is_none()).await;
}

#[tokio::test]
async fn a_request_that_is_too_large_ends_its_connection() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    let stats = &server.shared.port.stats;
    let mut admin = server.client().await;
    admin.send("CONFIG SET client-query-buffer-limit 1mb proto-max-bulk-len 2mb\r\n").await;
    admin.expect("+OK\r\n").await;
    let mut client = server.client().await;
    client.send("*2\r\n$4\r\nECHO\r\n$2097153\r\n").await;
    client.expect("-ERR Protocol error: invalid bulk length\r\n").await;
    client.expect_end().await;
    let mut client = server.client().await;
    client.send(&format!("*2\r\n$4\r\nECHO\r\n$1000000\r\n{}\r\n", "x".repeat(1_000_000))).await;
    client.expect(&format!("$1000000\r\n{}\r\n", "x".repeat(1_000_000))).await;
    let large = format!("*3\r\n$4\r\nMGET\r\n$1000000\r\n{}\r\n$1000000\r\n", "x".repeat(1_000_000));
    flood(&mut client, &large, 2).await;
    until("a large one is disconnected", || stats.query_limit_disconnections.load(Ordering::Relaxed) == 1)
        .await;
    // As many arguments as would cost more than their bytes.
    let mut client = server.client().await;
    flood(&mut client, "*1000000\r\n", 1).await;
    flood(&mut client, "$0\r\n\r\n", 100_000).await;
    until("it is disconnected", || stats.query_limit_disconnections.load(Ordering::Relaxed) == 2).await;
    // Who has not authenticated has less.
    admin.send("CONFIG SET client-query-buffer-limit 1gb requirepass secret\r\n").await;
    admin.expect("+OK\r\n").await;
    let mut client = server.client().await;
    flood(&mut client, &"x".repeat(60_000), 1).await;
    client.expect_silence().await;
    flood(&mut client, &"x".repeat(60_000), 1).await;
    client.expect("-ERR Protocol error: too big inline request\r\n").await;
    assert_eq!(server.shared.port.clients.len(), 1);
}

#[tokio::test]
async fn who_waits_or_watches_is_not_idle() {
    let replica = Scripted::leading(Mode::Cluster);
    replica.wait_for_ever();
    let server = Server::start(Some(&replica)).await;
    let (mut idle, mut monitor, mut waiting) =
        (server.client().await, server.client().await, server.client().await);
    idle.send("PING\r\n").await;
    idle.expect("+PONG\r\n").await;
    monitor.send("MONITOR\r\n").await;
    monitor.expect("+OK\r\n").await;
    waiting.send("WAIT 1 0\r\n").await;
    until("it waits", || described(&server, 3).contains(" flags=b ")).await;
    server.shared.port.settings.timeout_s.store(1, Ordering::Relaxed);
    idle.expect_end().await;
    tokio::time::sleep(3 * SILENCE).await;
    assert_eq!(server.shared.port.clients.len(), 2);
}

/// The replies of the session are those of the protocol that was asked for, also behind replies that are not there yet.
#[tokio::test]
async fn each_reply_is_in_the_protocol_of_its_moment() {
    let replica = Scripted::leading(Mode::Cluster);
    let server = Server::start(Some(&replica)).await;
    let decide = replica.expect_later();
    let mut client = server.client().await;
    client.send("SET bar 1\r\nCLIENT GETNAME\r\nHELLO 3\r\nCLIENT GETNAME\r\nGET nosuch{bar}\r\nCLIENT TRACKINGINFO\r\n").await;
    client.send("HELLO 2\r\nCLIENT GETNAME\r\nCLIENT TRACKINGINFO\r\n").await;
    client.expect_silence().await;
    assert!(decide.send(Step::Run).is_ok());
    client.expect("+OK\r\n$-1\r\n%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n").await;
    client
        .expect(
            "$4\r\nmode\r\n$7\r\ncluster\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n_\r\n_\r\n",
        )
        .await;
    client.expect("%3\r\n$5\r\nflags\r\n~1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n*14\r\n").await;
    let mut rest = Vec::new();
    while !rest.ends_with(b"$8\r\nprefixes\r\n*0\r\n") {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(PATIENCE, client.0.read(&mut bytes)).await.unwrap().unwrap();
        rest.extend_from_slice(&bytes[..read]);
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("*0\r\n$-1\r\n*6\r\n$5\r\nflags\r\n*1\r\n"), "{rest}");
}

/// Reads between writes go through the log with them, so they cannot be cut short: the batches are small until replies are.
#[tokio::test]
async fn large_replies_between_writes_are_not_made_all_at_once() {
    let server = Server::start(Some(&Scripted::leading(Mode::Cluster))).await;
    with_large_value(&server).await;
    let mut client = server.client().await;
    client.send(&"SET nosuch{bar} 1\r\nGET bar\r\n".repeat(2_000)).await;
    until("replies wait", || described(&server, 2).contains(" events=rw ")).await;
    tokio::time::sleep(SILENCE).await;
    let waiting = server.shared.port.clients.get(2).unwrap().meters.output_peak.load(Ordering::Relaxed);
    assert!(waiting < 200_000_000, "{waiting} bytes");
    let reply = format!("+OK\r\n$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    for _ in 0..5 {
        client.expect(&reply).await;
    }
}

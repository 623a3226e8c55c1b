//! The HTTP port of a real cluster: probes follow the quorum, figures follow what clients and shards do, and nothing that is sent to it
//! does harm.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::info_fields;
use kvorum_testkit::http::{self, Exposition};
use kvorum_testkit::resp::words;
use kvorum_testkit::{Cluster, Connection, Shape, Value};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn http_addr(cluster: &Cluster, number: u16) -> String {
    format!("127.0.0.1:{}", cluster.base_port(number) + 99)
}

async fn scrape(addr: &str) -> Result<Exposition> {
    let response = http::get(addr, "/metrics").await?;
    ensure!(response.status == 200, "/metrics answers {}", response.head);
    ensure!(response.head.contains("content-type: text/plain; version=0.0.4"), "{}", response.head);
    Exposition::parse(&response.body)
}

/// The answer of `/readyz`, once it has this code.
async fn readiness(cluster: &mut Cluster, number: u16, status: u16) -> Result<String> {
    let addr = http_addr(cluster, number);
    let mut body = String::new();
    cluster
        .wait(&format!("/readyz of server {number} answers {status}"), async |_: &mut Cluster| {
            let alive = http::get(&addr, "/healthz").await?;
            ensure!((alive.status, alive.body.as_str()) == (200, "ok\n"), "/healthz answers {alive:?}");
            let response = http::get(&addr, "/readyz").await?;
            ensure!(response.status == status, "it answers {response:?}");
            body = response.body;
            Ok(())
        })
        .await?;
    Ok(body)
}

async fn run(connection: &mut Connection, lines: &[&str]) -> Result<()> {
    for line in lines {
        connection.call(&words(line)).await.with_context(|| (*line).to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_do_is_counted() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let leader = cluster.leader(0).await?;
    let addr = http_addr(&cluster, cluster.server_of(&leader));
    let mut client = Connection::open(&leader).await?;
    // Whoever waited for the cluster has left.
    cluster
        .wait("nobody else is connected", async |_: &mut Cluster| {
            let connected = scrape(&addr).await?.value("kvorum_connected_clients", &[]);
            ensure!(connected == 1.0, "{connected} clients");
            Ok(())
        })
        .await?;
    let before = scrape(&addr).await?;
    run(&mut client, &["SET a 1", "SET b 2", "SETEX c 100 x", "SETNX a 2", "MSET d 1 e 2"]).await?;
    run(&mut client, &["GET a", "GET nosuch", "MGET a b nosuch", "GETRANGE c 0 -1"]).await?;
    // An error of each kind: of a command that ran, one that did not, and one that is none.
    run(&mut client, &["INCR c", "GET", "NOSUCH"]).await?;
    let pipeline: Vec<_> = (0..200).map(|n| words(&format!("SET p:{n} v"))).collect();
    ensure!(
        client.pipeline(&pipeline).await?.iter().all(|reply| *reply == Value::ok()),
        "SETs in a pipeline"
    );
    run(&mut client, &["SET soon v PX 30"]).await?;

    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(Connection::open(&leader).await?);
    }
    for other in &mut others {
        run(other, &["PING"]).await?;
    }
    others.truncate(2);
    run(&mut client, &["CONFIG SET maxclients-per-name 1", "CLIENT SETNAME mine"]).await?;
    let refused = others[0].call(&words("CLIENT SETNAME mine")).await?;
    ensure!(refused.error().is_some_and(|error| error.contains("maxclients-per-name")), "{refused}");
    run(&mut client, &["CONFIG SET maxclients-per-name 0"]).await?;

    let shard = ("shard", "0");
    let mut after = Exposition::default();
    cluster
        .wait("the key has expired and the clients that left are counted", async |_: &mut Cluster| {
            after = scrape(&addr).await?;
            let grown = |name: &str| after.value(name, &[shard]) - before.value(name, &[shard]);
            let (expired, closed) =
                (grown("kvorum_expired_keys_total"), grown("kvorum_client_connections_closed_total"));
            ensure!((expired, closed) == (1.0, 4.0), "{expired} keys expired, {closed} connections closed");
            Ok(())
        })
        .await?;
    let count = |name: &str, labels: &[(&str, &str)]| {
        let labels = [&[shard], labels].concat();
        // An error that never happened has no figure.
        after.value(name, &labels) - before.try_value(name, &labels).unwrap_or(0.0)
    };
    for (name, wanted) in [
        ("kvorum_sets_total", 206.0),
        ("kvorum_gets_total", 4.0),
        ("kvorum_keyspace_hits_total", 4.0),
        ("kvorum_keyspace_misses_total", 2.0),
        ("kvorum_client_connections_opened_total", 5.0),
        ("kvorum_error_replies_total", 4.0),
        ("kvorum_evicted_keys_total", 0.0),
        ("kvorum_unknown_outcomes_total", 0.0),
    ] {
        assert_eq!(count(name, &[]), wanted, "{name}");
    }
    assert_eq!(after.value("kvorum_connected_clients", &[shard]), 2.0);
    assert_eq!(count("kvorum_client_connections_refused_total", &[("reason", "name")]), 1.0);
    assert_eq!(count("kvorum_errors_total", &[("code", "ERR")]), 4.0);
    let calls = |name: &str, command: &str| {
        let of = |scrape: &Exposition| scrape.try_value(name, &[shard, ("command", command)]).unwrap_or(0.0);
        of(&after) - of(&before)
    };
    for (command, wanted) in [("set", 203.0), ("get", 2.0), ("mget", 1.0), ("incr", 1.0), ("ping", 5.0)] {
        assert_eq!(calls("kvorum_commands_total", command), wanted, "{command}");
    }
    assert_eq!(calls("kvorum_commands_failed_total", "incr"), 1.0);
    assert_eq!(calls("kvorum_commands_rejected_total", "get"), 1.0);
    assert_eq!(calls("kvorum_command_duration_seconds", "set"), 203.0);

    // INFO of the same port says the same.
    let info = info_fields(&client.call(&["INFO", "stats"]).await?);
    for (field, name) in [
        ("keyspace_hits", "kvorum_keyspace_hits_total"),
        ("keyspace_misses", "kvorum_keyspace_misses_total"),
        ("expired_keys", "kvorum_expired_keys_total"),
        ("total_connections_received", "kvorum_client_connections_opened_total"),
        ("total_error_replies", "kvorum_error_replies_total"),
    ] {
        let shown: f64 = info.get(field).context(field)?.parse()?;
        assert_eq!(shown, after.value(name, &[shard]), "{field}");
    }

    // A read of a follower counts where it was served, and what expires is gone everywhere.
    let follower = cluster.addrs().into_iter().find(|other| *other != leader).context("a follower")?;
    let follower_addr = http_addr(&cluster, cluster.server_of(&follower));
    let hits = |scrape: &Exposition| scrape.value("kvorum_keyspace_hits_total", &[shard]);
    let there = hits(&scrape(&follower_addr).await?);
    run(&mut Connection::open(&follower).await?, &["GET a", "GET a"]).await?;
    assert_eq!(hits(&scrape(&follower_addr).await?), there + 2.0);
    assert_eq!(hits(&scrape(&addr).await?), hits(&after));
    for number in cluster.numbers() {
        let keys = scrape(&http_addr(&cluster, number)).await?.value("kvorum_db_keys", &[shard, ("db", "0")]);
        assert_eq!(keys, 205.0, "keys on server {number}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sentinel_port_is_counted_apart() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    cluster.leader(0).await?;
    let (addr, sentinel) = (http_addr(&cluster, 1), cluster.sentinel_addr(1));
    let mut admin = cluster.connect(1, 0).await?;
    let before = scrape(&addr).await?;
    assert_eq!(before.value("kvorum_sentinel_connected_clients", &[]), 0.0);

    let mut client = Connection::open(&sentinel).await?;
    run(&mut client, &["PING", "SENTINEL MASTERS", "SENTINEL MYID"]).await?;
    // Of these the first one ran and failed; the others did not run.
    run(&mut client, &["SENTINEL MASTER nosuch", "SENTINEL MASTER", "GET a"]).await?;
    run(&mut client, &["SENTINEL FAILOVER nosuch"]).await?;
    let mut subscriber = Connection::open(&sentinel).await?;
    subscriber.call(&["PSUBSCRIBE", "*"]).await?;
    cluster.handover(0)?;
    let heard = subscriber.receive().await?;
    ensure!(heard.items().is_some_and(|items| items.len() == 4), "a subscriber hears {heard}");
    // One comes and goes, one is too many, one asks for more than it takes.
    drop(Connection::open(&sentinel).await?);
    admin.call(&["CONFIG", "SET", "maxclients", "3"]).await?;
    let mut deaf = std::net::TcpStream::connect(&sentinel)?;
    deaf.set_write_timeout(Some(Duration::from_secs(20)))?;
    cluster
        .wait("the port has three clients", async |_: &mut Cluster| {
            let scraped = scrape(&addr).await?;
            let opened = scraped.value("kvorum_sentinel_client_connections_opened_total", &[]);
            let connected = scraped.value("kvorum_sentinel_connected_clients", &[]);
            ensure!((opened, connected) == (4.0, 3.0), "{connected} clients, {opened} connections so far");
            Ok(())
        })
        .await?;
    let refused = Connection::open(&sentinel).await?.receive().await?;
    ensure!(refused.error().is_some(), "a fourth client is let in: {refused}");
    admin.call(&["CONFIG", "SET", "client-output-buffer-limit", "normal 65536 0 0"]).await?;
    let flood = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let helps = b"SENTINEL HELP\r\n".repeat(1000);
        (0..1000).try_for_each(|_| deaf.write_all(&helps))
    });
    ensure!(flood.await?.is_err(), "a client that does not read was not disconnected");

    let mut after = Exposition::default();
    cluster
        .wait("the client that did not read is counted", async |_: &mut Cluster| {
            after = scrape(&addr).await?;
            let closed = after.value("kvorum_sentinel_client_connections_closed_total", &[]);
            ensure!(closed == 2.0, "{closed} connections closed");
            Ok(())
        })
        .await?;
    let count = |name: &str, labels: &[(&str, &str)]| {
        after.value(name, labels) - before.try_value(name, labels).unwrap_or(0.0)
    };
    for (name, wanted) in [
        ("kvorum_sentinel_connected_clients", 2.0),
        ("kvorum_sentinel_subscribers", 1.0),
        ("kvorum_sentinel_client_connections_opened_total", 4.0),
        ("kvorum_sentinel_output_buffer_limit_disconnections_total", 1.0),
        ("kvorum_sentinel_query_buffer_limit_disconnections_total", 0.0),
        ("kvorum_sentinel_error_replies_total", 4.0),
    ] {
        assert_eq!(count(name, &[]), wanted, "{name}");
    }
    assert_eq!(count("kvorum_sentinel_client_connections_refused_total", &[("reason", "maxclients")]), 1.0);
    assert_eq!(count("kvorum_sentinel_errors_total", &[("code", "ERR")]), 4.0);
    // Those of the client, PSUBSCRIBE, and at least one that filled the buffer.
    ensure!(count("kvorum_sentinel_commands_processed_total", &[]) >= 7.0);
    ensure!(count("kvorum_sentinel_events_total", &[]) >= 2.0, "a handover has two events at least");
    let number: f64 = sentinel.rsplit_once(':').context("a port")?.1.parse()?;
    assert_eq!(after.value("kvorum_sentinel_port", &[]), number);
    // The data port counts its own: not one of these.
    assert_eq!(after.value("kvorum_connected_clients", &[("shard", "0")]), 1.0);
    Ok(())
}

/// What the metrics, INFO and `kvorum cluster status` say of each replica must be the same thing.
async fn all_agree(cluster: &Cluster) -> Result<()> {
    let status = cluster.status()?;
    for shard in 0..cluster.shape().shards {
        let label = shard.to_string();
        let shown = &status["shards"][usize::from(shard)];
        let mut leaders = 0.0;
        for number in cluster.numbers() {
            let addr = cluster.addr(number, shard);
            let scrape = scrape(&http_addr(cluster, number)).await?;
            let info = info_fields(&Connection::open(&addr).await?.call(&["INFO", "raft"]).await?);
            let field = |name: &str| info.get(name).with_context(|| format!("{addr} shows no {name}"));
            let labels = [("shard", label.as_str())];
            let role = field("raft_role")?;
            for each in ["leader", "follower", "candidate", "learner"] {
                let is = scrape.value("kvorum_raft_role", &[labels[0], ("role", each)]);
                ensure!(is == f64::from(u8::from(each == role)), "{addr} is {role}, {each} is {is}");
            }
            leaders += scrape.value("kvorum_raft_role", &[labels[0], ("role", "leader")]);
            for (name, metric) in [
                ("raft_serves", "kvorum_shard_serves"),
                ("raft_term", "kvorum_raft_term"),
                ("raft_last_log_index", "kvorum_raft_last_index"),
                ("raft_commit_index", "kvorum_raft_committed_index"),
                ("raft_applied_index", "kvorum_raft_applied_index"),
                ("raft_apply_lag_entries", "kvorum_raft_apply_lag_entries"),
            ] {
                let (said, counted) = (field(name)?.parse::<f64>()?, scrape.value(metric, &labels));
                ensure!(said == counted, "{addr}: {name} is {said}, {metric} {counted}");
            }
            let lags = ["kvorum_raft_commit_lag_entries", "kvorum_raft_apply_lag_entries"];
            for lag in lags.map(|name| scrape.value(name, &labels)) {
                ensure!(lag == 0.0, "{addr} lags behind by {lag}");
            }
            ensure!(scrape.value("kvorum_raft_failed", &labels) == 0.0, "{addr} has failed");
            ensure!(scrape.value("kvorum_raft_has_leader", &labels) == 1.0, "{addr} has no leader");
            let replicas = shown["replicas"].as_array().context("replicas")?;
            let replica = replicas.iter().find(|replica| replica["addr"] == addr.as_str());
            let replica = replica.with_context(|| format!("the status knows no {addr}"))?;
            ensure!(
                replica["role"] == role.as_str(),
                "{addr} is {role}, the status says {}",
                replica["role"]
            );
            let applied = scrape.value("kvorum_raft_applied_index", &labels);
            ensure!(
                replica["applied"].as_f64() == Some(applied),
                "{addr}: {applied}, {}",
                replica["applied"]
            );
            ensure!(
                shown["term"].as_f64() == Some(scrape.value("kvorum_raft_term", &labels)),
                "{addr}: term"
            );
        }
        ensure!(leaders == 1.0, "shard {shard} has {leaders} leaders");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_shown_as_they_are() -> Result<()> {
    let mut cluster = Cluster::start(Shape { shards: 2, ..Shape::default() }).await?;
    let everything_agrees = async |cluster: &mut Cluster| all_agree(cluster).await;
    cluster.wait("metrics, INFO and status agree", everything_agrees).await?;

    // Another leader, another term.
    let shard = ("shard", "0");
    let before = scrape(&http_addr(&cluster, 1)).await?.value("kvorum_raft_term", &[shard]);
    let old = cluster.leader(0).await?;
    cluster.handover(0)?;
    cluster
        .wait("another replica leads", async |cluster: &mut Cluster| {
            ensure!(cluster.leader(0).await? != old, "it is {old} still");
            Ok(())
        })
        .await?;
    cluster.wait("metrics, INFO and status agree", everything_agrees).await?;
    let after = scrape(&http_addr(&cluster, 1)).await?;
    ensure!(after.value("kvorum_raft_term", &[shard]) > before, "the term did not grow");
    ensure!(after.value("kvorum_raft_leader_changes_total", &[shard]) >= 1.0, "no change of the leader");

    // A follower that stands still lags; when it goes on it does not.
    let leader = cluster.leader(0).await?;
    let leading = cluster.server_of(&leader);
    let frozen = cluster.numbers().find(|number| *number != leading).context("a follower")?;
    let lag = async |cluster: &Cluster| {
        let scrape = scrape(&http_addr(cluster, leading)).await?;
        Ok::<_, anyhow::Error>(scrape.value("kvorum_raft_follower_lag_entries", &[shard]))
    };
    let slots = cluster.slots_of(0).await?;
    let key = kvorum_testkit::slots::key_in("lag", 0, |slot| {
        slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    });
    cluster.freeze(frozen)?;
    let mut connection = Connection::open(&leader).await?;
    for n in 1..=50 {
        assert_eq!(connection.call(&["INCR", &key]).await?, Value::Integer(n));
    }
    let behind = lag(&cluster).await?;
    cluster.thaw(frozen)?;
    ensure!(behind >= 50.0, "a frozen follower lags behind by {behind}");
    cluster
        .wait("the follower has caught up", async |cluster: &mut Cluster| {
            let behind = lag(cluster).await?;
            ensure!(behind == 0.0, "it lags behind by {behind}");
            Ok(())
        })
        .await?;
    cluster.wait("metrics, INFO and status agree", everything_agrees).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_quorum() -> Result<()> {
    let mut cluster = Cluster::start(Shape::default()).await?;
    for number in cluster.numbers() {
        ensure!(readiness(&mut cluster, number, 200).await? == "ok\n", "server {number}");
    }
    cluster.kill_together(&[2, 3])?;
    let reasons = readiness(&mut cluster, 1, 503).await?;
    ensure!(reasons.lines().count() > 0 && reasons.contains("shard"), "{reasons:?} says not why");
    let addr = http_addr(&cluster, 1);
    cluster
        .wait("the data are known to be old, and nobody serves", async |_: &mut Cluster| {
            let scraped = scrape(&addr).await?;
            let age = |shard| scraped.value("kvorum_replica_data_age_seconds", &[("shard", shard)]);
            let ages = ["0", "1", "2"].map(age);
            ensure!(ages.iter().all(|age| *age > 1.0), "{ages:?}");
            let serves =
                ["0", "1", "2"].map(|shard| scraped.value("kvorum_shard_serves", &[("shard", shard)]));
            ensure!(serves == [0.0; 3], "{serves:?}");
            Ok(())
        })
        .await?;
    for shard in 0..3 {
        let info = info_fields(&cluster.connect(1, shard).await?.call(&["INFO", "raft"]).await?);
        assert_eq!(info.get("raft_serves").map(String::as_str), Some("0"), "shard {shard}");
    }
    for number in [2, 3] {
        cluster.spawn(number)?;
    }
    cluster.ready().await?;
    for number in cluster.numbers() {
        ensure!(readiness(&mut cluster, number, 200).await? == "ok\n", "server {number}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_answered_and_do_no_harm() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(1, "none")).await?;
    let addr = http_addr(&cluster, 1);
    let mut client = cluster.connect(1, 0).await?;
    let line = |text: &str| text.as_bytes().to_vec();
    let huge = [b"GET /healthz HTTP/1.1\r\nHost: ", &vec![b'x'; 1 << 20][..], b"\r\n\r\n"].concat();
    let many = ["GET /healthz HTTP/1.1\r\n".to_owned(), "a: b\r\n".repeat(5_000), "\r\n".to_owned()].concat();
    let noise: Vec<u8> = (0..5_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (request, wanted) in [
        (line("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 404),
        (line("GET /metrics/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"), 404),
        (line("GET /METRICS HTTP/1.1\r\nHost: x\r\n\r\n"), 404),
        (line("POST /nosuch HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), 404),
        (line("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"), 405),
        // It says more than it sends.
        (line("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nabc"), 405),
        (line("DELETE /readyz HTTP/1.1\r\nHost: x\r\n\r\n"), 405),
        (line("OPTIONS /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), 405),
        (line("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), 200),
        (line("GET /healthz HTTP/1.0\r\n\r\n"), 200),
        (line("nonsense\r\n\r\n"), 400),
        (line("GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n"), 400),
        (line("GET /healthz HTTP/1.1\r\nno colon\r\n\r\n"), 400),
        (line("*1\r\n$4\r\nPING\r\n"), 400),
        (huge, 431),
        (many.into_bytes(), 431),
    ] {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let response = http::send(&addr, &request).await.with_context(|| shown.clone())?;
        assert_eq!(response.status, wanted, "{shown:?}");
        ensure!(!shown.starts_with("HEAD") || response.body.is_empty(), "a HEAD has a body");
        ensure!(wanted != 405 || response.head.contains("allow: get, head"), "{}", response.head);
    }
    // What is no text at all is refused or cut off, as the first bytes of TLS are.
    for request in [&noise[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0\0\0\0\r\n\r\n"] {
        let mut stream = TcpStream::connect(&addr).await?;
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        drop(stream);
    }

    // Sixty-four who never finish take all the room there is; clients notice nothing, and once they are gone there is room again.
    let mut idle = Vec::new();
    let target: SocketAddr = addr.parse()?;
    for _ in 0..200 {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.ok();
        idle.push(stream);
    }
    ensure!(http::get(&addr, "/healthz").await.is_err(), "there is room for more than sixty-four");
    for _ in 0..100 {
        let pong = client.call_within(Duration::from_secs(5), &["PING"]).await?;
        assert_eq!(pong, Value::Status("PONG".to_owned()));
    }
    drop(idle);
    ensure!(readiness(&mut cluster, 1, 200).await? == "ok\n", "it is ready as before");
    scrape(&addr).await?;
    assert_eq!(client.call(&["SET", "k", "v"]).await?, Value::ok());
    ensure!(!cluster.log(1).contains("panicked"), "something panicked");
    Ok(())
}

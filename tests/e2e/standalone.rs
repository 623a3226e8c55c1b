//! `--mode standalone`: what a client of a single Redis expects, from one server and from three.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::info_fields;
use kvorum_testkit::slots::key_in;
use kvorum_testkit::{Cluster, Connection, Shape, Value};

async fn looks_like_one_redis(addr: &str) -> Result<()> {
    let mut connection = Connection::open(addr).await?;
    let info = info_fields(&connection.call(&["INFO"]).await?);
    for (field, value) in [("redis_mode", "standalone"), ("cluster_enabled", "0"), ("role", "master")] {
        assert_eq!(info.get(field).map(String::as_str), Some(value), "INFO {field}");
    }
    // Keys from all over the slots; no MOVED, no CROSSSLOT.
    let keys: Vec<String> = (0..64u16).map(|n| key_in("k", n.into(), |slot| slot / 256 == n)).collect();
    for key in &keys {
        assert_eq!(connection.call(&["SET", key, "v"]).await?, Value::ok(), "SET {key}");
    }
    let mget: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let values = connection.call(&mget).await?;
    assert_eq!(values, Value::Array(vec![Value::bulk("v"); keys.len()]));
    let databases = connection.call(&["CONFIG", "GET", "databases"]).await?;
    assert_eq!(databases, Value::Array(vec![Value::bulk("databases"), Value::bulk("16")]));
    assert_eq!(connection.call(&["SELECT", "15"]).await?, Value::ok());
    assert_eq!(connection.call(&["DBSIZE"]).await?, Value::Integer(0));
    assert_eq!(
        connection.call(&["SELECT", "16"]).await?,
        Value::Error("ERR DB index is out of range".to_owned())
    );
    let cluster = connection.call(&["CLUSTER", "NODES"]).await?;
    assert_eq!(cluster, Value::Error("ERR This instance has cluster support disabled".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_without_durability() -> Result<()> {
    let cluster = Cluster::start(Shape::standalone(1, "none")).await?;
    looks_like_one_redis(&cluster.addr(1, 0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_with_one_leader() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let leader = cluster.leader(0).await?;
    looks_like_one_redis(&leader).await?;
    cluster.caught_up().await?;
    let key = key_in("k", 0, |slot| slot / 256 == 0);
    let followers: Vec<String> = cluster.addrs().into_iter().filter(|addr| *addr != leader).collect();
    ensure!(followers.len() == 2, "{followers:?}");
    for follower in followers {
        let mut connection = Connection::open(&follower).await?;
        let info = info_fields(&connection.call(&["INFO", "replication"]).await?);
        assert_eq!(info.get("role").map(String::as_str), Some("slave"), "{follower}");
        let port = leader.rsplit_once(':').context("a port")?.1;
        assert_eq!(info.get("master_port").map(String::as_str), Some(port), "{follower}");
        assert_eq!(connection.call(&["GET", &key]).await?, Value::bulk("v"), "{follower} serves stale reads");
        let readonly = "READONLY You can't write against a read only replica.";
        assert_eq!(connection.call(&["SET", &key, "w"]).await?, Value::Error(readonly.to_owned()));
    }
    // Another leader, the same data, still no redirect.
    let victim = cluster.server_of(&leader);
    cluster.kill(victim)?;
    cluster.ready().await?;
    looks_like_one_redis(&cluster.leader(0).await?).await
}

/// A connection that is never made again, and a client that repeats nothing.
async fn counts(addr: String, number: u16, until: Instant) -> Result<(i64, Duration)> {
    let mut connection = Connection::open(&addr).await?;
    let key = format!("counter:{number}");
    let (mut last, mut longest) = (0, Duration::ZERO);
    while Instant::now() < until {
        let began = Instant::now();
        let counted = connection.call(&["INCR", &key]).await?;
        longest = longest.max(began.elapsed());
        last += 1;
        ensure!(counted == Value::Integer(last), "INCR {key}: {counted:?} instead of {last}");
        let read = connection.call(&["GET", &key]).await?;
        ensure!(read == Value::bulk(last.to_string()), "GET {key}: {read:?} instead of {last}");
    }
    Ok((last, longest))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_repeats_nothing_sees_no_handover() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let first = cluster.leader(0).await?;
    let until = Instant::now() + Duration::from_secs(10);
    let clients: Vec<_> = (0..4).map(|number| tokio::spawn(counts(first.clone(), number, until))).collect();
    let mut leaders = 0;
    while Instant::now() + Duration::from_secs(2) < until {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.handover(0)?;
        leaders += 1;
    }
    for client in clients {
        let (counted, longest) = client.await??;
        eprintln!("{counted} times through {leaders} handovers, the longest took {longest:?}");
        ensure!(counted > 100, "it counted {counted} times only");
    }
    // What was read and written in another's stead is there.
    cluster.ready().await?;
    let mut leader = Connection::open(&cluster.leader(0).await?).await?;
    let counter = leader.call(&["EXISTS", "counter:0", "counter:1", "counter:2", "counter:3"]).await?;
    assert_eq!(counter, Value::Integer(4));
    Ok(())
}

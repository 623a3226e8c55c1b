//! What client libraries say before their first data command: recorded conversations, and the libraries themselves.
//!
//! The conversations below `tests/handshakes` are scripts whose requests are the bytes that the libraries send, in the pieces in which they send
//! them. They are played on a real Redis, too, so that a conversation cannot ask for what Redis does not say.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::{self, workspace};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::script::play_on_both;
use kvorum_testkit::slots::key_in;
use kvorum_testkit::{Cluster, Shape};

fn port_of(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(_, port)| port)
}

/// redis-py as a library that connects to one address.
fn redis_py(addr: &str) -> Result<()> {
    let said = succeed(
        Command::new(binary::python()?)
            .arg(workspace().join("tests/compat/redis_py_handshake.py"))
            .args(["127.0.0.1", port_of(addr)]),
    )?;
    ensure!(said.ends_with(": ok\n"), "{said}");
    Ok(())
}

/// hiredis, within redis-cli: a password on the command line, RESP3, commands from standard input.
fn redis_cli(addr: &str) -> Result<()> {
    let cli =
        |arguments: &[&str]| succeed(Command::new("redis-cli").args(["-p", port_of(addr)]).args(arguments));
    ensure!(cli(&["-3", "SET", "bar", "1"])? == "OK\n", "SET by redis-cli -3");
    ensure!(cli(&["INCR", "bar"])? == "2\n", "INCR by redis-cli");
    cli(&["CONFIG", "SET", "requirepass", "secret"])?;
    let wrong = cli(&["--no-auth-warning", "-a", "wrong", "PING"]).map(|said| said.contains("NOAUTH"));
    let right = cli(&["--no-auth-warning", "-a", "secret", "CONFIG", "SET", "requirepass", ""]);
    ensure!(wrong.unwrap_or(true), "redis-cli with a wrong password was served");
    ensure!(right? == "OK\n", "redis-cli with the right password");
    Ok(())
}

/// redis-rs as a library that connects to one address.
fn redis_rs(addr: &str) -> Result<()> {
    for suffix in ["", "?protocol=resp3"] {
        let mut connection = redis::Client::open(format!("redis://{addr}/{suffix}"))?.get_connection()?;
        let set: String = redis::cmd("SET").arg("bar").arg(5).query(&mut connection)?;
        let (incremented, got): (i64, String) =
            redis::pipe().cmd("INCR").arg("bar").cmd("GET").arg("bar").query(&mut connection)?;
        ensure!((set.as_str(), incremented, got.as_str()) == ("OK", 6, "6"), "{set} {incremented} {got}");
        let info: String = redis::cmd("CLIENT").arg("INFO").query(&mut connection)?;
        ensure!(info.contains("lib-name=redis-rs"), "{info}");
    }
    let wrong = redis::Client::open(format!("redis://nobody:wrong@{addr}/"))?.get_connection();
    ensure!(wrong.is_err(), "redis-rs with a wrong password was served");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_three_servers_that_look_like_one_redis() -> Result<()> {
    let cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    let redis = Redis::start(&[])?;
    let leader = cluster.leader(0).await?;
    play_on_both(&["tests/handshakes/standalone"], &leader, &redis.addr())?;
    tokio::task::block_in_place(|| {
        redis_py(&leader)?;
        redis_cli(&leader)?;
        redis_rs(&leader)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_cluster() -> Result<()> {
    let cluster = Cluster::start(Shape { shards: 2, ..Shape::default() }).await?;
    let nodes = Redis::cluster()?;
    let leader = cluster.leader(0).await?;
    play_on_both(&["tests/handshakes/cluster"], &leader, &nodes[0].addr())?;
    tokio::task::block_in_place(|| {
        redis_py(&leader)?;
        redis_cli(&leader)?;
        redis_rs(&leader)?;
        redis_rs_cluster(&cluster)
    })
}

/// redis-rs's cluster client: single commands over all slots, a pipeline, several keys of one slot, reads from replicas.
fn redis_rs_cluster(cluster: &Cluster) -> Result<()> {
    let seeds: Vec<String> = cluster.addrs().iter().take(1).map(|addr| format!("redis://{addr}/")).collect();
    let client = redis::cluster::ClusterClient::new(seeds.clone())?;
    let mut connection = client.get_connection().context("redis-rs connects to the cluster")?;
    let keys: Vec<String> = (0..64u16).map(|n| key_in("rs", n.into(), |slot| slot / 256 == n)).collect();
    for (n, key) in keys.iter().enumerate() {
        let _: () = redis::cmd("SET").arg(key).arg(n).query(&mut connection)?;
    }
    for (n, key) in keys.iter().enumerate() {
        let got: usize = redis::cmd("GET").arg(key).query(&mut connection)?;
        ensure!(got == n, "GET {key}: {got}");
    }
    let _: () = redis::cmd("MSET").arg("{rs}a").arg(1).arg("{rs}b").arg(2).query(&mut connection)?;
    let got: (i64, i64, Option<i64>) =
        redis::cmd("MGET").arg("{rs}a").arg("{rs}b").arg("{rs}c").query(&mut connection)?;
    ensure!(got == (1, 2, None), "MGET: {got:?}");
    let mut reader = redis::cluster::ClusterClient::builder(seeds)
        .read_routing_strategy(redis::cluster_read_routing::RandomReplicaStrategy)
        .build()?
        .get_connection()?;
    let written: i64 = redis::cmd("INCR").arg("{rs}a").query(&mut reader)?;
    ensure!(written == 2, "INCR: {written}");
    Ok(())
}

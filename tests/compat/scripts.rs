//! Every golden script over TCP, in RESP2 and RESP3, on a cluster and on a real Redis.
//!
//! | scripts | Kvorum | Redis |
//! |---|---|---|
//! | `crates/keyspace/tests/scripts` | the leader of three servers in standalone mode (and the bare keyspace, by that crate's tests) | a single one |
//! | `tests/scripts/connection`, `tests/scripts/server` | the same | the same |
//! | `tests/scripts/cluster` | the leader of the first of two shards | the first of two nodes of a cluster |
//!
//! In RESP2 each side has to say what the script says; in RESP3 Kvorum has to say what Redis says, with the same types.
//! `KVORUM_SCRIPT=part-of-a-name` plays only some. `UPDATE_SCRIPTS=1` writes what Redis says into the scripts below
//! `tests/scripts`, except for replies that differ.

use anyhow::Result;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::script::play_on_both;
use kvorum_testkit::{Cluster, Shape};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_hold_on_three_servers_that_look_like_one_redis() -> Result<()> {
    let cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let redis = Redis::start(&[])?;
    let folders = ["crates/keyspace/tests/scripts", "tests/scripts/connection", "tests/scripts/server"];
    play_on_both(&folders, &cluster.leader(0).await?, &redis.addr())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_hold_on_a_cluster() -> Result<()> {
    let cluster = Cluster::start(Shape { shards: 2, ..Shape::default() }).await?;
    let nodes = Redis::cluster()?;
    play_on_both(&["tests/scripts/cluster"], &cluster.leader(0).await?, &nodes[0].addr())
}

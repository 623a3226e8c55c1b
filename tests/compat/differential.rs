//! Twenty thousand random commands on three servers that look like one Redis, and on a real Redis: equal replies.
//!
//! `cargo xtask fuzz differential` runs more of them. `KVORUM_SEED=n` repeats a run.

use anyhow::{Result, ensure};
use kvorum_testkit::differential::{self, Pair};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::random::Random;
use kvorum_testkit::{Cluster, Shape};

const COMMANDS: u64 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_commands_are_answered_as_redis_does() -> Result<()> {
    let (_, seed) = Random::for_run("differential");
    let cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    let redis = Redis::start(&[])?;
    let pair = Pair { ours: cluster.leader(0).await?, redis: redis.addr() };
    let runtime = tokio::runtime::Handle::current();
    let leader = || tokio::task::block_in_place(|| runtime.block_on(cluster.leader(0)));
    let found = tokio::task::block_in_place(|| differential::run(pair, seed, COMMANDS, 5, leader))?;
    eprintln!(
        "{} commands, {} exchanged dumps, {} interrupted",
        found.commands, found.dumps, found.interrupted
    );
    ensure!(found.missing.is_empty(), "commands that are not there: {:?}", found.missing);
    ensure!(found.dumps > 0, "no DUMP was exchanged");
    ensure!(
        found.differences.is_empty(),
        "{} differences\n\n{}",
        found.differences.len(),
        found.differences.join("\n\n")
    );
    Ok(())
}

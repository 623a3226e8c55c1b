//! A thousand connections speak at once, and connections come as fast as this machine makes them: nothing is lost, memory stays
//! bounded. How much an established client notices is printed here and judged by `cargo xtask bench burst`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::process::resident_bytes;
use kvorum_testkit::storm::{Established, arrivals, burst, many_files};
use kvorum_testkit::{Cluster, Connection, Shape, Value};

const MEGABYTE: u64 = 1 << 20;
/// What a thousand clients with ten commands each may add to a server; most of it buffers.
const BURST_MEGABYTES: u64 = 128;
/// What connections that came and went may leave behind.
const ARRIVALS_MEGABYTES: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_memory_is_bounded() -> Result<()> {
    many_files()?;
    let cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let leader = cluster.leader(0).await?;
    let pid = cluster.pid(cluster.server_of(&leader)).context("the leader runs")?;
    let quiet = Established::start(&leader)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let quiet_p99 = quiet.p99_ms().await?;
    let before = resident_bytes(pid)?;

    let probe = Established::start(&leader)?;
    let mut took = Vec::new();
    for round in 0..3 {
        took.push(burst(&leader, &format!("burst:{round}"), 1_000, 10).await?);
    }
    let p99 = probe.p99_ms().await?;
    let after_burst = resident_bytes(pid)?;
    eprintln!(
        "1,000 connections with 10 commands each: {took:?}; p99 of an established client {p99:.1} ms, quiet {quiet_p99:.1} ms; \
         resident {} MB, before {} MB",
        after_burst / MEGABYTE,
        before / MEGABYTE
    );
    let grown = after_burst.saturating_sub(before) / MEGABYTE;
    ensure!(grown <= BURST_MEGABYTES, "the bursts left {grown} MB");
    let mut connection = Connection::open(&leader).await?;
    ensure!(connection.call(&["DBSIZE"]).await? == Value::Integer(3_001), "a counter is missing");

    let probe = Established::start(&leader)?;
    let came = arrivals(&leader, 10_000, Duration::from_secs(10)).await?;
    let p99 = probe.p99_ms().await?;
    let after_arrivals = resident_bytes(pid)?;
    eprintln!(
        "{} connections, {:.0} in a second; p99 of an established client {p99:.1} ms; resident {} MB",
        came.served,
        came.per_second,
        after_arrivals / MEGABYTE
    );
    let grown = after_arrivals.saturating_sub(after_burst) / MEGABYTE;
    ensure!(grown <= ARRIVALS_MEGABYTES, "connections that went left {grown} MB");
    ensure!(came.served > 1_000, "only {} connections in ten seconds", came.served);
    Ok(())
}

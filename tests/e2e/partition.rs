//! A leader cut off from the others, together with half of the clients: processes with proxies between them, no privilege needed.
//!
//! See `kvorum_testkit::trial` for what must hold. In the cuts of one direction some bytes still flow, so it takes until a keep-alive fails
//! before the others see that the leader is of no use.

use std::time::Duration;

use anyhow::Result;
use kvorum_testkit::random::Random;
use kvorum_testkit::trial::{Promises, cut_off, harm};
use kvorum_testkit::{Cluster, Fault, Network, Shape};

const PROMISES: Promises = Promises {
    lease: Duration::from_millis(600),
    hold: Duration::from_millis(1000),
    serves_within: Duration::from_secs(2),
    lasts: Duration::from_secs(6),
};
/// One direction: keep-alives (1.5 s) and an election.
const ONE_WAY: Promises = Promises { serves_within: Duration::from_secs(5), ..PROMISES };

async fn cluster() -> Result<Cluster> {
    let settings = vec!["failover-hold-ms = 1000".to_owned(), "write-timeout-ms = 2000".to_owned()];
    Cluster::start(Shape { settings, network: Network::Proxied, ..Shape::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_in_the_minority() -> Result<()> {
    let (mut random, _) = Random::for_run("partition");
    let mut cluster = cluster().await?;
    cut_off(&mut cluster, "partition", |map, n| Fault::split(map, &[n]), PROMISES, &mut random).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_hears_and_one_that_hears_nobody() -> Result<()> {
    let (mut random, _) = Random::for_run("partition_one_way");
    let mut cluster = cluster().await?;
    cut_off(&mut cluster, "partition_mute", Fault::mute, ONE_WAY, &mut random).await?;
    cut_off(&mut cluster, "partition_deaf", Fault::deafen, ONE_WAY, &mut random).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_links_and_connections_that_break() -> Result<()> {
    let (mut random, _) = Random::for_run("partition_links");
    let mut cluster = cluster().await?;
    let faults: [fn(&_, u16) -> Fault; 4] = [
        |_, _| Fault::Delay(Duration::from_millis(30)),
        |_, _| Fault::Reset,
        |_, victim| Fault::Freeze(victim),
        |_, victim| Fault::Kill(victim),
    ];
    harm(&mut cluster, "partition_links", &faults, Duration::from_secs(2), &mut random).await
}

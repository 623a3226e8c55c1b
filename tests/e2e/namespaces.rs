//! The trials with a network namespace for each server: the kernel drops packets. Needs root.

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
    Cluster::start(Shape { settings, network: Network::Namespaces, ..Shape::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_in_the_minority() -> Result<()> {
    let (mut random, _) = Random::for_run("namespaces_partition");
    let mut cluster = cluster().await?;
    cut_off(&mut cluster, "namespaces_partition", |map, n| Fault::split(map, &[n]), PROMISES, &mut random)
        .await?;
    cut_off(&mut cluster, "namespaces_mute", Fault::mute, ONE_WAY, &mut random).await?;
    cut_off(&mut cluster, "namespaces_deaf", Fault::deafen, ONE_WAY, &mut random).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_frozen_and_on_a_lossy_network() -> Result<()> {
    let (mut random, _) = Random::for_run("namespaces_harm");
    let mut cluster = cluster().await?;
    let faults: [fn(&_, u16) -> Fault; 4] = [
        |_, victim| Fault::Kill(victim),
        |_, victim| Fault::Freeze(victim),
        |_, _| Fault::Lose(10),
        |_, victim| Fault::Kill(victim),
    ];
    harm(&mut cluster, "namespaces_harm", &faults, Duration::from_secs(2), &mut random).await
}

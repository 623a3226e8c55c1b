//! Servers come and go under writers: a fourth joins, the first leaves, the second is killed for good and made up for on a fifth, and comes
//! back without its data directory as another server. Nothing acknowledged is lost, and the planned steps show clients no error.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::check::ledger::Ledger;
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape, binary};
use serde_json::Value;

/// Seconds after which a server that is down is made up for.
const REPLACE_AFTER: u64 = 8;

/// `kvorum cluster …`.
fn cluster_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary::kvorum());
    command.arg("cluster").args(arguments);
    command
}

/// Numbers of the servers that the cluster has.
fn servers(status: &Value) -> Vec<u64> {
    let servers = status["servers"].as_array().into_iter().flatten();
    servers.filter_map(|server| server["id"].as_u64()).collect()
}

/// The server numbers behind each shard's replicas, by their ports, in ascending order.
fn places(cluster: &Cluster, status: &Value) -> Vec<Vec<u16>> {
    let shards = status["shards"].as_array().into_iter().flatten();
    shards
        .map(|shard| {
            let replicas = shard["replicas"].as_array().into_iter().flatten();
            let addrs = replicas.filter_map(|replica| replica["addr"].as_str());
            let mut places: Vec<u16> = addrs.map(|addr| cluster.server_of(addr)).collect();
            places.sort_unstable();
            places
        })
        .collect()
}

/// Asks a server until the cluster is as `wanted` says and nothing is on its way.
async fn settled(
    cluster: &mut Cluster,
    asked: u16,
    what: &str,
    wanted: impl Fn(&Cluster, &Value) -> Result<()>,
) -> Result<()> {
    cluster
        .wait(what, async |cluster: &mut Cluster| {
            let status = cluster.status_of(asked)?;
            let to_do = status["to_do"].as_array().context("what is to do")?;
            ensure!(to_do.is_empty(), "{to_do:?}");
            let on_the_way = |server: &Value| server["tenure"] == "settling" || server["tenure"] == "leaving";
            ensure!(
                !status["servers"].as_array().into_iter().flatten().any(on_the_way),
                "{}",
                status["servers"]
            );
            wanted(cluster, &status)
        })
        .await
}

async fn audit(cluster: &Cluster, ledger: &Ledger, seed: u64) {
    let audit = ledger.audit(&read_back(&mut cluster.client(), ledger).await);
    assert!(audit.is_clean(), "seed {seed}: {audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_come_and_go_under_writers() -> Result<()> {
    let (mut random, seed) = Random::for_run("membership");
    let settings = vec![format!("server-replace-after = {REPLACE_AFTER}")];
    // Five machines, of which three are the cluster at first.
    let mut cluster = Cluster::start(Shape { spares: 2, settings, ..Shape::default() }).await?;
    let peer = |cluster: &Cluster, number: u16| cluster.peer_addr(number);
    let join = |cluster: &Cluster, number: u16| {
        succeed(&mut cluster_command(&[
            "join",
            "--server",
            &peer(cluster, 3),
            "--new",
            &peer(cluster, number),
        ]))
    };
    let mut ledger = Ledger::default();

    // What is planned: no write is refused, none is of unknown outcome.
    let writers = Writers::start("planned", 8, || cluster.client(), &mut random);
    writers.progress(200, Duration::from_secs(20)).await;
    cluster.spawn(4)?;
    cluster.listens(4).await?;
    let said = join(&cluster, 4)?;
    ensure!(said.contains("is server 4"), "{said}");
    settled(&mut cluster, 3, "the fourth has its share", |cluster, status| {
        let on_fourth = places(cluster, status).into_iter().filter(|places| places.contains(&4)).count();
        ensure!(servers(status) == [1, 2, 3, 4] && on_fourth == 2, "{:?}", places(cluster, status));
        Ok(())
    })
    .await?;
    writers.progress(200, Duration::from_secs(20)).await;
    let refused = cluster_command(&["remove", "--server", &peer(&cluster, 3), "--id", "1"]).output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("is up"), "{refused:?}");
    succeed(&mut cluster_command(&["leave", "--server", &peer(&cluster, 3), "--id", "1"]))?;
    settled(&mut cluster, 3, "the first has left", |cluster, status| {
        ensure!(servers(status) == [2, 3, 4], "{:?}", servers(status));
        ensure!(places(cluster, status).iter().all(|places| *places == [2, 3, 4]));
        Ok(())
    })
    .await?;
    writers.progress(200, Duration::from_secs(20)).await;
    let status = cluster.stop(1).await?;
    ensure!(status.success(), "{status}");
    writers.progress(200, Duration::from_secs(20)).await;
    let written = writers.stop().await;
    let (acknowledged, refused, unknown) =
        (written.ledger.acknowledged(), written.ledger.refused(), written.ledger.unknown());
    eprintln!(
        "membership: planned steps: {acknowledged} writes acknowledged, {refused} refused, {unknown} unknown"
    );
    ensure!(
        refused + unknown == 0,
        "seed {seed}: planned steps showed {refused} refusals, {unknown} unknown outcomes"
    );
    ledger.absorb(written.ledger);
    audit(&cluster, &ledger, seed).await;

    // One more, for who comes to harm; it stays empty until then.
    cluster.spawn(5)?;
    cluster.listens(5).await?;
    let arguments = ["join", "--server", &peer(&cluster, 3), "--new", &peer(&cluster, 5), "--no-rebalance"];
    let said = succeed(&mut cluster_command(&arguments))?;
    ensure!(said.contains("is server 5"), "{said}");
    let writers = Writers::start("harm", 8, || cluster.client(), &mut random);
    writers.progress(200, Duration::from_secs(20)).await;
    cluster.kill(2)?;
    settled(&mut cluster, 3, "the second is made up for", |cluster, status| {
        ensure!(
            places(cluster, status).iter().all(|places| *places == [3, 4, 5]),
            "{:?}",
            places(cluster, status)
        );
        Ok(())
    })
    .await?;
    writers.progress(200, Duration::from_secs(20)).await;

    // It comes back with nothing: a stranger at a known address.
    cluster.wipe(2)?;
    cluster.spawn(2)?;
    cluster.listens(2).await?;
    let refused =
        cluster_command(&["join", "--server", &peer(&cluster, 3), "--new", &peer(&cluster, 2)]).output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("lost its data directory"), "{refused:?}");
    succeed(&mut cluster_command(&["remove", "--server", &peer(&cluster, 3), "--id", "2"]))?;
    settled(&mut cluster, 3, "the old one is no server any more", |_, status| {
        ensure!(servers(status) == [3, 4, 5], "{:?}", servers(status));
        Ok(())
    })
    .await?;
    let said = join(&cluster, 2)?;
    ensure!(said.contains("is server 6"), "{said}");
    settled(&mut cluster, 3, "it has its share as another", |cluster, status| {
        let on_second = places(cluster, status).into_iter().filter(|places| places.contains(&2)).count();
        ensure!(servers(status) == [3, 4, 5, 6] && on_second == 2, "{:?}", places(cluster, status));
        Ok(())
    })
    .await?;
    writers.progress(200, Duration::from_secs(20)).await;
    ledger.absorb(writers.stop().await.ledger);
    eprintln!(
        "membership: {} writes acknowledged in all, {} unknown",
        ledger.acknowledged(),
        ledger.unknown()
    );
    audit(&cluster, &ledger, seed).await;

    // Everybody at once, and nothing is forgotten.
    cluster.kill_together(&[2, 3, 4, 5])?;
    for number in 2..=5 {
        cluster.spawn(number)?;
    }
    settled(&mut cluster, 3, "everybody is back", |_, status| {
        let shards = status["shards"].as_array().context("shards")?;
        for replica in shards.iter().flat_map(|shard| shard["replicas"].as_array().into_iter().flatten()) {
            ensure!(replica["role"] == "leader" || replica["role"] == "follower", "{replica}");
        }
        Ok(())
    })
    .await?;
    audit(&cluster, &ledger, seed).await;
    Ok(())
}

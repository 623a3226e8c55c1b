//! Servers whose machine lost power under them, with `quorum-memory`: they do not trust the end of their logs. A minority is
//! replaced by new replica ids while clients go on; a majority waits for an operator. The kernel's boot id is made up; that
//! unsynced bytes are really gone is tested where the disk is made up, too.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::check::ledger::Ledger;
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape, binary};
use serde_json::Value;

/// Every replica of the cluster: server address, id, role.
fn replicas(status: &Value) -> Vec<(String, u64, String)> {
    let shards = status["shards"].as_array().into_iter().flatten();
    shards
        .flat_map(|shard| shard["replicas"].as_array().into_iter().flatten())
        .map(|replica| {
            let text = |field: &str| replica[field].as_str().unwrap_or_default().to_owned();
            (text("addr"), replica["id"].as_u64().unwrap_or_default(), text("role"))
        })
        .collect()
}

/// Ids of the replicas on a server.
fn ids_on(cluster: &Cluster, number: u16) -> Result<BTreeSet<u64>> {
    let on = |addr: &str| cluster.server_of(addr) == number;
    Ok(replicas(&cluster.status()?).into_iter().filter(|(addr, ..)| on(addr)).map(|(_, id, _)| id).collect())
}

/// Waits until no replica of the cluster has one of these ids, and all are leaders or followers with all data.
async fn replaced(cluster: &mut Cluster, old: &BTreeSet<u64>) -> Result<()> {
    let old = old.clone();
    cluster
        .wait("the replicas are replaced", async |cluster: &mut Cluster| {
            for (addr, id, role) in replicas(&cluster.status()?) {
                ensure!(!old.contains(&id), "replica {id} on {addr} is still there");
                ensure!(role == "leader" || role == "follower", "replica {id} on {addr} is {role}");
            }
            Ok(())
        })
        .await?;
    cluster.caught_up().await
}

async fn audit(cluster: &Cluster, ledger: &Ledger, seed: u64) {
    let audit = ledger.audit(&read_back(&mut cluster.client(), ledger).await);
    assert!(audit.is_clean(), "seed {seed}: {audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_comes_back_under_new_ids_beside_clients_that_go_on() -> Result<()> {
    let (mut random, seed) = Random::for_run("power_loss_minority");
    let mut cluster = Cluster::start(Shape { durability: "quorum-memory", ..Shape::default() }).await?;
    let mut ledger = Ledger::default();
    for round in 0..3 {
        let number = 1 + round % 3;
        let before = ids_on(&cluster, number)?;
        assert_eq!(before.len(), 3);
        let writers = Writers::start(&format!("round{round}"), 8, || cluster.client(), &mut random);
        writers.progress(50, Duration::from_secs(20)).await;
        cluster.lose_power(number)?;
        writers.progress(50, Duration::from_secs(20)).await;
        cluster.spawn(number)?;
        replaced_under_load(&mut cluster, number, &before).await?;
        writers.progress(50, Duration::from_secs(20)).await;
        ledger.absorb(writers.stop().await.ledger);
        replaced(&mut cluster, &before).await?;
        assert!(ids_on(&cluster, number)?.iter().all(|id| *id > 9), "seed {seed}");
        audit(&cluster, &ledger, seed).await;
        // The port is where it was, and what is behind it is the new replica; the server hears of its stage a moment after others did.
        cluster
            .wait("the new replicas are shown as connected", async |cluster: &mut Cluster| {
                let shown = cluster.connect(number, 0).await?.call(&["CLUSTER", "NODES"]).await?;
                let shown = shown.text().context("CLUSTER NODES is text")?;
                ensure!(shown.lines().any(|line| line.contains("myself")), "seed {seed}: {shown}");
                ensure!(!shown.contains("disconnected"), "seed {seed}: {shown}");
                Ok(())
            })
            .await?;
    }
    // Killed on the same boot nobody is in doubt.
    let before: Vec<_> = (1..=3).map(|number| ids_on(&cluster, number)).collect::<Result<_>>()?;
    cluster.kill_together(&[1, 2, 3])?;
    for number in 1..=3 {
        cluster.spawn(number)?;
    }
    cluster.ready().await?;
    audit(&cluster, &ledger, seed).await;
    let after: Vec<_> = (1..=3).map(|number| ids_on(&cluster, number)).collect::<Result<_>>()?;
    assert_eq!(after, before, "seed {seed}");
    Ok(())
}

/// Waits until the replicas of a server are new ones that vote.
async fn replaced_under_load(cluster: &mut Cluster, number: u16, old: &BTreeSet<u64>) -> Result<()> {
    let old = old.clone();
    cluster
        .wait("the replicas are replaced under load", async |cluster: &mut Cluster| {
            let all = replicas(&cluster.status()?);
            for (addr, id, role) in all.into_iter().filter(|(addr, ..)| cluster.server_of(addr) == number) {
                ensure!(!old.contains(&id), "replica {id} on {addr} is still there");
                ensure!(role == "leader" || role == "follower", "replica {id} on {addr} is {role}");
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_waits_for_an_operator() -> Result<()> {
    let (mut random, seed) = Random::for_run("power_loss_majority");
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    let writers = Writers::start("before", 4, || cluster.client(), &mut random);
    writers.progress(100, Duration::from_secs(20)).await;
    let ledger = writers.stop().await.ledger;
    let before = replicas(&cluster.status()?);
    for number in [1, 2] {
        cluster.lose_power(number)?;
    }
    for number in [1, 2] {
        cluster.spawn(number)?;
    }
    cluster
        .wait("two logs are in doubt", async |cluster: &mut Cluster| {
            let status = cluster.status()?;
            let doubtful = replicas(&status).into_iter().filter(|(.., role)| role == "distrusted").count();
            ensure!(doubtful == 2, "{status}");
            let why = status.to_string();
            ensure!(why.contains("machine went down") && why.contains("no leader"), "{why}");
            Ok(())
        })
        .await?;
    let table = succeed(&mut kvorum(&["cluster", "status", "--server", &cluster.peer_addr(3)]))?;
    assert!(table.contains("distrusted") && table.contains("is not opened"), "{table}");
    let refused = cluster.connect(3, 0).await?.call(&["SET", "key", "value"]).await?;
    assert!(refused.error().is_some(), "{refused:?}");

    let trust = |number: u16, shard: &str, accept: bool| {
        let mut command =
            kvorum(&["cluster", "trust-log", "--server", &cluster.peer_addr(number), "--shard", shard]);
        if accept {
            command.arg("--accept-data-loss");
        }
        succeed(&mut command)
    };
    assert!(trust(1, "0", false).is_err(), "not without saying what it may cost");
    assert!(trust(3, "all", true).is_err(), "its log is not in doubt");
    let said = trust(1, "0", true)?;
    assert!(said.contains("shard 0"), "{said}");
    cluster.ready().await?;
    assert!(cluster.log(1).contains("an operator trusts a log"), "seed {seed}");

    // The other one does not need to be trusted any more.
    let second = before.iter().find(|(addr, ..)| cluster.server_of(addr) == 2).context("server 2")?.1;
    replaced(&mut cluster, &BTreeSet::from([second])).await?;
    let after = replicas(&cluster.status()?);
    for (addr, id, _) in &before {
        let now = after.iter().find(|(other, ..)| other == addr).context("the same addresses")?.1;
        if *id == second {
            ensure!(now > 3, "replica {now} on {addr}");
        } else if now != *id {
            bail!("replica {id} on {addr} became {now}");
        }
    }
    audit(&cluster, &ledger, seed).await;
    Ok(())
}

fn kvorum(args: &[&str]) -> Command {
    let mut command = Command::new(binary::kvorum());
    command.args(args);
    command
}

//! kill -9 of every server at the same random moment, under writes, again and again: every acknowledged write is there
//! after the restart. Once more with a majority in memory only, which a kill of the processes must not lose either.

use std::time::Duration;

use anyhow::Result;
use kvorum_testkit::check::ledger::Ledger;
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape};

async fn crash_loop(name: &str, durability: &'static str, rounds: u32) -> Result<()> {
    let (mut random, seed) = Random::for_run(name);
    let mut cluster = Cluster::start(Shape { durability, ..Shape::default() }).await?;
    let mut ledger = Ledger::default();
    for round in 1..=rounds {
        let writers = Writers::start(&format!("round{round}"), 8, || cluster.client(), &mut random);
        writers.progress(50, Duration::from_secs(20)).await;
        tokio::time::sleep(random.between(Duration::ZERO, Duration::from_millis(700))).await;
        let everyone: Vec<u16> = cluster.numbers().collect();
        cluster.kill_together(&everyone)?;
        let written = writers.stop().await;
        let (acknowledged, unknown) = (written.ledger.acknowledged(), written.ledger.unknown());
        ledger.absorb(written.ledger);
        for number in everyone {
            cluster.spawn(number)?;
        }
        cluster.ready().await?;
        let audit = ledger.audit(&read_back(&mut cluster.client(), &ledger).await);
        eprintln!(
            "{name}: round {round}: {acknowledged} acknowledged, {unknown} unknown; since the start {audit}"
        );
        assert!(audit.is_clean(), "{name}, seed {seed}, round {round}: {audit}");
    }
    assert!(ledger.acknowledged() > u64::from(rounds) * 50);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_twenty_crashes_of_everything() -> Result<()> {
    crash_loop("crash_loop", "quorum-fsync", 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_in_memory_survives_crashes_of_all_processes() -> Result<()> {
    crash_loop("crash_loop_memory", "quorum-memory", 5).await
}

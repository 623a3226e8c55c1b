//! kill -9 of a leader under eight writers: nothing acknowledged is lost, writes resume, and the killed server comes
//! back and catches up.

use std::time::{Duration, Instant};

use anyhow::Result;
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape};

/// A bound for safety only: how fast failover is, `cargo xtask failover` measures and judges.
const RESUME_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_the_death_of_a_leader() -> Result<()> {
    let (mut random, _) = Random::for_run("leader_kill");
    let mut cluster = Cluster::start(Shape::default()).await?;
    let shard = random.below(3) as u16;
    let (leader, slots) = (cluster.leader(shard).await?, cluster.slots_of(shard).await?);
    let victim = cluster.server_of(&leader);

    // All writers write to the shard whose leader dies.
    let in_shard = move |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
    let writers = Writers::start_in("kill", 8, || cluster.client(), &mut random, in_shard);
    writers.progress(500, RESUME_LIMIT).await;
    let killed_at = Instant::now();
    cluster.kill(victim)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    writers.progress(500, RESUME_LIMIT + Duration::from_secs(5)).await;
    let written = writers.stop().await;

    let pause = written.resumed_after(killed_at).unwrap_or(Duration::MAX);
    eprintln!(
        "leader_kill: writes resumed after {pause:?}; {} acknowledged, {} unknown, {} refused",
        written.ledger.acknowledged(),
        written.ledger.unknown(),
        written.ledger.refused()
    );
    assert!(pause < RESUME_LIMIT, "writes resumed only after {pause:?}");

    let audit = written.ledger.audit(&read_back(&mut cluster.client(), &written.ledger).await);
    assert!(audit.is_clean(), "with the killed server away: {audit}");

    cluster.spawn(victim)?;
    cluster.ready().await?;
    cluster.caught_up().await?;
    let nodes = cluster.connect(1, 0).await?.call(&["CLUSTER", "NODES"]).await?.text().unwrap_or_default();
    assert_eq!(nodes.lines().filter(|line| line.contains(" connected")).count(), 9, "{nodes}");
    assert!(!nodes.contains("fail"), "{nodes}");
    let audit = written.ledger.audit(&read_back(&mut cluster.client(), &written.ledger).await);
    assert!(audit.is_clean(), "with the killed server back: {audit}");
    Ok(())
}

//! A server that was away for a million writes comes back while the others serve: it takes their snapshots, nobody calls an election, its
//! data is theirs, and no disk fills up.
//!
//! How much slower the others are meanwhile is printed, not judged here: server, writers and whoever else share this machine.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::flood::Flood;
use kvorum_testkit::map::wait;
use kvorum_testkit::{Cluster, Shape};

const WRITES: u64 = 1_000_000;
const KEYS: u64 = 300_000;
const VALUE_BYTES: usize = 100;
/// What a server has on disk beside three times its data: segments of the log that are written, kept as spares and prepared.
const CONSTANT_BYTES: u64 = 512 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_missed_a_million_writes() -> Result<()> {
    let settings = vec!["snapshot-log-bytes = 16777216".to_owned()];
    let mut cluster = Cluster::start(Shape { settings, ..Shape::default() }).await?;
    let map = cluster.map().clone();
    let everyone: Vec<u16> = map.numbers().collect();
    let mut flood = Flood::new(&map, &everyone, KEYS, VALUE_BYTES).await?;
    let (count, took) = flood.write(&map, &everyone, 100_000).await?;
    let together = rate(count, took);

    let away = map.server_of(&map.leader(&everyone, 0).await?);
    cluster.kill(away)?;
    cluster.ready().await?;
    let others = cluster.running();
    let (count, took) = flood.write(&map, &others, WRITES).await?;
    ensure!(count >= WRITES, "only {count} writes");
    let before = rate(count, took);
    eprintln!(
        "catch_up: {together:.0} writes/s with all three, {before:.0}/s with server {away} away, {count} writes"
    );

    // The others go on writing while it returns.
    let terms = terms(&cluster)?;
    let stop = Arc::new(AtomicBool::new(false));
    let returning = Instant::now();
    cluster.spawn(away)?;
    let writing = tokio::spawn({
        let (map, others, stop) = (map.clone(), others.clone(), stop.clone());
        async move { flood.write_until(&map, &others, &stop).await.map(|written| (flood, written)) }
    });
    let caught_up = wait("the server is nearly level", async || nearly_level(&cluster, &others)).await;
    let returned = returning.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (flood, (count, took)) = writing.await.context("writing")??;
    caught_up?;
    let during = rate(count, took);
    eprintln!(
        "catch_up: level again after {returned:?}; {during:.0} writes/s meanwhile, {:.2} of what two servers did alone, {:.2} \
         of what all three do",
        during / before,
        during / together
    );
    ensure!(
        cluster.log(away).contains("took over the state of a leader's snapshot"),
        "server {away} came back without a snapshot"
    );

    cluster.ready().await?;
    cluster.caught_up().await?;
    let terms_now = self::terms(&cluster)?;
    ensure!(terms == terms_now, "there was an election: terms {terms:?}, then {terms_now:?}");
    for number in map.numbers() {
        let checked = flood.check(&map, number).await?;
        let (bytes, live) = (disk_bytes(&cluster.server_dir(number))?, flood.live_bytes());
        eprintln!(
            "catch_up: server {number}: {checked} keys as written; {} MiB on disk, {} MiB live",
            bytes >> 20,
            live >> 20
        );
        ensure!(bytes <= 3 * live + CONSTANT_BYTES, "server {number} takes {bytes} bytes for {live}");
    }
    Ok(())
}

fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// The term of each shard, as the servers that run have it.
fn terms(cluster: &Cluster) -> Result<Vec<u64>> {
    let status = cluster.status()?;
    let shards = status["shards"].as_array().context("shards")?;
    shards.iter().map(|shard| shard["term"].as_u64().context("a term")).collect()
}

/// Whether every replica answers and is at most a moment behind.
fn nearly_level(cluster: &Cluster, asked: &[u16]) -> Result<()> {
    const MOMENT: u64 = 1000;
    let status = cluster.status_of(*asked.first().context("a server")?)?;
    for shard in status["shards"].as_array().context("shards")? {
        for replica in shard["replicas"].as_array().context("replicas")? {
            let lag = replica["lag"].as_u64();
            ensure!(lag.is_some_and(|lag| lag <= MOMENT), "shard {}: a lag of {lag:?}", shard["id"]);
        }
    }
    Ok(())
}

/// What the files in a directory take on disk.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        // A file may go while we look.
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}

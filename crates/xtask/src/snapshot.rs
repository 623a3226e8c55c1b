//! `bench snapshot`: how much longer GET and SET take while a shard of a million keys writes a snapshot.
//!
//! One shard on three servers, so that every server writes the same large snapshot. Probes ask at a steady, moderate pace, one
//! command at a time on each connection, and note when; a watcher notes when a snapshot is being written anywhere. Writes at full
//! speed make the log long enough for the next snapshot; what is measured meanwhile does not count.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::flood::Flood;
use kvorum_testkit::{Cluster, Connection, Shape};

use crate::bench::median;
use crate::tools::Program;

const VALUE_BYTES: usize = 100;
/// Connections for each of the two commands, and the pause between two commands of one.
const PROBES: usize = 4;
const PAUSE: Duration = Duration::from_millis(4);
/// How long it is measured without a snapshot, each round; and at most with one.
const QUIET: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(120);
/// How much longer the slowest percent may take.
const BAR: f64 = 2.0;

/// Arguments of `cargo xtask bench snapshot`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keys, all of them in one shard
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Snapshots to measure
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Bytes of a snapshot that are written in a second
    #[arg(long, default_value_t = 64 << 20)]
    bytes_per_second: u64,
    #[command(flatten)]
    program: Program,
}

/// How long each command took, in milliseconds.
#[derive(Debug, Default)]
struct Times {
    get: Vec<f64>,
    set: Vec<f64>,
}

/// Measures, prints, judges.
pub(crate) async fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds >= 1 && args.keys >= 1000, "at least one round and a thousand keys");
    let settings = vec![
        "snapshot-log-bytes = 33554432".to_owned(),
        format!("snapshot-bytes-per-second = {}", args.bytes_per_second),
    ];
    let shape = Shape { shards: 1, settings, ..Shape::default() };
    let cluster = Cluster::start_program(&args.program.get()?, shape).await?;
    let map = cluster.map().clone();
    let everyone: Vec<u16> = map.numbers().collect();
    let mut flood = Flood::new(&map, &everyone, args.keys, VALUE_BYTES).await?;
    flood.write(&map, &everyone, args.keys).await?;
    let leader = map.leader(&everyone, 0).await?;
    let writes = || map.numbers().any(|number| is_writing(&cluster.server_dir(number)));

    let (mut without, mut with) = (Times::default(), Times::default());
    for round in 1..=args.rounds {
        settle(&writes).await?;
        let until = Instant::now() + QUIET;
        let quiet = probe(&leader, args.keys, || Instant::now() < until).await?;
        ensure!(!writes(), "a snapshot began while none was expected");
        // As many writes as it takes.
        let deadline = Instant::now() + LIMIT;
        while !writes() {
            ensure!(Instant::now() < deadline, "no snapshot was taken within {LIMIT:?}");
            flood.write(&map, &everyone, 5_000).await?;
        }
        let began = Instant::now();
        let busy = probe(&leader, args.keys, &writes).await?;
        println!(
            "round {round}: {} commands without, {} while snapshots were written for {:?}",
            quiet.get.len() + quiet.set.len(),
            busy.get.len() + busy.set.len(),
            began.elapsed()
        );
        for (sum, times) in [(&mut without, quiet), (&mut with, busy)] {
            sum.get.extend(times.get);
            sum.set.extend(times.set);
        }
    }
    println!("\n{} keys of {VALUE_BYTES} bytes in one shard; {}\n", args.keys, args.program);
    println!("| | without, p50 / p99 | during a snapshot, p50 / p99 | p99 ratio |\n|---|---|---|---|");
    let mut worst: f64 = 0.0;
    for (command, without, with) in
        [("GET", &mut without.get, &mut with.get), ("SET", &mut without.set, &mut with.set)]
    {
        ensure!(
            with.len() >= 100,
            "only {} {command} while snapshots were written: too few to tell",
            with.len()
        );
        let (p99, p99_with) = (p99(without), p99(with));
        let (p50, p50_with) = (median(without).1, median(with).1);
        let ratio = p99_with / p99;
        worst = worst.max(ratio);
        println!("| {command} | {p50:.2} / {p99:.2} ms | {p50_with:.2} / {p99_with:.2} ms | {ratio:.2} |");
    }
    ensure!(
        worst <= BAR,
        "the slowest percent takes {worst:.2} times as long during a snapshot; the bar is {BAR}"
    );
    Ok(())
}

/// Waits until no snapshot has been written for a while.
async fn settle(writes: &impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_secs(2) {
        ensure!(Instant::now() < deadline, "snapshots are written without end");
        if writes() {
            quiet_since = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// GET and SET at a steady pace for as long as `while_` holds.
async fn probe(leader: &str, keys: u64, while_: impl Fn() -> bool) -> Result<Times> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for n in 0..2 * PROBES {
        let mut connection = Connection::open(leader).await?;
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            let (value, mut times) = ("v".repeat(VALUE_BYTES), Vec::new());
            let mut at = n as u64;
            while !stop.load(Ordering::Relaxed) {
                at = (at * 31 + 7) % keys;
                let key = format!("flood:{at}");
                let began = Instant::now();
                let reply = match n % 2 {
                    0 => connection.call(&["GET", &key]).await,
                    // Keys of its own: the flood's have one writer.
                    _ => connection.call(&["SET", &format!("probe:{at}"), &value]).await,
                };
                let reply = reply.with_context(|| format!("probing {key}"))?;
                ensure!(reply.error().is_none(), "{key}: {reply}");
                times.push(began.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(PAUSE).await;
            }
            Ok(times)
        }));
    }
    while while_() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sum = Times::default();
    for (n, task) in tasks.into_iter().enumerate() {
        let times: Vec<f64> = task.await.context("a probe panicked")??;
        if n % 2 == 0 { sum.get.extend(times) } else { sum.set.extend(times) }
    }
    Ok(sum)
}

/// Whether a server is writing a snapshot.
fn is_writing(server: &Path) -> bool {
    let Ok(groups) = std::fs::read_dir(server.join("snapshots")) else { return false };
    groups.flatten().any(|group| group.path().join("build.tmp").exists())
}

/// The value that one of a hundred is above.
fn p99(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[(times.len() * 99 / 100).min(times.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::p99;

    #[test]
    fn one_of_a_hundred_is_above() {
        let mut times: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        assert_eq!(p99(&mut times), 991.0);
        assert_eq!(p99(&mut [3.0, 1.0]), 3.0);
    }
}

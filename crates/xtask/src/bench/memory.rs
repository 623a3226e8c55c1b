//! `bench memory`: by how much a server's resident memory grows for each key of 16 bytes with a value of 16.
//!
//! Every round starts servers anew: memory that was given back to the allocator would count for nobody.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::generator::template::MOST_KEYS;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::process::resident_bytes;
use kvorum_testkit::{Cluster, Shape};

use super::Run;
use super::figures::{Rounds, digits};
use super::plot::Bars;
use super::report::{Report, Table};
use super::workload::{Subject, Values, disk};

const VALUES: Values = Values { name: "16 B", prefix: "key:", bytes: 16 };
/// For how long memory must not change by more than [`STILL`] of itself before it counts, and the most to wait for that.
const QUIET: Duration = Duration::from_secs(1);
const STILL: f64 = 0.002;
const LIMIT: Duration = Duration::from_secs(20);
const NAMES: [&str; 3] = ["Redis", "Kvorum, one server", "Kvorum, one of three servers"];

/// Arguments of `cargo xtask bench memory`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keys
    #[arg(long, default_value_t = MOST_KEYS)]
    keys: u32,
    #[command(flatten)]
    run: Run,
}

/// Measures and prints.
pub(crate) async fn run(args: &Args) -> Result<()> {
    args.run.check()?;
    ensure!((100_000..=MOST_KEYS).contains(&args.keys), "--keys must be in 100000..={MOST_KEYS}");
    let (program, mut conditions) = args.run.begin()?;

    let mut bytes = Rounds::new(1, NAMES.len());
    for round in 1..=args.run.rounds {
        conditions.measure_disk(&disk()?)?;
        let redis = Redis::start(&[])?;
        let mut grown = vec![growth(&Subject::redis(NAMES[0], &redis)?, redis.pid(), args.keys).await?];
        drop(redis);
        for (name, shape) in [
            (NAMES[1], Shape::standalone(1, "none")),
            // Each server has a replica of every shard, hence all keys.
            (NAMES[2], Shape { durability: "quorum-memory", ..Shape::default() }),
        ] {
            let cluster = Cluster::start_program(&program, shape).await?;
            let pid = cluster.pid(1).context("server 1 runs")?;
            grown.push(growth(&Subject::ours(name, &cluster)?, pid, args.keys).await?);
        }
        eprintln!(
            "round {round}: {} bytes per key",
            grown.iter().copied().map(digits).collect::<Vec<_>>().join(" / ")
        );
        bytes.push_row(0, grown);
    }

    let mut table = Table::new(["", "bytes per key", "ratio to Redis"]);
    let spreads = bytes.spreads(0);
    let redis = spreads[0].middle;
    for (name, spread) in NAMES.iter().zip(&spreads) {
        let cell = format!("{:.1} ({:.1}–{:.1})", spread.middle, spread.low, spread.high);
        table.row([(*name).to_owned(), cell, format!("{:.2}", spread.middle / redis)]);
    }
    let title = "Growth of resident memory, keys of 16 bytes with values of 16".to_owned();
    let plot = Bars::alone(title, "bytes per key", &NAMES, spreads);
    Report {
        name: "memory",
        run: &args.run,
        conditions,
        legend: format!(
            "Growth of resident memory (VmRSS) for each key, median of {} rounds with new servers (lowest–highest); {} keys of \
             16 bytes with values of 16",
            args.run.rounds, args.keys
        ),
        table,
        notes: Vec::new(),
        plot: plot.draw()?,
    }
    .publish()
}

/// Bytes for each key.
async fn growth(subject: &Subject, pid: u32, keys: u32) -> Result<f64> {
    let before = settled(pid).await?;
    subject.load(VALUES, keys).await?;
    let after = settled(pid).await?;
    Ok((after - before) / f64::from(keys))
}

/// Resident memory, once it does not change any more, or at the end of our patience.
async fn settled(pid: u32) -> Result<f64> {
    let deadline = Instant::now() + LIMIT;
    let mut since = (Instant::now(), resident_bytes(pid)? as f64);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = resident_bytes(pid)? as f64;
        if (now - since.1).abs() > STILL * since.1 {
            since = (Instant::now(), now);
        }
        if since.0.elapsed() >= QUIET || Instant::now() >= deadline {
            return Ok(now);
        }
    }
}

//! `bench latency`: how long a SET takes at a fixed rate, counted from when it was due.
//!
//! A closed loop sends less while the server is slow, and so hides how slow it was. Here a request that is due is sent,
//! and its time runs, whatever became of those before it.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvorum_testkit::generator::Pace;
use kvorum_testkit::generator::histogram::Histogram;
use kvorum_testkit::generator::template::Template;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::{Cluster, Shape};

use super::figures::{Rounds, digits};
use super::plot::percentiles;
use super::report::{Report, Table};
use super::workload::{CONNECTIONS, KEYS, Subject, VALUES, disk};
use super::{Run, check_seconds};

const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];
const WARM_UP: Duration = Duration::from_secs(1);

/// Arguments of `cargo xtask bench latency`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests a second
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// How many seconds each measurement takes
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    #[command(flatten)]
    run: Run,
}

/// Measures and prints.
pub(crate) async fn run(args: &Args) -> Result<()> {
    args.run.check()?;
    check_seconds(args.seconds)?;
    ensure!((100..=200_000).contains(&args.rate), "--rate must be in 100..=200000");
    let (program, mut conditions) = args.run.begin()?;

    let redis = Redis::start(&[])?;
    let always = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"])?;
    let fsync = Cluster::start_program(&program, Shape::default()).await?;
    let memory =
        Cluster::start_program(&program, Shape { durability: "quorum-memory", ..Shape::default() }).await?;
    let subjects = [
        Subject::redis("Redis", &redis)?,
        Subject::redis("Redis appendfsync always", &always)?,
        Subject::ours("quorum-fsync", &fsync)?,
        Subject::ours("quorum-memory", &memory)?,
    ];
    let values = VALUES[0];
    for subject in &subjects {
        subject.load(values, KEYS).await?;
    }

    let template = Template::set(values.prefix, values.bytes);
    let length = Duration::from_secs_f64(args.seconds);
    let pace = Pace::Open { per_second: args.rate, warm_up: WARM_UP, length };
    let mut times = Rounds::new(subjects.len(), PERCENTILES.len());
    let mut all: Vec<(String, Histogram)> =
        subjects.iter().map(|subject| (subject.name.clone(), Histogram::default())).collect();
    let mut late = Histogram::default();
    for round in 1..=args.run.rounds {
        conditions.measure_disk(&disk()?)?;
        for (row, subject) in subjects.iter().enumerate() {
            let measured = subject.measure(&template, values.prefix, (1, pace), 1).await?;
            let ms = PERCENTILES.map(|(_, percent)| measured.latency.percentile(percent).as_secs_f64() * 1e3);
            eprintln!(
                "round {round}: {}: {:.0}/s, {} ms",
                subject.name,
                measured.rate(),
                ms.map(digits).join(" / ")
            );
            times.push_row(row, ms);
            all[row].1.absorb(&measured.latency);
            late.absorb(&measured.late);
        }
    }

    let mut table = Table::new([""].into_iter().chain(PERCENTILES.map(|(name, _)| name)));
    for (row, subject) in subjects.iter().enumerate() {
        let cells = times.spreads(row).into_iter();
        let cells = cells.map(|ms| format!("{} ({}–{})", digits(ms.middle), digits(ms.low), digits(ms.high)));
        table.row([subject.name.clone()].into_iter().chain(cells));
    }
    let on_time = |percent| digits(late.percentile(percent).as_secs_f64() * 1e3);
    let title = format!("SET at {} a second, from when it was due", args.rate);
    Report {
        name: "latency",
        run: &args.run,
        conditions,
        legend: format!(
            "ms, median of {} interleaved rounds of {} s (lowest–highest), {} SET/s, counted from when each was due; {KEYS} \
             keys, {}-byte values, {CONNECTIONS} connections",
            args.run.rounds, args.seconds, args.rate, values.bytes
        ),
        table,
        notes: vec![format!(
            "The generator sent half of the requests at most {} ms after they were due, 99 % at most {} ms, all within {} \
             ms; that is part of the times above.",
            on_time(50.0),
            on_time(99.0),
            on_time(100.0)
        )],
        plot: percentiles(&title, &all)?,
    }
    .publish()
}

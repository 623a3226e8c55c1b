//! `bench cluster`: SET and GET on three servers with three shards, in both durabilities, against one redis-server without
//! persistence; with an asynchronous Redis Cluster of three masters and three replicas beside it.
//!
//! Keys of a cluster are spread over all slots of each leader. The generator has one thread for all of them.

use anyhow::{Result, ensure};
use kvorum_testkit::generator::template::Template;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::{Cluster, Shape};

use super::figures::{Rounds, thousands};
use super::plot::Bars;
use super::report::{Report, Table};
use super::workload::{CONNECTIONS, DEPTHS, KEYS, Subject, VALUES, Values, calibrate, closed, disk};
use super::{Run, check_seconds};

const COMMANDS: [&str; 2] = ["SET", "GET"];

/// Arguments of `cargo xtask bench cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many seconds each measurement takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[command(flatten)]
    run: Run,
}

/// A row of the table.
struct Row {
    command: &'static str,
    depth: usize,
    values: Values,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for values in VALUES {
        for depth in DEPTHS {
            rows.extend(COMMANDS.map(|command| Row { command, depth, values }));
        }
    }
    rows
}

/// Measures and prints.
pub(crate) async fn run(args: &Args) -> Result<()> {
    args.run.check()?;
    check_seconds(args.seconds)?;
    ensure!((1..=8).contains(&args.threads), "--threads must be in 1..=8");
    let (program, mut conditions) = args.run.begin()?;

    let redis = Redis::start(&[])?;
    let redis_cluster = Redis::cluster_of(3, 1, &[])?;
    let fsync = Cluster::start_program(&program, Shape::default()).await?;
    let memory =
        Cluster::start_program(&program, Shape { durability: "quorum-memory", ..Shape::default() }).await?;
    let subjects = [
        Subject::redis("Redis", &redis)?,
        Subject::ours("quorum-fsync", &fsync)?,
        Subject::ours("quorum-memory", &memory)?,
        Subject::redis_cluster("Redis Cluster 3 + 3", &redis_cluster)?,
    ];
    let generator = calibrate(&redis).await?;
    eprintln!("{generator}");
    for subject in &subjects {
        for values in VALUES {
            subject.load(values, KEYS).await?;
        }
    }

    let rows = rows();
    let new = || Rounds::new(rows.len(), subjects.len());
    let (mut rates, mut p50, mut p99) = (new(), new(), new());
    let mut costs = Vec::new();
    for round in 1..=args.run.rounds {
        conditions.measure_disk(&disk()?)?;
        for (row, Row { command, depth, values }) in rows.iter().enumerate() {
            let template = match *command {
                "SET" => Template::set(values.prefix, values.bytes),
                _ => Template::get(values.prefix),
            };
            for (column, subject) in subjects.iter().enumerate() {
                let pace = (*depth, closed(args.seconds));
                let measured = subject.measure(&template, values.prefix, pace, args.threads).await?;
                let ms = |percent| measured.latency.percentile(percent).as_secs_f64() * 1e3;
                eprintln!(
                    "round {round}: {command} P{depth} {} {}: {:.0}/s, p50 {:.2} ms",
                    values.name,
                    subject.name,
                    measured.rate(),
                    ms(50.0)
                );
                rates.push(row, column, measured.rate());
                p50.push(row, column, ms(50.0));
                p99.push(row, column, ms(99.0));
                costs.push(measured.cpu_ns());
            }
        }
    }

    let names = subjects.iter().map(|subject| subject.name.clone());
    let mut table = Table::new([String::new()].into_iter().chain(names.clone()));
    let mut groups = Vec::new();
    for (row, Row { command, depth, values }) in rows.iter().enumerate() {
        let redis = rates.spread(row, 0).middle;
        let name = format!("{command} P{depth} {}", values.name);
        let cells = (0..subjects.len()).map(|column| {
            let rate = rates.spread(row, column);
            format!(
                "{} [{:.2}] ({}–{}), {:.2} / {:.2}",
                thousands(rate.middle),
                rate.middle / redis,
                thousands(rate.low),
                thousands(rate.high),
                p50.spread(row, column).middle,
                p99.spread(row, column).middle
            )
        });
        table.row([name.clone()].into_iter().chain(cells));
        let bars = rates.spreads(row).into_iter().map(|rate| rate.times(1.0 / redis));
        groups.push((name, bars.collect()));
    }
    let plot = Bars {
        title: "SET and GET, ratio to one redis-server without persistence".to_owned(),
        axis: "ratio of requests per second",
        series: names.collect(),
        groups,
        mark: Some(1.0),
    };
    Report {
        name: "cluster",
        run: &args.run,
        conditions,
        legend: format!(
            "Requests a second, median of {} interleaved rounds of {} s [ratio to Redis] (lowest–highest), p50 / p99 in ms; \
             {KEYS} keys of each size, {CONNECTIONS} connections, {} thread(s) of the generator",
            args.run.rounds, args.seconds, args.threads
        ),
        table,
        notes: vec![generator],
        plot: plot.draw()?,
    }
    .publish()
}

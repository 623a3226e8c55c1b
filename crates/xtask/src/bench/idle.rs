//! `bench idle`: the processor time of a cluster that nobody asks anything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::process::cpu_time;
use kvorum_testkit::{Cluster, Shape};

use super::report::Table;
use crate::tools::Program;

/// For what a new cluster still has to do.
const SETTLE: Duration = Duration::from_secs(5);
/// Percent of a core that a server may take.
const BAR: f64 = 1.0;

/// Arguments of `cargo xtask bench idle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[command(flatten)]
    program: Program,
}

/// Measures, prints, judges.
pub(crate) async fn run(args: &Args) -> Result<()> {
    ensure!((5..=600).contains(&args.seconds), "--seconds must be in 5..=600");
    let redis = Redis::start(&[])?;
    let cluster = Cluster::start_program(&args.program.get()?, Shape::default()).await?;
    let mut processes = vec![("Redis".to_owned(), redis.pid())];
    for number in cluster.numbers() {
        processes.push((format!("server {number}"), cluster.pid(number).context("a server runs")?));
    }
    tokio::time::sleep(SETTLE).await;
    let times = || processes.iter().map(|(_, pid)| cpu_time(*pid)).collect::<Result<Vec<_>>>();
    let (began, before) = (Instant::now(), times()?);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (took, after) = (began.elapsed(), times()?);

    let mut table = Table::new(["", "percent of a core"]);
    let mut worst: f64 = 0.0;
    for (((name, _), before), after) in processes.iter().zip(before).zip(after) {
        let percent = 100.0 * (after - before).as_secs_f64() / took.as_secs_f64();
        table.row([name.clone(), format!("{percent:.2}")]);
        if name != "Redis" {
            worst = worst.max(percent);
        }
    }
    println!("3 servers, 3 shards, nobody asks; over {took:.0?}; {}\n", args.program);
    println!("{table}");
    ensure!(worst <= BAR, "an idle server takes {worst:.2} % of a core; the bar is {BAR} %");
    Ok(())
}

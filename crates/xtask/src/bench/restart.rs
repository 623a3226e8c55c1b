//! `bench restart`: from the start of a server with a million keys on its disk until it answers a GET with the right value.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvorum_testkit::generator::template::{MOST_KEYS, key};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::plain::Plain;
use kvorum_testkit::reply::Reply;
use kvorum_testkit::{Cluster, Shape};

use super::Run;
use super::figures::{Rounds, digits};
use super::plot::Bars;
use super::report::{Report, Table};
use super::workload::{Subject, Values, disk};

const VALUES: Values = Values { name: "100 B", prefix: "key:", bytes: 100 };
const LIMIT: Duration = Duration::from_secs(120);
const NAMES: [&str; 4] = ["Redis, RDB", "Redis, AOF", "Kvorum, after SIGTERM", "Kvorum, after kill -9"];

/// Arguments of `cargo xtask bench restart`.
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
    ensure!((1_000..=MOST_KEYS).contains(&args.keys), "--keys must be in 1000..={MOST_KEYS}");
    let (program, mut conditions) = args.run.begin()?;

    // It saves when it is stopped, and at no other time.
    let mut rdb = Redis::start(&["--save", "31536000", "1000000000"])?;
    let mut aof = Redis::start(&["--appendonly", "yes"])?;
    let mut ours = Cluster::start_program(&program, Shape::standalone(1, "quorum-fsync")).await?;
    for subject in
        [Subject::redis(NAMES[0], &rdb)?, Subject::redis(NAMES[1], &aof)?, Subject::ours(NAMES[2], &ours)?]
    {
        subject.load(VALUES, args.keys).await?;
    }

    // Of the last key: what comes first in a file says little.
    let asked = key(VALUES.prefix, args.keys - 1);
    let mut times = Rounds::new(1, NAMES.len());
    for round in 1..=args.run.rounds {
        conditions.measure_disk(&disk()?)?;
        let mut seconds = Vec::new();
        for redis in [&mut rdb, &mut aof] {
            redis.stop()?;
            seconds.push(redis.start_again(&asked, VALUES.bytes)?);
        }
        ours.stop(1).await?;
        seconds.push(start_again(&mut ours, &asked).await?);
        ours.kill(1)?;
        seconds.push(start_again(&mut ours, &asked).await?);
        let seconds: Vec<f64> = seconds.iter().map(Duration::as_secs_f64).collect();
        eprintln!("round {round}: {} s", seconds.iter().copied().map(digits).collect::<Vec<_>>().join(" / "));
        times.push_row(0, seconds);
    }

    let mut table = Table::new(["", "seconds"]);
    let spreads = times.spreads(0);
    for (name, spread) in NAMES.iter().zip(&spreads) {
        let cell = format!("{:.2} ({:.2}–{:.2})", spread.middle, spread.low, spread.high);
        table.row([(*name).to_owned(), cell]);
    }
    let title = format!("Start with {} keys of {} bytes until the first GET", args.keys, VALUES.bytes);
    let plot = Bars::alone(title, "seconds", &NAMES, spreads);
    Report {
        name: "restart",
        run: &args.run,
        conditions,
        legend: format!(
            "Seconds from the start of the process until the first right reply to GET, median of {} rounds (lowest–highest); {} \
             keys with values of {} bytes; Redis with its defaults for the AOF, one server of ours with `quorum-fsync`. Files \
             are in the page cache",
            args.run.rounds, args.keys, VALUES.bytes
        ),
        table,
        notes: Vec::new(),
        plot: plot.draw()?,
    }
    .publish()
}

/// As the same of [`Redis`]: every 2 ms a new connection and a GET.
async fn start_again(cluster: &mut Cluster, key: &str) -> Result<Duration> {
    let addr = cluster.addr(1, 0);
    let began = Instant::now();
    cluster.spawn(1)?;
    loop {
        let reply = Plain::open(&addr).and_then(|mut connection| connection.call(&["GET", key]));
        if matches!(&reply, Ok(Reply::Bulk(bytes)) if bytes.len() == VALUES.bytes) {
            return Ok(began.elapsed());
        }
        if began.elapsed() >= LIMIT {
            cluster.print_logs();
            anyhow::bail!("GET {key} after {LIMIT:?}: {reply:?}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

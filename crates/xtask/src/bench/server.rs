//! `bench server`: the string tests of redis-benchmark on one server without durability, against one redis-server without
//! persistence.

use anyhow::Result;
use kvorum_testkit::generator::template::{Arg, Template};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::{Cluster, Shape};

use super::figures::{Rounds, Spread, geometric_mean, thousands};
use super::plot::Bars;
use super::report::{Report, Table};
use super::workload::{CONNECTIONS, DEPTHS, KEYS, Subject, VALUES, Values, calibrate, closed, disk};
use super::{Run, check_seconds};

/// Keys of one MSET, as redis-benchmark has it.
const MSET_KEYS: usize = 10;
/// Theirs, too.
const COUNTERS: &str = "counter:";

/// Arguments of `cargo xtask bench server`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many seconds each measurement takes
    #[arg(long, default_value_t = 1.2)]
    seconds: f64,
    #[command(flatten)]
    run: Run,
}

struct Test {
    name: String,
    template: Template,
}

/// The tests of one size of values; what has no values is among the first size's.
fn tests(values: Values) -> Vec<Test> {
    let Values { prefix, bytes, .. } = values;
    let mut mset = vec![Arg::Text("MSET")];
    for _ in 0..MSET_KEYS {
        mset.extend([Arg::Key(prefix), Arg::Value(bytes)]);
    }
    let mut tests = Vec::new();
    let mut test = |name: &str, template| tests.push(Test { name: name.to_owned(), template });
    if values == VALUES[0] {
        test("PING_INLINE", Template::raw(b"PING\r\n"));
        test("PING_MBULK", Template::new(&[Arg::Text("PING")]));
        test("INCR", Template::new(&[Arg::Text("INCR"), Arg::Key(COUNTERS)]));
    }
    test(&format!("SET {}", values.name), Template::set(prefix, bytes));
    test(&format!("GET {}", values.name), Template::get(prefix));
    test(&format!("MSET {}", values.name), Template::new(&mset));
    tests
}

/// Measures and prints.
pub(crate) async fn run(args: &Args) -> Result<()> {
    args.run.check()?;
    check_seconds(args.seconds)?;
    let (program, mut conditions) = args.run.begin()?;
    conditions.measure_disk(&disk()?)?;

    let redis = Redis::start(&[])?;
    let server = Cluster::start_program(&program, Shape::standalone(1, "none")).await?;
    let subjects = [Subject::redis("Redis", &redis)?, Subject::ours("Kvorum", &server)?];
    let generator = calibrate(&redis).await?;
    eprintln!("{generator}");
    for subject in &subjects {
        for values in VALUES {
            subject.load(values, KEYS).await?;
        }
    }

    let tests: Vec<Test> = VALUES.into_iter().flat_map(tests).collect();
    let rows: Vec<(&Test, usize)> = tests.iter().flat_map(|test| DEPTHS.map(|depth| (test, depth))).collect();
    let mut rates = Rounds::new(rows.len(), subjects.len());
    for round in 1..=args.run.rounds {
        for (row, (Test { name, template }, depth)) in rows.iter().enumerate() {
            for (column, subject) in subjects.iter().enumerate() {
                let measured = subject.measure(template, "", (*depth, closed(args.seconds)), 1).await?;
                eprintln!("round {round}: {name} P{depth} {}: {:.0}/s", subject.name, measured.rate());
                rates.push(row, column, measured.rate());
            }
        }
    }

    let mut table = Table::new(["", "Redis", "Kvorum", "ratio"]);
    let mut groups: Vec<(String, Vec<Spread>)> = Vec::new();
    let mut ratios = DEPTHS.map(|_| Vec::new());
    for (row, (Test { name, .. }, depth)) in rows.iter().enumerate() {
        let (redis, ours) = (rates.spread(row, 0), rates.spread(row, 1));
        let ratio = ours.times(1.0 / redis.middle);
        let cell = |rate: Spread| {
            format!("{} ({}–{})", thousands(rate.middle), thousands(rate.low), thousands(rate.high))
        };
        table.row([format!("{name} P{depth}"), cell(redis), cell(ours), format!("{:.2}", ratio.middle)]);
        // A row for each depth, a group for each test.
        let at = row % DEPTHS.len();
        ratios[at].push(ratio.middle);
        match at {
            0 => groups.push((name.clone(), vec![ratio])),
            _ => groups.last_mut().expect("the first depth came before").1.push(ratio),
        }
    }
    let [p1, p16] = ratios.map(|ratios| geometric_mean(&ratios));
    table.row([
        "geometric mean P1 / P16".to_owned(),
        String::new(),
        String::new(),
        format!("{p1:.2} / {p16:.2}"),
    ]);
    let plot = Bars {
        title: "One server without durability, ratio to one redis-server without persistence".to_owned(),
        axis: "ratio of requests per second",
        series: DEPTHS.map(|depth| format!("P{depth}")).to_vec(),
        groups,
        mark: Some(1.0),
    };
    Report {
        name: "server",
        run: &args.run,
        conditions,
        legend: format!(
            "Requests a second, median of {} interleaved rounds of {} s (lowest–highest); {KEYS} keys of each size, \
             MSET with {MSET_KEYS} of them; {CONNECTIONS} connections, one thread of the generator; `--durability none`",
            args.run.rounds, args.seconds
        ),
        table,
        notes: vec![generator],
        plot: plot.draw()?,
    }
    .publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_redis_benchmark_for_strings() {
        let names: Vec<String> = VALUES.into_iter().flat_map(tests).map(|test| test.name).collect();
        assert_eq!(
            names,
            [
                "PING_INLINE",
                "PING_MBULK",
                "INCR",
                "SET 3 B",
                "GET 3 B",
                "MSET 3 B",
                "SET 1 KiB",
                "GET 1 KiB",
                "MSET 1 KiB"
            ]
        );
    }
}

//! `bench cluster`: SET and GET on three servers with three shards, against one redis-server without persistence.
//!
//! The load is redis-benchmark's, for all of them: 50 connections, 3-byte values, random keys out of 100,000 that
//! were loaded before, one command at a time (P1) or 16 (P16). On a cluster it runs with `--cluster`: it spreads
//! the connections over the leaders and, as it always does, gives all keys of one leader the same hash tag, so each
//! shard's keys lie in one slot. It then runs one thread per leader; against the single Redis it runs one thread,
//! which is what the single Redis does best with.
//!
//! What is compared runs in turns, round by round, on the same machine, so that a disturbance meets all of them.
//! Everything shares the machine: servers, replicas and the load. Figures of one machine say little about another;
//! ratios say more.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kvorum_testkit::ports::PortBlock;
use kvorum_testkit::{Cluster, Connection, Shape, Value, binary};

use crate::tools::Program;

const KEYS: u32 = 100_000;
const CONNECTIONS: u32 = 50;
const DEPTHS: [u32; 2] = [1, 16];
const COMMANDS: [&str; 2] = ["SET", "GET"];

/// Arguments of `cargo xtask bench cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; the median of them counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// About how many seconds each measurement takes
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    #[command(flatten)]
    program: Program,
}

/// What is measured.
struct Subject {
    name: &'static str,
    port: String,
    cluster: bool,
    keys_per_tag: u32,
}

/// One cell of the table: requests per second and the p50 in milliseconds, round by round.
#[derive(Default)]
struct Cell {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Measures and prints.
pub(crate) async fn cluster(args: &Args) -> Result<()> {
    ensure!(args.rounds >= 3, "--rounds must be at least 3, or the median means nothing");
    ensure!((1..=60).contains(&args.seconds), "--seconds must be in 1..=60");
    crate::tools::prepare(&[])?;
    let program = args.program.get()?;
    let redis = Redis::start().await?;
    let fsync = Cluster::start_program(&program, Shape::default()).await?;
    let memory =
        Cluster::start_program(&program, Shape { durability: "quorum-memory", ..Shape::default() }).await?;
    let ours = |name, cluster: &Cluster| Subject {
        name,
        port: cluster.base_port(1).to_string(),
        cluster: true,
        keys_per_tag: KEYS / 3,
    };
    let subjects = [
        Subject { name: "Redis", port: redis.port.to_string(), cluster: false, keys_per_tag: KEYS },
        ours("quorum-fsync", &fsync),
        ours("quorum-memory", &memory),
    ];
    load_one(&format!("127.0.0.1:{}", redis.port), "key:", KEYS).await?;
    for cluster in [&fsync, &memory] {
        load_cluster(cluster).await?;
    }

    let mut cells: Vec<Vec<Cell>> =
        subjects.iter().map(|_| (0..4).map(|_| Cell::default()).collect()).collect();
    let mut syncs = Vec::new();
    for round in 1..=args.rounds {
        syncs.push(sync_micros(fsync.dir())?);
        for (row, (depth, command)) in rows().enumerate() {
            for (subject, cells) in subjects.iter().zip(&mut cells) {
                // A short run first: it warms up, and says how many requests fill the time.
                let short = measure(subject, command, depth, 4_000 * depth)?;
                let requests = (short.0 * f64::from(args.seconds)).max(4_000.0) as u32;
                let (rate, p50, p99) = measure(subject, command, depth, requests)?;
                eprintln!("round {round}: {command} P{depth} {}: {rate:.0}/s, p50 {p50:.2} ms", subject.name);
                cells[row].rates.push(rate);
                cells[row].p50.push(p50);
                cells[row].p99.push(p99);
            }
        }
    }
    print_conditions(&mut syncs)?;
    print_table(&subjects, &mut cells, args);
    Ok(())
}

/// Where and with what this was measured.
fn print_conditions(syncs: &mut [f64]) -> Result<()> {
    let first_line = |command: &mut Command| -> Result<String> {
        Ok(String::from_utf8_lossy(&command.output()?.stdout).lines().next().unwrap_or("unknown").to_owned())
    };
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(binary::workspace());
    let commit = first_line(&mut git)?;
    let redis = first_line(Command::new("redis-server").arg("--version"))?;
    let redis = redis.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("?").to_owned();
    let cpus = std::thread::available_parallelism()?;
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |c| c.1);
    let (low, middle, high) = median(syncs);
    println!(
        "\ncommit {commit}; redis-server {redis}; {cpus} CPUs ({cpu}); 4 KiB write + fdatasync on this disk: \
         {middle:.0} µs ({low:.0}–{high:.0})"
    );
    Ok(())
}

/// The median time of a 4 KiB write with `fdatasync`, over blocks that exist, in microseconds.
fn sync_micros(dir: &Path) -> Result<f64> {
    let file = tempfile::tempfile_in(dir)?;
    file.write_all_at(&[1; 256 * 1024], 0)?;
    file.sync_all()?;
    let mut micros = Vec::new();
    for n in 0..200u64 {
        let began = Instant::now();
        file.write_all_at(&[2; 4096], n % 64 * 4096)?;
        file.sync_data()?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&mut micros).1)
}

fn rows() -> impl Iterator<Item = (u32, &'static str)> {
    DEPTHS.into_iter().flat_map(|depth| COMMANDS.into_iter().map(move |command| (depth, command)))
}

fn print_table(subjects: &[Subject], cells: &mut [Vec<Cell>], args: &Args) {
    println!(
        "\n{KEYS} keys, 3-byte values, {CONNECTIONS} connections, median of {} interleaved rounds [ratio to Redis] \
         (lowest–highest), p50 / p99 in ms; {}\n",
        args.rounds, args.program
    );
    print!("| |");
    subjects.iter().for_each(|subject| print!(" {} |", subject.name));
    println!("\n|---|{}", "---|".repeat(subjects.len()));
    for (row, (depth, command)) in rows().enumerate() {
        print!("| {command} P{depth} |");
        let (_, redis, _) = median(&mut cells[0][row].rates);
        for cells in cells.iter_mut() {
            let cell = &mut cells[row];
            let (low, rate, high) = median(&mut cell.rates);
            let (p50, p99) = (median(&mut cell.p50).1, median(&mut cell.p99).1);
            print!(
                " {} [{:.2}] ({}–{}), {p50:.2} / {p99:.2} |",
                thousands(rate),
                rate / redis,
                thousands(low),
                thousands(high)
            );
        }
        println!();
    }
}

fn thousands(rate: f64) -> String {
    format!("{:.1} k", rate / 1e3)
}

/// Lowest, middle and highest of some numbers.
pub(crate) fn median(numbers: &mut [f64]) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    let middle = if n % 2 == 1 { numbers[n / 2] } else { (numbers[n / 2 - 1] + numbers[n / 2]) / 2.0 };
    (numbers[0], middle, numbers[n - 1])
}

/// Runs redis-benchmark once; requests per second, p50 and p99 in milliseconds.
fn measure(subject: &Subject, command: &str, depth: u32, requests: u32) -> Result<(f64, f64, f64)> {
    let mut benchmark = Command::new("timeout");
    benchmark.args(["120", "redis-benchmark", "-p", &subject.port, "--csv", "-d", "3"]);
    benchmark.args(["-c", &CONNECTIONS.to_string(), "-P", &depth.to_string(), "-n", &requests.to_string()]);
    benchmark.args(["-r", &subject.keys_per_tag.to_string(), "-t", &command.to_lowercase()]);
    if subject.cluster {
        benchmark.arg("--cluster");
    }
    let output = benchmark.stdin(Stdio::null()).output().context("starting redis-benchmark")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(
        output.status.success() && !said.contains("rror"),
        "{benchmark:?} failed ({}): {said}",
        output.status
    );
    let line = said
        .lines()
        .find(|line| line.starts_with(&format!("\"{command}\"")))
        .with_context(|| said.clone())?;
    // "test","rps","avg","min","p50","p95","p99","max"
    let numbers: Vec<f64> =
        line.split(',').skip(1).filter_map(|n| n.trim_matches('"').parse().ok()).collect();
    ensure!(numbers.len() == 7, "redis-benchmark said: {line}");
    Ok((numbers[0], numbers[3], numbers[5]))
}

/// Loads `count` keys named as redis-benchmark names them.
async fn load_one(addr: &str, prefix: &str, count: u32) -> Result<()> {
    let mut connection = Connection::open(addr).await?;
    let keys: Vec<u32> = (0..count).collect();
    for chunk in keys.chunks(1000) {
        let set = |n: &u32| {
            vec![
                Bytes::from_static(b"SET"),
                Bytes::from(format!("{prefix}{n:012}")),
                Bytes::from_static(b"VXK"),
            ]
        };
        let requests: Vec<Vec<Bytes>> = chunk.iter().map(set).collect();
        for reply in connection.pipeline(&requests).await? {
            ensure!(reply == Value::ok(), "loading {addr}: {reply}");
        }
    }
    Ok(())
}

/// Loads each leader with its part of the keys. Which hash tag redis-benchmark takes for a leader, a first short
/// run of it tells.
async fn load_cluster(cluster: &Cluster) -> Result<()> {
    let port = cluster.base_port(1).to_string();
    let probe = Subject { name: "probe", port, cluster: true, keys_per_tag: 1 };
    measure(&probe, "SET", 1, 3000)?;
    for range in cluster.ranges().await? {
        let mut connection = Connection::open(&range.leader).await?;
        let keys = connection.call(&["KEYS", "*"]).await?;
        let key = keys.items().and_then(|keys| keys.first()?.text());
        let key = key.with_context(|| format!("redis-benchmark left no key on {}", range.leader))?;
        let prefix = key.strip_suffix("000000000000").with_context(|| format!("an unexpected key: {key}"))?;
        load_one(&range.leader, prefix, KEYS / 3).await?;
        let size = connection.call(&["DBSIZE"]).await?;
        ensure!(size == Value::Integer((KEYS / 3).into()), "{} holds {size} keys", range.leader);
    }
    Ok(())
}

/// A redis-server of our own, without persistence. Killed when dropped.
struct Redis {
    process: Child,
    port: u16,
    _ports: PortBlock,
    _dir: tempfile::TempDir,
}

impl Redis {
    async fn start() -> Result<Redis> {
        let (ports, dir) = (PortBlock::take()?, tempfile::tempdir()?);
        let port = ports.base();
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        server.arg("--dir").arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let process = server.spawn().context("starting redis-server (Debian's package redis-server)")?;
        let redis = Redis { process, port, _ports: ports, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        let addr = format!("127.0.0.1:{port}");
        loop {
            if let Ok(mut connection) = Connection::open(&addr).await
                && connection.call(&["PING"]).await.is_ok()
            {
                return Ok(redis);
            }
            ensure!(Instant::now() < deadline, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_few_and_of_many() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
    }
}

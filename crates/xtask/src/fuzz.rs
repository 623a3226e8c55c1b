//! `fuzz`: random commands and random bytes, for as long as one wants.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::{target_dir, workspace};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::differential::{self, Pair};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::{Cluster, Shape};

use crate::tools::Program;

/// Arguments of `cargo xtask fuzz differential`.
#[derive(Debug, clap::Args)]
pub(crate) struct Differential {
    /// How many commands to compare
    #[arg(long, default_value_t = 1_000_000)]
    commands: u64,
    /// The same seed makes the same commands
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many different differences
    #[arg(long, default_value_t = 20)]
    most: usize,
    #[command(flatten)]
    program: Program,
}

/// Random commands on a cluster of three servers in standalone mode and on a real Redis: equal replies.
pub(crate) async fn differential(args: &Differential) -> Result<()> {
    crate::tools::prepare(&[])?;
    let program = args.program.get()?;
    let cluster = Cluster::start_program(&program, Shape::standalone(3, "quorum-memory")).await?;
    let redis = Redis::start(&[])?;
    let pair = Pair { ours: cluster.leader(0).await?, redis: redis.addr() };
    let runtime = tokio::runtime::Handle::current();
    let leader = || tokio::task::block_in_place(|| runtime.block_on(cluster.leader(0)));
    let run = || differential::run(pair, args.seed, args.commands, args.most, leader);
    let found = tokio::task::block_in_place(run)?;
    println!(
        "seed {}: {} commands compared, {} dumps exchanged, {} differences, {} episodes interrupted by another leader",
        args.seed,
        found.commands,
        found.dumps,
        found.differences.len(),
        found.interrupted
    );
    if !found.missing.is_empty() {
        println!("not there: {}", found.missing.join(", "));
    }
    ensure!(found.differences.is_empty() && found.missing.is_empty(), "the replies differ");
    Ok(())
}

/// The targets in `fuzz/`.
const TARGETS: [&str; 3] = ["decoder", "session", "sentinel"];
/// What makes libFuzzer see which branches an input takes. All of it is known to a stable compiler; sanitizers are not, and there is
/// little for them to see: the crates allow no unsafe code.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Arguments of `cargo xtask fuzz bytes`.
#[derive(Debug, clap::Args)]
pub(crate) struct Bytes {
    /// How long, for all targets together
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only this target
    #[arg(long, value_parser = TARGETS)]
    target: Option<String>,
}

/// libFuzzer on each target, beginning with the corpus in the tree. New inputs go below `target/fuzz`, and so does one that fails.
pub(crate) fn bytes(args: &Bytes) -> Result<()> {
    let targets: Vec<&str> =
        TARGETS.into_iter().filter(|t| args.target.as_deref().is_none_or(|only| only == *t)).collect();
    ensure!(args.minutes > 0, "--minutes must be at least 1");
    let (fuzz, target_dir) = (workspace().join("fuzz"), target_dir().join("fuzz"));
    let triple = host()?;
    // With a target of its own, so that programs of the build itself are not instrumented.
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--locked", "--target", &triple, "--target-dir"]).arg(&target_dir);
    build.current_dir(&fuzz).env("RUSTFLAGS", INSTRUMENTED);
    ensure!(build.status().context("starting cargo")?.success(), "the fuzz targets do not build");
    for target in &targets {
        let (found, artifacts) =
            (target_dir.join("corpus").join(target), target_dir.join("artifacts").join(target));
        std::fs::create_dir_all(&found)?;
        std::fs::create_dir_all(&artifacts)?;
        let seconds = args.minutes * 60 / targets.len() as u64;
        println!("{target}: {seconds} seconds");
        let mut run = Command::new(target_dir.join(&triple).join("release").join(target));
        run.arg(format!("-max_total_time={seconds}"));
        run.args(["-timeout=10", "-rss_limit_mb=1024", "-max_len=16384", "-print_final_stats=1"]);
        run.arg(format!("-artifact_prefix={}/", artifacts.display()));
        run.arg(&found).arg(fuzz.join("corpus").join(target));
        ensure!(run.status()?.success(), "{target} failed; the input is in {}", artifacts.display());
    }
    println!(
        "{} minutes, nothing found; inputs of new branches are in {}",
        args.minutes,
        target_dir.join("corpus").display()
    );
    Ok(())
}

/// The triple of this machine.
fn host() -> Result<String> {
    let version = succeed(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

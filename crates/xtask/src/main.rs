//! Project tasks: `cargo xtask <task>`.
//!
//! | task | what |
//! |---|---|
//! | `ci` | format, clippy, docs, then `test`: what has to pass before anything is handed in |
//! | `test` | every test there is, on the built binary too, with the minutes of each lane |
//! | `prepare` | what the tests need besides Rust: Redis's programs, Python with redis-py |
//! | `bench cluster` | throughput against a real Redis, in one interleaved run |
//! | `bench snapshot` | how much longer commands take while a snapshot is written |
//! | `image` | the container image of the static program |
//! | `fuzz differential` | random commands on a cluster and on a real Redis |
//! | `failover` | how long writes pause when a leader dies, and that none is lost |

#![allow(clippy::print_stdout, reason = "a task talks to the person who runs it")]

mod bench;
mod failover;
mod fuzz;
mod lanes;
mod snapshot;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kvorum_testkit::image;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Format check, clippy, docs, then `test`
    Ci,
    /// Everything that tests: prepares, builds the binary once, runs all lanes and prints the minutes of each
    Test(lanes::Args),
    /// Installs what the tests need, or says how
    Prepare,
    /// Builds the static program and the container image of it, for deploy/docker/docker-compose.yml
    Image(ImageArgs),
    /// Measures
    #[command(subcommand)]
    Bench(Bench),
    /// Random input
    #[command(subcommand)]
    Fuzz(Fuzz),
    /// Kills leaders under writes; prints how long writes pause; fails when one is lost or the median is above 2 s
    Failover(failover::Args),
}

#[derive(Debug, clap::Args)]
struct ImageArgs {
    /// Name of the image
    #[arg(long, default_value = "kvorum:latest")]
    tag: String,
    /// Cargo profile to build the program with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Image to build on; scratch is empty
    #[arg(long, default_value = "scratch")]
    base: String,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// SET and GET on a cluster of three servers, as ratios to a single redis-server in the same run
    Cluster(bench::Args),
    /// GET and SET while a shard of a million keys writes a snapshot; fails when the slowest percent takes twice as long
    Snapshot(snapshot::Args),
}

#[derive(Debug, Subcommand)]
enum Fuzz {
    /// Random commands on a cluster and on a real Redis; fails with a small script when the replies differ
    Differential(fuzz::Differential),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Ci => lanes::ci(),
        Task::Test(args) => lanes::test(&args),
        Task::Prepare => tools::prepare(&lanes::END_TO_END).map(drop),
        Task::Image(args) => image(&args),
        Task::Bench(Bench::Cluster(args)) => block_on(bench::cluster(&args)),
        Task::Bench(Bench::Snapshot(args)) => block_on(snapshot::run(&args)),
        Task::Fuzz(Fuzz::Differential(args)) => block_on(fuzz::differential(&args)),
        Task::Failover(args) => block_on(failover::run(&args)),
    }
}

fn image(args: &ImageArgs) -> Result<()> {
    let program = image::build_static(&args.profile)?;
    image::make(&program, &args.tag, &args.base)?;
    println!("made the image {}", args.tag);
    Ok(())
}

/// Runs on this thread, which server processes watch: they end when it ends.
fn block_on(task: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(task)
}

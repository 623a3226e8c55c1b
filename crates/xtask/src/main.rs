//! Project tasks: `cargo xtask <task>`.
//!
//! | task | what |
//! |---|---|
//! | `ci` | format, clippy, docs, then `test`: what has to pass before anything is handed in |
//! | `test` | every test there is, on the built binary too, with the minutes of each lane |
//! | `prepare` | what the tests need besides Rust: Redis's programs, Python with redis-py |
//! | `bench cluster`, `bench server` | throughput against a real Redis, in one interleaved run |
//! | `bench latency` | times of writes at a fixed rate, the same way |
//! | `bench memory`, `bench restart` | bytes for a key, seconds for a start, the same way |
//! | `bench idle` | what a cluster takes that has nothing to do |
//! | `bench snapshot` | how much longer commands take while a snapshot is written |
//! | `image` | the container image of the static program |
//! | `bench burst`, `bench leak` | what an established client notices of very many others |
//! | `soak handover` | planned handovers of leaders under redis-py and redis-rs |
//! | `soak load` | full load for long, without an error or an election |
//! | `fuzz differential` | random commands on a cluster and on a real Redis |
//! | `fuzz bytes` | random bytes for the request decoder and the session |
//! | `failover` | what clients notice when a leader is killed, paused, cut off or hands over, beside Redis Cluster and Sentinel |

#![allow(clippy::print_stdout, reason = "a task talks to the person who runs it")]

mod bench;
mod failover;
mod fuzz;
mod lanes;
mod snapshot;
mod storm;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use kvorum_testkit::image;
use tokio::signal::unix::{SignalKind, signal};

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
    /// Lanes that run for longer
    #[command(subcommand)]
    Soak(Soak),
    /// Random input
    #[command(subcommand)]
    Fuzz(Fuzz),
    /// Kills, pauses and cuts off leaders and has them hand over, beside Redis Cluster and Sentinel; fails when a write is lost, a read is stale, or
    /// writes resume too late
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
    Cluster(bench::cluster::Args),
    /// The string tests of redis-benchmark on one server without durability, as ratios to a redis-server in the same run
    Server(bench::server::Args),
    /// How long a SET takes at a fixed rate, counted from when it was due, beside a redis-server in the same run
    Latency(bench::latency::Args),
    /// Resident bytes for each of a million small keys, beside a redis-server in the same run
    Memory(bench::memory::Args),
    /// How long a start with a million keys takes, beside a redis-server in the same run
    Restart(bench::restart::Args),
    /// Processor time of a cluster that nobody asks anything; fails above 1 % of a core for a server
    Idle(bench::idle::Args),
    /// GET and SET while a shard of a million keys writes a snapshot; fails when the slowest percent takes twice as long
    Snapshot(snapshot::Args),
    /// A thousand connections at once, and ten thousand a second; fails when an established client's p99 is above three times its quiet value
    Burst(storm::Args),
    /// A client that opens connections until it is refused; fails when another one's p99 doubles, or nobody else gets in
    Leak(storm::Args),
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// Planned handovers under the cluster clients of redis-py and redis-rs; fails when an application sees an error
    Handover(HandoverArgs),
    /// Full load of SET and GET; fails when a reply is an error, or a leader or a term changes
    Load(bench::soak::Args),
}

#[derive(Debug, clap::Args)]
struct HandoverArgs {
    /// How long
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Time from one handover to the next
    #[arg(long, default_value_t = 10)]
    every_seconds: u64,
}

#[derive(Debug, Subcommand)]
enum Fuzz {
    /// Random commands on a cluster and on a real Redis; fails with a small script when the replies differ
    Differential(fuzz::Differential),
    /// Random bytes for the request decoder and the session, by libFuzzer; fails when a property does not hold
    Bytes(fuzz::Bytes),
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
        Task::Bench(Bench::Cluster(args)) => block_on(bench::cluster::run(&args)),
        Task::Bench(Bench::Server(args)) => block_on(bench::server::run(&args)),
        Task::Bench(Bench::Latency(args)) => block_on(bench::latency::run(&args)),
        Task::Bench(Bench::Memory(args)) => block_on(bench::memory::run(&args)),
        Task::Bench(Bench::Restart(args)) => block_on(bench::restart::run(&args)),
        Task::Bench(Bench::Idle(args)) => block_on(bench::idle::run(&args)),
        Task::Bench(Bench::Snapshot(args)) => block_on(snapshot::run(&args)),
        Task::Bench(Bench::Burst(args)) => block_on(storm::burst_bar(&args)),
        Task::Bench(Bench::Leak(args)) => block_on(storm::leak_bar(&args)),
        Task::Soak(Soak::Handover(args)) => lanes::soak(
            "handover",
            &[("KVORUM_SECONDS", args.minutes * 60), ("KVORUM_EVERY_SECONDS", args.every_seconds)],
        ),
        Task::Soak(Soak::Load(args)) => block_on(bench::soak::run(&args)),
        Task::Fuzz(Fuzz::Differential(args)) => block_on(fuzz::differential(&args)),
        Task::Fuzz(Fuzz::Bytes(args)) => fuzz::bytes(&args),
        Task::Failover(args) => block_on(failover::run(&args)),
    }
}

fn image(args: &ImageArgs) -> Result<()> {
    let program = image::build_static(&args.profile)?;
    image::make(&program, &args.tag, &args.base)?;
    println!("made the image {}", args.tag);
    Ok(())
}

/// Runs on this thread, which server processes watch: they end when it ends. When the task is interrupted it is dropped, and with it every
/// process and directory it made.
fn block_on(task: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            result = task => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

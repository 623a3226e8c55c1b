//! `fuzz`: random commands and random bytes, for as long as one wants.

use anyhow::{Result, ensure};
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

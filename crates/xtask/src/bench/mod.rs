//! The measurements that compare Kvorum with a real Redis, each in one run.
//!
//! | module | what |
//! |---|---|
//! | [`cluster`] | SET and GET on three servers with three shards |
//! | [`server`] | the string tests of redis-benchmark on one server |
//! | [`latency`] | how long a SET takes at a fixed rate |
//! | [`memory`] | bytes for each key |
//! | [`restart`] | how long a start with a million keys takes |
//! | [`idle`] | what a cluster takes that has nothing to do |
//! | [`soak`] | full load for long |
//! | [`workload`] | subjects, and what is sent to them |
//! | [`figures`], [`report`], [`plot`] | medians, the table with its conditions, the picture of it |
//!
//! What is compared runs in turns, round by round, on the same machine, so that a disturbance meets all of them. Everything shares
//! the machine: servers, replicas and the load. Figures of one machine say little about another; ratios say more.

pub(crate) mod availability;
pub(crate) mod cluster;
mod figures;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod memory;
mod plot;
mod report;
pub(crate) mod restart;
pub(crate) mod server;
pub(crate) mod soak;
mod workload;

use std::path::PathBuf;

use anyhow::{Result, ensure};

pub(crate) use figures::median;
use report::Conditions;

use crate::tools::Program;

/// What all comparisons are told.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Rounds; the median of them counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Append the table to docs/performance.md and put the plot beside it, in docs/plots
    #[arg(long)]
    append: bool,
    #[command(flatten)]
    program: Program,
}

impl Run {
    fn check(&self) -> Result<()> {
        ensure!(self.rounds >= 3, "--rounds must be at least 3, or the median means nothing");
        ensure!(self.rounds <= 100, "--rounds must be at most 100");
        Ok(())
    }

    /// What has to be there before anything is measured: the program, and what can be told of the conditions.
    fn begin(&self) -> Result<(PathBuf, Conditions)> {
        crate::tools::prepare(&[])?;
        Ok((self.program.get()?, Conditions::now()?))
    }
}

/// The length of one measurement, which must be one that means something and ends.
fn check_seconds(seconds: f64) -> Result<()> {
    ensure!((0.5..=60.0).contains(&seconds), "--seconds must be in 0.5..=60");
    Ok(())
}

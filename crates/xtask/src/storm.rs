//! `bench burst` and `bench leak`: what an established client notices of very many others.
//!
//! The bars are ratios of the p99 of one client's commands to its quiet value in the same run. Load generator and servers share the machine, so
//! a burst costs the client what the burst costs the machine: on few cores much of the ratio is that.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::process::resident_bytes;
use kvorum_testkit::storm::{Established, arrivals, burst, leak, many_files, p99};
use kvorum_testkit::{Cluster, Connection, Shape, Value};

use crate::tools::Program;

/// How much slower than quiet a burst may make an established client.
const BURST_BAR: f64 = 3.0;
/// The same of a leak.
const LEAK_BAR: f64 = 2.0;
const ROUNDS: usize = 10;

/// Arguments of `cargo xtask bench burst` and `bench leak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    program: Program,
}

async fn quiet_times(addr: &str) -> Result<Vec<f64>> {
    let probe = Established::start(addr)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    probe.times_ms().await
}

/// A thousand connections with ten commands each at once; 10,000 connections a second for ten seconds.
pub(crate) async fn burst_bar(args: &Args) -> Result<()> {
    many_files()?;
    let cluster = Cluster::start_program(&args.program.get()?, Shape::standalone(3, "quorum-fsync")).await?;
    let leader = cluster.leader(0).await?;
    let pid = cluster.pid(cluster.server_of(&leader)).context("the leader runs")?;
    // Commands of all rounds together: a p99 of one round is the eighth slowest, and says more of the machine than of the burst.
    let (mut quiet, mut at_once, mut coming) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut quiet_now = quiet_times(&leader).await?;
        let probe = Established::start(&leader)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let took = burst(&leader, &format!("burst:{round}"), 1_000, 10).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut at_once_now = probe.times_ms().await?;
        let probe = Established::start(&leader)?;
        let came = arrivals(&leader, 10_000, Duration::from_secs(10)).await?;
        let mut coming_now = probe.times_ms().await?;
        println!(
            "round {}: burst in {took:?}; {:.0} connections a second; p99 {:.2} ms quiet, {:.2} in the burst, {:.2} while they come; resident {} MB",
            round + 1,
            came.per_second,
            p99(&mut quiet_now),
            p99(&mut at_once_now),
            p99(&mut coming_now),
            resident_bytes(pid)? >> 20
        );
        quiet.append(&mut quiet_now);
        at_once.append(&mut at_once_now);
        coming.append(&mut coming_now);
    }
    println!(
        "{} commands quiet, {} in bursts, {} while connections came",
        quiet.len(),
        at_once.len(),
        coming.len()
    );
    let (quiet, at_once, coming) = (p99(&mut quiet), p99(&mut at_once), p99(&mut coming));
    println!(
        "p99: {quiet:.2} ms quiet, {at_once:.2} ({:.1} x) in a burst, {coming:.2} ({:.1} x) while connections come; {}",
        at_once / quiet,
        coming / quiet,
        args.program
    );
    for (what, p99) in [("a burst", at_once), ("connections that come", coming)] {
        ensure!(
            p99 <= BURST_BAR * quiet,
            "{what}: {:.1} times the quiet p99, more than {BURST_BAR}",
            p99 / quiet
        );
    }
    Ok(())
}

/// A client that opens connections until it is refused.
pub(crate) async fn leak_bar(args: &Args) -> Result<()> {
    many_files()?;
    let program = args.program.get()?;
    let settings = vec!["maxclients = 2000".to_owned()];
    let cluster =
        Cluster::start_program(&program, Shape { settings, ..Shape::standalone(3, "quorum-fsync") }).await?;
    let leader = cluster.leader(0).await?;
    let quiet = p99(&mut quiet_times(&leader).await?);
    let probe = Established::start(&leader)?;
    let leaked = leak(&leader, "leaky", 3_000).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let leaking = probe.p99_ms().await?;
    println!(
        "{} connections leaked, then: {}; p99 {quiet:.2} ms quiet, {leaking:.2} during the leak; {}",
        leaked.connections.len(),
        leaked.refusal,
        args.program
    );
    let mut other = Connection::open(&leader).await?;
    ensure!(
        other.call(&["CLIENT", "SETNAME", "other"]).await? == Value::ok(),
        "another name is refused, too"
    );
    print!("{}", succeed(Command::new(&program).args(["clients", "--connect", &leader]))?);
    ensure!(leaking <= LEAK_BAR * quiet, "{:.1} times the quiet p99, more than {LEAK_BAR}", leaking / quiet);
    Ok(())
}

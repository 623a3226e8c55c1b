//! `failover`: how long writes to a shard pause when its leader is killed, and that no acknowledged write is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::client::Patience;
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape};

use crate::bench::median;
use crate::tools::Program;

const WRITERS: usize = 8;
const MEDIAN_BAR: Duration = Duration::from_secs(2);
/// How long writers wait for a reply when a server is frozen; part of the pause that is measured then.
const FROZEN_REPLY: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(30);

/// Arguments of `cargo xtask failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often a leader is killed
    #[arg(long, default_value_t = 5)]
    kills: u32,
    /// `quorum-fsync` or `quorum-memory`
    #[arg(long, default_value = "quorum-fsync")]
    durability: String,
    /// Freeze the leader (SIGSTOP) instead of killing it
    #[arg(long)]
    freeze: bool,
    #[command(flatten)]
    program: Program,
}

/// Measures, prints, judges.
pub(crate) async fn run(args: &Args) -> Result<()> {
    ensure!(args.kills >= 1, "--kills must be at least 1");
    let durability = match args.durability.as_str() {
        "quorum-fsync" => "quorum-fsync",
        "quorum-memory" => "quorum-memory",
        other => anyhow::bail!("--durability {other} is not quorum-fsync or quorum-memory"),
    };
    let program = args.program.get()?;
    let (mut random, _) = Random::for_run("failover");
    let mut cluster = Cluster::start_program(&program, Shape { durability, ..Shape::default() }).await?;
    let what = if args.freeze { "SIGSTOP" } else { "kill -9" };
    let (mut pauses, mut lost, mut unknown, mut acknowledged) = (Vec::new(), 0, 0, 0);
    println!(
        "| {what} | server | shard | writes resumed after | acknowledged | unknown | lost |\n|---|---|---|---|---|---|---|"
    );
    for n in 1..=args.kills {
        let shard = ((n - 1) % 3) as u16;
        let (leader, slots) = (cluster.leader(shard).await?, cluster.slots_of(shard).await?);
        let victim = cluster.server_of(&leader);
        let in_shard = move |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        // A frozen server answers nothing: only a client's own time-out gets it away from there.
        let patience = match args.freeze {
            true => Patience { reply: FROZEN_REPLY, ..Patience::default() },
            false => Patience::default(),
        };
        let client = || cluster.client().with_patience(patience);
        let writers = Writers::start_in(&format!("failover{n}"), WRITERS, client, &mut random, in_shard);
        writers.progress(1000, LIMIT).await;
        let killed_at = Instant::now();
        if args.freeze {
            cluster.freeze(victim)?
        } else {
            cluster.kill(victim)?
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        writers.progress(1000, LIMIT).await;
        let written = writers.stop().await;
        let pause = written.resumed_after(killed_at).context("writes did not resume")?;
        if args.freeze {
            cluster.thaw(victim)?
        } else {
            cluster.spawn(victim)?
        }
        cluster.ready().await?;
        cluster.caught_up().await?;
        let audit = written.ledger.audit(&read_back(&mut cluster.client(), &written.ledger).await);
        let ledger = &written.ledger;
        println!(
            "| {n} | {victim} | {shard} | {} ms | {} | {} | {} |",
            pause.as_millis(),
            ledger.acknowledged(),
            ledger.unknown(),
            audit.lost.len()
        );
        ensure!(audit.is_clean(), "{audit}");
        lost += audit.lost.len();
        unknown += ledger.unknown();
        acknowledged += ledger.acknowledged();
        pauses.push(pause.as_secs_f64() * 1e3);
    }
    let (low, middle, high) = median(&mut pauses);
    println!(
        "\n{what} of a leader under {WRITERS} writers, {durability}: writes resumed after {middle:.0} ms (median of {}, \
         {low:.0}–{high:.0}); {acknowledged} acknowledged, {unknown} unknown, {lost} lost",
        pauses.len()
    );
    ensure!(Duration::from_secs_f64(middle / 1e3) <= MEDIAN_BAR, "the median is above {MEDIAN_BAR:?}");
    Ok(())
}

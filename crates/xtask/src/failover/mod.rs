//! `failover`: what clients notice when the leader of a shard is killed, paused, cut off, or hands over, here and with Redis Cluster and
//! Redis Sentinel in the same run.
//!
//! Every server is a host of its own (a network namespace, which needs root), so that a cut is one: packets between servers are dropped, and
//! clients still reach them all. The clients are those of `workers.rs`: four for each shard, on all shards at once. Redis is told to take a
//! server for dead after one second instead of its 15 and 30.

mod systems;
mod workers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::random::Random;

use self::systems::{Harm, System};
use self::workers::{Evidence, Workers};
use crate::bench::availability::{self, Curve};
use crate::bench::median;
use crate::tools::Program;

/// Before the harm, for the gaps that there are without any.
const BEFORE: Duration = Duration::from_secs(3);
/// Of what comes after the harm, so much is looked at, if writes resume at all within this time.
const AFTER: Duration = Duration::from_secs(5);
/// The longest that is waited for writes to resume.
const LIMIT: Duration = Duration::from_secs(40);

/// What a failover may take, and a planned handover.
const FAILOVER_BAR: Duration = Duration::from_secs(1);
const HANDOVER_BAR: Duration = Duration::from_millis(100);
/// What shards that another server leads may notice beyond what they notice anyway.
const OTHERS_BAR: Duration = Duration::from_millis(100);

/// Arguments of `cargo xtask failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each harm is done to each system
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Which harms
    #[arg(long, value_delimiter = ',', default_values_t = [Harm::Kill, Harm::Pause, Harm::Cut, Harm::Handover])]
    harms: Vec<Harm>,
    /// Kvorum only
    #[arg(long)]
    alone: bool,
    /// `quorum-fsync` or `quorum-memory`
    #[arg(long, default_value = "quorum-fsync")]
    durability: String,
    #[command(flatten)]
    program: Program,
}

impl std::fmt::Display for Harm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Harm::Kill => "kill",
            Harm::Pause => "pause",
            Harm::Cut => "cut",
            Harm::Handover => "handover",
        })
    }
}

/// What came out of all rounds of one harm on one system.
#[derive(Default)]
struct Row {
    /// When another server led, of systems that tell.
    elected_ms: Vec<f64>,
    recovery_ms: Vec<f64>,
    /// The longest gap of shards that another server led, and the longest of all shards without harm.
    others_ms: Vec<f64>,
    baseline_ms: Vec<f64>,
    acknowledged: usize,
    lost: u64,
    counters_back: usize,
    stale_reads: usize,
    errors: BTreeMap<String, usize>,
    curve: Curve,
}

/// Measures, prints, judges.
pub(crate) async fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds >= 1, "--rounds must be at least 1");
    let durability = match args.durability.as_str() {
        "quorum-fsync" => "quorum-fsync",
        "quorum-memory" => "quorum-memory",
        other => anyhow::bail!("--durability {other} is not quorum-fsync or quorum-memory"),
    };
    let program = args.program.get()?;
    let (mut random, _) = Random::for_run("failover");
    let mut systems = vec![System::kvorum(&program, durability).await?];
    if !args.alone {
        systems.extend([System::redis_cluster()?, System::sentinel()?]);
    }
    let mut rows: Vec<Vec<Row>> = Vec::new();
    for &harm in &args.harms {
        let mut of_harm: Vec<Row> = systems.iter().map(|_| Row::default()).collect();
        for round in 0..args.rounds {
            for (system, row) in systems.iter_mut().zip(&mut of_harm) {
                let name = format!("{harm}{round}");
                trial(system, harm, round, &name, row, &mut random)
                    .await
                    .with_context(|| format!("{}, {harm}, round {}", system.name(), round + 1))?;
                eprintln!(
                    "{harm} {} of {}: {}: {:.0} ms",
                    round + 1,
                    args.rounds,
                    system.name(),
                    row.recovery_ms.last().copied().unwrap_or_default()
                );
            }
        }
        rows.push(of_harm);
    }
    println!(
        "\n{} rounds of each; {durability}; {}\n\n{}",
        args.rounds,
        args.program,
        table(&args.harms, &systems, &rows)
    );
    let panels = args.harms.iter().zip(&rows).map(|(harm, of_harm)| {
        let curves = systems.iter().zip(of_harm).map(|(system, row)| (system.name(), &row.curve));
        (harm.to_string(), curves.collect())
    });
    println!("{}", availability::save(&panels.collect::<Vec<_>>())?.display());
    judge(&args.harms, &rows)
}

/// One harm to one system.
async fn trial(
    system: &mut System,
    harm: Harm,
    round: usize,
    name: &str,
    row: &mut Row,
    random: &mut Random,
) -> Result<()> {
    let shards = system.shards().await?;
    let shard = round % shards.len();
    let workers = Workers::start(name, &shards, || system.client(), random);
    tokio::time::sleep(BEFORE).await;
    let (victim, led) = system.leader(shard).await?;
    let (harmed, harmed_at) = (Instant::now(), SystemTime::now());
    system.harm(harm, victim, shard)?;
    tokio::time::sleep(AFTER).await;
    let evidence = workers.stop_after_progress(LIMIT).await?;
    if harm != Harm::Handover {
        row.elected_ms.extend(system.elected(victim, &led, harmed_at)?.map(ms));
    }
    system.heal().await?;

    // What is handed over is one shard; what is gone with a server is all that it led.
    let led = if harm == Harm::Handover { vec![shard] } else { led };
    let quiet_from = evidence.began + BEFORE / 3;
    let until = harmed + AFTER;
    let longest = |shards: &mut dyn Iterator<Item = usize>, from, until| {
        shards.filter_map(|shard| evidence.longest_gap(shard, from, until)).map(|gap| gap.1).max()
    };
    let baseline = longest(&mut (0..shards.len()), quiet_from, harmed).unwrap_or_default();
    let recovery = led.iter().filter_map(|&shard| recovery(&evidence, shard, harm, harmed)).max();
    let recovery = recovery.context("writes did not resume")?;
    let others = longest(&mut (0..shards.len()).filter(|shard| !led.contains(shard)), harmed, until);
    row.recovery_ms.push(ms(recovery));
    row.others_ms.extend(others.map(ms));
    row.baseline_ms.push(ms(baseline));
    for &shard in &led {
        row.curve.add(harmed, &evidence.acknowledged(shard));
    }
    row.acknowledged += (0..shards.len()).map(|shard| evidence.acknowledged(shard).len()).sum::<usize>();
    row.stale_reads += evidence.stale_reads();
    let (lost, back) = evidence.losses(&mut system.client()).await?;
    row.lost += lost;
    row.counters_back += back;
    for (kind, times) in evidence.errors() {
        *row.errors.entry(kind).or_default() += times;
    }
    Ok(())
}

/// When writes to a shard had resumed: the end of the longest gap after the harm. Of a handover, how long that gap was.
fn recovery(evidence: &Evidence, shard: usize, harm: Harm, harmed: Instant) -> Option<Duration> {
    let (end, gap) = evidence.longest_gap(shard, harmed, harmed + AFTER)?;
    Some(if harm == Harm::Handover { gap } else { end - harmed })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn table(harms: &[Harm], systems: &[System], rows: &[Vec<Row>]) -> String {
    let mut text = "| | | another leads, ms: median (worst) | writes resume | other shards' longest gap | without harm | acknowledged | \
                    lost | counters gone back | stale reads | errors |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (harm, of_harm) in harms.iter().zip(rows) {
        for (system, row) in systems.iter().zip(of_harm) {
            let cell = |numbers: &[f64]| match numbers {
                [] => "–".to_owned(),
                numbers => {
                    let (_, middle, worst) = median(&mut numbers.to_vec());
                    format!("{middle:.0} ({worst:.0})")
                }
            };
            let errors: Vec<String> =
                row.errors.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
            text.push_str(&format!(
                "| {harm} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
                system.name(),
                cell(&row.elected_ms),
                cell(&row.recovery_ms),
                cell(&row.others_ms),
                cell(&row.baseline_ms),
                row.acknowledged,
                row.lost,
                row.counters_back,
                row.stale_reads,
                if errors.is_empty() { "none".to_owned() } else { errors.join(", ") },
            ));
        }
    }
    text
}

/// The bars are ours; the first system is.
fn judge(harms: &[Harm], rows: &[Vec<Row>]) -> Result<()> {
    let mut missed = Vec::new();
    for (harm, row) in harms.iter().zip(rows).filter_map(|(harm, of_harm)| Some((harm, of_harm.first()?))) {
        let middle = |numbers: &[f64]| median(&mut numbers.to_vec()).1;
        let mut expect = |holds: bool, what: String| {
            if !holds {
                missed.push(format!("{harm}: {what}"));
            }
        };
        expect(row.lost == 0, format!("{} acknowledged writes are lost", row.lost));
        expect(row.counters_back == 0, format!("{} counters went back", row.counters_back));
        expect(row.stale_reads == 0, format!("{} reads were stale", row.stale_reads));
        let recovery = middle(&row.recovery_ms);
        if *harm == Harm::Handover {
            let worst = median(&mut row.recovery_ms.clone()).2;
            expect(worst <= ms(HANDOVER_BAR), format!("the longest gap is {worst:.0} ms"));
            expect(row.errors.is_empty(), format!("clients saw {:?}", row.errors));
        } else {
            expect(recovery <= ms(FAILOVER_BAR), format!("writes resume after {recovery:.0} ms"));
        }
        if !row.others_ms.is_empty() {
            let beyond = middle(&row.others_ms) - middle(&row.baseline_ms);
            expect(beyond < ms(OTHERS_BAR), format!("other shards stall {beyond:.0} ms longer than without"));
        }
    }
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

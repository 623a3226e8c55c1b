//! `soak load`: as many SETs and GETs as three servers take, for long. Nothing may fail, and no leader may change: a loaded cluster
//! must not take itself for a broken one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::client::cluster_slots;
use kvorum_testkit::generator::template::Template;
use kvorum_testkit::generator::{Measured, Pace, Plan, Target, spread};
use kvorum_testkit::{Cluster, Connection, Shape};

use super::workload::{CONNECTIONS, KEYS, Subject, VALUES, generate};
use crate::tools::Program;

const DEPTH: usize = 16;
/// How often it is looked who leads.
const SLICE: Duration = Duration::from_secs(60);
/// Time for what happens after a failure.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// Arguments of `cargo xtask soak load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// `quorum-fsync` or `quorum-memory`
    #[arg(long, default_value = "quorum-fsync")]
    durability: String,
    #[command(flatten)]
    program: Program,
}

/// Runs, prints, judges.
pub(crate) async fn run(args: &Args) -> Result<()> {
    ensure!((1..=1440).contains(&args.minutes), "--minutes must be in 1..=1440");
    let durability = match args.durability.as_str() {
        "quorum-fsync" => "quorum-fsync",
        "quorum-memory" => "quorum-memory",
        other => anyhow::bail!("--durability {other} is not quorum-fsync or quorum-memory"),
    };
    let shape = Shape { durability, ..Shape::default() };
    let cluster = Cluster::start_program(&args.program.get()?, shape).await?;
    let values = VALUES[0];
    Subject::ours("the cluster", &cluster)?.load(values, KEYS).await?;
    let ranges = cluster_slots(&mut Connection::open(&cluster.addr(1, 0)).await?).await?;
    let targets = spread(&ranges, values.prefix, KEYS, CONNECTIONS / 2)?;
    let leaders = leaders(&cluster)?;
    println!("leaders and terms: {}; {}\n", leaders.join(", "), args.program);
    println!("| minute | SET/s | p99 ms | GET/s | p99 ms |\n|---|---|---|---|---|");
    let began = Instant::now();
    for minute in 1..=args.minutes {
        let (set, get) = (Template::set(values.prefix, values.bytes), Template::get(values.prefix));
        let both = both(&targets, &set, &get).await;
        if both.is_err() {
            tell(&cluster).await;
        }
        let [set, get] = both?;
        let p99 = |measured: &Measured| measured.latency.percentile(99.0).as_secs_f64() * 1e3;
        println!(
            "| {minute} | {:.0} | {:.2} | {:.0} | {:.2} |",
            set.rate(),
            p99(&set),
            get.rate(),
            p99(&get)
        );
        let now = self::leaders(&cluster)?;
        if now != leaders {
            tell(&cluster).await;
        }
        ensure!(
            now == leaders,
            "a leader or a term changed: {}, before {}",
            now.join(", "),
            leaders.join(", ")
        );
    }
    println!("\nno error and no change of a leader in {:.0?}", began.elapsed());
    Ok(())
}

/// What the servers have to say about a failure, a moment after it.
async fn tell(cluster: &Cluster) {
    tokio::time::sleep(AFTERWARDS).await;
    cluster.print_logs();
    match leaders(cluster) {
        Ok(leaders) => eprintln!("leaders and terms now: {}", leaders.join(", ")),
        Err(error) => eprintln!("leaders and terms now: {error:#}"),
    }
}

/// SET and GET at the same time, each from a thread of its own with half of the connections.
async fn both(targets: &[Target], set: &Template, get: &Template) -> Result<[Measured; 2]> {
    let plan = |template: &Template| Plan {
        template: template.clone(),
        depth: DEPTH,
        targets: targets.to_vec(),
        threads: 1,
        pace: Pace::Closed { warm_up: Duration::ZERO, length: SLICE },
    };
    let (set, get) = tokio::join!(generate(plan(set)), generate(plan(get)));
    Ok([set.context("SET")?, get.context("GET")?])
}

/// The leader of each shard with its term, as `kvorum cluster status` has them.
fn leaders(cluster: &Cluster) -> Result<Vec<String>> {
    of_status(&cluster.status()?)
}

fn of_status(status: &serde_json::Value) -> Result<Vec<String>> {
    let shards = status["shards"].as_array().context("status has no shards")?;
    let leader = |shard: &serde_json::Value| {
        let replicas = shard["replicas"].as_array()?;
        let leader = replicas.iter().find(|replica| replica["role"] == "leader")?;
        Some(format!(
            "shard {}: {} in term {}",
            shard["id"],
            leader["addr"].as_str()?,
            shard["term"].as_u64()?
        ))
    };
    let leaders = shards.iter().map(|shard| leader(shard).with_context(|| format!("no leader in {shard}")));
    leaders.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_and_in_which_term() {
        let status = |role: &str| {
            let text = format!(
                r#"{{"shards":[{{"id":0,"term":7,"replicas":[{{"id":1,"addr":"h:1","role":"{role}"}},{{"id":2,"addr":"h:2","role":"follower"}}]}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(of_status(&status("leader")).unwrap(), ["shard 0: h:1 in term 7"]);
        assert!(of_status(&status("candidate")).is_err());
    }
}

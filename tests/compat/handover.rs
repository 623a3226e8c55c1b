//! Leaders are handed over, planned, while the cluster clients of redis-py and redis-rs work: no error reaches the application.
//!
//! Thirty seconds with a handover every three; `cargo xtask soak handover` takes five minutes with one every ten.
//! `KVORUM_SECONDS` and `KVORUM_EVERY_SECONDS` say otherwise.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::{self, workspace};
use kvorum_testkit::{Cluster, Shape};

const THREADS: usize = 3;

fn seconds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number of seconds"))
}

/// One thread of an application that uses redis-rs: every reply is what it must be.
fn redis_rs_works(seed: &str, thread: usize, until: Instant) -> Result<u64> {
    let client = redis::cluster::ClusterClient::new(vec![seed.to_owned()])?;
    let mut connection = client.get_connection().context("redis-rs connects")?;
    let (mut rounds, mut counted) = (0u64, [0i64; 8]);
    while Instant::now() < until {
        rounds += 1;
        let key = format!("rs:{thread}:{}", rounds % 50);
        let set: String = redis::cmd("SET").arg(&key).arg(rounds).query(&mut connection).context("SET")?;
        let got: u64 = redis::cmd("GET").arg(&key).query(&mut connection).context("GET")?;
        ensure!(set == "OK" && got == rounds, "{key}: {set}, {got} instead of {rounds}");
        let at = usize::try_from(rounds % 8)?;
        counted[at] += 1;
        let counter = format!("rs:{thread}:counter:{at}");
        let value: i64 = redis::cmd("INCR").arg(&counter).query(&mut connection).context("INCR")?;
        ensure!(value == counted[at], "{counter}: {value} instead of {}", counted[at]);
        let tag = format!("{{rs:{thread}:{}}}", rounds % 7);
        let (a, b) = (format!("{tag}a"), format!("{tag}b"));
        let _: () = redis::cmd("MSET")
            .arg(&a)
            .arg(rounds)
            .arg(&b)
            .arg(rounds)
            .query(&mut connection)
            .context("MSET")?;
        let both: (u64, u64) = redis::cmd("MGET").arg(&a).arg(&b).query(&mut connection).context("MGET")?;
        ensure!(both == (rounds, rounds), "{tag}: {both:?} instead of {rounds}");
        if rounds % 10 == 0 {
            let removed: i64 = redis::cmd("DEL").arg(&key).query(&mut connection).context("DEL")?;
            let left: Option<u64> = redis::cmd("GET").arg(&key).query(&mut connection).context("GET")?;
            ensure!(removed == 1 && left.is_none(), "DEL {key}: {removed}, then {left:?}");
        }
    }
    Ok(rounds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_reaches_an_application() -> Result<()> {
    let length = Duration::from_secs(seconds("KVORUM_SECONDS", 30));
    let every = Duration::from_secs(seconds("KVORUM_EVERY_SECONDS", 3));
    let mut cluster = Cluster::start(Shape::default()).await?;
    let start = cluster.addr(1, 0);
    let port = start.rsplit_once(':').map(|(_, port)| port.to_owned()).context("a port")?;
    let python = Command::new(binary::python()?)
        .arg(workspace().join("tests/compat/redis_py_mixed.py"))
        .args(["127.0.0.1", &port, &length.as_secs().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let until = Instant::now() + length;
    let workers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let seed = format!("redis://{start}/");
            std::thread::spawn(move || redis_rs_works(&seed, thread, until))
        })
        .collect();

    let (mut handovers, mut refused) = (0u16, 0);
    while Instant::now() + every < until {
        tokio::time::sleep(every).await;
        let shard = handovers % cluster.shape().shards;
        match tokio::task::block_in_place(|| cluster.handover(shard)) {
            Ok(()) => handovers += 1,
            // An election may be on its way, on a small machine; the next one counts.
            Err(why) => {
                eprintln!("handover of shard {shard}: {why:#}");
                refused += 1;
            }
        }
    }
    let mut rounds = 0;
    let mut failed = Vec::new();
    for worker in workers {
        match worker.join().expect("a worker does not panic") {
            Ok(done) => rounds += done,
            Err(why) => failed.push(format!("redis-rs: {why:#}")),
        }
    }
    let output = python.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        failed.push(format!("redis-py: {}", String::from_utf8_lossy(&output.stderr)));
    }
    eprint!("{handovers} handovers ({refused} refused); redis-rs: {rounds} rounds; {said}");
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(handovers > refused && handovers >= 3, "{handovers} handovers, {refused} refused");
    ensure!(rounds > 0 && said.ends_with(": ok\n"), "{rounds} rounds, {said}");
    cluster.caught_up().await
}

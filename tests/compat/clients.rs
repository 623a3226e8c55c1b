//! Clients that nobody here wrote, unmodified: redis-py, redis-benchmark, redis-cli in pipe mode.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::resp::encode;
use kvorum_testkit::slots::{key_in, slot_of};
use kvorum_testkit::{Cluster, Connection, Shape, Value, binary};

fn port_of(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(_, port)| port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_py_cluster() -> Result<()> {
    let cluster = Cluster::start(Shape::default()).await?;
    let script = binary::workspace().join("tests/compat/redis_py.py");
    // From the first and from the last port: any node must do as a start.
    for addr in [cluster.addr(1, 0), cluster.addr(3, 2)] {
        let said = succeed(Command::new(binary::python()?).arg(&script).args(["127.0.0.1", port_of(&addr)]))?;
        eprint!("{said}");
        assert!(said.ends_with(": ok\n"), "{said}");
    }
    Ok(())
}

/// Runs redis-benchmark and returns the lines with its rates.
fn benchmark(arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("timeout").args(["120", "redis-benchmark"]).args(arguments).output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).replace('\r', "\n");
    ensure!(output.status.success(), "redis-benchmark {arguments:?} failed ({}): {said}", output.status);
    for trouble in ["rror", "MOVED", "WARNING"] {
        ensure!(!said.contains(trouble), "redis-benchmark {arguments:?}: {said}");
    }
    Ok(said.lines().filter(|line| line.contains("requests per second")).map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_benchmark_on_one_leader_and_on_the_cluster() -> Result<()> {
    let cluster = Cluster::start(Shape::default()).await?;
    // Without `-r` redis-benchmark uses this very key.
    let slot = slot_of(b"key:__rand_int__");
    let ranges = cluster.ranges().await?;
    let leader =
        ranges.iter().find(|r| (r.first..=r.last).contains(&slot)).context("an owner")?.leader.clone();
    let base = ["-c", "20", "-P", "16", "-q", "-n"];
    let one =
        [&["-p", port_of(&leader)], &base[..], &["20000", "-t", "set,get,ping_mbulk,ping_inline"]].concat();
    let rates = benchmark(&one)?;
    assert_eq!(rates.len(), 4, "{rates:?}");
    let start = cluster.addr(2, 1);
    let all = [&["-p", port_of(&start), "--cluster"], &base[..], &["30000", "-r", "1000", "-t", "set,get"]]
        .concat();
    let cluster_rates = benchmark(&all)?;
    assert_eq!(cluster_rates.len(), 2, "{cluster_rates:?}");
    for rate in rates.iter().chain(&cluster_rates) {
        eprintln!("redis-benchmark: {rate}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_pipe_mode() -> Result<()> {
    const COMMANDS: u32 = 20_000;
    let cluster = Cluster::start(Shape::default()).await?;
    let (leader, slots) = (cluster.leader(1).await?, cluster.slots_of(1).await?);
    // Pipe mode follows no redirects, so all keys are of the shard it talks to.
    let tag = key_in("pipe", 0, |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot)));
    let mut load = Vec::new();
    for n in 0..COMMANDS {
        load.extend(encode(&["SET", &format!("{{{tag}}}:{n}"), &n.to_string()]));
    }
    let mut cli = Command::new("redis-cli")
        .args(["-p", port_of(&leader), "--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting redis-cli (Debian's package redis-tools)")?;
    let mut input = cli.stdin.take().context("a pipe")?;
    let feeder = std::thread::spawn(move || input.write_all(&load));
    let output = cli.wait_with_output()?;
    feeder.join().expect("the feeder does not panic")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(&format!("errors: 0, replies: {COMMANDS}")), "{said}");
    let mut connection = Connection::open(&leader).await?;
    assert_eq!(connection.call(&["DBSIZE"]).await?, Value::Integer(COMMANDS.into()));
    let last = connection.call(&["GET", &format!("{{{tag}}}:{}", COMMANDS - 1)]).await?;
    assert_eq!(last, Value::bulk((COMMANDS - 1).to_string()));
    Ok(())
}

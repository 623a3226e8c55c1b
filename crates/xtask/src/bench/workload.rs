//! Who is measured, and what is sent to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::client::cluster_slots;
use kvorum_testkit::generator::template::Template;
use kvorum_testkit::generator::{self, Measured, Pace, Plan, Target, single, spread};
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::process::children_cpu_time;
use kvorum_testkit::{Cluster, Connection, binary};

/// Keys of each kind that are loaded before.
pub(super) const KEYS: u32 = 100_000;
pub(super) const CONNECTIONS: usize = 50;
/// Requests that a connection sends at once.
pub(super) const DEPTHS: [usize; 2] = [1, 16];
const WARM_UP: Duration = Duration::from_millis(300);
/// For what the one before left to do, such as a snapshot that begins.
const REST: Duration = Duration::from_millis(100);
/// Requests that a connection sends at once when data is loaded.
const LOADING_DEPTH: usize = 64;

/// Keys with values of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Values {
    pub(super) name: &'static str,
    /// How their keys begin: 16 bytes with the number.
    pub(super) prefix: &'static str,
    pub(super) bytes: usize,
}

/// The sizes that throughput is measured with.
pub(super) const VALUES: [Values; 2] =
    [Values { name: "3 B", prefix: "key:", bytes: 3 }, Values { name: "1 KiB", prefix: "big:", bytes: 1024 }];

/// Who is measured.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    /// One of its servers.
    addr: SocketAddr,
    /// Whether it has slots.
    cluster: bool,
}

impl Subject {
    /// A single redis-server.
    pub(super) fn redis(name: &str, redis: &Redis) -> Result<Subject> {
        Ok(Subject { name: name.to_owned(), addr: redis.addr().parse()?, cluster: false })
    }

    /// A Redis Cluster.
    pub(super) fn redis_cluster(name: &str, nodes: &[Redis]) -> Result<Subject> {
        let first = nodes.first().context("a cluster has nodes")?;
        Ok(Subject { cluster: true, ..Subject::redis(name, first)? })
    }

    /// One of ours, in either mode.
    pub(super) fn ours(name: &str, cluster: &Cluster) -> Result<Subject> {
        let standalone = cluster.shape().mode == "standalone";
        Ok(Subject { name: name.to_owned(), addr: cluster.addr(1, 0).parse()?, cluster: !standalone })
    }

    /// Who is asked for which of the keys `0..count`, as it is now.
    async fn targets(&self, prefix: &str, count: u32, connections: usize) -> Result<Vec<Target>> {
        if !self.cluster {
            return Ok(single(self.addr, count, connections));
        }
        let ranges = cluster_slots(&mut Connection::open(&self.addr.to_string()).await?).await?;
        spread(&ranges, prefix, count, connections)
    }

    /// Sends a request with keys of this prefix.
    pub(super) async fn measure(
        &self,
        template: &Template,
        prefix: &str,
        (depth, pace): (usize, Pace),
        threads: usize,
    ) -> Result<Measured> {
        tokio::time::sleep(REST).await;
        let targets = self.targets(prefix, KEYS, CONNECTIONS).await?;
        let plan = Plan { template: template.clone(), depth, targets, threads, pace };
        generate(plan).await.with_context(|| self.name.clone())
    }

    /// Sets keys `0..count`.
    pub(super) async fn load(&self, values: Values, count: u32) -> Result<()> {
        let plan = Plan {
            template: Template::set(values.prefix, values.bytes),
            depth: LOADING_DEPTH,
            targets: self.targets(values.prefix, count, 6).await?,
            threads: 1,
            pace: Pace::Once,
        };
        let measured = generate(plan).await.with_context(|| format!("loading {}", self.name))?;
        ensure!(measured.all_replies == u64::from(count), "{} of {count} keys", measured.all_replies);
        Ok(())
    }
}

/// Runs the generator where it blocks nobody, so that an interrupt is heard.
pub(super) async fn generate(plan: Plan) -> Result<Measured> {
    tokio::task::spawn_blocking(move || generator::run(&plan)).await.context("the generator panicked")?
}

/// As fast as replies come, for so long.
pub(super) fn closed(seconds: f64) -> Pace {
    Pace::Closed { warm_up: WARM_UP, length: Duration::from_secs_f64(seconds) }
}

/// Where the data of our servers lies.
pub(super) fn disk() -> Result<PathBuf> {
    let place = binary::target_dir().join("clusters");
    std::fs::create_dir_all(&place).with_context(|| format!("{}", place.display()))?;
    Ok(place)
}

/// What the generator itself can do, beside redis-benchmark, on the same server, which only answers PING. As a sentence.
pub(super) async fn calibrate(redis: &Redis) -> Result<String> {
    let subject = Subject::redis("Redis", redis)?;
    let ping = Template::raw(b"*1\r\n$4\r\nPING\r\n");
    let ours = subject.measure(&ping, "", (16, closed(1.5)), 1).await?;
    // As many requests as take it about as long.
    let requests = ((ours.rate() * 1.5) as u64).max(16_000);
    let before = children_cpu_time()?;
    let theirs = redis_benchmark(redis.port(), 16, requests)?;
    let cpu = (children_cpu_time()? - before).as_nanos() as f64 / requests as f64;
    Ok(format!(
        "The generator on the same Redis, PING P16: {:.0} k/s and {:.0} ns of processor time for a request; redis-benchmark: \
         {:.0} k/s and {cpu:.0} ns.",
        ours.rate() / 1e3,
        ours.cpu_ns(),
        theirs / 1e3
    ))
}

/// Requests a second.
fn redis_benchmark(port: u16, depth: usize, requests: u64) -> Result<f64> {
    let mut benchmark = Command::new("timeout");
    benchmark.args(["60", "redis-benchmark", "-p", &port.to_string(), "--csv", "-t", "ping_mbulk"]);
    benchmark.args(["-c", &CONNECTIONS.to_string(), "-P", &depth.to_string(), "-n", &requests.to_string()]);
    let output = benchmark.stdin(Stdio::null()).output().context("starting redis-benchmark")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{benchmark:?} failed ({}): {said}", output.status);
    // "test","rps","avg","min","p50","p95","p99","max"
    let rate = said.lines().find(|line| line.starts_with("\"PING_MBULK\"")).and_then(|line| {
        let second = line.split(',').nth(1)?;
        second.trim_matches('"').parse().ok()
    });
    rate.with_context(|| format!("redis-benchmark said: {said}"))
}

//! What fails over: Kvorum, a Redis Cluster, and a Redis with replicas under Sentinel, each server a host of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::binary::target_dir;
use kvorum_testkit::client::Client;
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::namespaces::Namespaces;
use kvorum_testkit::plain::Plain;
use kvorum_testkit::reply::Reply;
use kvorum_testkit::slots::SLOTS;
use kvorum_testkit::{Cluster, Fault, Nemesis, Network, Shape};
use rustix::process::{Pid, Signal};

/// Ranges of slots, both ends included.
pub(super) type Slots = Vec<(u16, u16)>;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// After so long without a sign of life Redis takes a server for dead; its defaults are 15 and 30 s.
const REDIS_PATIENCE: &str = "1000";
const LIMIT: Duration = Duration::from_secs(90);
/// How often it is asked whether everything is well again.
const LOOK: Duration = Duration::from_millis(100);
const CLUSTER_MASTERS: usize = 3;

/// A system under test.
pub(super) enum System {
    Kvorum(Box<Cluster>),
    RedisCluster(Redises),
    Sentinel(Redises),
}

/// What is done to the leader of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Harm {
    /// kill -9
    Kill,
    /// SIGSTOP
    Pause,
    /// The other servers do not reach it, nor it them; clients do
    Cut,
    /// It is asked to hand over
    Handover,
}

impl System {
    pub(super) async fn kvorum(program: &Path, durability: &'static str) -> Result<System> {
        let shape = Shape { durability, network: Network::Namespaces, ..Shape::default() };
        Ok(System::Kvorum(Box::new(Cluster::start_program(program, shape).await?)))
    }

    pub(super) fn redis_cluster() -> Result<System> {
        Ok(System::RedisCluster(Redises::cluster()?))
    }

    pub(super) fn sentinel() -> Result<System> {
        Ok(System::Sentinel(Redises::sentinel()?))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            System::Kvorum(_) => "Kvorum",
            System::RedisCluster(_) => "Redis Cluster",
            System::Sentinel(_) => "Redis Sentinel",
        }
    }

    pub(super) fn client(&self) -> Client {
        match self {
            System::Kvorum(cluster) => cluster.client(),
            System::RedisCluster(redises) => Client::new(redises.addrs()),
            System::Sentinel(redises) => {
                let sentinels = redises
                    .nodes
                    .iter()
                    .map(|node| format!("{}:{SENTINEL_PORT}", redises.namespaces.address(node.number)));
                Client::new(redises.addrs()).with_sentinels(sentinels, "mymaster")
            }
        }
    }

    /// The slots of each shard; they stay where they are.
    pub(super) async fn shards(&self) -> Result<Vec<Slots>> {
        match self {
            System::Kvorum(cluster) => {
                let mut shards = Vec::new();
                for shard in 0..cluster.shape().shards {
                    shards.push(cluster.slots_of(shard).await?);
                }
                Ok(shards)
            }
            System::RedisCluster(_) => {
                // As `redis-cli --cluster create` rounds.
                let end = |n: usize| (2 * n * usize::from(SLOTS) + CLUSTER_MASTERS) / (2 * CLUSTER_MASTERS);
                Ok((0..CLUSTER_MASTERS).map(|n| vec![(end(n) as u16, end(n + 1) as u16 - 1)]).collect())
            }
            System::Sentinel(_) => Ok(vec![vec![(0, SLOTS - 1)]]),
        }
    }

    /// The server that leads a shard, and the shards that it leads.
    pub(super) async fn leader(&self, shard: usize) -> Result<(u16, Vec<usize>)> {
        let shards = self.shards().await?.len();
        let mut leaders = Vec::new();
        for shard in 0..shards {
            leaders.push(match self {
                System::Kvorum(cluster) => cluster.server_of(&cluster.leader(shard as u16).await?),
                System::RedisCluster(redises) => redises.owner(self.shards().await?[shard][0].0)?,
                System::Sentinel(redises) => redises.master()?,
            });
        }
        let leader = leaders[shard];
        Ok((leader, (0..shards).filter(|&shard| leaders[shard] == leader).collect()))
    }

    /// Harms a server, or asks it to hand a shard over.
    pub(super) fn harm(&mut self, harm: Harm, server: u16, shard: usize) -> Result<()> {
        match self {
            System::Kvorum(cluster) => match harm {
                Harm::Kill => cluster.inflict(&Fault::Kill(server)),
                Harm::Pause => cluster.inflict(&Fault::Freeze(server)),
                Harm::Cut => {
                    let fault = Fault::split(cluster.map(), &[server]);
                    cluster.inflict(&fault)
                }
                Harm::Handover => cluster.handover(shard as u16),
            },
            System::RedisCluster(redises) if harm == Harm::Handover => {
                let replica = redises.replica_of(server)?;
                redises.ask(replica, REDIS_PORT, &["CLUSTER", "FAILOVER"]).map(drop)
            }
            System::Sentinel(redises) if harm == Harm::Handover => {
                redises.ask(1, SENTINEL_PORT, &["SENTINEL", "FAILOVER", "mymaster"]).map(drop)
            }
            System::RedisCluster(redises) | System::Sentinel(redises) => redises.inflict(harm, server),
        }
    }

    /// When another server than the victim led each of these shards, after `since`, by that server's own timeline or that of another one. Only
    /// Kvorum has one.
    pub(super) fn elected(
        &self,
        victim: u16,
        shards: &[usize],
        since: SystemTime,
    ) -> Result<Option<Duration>> {
        let System::Kvorum(cluster) = self else { return Ok(None) };
        let witness = cluster.numbers().find(|number| *number != victim).context("no server is left")?;
        let since_ms = since.duration_since(UNIX_EPOCH)?.as_millis();
        let since_ms = u64::try_from(since_ms)?;
        last_elected(&cluster.events_of(witness)?, shards, since_ms)
            .map(|at_ms| Some(Duration::from_millis(at_ms - since_ms)))
    }

    /// Undoes all harm and waits until everything is as before, but for who leads.
    pub(super) async fn heal(&mut self) -> Result<()> {
        match self {
            System::Kvorum(cluster) => {
                cluster.heal()?;
                cluster.ready().await?;
                cluster.caught_up().await
            }
            System::RedisCluster(redises) | System::Sentinel(redises) => {
                redises.heal()?;
                redises.settle()
            }
        }
    }
}

/// When the last of these shards had a new leader after `since_ms`, in a timeline of events.
fn last_elected(events: &serde_json::Value, shards: &[usize], since_ms: u64) -> Result<u64> {
    let events = events.as_array().context("a timeline is an array")?;
    let elected = |shard: &usize| {
        events
            .iter()
            .filter(|event| event["event"] == "+switch-master" && event["shard"] == *shard)
            .filter_map(|event| event["at_ms"].as_u64())
            .find(|at_ms| *at_ms >= since_ms)
            .with_context(|| format!("nobody was elected for shard {shard}"))
    };
    let elected: Vec<u64> = shards.iter().map(elected).collect::<Result<_>>()?;
    elected.into_iter().max().context("no shard")
}

/// Redis servers, and Sentinels beside them if there are any.
pub(super) struct Redises {
    namespaces: Namespaces,
    nodes: Vec<Node>,
    /// One beside each server; none in a Redis Cluster.
    sentinels: Vec<Child>,
    dir: tempfile::TempDir,
}

struct Node {
    number: u16,
    process: Option<Child>,
    arguments: Vec<String>,
}

impl Redises {
    fn make(count: u16, arguments: impl Fn(&Namespaces, u16) -> Vec<String>) -> Result<Redises> {
        let place = target_dir().join("redis");
        fs::create_dir_all(&place)?;
        let dir = tempfile::Builder::new().prefix("failover-").tempdir_in(place)?;
        let namespaces = Namespaces::make(count)?;
        let nodes = (1..=count)
            .map(|number| Node { number, process: None, arguments: arguments(&namespaces, number) })
            .collect();
        let mut redises = Redises { namespaces, nodes, sentinels: Vec::new(), dir };
        redises.heal()?;
        Ok(redises)
    }

    fn cluster() -> Result<Redises> {
        let words = ["--cluster-enabled", "yes", "--cluster-node-timeout", REDIS_PATIENCE];
        let nodes = 2 * CLUSTER_MASTERS as u16;
        let mut redises = Redises::make(nodes, |_, _| words.iter().map(|&word| word.to_owned()).collect())?;
        redises.wait("the nodes answer", |redises| {
            redises
                .nodes
                .iter()
                .try_for_each(|node| redises.ask(node.number, REDIS_PORT, &["PING"]).map(drop))
        })?;
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(redises.addrs()).args([
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        ]);
        succeed(&mut create)?;
        redises.settle()?;
        Ok(redises)
    }

    fn sentinel() -> Result<Redises> {
        let mut redises = Redises::make(3, |namespaces, number| match number {
            1 => Vec::new(),
            _ => vec!["--replicaof".to_owned(), namespaces.address(1), REDIS_PORT.to_string()],
        })?;
        for number in 1..=3 {
            let config = redises.dir.path().join(format!("sentinel-{number}.conf"));
            let (own, master) = (redises.namespaces.address(number), redises.namespaces.address(1));
            let text = format!(
                "port {SENTINEL_PORT}\nprotected-mode no\nsentinel announce-ip {own}\n\
                 sentinel monitor mymaster {master} {REDIS_PORT} 2\n\
                 sentinel down-after-milliseconds mymaster {REDIS_PATIENCE}\nsentinel failover-timeout mymaster 3000\n"
            );
            fs::write(&config, text)?;
            let mut sentinel = redises.namespaces.command(number, Path::new("redis-server"));
            sentinel.arg(&config).arg("--sentinel");
            redises.sentinels.push(quiet(&mut sentinel)?);
        }
        redises.settle()?;
        Ok(redises)
    }

    fn addrs(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("{}:{REDIS_PORT}", self.namespaces.address(node.number)))
            .collect()
    }

    fn ask(&self, number: u16, port: u16, argv: &[&str]) -> Result<Reply> {
        let mut connection = Plain::open((self.namespaces.address(number).as_str(), port))?;
        let reply = connection.call(argv)?;
        if let Reply::Error(text) = &reply {
            bail!("server {number}: {argv:?}: {}", text.escape_ascii());
        }
        Ok(reply)
    }

    fn text(&self, number: u16, argv: &[&str]) -> Result<String> {
        self.ask(number, REDIS_PORT, argv)?.text().with_context(|| format!("{argv:?} answers with no text"))
    }

    /// The number of the server at an address.
    fn number_of(&self, address: &str) -> Result<u16> {
        let mut numbers = self.nodes.iter().map(|node| node.number);
        numbers
            .find(|&number| self.namespaces.address(number) == address)
            .with_context(|| format!("who is {address}?"))
    }

    /// Of a cluster: who has a slot.
    fn owner(&self, slot: u16) -> Result<u16> {
        // `<id> <ip:port@bus> <flags> … <slots>`
        let nodes = self.text(1, &["CLUSTER", "NODES"])?;
        for line in nodes.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let has = words.iter().skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            });
            if has {
                return self.number_of(words[1].split(':').next().unwrap_or_default());
            }
        }
        bail!("nobody has slot {slot}")
    }

    /// Of a cluster: who follows a master.
    fn replica_of(&self, master: u16) -> Result<u16> {
        let info = self.text(master, &["INFO", "replication"])?;
        let ip = info.lines().find_map(|line| line.strip_prefix("slave0:ip=")?.split(',').next());
        self.number_of(ip.context("the master has no replica")?)
    }

    /// Under Sentinel: who is master, as the first one says.
    fn master(&self) -> Result<u16> {
        let reply = self.ask(1, SENTINEL_PORT, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"])?;
        let Reply::Array(parts) = &reply else { bail!("no master: {}", reply.render()) };
        self.number_of(&parts.first().and_then(Reply::text).unwrap_or_default())
    }

    fn inflict(&mut self, harm: Harm, number: u16) -> Result<()> {
        let others = (1..=self.nodes.len() as u16).filter(|other| *other != number);
        match harm {
            Harm::Kill => {
                let process = self.nodes[usize::from(number) - 1].process.take();
                let mut process = process.context("it does not run")?;
                process.kill()?;
                process.wait()?;
                Ok(())
            }
            Harm::Pause => self.signal(number, Signal::STOP),
            Harm::Cut => self
                .namespaces
                .inflict(&Fault::Cut(others.flat_map(|other| [(number, other), (other, number)]).collect())),
            Harm::Handover => bail!("that is no harm"),
        }
    }

    fn signal(&self, number: u16, signal: Signal) -> Result<()> {
        let process = self.nodes[usize::from(number) - 1].process.as_ref().context("it does not run")?;
        // Not waited for yet, so the id is still this child's and nobody else's.
        Ok(rustix::process::kill_process(Pid::from_child(process), signal)?)
    }

    fn heal(&mut self) -> Result<()> {
        self.namespaces.heal()?;
        for at in 0..self.nodes.len() {
            let number = self.nodes[at].number;
            if self.nodes[at].process.is_some() {
                self.signal(number, Signal::CONT)?;
                continue;
            }
            let dir = self.dir.path().join(format!("node-{number}"));
            fs::create_dir_all(&dir)?;
            let mut redis = self.namespaces.command(number, Path::new("redis-server"));
            redis.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--port", &REDIS_PORT.to_string()]);
            redis
                .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--dir"])
                .arg(&dir);
            redis.args(&self.nodes[at].arguments);
            self.nodes[at].process = Some(quiet(&mut redis)?);
        }
        Ok(())
    }

    /// Waits until every replica follows a master, and everybody agrees on who that is.
    fn settle(&mut self) -> Result<()> {
        let sentinels = !self.sentinels.is_empty();
        self.wait("the servers have settled", |redises| {
            let (mut masters, mut followers) = (0, 0);
            for node in &redises.nodes {
                let info = redises.text(node.number, &["INFO", "replication"])?;
                if info.contains("role:master") {
                    masters += 1;
                } else if info.contains("master_link_status:up") {
                    followers += 1;
                }
                if !sentinels {
                    let info = redises.text(node.number, &["CLUSTER", "INFO"])?;
                    ensure!(
                        info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384"),
                        "{info}"
                    );
                    let nodes = redises.text(node.number, &["CLUSTER", "NODES"])?;
                    ensure!(!nodes.contains("fail") && !nodes.contains("disconnected"), "{nodes}");
                }
            }
            let expected = if sentinels { (1, 2) } else { (CLUSTER_MASTERS, CLUSTER_MASTERS) };
            ensure!((masters, followers) == expected, "{masters} masters, {followers} followers");
            if sentinels {
                let master = redises.master()?;
                let info = redises.text(master, &["INFO", "replication"])?;
                ensure!(info.contains("role:master") && info.contains("connected_slaves:2"), "{info}");
                for number in 1..=3 {
                    let reply = redises.ask(number, SENTINEL_PORT, &["SENTINEL", "MASTER", "mymaster"])?;
                    let fields = fields(&reply);
                    let has = |name: &str, value: &str| fields.get(name).is_some_and(|found| found == value);
                    let well =
                        has("flags", "master") && has("num-slaves", "2") && has("num-other-sentinels", "2");
                    ensure!(well, "{fields:?}");
                }
            }
            Ok(())
        })
    }

    fn wait(&mut self, what: &str, condition: impl Fn(&Redises) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while let Err(why) = condition(self) {
            ensure!(Instant::now() < deadline, "waiting until {what}: {why:#}");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Pairs of a flat array.
fn fields(reply: &Reply) -> BTreeMap<String, String> {
    let Reply::Array(items) = reply else { return BTreeMap::new() };
    let pairs = items.chunks_exact(2).filter_map(|pair| Some((pair[0].text()?, pair[1].text()?)));
    pairs.collect()
}

fn quiet(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("starting {command:?}"))
}

impl Drop for Redises {
    fn drop(&mut self) {
        for process in
            self.nodes.iter_mut().filter_map(|node| node.process.as_mut()).chain(&mut self.sentinels)
        {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_the_first_election_of_each_shard_and_the_last_of_those() {
        let event = |at_ms: u64, shard: u64, event: &str| serde_json::json!({"at_ms": at_ms, "shard": shard, "event": event});
        let events = serde_json::json!([
            event(900, 0, "+switch-master"),
            event(1100, 0, "+sdown"),
            event(1400, 0, "+switch-master"),
            event(1500, 2, "+switch-master"),
            event(1900, 0, "+switch-master"),
        ]);
        assert_eq!(last_elected(&events, &[0], 1000).unwrap(), 1400);
        assert_eq!(last_elected(&events, &[0, 2], 1000).unwrap(), 1500);
        assert!(last_elected(&events, &[0, 1], 1000).is_err());
    }
}

//! Where the servers of a cluster under test are, and what they say about it over their client ports.
//!
//! It holds for whatever the servers run on: processes, network namespaces, containers. Server *n* (from 1) serves shard *s* on
//! base + 100·(*n* − 1) + *s*, at a host of its own or at one that all share.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::client::{Client, SlotRange, cluster_slots};
use crate::resp::Connection;
use crate::slots::{SLOTS, key_in};

/// The most that anything here waits for, unless said otherwise.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Ports from one server's base port to the next one's.
pub const PORTS_PER_SERVER: u16 = 100;
const PEER_PORT: u16 = 98;

/// The addresses of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    hosts: Vec<String>,
    shards: u16,
    standalone: bool,
    base: u16,
}

impl Map {
    /// A map of one server for each of `hosts`, the first of which has base port `base`.
    pub fn new(hosts: Vec<String>, shards: u16, standalone: bool, base: u16) -> Map {
        Map { hosts, shards, standalone, base }
    }

    /// The numbers of all servers.
    pub fn numbers(&self) -> std::ops::RangeInclusive<u16> {
        1..=u16::try_from(self.hosts.len()).expect("a test has few servers")
    }

    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The host of a server.
    pub fn host(&self, number: u16) -> &str {
        &self.hosts[usize::from(number) - 1]
    }

    /// The first client port of a server.
    pub fn base_port(&self, number: u16) -> u16 {
        self.base + PORTS_PER_SERVER * (number - 1)
    }

    /// `host:port` of the peer port of a server.
    pub fn peer_addr(&self, number: u16) -> String {
        format!("{}:{}", self.host(number), self.base_port(number) + PEER_PORT)
    }

    /// `host:port` where a server serves a shard.
    pub fn addr(&self, number: u16, shard: u16) -> String {
        format!("{}:{}", self.host(number), self.base_port(number) + shard)
    }

    /// Every client address of a server.
    pub fn addrs_of(&self, number: u16) -> Vec<String> {
        (0..self.shards).map(|shard| self.addr(number, shard)).collect()
    }

    /// Every client address.
    pub fn addrs(&self) -> Vec<String> {
        self.numbers().flat_map(|number| self.addrs_of(number)).collect()
    }

    /// The number of the server behind a client address.
    ///
    /// # Panics
    /// When the address is none of ours.
    pub fn server_of(&self, addr: &str) -> u16 {
        let number = port_of(addr).checked_sub(self.base).map(|offset| 1 + offset / PORTS_PER_SERVER);
        number.filter(|n| self.numbers().contains(n)).expect("an address of this cluster")
    }

    /// The shard behind a client address.
    pub fn shard_of(&self, addr: &str) -> u16 {
        (port_of(addr) - self.base) % PORTS_PER_SERVER
    }

    /// A client that may start at any server.
    pub fn client(&self) -> Client {
        Client::new(self.addrs())
    }

    /// A connection to a server's port of a shard.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self, number: u16, shard: u16) -> Result<Connection> {
        let addr = self.addr(number, shard);
        Connection::open(&addr).await.with_context(|| format!("connecting to {addr}"))
    }

    /// `host:port` of the leader of a shard, when all of the servers `asked` agree on it and it is one of them.
    ///
    /// # Errors
    /// When they do not, or one does not answer.
    pub async fn leader(&self, asked: &[u16], shard: u16) -> Result<String> {
        let mut leaders = Vec::new();
        for &number in asked {
            let mut connection = self.connect(number, shard).await?;
            if self.standalone {
                let info = connection.call_within(Duration::from_secs(5), &["INFO", "replication"]).await?;
                if info.text().is_some_and(|text| text.contains("role:master")) {
                    leaders.push(self.addr(number, 0));
                }
                continue;
            }
            let ranges = cluster_slots(&mut connection).await?;
            let covered: u32 = ranges.iter().map(|r| u32::from(r.last) - u32::from(r.first) + 1).sum();
            ensure!(covered == u32::from(SLOTS), "server {number} knows leaders of {covered} slots");
            let range = ranges.iter().find(|range| self.shard_of(&range.leader) == shard);
            leaders.push(range.with_context(|| format!("shard {shard} has no slots"))?.leader.clone());
        }
        let leader = leaders.first().with_context(|| format!("shard {shard} has no leader"))?.clone();
        ensure!(leaders.iter().all(|l| *l == leader), "shard {shard}: the servers disagree: {leaders:?}");
        ensure!(asked.contains(&self.server_of(&leader)), "{leader} does not run");
        Ok(leader)
    }

    /// The ranges of slots, as the first of the servers `asked` has them; one range of all in standalone mode.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ranges(&self, asked: &[u16]) -> Result<Vec<SlotRange>> {
        if self.standalone {
            let leader = self.leader(asked, 0).await?;
            let followers = self.addrs().into_iter().filter(|addr| *addr != leader).collect();
            return Ok(vec![SlotRange { first: 0, last: SLOTS - 1, leader, followers }]);
        }
        let number = *asked.first().context("no server runs")?;
        Ok(cluster_slots(&mut self.connect(number, 0).await?).await?)
    }

    /// The ranges of slots of a shard.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn slots_of(&self, asked: &[u16], shard: u16) -> Result<Vec<(u16, u16)>> {
        let ranges = self.ranges(asked).await?;
        Ok(ranges.iter().filter(|r| self.shard_of(&r.leader) == shard).map(|r| (r.first, r.last)).collect())
    }

    /// Checks that every shard has a leader that serves, and that all of the servers `asked` agree on who that is.
    ///
    /// # Errors
    /// What is missing.
    pub async fn serves(&self, asked: &[u16]) -> Result<()> {
        for shard in 0..self.shards {
            let leader = self.leader(asked, shard).await?;
            let slots = self.slots_of(asked, shard).await?;
            let key =
                key_in("ready", 0, |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot)));
            let mut connection = Connection::open(&leader).await?;
            let reply = connection.call_within(Duration::from_secs(2), &["GET", &key]).await?;
            ensure!(reply.error().is_none(), "{leader} answers {reply}");
        }
        Ok(())
    }

    /// Waits until the whole cluster serves.
    ///
    /// # Errors
    /// After [`LIMIT`], with what was missing last.
    pub async fn ready(&self) -> Result<()> {
        let everyone: Vec<u16> = self.numbers().collect();
        wait("the cluster serves", async || self.serves(&everyone).await).await
    }

    /// Checks what `kvorum cluster status --json` printed: every replica of every shard runs and has applied as much as
    /// its leader.
    ///
    /// # Errors
    /// What is missing.
    pub fn level(&self, status: &serde_json::Value) -> Result<()> {
        let shards = status["shards"].as_array().context("status has no shards")?;
        ensure!(shards.len() == usize::from(self.shards), "{} shards", shards.len());
        for shard in shards {
            let replicas = shard["replicas"].as_array().context("a shard has no replicas")?;
            let applied: Vec<Option<u64>> = replicas.iter().map(|r| r["applied"].as_u64()).collect();
            let level = applied.iter().all(|a| a.is_some() && *a == applied[0]);
            ensure!(level, "shard {}: applied {applied:?}", shard["id"]);
            let roles: Vec<&str> = replicas.iter().filter_map(|r| r["role"].as_str()).collect();
            let leaders = roles.iter().filter(|role| **role == "leader").count();
            ensure!(leaders == 1, "shard {}: {roles:?}", shard["id"]);
        }
        Ok(())
    }
}

fn port_of(addr: &str) -> u16 {
    addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("host:port")
}

/// Asks again and again until `condition` holds.
///
/// # Errors
/// After [`LIMIT`], with the last reason why not.
pub async fn wait(what: &str, mut condition: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let why = match tokio::time::timeout(LIMIT, condition()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => anyhow!("no answer"),
        };
        if Instant::now() >= deadline {
            bail!("waiting until {what}: {why:#}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_back() {
        let map = Map::new(vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()], 3, false, 7100);
        assert_eq!(
            (map.addr(2, 1), map.peer_addr(1)),
            ("10.0.0.2:7201".to_owned(), "10.0.0.1:7198".to_owned())
        );
        assert_eq!((map.server_of("anything:7201"), map.shard_of("anything:7201")), (2, 1));
        assert_eq!(map.addrs().len(), 6);
    }

    #[test]
    fn replicas_that_lag_or_do_not_answer_are_not_level() {
        let map = Map::new(vec!["h".to_owned()], 1, false, 7100);
        let status = |a: &str, b: &str| {
            let text = format!(
                r#"{{"shards":[{{"id":0,"replicas":[{{"role":"leader","applied":{a}}},{{"role":"follower","applied":{b}}}]}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        map.level(&status("7", "7")).unwrap();
        assert!(map.level(&status("7", "6")).is_err());
        assert!(map.level(&status("7", "null")).is_err());
    }
}

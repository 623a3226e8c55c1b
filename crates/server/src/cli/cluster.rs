//! `kvorum cluster`: create a cluster of running servers, and see how it is.
//!
//! Talks to the peer port of any server. What is shown is an [`Overview`], which is also the JSON of
//! `cluster status --json`; its field names are for scripts and stay.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use kvorum_cluster::{Durability, Mode, ReplicaId, ServerId, ShardId, Tenure};
use kvorum_node::{AdminClient, ClusterStatus, CreateCluster, ShardStatus};
use serde::Serialize;

use super::events;
use crate::config::MAX_SHARDS;

/// Replicas of a shard, as far as there are servers.
const DEFAULT_REPLICAS: u16 = 3;

/// The subcommands of `kvorum cluster`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a cluster of servers that run and belong to none yet
    Create(CreateArgs),
    /// Show servers, shards, leaders and how far the replicas are
    Status(StatusArgs),
    /// Hand the leadership of a shard to another of its replicas; clients are held for a moment and lose nothing
    #[command(visible_alias = "failover")]
    Handover(HandoverArgs),
    /// Take a server that runs and belongs to no cluster yet into this one
    Join(JoinArgs),
    /// Let a server that runs leave: its replicas move to others, then it is no part of the cluster any more
    Leave(LeaveArgs),
    /// Give up a server that is gone for good: its replicas are made anew on others
    Remove(RemoveArgs),
    /// Spread replicas and preferred leaders evenly over the servers
    Rebalance(RebalanceArgs),
    /// Say how many replicas each shard shall have
    Replicas(ReplicasArgs),
    /// Say which replica of a shard shall lead it whenever all is well
    Prefer(HandoverArgs),
    /// Show what a server saw happen to the leaders of shards: who was lost, who took over, when and why
    Events(events::Args),
    /// Open replicas whose logs may have lost their end, when too many did for the others to replace them
    TrustLog(TrustLogArgs),
}

/// Arguments of `kvorum cluster create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The servers, each by host and peer port (its base port + 98)
    #[arg(long, value_name = "HOST:PEERPORT,…", value_delimiter = ',', required = true)]
    servers: Vec<String>,
    /// Number of shards [default: 3, and 1 in standalone mode]
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Replicas of each shard, leader included [default: 3, or one per server when there are fewer]
    #[arg(long, value_name = "N")]
    replicas: Option<u16>,
    /// When a write is acknowledged: a majority has it on disk (quorum-fsync) or in the kernel's memory
    /// (quorum-memory); none is for one server only
    #[arg(long, value_name = "quorum-fsync|quorum-memory|none", default_value = "quorum-fsync")]
    durability: Durability,
    /// What clients see: Redis Cluster (cluster), or one plain Redis of one shard (standalone)
    #[arg(long, value_name = "cluster|standalone", default_value = "cluster")]
    mode: Mode,
    /// When the servers form a cluster already, say so and do nothing
    #[arg(long)]
    if_needed: bool,
}

/// Arguments of `kvorum cluster status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Arguments of `kvorum cluster handover` and `prefer`.
#[derive(Debug, clap::Args)]
pub(crate) struct HandoverArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// Number of the shard
    #[arg(long, value_name = "N")]
    shard: u16,
    /// The replica that shall lead, by its client address [default: the follower that lags least]
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
}

/// Arguments of `kvorum cluster join`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// The server that joins, by host and peer port, as the one above reaches it
    #[arg(long, value_name = "HOST:PEERPORT")]
    new: String,
    /// Leave replicas and preferred leaders where they are
    #[arg(long)]
    no_rebalance: bool,
}

/// Arguments of `kvorum cluster leave`.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaveArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// Number of the server that leaves
    #[arg(long, value_name = "N")]
    id: u64,
    /// Give replicas up for which there is no other server, as long as their shard keeps one
    #[arg(long)]
    fewer_replicas: bool,
}

/// Arguments of `kvorum cluster remove`.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// Number of the server that is gone
    #[arg(long, value_name = "N")]
    id: u64,
}

/// Arguments of `kvorum cluster rebalance`.
#[derive(Debug, clap::Args)]
pub(crate) struct RebalanceArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
}

/// Arguments of `kvorum cluster replicas`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplicasArgs {
    /// A server of the cluster, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// So many, the leader included, as far as there are servers; 0 for as many as there are
    #[arg(long, value_name = "N")]
    count: u16,
}

/// Arguments of `kvorum cluster trust-log`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrustLogArgs {
    /// The server whose logs are to be trusted, by host and peer port
    #[arg(long, value_name = "HOST:PEERPORT")]
    server: String,
    /// The shard whose log is to be trusted, or all that are in doubt on this server
    #[arg(long, value_name = "N|all")]
    shard: String,
    /// Writes that were acknowledged and are not in the logs that are left are lost
    #[arg(long, required = true)]
    accept_data_loss: bool,
}

/// What a new cluster shall be.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// `host:peerport` of each server.
    pub(crate) servers: Vec<String>,
    /// Number of shards.
    pub(crate) shards: u16,
    /// Replicas of each shard; `None` for up to three.
    pub(crate) replicas: Option<u16>,
    /// When a write counts as done.
    pub(crate) durability: Durability,
    /// What clients see.
    pub(crate) mode: Mode,
}

/// A cluster as one of its servers sees it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Overview {
    /// Identity of the cluster.
    pub(crate) cluster_id: String,
    /// `cluster` or `standalone`.
    pub(crate) mode: String,
    /// `quorum-fsync`, `quorum-memory` or `none`.
    pub(crate) durability: String,
    /// Version of the topology.
    pub(crate) topology_version: u64,
    /// The servers, by id.
    pub(crate) servers: Vec<ServerRow>,
    /// The shards, by id.
    pub(crate) shards: Vec<ShardRow>,
    /// Replicas that come, go, or are still to go, as text; empty when the cluster is as it shall be.
    pub(crate) to_do: Vec<String>,
}

/// A server of an [`Overview`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct ServerRow {
    /// Number of the server, from 1.
    pub(crate) id: u64,
    /// Where clients reach it.
    pub(crate) host: String,
    /// Its first client port there.
    pub(crate) base_port: u16,
    /// `host:port` where the other servers reach it.
    pub(crate) peer: String,
    /// Whether it answers.
    pub(crate) up: bool,
    /// `settled`, `settling` while it gets its share of replicas, `leaving` or `leaving-with-fewer`, `away` when it has been down so long that its
    /// replicas are made anew elsewhere, `gone` when an operator gave it up.
    pub(crate) tenure: Tenure,
}

/// A shard of an [`Overview`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct ShardRow {
    /// Number of the shard, from 0.
    pub(crate) id: u16,
    /// Its slots, as `0-5460`, several ranges joined by commas.
    pub(crate) slots: String,
    /// The highest term that was heard of.
    pub(crate) term: u64,
    /// Its replicas.
    pub(crate) replicas: Vec<ReplicaRow>,
}

/// A replica of a [`ShardRow`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct ReplicaRow {
    /// Number of the replica.
    pub(crate) id: u64,
    /// `host:port` of its client port.
    pub(crate) addr: String,
    /// `leader`, `follower`, `candidate`, `learner`; `deposed` for a leader that does not know yet that it was
    /// replaced; `failed` for a replica that stopped; `distrusted` for one that is not opened because its log may have
    /// lost its end; `unreachable` when its server does not answer.
    pub(crate) role: String,
    /// Index of the last log entry it has applied.
    pub(crate) applied: Option<u64>,
    /// How many entries it is behind its leader.
    pub(crate) lag: Option<u64>,
    /// Why the replica stopped, if it did.
    pub(crate) failed: Option<String>,
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    match command {
        Command::Create(args) => {
            let shape = Shape {
                servers: args.servers,
                shards: args.shards.unwrap_or(if args.mode == Mode::Standalone { 1 } else { 3 }),
                replicas: args.replicas,
                durability: args.durability,
                mode: args.mode,
            };
            if args.if_needed
                && let Some(id) = runtime.block_on(existing(&shape.servers))?
            {
                return say(&format!("cluster {id} exists already\n"));
            }
            let id = runtime.block_on(create(&shape))?;
            say(&format!("cluster {id} created; see `kvorum cluster status --server {}`\n", shape.servers[0]))
        }
        Command::Status(args) => {
            let overview = runtime.block_on(overview(&args.server))?;
            let text = if args.json {
                serde_json::to_string_pretty(&overview).context("writing JSON")? + "\n"
            } else {
                table(&overview)
            };
            say(&text)
        }
        Command::Handover(args) => {
            let leads = runtime.block_on(handover(&args))?;
            say(&format!("{leads} leads shard {}\n", args.shard))
        }
        Command::Join(args) => {
            let server = runtime.block_on(async {
                AdminClient::connect(&args.server).await?.join(&args.new, !args.no_rebalance).await
            })?;
            let share = if args.no_rebalance { "" } else { "; replicas move to it now" };
            say(&format!(
                "{} is server {server} of the cluster{share}; see `kvorum cluster status --server {}`\n",
                args.new, args.server
            ))
        }
        Command::Leave(args) => {
            runtime.block_on(async {
                let mut client = AdminClient::connect(&args.server).await?;
                client.leave(ServerId(args.id), args.fewer_replicas).await
            })?;
            say(&format!(
                "server {} leaves; it may be stopped when `kvorum cluster status` shows it no more\n",
                args.id
            ))
        }
        Command::Remove(args) => {
            runtime.block_on(async {
                AdminClient::connect(&args.server).await?.remove(ServerId(args.id)).await
            })?;
            say(&format!("server {} is given up; its replicas are made anew where there is room\n", args.id))
        }
        Command::Rebalance(args) => {
            runtime.block_on(async { AdminClient::connect(&args.server).await?.rebalance().await })?;
            say("replicas and preferred leaders are being spread\n")
        }
        Command::Replicas(args) => {
            runtime.block_on(async {
                AdminClient::connect(&args.server).await?.want_replicas(args.count).await
            })?;
            say(&match args.count {
                0 => "each shard keeps the replicas that it has\n".to_owned(),
                count => format!("each shard gets {count} replicas, as far as there are servers\n"),
            })
        }
        Command::Prefer(args) => {
            let preferred = runtime.block_on(prefer(&args))?;
            say(&format!(
                "{preferred} shall lead shard {}, and will when all has been well for a while\n",
                args.shard
            ))
        }
        Command::Events(args) => say(&runtime.block_on(events::report(&args))?),
        Command::TrustLog(args) => {
            let shard = match args.shard.as_str() {
                "all" => None,
                number => Some(ShardId(number.parse().with_context(|| format!("--shard {number:?}"))?)),
            };
            let trusted = runtime.block_on(trust_log(&args.server, shard))?;
            for shard in trusted {
                say(&format!("the log of shard {shard} on {} is trusted and opened\n", args.server))?;
            }
            Ok(())
        }
    }
}

/// Returns the address of the replica that leads then.
async fn handover(args: &HandoverArgs) -> Result<String> {
    let overview = overview(&args.server).await?;
    let shard = overview.shards.iter().find(|shard| shard.id == args.shard);
    let shard = shard.with_context(|| format!("there is no shard {}", args.shard))?;
    let target = shard.heir(args.to.as_deref())?;
    let leader = shard.leader_addr().with_context(|| format!("shard {} has no leader now", shard.id))?;
    if target.addr == leader {
        return Ok(target.addr.clone());
    }
    let hosts_leader = |row: &&ServerRow| format!("{}:{}", row.host, row.base_port + shard.id) == leader;
    let server = overview.servers.iter().find(hosts_leader).context("the leader is on no known server")?;
    AdminClient::connect(&server.peer).await?.transfer(ShardId(shard.id), ReplicaId(target.id)).await?;
    Ok(target.addr.clone())
}

/// Returns the address of the replica that is preferred then.
async fn prefer(args: &HandoverArgs) -> Result<String> {
    let overview = overview(&args.server).await?;
    let shard = overview.shards.iter().find(|shard| shard.id == args.shard);
    let shard = shard.with_context(|| format!("there is no shard {}", args.shard))?;
    let target = shard.heir(args.to.as_deref())?;
    AdminClient::connect(&args.server).await?.prefer(ShardId(shard.id), ReplicaId(target.id)).await?;
    Ok(target.addr.clone())
}

async fn trust_log(server: &str, shard: Option<ShardId>) -> Result<Vec<ShardId>> {
    let who = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let by = who.unwrap_or_else(|_| "somebody unnamed".to_owned());
    Ok(AdminClient::connect(server).await?.trust_log(shard, &by).await?)
}

impl Shape {
    fn check(&self) -> Result<()> {
        for (i, server) in self.servers.iter().enumerate() {
            let port = server
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
            ensure!(port.is_some_and(|p| p > 0), "--servers: {server:?} is not HOST:PEERPORT");
            ensure!(!self.servers[..i].contains(server), "--servers: {server} stands there twice");
        }
        ensure!(
            (1..=MAX_SHARDS).contains(&self.shards),
            "--shards {} is not in 1..={MAX_SHARDS}: a server has one client port a shard",
            self.shards
        );
        ensure!(
            self.mode == Mode::Cluster || self.shards == 1,
            "--mode standalone has exactly one shard; leave --shards out, or use --mode cluster"
        );
        ensure!(
            self.durability != Durability::None || self.servers.len() == 1,
            "--durability none works with one server only: without a log on disk a restarted server would forget \
             what it voted for"
        );
        if let Some(replicas) = self.replicas {
            ensure!(replicas >= 1, "--replicas must be at least 1");
            ensure!(
                usize::from(replicas) <= self.servers.len(),
                "--replicas {replicas} needs as many servers, but there are {}",
                self.servers.len()
            );
        }
        Ok(())
    }
}

impl Overview {
    /// Whether the server with this peer address answers.
    pub(crate) fn is_up(&self, peer_addr: &str) -> bool {
        self.servers.iter().any(|s| s.up && s.peer == peer_addr)
    }
}

impl ShardRow {
    /// `host:port` where the leader serves clients.
    pub(crate) fn leader_addr(&self) -> Option<&str> {
        self.replicas.iter().find(|r| r.role == "leader").map(|r| r.addr.as_str())
    }

    /// `host:port` of the other replicas.
    pub(crate) fn follower_addrs(&self) -> Vec<&str> {
        self.replicas.iter().filter(|r| r.role != "leader").map(|r| r.addr.as_str()).collect()
    }

    /// The replica at an address, or else the follower that lags least.
    fn heir(&self, addr: Option<&str>) -> Result<&ReplicaRow> {
        match addr {
            Some(addr) => {
                let replica = self.replicas.iter().find(|replica| replica.addr == addr);
                replica.with_context(|| format!("--to {addr}: no replica of shard {} is there", self.id))
            }
            None => {
                let followers = self.replicas.iter().filter(|replica| replica.role == "follower");
                let heir = followers.min_by_key(|replica| replica.lag.unwrap_or(u64::MAX));
                heir.with_context(|| format!("shard {} has no follower that could lead", self.id))
            }
        }
    }

    /// Whether the server with this base port has a replica.
    pub(crate) fn is_on(&self, base_port: u16) -> bool {
        let port = format!(":{}", base_port + self.id);
        self.replicas.iter().any(|r| r.addr.ends_with(&port))
    }
}

fn table(overview: &Overview) -> String {
    let Overview { cluster_id, mode, durability, topology_version, servers, shards, to_do } = overview;
    let mut text =
        format!("cluster {cluster_id}: {mode} mode, {durability}, topology version {topology_version}\n\n");
    let rows = servers.iter().map(|s| {
        let up = if s.up { "up" } else { "down" };
        let state = match s.tenure {
            Tenure::Settled => up.to_owned(),
            Tenure::Settling => format!("{up}, gets its share"),
            Tenure::Leaving => format!("{up}, leaves"),
            Tenure::LeavingWithFewer => format!("{up}, leaves with fewer replicas"),
            Tenure::Away => format!("{up}, away: its replicas are made anew elsewhere"),
            Tenure::Gone => format!("{up}, gone for good"),
        };
        [s.id.to_string(), format!("{}:{}", s.host, s.base_port), state].to_vec()
    });
    columns(&mut text, &["server", "address", "state"], rows.collect());
    text.push('\n');
    let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    let mut rows = Vec::new();
    for shard in shards {
        for (i, replica) in shard.replicas.iter().enumerate() {
            let first = |text: String| if i == 0 { text } else { String::new() };
            rows.push(vec![
                first(shard.id.to_string()),
                first(shard.slots.clone()),
                first(shard.term.to_string()),
                replica.addr.clone(),
                replica.role.clone(),
                number(replica.applied),
                number(replica.lag),
            ]);
        }
    }
    columns(&mut text, &["shard", "slots", "term", "replica", "role", "applied", "lag"], rows);
    for line in to_do {
        let _ = write!(text, "\n{line}");
    }
    if !to_do.is_empty() {
        text.push('\n');
    }
    for shard in shards {
        for replica in &shard.replicas {
            if let Some(why) = &replica.failed {
                let what = if replica.role == "distrusted" { "is not opened" } else { "stopped" };
                let _ = write!(text, "\n{} of shard {} {what}: {why}\n", replica.addr, shard.id);
            }
        }
    }
    text
}

/// Lays rows out under their headings, every column as wide as its widest cell.
pub(crate) fn columns(text: &mut String, headings: &[&str], rows: Vec<Vec<String>>) {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(i, h)| rows.iter().map(|row| row[i].chars().count()).chain([h.len()]).max().unwrap_or(0))
        .collect();
    let headings = headings.iter().map(|h| (*h).to_owned()).collect();
    for row in [headings].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn say(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("writing to standard output")
}

/// Id of the cluster that the server at this peer address belongs to, if it does.
pub(crate) async fn cluster_of(peer: &str) -> Result<Option<String>> {
    Ok(AdminClient::connect(peer).await?.describe().await?.cluster_id)
}

/// Id of the cluster that all of these servers belong to; `None` when none of them belongs to one.
async fn existing(peers: &[String]) -> Result<Option<String>> {
    let mut found: Option<(&String, Option<String>)> = None;
    for peer in peers {
        let cluster = cluster_of(peer).await?;
        match &found {
            Some((other, theirs)) => {
                let name =
                    |id: &Option<String>| id.clone().map_or("none".to_owned(), |id| format!("cluster {id}"));
                ensure!(
                    *theirs == cluster,
                    "these servers form no cluster: {other} belongs to {}, {peer} to {}",
                    name(theirs),
                    name(&cluster)
                );
            }
            None => found = Some((peer, cluster)),
        }
    }
    Ok(found.and_then(|(_, cluster)| cluster))
}

/// Creates a cluster and returns its id.
pub(crate) async fn create(shape: &Shape) -> Result<String> {
    shape.check()?;
    let servers = u16::try_from(shape.servers.len()).context("that many servers")?;
    let request = CreateCluster {
        servers: shape.servers.clone(),
        shards: shape.shards,
        replicas: shape.replicas.unwrap_or(servers.min(DEFAULT_REPLICAS)),
        mode: shape.mode,
        durability: shape.durability,
        // As in Redis: a cluster has one, a single server sixteen.
        databases: if shape.mode == Mode::Cluster { 1 } else { 16 },
    };
    Ok(AdminClient::connect(&shape.servers[0]).await?.create_cluster(&request).await?)
}

/// The cluster as the server at this peer address sees it.
pub(crate) async fn overview(peer: &str) -> Result<Overview> {
    let status = AdminClient::connect(peer).await?.status().await?;
    Ok(Overview::from(status))
}

/// The cluster as the first of these servers that answers sees it.
pub(crate) async fn first_overview(peers: &[String]) -> Result<Overview> {
    let mut last = None;
    for peer in peers {
        match overview(peer).await {
            Ok(overview) => return Ok(overview),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no server was named")))
}

impl From<ClusterStatus> for Overview {
    fn from(status: ClusterStatus) -> Overview {
        let servers: Vec<ServerRow> = status
            .servers
            .into_iter()
            .map(|server| ServerRow {
                id: server.id,
                host: server.host,
                base_port: server.base_port,
                peer: server.peer,
                up: server.up,
                tenure: server.tenure,
            })
            .collect();
        let shards = status.shards.into_iter().map(|shard| shard_row(shard, &servers)).collect();
        Overview {
            cluster_id: status.cluster_id,
            mode: status.mode.to_string(),
            durability: status.durability.to_string(),
            topology_version: status.topology_version,
            servers,
            shards,
            to_do: status.to_do,
        }
    }
}

fn shard_row(shard: ShardStatus, servers: &[ServerRow]) -> ShardRow {
    // The leader's own word counts, and only while it is the one that was announced last.
    let leader = shard.replicas.iter().find(|r| Some(r.replica) == shard.leader && r.role == "leader");
    let (leader, committed) = (leader.map(|r| r.replica), leader.map(|r| r.committed));
    let replicas = shard.replicas.iter().map(|replica| {
        let answers = replica.role != "unreachable" && replica.role != "distrusted";
        let role = match replica.role.as_str() {
            "distrusted" => "distrusted",
            _ if replica.failed.is_some() => "failed",
            "leader" if Some(replica.replica) != leader => "deposed",
            role => role,
        };
        let addr = match servers.iter().find(|server| server.id == replica.server) {
            Some(server) => format!("{}:{}", server.host, server.base_port.saturating_add(shard.id)),
            None => format!("server {}", replica.server),
        };
        ReplicaRow {
            id: replica.replica,
            addr,
            role: role.to_owned(),
            applied: answers.then_some(replica.applied),
            lag: committed.filter(|_| answers).map(|committed| committed.saturating_sub(replica.applied)),
            failed: replica.failed.clone(),
        }
    });
    let replicas = replicas.collect();
    ShardRow { id: shard.id, slots: shard.slots, term: shard.term, replicas }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_node::ReplicaStatus;

    fn replica(replica: u64, role: &str, applied: u64) -> ReplicaStatus {
        ReplicaStatus {
            shard: 1,
            replica,
            server: replica,
            role: role.to_owned(),
            term: 4,
            last: applied,
            committed: applied,
            applied,
            failed: None,
        }
    }

    fn status() -> ClusterStatus {
        let server = |id: u64, up| kvorum_node::ServerStatus {
            id,
            peer: format!("inner-{id}:7198"),
            host: format!("10.0.0.{id}"),
            base_port: 7100,
            up,
            tenure: Tenure::Settled,
        };
        ClusterStatus {
            cluster_id: "c0ffee".to_owned(),
            topology_version: 7,
            mode: Mode::Cluster,
            durability: Durability::QuorumFsync,
            servers: vec![server(1, true), server(2, true), server(3, false)],
            shards: vec![ShardStatus {
                id: 1,
                slots: "5461-10922".to_owned(),
                leader: Some(2),
                term: 4,
                leader_address: Some("10.0.0.2:7101".to_owned()),
                replicas: vec![
                    replica(1, "follower", 95),
                    replica(2, "leader", 100),
                    replica(3, "unreachable", 0),
                ],
            }],
            to_do: Vec::new(),
        }
    }

    #[test]
    fn the_table_shows_servers_and_replicas_with_their_lag() {
        assert_eq!(
            table(&Overview::from(status())),
            "\
cluster c0ffee: cluster mode, quorum-fsync, topology version 7

server  address        state
1       10.0.0.1:7100  up
2       10.0.0.2:7100  up
3       10.0.0.3:7100  down

shard  slots       term  replica        role         applied  lag
1      5461-10922  4     10.0.0.1:7101  follower     95       5
                         10.0.0.2:7101  leader       100      0
                         10.0.0.3:7101  unreachable  -        -
"
        );
    }

    #[test]
    fn the_table_shows_who_goes_and_what_is_still_to_be_moved() {
        let mut status = status();
        status.servers[0].tenure = Tenure::Leaving;
        status.to_do = vec!["replica 1 of shard 1 is still to leave server 1".to_owned()];
        let text = table(&Overview::from(status));
        assert!(text.contains("1       10.0.0.1:7100  up, leaves\n"), "{text}");
        assert!(text.ends_with("\n\nreplica 1 of shard 1 is still to leave server 1\n"), "{text}");
    }

    #[test]
    fn a_leader_that_was_replaced_is_not_shown_as_leader() {
        let mut status = status();
        status.shards[0].replicas[0].role = "leader".to_owned();
        let overview = Overview::from(status);
        assert_eq!(overview.shards[0].leader_addr(), Some("10.0.0.2:7101"));
        assert_eq!(overview.shards[0].replicas[0].role, "deposed");
    }

    #[test]
    fn the_heir_is_who_was_named_or_the_follower_that_lags_least() {
        let mut shard = Overview::from(status()).shards.remove(0);
        let heir = |shard: &ShardRow, to| shard.heir(to).map(|replica| replica.id).ok();
        assert_eq!(heir(&shard, None), Some(1));
        assert_eq!(heir(&shard, Some("10.0.0.3:7101")), Some(3));
        assert_eq!(heir(&shard, Some("10.0.0.9:7101")), None);
        shard.replicas[0].role = "unreachable".to_owned();
        assert_eq!(heir(&shard, None), None);
    }

    #[test]
    fn a_log_in_doubt_shows_why() {
        let mut status = status();
        let replica = &mut status.shards[0].replicas[0];
        replica.role = "distrusted".to_owned();
        replica.failed = Some("the machine went down".to_owned());
        let text = table(&Overview::from(status));
        assert!(text.contains("distrusted"), "{text}");
        assert!(
            text.ends_with("\n10.0.0.1:7101 of shard 1 is not opened: the machine went down\n"),
            "{text}"
        );
    }

    #[test]
    fn a_stopped_replica_shows_why() {
        let mut status = status();
        status.shards[0].replicas[0].failed = Some("log write failed".to_owned());
        let text = table(&Overview::from(status));
        assert!(text.contains("failed"), "{text}");
        assert!(text.ends_with("\n10.0.0.1:7101 of shard 1 stopped: log write failed\n"), "{text}");
    }
}

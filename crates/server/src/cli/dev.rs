//! `kvorum dev`: a whole cluster on this machine, every server a process of its own.
//!
//! It settles a [`Plan`], refuses what cannot work before anything starts, starts the servers, creates the
//! cluster on the first start, says how to connect once every shard serves, and then shows the servers' logs
//! until it is told to stop. A server that dies is reported and left dead.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kvorum_cluster::{Durability, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::children::{Children, Ended, Output};
use super::cluster::{self, Overview};
use super::lock::DirLock;
use super::plan::{Plan, PlannedServer, Wishes};
use super::ports::{self, PortError};
use super::signals::StopSignals;

/// How often the servers are asked whether they are ready.
const POLL: Duration = Duration::from_millis(50);
/// How long we wait silently before we say what we wait for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `kvorum dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of servers [default: 3]
    #[arg(long, value_name = "N")]
    servers: Option<u16>,
    /// Number of shards; every shard has a replica on up to three of the servers [default: 3]
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// First port: server n uses the ports from P + 100·(n-1) to P + 100·(n-1) + 99 [default: 7100]
    #[arg(long, value_name = "P")]
    base_port: Option<u16>,
    /// First port for clients of Redis Sentinel: server n answers them on P + n - 1; 0 for none [default: 26379]
    #[arg(long, value_name = "P")]
    sentinel_port: Option<u16>,
    /// Directory of the playground; an existing one is continued, with its data and its shape
    #[arg(long, value_name = "DIR", default_value = "./kvorum-data")]
    data: PathBuf,
    /// When a write is acknowledged: a majority has it on disk (quorum-fsync) or in the kernel's memory
    /// (quorum-memory); none is for one server only [default: quorum-fsync]
    #[arg(long, value_name = "quorum-fsync|quorum-memory|none")]
    durability: Option<Durability>,
    /// What clients see: Redis Cluster (cluster), or one plain Redis of one shard (standalone) [default: cluster]
    #[arg(long, value_name = "cluster|standalone")]
    mode: Option<Mode>,
    /// Write the configurations, print the commands that start the servers, and start nothing
    #[arg(long)]
    prepare: bool,
}

/// Runs the playground until it is told to stop.
pub(crate) fn run(args: Args) -> Result<()> {
    let dir = args.data;
    let wishes = Wishes {
        servers: args.servers,
        shards: args.shards,
        base_port: args.base_port,
        sentinel_port: args.sentinel_port,
        durability: args.durability,
        mode: args.mode,
    };
    let plan = Plan::settle(&dir, &wishes)?;
    let _lock = DirLock::take(&dir, "`kvorum dev`")?;
    let servers = plan.servers_in(&dir);
    if args.prepare {
        plan.write(&dir)?;
        let text = start_commands(&plan, &dir)?;
        return std::io::stdout().write_all(text.as_bytes()).context("writing to standard output");
    }
    // First the ports: a plan that is refused must not be on record for the next try.
    refuse_busy_ports(&servers)?;
    plan.write(&dir)?;
    // One thread, this one: the servers watch the thread that starts them.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let (output, written) = Output::start()?;
    let ended = runtime.block_on(play(&plan, &servers, &dir, &output));
    drop(runtime);
    drop(output);
    written.wait();
    ended
}

async fn play(plan: &Plan, servers: &[PlannedServer], dir: &Path, output: &Output) -> Result<()> {
    let mut stop = StopSignals::new()?;
    let mut children = Children::start(servers, output)?;
    let outcome = tokio::select! {
        Err(e) = watch(plan, servers, dir, &mut children, output) => Err(e),
        () = stop.received() => Ok(()),
    };
    if children.all_ended() {
        return outcome;
    }
    output.print("kvorum: stopping; once more to kill the servers at once\n");
    for Ended { server, how } in children.stop(stop.received()).await {
        output.print(format!("kvorum: server-{server} {how} while it was stopped\n"));
    }
    output.print("kvorum: stopped\n");
    outcome
}

/// Brings the cluster up and then reports what ends. Returns only when going on makes no sense.
async fn watch(
    plan: &Plan,
    servers: &[PlannedServer],
    dir: &Path,
    children: &mut Children,
    output: &Output,
) -> Result<std::convert::Infallible> {
    let exists = Cell::new(plan.cluster_id.is_some());
    let mut up = false;
    let coming_up = bring_up(plan, servers, dir, &exists, output);
    tokio::pin!(coming_up);
    loop {
        tokio::select! {
            overview = &mut coming_up, if !up => {
                up = true;
                output.print(how_to_connect(plan, servers, dir, &overview?, children)?);
            }
            Ended { server, how } = children.next_end() => {
                if children.all_ended() && servers.len() > 1 {
                    bail!("server-{server} {how}; no server is left");
                }
                if !exists.get() || children.all_ended() {
                    bail!("server-{server} {how}");
                }
                let config = servers[usize::from(server) - 1].config.display();
                output.print(format!(
                    "kvorum: server-{server} {how}; the others go on. To start it again: \
                     {} server --config {config}\n",
                    program()?
                ));
            }
        }
    }
}

/// Waits for the servers, creates the cluster if there is none, and waits until every shard serves.
async fn bring_up(
    plan: &Plan,
    servers: &[PlannedServer],
    dir: &Path,
    exists: &Cell<bool>,
    output: &Output,
) -> Result<Overview> {
    let mut say_at = Instant::now() + PATIENCE;
    let mut waiting_for = |what: &str| {
        if Instant::now() >= say_at {
            say_at = Instant::now() + PATIENCE;
            output.print(format!("kvorum: still waiting: {what}\n"));
        }
    };
    let peers: Vec<String> = servers.iter().map(PlannedServer::peer_addr).collect();
    while !exists.get() {
        let mut virgin = Vec::new();
        let mut cluster_id = None;
        for peer in &peers {
            match cluster::cluster_of(peer).await {
                Ok(Some(id)) => cluster_id = Some(id),
                Ok(None) => virgin.push(peer.clone()),
                Err(e) => waiting_for(&format!("{e:#}")),
            }
        }
        if cluster_id.is_none() && virgin.len() == peers.len() {
            let shape = cluster::Shape {
                servers: peers.clone(),
                shards: plan.shards,
                replicas: None,
                durability: plan.durability,
                mode: plan.mode,
            };
            cluster_id = Some(cluster::create(&shape).await.context("creating the cluster")?);
        }
        match cluster_id {
            Some(id) => {
                plan.record_cluster(dir, id)?;
                exists.set(true);
            }
            None => sleep(POLL).await,
        }
    }
    loop {
        match ready(servers, &peers).await {
            Ok(overview) => return Ok(overview),
            Err(why) => waiting_for(&format!("{why:#}")),
        }
        sleep(POLL).await;
    }
}

/// The state of the cluster if every shard has a leader that answers clients.
async fn ready(servers: &[PlannedServer], peers: &[String]) -> Result<Overview> {
    let overview = cluster::first_overview(peers).await?;
    for shard in &overview.shards {
        let Some(leader) = shard.leader_addr() else { bail!("shard {} has no leader yet", shard.id) };
        answers(leader).await.with_context(|| format!("shard {} at {leader}", shard.id))?;
    }
    // Every other port serves too, unless its server is down: clients may start anywhere.
    for server in servers.iter().filter(|server| overview.is_up(&server.peer_addr())) {
        for shard in overview.shards.iter().filter(|shard| shard.is_on(server.base_port)) {
            let addr = SocketAddr::new(PlannedServer::HOST, server.base_port + shard.id);
            answers(&addr.to_string())
                .await
                .with_context(|| format!("server {} at {addr}", server.number))?;
        }
    }
    Ok(overview)
}

/// Whether a client gets an answer there; being asked for a password is one.
async fn answers(addr: &str) -> Result<()> {
    let ping = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>([b"+PONG\r\n", b"-NOAUTH"].contains(&&reply))
    };
    match timeout(Duration::from_secs(1), ping).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => bail!("does not answer PING with PONG"),
        Ok(Err(e)) => bail!("does not answer clients yet: {e}"),
        Err(_) => bail!("does not answer clients yet"),
    }
}

fn refuse_busy_ports(servers: &[PlannedServer]) -> Result<()> {
    let addrs =
        servers.iter().flat_map(PlannedServer::ports).map(|port| SocketAddr::new(PlannedServer::HOST, port));
    let busy: Vec<PortError> = addrs.filter_map(|addr| ports::check_free(addr).err()).collect();
    if busy.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; nothing was started (a new directory can have other ports: --base-port, --sentinel-port)",
        ports::joined(busy)
    )
}

fn how_to_connect(
    plan: &Plan,
    servers: &[PlannedServer],
    dir: &Path,
    overview: &Overview,
    children: &Children,
) -> Result<String> {
    let mut text = String::new();
    let running = children.running().next().map_or(0, |(number, _)| usize::from(number) - 1);
    let running = &servers[running];
    let Plan { servers: n, shards, durability, mode, base_port, .. } = plan;
    let port = match mode {
        Mode::Cluster => running.base_port,
        // A plain Redis client does not follow the leader; it must start there.
        Mode::Standalone => overview
            .shards
            .first()
            .and_then(|shard| shard.leader_addr()?.rsplit_once(':')?.1.parse().ok())
            .unwrap_or(*base_port),
    };
    let cli = match mode {
        Mode::Cluster => format!("redis-cli -c -p {port}"),
        Mode::Standalone => format!("redis-cli -p {port}"),
    };
    let _ = writeln!(text, "\nKvorum {} is up.\n", env!("CARGO_PKG_VERSION"));
    let durability = match durability {
        Durability::None => "durability none".to_owned(),
        quorum => quorum.to_string(),
    };
    let _ = writeln!(
        text,
        "  cluster   {}, {}, {durability}, {mode} mode",
        count(*n, "server"),
        count(*shards, "shard")
    );
    let _ = writeln!(text, "  connect   {cli}");
    if *mode == Mode::Cluster {
        let _ = writeln!(text, "  nodes     {cli} cluster nodes");
    }
    let _ = writeln!(text, "  status    {} cluster status --server {}", program()?, running.peer_addr());
    for shard in &overview.shards {
        let leader = shard.leader_addr().unwrap_or("nobody");
        let followers = shard.follower_addrs().join(" ");
        let followers = if followers.is_empty() { String::new() } else { format!(", followers {followers}") };
        let _ = writeln!(text, "  shard {:<3} slots {}: leader {leader}{followers}", shard.id, shard.slots);
    }
    let http: Vec<String> =
        servers.iter().map(|server| format!("http://{}/metrics", server.http_addr())).collect();
    let _ = writeln!(text, "  metrics   {}", http.join(" "));
    let sentinels: Vec<String> = servers
        .iter()
        .filter_map(|server| Some(format!("{}:{}", PlannedServer::HOST, server.sentinel_port?)))
        .collect();
    if !sentinels.is_empty() {
        let _ = writeln!(text, "  sentinel  {}", sentinels.join(" "));
    }
    let pids: Vec<String> = children.running().map(|(n, pid)| format!("server-{n} {pid}")).collect();
    let _ = writeln!(text, "  pids      {}", pids.join(", "));
    let _ = writeln!(text, "  data      {}", dir.display());
    let _ = writeln!(text, "  stop      Ctrl-C; the next start continues with this data\n");
    Ok(text)
}

fn start_commands(plan: &Plan, dir: &Path) -> Result<String> {
    let program = program()?;
    let servers = plan.servers_in(dir);
    let mut text = String::new();
    let _ = writeln!(text, "# {} prepared in {}. Start each:", count(plan.servers, "server"), dir.display());
    for server in &servers {
        let _ = writeln!(text, "{program} server --config {}", quoted(&server.config.display().to_string()));
    }
    let peers: Vec<String> = servers.iter().map(PlannedServer::peer_addr).collect();
    let _ = writeln!(text, "# Then, once, make a cluster of them:");
    let _ = writeln!(
        text,
        "{program} cluster create --servers {} --shards {} --durability {} --mode {}",
        peers.join(","),
        plan.shards,
        plan.durability,
        plan.mode
    );
    Ok(text)
}

/// This program as the user can call it, quoted for a shell.
fn program() -> Result<String> {
    let program = std::env::current_exe().context("finding this program's file")?;
    let here = std::env::current_dir().ok();
    let shown = match here.and_then(|here| Some(program.strip_prefix(here).ok()?.to_owned())) {
        Some(relative) => Path::new(".").join(relative),
        None => program,
    };
    Ok(quoted(&shown.display().to_string()))
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn count(n: u16, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell_when_they_must_be() {
        assert_eq!(quoted("./kvorum-data/server-1/kvorum.toml"), "./kvorum-data/server-1/kvorum.toml");
        assert_eq!(quoted("my data"), "'my data'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}

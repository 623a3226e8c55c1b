//! Real servers as processes of their own, in a temporary directory.
//!
//! A [`Cluster`] is laid out by `kvorum dev --prepare`, started server by server, and made a cluster by `kvorum
//! cluster create`: what an operator would do. It only ever signals processes that it started, each by its own
//! handle, and leaves none behind: they are killed when it is dropped, and they watch their parent. When the
//! test fails it prints the end of each server's log.
//!
//! Waiting is always for a condition, with a limit, never for a time.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::binary;
use crate::client::{Client, SlotRange};
use crate::map::{LIMIT, Map};
use crate::namespaces::Namespaces;
use crate::nemesis::{Fault, Nemesis};
use crate::ports::PortBlock;
use crate::proxy::Proxies;
use crate::resp::{Connection, Value};

const LOOPBACK: &str = "127.0.0.1";
/// Where server 1 of a playground answers clients of Redis Sentinel, unless told otherwise.
const USUAL_SENTINEL_PORT: u16 = 26_379;
const LOG_TAIL_LINES: usize = 40;

/// What kind of cluster to start.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Number of servers.
    pub servers: u16,
    /// Servers that are laid out behind those, belong to no cluster, and do not run until they are started.
    pub spares: u16,
    /// Number of shards.
    pub shards: u16,
    /// `cluster` or `standalone`.
    pub mode: &'static str,
    /// `quorum-fsync`, `quorum-memory` or `none`.
    pub durability: &'static str,
    /// Lines added to every server's configuration.
    pub settings: Vec<String>,
    /// What lies between the servers.
    pub network: Network,
}

/// What lies between the servers of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Network {
    /// Nothing: they connect to each other on the loopback.
    #[default]
    Direct,
    /// A TCP proxy for every ordered pair, which can cut and delay.
    Proxied,
    /// A network namespace for every server. Needs root.
    Namespaces,
}

impl Default for Shape {
    /// Three servers, three shards, `quorum-fsync`: what `kvorum dev` makes.
    fn default() -> Shape {
        Shape {
            servers: 3,
            spares: 0,
            shards: 3,
            mode: "cluster",
            durability: "quorum-fsync",
            settings: Vec::new(),
            network: Network::Direct,
        }
    }
}

impl Shape {
    /// `servers` servers that look like one plain Redis.
    pub fn standalone(servers: u16, durability: &'static str) -> Shape {
        Shape { servers, shards: 1, mode: "standalone", durability, ..Shape::default() }
    }
}

/// A running cluster. Servers have numbers from 1, shards from 0.
#[derive(Debug)]
pub struct Cluster {
    shape: Shape,
    program: PathBuf,
    map: Map,
    servers: Vec<Server>,
    wires: Wires,
    /// Ended by a fault, or frozen by one: what healing undoes.
    harmed: Vec<Fault>,
    ports: PortBlock,
    dir: Option<tempfile::TempDir>,
}

/// The network between the servers, as far as it is ours.
#[derive(Debug)]
enum Wires {
    Direct,
    Proxied(Proxies),
    Namespaces(Namespaces),
}

#[derive(Debug)]
struct Server {
    number: u16,
    config: PathBuf,
    process: Option<Child>,
    /// How often its machine was started, as far as it is told.
    boots: u32,
}

impl Cluster {
    /// Starts a cluster with the program under test and waits until every shard serves.
    ///
    /// # Errors
    /// When a step fails or takes longer than [`LIMIT`]; the servers' logs are printed then.
    pub async fn start(shape: Shape) -> Result<Cluster> {
        Cluster::start_program(binary::kvorum(), shape).await
    }

    /// As [`Cluster::start`], with another program.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_program(program: &Path, shape: Shape) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(program, shape)?;
        let started = cluster.bring_up().await;
        if started.is_err() {
            cluster.print_logs();
        }
        started.map(|()| cluster)
    }

    fn prepare(program: &Path, shape: Shape) -> Result<Cluster> {
        // Below target, for /tmp is often memory, where a sync costs nothing and proves nothing.
        let place = binary::target_dir().join("clusters");
        std::fs::create_dir_all(&place).with_context(|| format!("{}", place.display()))?;
        let dir =
            tempfile::Builder::new().prefix("cluster-").tempdir_in(place).context("making a directory")?;
        let ports = PortBlock::take()?;
        let base = ports.base();
        let standalone = shape.mode == "standalone";
        let numbers = 1..=shape.servers + shape.spares;
        let loopback =
            Map::new(numbers.clone().map(|_| LOOPBACK.to_owned()).collect(), shape.shards, standalone, base);
        let (wires, map) = match shape.network {
            Network::Direct => (Wires::Direct, loopback),
            Network::Proxied => (Wires::Proxied(Proxies::start(&loopback)?), loopback),
            Network::Namespaces => {
                let namespaces = Namespaces::make(shape.servers + shape.spares)?;
                let hosts = numbers.map(|number| namespaces.address(number)).collect();
                (Wires::Namespaces(namespaces), Map::new(hosts, shape.shards, standalone, base))
            }
        };
        let mut cluster = Cluster {
            shape,
            program: program.to_owned(),
            map,
            servers: Vec::new(),
            wires,
            harmed: Vec::new(),
            ports,
            dir: Some(dir),
        };
        let data = cluster.dir().to_owned();
        let Shape { servers, spares, shards, mode, durability, .. } = &cluster.shape;
        let arguments = [
            ("--servers", (servers + spares).to_string()),
            ("--shards", shards.to_string()),
            ("--base-port", base.to_string()),
            ("--durability", (*durability).to_owned()),
            ("--mode", (*mode).to_owned()),
        ];
        let mut prepare = Command::new(program);
        prepare.args(["dev", "--prepare", "--data"]).arg(&data);
        for (flag, value) in &arguments {
            prepare.args([*flag, value]);
        }
        succeed(&mut prepare)?;
        for number in 1..=servers + spares {
            let config = data.join(format!("server-{number}")).join("kvorum.toml");
            let mut text =
                std::fs::read_to_string(&config).with_context(|| format!("{}", config.display()))?;
            text = text.replace(LOOPBACK, cluster.map.host(number));
            // In the file, not by a flag: programs from before there was one are measured, too.
            let usual = format!("sentinel-port = {}\n", USUAL_SENTINEL_PORT + number - 1);
            let own = format!("sentinel-port = {}\n", cluster.ports.sentinel() + number - 1);
            text = text.replace(&usual, &own);
            for line in &cluster.shape.settings {
                text.push_str(line);
                text.push('\n');
            }
            if let Wires::Proxied(proxies) = &cluster.wires {
                text.push_str("[peer-addresses]\n");
                for (to, proxy) in proxies.from(number) {
                    text.push_str(&format!("\"{}\" = \"{proxy}\"\n", cluster.map.peer_addr(to)));
                }
            }
            std::fs::write(&config, text)?;
            cluster.servers.push(Server { number, config, process: None, boots: 1 });
        }
        Ok(cluster)
    }

    async fn bring_up(&mut self) -> Result<()> {
        let founders = 1..=self.shape.servers;
        for number in founders.clone() {
            self.spawn(number)?;
        }
        for number in founders.clone() {
            self.listens(number).await?;
        }
        let peers: Vec<String> = founders.map(|n| self.peer_addr(n)).collect();
        let mut create = Command::new(&self.program);
        create.args(["cluster", "create", "--servers", &peers.join(",")]);
        create.args(["--shards", &self.shape.shards.to_string()]);
        create.args(["--durability", self.shape.durability, "--mode", self.shape.mode]);
        succeed(&mut create)?;
        self.ready().await
    }

    /// The numbers of all servers.
    pub fn numbers(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.shape.servers
    }

    /// What it was started as.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The directory with a folder for each server.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("the directory goes when the cluster goes").path()
    }

    /// The folder of a server: its configuration, log and data.
    pub fn server_dir(&self, number: u16) -> PathBuf {
        self.dir().join(format!("server-{number}"))
    }

    /// Where the servers are.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The first client port of a server.
    pub fn base_port(&self, number: u16) -> u16 {
        self.map.base_port(number)
    }

    /// `host:port` where a server answers clients of Redis Sentinel.
    pub fn sentinel_addr(&self, number: u16) -> String {
        format!("{}:{}", self.map.host(number), self.ports.sentinel() + number - 1)
    }

    /// `host:port` of the peer port of a server.
    pub fn peer_addr(&self, number: u16) -> String {
        self.map.peer_addr(number)
    }

    /// `host:port` where a server serves a shard.
    pub fn addr(&self, number: u16, shard: u16) -> String {
        self.map.addr(number, shard)
    }

    /// Every client address, of dead servers too.
    pub fn addrs(&self) -> Vec<String> {
        self.map.addrs()
    }

    /// The number of the server behind a client address.
    ///
    /// # Panics
    /// When the address is none of ours.
    pub fn server_of(&self, addr: &str) -> u16 {
        self.map.server_of(addr)
    }

    /// A client that may start at any server.
    pub fn client(&self) -> Client {
        self.map.client()
    }

    /// A connection to a server's port of a shard.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self, number: u16, shard: u16) -> Result<Connection> {
        self.map.connect(number, shard).await
    }

    /// Servers whose process we have not ended.
    pub fn running(&self) -> Vec<u16> {
        self.servers.iter().filter(|server| server.process.is_some()).map(|server| server.number).collect()
    }

    /// Process id of a running server.
    pub fn pid(&self, number: u16) -> Option<u32> {
        self.server(number).process.as_ref().map(Child::id)
    }

    /// Kills a server at once (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, number: u16) -> Result<()> {
        self.kill_together(&[number])
    }

    /// Kills several servers at the same moment, then waits until they are gone.
    ///
    /// # Errors
    /// When one of them does not run; the others are killed all the same.
    pub fn kill_together(&mut self, numbers: &[u16]) -> Result<()> {
        let signalled: Vec<Result<()>> = numbers.iter().map(|&n| self.signal(n, Signal::KILL)).collect();
        for &number in numbers {
            if let Some(mut process) = self.server_mut(number).process.take() {
                process.wait().context("waiting for a killed server")?;
            }
        }
        signalled.into_iter().collect()
    }

    /// Freezes a server (SIGSTOP): it keeps its sockets and does nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&mut self, number: u16) -> Result<()> {
        self.signal(number, Signal::STOP)
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&mut self, number: u16) -> Result<()> {
        self.signal(number, Signal::CONT)
    }

    /// Stops a server in order (SIGTERM) and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or is not gone after [`LIMIT`].
    pub async fn stop(&mut self, number: u16) -> Result<ExitStatus> {
        self.signal(number, Signal::TERM)?;
        self.exit_of(number).await
    }

    /// Waits until a server's process ends by itself.
    ///
    /// # Errors
    /// When it does not run, or is not gone after [`LIMIT`].
    pub async fn exit_of(&mut self, number: u16) -> Result<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let process = self.server_mut(number).process.as_mut();
            let process = process.ok_or_else(|| anyhow!("server {number} does not run"))?;
            if let Some(status) = process.try_wait()? {
                self.server_mut(number).process = None;
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "server {number} still runs after {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts a server that does not run, and returns at once.
    ///
    /// # Errors
    /// When it runs, or the program cannot be started.
    pub fn spawn(&mut self, number: u16) -> Result<()> {
        let log = self.open_log(number)?;
        let program = self.program.clone();
        ensure!(self.server(number).process.is_none(), "server {number} runs already");
        let mut command = match &self.wires {
            Wires::Namespaces(namespaces) => namespaces.command(number, &program),
            Wires::Direct | Wires::Proxied(_) => Command::new(program),
        };
        let server = self.server_mut(number);
        command.arg("server").arg("--config").arg(&server.config);
        command.arg("--exit-with-parent").arg(std::process::id().to_string());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVORUM_")) {
            command.env_remove(name);
        }
        command.env("KVORUM_BOOT_ID", format!("machine-{number}-boot-{}", server.boots));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        server.process = Some(command.spawn().with_context(|| format!("starting server {number}"))?);
        Ok(())
    }

    /// Kills a server as a loss of power does: at its next start it finds that its machine was started, too. What it had not
    /// synced is still there, but it cannot know that.
    ///
    /// # Errors
    /// When it does not run.
    pub fn lose_power(&mut self, number: u16) -> Result<()> {
        self.kill(number)?;
        self.server_mut(number).boots += 1;
        Ok(())
    }

    /// Takes everything from a server that does not run but its configuration: it is a new one when it starts.
    ///
    /// # Errors
    /// When it runs, or the files cannot be removed.
    pub fn wipe(&mut self, number: u16) -> Result<()> {
        ensure!(self.server(number).process.is_none(), "server {number} runs");
        for entry in std::fs::read_dir(self.server_dir(number))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else if entry.path() != self.server(number).config && entry.path() != self.log_path(number) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits until a server listens for its peers.
    ///
    /// # Errors
    /// After [`LIMIT`], or when it has ended.
    pub async fn listens(&mut self, number: u16) -> Result<()> {
        let peer = self.peer_addr(number);
        self.wait(&format!("server {number} listens on {peer}"), async |cluster: &mut Cluster| {
            cluster.check_running(number)?;
            tokio::net::TcpStream::connect(&peer).await.context("connecting")?;
            Ok(())
        })
        .await
    }

    /// Waits until every shard has a leader that serves, and every running server agrees on who that is.
    ///
    /// # Errors
    /// After [`LIMIT`], with what was missing last.
    pub async fn ready(&mut self) -> Result<()> {
        self.wait("the cluster serves", async |cluster: &mut Cluster| {
            for number in cluster.running() {
                cluster.check_running(number)?;
            }
            cluster.map.serves(&cluster.running()).await
        })
        .await
    }

    /// Waits until every replica of every shard runs, is connected, and has applied as much as its leader, as
    /// `kvorum cluster status` says. Writes must have stopped.
    ///
    /// # Errors
    /// After [`LIMIT`], with what was missing last.
    pub async fn caught_up(&mut self) -> Result<()> {
        self.wait("all replicas are level", async |cluster: &mut Cluster| {
            cluster.map.level(&cluster.status()?)
        })
        .await
    }

    /// `kvorum cluster status --json` of the first running server.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> Result<serde_json::Value> {
        self.status_of(*self.running().first().context("no server runs")?)
    }

    /// The same as one of the servers sees it.
    ///
    /// # Errors
    /// When it fails.
    pub fn status_of(&self, number: u16) -> Result<serde_json::Value> {
        self.told_by("status", number)
    }

    /// The failover timeline of one of the servers, as `kvorum cluster events` has it.
    ///
    /// # Errors
    /// When it fails.
    pub fn events_of(&self, number: u16) -> Result<serde_json::Value> {
        self.told_by("events", number)
    }

    /// What `kvorum cluster WHAT --json` says of a server.
    fn told_by(&self, what: &str, number: u16) -> Result<serde_json::Value> {
        let mut ask = Command::new(&self.program);
        ask.args(["cluster", what, "--json", "--server", &self.peer_addr(number)]);
        serde_json::from_str(&succeed(&mut ask)?).with_context(|| format!("cluster {what} printed no JSON"))
    }

    /// `kvorum cluster handover`: another replica of the shard leads then.
    ///
    /// # Errors
    /// When it fails.
    pub fn handover(&self, shard: u16) -> Result<()> {
        let any = *self.running().first().context("no server runs")?;
        let mut handover = Command::new(&self.program);
        handover.args([
            "cluster",
            "handover",
            "--server",
            &self.peer_addr(any),
            "--shard",
            &shard.to_string(),
        ]);
        succeed(&mut handover).map(drop)
    }

    /// `host:port` of the leader of a shard, when all running servers agree on it and it runs.
    ///
    /// # Errors
    /// When they do not, or one does not answer.
    pub async fn leader(&self, shard: u16) -> Result<String> {
        self.map.leader(&self.running(), shard).await
    }

    /// The ranges of slots, as the first running server has them; one range of all in standalone mode.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ranges(&self) -> Result<Vec<SlotRange>> {
        self.map.ranges(&self.running()).await
    }

    /// The ranges of slots of a shard.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn slots_of(&self, shard: u16) -> Result<Vec<(u16, u16)>> {
        self.map.slots_of(&self.running(), shard).await
    }

    /// Everything a server has logged so far.
    pub fn log(&self, number: u16) -> String {
        let bytes = std::fs::read(self.log_path(number)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks again and again until `condition` holds.
    ///
    /// # Errors
    /// After [`LIMIT`], with the last reason why not.
    pub async fn wait(
        &mut self,
        what: &str,
        mut condition: impl AsyncFnMut(&mut Cluster) -> Result<()>,
    ) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let asked = tokio::time::timeout(LIMIT, condition(self)).await;
            let why = match asked {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) => anyhow!("no answer"),
            };
            if why.is::<Ended>() || Instant::now() >= deadline {
                self.print_logs();
                bail!("waiting until {what}: {why:#}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_running(&mut self, number: u16) -> Result<()> {
        let ended = match self.server_mut(number).process.as_mut() {
            Some(process) => process.try_wait()?,
            None => bail!("server {number} does not run"),
        };
        match ended {
            Some(status) => Err(anyhow::Error::new(Ended { number, status })),
            None => Ok(()),
        }
    }

    fn signal(&self, number: u16, signal: Signal) -> Result<()> {
        // The handle has not been waited for, so the id is still this child's and nobody else's.
        let pid = self.pid(number).and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.with_context(|| format!("server {number} does not run"))?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signalling server {number}"))
    }

    fn server(&self, number: u16) -> &Server {
        &self.servers[usize::from(number) - 1]
    }

    fn server_mut(&mut self, number: u16) -> &mut Server {
        &mut self.servers[usize::from(number) - 1]
    }

    fn log_path(&self, number: u16) -> PathBuf {
        self.server_dir(number).join("log")
    }

    fn open_log(&self, number: u16) -> Result<File> {
        let path = self.log_path(number);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{}", path.display()))
    }

    /// Prints the end of each server's log to standard error.
    pub fn print_logs(&self) {
        for server in &self.servers {
            let log = self.log(server.number);
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_TAIL_LINES);
            eprintln!(
                "--- server {}: last {} of {} log lines",
                server.number,
                lines.len() - from,
                lines.len()
            );
            lines[from..].iter().for_each(|line| eprintln!("    {line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(mut process) = server.process.take() {
                // A frozen process dies of SIGKILL too.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        if std::env::var_os("KVORUM_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

impl Nemesis for Cluster {
    fn map(&self) -> &Map {
        &self.map
    }

    fn inflict(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Kill(number) => self.kill(*number)?,
            Fault::Freeze(number) => self.freeze(*number)?,
            fault => match &mut self.wires {
                Wires::Direct => bail!("{fault:?}: nothing of ours lies between these servers"),
                Wires::Proxied(proxies) => return proxies.inflict(fault),
                Wires::Namespaces(namespaces) => return namespaces.inflict(fault),
            },
        }
        self.harmed.push(fault.clone());
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        match &mut self.wires {
            Wires::Direct => {}
            Wires::Proxied(proxies) => proxies.heal(),
            Wires::Namespaces(namespaces) => namespaces.heal()?,
        }
        for fault in std::mem::take(&mut self.harmed) {
            match fault {
                Fault::Kill(number) => self.spawn(number)?,
                Fault::Freeze(number) => self.thaw(number)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn status(&self) -> Result<serde_json::Value> {
        Cluster::status(self)
    }
}

#[derive(Debug)]
struct Ended {
    number: u16,
    status: ExitStatus,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {} ended by itself: {}", self.number, self.status)
    }
}

impl std::error::Error for Ended {}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed ({}):\n{out}{err}", output.status);
    Ok(out.into_owned())
}

/// `INFO` as pairs of field and value.
///
/// # Panics
/// When the reply is no text.
pub fn info_fields(reply: &Value) -> std::collections::BTreeMap<String, String> {
    let text = reply.text().expect("INFO answers with text");
    let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    fields.map(|(field, value)| (field.to_owned(), value.to_owned())).collect()
}

//! A real redis-server, which is right by definition.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::binary::target_dir;
use crate::plain::Plain;
use crate::reply::Reply;
use crate::slots::SLOTS;

/// How long each step may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to load its data.
const LOADING_LIMIT: Duration = Duration::from_secs(120);

/// A redis-server of our own on a free port of the loopback interface. It goes when this is dropped, and its data with it.
#[derive(Debug)]
pub struct Redis {
    process: Child,
    port: u16,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one without persistence, and with more arguments, which count more.
    ///
    /// # Errors
    /// When it is not installed, does not start, or is not Redis 7.0.
    pub fn start(arguments: &[&str]) -> Result<Redis> {
        // Below target, for /tmp is often memory, where a sync costs nothing.
        let place = target_dir().join("redis");
        std::fs::create_dir_all(&place).with_context(|| format!("{}", place.display()))?;
        let dir = tempfile::Builder::new().prefix("redis-").tempdir_in(place)?;
        // Below the ports that a bus would take beside it.
        let port = loop {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
                break port;
            }
        };
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let process = spawn(port, &arguments, dir.path())?;
        let mut redis = Redis { process, port, arguments, dir };
        let version = redis.wait(LIMIT, |connection| {
            let info = connection.call(&["INFO", "server"])?;
            info.text().context("INFO answers with no text")
        })?;
        ensure!(version.contains("redis_version:7.0."), "the oracle is Redis 7.0: {version}");
        Ok(redis)
    }

    /// Two with half of the slots each, which know each other.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn cluster() -> Result<[Redis; 2]> {
        let nodes = Redis::cluster_of(2, 0, &[])?;
        nodes.try_into().map_err(|_| anyhow!("two masters are not two"))
    }

    /// A Redis Cluster: `masters` with equal shares of the slots, then `replicas` for each of them, in turns. All slots are served and all
    /// replicas follow; that a node names another master's replicas may take some seconds more.
    ///
    /// # Errors
    /// As [`Redis::start`], and when they do not come together.
    pub fn cluster_of(masters: usize, replicas: usize, arguments: &[&str]) -> Result<Vec<Redis>> {
        // A replica that comes needs not wait for others to come.
        let arguments =
            [&["--cluster-enabled", "yes", "--repl-diskless-sync-delay", "0"], arguments].concat();
        let count = masters * (1 + replicas);
        let mut nodes = (0..count).map(|_| Redis::start(&arguments)).collect::<Result<Vec<_>>>()?;
        let slots = usize::from(SLOTS);
        for (n, node) in nodes.iter().enumerate() {
            let mut connection = node.connect()?;
            // Else two that claim the same would have to agree first on who is the younger one.
            node.expect_ok(&mut connection, &["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()])?;
            if n < masters {
                let (first, last) = (n * slots / masters, (n + 1) * slots / masters - 1);
                let range = [first.to_string(), last.to_string()];
                node.expect_ok(&mut connection, &["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]])?;
            }
            // Everybody, for rumours take seconds.
            for other in &nodes[..n] {
                let port = other.port.to_string();
                node.expect_ok(&mut connection, &["CLUSTER", "MEET", "127.0.0.1", &port])?;
            }
        }
        for node in &mut nodes {
            node.wait(LIMIT, |connection| {
                let info = text_of(connection, &["CLUSTER", "INFO"])?;
                ensure!(info.contains(&format!("cluster_known_nodes:{count}\r\n")), "{info}");
                Ok(())
            })?;
        }
        let ids: Vec<String> = nodes[..masters]
            .iter()
            .map(|node| text_of(&mut node.connect()?, &["CLUSTER", "MYID"]))
            .collect::<Result<_>>()?;
        for (node, id) in nodes[masters..].iter_mut().zip(ids.iter().cycle()) {
            // Known by its address is not yet known by its name.
            node.wait(LIMIT, |connection| {
                let reply = connection.call(&["CLUSTER", "REPLICATE", id])?.render();
                ensure!(reply == "OK", "CLUSTER REPLICATE: {reply}");
                Ok(())
            })?;
        }
        for (n, node) in nodes.iter_mut().enumerate() {
            node.wait(LIMIT, |connection| {
                let info = text_of(connection, &["CLUSTER", "INFO"])?;
                let agrees = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
                ensure!(agrees, "{info}");
                let info = text_of(connection, &["INFO", "replication"])?;
                let state = if n < masters {
                    format!("connected_slaves:{replicas}\r")
                } else {
                    "master_link_status:up".to_owned()
                };
                ensure!(info.contains(&state), "{info}");
                Ok(())
            })?;
        }
        Ok(nodes)
    }

    /// Asks again and again, on new connections, until `condition` holds.
    fn wait<T>(&mut self, limit: Duration, mut condition: impl FnMut(&mut Plain) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let asked =
                self.connect().map_err(Into::into).and_then(|mut connection| condition(&mut connection));
            let why = match asked {
                Ok(value) => return Ok(value),
                Err(why) => why,
            };
            ensure!(self.process.try_wait()?.is_none(), "redis-server {:?} does not run", self.arguments);
            ensure!(Instant::now() < deadline, "redis-server on port {}: {why:#}", self.port);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn expect_ok(&self, connection: &mut Plain, argv: &[&str]) -> Result<()> {
        let reply = connection.call(argv)?.render();
        ensure!(reply == "OK", "redis-server on port {}: {argv:?} answers {reply}", self.port);
        Ok(())
    }

    /// Stops it in order (SIGTERM) and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or does not go.
    pub fn stop(&mut self) -> Result<()> {
        // Not waited for yet, so the id is still this child's and nobody else's.
        let pid = Pid::from_child(&self.process);
        rustix::process::kill_process(pid, Signal::TERM).context("stopping redis-server")?;
        let deadline = Instant::now() + LOADING_LIMIT;
        while self.process.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "redis-server still runs after {LOADING_LIMIT:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Starts it again, on the data that it left, and waits until it answers `GET key` with a value of so many bytes.
    /// Returns how long that took.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self, key: &str, value_bytes: usize) -> Result<Duration> {
        ensure!(self.process.try_wait()?.is_some(), "redis-server runs already");
        let began = Instant::now();
        self.process = spawn(self.port, &self.arguments, self.dir.path())?;
        self.wait(LOADING_LIMIT, |connection| match connection.call(&["GET", key])? {
            Reply::Bulk(bytes) if bytes.len() == value_bytes => Ok(()),
            other => bail!("GET {key} answers {}", other.render()),
        })?;
        Ok(began.elapsed())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `host:port` of it.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(&self) -> std::io::Result<Plain> {
        Plain::open(("127.0.0.1", self.port))
    }
}

/// A real Redis Sentinel of our own, which monitors one master as `mymaster`.
#[derive(Debug)]
pub struct Sentinel {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    /// Two of them for `master`, and waits until each knows the other and so many replicas.
    ///
    /// # Errors
    /// When Redis is not installed, or they do not find each other.
    pub fn pair(master: &Redis, replicas: usize) -> Result<[Sentinel; 2]> {
        let mut pair = [Sentinel::start(master)?, Sentinel::start(master)?];
        let deadline = Instant::now() + LIMIT;
        for sentinel in &mut pair {
            loop {
                let asked = sentinel.connect().map_err(anyhow::Error::from).and_then(|mut connection| {
                    let reply = connection.call(&["SENTINEL", "MASTER", "mymaster"])?.render();
                    let shows = |field: &str, n: usize| {
                        reply.contains(&format!("\"{field}\"")) && {
                            let after = reply.split(&format!("\"{field}\"")).nth(1).unwrap_or_default();
                            after.lines().nth(1).is_some_and(|line| line.ends_with(&format!("\"{n}\"")))
                        }
                    };
                    let met = shows("num-slaves", replicas) && shows("num-other-sentinels", 1);
                    ensure!(met, "{reply}");
                    Ok(())
                });
                let Err(why) = asked else { break };
                ensure!(sentinel.process.try_wait()?.is_none(), "redis-server --sentinel does not run");
                ensure!(Instant::now() < deadline, "the Sentinels do not find each other: {why:#}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(pair)
    }

    fn start(master: &Redis) -> Result<Sentinel> {
        let place = target_dir().join("redis");
        std::fs::create_dir_all(&place).with_context(|| format!("{}", place.display()))?;
        let dir = tempfile::Builder::new().prefix("sentinel-").tempdir_in(place)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds mymaster 60000\n",
            dir.path().display(),
            master.port()
        );
        std::fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
        let process = Command::new("redis-server")
            .arg(&config)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server --sentinel: apt-get install redis-server")?;
        Ok(Sentinel { process, port, _dir: dir })
    }

    /// `host:port` of it.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(&self) -> std::io::Result<Plain> {
        Plain::open(("127.0.0.1", self.port))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(port: u16, arguments: &[String], dir: &Path) -> Result<Child> {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes"])
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting redis-server, the oracle of these tests: apt-get install redis-server")
}

fn text_of(connection: &mut Plain, argv: &[&str]) -> Result<String> {
    connection.call(argv)?.text().with_context(|| format!("{argv:?} answers with no text"))
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_a_stop_and_a_start() {
        for arguments in [&["--save", "3600", "1"][..], &["--appendonly", "yes"]] {
            let mut redis = Redis::start(arguments).unwrap();
            assert!(redis.start_again("k", 3).is_err(), "it runs already");
            redis.expect_ok(&mut redis.connect().unwrap(), &["SET", "k", "abc"]).unwrap();
            redis.stop().unwrap();
            redis.start_again("k", 3).unwrap();
        }
    }

    #[test]
    fn replicas_follow_each_master_in_turns() {
        let nodes = Redis::cluster_of(2, 1, &[]).unwrap();
        for (master, replica) in [(0, 2), (1, 3)] {
            let info = text_of(&mut nodes[replica].connect().unwrap(), &["INFO", "replication"]).unwrap();
            assert!(info.contains(&format!("master_port:{}\r", nodes[master].port())), "{info}");
        }
    }
}

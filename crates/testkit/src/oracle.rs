//! A real redis-server, which is right by definition.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::plain::Plain;

/// A redis-server of our own on a free port of the loopback interface. It goes when this is dropped: it holds nothing
/// worth keeping.
#[derive(Debug)]
pub struct Redis {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one without persistence, and with more arguments.
    ///
    /// # Errors
    /// When it is not installed, does not start, or is not Redis 7.0.
    pub fn start(arguments: &[&str]) -> Result<Redis> {
        let dir = tempfile::tempdir()?;
        // Below the ports that a bus would take beside it.
        let port = loop {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
                break port;
            }
        };
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "yes"])
            .args(arguments)
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server, the oracle of these tests: apt-get install redis-server")?;
        let mut redis = Redis { process, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(mut connection) = redis.connect()
                && let Ok(info) = connection.call(&["INFO", "server"])
            {
                let info = info.text().unwrap_or_default();
                ensure!(info.contains("redis_version:7.0."), "the oracle is Redis 7.0: {info}");
                return Ok(redis);
            }
            ensure!(redis.process.try_wait()?.is_none(), "redis-server {arguments:?} does not run");
            ensure!(Instant::now() < deadline, "redis-server does not listen on port {port}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Two with half of the slots each, which know each other.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn cluster() -> Result<[Redis; 2]> {
        let nodes =
            [Redis::start(&["--cluster-enabled", "yes"])?, Redis::start(&["--cluster-enabled", "yes"])?];
        let mut connections = [nodes[0].connect()?, nodes[1].connect()?];
        for (connection, [first, last]) in connections.iter_mut().zip([["0", "8191"], ["8192", "16383"]]) {
            connection.call(&["CLUSTER", "ADDSLOTSRANGE", first, last])?;
        }
        connections[0].call(&["CLUSTER", "MEET", "127.0.0.1", &nodes[1].port.to_string()])?;
        let deadline = Instant::now() + Duration::from_secs(20);
        for connection in &mut connections {
            loop {
                let info = connection.call(&["CLUSTER", "INFO"])?.text().unwrap_or_default();
                if info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384") {
                    break;
                }
                ensure!(Instant::now() < deadline, "the real cluster does not come about: {info}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(nodes)
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

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

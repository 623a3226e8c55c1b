//! What `kvorum dev` is going to run: settled from its flags and from what the directory was made with, and
//! written into the directory before anything starts.
//!
//! A playground keeps its shape for life. `DIR/dev.toml` records it, so that the next start needs no flags and a
//! flag that contradicts it is an error instead of a surprise.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvorum_cluster::{Durability, Mode};
use serde::{Deserialize, Serialize};

use crate::config::{Config, HTTP_PORT_OFFSET, MAX_SHARDS, PEER_PORT_OFFSET, SentinelPort, Settings};

/// Servers stand this many ports apart.
const PORTS_PER_SERVER: u16 = 100;
const RECORD: &str = "dev.toml";
const DRAFT: &str = "dev.toml.new";
const RECORD_HEADER: &str = "# Written by `kvorum dev`: the shape of this playground. It cannot be changed here;\n\
                             # use another directory for another shape.\n";

/// What the user asked for; `None` where nothing was said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// Number of servers.
    pub(crate) servers: Option<u16>,
    /// Number of shards.
    pub(crate) shards: Option<u16>,
    /// Base port of server 1.
    pub(crate) base_port: Option<u16>,
    /// Sentinel port of server 1; 0 for none.
    pub(crate) sentinel_port: Option<u16>,
    /// When a write counts as done.
    pub(crate) durability: Option<Durability>,
    /// Redis Cluster or plain Redis.
    pub(crate) mode: Option<Mode>,
}

/// The shape of a playground.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Plan {
    /// Number of servers, at least 1.
    pub(crate) servers: u16,
    /// Number of shards, 1 in standalone mode.
    pub(crate) shards: u16,
    /// Base port of server 1.
    pub(crate) base_port: u16,
    /// Sentinel port of server 1, the others' follow; 0 for none. Playgrounds of older versions do not say: there the servers
    /// have it from their configurations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sentinel_port: Option<u16>,
    /// When a write counts as done.
    pub(crate) durability: Durability,
    /// Redis Cluster or plain Redis.
    pub(crate) mode: Mode,
    /// Id of the cluster once it was created: from then on it goes on without a server that does not start.
    pub(crate) cluster_id: Option<String>,
}

impl Plan {
    /// The plan for `dir`: what it was made with, or else the wishes with defaults for the rest.
    pub(crate) fn settle(dir: &Path, wishes: &Wishes) -> Result<Plan> {
        let record = dir.join(RECORD);
        match std::fs::read_to_string(&record) {
            Ok(text) => {
                let plan: Plan =
                    toml::from_str(&text).with_context(|| format!("{} is damaged", record.display()))?;
                plan.agrees_with(wishes, dir)?;
                plan.checked()
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                ensure!(
                    is_vacant(dir).with_context(|| format!("{}", dir.display()))?,
                    "{} is not empty and was not made by `kvorum dev`; name another directory with --data",
                    dir.display()
                );
                Plan::new(wishes)?.checked()
            }
            Err(e) => Err(e).with_context(|| format!("{}", record.display())),
        }
    }

    fn new(wishes: &Wishes) -> Result<Plan> {
        let mode = wishes.mode.unwrap_or(Mode::Cluster);
        let shards = match mode {
            Mode::Cluster => wishes.shards.unwrap_or(3),
            Mode::Standalone => wishes.shards.unwrap_or(1),
        };
        Ok(Plan {
            servers: wishes.servers.unwrap_or(3),
            shards,
            base_port: wishes.base_port.unwrap_or(7100),
            sentinel_port: Some(wishes.sentinel_port.unwrap_or(SentinelPort::USUAL)),
            durability: wishes.durability.unwrap_or(Durability::QuorumFsync),
            mode,
            cluster_id: None,
        })
    }

    fn checked(self) -> Result<Plan> {
        ensure!(self.servers >= 1, "--servers must be at least 1");
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
            self.durability != Durability::None || self.servers == 1,
            "--durability none works with --servers 1 only: without a log on disk a restarted server would forget \
             what it voted for"
        );
        ensure!(self.base_port >= 1, "--base-port must be at least 1");
        let last = u32::from(self.base_port)
            + u32::from(self.servers - 1) * u32::from(PORTS_PER_SERVER)
            + u32::from(HTTP_PORT_OFFSET);
        ensure!(
            last <= u32::from(u16::MAX),
            "{} servers from --base-port {} need ports up to {last}, beyond 65535",
            self.servers,
            self.base_port
        );
        if let Some(first) = self.sentinel_port.filter(|port| *port > 0) {
            let last = u32::from(first) + u32::from(self.servers - 1);
            ensure!(
                last <= u32::from(u16::MAX),
                "{} servers from --sentinel-port {first} need ports up to {last}, beyond 65535",
                self.servers
            );
        }
        Ok(self)
    }

    fn agrees_with(&self, wishes: &Wishes, dir: &Path) -> Result<()> {
        fn agree<T: PartialEq + Display>(flag: &str, wished: Option<T>, made: T, dir: &Path) -> Result<()> {
            match wished {
                Some(wished) if wished != made => bail!(
                    "{} was made with {flag} {made} and cannot continue with {flag} {wished}; leave the flag out, or \
                     name another directory with --data",
                    dir.display()
                ),
                _ => Ok(()),
            }
        }
        agree("--servers", wishes.servers, self.servers, dir)?;
        agree("--mode", wishes.mode, self.mode, dir)?;
        agree("--shards", wishes.shards, self.shards, dir)?;
        agree("--base-port", wishes.base_port, self.base_port, dir)?;
        if let Some(made) = self.sentinel_port {
            agree("--sentinel-port", wishes.sentinel_port, made, dir)?;
        }
        agree("--durability", wishes.durability, self.durability, dir)
    }

    /// Writes the record and the configuration of each server. What is there already is kept, for the user may
    /// have tuned it; a configuration whose ports no longer fit is an error.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        if !dir.join(RECORD).exists() {
            self.record(dir)?;
        }
        for server in self.servers_in(dir) {
            let folder = server.dir();
            std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
            if !server.config.exists() {
                std::fs::write(&server.config, server.template())
                    .with_context(|| format!("{}", server.config.display()))?;
            }
            let config = Config::load(Some(&server.config), &|_| None, Settings::default())?;
            ensure!(
                config.base_port == server.base_port,
                "{}: base-port: {} does not fit this playground, where server {} has {}",
                server.config.display(),
                config.base_port,
                server.number,
                server.base_port
            );
        }
        Ok(())
    }

    /// Notes in `dir` that the cluster exists.
    pub(crate) fn record_cluster(&self, dir: &Path, cluster_id: String) -> Result<()> {
        Plan { cluster_id: Some(cluster_id), ..self.clone() }.record(dir)
    }

    fn record(&self, dir: &Path) -> Result<()> {
        let text = toml::to_string(self).context("writing the playground's record")?;
        let (record, draft) = (dir.join(RECORD), dir.join(DRAFT));
        std::fs::write(&draft, format!("{RECORD_HEADER}{text}"))
            .and_then(|()| std::fs::rename(&draft, &record))
            .with_context(|| format!("{}", record.display()))
    }

    /// The servers, from 1, with their places in `dir`.
    pub(crate) fn servers_in(&self, dir: &Path) -> Vec<PlannedServer> {
        (1..=self.servers)
            .map(|number| PlannedServer {
                number,
                base_port: self.base_port + PORTS_PER_SERVER * (number - 1),
                shards: self.shards,
                sentinel_port: self.sentinel_port.filter(|port| *port > 0).map(|port| port + number - 1),
                config: dir.join(format!("server-{number}")).join("kvorum.toml"),
            })
            .collect()
    }
}

/// One server of a playground.
#[derive(Clone, Debug)]
pub(crate) struct PlannedServer {
    /// From 1.
    pub(crate) number: u16,
    /// Its first client port.
    pub(crate) base_port: u16,
    shards: u16,
    /// Where it answers clients of Redis Sentinel, unless its configuration was changed.
    pub(crate) sentinel_port: Option<u16>,
    /// Its configuration file.
    pub(crate) config: PathBuf,
}

impl PlannedServer {
    /// The address of all its ports.
    pub(crate) const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// The folder with its configuration, its pid and its data.
    pub(crate) fn dir(&self) -> &Path {
        self.config.parent().expect("the configuration stands in the server's folder")
    }

    /// Where the administration client reaches it.
    pub(crate) fn peer_addr(&self) -> String {
        format!("{}:{}", Self::HOST, self.base_port + PEER_PORT_OFFSET)
    }

    /// Where it answers HTTP, unless its configuration was changed.
    pub(crate) fn http_addr(&self) -> String {
        format!("{}:{}", Self::HOST, self.base_port + HTTP_PORT_OFFSET)
    }

    /// Its client ports, one per shard.
    pub(crate) fn client_ports(&self) -> impl Iterator<Item = u16> + use<> {
        self.base_port..self.base_port + self.shards
    }

    /// All ports it takes.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let others = [self.base_port + PEER_PORT_OFFSET, self.base_port + HTTP_PORT_OFFSET];
        self.client_ports().chain(others).chain(self.sentinel_port)
    }

    fn template(&self) -> String {
        let PlannedServer { number, base_port, .. } = self;
        format!(
            "# Server {number} of a playground made by `kvorum dev`. All settings: `kvorum server --help`.\n\
             announce-host = \"{host}\"\n\
             bind = \"{host}\"\n\
             # Clients on {base_port} + shard, servers among themselves on {peer}, HTTP on {http}.\n\
             base-port = {base_port}\n\
             # Clients of Redis Sentinel; 0 for none.\n\
             sentinel-port = {sentinel}\n\
             # Relative to this file.\n\
             dir = \".\"\n",
            host = Self::HOST,
            peer = base_port + PEER_PORT_OFFSET,
            http = base_port + HTTP_PORT_OFFSET,
            sentinel = self.sentinel_port.unwrap_or(0),
        )
    }
}

/// Whether a directory is absent or holds nothing but what a start that was cut short leaves behind.
fn is_vacant(dir: &Path) -> io::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                if !["lock", "pid", DRAFT]
                    .iter()
                    .any(|ours| entry.as_ref().is_ok_and(|e| e.file_name() == *ours))
                {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(dir: &Path, wishes: Wishes) -> Result<Plan, String> {
        Plan::settle(dir, &wishes).map_err(|e| format!("{e:#}").replace(&dir.display().to_string(), "DIR"))
    }

    #[test]
    fn without_flags_three_servers_with_three_shards() {
        let dir = tempfile::tempdir().unwrap();
        let plan = settle(dir.path(), Wishes::default()).unwrap();
        assert_eq!((plan.servers, plan.shards, plan.base_port), (3, 3, 7100));
        let ports: Vec<Vec<u16>> = plan.servers_in(dir.path()).iter().map(|s| s.ports().collect()).collect();
        assert_eq!(ports[0], [7100, 7101, 7102, 7198, 7199, 26379]);
        assert_eq!(ports[2], [7300, 7301, 7302, 7398, 7399, 26381]);
    }

    #[test]
    fn standalone_means_one_shard() {
        let dir = tempfile::tempdir().unwrap();
        let standalone = Wishes { mode: Some(Mode::Standalone), ..Wishes::default() };
        assert_eq!(settle(dir.path(), standalone.clone()).unwrap().shards, 1);
        settle(dir.path(), Wishes { shards: Some(1), ..standalone.clone() }).unwrap();
        let error = settle(dir.path(), Wishes { shards: Some(2), ..standalone }).unwrap_err();
        assert!(error.starts_with("--mode standalone has exactly one shard"), "{error}");
    }

    #[test]
    fn shapes_that_cannot_work_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let none = Wishes { durability: Some(Durability::None), ..Wishes::default() };
        settle(dir.path(), Wishes { servers: Some(1), ..none.clone() }).unwrap();
        for (wishes, start) in [
            (none, "--durability none works with --servers 1 only"),
            (Wishes { servers: Some(0), ..Wishes::default() }, "--servers must be at least 1"),
            (Wishes { shards: Some(0), ..Wishes::default() }, "--shards 0 is not in 1..=98"),
            (Wishes { shards: Some(99), ..Wishes::default() }, "--shards 99 is not in 1..=98"),
            (Wishes { base_port: Some(0), ..Wishes::default() }, "--base-port must be at least 1"),
            (
                Wishes { base_port: Some(65_400), ..Wishes::default() },
                "3 servers from --base-port 65400 need ports up to 65699",
            ),
        ] {
            let error = settle(dir.path(), wishes).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn a_directory_keeps_its_shape() {
        let dir = tempfile::tempdir().unwrap();
        let five = Wishes { servers: Some(5), base_port: Some(9000), ..Wishes::default() };
        let made = settle(dir.path(), five.clone()).unwrap();
        made.write(dir.path()).unwrap();
        assert_eq!(settle(dir.path(), Wishes::default()).unwrap(), made);
        assert_eq!(settle(dir.path(), five).unwrap(), made);
        for (wishes, start) in [
            (Wishes { servers: Some(3), ..Wishes::default() }, "DIR was made with --servers 5 and cannot"),
            (Wishes { shards: Some(4), ..Wishes::default() }, "DIR was made with --shards 3 and cannot"),
            (Wishes { base_port: Some(7100), ..Wishes::default() }, "DIR was made with --base-port 9000"),
            (
                Wishes { durability: Some(Durability::QuorumMemory), ..Wishes::default() },
                "DIR was made with --durability quorum-fsync and cannot continue with --durability quorum-memory;",
            ),
            (
                Wishes { mode: Some(Mode::Standalone), ..Wishes::default() },
                "DIR was made with --mode cluster and cannot continue with --mode standalone;",
            ),
        ] {
            let error = settle(dir.path(), wishes).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn the_cluster_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let plan = settle(dir.path(), Wishes::default()).unwrap();
        plan.write(dir.path()).unwrap();
        assert_eq!(settle(dir.path(), Wishes::default()).unwrap().cluster_id, None);
        plan.record_cluster(dir.path(), "c0ffee".to_owned()).unwrap();
        plan.write(dir.path()).unwrap();
        let again = settle(dir.path(), Wishes::default()).unwrap();
        assert_eq!(again, Plan { cluster_id: Some("c0ffee".to_owned()), ..plan });
    }

    #[test]
    fn a_tuned_configuration_is_kept_and_one_that_no_longer_fits_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plan = settle(dir.path(), Wishes::default()).unwrap();
        plan.write(dir.path()).unwrap();
        let second = dir.path().join("server-2/kvorum.toml");
        let tuned = "base-port = 7200\nmaxclients = 5\n";
        std::fs::write(&second, tuned).unwrap();
        plan.write(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&second).unwrap(), tuned);
        std::fs::write(&second, "base-port = 7201\n").unwrap();
        let error = plan.write(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("base-port: 7201 does not fit this playground, where server 2 has 7200"),
            "{error}"
        );
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = settle(dir.path(), Wishes::default()).unwrap_err();
        assert!(error.starts_with("DIR is not empty and was not made by `kvorum dev`"), "{error}");
    }
}

//! The containers of `deploy/docker/docker-compose.yml`, as a user starts them, and what can be done to them.
//!
//! The test is a client outside of the containers: it uses the published ports and the addresses that the servers announce. Faults need
//! root, for packets are dropped in the containers' own network namespaces. Project and image are named after the process; dropping
//! this removes containers, volumes, network and image.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::binary::workspace;
use crate::cluster::succeed;
use crate::image;
use crate::map::Map;
use crate::namespaces::{feed, rules};
use crate::nemesis::{Fault, Nemesis};

const SERVERS: u16 = 3;
const SHARDS: u16 = 3;
const BASE_PORT: u16 = 7100;

/// The programs that are needed beside an engine that runs and one of the two forms of compose.
pub const PROGRAMS: [&str; 3] = ["docker", "nsenter", "iptables-restore"];

/// A cluster in containers.
#[derive(Debug)]
pub struct Compose {
    map: Map,
    project: String,
    image: String,
    cut: Vec<(u16, u16)>,
    loss_percent: u8,
    harmed: Vec<Fault>,
}

impl Compose {
    /// Makes an image of a static program and starts the cluster; returns when `up` does, which may be before it serves.
    ///
    /// # Errors
    /// When something is missing on this machine, or a step fails.
    pub fn up(program: &std::path::Path) -> Result<Compose> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "faults in containers need root: run this as root, for example `sudo -E cargo xtask test compose`"
        );
        succeed(Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]))
            .context("no container engine answers")?;
        let own = std::process::id();
        let compose = Compose {
            map: Map::new(vec!["127.0.0.1".to_owned(); SERVERS.into()], SHARDS, false, BASE_PORT),
            project: format!("kvorum-test-{own}"),
            image: format!("kvorum:test-{own}"),
            cut: Vec::new(),
            loss_percent: 0,
            harmed: Vec::new(),
        };
        image::make(program, &compose.image, "scratch")?;
        compose.compose(&["up", "--detach"])?;
        Ok(compose)
    }

    /// Runs `docker-compose`, or `docker compose`, on this project.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = program()?;
        command.arg("--project-name").arg(&self.project).arg("--file").arg(file());
        command.args(arguments).env("KVORUM_IMAGE", &self.image);
        for setting in ["KVORUM_PUBLISH", "KVORUM_ANNOUNCE_HOST"] {
            command.env_remove(setting);
        }
        succeed(&mut command)
    }

    /// The name that everything of this cluster starts with.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The container of a service.
    ///
    /// # Errors
    /// When there is none.
    pub fn container(&self, service: &str) -> Result<String> {
        // The two forms name containers differently; labels are the same.
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let listed = ["ps", "--all", "--quiet", "--filter", &project, "--filter", &service];
        let ids = succeed(Command::new("docker").args(listed))?;
        ids.lines().next().map(str::to_owned).with_context(|| format!("no container with {service}"))
    }

    /// What the engine says about a service's container, by a template of its own language.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn inspect(&self, service: &str, template: &str) -> Result<String> {
        let container = self.container(service)?;
        let said = succeed(Command::new("docker").args(["inspect", "--format", template, &container]))?;
        Ok(said.trim().to_owned())
    }

    /// The name of a server's service.
    pub fn service(number: u16) -> String {
        format!("kvorum-{number}")
    }

    fn engine(&self, command: &str, number: u16) -> Result<()> {
        let container = self.container(&Compose::service(number))?;
        succeed(Command::new("docker").args([command, &container])).map(drop)
    }

    fn filter(&self) -> Result<()> {
        const ADDRESS: &str = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let addresses: Vec<String> = self
            .map
            .numbers()
            .map(|number| self.inspect(&Compose::service(number), ADDRESS))
            .collect::<Result<_>>()?;
        let address = |number: u16| addresses[usize::from(number) - 1].clone();
        for number in self.map.numbers() {
            let pid = self.inspect(&Compose::service(number), "{{.State.Pid}}")?;
            if pid == "0" {
                // It does not run, and starts without a firewall.
                continue;
            }
            // An address that is empty belongs to a container that does not run: nothing comes from there.
            let known: Vec<(u16, u16)> =
                self.cut.iter().filter(|(from, _)| !address(*from).is_empty()).copied().collect();
            let loss_percent = if addresses.iter().any(String::is_empty) { 0 } else { self.loss_percent };
            let rules = rules(number, SERVERS, &known, loss_percent, address);
            feed(Command::new("nsenter").args(["-t", &pid, "-n", "iptables-restore"]), &rules)?;
        }
        Ok(())
    }

    /// Prints the end of each server's log to standard error.
    fn print_logs(&self) {
        if let Ok(logs) = self.compose(&["logs", "--no-color", "--tail", "40"]) {
            eprintln!("--- logs of the containers\n{logs}");
        }
    }
}

impl Nemesis for Compose {
    fn map(&self) -> &Map {
        &self.map
    }

    fn inflict(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Kill(number) => self.engine("kill", *number)?,
            Fault::Freeze(number) => self.engine("pause", *number)?,
            Fault::Cut(pairs) => {
                self.cut.extend(pairs);
                return self.filter();
            }
            Fault::Lose(percent) => {
                self.loss_percent = *percent;
                return self.filter();
            }
            other => bail!("containers cannot do {other:?}"),
        }
        self.harmed.push(fault.clone());
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        for fault in std::mem::take(&mut self.harmed) {
            match fault {
                Fault::Kill(number) => self.engine("start", number)?,
                Fault::Freeze(number) => self.engine("unpause", number)?,
                _ => {}
            }
        }
        (self.cut, self.loss_percent) = (Vec::new(), 0);
        self.filter()
    }

    fn status(&self) -> Result<serde_json::Value> {
        let mut failure = None;
        for number in self.map.numbers() {
            let container = self.container(&Compose::service(number))?;
            let server = format!("kvorum-{number}:{}", self.map.base_port(number) + 98);
            let ask = ["exec", &container, "/kvorum", "cluster", "status", "--json", "--server", &server];
            match succeed(Command::new("docker").args(ask)) {
                Ok(json) => return serde_json::from_str(&json).context("cluster status printed no JSON"),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("a cluster has servers")?)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        if let Err(error) = self.compose(&["down", "--volumes", "--timeout", "1"]) {
            eprintln!("cannot remove the containers: {error:#}");
        }
        let remove = ["image", "rm", "--force", &self.image];
        let _ = Command::new("docker").args(remove).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn file() -> PathBuf {
    workspace().join("deploy/docker/docker-compose.yml")
}

/// Compose in the form that this machine has.
fn program() -> Result<Command> {
    let works = |command: &mut Command| {
        command.arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if works(Command::new("docker").arg("compose")) {
        let mut command = Command::new("docker");
        command.arg("compose");
        return Ok(command);
    }
    ensure!(
        works(&mut Command::new("docker-compose")),
        "neither `docker compose` nor `docker-compose` is here"
    );
    Ok(Command::new("docker-compose"))
}

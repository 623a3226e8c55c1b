//! A network namespace for each server, joined by a bridge: hosts of their own, whose packets a firewall can drop. Needs root.
//!
//! The bridge stands in one more namespace, so that the firewall of this machine (a container engine's, say) has no word in it; a pair
//! of virtual cables joins the test itself. Everything is named after the process, `kvorum-<pid>-<n>-…`, and removed when this is
//! dropped; what a process left behind that was killed, the next one removes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::succeed;
use crate::nemesis::Fault;

const PREFIX: &str = "kvorum-";
/// The last byte of the test's own address; servers have their numbers.
const TEST: u16 = 254;

/// What the firewall of a server lets through that nobody reaches: what it says to itself.
const UNPLUGGED: &str = "*filter\n-A INPUT ! -i lo -j DROP\n-A OUTPUT ! -o lo -j DROP\nCOMMIT\n";

/// The programs that are needed beside the kernel.
pub const PROGRAMS: [&str; 2] = ["ip", "iptables-restore"];

/// Namespaces for the servers of one cluster.
#[derive(Debug)]
pub struct Namespaces {
    servers: u16,
    /// Process and number within the process: what everything is named after.
    name: String,
    /// The first three bytes of all addresses.
    net: String,
    /// Directions that are cut.
    cut: Vec<(u16, u16)>,
    /// Servers that nobody reaches.
    unplugged: Vec<u16>,
    loss_percent: u8,
}

impl Namespaces {
    /// Makes the namespaces of `servers` servers.
    ///
    /// # Errors
    /// Without root, or when a step fails.
    pub fn make(servers: u16) -> Result<Namespaces> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run this as root, for example `sudo -E cargo xtask test namespaces`"
        );
        sweep();
        static MADE: AtomicU32 = AtomicU32::new(0);
        let own = std::process::id();
        let name = format!("{own}-{}", MADE.fetch_add(1, Ordering::Relaxed));
        // Of the private range that nobody's first choice is; where two tests meet, the second takes the next.
        let taken = succeed(Command::new("ip").args(["-4", "addr"]))?;
        let free = (0..256)
            .map(|n| format!("10.231.{}", (n + own) % 256))
            .find(|net| !taken.contains(&format!("{net}.")));
        let net = free.context("no free addresses in 10.231.0.0/16")?;
        let (cut, unplugged) = (Vec::new(), Vec::new());
        let namespaces = Namespaces { servers, name, net, cut, unplugged, loss_percent: 0 };
        // From here on dropping it cleans up.
        let switch = namespaces.host("switch");
        let mut steps = vec![
            format!("netns add {switch}"),
            format!("-n {switch} link add bridge type bridge"),
            format!("-n {switch} link set bridge up"),
        ];
        for number in 1..=servers {
            let server = namespaces.host(number);
            steps.extend([
                format!("netns add {server}"),
                format!("-n {server} link add eth0 type veth peer name port{number} netns {switch}"),
                format!("-n {server} addr add {}/24 dev eth0", namespaces.address(number)),
                format!("-n {server} link set eth0 up"),
                format!("-n {server} link set lo up"),
                format!("-n {switch} link set port{number} master bridge up"),
            ]);
        }
        let cable = namespaces.cable();
        steps.extend([
            format!("link add {cable} type veth peer name test netns {switch}"),
            format!("-n {switch} link set test master bridge up"),
            format!("addr add {}/24 dev {cable}", namespaces.address(TEST)),
            format!("link set {cable} up"),
        ]);
        for step in steps {
            succeed(Command::new("ip").args(step.split(' ')))?;
        }
        Ok(namespaces)
    }

    /// The address of a server.
    pub fn address(&self, number: u16) -> String {
        format!("{}.{number}", self.net)
    }

    /// A command that runs a program as the host of a server.
    pub fn command(&self, number: u16, program: &Path) -> Command {
        let mut command = Command::new("ip");
        // It becomes the program, so the process that is started is the server.
        command.args(["netns", "exec", &self.host(number)]).arg(program);
        command
    }

    /// Makes something go wrong between servers.
    ///
    /// # Errors
    /// When namespaces have no such fault, or the firewall refuses.
    pub fn inflict(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Cut(pairs) => self.cut.extend(pairs),
            Fault::Unplug(number) => self.unplugged.push(*number),
            Fault::Lose(percent) => self.loss_percent = *percent,
            other => bail!("network namespaces cannot do {other:?}"),
        }
        self.filter()
    }

    /// Ends all faults.
    ///
    /// # Errors
    /// When the firewall refuses.
    pub fn heal(&mut self) -> Result<()> {
        (self.cut, self.unplugged, self.loss_percent) = (Vec::new(), Vec::new(), 0);
        self.filter()
    }

    /// The namespace of a server, or of the switch.
    fn host(&self, part: impl std::fmt::Display) -> String {
        format!("{PREFIX}{}-{part}", self.name)
    }

    /// The test's end of its cable. The kernel takes at most 15 characters.
    fn cable(&self) -> String {
        format!("kv{}", self.name)
    }

    fn filter(&self) -> Result<()> {
        let address = |number| self.address(number);
        for number in 1..=self.servers {
            let rules = if self.unplugged.contains(&number) {
                UNPLUGGED.to_owned()
            } else {
                rules(number, self.servers, &self.cut, self.loss_percent, address)
            };
            let restore = ["netns", "exec", &self.host(number), "iptables-restore"];
            feed(Command::new("ip").args(restore), &rules)?;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(&format!("{PREFIX}{}-", self.name));
        // Its other end went with the switch.
        let _ = Command::new("ip").args(["link", "del", &self.cable()]).stderr(Stdio::null()).status();
    }
}

/// What the firewall of a server lets in, as `iptables-restore` reads it: everything but what is cut or lost on the way from other
/// servers. It replaces what was there.
pub(crate) fn rules(
    number: u16,
    servers: u16,
    cut: &[(u16, u16)],
    loss_percent: u8,
    address: impl Fn(u16) -> String,
) -> String {
    let mut rules = "*filter\n:INPUT ACCEPT\n".to_owned();
    for from in (1..=servers).filter(|from| *from != number) {
        let address = address(from);
        if cut.contains(&(from, number)) {
            rules.push_str(&format!("-A INPUT -s {address} -j DROP\n"));
        } else if loss_percent > 0 {
            let probability = f64::from(loss_percent) / 100.0;
            rules.push_str(&format!(
                "-A INPUT -s {address} -m statistic --mode random --probability {probability} -j DROP\n"
            ));
        }
    }
    rules + "COMMIT\n"
}

/// Runs a command with something to read.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("starting {shown}"))?;
    let fed = child.stdin.take().context("a pipe")?.write_all(input.as_bytes());
    let status = child.wait()?;
    ensure!(status.success() && fed.is_ok(), "{shown} failed ({status}) with:\n{input}");
    Ok(())
}

/// Removes what processes that are gone have left behind.
fn sweep() {
    for name in names() {
        let pid =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid.to_owned());
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

fn names() -> Vec<String> {
    let listed = succeed(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
}

fn remove(prefix: &str) {
    for name in names().iter().filter(|name| name.starts_with(prefix)) {
        if let Err(error) = succeed(Command::new("ip").args(["netns", "del", name])) {
            eprintln!("cannot remove a network namespace: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_drops_what_is_cut_and_loses_of_the_rest() {
        let address = |number| format!("10.0.0.{number}");
        assert_eq!(rules(1, 3, &[], 0, address), "*filter\n:INPUT ACCEPT\nCOMMIT\n");
        assert_eq!(
            rules(1, 3, &[(2, 1), (1, 3)], 25, address),
            "*filter\n:INPUT ACCEPT\n-A INPUT -s 10.0.0.2 -j DROP\n\
             -A INPUT -s 10.0.0.3 -m statistic --mode random --probability 0.25 -j DROP\nCOMMIT\n"
        );
    }
}

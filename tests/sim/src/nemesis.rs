//! What goes wrong: a seeded row of faults, several at a time, each with its end.
//!
//! A process that ends because its log failed is started again like one that was killed. What is left out: bytes that flip on a
//! disk (a server that finds them refuses to start, which is for an operator).
//!
//! In some runs operators are at work meanwhile ([`Restless`]): servers join, leave, lose their disks, stay away.

use crate::judge::Judge;
use crate::operator::{Operator, PATIENCE, topology};
use crate::server::{Directory, Machine, machine_at};
use crate::trace::{Trace, say};
use kvorum_cluster::{Durability, ReplicaId, ServerId, ShardId, Stage, Topology};
use kvorum_raft::LocalNetwork;
use kvorum_raft::disk::{Fault, MemoryDisk};
use kvorum_testkit::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// A server that lost its memory is back as new replicas within this time, or it is not in this run.
const REPLACEMENT: Duration = Duration::from_secs(60);

/// What operators do in a run beside what goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restless {
    /// Nothing.
    Not,
    /// Servers join and leave.
    Moving,
    /// One server loses its disk, and comes back as another.
    Wiped,
    /// A server that is down for long is made up for.
    Away,
}

/// Ends a fault, or begins what follows from it.
#[derive(Clone, Debug)]
enum Later {
    Start(u64),
    Heal,
    Resume(u64),
    Steady(u64),
    Space(u64),
    /// The power that a disk operation was to lose goes now, at the latest.
    PowerLoss(u64),
    /// The leader of a shard and a replica that comes are cut off from all others, once there are such; how often it is still looked.
    Island(u32),
    /// A server is killed and starts again.
    Stumble(u64),
    /// A server is cut off from all others.
    Isolate(u64),
    /// A server loses its disk, and the leader of its shard is cut off.
    Wipe(u64),
}

/// The machines and what is done to them.
pub(crate) struct Nemesis {
    pub(crate) machines: BTreeMap<u64, Machine>,
    pub(crate) network: LocalNetwork,
    pub(crate) directory: Directory,
    pub(crate) judge: Arc<Judge>,
    pub(crate) trace: Trace,
    pub(crate) suspended: watch::Sender<BTreeSet<u64>>,
    seed: u64,
    random: Random,
    schedule: BTreeMap<(Instant, u64), Later>,
    scheduled: u64,
    /// With `quorum-memory`, no second server loses power before this.
    power_holds_until: Instant,
    /// Nothing new goes wrong before this.
    calm_until: Instant,
    /// Processes that ended by themselves: the server, and which of its starts it was.
    failed: mpsc::UnboundedSender<(u64, u64)>,
    failures: mpsc::UnboundedReceiver<(u64, u64)>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) restless: Restless,
    /// The machines whose servers belong to the cluster from the beginning.
    pub(crate) founders: u64,
    pub(crate) operator: Operator,
}

impl Nemesis {
    pub(crate) fn new(
        seed: u64,
        machines: BTreeMap<u64, Machine>,
        network: LocalNetwork,
        judge: Arc<Judge>,
        trace: Trace,
        (restless, founders): (Restless, u64),
    ) -> Nemesis {
        let (failed, failures) = mpsc::unbounded_channel();
        let directory = Directory::default();
        let operator = Operator {
            directory: directory.clone(),
            trace: trace.clone(),
            closing: Arc::default(),
            machines: machines.len() as u64,
            random: Random::new(seed ^ 0x6f70_6572_6174_6f72),
            patience: PATIENCE,
        };
        Nemesis {
            machines,
            network,
            directory,
            judge,
            trace,
            suspended: watch::Sender::new(BTreeSet::new()),
            seed,
            random: Random::new(seed ^ 0x6e65_6d65_7369_7321),
            schedule: BTreeMap::new(),
            scheduled: 0,
            power_holds_until: Instant::now(),
            calm_until: Instant::now(),
            failed,
            failures,
            faults: BTreeMap::new(),
            restless,
            founders,
            operator,
        }
    }

    /// An operator with dice of its own.
    fn operator(&mut self) -> Operator {
        Operator { random: Random::new(self.random.next()), ..self.operator.clone() }
    }

    fn topology(&self) -> Option<Arc<Topology>> {
        topology(&self.directory, self.machines.len() as u64)
    }

    /// What operators do in between.
    fn operate(&mut self) -> Option<&'static str> {
        let topology = self.topology()?;
        let spare = (self.founders + 1..=self.machines.len() as u64).find(|machine| {
            let process = self.directory.get(*machine);
            process.is_some_and(|process| process.node.server().server_id.is_none())
        });
        match (self.restless, self.random.below(4)) {
            (Restless::Not, _) => None,
            (_, 0 | 1) if spare.is_some() => {
                let operator = self.operator();
                tokio::spawn(operator.join(spare?));
                self.later(50, 600, Later::Island(60));
                Some("join")
            }
            (Restless::Moving, 2) => {
                let operator = self.operator();
                tokio::spawn(operator.spread());
                self.later(0, 300, Later::Island(60));
                Some("rebalance")
            }
            (Restless::Moving, _) => {
                let servers: Vec<u64> = topology.servers.keys().map(|server| server.0).collect();
                let server = servers[self.random.below(servers.len() as u64) as usize];
                let operator = self.operator();
                tokio::spawn(operator.leave(server));
                self.later(0, 300, Later::Island(60));
                Some("leave")
            }
            (Restless::Wiped, _) if !self.faults.contains_key("wipe") => {
                let shard = topology.shards.first()?;
                let leader = self.leader_of(shard.id)?;
                let followers =
                    shard.replicas.iter().filter_map(|replica| machine_of(&topology, replica.server));
                let followers: Vec<u64> = followers.filter(|machine| *machine != leader).collect();
                let (wiped, behind) = match self.random.below(2) {
                    0 => (*followers.first()?, *followers.last()?),
                    _ => (*followers.last()?, *followers.first()?),
                };
                say!(self.trace, "nemesis: {behind} cut off, then {wiped} loses its disk");
                self.network.isolate(behind);
                self.later(300, 1200, Later::Wipe(wiped));
                Some("wipe")
            }
            (Restless::Away, _) => {
                let server = self.any();
                say!(self.trace, "nemesis: {server} is away for long");
                self.kill(server);
                self.later(3000, 7000, Later::Start(server));
                Some("away")
            }
            (Restless::Wiped, _) => None,
        }
    }

    /// Cuts the leader of a shard and a replica that comes to it off from all others, right before it may vote; whether there are such.
    fn cut_island(&mut self) -> Option<()> {
        let topology = self.topology()?;
        let (shard, coming) = topology
            .all_replicas()
            .find(|(shard, replica)| replica.stage == Stage::Incoming && self.learns(shard.id, replica.id))?;
        let coming = machine_of(&topology, coming.server)?;
        let leader = self.leader_of(shard.id)?;
        say!(self.trace, "nemesis: {leader} and {coming} on an island");
        for other in self.servers().into_iter().filter(|other| ![leader, coming].contains(other)) {
            self.network.cut(other, leader);
            self.network.cut(other, coming);
        }
        self.later(300, 600, Later::Stumble(leader));
        self.later(300, 600, Later::Stumble(coming));
        self.later(2500, 4000, Later::Heal);
        *self.faults.entry("island").or_default() += 1;
        Some(())
    }

    /// Whether the leader of a shard has made a replica a member that does not vote yet.
    fn learns(&self, shard: ShardId, replica: ReplicaId) -> bool {
        let leader = self.leader_of(shard).and_then(|leader| self.machines[&leader].process.as_ref());
        let status = leader.and_then(|leader| leader.node.shard(shard)).map(|shard| shard.status());
        status.is_some_and(|status| {
            status.members.contains_key(&replica.0) && !status.voters.contains(&replica.0)
        })
    }

    /// The machine that leads a shard.
    fn leader_of(&self, shard: ShardId) -> Option<u64> {
        let leads = |machine: &&Machine| {
            let here = machine.process.as_ref().and_then(|process| process.node.shard(shard));
            here.is_some_and(|shard| shard.serves())
        };
        Some(self.machines.values().find(leads)?.id)
    }

    async fn wipe(&mut self, number: u64) {
        let Some(machine) = self.machines.get_mut(&number) else { return };
        let server = machine.process.as_ref().and_then(|process| process.node.server().server_id);
        // Founders have the numbers of their machines.
        let server = server.map_or(number, |server| server.0);
        machine.kill(&self.network, &self.directory);
        machine.disk = MemoryDisk::default();
        machine.store = Arc::default();
        self.resume(number);
        // Who was behind is back, and who has everything is away, for long.
        self.network.heal();
        self.schedule.retain(|_, later| !matches!(later, Later::Heal));
        let leader = self.leader_of(ShardId(0)).unwrap_or(number);
        say!(self.trace, "nemesis: {number} loses its disk, leader {leader} is cut off");
        self.network.isolate(leader);
        self.later(4000, 6000, Later::Heal);
        self.calm_until = Instant::now() + Duration::from_secs(4);
        self.set_delays(number, 0, 3);
        self.start(number).await;
        let operator = self.operator();
        tokio::spawn(operator.replace(number, server));
    }

    fn servers(&self) -> Vec<u64> {
        self.machines.keys().copied().collect()
    }

    fn any(&mut self) -> u64 {
        self.random.below(self.machines.len() as u64) + 1
    }

    /// Some servers, at least one.
    fn some(&mut self) -> Vec<u64> {
        let mut servers = self.servers();
        let count = self.random.below(servers.len() as u64) + 1;
        while servers.len() as u64 > count {
            let at = self.random.below(servers.len() as u64) as usize;
            servers.remove(at);
        }
        servers
    }

    fn later(&mut self, shortest_ms: u64, longest_ms: u64, what: Later) {
        let (shortest, longest) = (Duration::from_millis(shortest_ms), Duration::from_millis(longest_ms));
        let due = Instant::now() + self.random.between(shortest, longest);
        self.scheduled += 1;
        self.schedule.insert((due, self.scheduled), what);
    }

    pub(crate) async fn start(&mut self, server: u64) {
        let Some(machine) = self.machines.get_mut(&server) else { return };
        if machine.process.is_some() {
            return;
        }
        let started = machine.start(self.seed, &self.network, &self.directory, &self.judge).await;
        match started {
            Ok(()) => {
                say!(self.trace, "server {server} started");
                let (starts, failed) = (machine.starts, self.failed.clone());
                if let Some(process) = &machine.process {
                    let node = process.node.clone();
                    process.environment.spawn(async move {
                        node.failure().await;
                        let _ = failed.send((server, starts));
                    });
                }
            }
            Err(error) => {
                say!(self.trace, "server {server} does not start: {error}");
                // A disk that fails or is full at this moment lets nothing start; anything else is a server that cannot
                // read what it wrote.
                let by_fault =
                    ["full", "lost power", "failed sync"].iter().any(|fault| error.contains(fault));
                if !by_fault {
                    self.judge.hold(Err(format!("a server starts again: server {server}: {error}")));
                }
                self.later(100, 500, Later::Start(server));
            }
        }
    }

    pub(crate) fn kill(&mut self, server: u64) {
        let Some(machine) = self.machines.get_mut(&server) else { return };
        if machine.process.is_none() {
            return;
        }
        machine.kill(&self.network, &self.directory);
        machine.disk = machine.disk.kill();
        self.resume(server);
    }

    fn lose_power(&mut self, server: u64) {
        let fate = match self.random.below(4) {
            0 => 0,
            1 => 1,
            _ => self.random.next() | 2,
        };
        let Some(machine) = self.machines.get_mut(&server) else { return };
        machine.kill(&self.network, &self.directory);
        machine.disk = machine.disk.power_cut(fate);
        machine.boots += 1;
        self.resume(server);
    }

    pub(crate) fn suspend(&mut self, server: u64) {
        self.network.freeze(server);
        self.suspended.send_modify(|suspended| {
            suspended.insert(server);
        });
        if let Some(machine) = self.machines.get_mut(&server) {
            machine.suspended = true;
        }
    }

    pub(crate) fn resume(&mut self, server: u64) {
        self.network.thaw(server);
        self.suspended.send_modify(|suspended| {
            suspended.remove(&server);
        });
        if let Some(machine) = self.machines.get_mut(&server) {
            machine.suspended = false;
        }
    }

    /// Goes on until `deadline`; begins faults when it may.
    pub(crate) async fn rage(&mut self, deadline: Instant, begins_faults: bool) {
        let mut next_fault = Instant::now() + self.random.between(Duration::ZERO, Duration::from_millis(800));
        while self.judge.violation().is_none() {
            let scheduled = self.schedule.keys().next().map_or(deadline, |(due, _)| *due);
            let fault = if begins_faults { next_fault } else { deadline };
            let until = scheduled.min(fault).min(deadline);
            let failed = tokio::select! {
                biased;
                Some(failed) = self.failures.recv() => Some(failed),
                () = tokio::time::sleep_until(until) => None,
            };
            if let Some((server, starts)) = failed {
                self.process_failed(server, starts);
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                return;
            }
            if let Some(entry) = self.schedule.first_entry()
                && entry.key().0 <= now
            {
                let later = entry.remove();
                self.act(later).await;
            } else if begins_faults && now >= next_fault {
                self.begin_fault().await;
                next_fault =
                    now + self.random.between(Duration::from_millis(50), Duration::from_millis(1500));
            }
        }
    }

    /// A server whose log failed ends by itself.
    fn process_failed(&mut self, server: u64, starts: u64) {
        let current = self
            .machines
            .get(&server)
            .is_some_and(|machine| machine.starts == starts && machine.process.is_some());
        if current {
            say!(self.trace, "server {server} ends: its log has failed");
            self.kill(server);
            self.later(10, 800, Later::Start(server));
        }
    }

    async fn act(&mut self, later: Later) {
        if !matches!(later, Later::Island(_)) {
            say!(self.trace, "nemesis: {later:?}");
        }
        match later {
            Later::Start(server) => self.start(server).await,
            Later::Heal => self.network.heal(),
            Later::Resume(server) => self.resume(server),
            Later::Steady(server) => self.set_delays(server, 0, 3),
            Later::Space(server) => self.machines[&server].disk.set_capacity(u64::MAX),
            Later::Island(looks) => {
                if self.cut_island().is_none() && looks > 0 {
                    self.later(5, 50, Later::Island(looks - 1));
                }
            }
            Later::Stumble(server) => {
                self.kill(server);
                self.later(0, 40, Later::Start(server));
            }
            Later::Isolate(server) => self.network.isolate(server),
            Later::Wipe(server) => self.wipe(server).await,
            Later::PowerLoss(server) => {
                self.lose_power(server);
                self.later(0, 500, Later::Start(server));
            }
        }
    }

    pub(crate) fn set_delays(&mut self, server: u64, shortest_ms: u64, longest_ms: u64) {
        let seed = self.random.next();
        let disk = &self.machines[&server].disk;
        disk.set_delays(Duration::from_millis(shortest_ms), Duration::from_millis(longest_ms), seed);
    }

    async fn begin_fault(&mut self) {
        if Instant::now() < self.calm_until {
            return;
        }
        if self.restless != Restless::Not && self.random.below(3) == 0 {
            if let Some(name) = self.operate() {
                *self.faults.entry(name).or_default() += 1;
            }
            return;
        }
        let name = match self.random.below(14) {
            0 | 1 => {
                let servers = self.some();
                say!(self.trace, "nemesis: kill {servers:?}");
                let at_once = self.random.below(2) == 0;
                for server in servers {
                    self.kill(server);
                    let longest = if at_once { 20 } else { 1500 };
                    self.later(0, longest, Later::Start(server));
                }
                "kill"
            }
            2 | 3 if self.judge.durability == Durability::QuorumFsync => {
                let servers = self.some();
                say!(self.trace, "nemesis: power of {servers:?} goes");
                for server in servers {
                    if self.random.below(2) == 0 {
                        // In the middle of what the disk does next.
                        let operations = self.random.below(6);
                        self.machines[&server].disk.inject(Fault::Halt { operations });
                        self.later(5, 60, Later::PowerLoss(server));
                    } else {
                        self.lose_power(server);
                        self.later(0, 800, Later::Start(server));
                    }
                }
                "power"
            }
            2 | 3 if Instant::now() >= self.power_holds_until => {
                // Memory survives the loss of a minority, and that only when the last one to lose it is back.
                let server = self.any();
                self.power_holds_until = Instant::now() + REPLACEMENT;
                say!(self.trace, "nemesis: power of {server} goes, and its memory");
                self.lose_power(server);
                self.later(0, 800, Later::Start(server));
                "power, minority"
            }
            4 | 5 => {
                let side = self.some();
                say!(self.trace, "nemesis: {side:?} on their own");
                for a in self.servers() {
                    for &b in &side {
                        if !side.contains(&a) {
                            self.network.cut(a, b);
                        }
                    }
                }
                self.later(100, 2500, Later::Heal);
                "partition"
            }
            6 => {
                let (from, to) = (self.any(), self.any());
                say!(self.trace, "nemesis: nothing from {from} reaches {to}");
                self.network.cut_one_way(from, to);
                self.later(100, 2500, Later::Heal);
                "one-way cut"
            }
            7 => {
                let leader = self.leader();
                say!(self.trace, "nemesis: leader {leader} cut off");
                self.network.isolate(leader);
                // The others have forgotten whom they promised what, when the promise still holds.
                if self.random.below(2) == 0 {
                    for server in self.servers().into_iter().filter(|server| *server != leader) {
                        self.kill(server);
                        self.later(0, 40, Later::Start(server));
                    }
                }
                self.later(200, 2500, Later::Heal);
                "leader cut off"
            }
            8 => {
                let server = if self.random.below(2) == 0 { self.leader() } else { self.any() };
                say!(self.trace, "nemesis: {server} suspended");
                self.suspend(server);
                self.later(50, 2500, Later::Resume(server));
                "suspend"
            }
            9 => {
                let server = self.any();
                let (shortest, longest) = (self.random.below(100), 100 + self.random.below(500));
                say!(self.trace, "nemesis: disk of {server} takes {shortest} to {longest} ms");
                self.set_delays(server, shortest, longest);
                self.later(200, 2500, Later::Steady(server));
                "slow disk"
            }
            10 => {
                let server = self.any();
                say!(self.trace, "nemesis: disk of {server} is full");
                self.machines[&server].disk.set_capacity(0);
                self.later(100, 1500, Later::Space(server));
                "full disk"
            }
            11 => {
                let server = self.any();
                let syncs = self.random.below(3);
                say!(self.trace, "nemesis: a sync of {server} fails");
                self.machines[&server].disk.inject(Fault::SyncFails { syncs });
                "failed sync"
            }
            12 => {
                let server = self.any();
                let by = self.random.below(7_200_000).cast_signed() - 3_600_000;
                say!(self.trace, "nemesis: wall clock of {server} jumps by {by} ms");
                self.machines[&server].clock.jump_ms(by);
                "clock jump"
            }
            _ => {
                let leader = self.leader();
                say!(self.trace, "nemesis: {leader} hands over");
                if let Some(process) = self.directory.get(leader) {
                    let environment = process.environment.clone();
                    environment.spawn(async move { process.node.hand_over().await });
                }
                // Who hands over does not hear what came of it.
                if self.random.below(2) == 0 {
                    self.later(0, 30, Later::Isolate(leader));
                    self.later(500, 2000, Later::Heal);
                }
                "handover"
            }
        };
        *self.faults.entry(name).or_default() += 1;
    }

    /// A server that leads a shard, if there is one.
    pub(crate) fn leader(&mut self) -> u64 {
        let leads = |machine: &&Machine| {
            machine.process.as_ref().is_some_and(|process| {
                process.node.shards().borrow().values().any(kvorum_node::Shard::serves)
            })
        };
        let leaders: Vec<u64> = self.machines.values().filter(leads).map(|machine| machine.id).collect();
        match leaders.len() as u64 {
            0 => self.any(),
            count => leaders[self.random.below(count) as usize],
        }
    }

    /// Ends every fault and starts every server.
    pub(crate) async fn make_peace(&mut self) {
        say!(self.trace, "nemesis: peace");
        self.schedule.clear();
        self.network.heal();
        for server in self.servers() {
            self.resume(server);
            self.machines[&server].disk.set_capacity(u64::MAX);
            self.set_delays(server, 0, 2);
            // What was planned for the disk must not strike any more, nor have struck a machine without a process.
            self.machines[&server].disk.inject(Fault::Halt { operations: u64::MAX / 2 });
            self.machines[&server].disk.inject(Fault::SyncFails { syncs: u64::MAX / 2 });
            self.start(server).await;
        }
    }
}

/// The machine of a server.
fn machine_of(topology: &Topology, server: ServerId) -> Option<u64> {
    machine_at(&topology.server(server)?.host)
}

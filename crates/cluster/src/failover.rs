//! What happens to the leaders of shards, told in the words of Redis Sentinel.
//!
//! To a Sentinel client each shard is a monitored master with a name ([`MasterNames`]), and every server is a Sentinel.
//! [`FailoverWatch`] compares successive [`Picture`]s of one server and says what happened in between: the events that Redis
//! Sentinel publishes, with its payloads and in its order.
//!
//! Contract: pure. The same pictures give the same events. Each server has pictures of its own, so servers tell the same
//! story with different details: the server whose replica was elected tells how it was promoted, as the Sentinel that
//! coordinates a failover does; the others tell that they heard of it.
//!
//! Raft knows nothing of suspicion and agreement, so these follow from what it does know. A server that is silent, or was
//! at the time of an election, is subjectively down. An election that took the lead from a silent server is the agreement of
//! a majority that it is down, and so is the word of the meta group.

use crate::{Leader, Replica, ReplicaId, ServerId, Shard, ShardId, Topology, View};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How clients of Sentinel call the shards: `shard-0`, `shard-1` and so on; the shard of a cluster that has one only has a
/// second name, by which it is listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterNames {
    alone: String,
}

impl Default for MasterNames {
    /// Redis's example, which most clients' examples took over.
    fn default() -> MasterNames {
        MasterNames { alone: "mymaster".to_owned() }
    }
}

impl MasterNames {
    /// With this name for the only shard of a cluster.
    pub fn new(alone: &str) -> MasterNames {
        MasterNames { alone: alone.to_owned() }
    }

    /// The name by which a shard is listed.
    pub fn of(&self, topology: &Topology, shard: ShardId) -> String {
        if topology.shards.len() == 1 { self.alone.clone() } else { format!("shard-{shard}") }
    }

    /// The shard of that name.
    pub fn find<'a>(&self, topology: &'a Topology, name: &[u8]) -> Option<&'a Shard> {
        if let [only] = topology.shards.as_slice()
            && name == self.alone.as_bytes()
        {
            return Some(only);
        }
        let number = std::str::from_utf8(name.strip_prefix(b"shard-")?).ok()?;
        let id = ShardId(number.parse().ok()?);
        // One name, not one for every way to write the number.
        topology.shard(id).filter(|_| id.to_string() == number)
    }
}

/// How many servers have to agree: a majority of them.
pub fn quorum(topology: &Topology) -> usize {
    topology.servers.len() / 2 + 1
}

impl View {
    /// The replica that clients of Sentinel are told: the leader, and while there is none the one that led last. `None` when
    /// none was ever heard of, or it is gone.
    pub fn last_leader<'a>(&self, shard: &'a Shard) -> Option<(&'a Replica, Leader)> {
        let last = self.leaders.last(shard.id)?;
        let replica = shard.replicas.iter().find(|replica| replica.id == last.replica)?;
        Some((replica, last))
    }

    /// Whether fewer servers than a quorum are heard: then what this server knows may be old.
    pub fn is_cut_off(&self) -> bool {
        let silent = self.silent.iter().filter(|server| self.topology.servers.contains_key(server)).count();
        self.topology.servers.len() - silent < quorum(&self.topology)
    }
}

/// A server in its role as a Sentinel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SentinelId {
    /// 40 hex digits.
    pub id: String,
    /// Where it answers clients.
    pub port: u16,
}

/// What one server knows at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Who is there, who leads, who is silent.
    pub view: &'a View,
    /// Whose picture it is.
    pub me: ServerId,
    /// Servers that have not been heard for so long that a leader there who loses the lead now has failed, rather than
    /// handed it over. It takes less than to be silent.
    pub suspects: &'a BTreeSet<ServerId>,
    /// The servers as Sentinels, this one included.
    pub sentinels: &'a BTreeMap<ServerId, SentinelId>,
}

/// Something happened to a shard's replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailoverEvent {
    /// The shard.
    pub shard: ShardId,
    /// The shard's name for clients of Sentinel.
    pub master: String,
    /// Redis Sentinel's name of the event, which is the channel it is published in.
    pub name: &'static str,
    /// What Redis Sentinel publishes.
    pub payload: String,
    /// Why, in words for people.
    pub cause: String,
}

/// Compares pictures. One for each server.
#[derive(Clone, Debug, Default)]
pub struct FailoverWatch {
    names: MasterNames,
    shards: BTreeMap<ShardId, Watched>,
    sentinels: BTreeSet<ServerId>,
}

type Address = (String, u16);

/// A shard, as it was told of last.
#[derive(Clone, Debug)]
struct Watched {
    name: String,
    master: Member,
    term: u64,
    members: BTreeMap<ReplicaId, Member>,
    /// Servers that are subjectively down.
    down: BTreeSet<ServerId>,
    /// Whether the master was told to be objectively down.
    agreed_down: bool,
    /// It led, was silent when it lost the lead, and has not come back as a follower.
    deposed: Option<ReplicaId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Member {
    id: ReplicaId,
    server: ServerId,
    address: Address,
}

impl FailoverWatch {
    /// One that has seen nothing.
    pub fn new(names: MasterNames) -> FailoverWatch {
        FailoverWatch { names, ..FailoverWatch::default() }
    }

    /// Looks at a picture; returns what happened since the last one.
    pub fn look(&mut self, picture: Picture<'_>) -> Vec<FailoverEvent> {
        let topology = &picture.view.topology;
        let mut events = Vec::new();
        let gone: Vec<ShardId> =
            self.shards.keys().copied().filter(|id| topology.shard(*id).is_none()).collect();
        for id in gone {
            if let Some(watched) = self.shards.remove(&id) {
                let mut teller = Teller::new(id, &watched, &mut events);
                teller.master("-monitor", &watched.master, "the shard is no more");
            }
        }
        let others: BTreeSet<ServerId> =
            topology.servers.keys().copied().filter(|id| *id != picture.me).collect();
        for shard in &topology.shards {
            let Some((leader, term)) = picture.view.last_leader(shard) else { continue };
            let Some(leader) = member(topology, shard, leader) else { continue };
            let name = self.names.of(topology, shard.id);
            let known = self.shards.remove(&shard.id);
            let is_new = known.is_none();
            let mut watched = match known {
                Some(watched) => watched,
                None => Watched::begin(name, shard, leader.clone(), term.term, topology, &mut events),
            };
            watched.look(shard, &leader, term.term, picture, &mut events);
            let met = if is_new { BTreeSet::new() } else { self.sentinels.clone() };
            watched.meet_sentinels(shard.id, others.difference(&met), picture, &mut events);
            self.shards.insert(shard.id, watched);
        }
        // Until a shard is watched, nobody was told of the Sentinels.
        if !self.shards.is_empty() {
            self.sentinels = others;
        }
        events
    }
}

/// A replica with its address; `None` for one of a server that is not there.
fn member(topology: &Topology, shard: &Shard, replica: &Replica) -> Option<Member> {
    let server = topology.server(replica.server)?;
    let address = (server.host.clone(), server.client_port(shard.id));
    Some(Member { id: replica.id, server: replica.server, address })
}

impl Watched {
    fn begin(
        name: String,
        shard: &Shard,
        master: Member,
        term: u64,
        topology: &Topology,
        events: &mut Vec<FailoverEvent>,
    ) -> Watched {
        let members = members(topology, shard);
        let watched =
            Watched { name, master, term, members, down: BTreeSet::new(), agreed_down: false, deposed: None };
        let mut teller = Teller::new(shard.id, &watched, events);
        let cause = "this server follows the shard from here on";
        let quorum = quorum(topology);
        teller.tell("+monitor", format!("{} quorum {quorum}", teller.of_master(&watched.master)), cause);
        for slave in watched.slaves() {
            teller.slave("+slave", slave, &watched.master, "", cause);
        }
        watched
    }

    /// The members that do not lead, in the order of their ids.
    fn slaves(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.id != self.master.id)
    }

    fn look(
        &mut self,
        shard: &Shard,
        leader: &Member,
        term: u64,
        picture: Picture<'_>,
        events: &mut Vec<FailoverEvent>,
    ) {
        let topology = &picture.view.topology;
        let silent = &picture.view.silent;
        let came = self.change_members(shard, topology);
        if leader.id != self.master.id {
            self.switch(shard.id, leader.clone(), term, picture, events);
        } else {
            if leader.address != self.master.address {
                self.move_master(shard.id, leader.clone(), events);
            }
            if term > self.term {
                self.term = term;
                let cause = format!("{} was elected again, in term {term}", place(leader));
                Teller::new(shard.id, self, events).tell("+new-epoch", term.to_string(), &cause);
            }
        }
        for slave in came.iter().filter(|member| member.id != self.master.id) {
            let cause = format!("{} belongs to the shard now", place(slave));
            Teller::new(shard.id, self, events).slave("+slave", slave, &self.master, "", &cause);
        }
        // Down by silence, or suspected at an election and not heard since.
        let is_down = |server: &ServerId, was: bool| {
            *server != picture.me && (silent.contains(server) || was && picture.suspects.contains(server))
        };
        let servers: Vec<ServerId> = topology.servers.keys().copied().collect();
        for server in servers {
            let was = self.down.contains(&server);
            match (was, is_down(&server, was)) {
                (false, true) => self.lose(shard.id, server, picture, events),
                (true, false) => self.hear_again(shard.id, server, picture, events),
                _ => {}
            }
        }
        self.down.retain(|server| topology.servers.contains_key(server));
        self.hear_meta_group(shard.id, topology, events);
    }

    /// Takes over who is a member; returns those at an address where none was.
    fn change_members(&mut self, shard: &Shard, topology: &Topology) -> Vec<Member> {
        let members = members(topology, shard);
        if members == self.members {
            return Vec::new();
        }
        // One that took another's place at the same address is no news to clients.
        let known: BTreeSet<&Address> = self.members.values().map(|member| &member.address).collect();
        let came = members.values().filter(|member| !known.contains(&member.address)).cloned().collect();
        self.members = members;
        came
    }

    /// The same leader is at another address.
    fn move_master(&mut self, shard: ShardId, leader: Member, events: &mut Vec<FailoverEvent>) {
        let cause = format!("{} has another address", place(&leader));
        let old = std::mem::replace(&mut self.master, leader);
        Teller::new(shard, self, events).switch(&old, &self.master, &cause);
    }

    /// Another replica leads.
    fn switch(
        &mut self,
        shard: ShardId,
        new: Member,
        term: u64,
        picture: Picture<'_>,
        events: &mut Vec<FailoverEvent>,
    ) {
        let quorum = quorum(&picture.view.topology);
        let old = self.master.clone();
        let lost = old.server != picture.me
            && (picture.view.silent.contains(&old.server)
                || picture.suspects.contains(&old.server)
                || self.down.contains(&old.server));
        let cause = if lost {
            format!("{} was elected in term {term}; {} was not heard any more", place(&new), place(&old))
        } else {
            format!("{} took the lead over from {} in term {term}", place(&new), place(&old))
        };
        let mut teller = Teller::new(shard, self, events);
        if lost && !self.down.contains(&old.server) {
            teller.master("+sdown", &old, &format!("{} is not heard any more", place(&old)));
        }
        let agree = |teller: &mut Teller<'_>| {
            if lost && !self.agreed_down {
                let payload = format!("{} #quorum {quorum}/{quorum}", teller.of_master(&old));
                teller.tell("+odown", payload, "a majority elected another leader");
            }
        };
        let epoch = term.to_string();
        let voted = sentinel(picture, new.server);
        let vote = format!("{} {epoch}", voted.id);
        if new.server == picture.me {
            agree(&mut teller);
            teller.tell("+new-epoch", epoch, &cause);
            teller.master("+try-failover", &old, &cause);
            teller.tell("+vote-for-leader", vote, &cause);
            teller.master("+elected-leader", &old, &cause);
            teller.master("+failover-state-select-slave", &old, &cause);
            teller.slave("+selected-slave", &new, &old, "", &cause);
            teller.slave("+failover-state-send-slaveof-noone", &new, &old, "", &cause);
            teller.slave("+failover-state-wait-promotion", &new, &old, "", &cause);
            teller.slave("-role-change", &new, &old, " new reported role is master", &cause);
            teller.slave("+promoted-slave", &new, &old, "", &cause);
            teller.master("+failover-state-reconf-slaves", &old, &cause);
            let others = self.slaves().filter(|slave| slave.id != new.id);
            for slave in others.filter(|slave| !self.down.contains(&slave.server)) {
                for step in ["+slave-reconf-sent", "+slave-reconf-inprog", "+slave-reconf-done"] {
                    teller.slave(step, slave, &old, "", &cause);
                }
            }
            teller.master("+failover-end", &old, &cause);
        } else {
            teller.tell("+new-epoch", epoch, &cause);
            if lost {
                teller.tell("+vote-for-leader", vote, &cause);
            }
            agree(&mut teller);
            teller.slave("-role-change", &new, &old, " new reported role is master", &cause);
            let host = host(picture, new.server);
            let payload = format!(
                "sentinel {} {host} {} @ {} {} {}",
                voted.id, voted.port, self.name, old.address.0, old.address.1
            );
            teller.tell("+config-update-from", payload, &cause);
        }
        teller.switch(&old, &new, &cause);
        for slave in self.slaves().filter(|slave| slave.id != new.id) {
            teller.slave("+slave", slave, &new, "", &cause);
        }
        let stays = self.members.contains_key(&old.id);
        if stays {
            teller.slave("+slave", &old, &new, "", &cause);
        }
        if lost && stays {
            teller.slave("+sdown", &old, &new, "", &format!("{} is not heard any more", place(&old)));
        }
        // Who leads is there, whatever was thought of it.
        self.down.remove(&new.server);
        if lost {
            self.down.insert(old.server);
        }
        self.deposed = lost.then_some(old.id);
        self.agreed_down = false;
        self.term = term;
        self.master = new;
    }

    /// A server is not heard any more.
    fn lose(
        &mut self,
        shard: ShardId,
        server: ServerId,
        picture: Picture<'_>,
        events: &mut Vec<FailoverEvent>,
    ) {
        self.down.insert(server);
        let cause = format!("server {server} is not heard any more");
        self.tell_of_server("+sdown", shard, server, picture, &cause, events);
    }

    /// A server is heard again.
    fn hear_again(
        &mut self,
        shard: ShardId,
        server: ServerId,
        picture: Picture<'_>,
        events: &mut Vec<FailoverEvent>,
    ) {
        self.down.remove(&server);
        let cause = format!("server {server} is heard again");
        self.tell_of_server("-sdown", shard, server, picture, &cause, events);
        let back = self.deposed.and_then(|id| self.members.get(&id)).filter(|member| member.server == server);
        if let Some(back) = back.cloned() {
            self.deposed = None;
            let role = " new reported role is slave";
            Teller::new(shard, self, events).slave("+role-change", &back, &self.master, role, &cause);
        }
    }

    fn tell_of_server(
        &self,
        name: &'static str,
        shard: ShardId,
        server: ServerId,
        picture: Picture<'_>,
        cause: &str,
        events: &mut Vec<FailoverEvent>,
    ) {
        let mut teller = Teller::new(shard, self, events);
        if self.master.server == server {
            teller.master(name, &self.master, cause);
        } else if let Some(slave) = self.members.values().find(|member| member.server == server) {
            teller.slave(name, slave, &self.master, "", cause);
        }
        teller.sentinel(name, server, picture, &self.master, cause);
    }

    /// The meta group says that the master's server is down, or up again.
    fn hear_meta_group(&mut self, shard: ShardId, topology: &Topology, events: &mut Vec<FailoverEvent>) {
        // As in Redis, who is objectively down is subjectively down, too: the meta group may be late to hear that it is back.
        let up = topology.server(self.master.server).is_none_or(|server| server.up)
            || !self.down.contains(&self.master.server);
        if up != self.agreed_down {
            return;
        }
        self.agreed_down = !up;
        let master = &self.master;
        let quorum = quorum(topology);
        let mut teller = Teller::new(shard, self, events);
        let payload = teller.of_master(master);
        if up {
            teller.tell("-odown", payload, &format!("server {} is heard again", master.server));
        } else {
            let cause = format!("the meta group does not hear server {} any more", master.server);
            teller.tell("+odown", format!("{payload} #quorum {quorum}/{quorum}"), &cause);
        }
    }

    fn meet_sentinels<'a>(
        &self,
        shard: ShardId,
        came: impl Iterator<Item = &'a ServerId>,
        picture: Picture<'_>,
        events: &mut Vec<FailoverEvent>,
    ) {
        let mut teller = Teller::new(shard, self, events);
        for server in came {
            let cause = format!("server {server} belongs to the cluster");
            teller.sentinel("+sentinel", *server, picture, &self.master, &cause);
        }
    }
}

fn members(topology: &Topology, shard: &Shard) -> BTreeMap<ReplicaId, Member> {
    let members = shard.replicas.iter().filter_map(|replica| member(topology, shard, replica));
    members.map(|member| (member.id, member)).collect()
}

/// A member in words.
fn place(member: &Member) -> String {
    format!("{}:{} (server {})", member.address.0, member.address.1, member.server)
}

fn sentinel(picture: Picture<'_>, server: ServerId) -> SentinelId {
    let known = picture.sentinels.get(&server).cloned();
    known.unwrap_or_else(|| SentinelId { id: format!("{:040x}", server.0), port: 0 })
}

fn host(picture: Picture<'_>, server: ServerId) -> &str {
    picture.view.topology.server(server).map_or("", |server| &server.host)
}

/// Writes events of one shard.
struct Teller<'a> {
    shard: ShardId,
    master: String,
    events: &'a mut Vec<FailoverEvent>,
}

impl<'a> Teller<'a> {
    fn new(shard: ShardId, watched: &Watched, events: &'a mut Vec<FailoverEvent>) -> Teller<'a> {
        Teller { shard, master: watched.name.clone(), events }
    }

    fn tell(&mut self, name: &'static str, payload: String, cause: &str) {
        let (shard, master, cause) = (self.shard, self.master.clone(), cause.to_owned());
        self.events.push(FailoverEvent { shard, master, name, payload, cause });
    }

    fn of_master(&self, master: &Member) -> String {
        format!("master {} {} {}", self.master, master.address.0, master.address.1)
    }

    fn master(&mut self, name: &'static str, master: &Member, cause: &str) {
        self.tell(name, self.of_master(master), cause);
    }

    fn slave(&mut self, name: &'static str, slave: &Member, master: &Member, more: &str, cause: &str) {
        let (host, port) = &slave.address;
        let mut payload = format!("slave {host}:{port} {host} {port} @ {} ", self.master);
        let _ = write!(payload, "{} {}{more}", master.address.0, master.address.1);
        self.tell(name, payload, cause);
    }

    fn sentinel(
        &mut self,
        name: &'static str,
        server: ServerId,
        picture: Picture<'_>,
        master: &Member,
        cause: &str,
    ) {
        let SentinelId { id, port } = sentinel(picture, server);
        let host = host(picture, server);
        let (mhost, mport) = &master.address;
        let payload = format!("sentinel {id} {host} {port} @ {} {mhost} {mport}", self.master);
        self.tell(name, payload, cause);
    }

    fn switch(&mut self, old: &Member, new: &Member, cause: &str) {
        let ((old, old_port), (new, new_port)) = (&old.address, &new.address);
        let payload = format!("{} {old} {old_port} {new} {new_port}", self.master);
        self.tell("+switch-master", payload, cause);
    }
}

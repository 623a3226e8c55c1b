//! One client of the Sentinel port, without IO: bytes of requests in, replies and events out.
//!
//! What concerns the connection (AUTH, HELLO, CLIENT …) is the data port's [`crate::session::Session`], which also keeps the protocol
//! and the name. Subscriptions and SENTINEL are here.

use super::replies;
use super::scene::{Master, Scene, Tunables};
use super::table;
use crate::clients::Client;
use crate::port::{Place, Port};
use crate::resp::{Limits, Protocol, RequestDecoder, RespSink};
use crate::session::{self, NO_AUTH, Next, info, integer};
use kvorum_cluster::ShardId;
use kvorum_keyspace::{Args, Command, Error, Flags, Outcome, Sink, glob, introspect, unknown_command};
use kvorum_node::{HandoverError, TimelineEvent};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The largest request: whoever speaks to a Sentinel says little.
pub(super) const REQUEST_BYTES: usize = 1 << 20;

/// The most channels and patterns of a client.
const SUBSCRIPTIONS: usize = 1024;

/// The most bytes of the names of those.
const SUBSCRIPTION_BYTES: usize = 256 * 1024;

/// The only channel that may be published to: Sentinels of Redis greet each other there.
const HELLO_CHANNEL: &[u8] = b"__sentinel__:hello";

const NO_SUCH_MASTER: Error = Error::new("ERR No such master with that name");

/// What a session looks at.
pub(super) struct Surroundings<'a> {
    pub(super) port: &'a Port,
    /// The 40 hex digits of this server.
    pub(super) id: &'a str,
    /// The port as clients know it, if it is another one.
    pub(super) announced_port: Option<u16>,
    pub(super) tunables: &'a Tunables,
    /// What the server knows now; `None` while it belongs to no cluster.
    pub(super) scene: &'a dyn Fn() -> Option<Scene>,
    /// Tells subscribers of this server what a client changed: the master, the event, and its payload.
    pub(super) publish: &'a dyn Fn(Master<'_>, &str, String),
}

/// How a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// When there are more bytes.
    Read,
    /// With what is in the buffer already: others have their turn first.
    Again,
    /// When this shard was handed over, or could not be: [`Session::failed_over`] writes the reply.
    Failover(ShardId),
    /// Not until somebody calls the shutdown off.
    Shutdown,
    /// Not at all, once what was written is read.
    Close,
}

/// Requests that are answered in one turn.
const TURN_REQUESTS: usize = 256;

/// State of one client.
pub(super) struct Session {
    decoder: RequestDecoder,
    inner: session::Session,
    client: Arc<Client>,
    channels: BTreeSet<Vec<u8>>,
    patterns: BTreeSet<Vec<u8>>,
    finished: bool,
    /// Commands run since they were asked for.
    commands: u64,
}

impl Session {
    /// A client that has not said anything yet.
    pub(super) fn new(client: Arc<Client>, port: &Port) -> Session {
        Session {
            decoder: RequestDecoder::default(),
            inner: session::Session::new(Arc::clone(&client), port),
            client,
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
            finished: false,
            commands: 0,
        }
    }

    /// Where to append what was read.
    pub(super) fn input(&mut self, room: usize) -> &mut Vec<u8> {
        self.decoder.buffer(room)
    }

    /// Whether what waits to be understood is more than a request may be.
    pub(super) fn is_flooded(&self) -> bool {
        self.decoder.cost() > REQUEST_BYTES
    }

    /// Whether it is to be told of events.
    pub(super) fn is_subscriber(&self) -> bool {
        self.subscriptions() > 0
    }

    /// How many commands it ran since this was asked last.
    pub(super) fn take_commands(&mut self) -> u64 {
        std::mem::take(&mut self.commands)
    }

    fn subscriptions(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    /// Answers what has arrived whole.
    pub(super) fn turn(&mut self, around: &Surroundings<'_>, out: &mut RespSink) -> Step {
        if self.finished {
            return Step::Close;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut step = Step::Again;
        for _ in 0..TURN_REQUESTS {
            let limits =
                Limits { bulk_bytes: REQUEST_BYTES as u64, stranger: self.inner.lacks_password(around.port) };
            step = match decoder.next(limits) {
                Ok(Some(args)) => {
                    let mark = out.bytes().len();
                    self.inner.begin();
                    let step = self.on_request(&args, around, out);
                    if self.inner.is_muted() {
                        out.mute_since(mark);
                    }
                    step
                }
                Ok(None) => Step::Read,
                Err(error) => {
                    out.error(error.text());
                    Step::Close
                }
            };
            if step != Step::Again {
                break;
            }
        }
        self.decoder = decoder;
        self.finished |= step == Step::Close;
        step
    }

    fn on_request(&mut self, args: Args<'_>, around: &Surroundings<'_>, out: &mut RespSink) -> Step {
        // What a browser that was tricked into talking to us says.
        if args[0].eq_ignore_ascii_case(b"post") || args[0].eq_ignore_ascii_case(b"host:") {
            return Step::Close;
        }
        out.set_protocol(self.inner.protocol());
        match self.try_request(args, around, out) {
            Ok(step) => step,
            Err(error) => {
                out.error(error.text());
                Step::Again
            }
        }
    }

    fn try_request(
        &mut self,
        args: Args<'_>,
        around: &Surroundings<'_>,
        out: &mut RespSink,
    ) -> Result<Step, Error> {
        let top = table::find(args[0]).ok_or_else(|| unknown_command(args))?;
        let command = top.resolve(args)?;
        command.check_arity(args)?;
        if self.inner.lacks_password(around.port) && !command.flags.has(Flags::NO_AUTH) {
            return Err(NO_AUTH);
        }
        self.client.update(|profile| profile.command = command.name);
        let silenced = self.is_subscriber() && self.inner.protocol() == Protocol::Resp2;
        if silenced && !is_for_subscribers(command) {
            return Err(Error::owned(format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                command.name
            )));
        }
        self.commands += 1;
        match command.name {
            "ping" if silenced => {
                if args.len() > 2 {
                    return Err(Error::wrong_arity("ping"));
                }
                out.array(2);
                out.bulk(b"pong");
                out.bulk(args.get(1).copied().unwrap_or_default());
            }
            "hello" => self.inner.greet(args, around.port, ("sentinel", None), out)?,
            "info" => {
                let own = replies::info((around.scene)().as_ref());
                out.bulk(info::of_sentinel(args, around.port, &own).as_bytes());
            }
            "role" => role((around.scene)().as_ref(), out),
            "reset" => {
                self.channels.clear();
                self.patterns.clear();
                self.note_subscriptions();
                self.inner.reset(around.port);
                out.set_protocol(Protocol::Resp2);
                out.simple("RESET");
            }
            "subscribe" => self.subscribe(&args[1..], Kind::Channel, out)?,
            "psubscribe" => self.subscribe(&args[1..], Kind::Pattern, out)?,
            "unsubscribe" => self.unsubscribe(&args[1..], Kind::Channel, out),
            "punsubscribe" => self.unsubscribe(&args[1..], Kind::Pattern, out),
            "publish" => {
                if args[1] != HELLO_CHANNEL {
                    return Err(Error::new("ERR Only HELLO messages are accepted by Sentinel instances."));
                }
                // Servers know each other already.
                out.int(1);
            }
            "acl|whoami" => out.bulk(b"default"),
            "acl|users" => {
                out.array(1);
                out.bulk(b"default");
            }
            name if name.starts_with("acl") => return Err(Error::SYNTAX),
            name if name.starts_with("command") => introspect::command_of(table::TABLE, args, out)?,
            name if name.starts_with("sentinel") => return self.sentinel(command, args, around, out),
            // What would hold others up, or is about keys, has nothing to hold up here.
            "client|pause" | "client|unpause" | "client|unblock" | "client|tracking" | "client|caching" => {
                let name = command.subname().to_ascii_uppercase();
                return Err(Error::owned(format!("ERR CLIENT {name} is not supported by a Sentinel")));
            }
            _ => {
                let place = Place { port: around.port, replica: None };
                return Ok(match self.inner.serve(command, args, place, out) {
                    Next::Close => Step::Close,
                    Next::Shutdown => Step::Shutdown,
                    _ => Step::Again,
                });
            }
        }
        Ok(Step::Again)
    }

    fn subscribe(&mut self, names: Args<'_>, kind: Kind, out: &mut RespSink) -> Outcome {
        let bytes = |names: &BTreeSet<Vec<u8>>| names.iter().map(Vec::len).sum::<usize>();
        let asked: usize = names.iter().map(|name| name.len()).sum();
        let taken = bytes(&self.channels) + bytes(&self.patterns);
        if self.subscriptions() + names.len() > SUBSCRIPTIONS || taken + asked > SUBSCRIPTION_BYTES {
            return Err(Error::new("ERR too many subscriptions of one client"));
        }
        for name in names {
            self.names(kind).insert(name.to_vec());
            out.push(3);
            out.bulk(kind.subscribe());
            out.bulk(name);
            out.count(self.subscriptions());
        }
        self.note_subscriptions();
        Ok(())
    }

    fn unsubscribe(&mut self, names: Args<'_>, kind: Kind, out: &mut RespSink) {
        let all: Vec<Vec<u8>> = match names {
            [] => self.names(kind).iter().cloned().collect(),
            names => names.iter().map(|name| name.to_vec()).collect(),
        };
        if all.is_empty() {
            out.push(3);
            out.bulk(kind.unsubscribe());
            out.null();
            out.count(self.subscriptions());
        }
        for name in all {
            self.names(kind).remove(&name);
            out.push(3);
            out.bulk(kind.unsubscribe());
            out.bulk(&name);
            out.count(self.subscriptions());
        }
        self.note_subscriptions();
    }

    fn names(&mut self, kind: Kind) -> &mut BTreeSet<Vec<u8>> {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
        }
    }

    /// CLIENT LIST shows them.
    fn note_subscriptions(&self) {
        self.client.update(|profile| {
            profile.channels = self.channels.len();
            profile.patterns = self.patterns.len();
        });
    }

    /// Something happened: writes what the client subscribed to.
    pub(super) fn on_event(&self, event: &TimelineEvent, out: &mut RespSink) {
        out.set_protocol(self.inner.protocol());
        let (channel, payload) = (event.event.as_bytes(), event.payload.as_bytes());
        if self.channels.contains(channel) {
            out.push(3);
            out.bulk(b"message");
            out.bulk(channel);
            out.bulk(payload);
        }
        for pattern in self.patterns.iter().filter(|pattern| glob::matches(pattern, channel, false)) {
            out.push(4);
            out.bulk(b"pmessage");
            out.bulk(pattern);
            out.bulk(channel);
            out.bulk(payload);
        }
    }

    /// Somebody called the shutdown off that the client asked for.
    pub(super) fn shutdown_withdrawn(&self, out: &mut RespSink) {
        out.set_protocol(self.inner.protocol());
        out.error(b"ERR Errors trying to SHUTDOWN. Check logs.");
    }

    /// The reply to SENTINEL FAILOVER.
    pub(super) fn failed_over<R>(&self, outcome: Result<R, HandoverError>, out: &mut RespSink) {
        out.set_protocol(self.inner.protocol());
        if self.inner.is_muted() {
            return;
        }
        match outcome {
            Ok(_) => out.ok(),
            Err(HandoverError::InProgress) => out.error(b"INPROG Failover already in progress"),
            // An election is a failover that began by itself.
            Err(HandoverError::NoLeader) => out.error(b"INPROG Failover already in progress"),
            Err(HandoverError::NoHeir | HandoverError::NotReady) => {
                out.error(b"NOGOODSLAVE No suitable replica to promote");
            }
            Err(HandoverError::NoSuchShard) => out.error(NO_SUCH_MASTER.text()),
            Err(HandoverError::Failed(why)) => {
                out.error(format!("ERR the lead was not handed over: {why}").as_bytes());
            }
        }
    }

    fn sentinel(
        &mut self,
        command: &Command,
        args: Args<'_>,
        around: &Surroundings<'_>,
        out: &mut RespSink,
    ) -> Result<Step, Error> {
        let scene = (around.scene)();
        let scene = scene.as_ref();
        let master = |name: &[u8]| scene.and_then(|scene| scene.master(name)).ok_or(NO_SUCH_MASTER);
        let tunables = around.tunables;
        match command.subname() {
            "masters" => {
                let masters: Vec<Master<'_>> =
                    scene.map(|scene| scene.masters().collect()).unwrap_or_default();
                out.array(masters.len());
                masters.into_iter().for_each(|master| replies::master(master, tunables, out));
            }
            "master" => replies::master(master(args[2])?, tunables, out),
            "replicas" | "slaves" => {
                let master = master(args[2])?;
                out.array(master.slaves().count());
                master.slaves().for_each(|replica| replies::replica(master, replica, tunables, out));
            }
            "sentinels" => {
                let master = master(args[2])?;
                let others: Vec<_> = master.scene.other_sentinels().collect();
                out.array(others.len());
                for (server, peer) in others {
                    replies::sentinel(master, server, peer, tunables, out);
                }
            }
            "get-master-addr-by-name" => {
                match master(args[2]).ok().and_then(|master| master.reliable_address()) {
                    Some((host, port)) => {
                        out.array(2);
                        out.bulk(host.as_bytes());
                        out.bulk(port.to_string().as_bytes());
                    }
                    None => out.null_array(),
                }
            }
            "is-master-down-by-addr" => is_master_down(args, scene, out)?,
            "ckquorum" => check_quorum(master(args[2])?, out)?,
            "failover" => {
                let master = master(args[2])?;
                if master.scene.handed_over.contains(&master.shard.id) {
                    return Err(Error::new("INPROG Failover already in progress"));
                }
                return Ok(Step::Failover(master.shard.id));
            }
            "monitor" => return monitor(args, scene),
            "remove" => {
                let name = master(args[2])?.name();
                return Err(Error::owned(format!(
                    "ERR SENTINEL REMOVE is not supported: {name} is a shard of this cluster and always monitored"
                )));
            }
            "set" => {
                let master = master(args[2])?;
                let mut changes = Changes::default();
                let outcome = set(args, master, tunables, &mut changes);
                // What stands before an option that is refused is set all the same.
                for (option, value) in changes.0 {
                    let (host, port) = master.address();
                    let payload = format!("master {} {host} {port} {option} {value}", master.name());
                    (around.publish)(master, "+set", payload);
                }
                outcome?;
                out.ok();
            }
            "reset" => {
                let masters = scene.into_iter().flat_map(Scene::masters);
                let matching =
                    masters.filter(|master| glob::matches(args[2], master.name().as_bytes(), true));
                out.count(matching.count());
            }
            "config" => config(args, around.announced_port, out)?,
            // There is no file of a Sentinel's own.
            "flushconfig" => out.ok(),
            "info-cache" => info_cache(args, scene, out),
            "myid" => out.bulk(around.id.as_bytes()),
            "pending-scripts" => out.array(0),
            "simulate-failure" => simulate_failure(args, out)?,
            "debug" => debug(args, scene, out)?,
            "help" => out.help(HELP),
            _ => return Err(Error::unknown_subcommand("sentinel", args[1])),
        }
        Ok(Step::Again)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Channel,
    Pattern,
}

impl Kind {
    fn subscribe(self) -> &'static [u8] {
        match self {
            Kind::Channel => b"subscribe",
            Kind::Pattern => b"psubscribe",
        }
    }

    fn unsubscribe(self) -> &'static [u8] {
        match self {
            Kind::Channel => b"unsubscribe",
            Kind::Pattern => b"punsubscribe",
        }
    }
}

/// Commands that a client of RESP2 may send while messages may come in between.
fn is_for_subscribers(command: &Command) -> bool {
    let names = ["ping", "subscribe", "psubscribe", "unsubscribe", "punsubscribe", "quit", "reset"];
    names.contains(&command.name)
}

fn role(scene: Option<&Scene>, out: &mut RespSink) {
    let names: Vec<String> = scene.into_iter().flat_map(Scene::masters).map(|master| master.name()).collect();
    out.array(2);
    out.bulk(b"sentinel");
    out.array(names.len());
    names.iter().for_each(|name| out.bulk(name.as_bytes()));
}

/// SENTINEL IS-MASTER-DOWN-BY-ADDR ip port epoch runid. Nobody asks for votes here, so none is given.
fn is_master_down(args: Args<'_>, scene: Option<&Scene>, out: &mut RespSink) -> Outcome {
    let (port, _epoch) = (integer(args[3])?, integer(args[4])?);
    let is_there = |master: &Master<'_>| {
        let (host, its_port) = master.address();
        host.as_bytes() == args[2] && i64::from(its_port) == port
    };
    let found = scene.into_iter().flat_map(Scene::masters).find(is_there);
    out.array(3);
    out.int(i64::from(found.is_some_and(|master| master.is_subjectively_down())));
    out.bulk(b"*");
    out.int(0);
    Ok(())
}

fn check_quorum(master: Master<'_>, out: &mut RespSink) -> Outcome {
    let (usable, quorum) = (master.scene.usable(), master.scene.quorum());
    if usable < quorum {
        // The quorum is the majority, so both are missed at once.
        return Err(Error::owned(format!(
            "NOQUORUM {usable} usable Sentinels. Not enough available Sentinels to reach the specified quorum for this master. \
             Not enough available Sentinels to reach the majority and authorize a failover"
        )));
    }
    out.simple(&format!("OK {usable} usable Sentinels. Quorum and failover authorization can be reached"));
    Ok(())
}

/// SENTINEL MONITOR name ip port quorum: Redis's checks, and then no.
fn monitor(args: Args<'_>, scene: Option<&Scene>) -> Result<Step, Error> {
    let number = |text: &[u8]| integer(text).ok();
    let quorum = number(args[5]).ok_or(Error::new("ERR Invalid quorum"))?;
    let port = number(args[4]).ok_or(Error::new("ERR Invalid port"))?;
    if quorum <= 0 {
        return Err(Error::new("ERR Quorum must be 1 or greater."));
    }
    if !(0..=65535).contains(&port) {
        return Err(Error::new("ERR Invalid port number"));
    }
    if scene.is_some_and(|scene| scene.master(args[2]).is_some()) {
        return Err(Error::new("ERR Duplicate master name."));
    }
    Err(Error::new(
        "ERR SENTINEL MONITOR is not supported: the masters are the shards of this cluster and always monitored",
    ))
}

/// Options that SENTINEL SET set, as the client wrote them, with their values. Each is there once, as it was set last: how many events
/// a request makes must not grow with its length, or it would drown out the subscribers' feed.
#[derive(Default)]
struct Changes(Vec<(String, String)>);

impl Changes {
    fn note(&mut self, option: &[u8], value: &[u8]) {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        self.0.retain(|(known, _)| !known.as_bytes().eq_ignore_ascii_case(option));
        let value = if option.eq_ignore_ascii_case(b"auth-pass") { "******".to_owned() } else { text(value) };
        self.0.push((text(option), value));
    }
}

/// SENTINEL SET name option value …
fn set(args: Args<'_>, master: Master<'_>, tunables: &Tunables, changes: &mut Changes) -> Outcome {
    let shard = master.shard.id;
    let mut options = &args[3..];
    while let [option, rest @ ..] = options {
        let name = option.to_ascii_lowercase();
        let unknown =
            || Error::quoting("ERR Unknown option or number of arguments for SENTINEL SET '", option, "'");
        let [value, more @ ..] = rest else { return Err(unknown()) };
        let invalid = || {
            let after = format!("' for SENTINEL SET '{}'", String::from_utf8_lossy(option));
            Error::quoting("ERR Invalid argument '", value, &after)
        };
        let number = || {
            let number = integer(value).ok().and_then(|number| u64::try_from(number).ok());
            number.filter(|number| *number > 0).ok_or_else(invalid)
        };
        match name.as_slice() {
            b"down-after-milliseconds" => {
                let number = number()?;
                tunables.set(shard, |tuned| tuned.down_after_ms = Some(number));
            }
            b"failover-timeout" => {
                let number = number()?;
                tunables.set(shard, |tuned| tuned.failover_timeout_ms = Some(number));
            }
            b"parallel-syncs" => {
                let number = number()?;
                tunables.set(shard, |tuned| tuned.parallel_syncs = Some(number));
            }
            b"quorum" => {
                let quorum = master.scene.quorum();
                if number()? != quorum as u64 {
                    return Err(Error::owned(format!(
                        "ERR the quorum is the majority of the servers, {quorum}, and cannot be changed"
                    )));
                }
            }
            b"notification-script" | b"client-reconfig-script" => {
                return Err(Error::new(
                    "ERR Reconfiguration of scripts path is denied for security reasons. Check the deny-scripts-reconfig \
                     configuration directive in your Sentinel configuration",
                ));
            }
            // Servers watch each other over their peer ports, where no client's password is asked for.
            b"auth-pass" | b"auth-user" => {}
            _ => return Err(unknown()),
        }
        changes.note(option, value);
        options = more;
    }
    Ok(())
}

/// What SENTINEL CONFIG shows. Addresses are what the servers announce, names where they announce names.
fn configuration(announced_port: Option<u16>) -> [(&'static str, String); 6] {
    [
        ("resolve-hostnames", "no".to_owned()),
        ("announce-hostnames", "no".to_owned()),
        ("announce-ip", String::new()),
        ("announce-port", announced_port.unwrap_or(0).to_string()),
        ("sentinel-user", String::new()),
        ("sentinel-pass", String::new()),
    ]
}

/// SENTINEL CONFIG GET pattern | SET name value
fn config(args: Args<'_>, announced_port: Option<u16>, out: &mut RespSink) -> Outcome {
    let rows = configuration(announced_port);
    match args {
        [_, _, get, pattern] if get.eq_ignore_ascii_case(b"get") => {
            let shown: Vec<_> =
                rows.iter().filter(|(name, _)| glob::matches(pattern, name.as_bytes(), true)).collect();
            out.map(shown.len());
            for (name, value) in shown {
                out.bulk(name.as_bytes());
                out.bulk(value.as_bytes());
            }
            Ok(())
        }
        [_, _, set, name, value] if set.eq_ignore_ascii_case(b"set") => {
            let row = rows.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name));
            let Some((known, current)) = row else {
                return Err(Error::quoting("ERR Invalid argument '", name, "' to SENTINEL CONFIG SET"));
            };
            let is_flag = known.ends_with("hostnames");
            let is_yes_or_no = value.eq_ignore_ascii_case(b"yes") || value.eq_ignore_ascii_case(b"no");
            if is_flag && !is_yes_or_no || *known == "announce-port" && integer(value).is_err() {
                let after = format!("' to SENTINEL CONFIG SET '{known}'");
                return Err(Error::quoting("ERR Invalid value '", value, &after));
            }
            if !value.eq_ignore_ascii_case(current.as_bytes()) {
                return Err(Error::owned(format!(
                    "ERR '{known}' cannot be changed: what is announced follows from the servers' announce-host and sentinel-announce-port"
                )));
            }
            out.ok();
            Ok(())
        }
        _ => Err(Error::new("ERR Only SENTINEL CONFIG GET <option> / SET <option> <value> are supported.")),
    }
}

/// SENTINEL INFO-CACHE name …: servers do not ask each other for INFO, so there is none.
fn info_cache(args: Args<'_>, scene: Option<&Scene>, out: &mut RespSink) {
    let masters: Vec<Master<'_>> =
        args[2..].iter().filter_map(|name| scene.and_then(|scene| scene.master(name))).collect();
    out.map(masters.len());
    for master in masters {
        out.bulk(master.name().as_bytes());
        out.array(1 + master.slaves().count());
        for replica in std::iter::once(master.replica).chain(master.slaves()) {
            out.array(2);
            out.int(i64::try_from(master.scene.heard_ms(replica.server)).unwrap_or(i64::MAX));
            out.null();
        }
    }
}

/// SENTINEL SIMULATE-FAILURE flag …
fn simulate_failure(args: Args<'_>, out: &mut RespSink) -> Outcome {
    // The arity says that there is one, and whatever the first one is, it settles the matter.
    match args[2].to_ascii_lowercase().as_slice() {
        b"help" => {
            out.array(2);
            out.bulk(b"crash-after-election");
            out.bulk(b"crash-after-promotion");
            Ok(())
        }
        b"crash-after-election" | b"crash-after-promotion" => Err(Error::new(
            "ERR SENTINEL SIMULATE-FAILURE is not supported: kill the process to see what happens",
        )),
        _ => Err(Error::new("ERR Unknown failure simulation specified")),
    }
}

/// SENTINEL DEBUG: Redis Sentinel's timers, as far as there is something like them.
fn debug(args: Args<'_>, scene: Option<&Scene>, out: &mut RespSink) -> Outcome {
    if let Some(option) = args.get(2) {
        return Err(Error::quoting(
            "ERR Unknown option or number of arguments for SENTINEL DEBUG '",
            option,
            "'",
        ));
    }
    const SIGN_OF_LIFE_MS: u64 = 200;
    let silent_after_ms = scene.map_or(0, |scene| super::scene::millis(scene.silent_after));
    let rows = [
        ("INFO-PERIOD", SIGN_OF_LIFE_MS),
        ("PING-PERIOD", SIGN_OF_LIFE_MS),
        ("ASK-PERIOD", SIGN_OF_LIFE_MS),
        ("PUBLISH-PERIOD", SIGN_OF_LIFE_MS),
        ("DEFAULT-DOWN-AFTER", silent_after_ms),
        ("DEFAULT-FAILOVER-TIMEOUT", 180_000),
        ("TILT-TRIGGER", 0),
        ("TILT-PERIOD", 0),
        ("SLAVE-RECONF-TIMEOUT", 0),
        ("MIN-LINK-RECONNECT-PERIOD", 0),
        ("ELECTION-TIMEOUT", silent_after_ms),
        ("SCRIPT-MAX-RUNTIME", 0),
        ("SCRIPT-RETRY-DELAY", 0),
    ];
    out.map(rows.len());
    for (name, value) in rows {
        out.bulk(name.as_bytes());
        out.bulk(value.to_string().as_bytes());
    }
    Ok(())
}

/// Redis 7.0.15's.
const HELP: &[&str] = &[
    "SENTINEL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CKQUORUM <master-name>",
    "    Check if the current Sentinel configuration is able to reach the quorum",
    "    needed to failover a master and the majority needed to authorize the",
    "    failover.",
    "CONFIG SET <param> <value>",
    "    Set a global Sentinel configuration parameter.",
    "CONFIG GET <param>",
    "    Get global Sentinel configuration parameter.",
    "DEBUG [<param> <value> ...]",
    "    Show a list of configurable time parameters and their values (milliseconds).",
    "    Or update current configurable parameters values (one or more).",
    "GET-MASTER-ADDR-BY-NAME <master-name>",
    "    Return the ip and port number of the master with that name.",
    "FAILOVER <master-name>",
    "    Manually failover a master node without asking for agreement from other",
    "    Sentinels",
    "FLUSHCONFIG",
    "    Force Sentinel to rewrite its configuration on disk, including the current",
    "    Sentinel state.",
    "INFO-CACHE <master-name>",
    "    Return last cached INFO output from masters and all its replicas.",
    "IS-MASTER-DOWN-BY-ADDR <ip> <port> <current-epoch> <runid>",
    "    Check if the master specified by ip:port is down from current Sentinel's",
    "    point of view.",
    "MASTER <master-name>",
    "    Show the state and info of the specified master.",
    "MASTERS",
    "    Show a list of monitored masters and their state.",
    "MONITOR <name> <ip> <port> <quorum>",
    "    Start monitoring a new master with the specified name, ip, port and quorum.",
    "MYID",
    "    Return the ID of the Sentinel instance.",
    "PENDING-SCRIPTS",
    "    Get pending scripts information.",
    "REMOVE <master-name>",
    "    Remove master from Sentinel's monitor list.",
    "REPLICAS <master-name>",
    "    Show a list of replicas for this master and their state.",
    "RESET <pattern>",
    "    Reset masters for specific master name matching this pattern.",
    "SENTINELS <master-name>",
    "    Show a list of Sentinel instances for this master and their state.",
    "SET <master-name> <option> <value> [<option> <value> ...]",
    "    Set configuration parameters for certain masters.",
    "SIMULATE-FAILURE [CRASH-AFTER-ELECTION] [CRASH-AFTER-PROMOTION] [HELP]",
    "    Simulate a Sentinel crash.",
    "HELP",
    "    Prints this help.",
];

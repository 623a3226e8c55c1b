//! One client's session, without IO: what it has told us, and the commands about the connection, the server
//! and the cluster.
//!
//! Contract: [`Session::on_request`] says what to do with a request; a command of the session's own is then run
//! by [`Session::serve`], which writes one reply and says how the connection goes on. Commands that look at the
//! data or at the cluster are to be served after everything before them has been answered
//! ([`Action::Serve`]'s `in_order`), so that `SET` and then `INFO` agree.
//!
//! Left out: users (there is one, `default`), MULTI, subscriptions.

mod client;
mod cluster;
mod debug;
mod handover;
pub(crate) mod info;
mod latency;
mod memory;
mod persistence;
mod server;
mod slowlog;
#[cfg(test)]
mod tests;

pub(crate) use handover::Asked;

use crate::clients::Client;
use crate::gate::{Held, Holder};
use crate::port::{Place, Port};
use crate::resp::{Protocol, RespSink};
use kvorum_cluster::{Mode, ReplicaId};
use kvorum_keyspace::{Args, Command, Error, Flags, Outcome, Run, Sink, introspect, lookup, unknown_command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) const NO_AUTH: Error = Error::new("NOAUTH Authentication required.");
const WRONG_PASSWORD: Error = Error::new("WRONGPASS invalid username-password pair or user is disabled.");
/// Redis takes monitors for a kind of replica.
const MONITOR_ON_KEYSPACE: Error = Error::new("ERR Replica can't interact with the keyspace");
const HELLO_NO_AUTH: Error = Error::new(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option \
     can be used to authenticate the client and select the RESP protocol version at the same time",
);

/// State of one client.
#[derive(Debug)]
pub(crate) struct Session {
    /// The selected database.
    pub(crate) db: u16,
    /// Whether READONLY was given: reads may be served by a follower.
    pub(crate) readonly: bool,
    /// Whether CLIENT NO-TOUCH is on.
    pub(crate) no_touch: bool,
    /// Whether the client gave the password, or came when none was asked for.
    authenticated: bool,
    protocol: Protocol,
    name: Vec<u8>,
    replies: Replies,
    /// Whether there are too many of the client's name.
    refused: bool,
    /// Whether the client asked for everything that the port runs.
    monitors: bool,
    /// Whether the reply to the current request is wanted.
    muted: bool,
    client: Arc<Client>,
}

/// CLIENT REPLY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Replies {
    On,
    Off,
    /// Off for the next request only.
    SkipNext,
}

/// What to do with a request.
#[derive(Debug)]
pub(crate) enum Action {
    /// Run it on the keyspace.
    Run(&'static Command),
    /// Let [`Session::serve`] answer it.
    Serve {
        /// The command, or its subcommand.
        command: &'static Command,
        /// Only when everything before it has been answered.
        in_order: bool,
    },
    /// It cannot run: the error is its reply.
    Refuse {
        /// The command, when there is one of that name.
        command: Option<&'static Command>,
        /// Why.
        error: Error,
    },
    /// Close the connection without a word: it is no client of ours.
    Close,
}

/// How a connection goes on after a command of the session's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// With the next request.
    Continue,
    /// Not at all, once all replies are written.
    Close,
    /// With a reply that takes time: how many replicas have everything so far.
    Wait {
        /// Do not wait for more replicas than these.
        replicas: usize,
        /// Do not wait longer; `None` for as long as it takes.
        patience: Option<Duration>,
        /// WAITAOF: wait for disks, the own one included when this is `true`, and say of each kind how many have everything.
        on_disk: Option<bool>,
    },
    /// With a snapshot of the data.
    Save {
        /// The reply was given already.
        in_background: bool,
    },
    /// With `OK` when another replica leads, or with the reason why it does not.
    Handover {
        /// The replica; `None` for the follower that lags least.
        to: Option<ReplicaId>,
        /// By which command.
        asked: Asked,
    },
    /// Not until the port closes, which ends the connection without a reply; or with an error, when somebody calls the shutdown off.
    Shutdown,
    /// With `OK`, when this time is over. Whoever returns it closes the port's [`Gate`](crate::gate::Gate) first, if others
    /// are to stand still, too.
    Sleep {
        /// For how long.
        duration: Duration,
    },
}

impl Session {
    /// A client that has not said anything yet.
    pub(crate) fn new(client: Arc<Client>, port: &Port) -> Session {
        Session {
            db: 0,
            readonly: false,
            no_touch: false,
            authenticated: !port.settings.requirepass.is_set(),
            protocol: Protocol::Resp2,
            name: Vec::new(),
            replies: Replies::On,
            refused: false,
            monitors: false,
            muted: false,
            client,
        }
    }

    /// The version of RESP to answer in.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the client wants no reply to the request that began or was served last.
    pub(crate) fn is_muted(&self) -> bool {
        self.muted
    }

    /// Whether the client is told what the port runs.
    pub(crate) fn monitors(&self) -> bool {
        self.monitors
    }

    /// Whether the client wants the reply to a request that it did not get to send whole.
    pub(crate) fn wants_replies(&self) -> bool {
        self.replies == Replies::On
    }

    /// A request begins: is its reply wanted?
    pub(crate) fn begin(&mut self) {
        self.muted = match self.replies {
            Replies::On => false,
            Replies::Off => true,
            Replies::SkipNext => {
                self.replies = Replies::On;
                true
            }
        };
    }

    /// A request that began before is taken up again, with what [`begin`](Session::begin) found then.
    pub(crate) fn resume(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Whether the client has to give the password before anything else. Who came while there was none stays in,
    /// and nobody has to once there is none any more.
    pub(crate) fn lacks_password(&self, port: &Port) -> bool {
        !self.authenticated && port.settings.requirepass.is_set()
    }

    /// Looks at a request. `args` is not empty.
    pub(crate) fn on_request(&self, args: Args<'_>, port: &Port) -> Action {
        // What a browser that was tricked into talking to us says, as Redis looks for it.
        if args[0].eq_ignore_ascii_case(b"post") || args[0].eq_ignore_ascii_case(b"host:") {
            return Action::Close;
        }
        let Some(top) = lookup(args[0]) else {
            return Action::Refuse { command: None, error: unknown_command(args) };
        };
        let command = match top.resolve(args) {
            Ok(command) => command,
            Err(error) => return Action::Refuse { command: None, error },
        };
        if let Err(error) = command.check_arity(args) {
            return Action::Refuse { command: Some(command), error };
        }
        if self.lacks_password(port) && !command.flags.has(Flags::NO_AUTH) {
            return Action::Refuse { command: Some(command), error: NO_AUTH };
        }
        if self.monitors && matches!(command.run, Run::Read(_) | Run::Write(_)) {
            return Action::Refuse { command: Some(command), error: MONITOR_ON_KEYSPACE };
        }
        if top.name == "debug" && !port.settings.debug_command.allows(self.client.peer.ip()) {
            return Action::Refuse { command: Some(command), error: debug::NOT_ALLOWED };
        }
        match command.run {
            Run::Read(_) | Run::Write(_) => Action::Run(command),
            Run::Server => {
                Action::Serve { command, in_order: is_in_order(top) || command.name == "client|list" }
            }
        }
    }

    /// Answers a command of the session's own; one reply goes to `out`, except where the answer is
    /// [`Next::Wait`] or the client asked for none.
    pub(crate) fn serve(
        &mut self,
        command: &'static Command,
        args: Args<'_>,
        place: Place<'_>,
        out: &mut RespSink,
    ) -> Next {
        match self.try_serve(command, args, place, out) {
            Ok(next) => next,
            Err(error) => {
                out.error(error.text());
                // One that is too many of its name goes once it has read why.
                if self.refused { Next::Close } else { Next::Continue }
            }
        }
    }

    fn try_serve(
        &mut self,
        command: &'static Command,
        args: Args<'_>,
        place: Place<'_>,
        out: &mut RespSink,
    ) -> Result<Next, Error> {
        match command.name {
            "ping" => ping(args, out)?,
            "echo" => out.bulk(args[1]),
            "quit" => {
                out.ok();
                return Ok(Next::Close);
            }
            "select" => self.select(args, place, out)?,
            "hello" => self.hello(args, place, out)?,
            "auth" => {
                self.auth(args, place.port)?;
                out.ok();
            }
            "reset" => {
                self.reset(place.port);
                out.set_protocol(self.protocol);
                out.simple("RESET");
            }
            "readonly" | "readwrite" | "asking" => self.routing(command, place, out)?,
            "debug|sleep" => return Ok(sleep(args, place.port)),
            "monitor" => self.monitor(place, out),
            "time" => server::time(out),
            "info" => info::info(args, place, out),
            "role" => server::role(place, out),
            "wait" => return server::wait(args, place),
            "waitaof" => return server::wait_on_disk(args, place),
            "shutdown" => return server::shutdown(args, place, out),
            "failover" => return handover::failover(args, place),
            "cluster|failover" if place.mode() == Mode::Cluster => {
                return handover::cluster_failover(args, place);
            }
            "replicaof" | "slaveof" => server::replica_of(args, place, out)?,
            "lolwut" => server::lolwut(args, out)?,
            "lastsave" => persistence::last_save(place, out),
            "save" => return persistence::save(place),
            "bgsave" => return persistence::save_in_background(args, place, out),
            "bgrewriteaof" => return persistence::rewrite_log(place, out),
            "debug|reload" => return persistence::reload(&args[2..], place, out),
            "debug|loadaof" => return persistence::reload(&[], place, out),
            name if name.starts_with("debug") => debug::debug(command, args, place, out)?,
            name if name.starts_with("memory") => memory::memory(command, place, out),
            name if name.starts_with("module") => server::module(command, out)?,
            name if name.starts_with("client") => return self.client_command(command, args, place, out),
            name if name.starts_with("command") => introspect::command(args, out)?,
            name if name.starts_with("config") => server::config(command, args, place, out)?,
            name if name.starts_with("slowlog") => slowlog::slowlog(command, args, place, out)?,
            name if name.starts_with("latency") => latency::latency(command, args, place, out)?,
            name if name.starts_with("cluster") => cluster::cluster(command, args, self.db, place, out)?,
            name => {
                // A row without a function: say so rather than stay silent.
                return Err(Error::owned(format!("ERR '{name}' is not supported")));
            }
        }
        Ok(Next::Continue)
    }

    fn select(&mut self, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
        const RANGE: Error =
            Error::new("ERR value is out of range, value must between -2147483648 and 2147483647");
        let index = i32::try_from(integer(args[1])?).map_err(|_| RANGE)?;
        let databases = place.databases();
        if place.mode() == Mode::Cluster && databases == 1 && index != 0 {
            return Err(Error::new("ERR SELECT is not allowed in cluster mode"));
        }
        match u16::try_from(index) {
            Ok(db) if db < databases => {
                self.db = db;
                self.client.update(|profile| profile.db = db);
                out.ok();
                Ok(())
            }
            _ => Err(Error::new("ERR DB index is out of range")),
        }
    }

    /// HELLO [protover [AUTH user password] [SETNAME name]]
    fn hello(&mut self, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
        let mode = match place.mode() {
            Mode::Cluster => "cluster",
            Mode::Standalone => "standalone",
        };
        let role = if place.is_master() { "master" } else { "replica" };
        self.greet(args, place.port, (mode, Some(role)), out)
    }

    /// HELLO of a port that works in that mode and, where that means something, has that role.
    pub(crate) fn greet(
        &mut self,
        args: Args<'_>,
        port: &Port,
        (mode, role): (&str, Option<&str>),
        out: &mut RespSink,
    ) -> Outcome {
        let protocol = match args.get(1) {
            None => self.protocol,
            Some(version) => match integer(version) {
                Ok(2) => Protocol::Resp2,
                Ok(3) => Protocol::Resp3,
                Ok(_) => return Err(Error::new("NOPROTO unsupported protocol version")),
                Err(_) => {
                    return Err(Error::new("ERR Protocol version is not an integer or out of range"));
                }
            },
        };
        // As Redis: each takes effect at once, whatever becomes of those after it.
        let mut options = args.get(2..).unwrap_or_default();
        while let [option, rest @ ..] = options {
            options = if option.eq_ignore_ascii_case(b"auth") && rest.len() >= 2 {
                self.log_in(rest[0], rest[1], port)?;
                &rest[2..]
            } else if option.eq_ignore_ascii_case(b"setname") && !rest.is_empty() {
                client::check_name(rest[0], "Client names")?;
                self.set_name(rest[0], port)?;
                &rest[1..]
            } else {
                return Err(Error::quoting("ERR Syntax error in HELLO option '", option, "'"));
            };
        }
        // As Redis: not even when the password was taken away since.
        if !self.authenticated {
            return Err(HELLO_NO_AUTH);
        }
        self.set_protocol(protocol);
        out.set_protocol(protocol);
        out.map(6 + usize::from(role.is_some()));
        out.bulk(b"server");
        out.bulk(b"redis");
        out.bulk(b"version");
        out.bulk(crate::port::REDIS_VERSION.as_bytes());
        out.bulk(b"proto");
        out.int(protocol.number());
        out.bulk(b"id");
        out.int(i64::try_from(self.client.id).unwrap_or(i64::MAX));
        out.bulk(b"mode");
        out.bulk(mode.as_bytes());
        if let Some(role) = role {
            out.bulk(b"role");
            out.bulk(role.as_bytes());
        }
        out.bulk(b"modules");
        out.array(0);
        Ok(())
    }

    fn auth(&mut self, args: Args<'_>, port: &Port) -> Outcome {
        match args {
            [_, password] if port.settings.requirepass.is_set() => self.log_in(b"default", password, port),
            [_, _] => Err(Error::new(
                "ERR AUTH <password> called without any password configured for the default user. \
                 Are you sure your configuration is correct?",
            )),
            [_, user, password] => self.log_in(user, password, port),
            _ => Err(Error::SYNTAX),
        }
    }

    /// Who fails stays what it was.
    fn log_in(&mut self, user: &[u8], password: &[u8], port: &Port) -> Outcome {
        let admitted = port.settings.requirepass.admits(password);
        if user != b"default" || !admitted {
            return Err(WRONG_PASSWORD);
        }
        self.authenticated = true;
        Ok(())
    }

    /// Who asks twice is not answered, as in Redis.
    fn monitor(&mut self, place: Place<'_>, out: &mut RespSink) {
        if self.monitors {
            return;
        }
        self.monitors = true;
        self.client.update(|profile| profile.monitor = true);
        place.port.monitors.enter(&self.client);
        out.ok();
    }

    pub(crate) fn reset(&mut self, port: &Port) {
        self.monitors = false;
        port.monitors.leave(&self.client);
        self.client.feed.take();
        self.authenticated = !port.settings.requirepass.is_set();
        self.db = 0;
        self.readonly = false;
        self.replies = Replies::On;
        self.muted = false;
        self.set_protocol(Protocol::Resp2);
        // Nobody is refused a name that is none.
        let _ = self.set_name(b"", port);
        self.no_touch = false;
        self.client.update(|profile| {
            profile.db = 0;
            profile.readonly = false;
            profile.no_evict = false;
            profile.no_touch = false;
            profile.monitor = false;
        });
    }

    /// READONLY, READWRITE and ASKING: how keys of other nodes are to be treated.
    fn routing(&mut self, command: &Command, place: Place<'_>, out: &mut RespSink) -> Outcome {
        if place.mode() == Mode::Standalone {
            return Err(cluster::DISABLED);
        }
        // No slot is ever on its way to another node yet, so ASKING has nothing to change.
        if command.name != "asking" {
            self.readonly = command.name == "readonly";
            self.client.update(|profile| profile.readonly = self.readonly);
        }
        out.ok();
        Ok(())
    }

    fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
        self.client.update(|profile| profile.protocol = protocol);
    }

    fn set_name(&mut self, name: &[u8], port: &Port) -> Result<(), Error> {
        let most = port.settings.maxclients.load(Ordering::Relaxed);
        let named = port.limits.rename(&port.settings.rules.read(), most, &self.name, name);
        if let Err(refusal) = named {
            self.refused = true;
            return Err(Error::new(refusal.text()));
        }
        self.name = name.to_vec();
        self.client.update(|profile| profile.name = name.to_vec());
        Ok(())
    }
}

/// Whether a command shows what commands before it may have changed, or has a reply too large to pile up behind
/// them.
fn is_in_order(top: &Command) -> bool {
    matches!(
        top.name,
        "info"
            | "config"
            | "cluster"
            | "role"
            | "wait"
            | "waitaof"
            | "time"
            | "command"
            | "slowlog"
            | "latency"
            | "memory"
            | "debug"
            | "save"
            | "bgsave"
            | "bgrewriteaof"
            | "lastsave"
            | "shutdown"
            | "failover"
    )
}

fn ping(args: Args<'_>, out: &mut RespSink) -> Outcome {
    match args {
        [_] => out.simple("PONG"),
        [_, text] => out.bulk(text),
        _ => return Err(Error::wrong_arity("ping")),
    }
    Ok(())
}

/// DEBUG SLEEP seconds: the port stands still as a Redis does whose one thread sleeps.
fn sleep(args: Args<'_>, port: &Port) -> Next {
    let seconds = std::str::from_utf8(args[2]).ok().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    port.gate.close(Holder::Sleep, Held::Requests, duration);
    Next::Sleep { duration }
}

/// A signed 64-bit integer, or Redis's error.
pub(crate) fn integer(text: &[u8]) -> Result<i64, Error> {
    let plain = text.strip_prefix(b"-").unwrap_or(text);
    let spelled = matches!(plain, [b'0'] | [b'1'..=b'9', ..]) && text != b"-0";
    std::str::from_utf8(text)
        .ok()
        .filter(|_| spelled)
        .and_then(|text| text.parse().ok())
        .ok_or(Error::NOT_AN_INTEGER)
}

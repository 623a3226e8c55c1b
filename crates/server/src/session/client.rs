//! CLIENT: what a connection says about itself, and what is known of the others.

use super::{Next, Replies, Session, integer};
use crate::clients::{Client, Unblock};
use crate::gate::{Held, Holder};
use crate::port::{Place, wall_time};
use crate::resp::RespSink;
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As Redis 7.0.15 has it, and what is newer behind it.
const HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CACHING (YES|NO)",
    "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
    "GETREDIR",
    "    Return the client ID we are redirecting to when tracking is enabled.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are:",
    "    * ADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made from the specified address",
    "    * LADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made to specified local address",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Kill connections by type.",
    "    * USER <username>",
    "      Kill connections authenticated by <username>.",
    "    * SKIPME (YES|NO)",
    "      Skip killing current connection (default: yes).",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Return clients of specified type.",
    "UNPAUSE",
    "    Stop the current client pause, resuming traffic.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Suspend all, or just write, clients for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
    "         [OPTIN] [OPTOUT] [NOLOOP]",
    "    Control server assisted client side caching.",
    "TRACKINGINFO",
    "    Report tracking status for the current connection.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "NO-TOUCH (ON|OFF)",
    "    Will not touch LRU/LFU stats when this mode is on.",
    "SETINFO <option> <value>",
    "    Set client meta attr. Options are:",
    "    * LIB-NAME: the client lib name.",
    "    * LIB-VER: the client lib version.",
    "HELP",
    "    Prints this help.",
];

const NO_TRACKING: Error = Error::new(
    "ERR CLIENT TRACKING is not supported yet: keys are not tracked, so nothing would be invalidated",
);
const NOT_TRACKING: Error = Error::new(
    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
);

impl Session {
    pub(super) fn client_command(
        &mut self,
        command: &Command,
        args: Args<'_>,
        place: Place<'_>,
        out: &mut RespSink,
    ) -> Result<Next, Error> {
        // A turn is noted at its end; who lists clients wants to find itself as it is.
        self.client.update(|profile| profile.command = command.name);
        match command.subname() {
            "id" => out.int(i64::try_from(self.client.id).unwrap_or(i64::MAX)),
            "getname" if self.name.is_empty() => out.null(),
            "getname" => out.bulk(&self.name),
            "setname" => {
                check_name(args[2], "Client names")?;
                self.set_name(args[2], place.port)?;
                out.ok();
            }
            "setinfo" => self.set_info(args, out)?,
            "info" => out.verbatim("txt", format!("{}\n", self.client.describe(Instant::now())).as_bytes()),
            "list" => list(args, place, out)?,
            "kill" => return self.kill(args, place, out),
            "no-evict" => {
                let on = on_or_off(args[2])?;
                self.client.update(|profile| profile.no_evict = on);
                out.ok();
            }
            "no-touch" => {
                let on = on_or_off(args[2])?;
                self.no_touch = on;
                self.client.update(|profile| profile.no_touch = on);
                out.ok();
            }
            "reply" => self.reply(args[2], out)?,
            "pause" => pause(args, place, out)?,
            "unpause" => {
                place.port.gate.open(Holder::Pause);
                out.ok();
            }
            "unblock" => unblock(args, place, out)?,
            // Nobody tracks keys, so these are true.
            "getredir" => out.int(-1),
            "trackinginfo" => {
                out.map(3);
                out.bulk(b"flags");
                out.set(1);
                out.bulk(b"off");
                out.bulk(b"redirect");
                out.int(-1);
                out.bulk(b"prefixes");
                out.array(0);
            }
            "tracking" if args[2].eq_ignore_ascii_case(b"off") => out.ok(),
            "tracking" if args[2].eq_ignore_ascii_case(b"on") => return Err(NO_TRACKING),
            "tracking" => return Err(Error::SYNTAX),
            "caching" => return Err(NOT_TRACKING),
            "help" => out.help(HELP),
            other => {
                let name = other.to_ascii_uppercase();
                return Err(Error::owned(format!("ERR CLIENT {name} is not supported")));
            }
        }
        Ok(Next::Continue)
    }

    fn set_info(&mut self, args: Args<'_>, out: &mut RespSink) -> Outcome {
        let value = args[3].to_vec();
        if args[2].eq_ignore_ascii_case(b"lib-name") {
            check_name(args[3], "lib-name")?;
            self.client.update(|profile| profile.lib_name = value);
        } else if args[2].eq_ignore_ascii_case(b"lib-ver") {
            check_name(args[3], "lib-ver")?;
            self.client.update(|profile| profile.lib_ver = value);
        } else {
            return Err(Error::quoting("ERR Unrecognized option '", args[2], "'"));
        }
        out.ok();
        Ok(())
    }

    fn reply(&mut self, mode: &[u8], out: &mut RespSink) -> Outcome {
        if mode.eq_ignore_ascii_case(b"on") {
            self.replies = Replies::On;
            self.muted = false;
            out.ok();
        } else if mode.eq_ignore_ascii_case(b"off") {
            self.replies = Replies::Off;
            self.muted = true;
        } else if mode.eq_ignore_ascii_case(b"skip") {
            if self.replies == Replies::On {
                self.replies = Replies::SkipNext;
            }
            self.muted = true;
        } else {
            return Err(Error::SYNTAX);
        }
        Ok(())
    }

    fn kill(&self, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Result<Next, Error> {
        let (filter, by_address) = match &args[2..] {
            [address] => (Filter { addr: Some(address), skip_me: false, ..Filter::default() }, true),
            options => (Filter::parse(options)?, false),
        };
        let mut killed = 0;
        let mut next = Next::Continue;
        for client in
            place.port.clients.all().into_iter().filter(|client| filter.matches(client, &self.client))
        {
            killed += 1;
            if client.id == self.client.id {
                // The reply comes first.
                next = Next::Close;
            } else {
                client.kill();
            }
        }
        match (by_address, killed) {
            (true, 0) => return Err(Error::new("ERR No such client")),
            (true, _) => out.ok(),
            (false, killed) => out.int(killed),
        }
        Ok(next)
    }
}

/// Options of CLIENT KILL.
#[derive(Debug)]
struct Filter<'a> {
    addr: Option<&'a [u8]>,
    laddr: Option<&'a [u8]>,
    id: Option<u64>,
    normal: bool,
    default_user: bool,
    skip_me: bool,
}

impl Default for Filter<'_> {
    fn default() -> Self {
        Filter { addr: None, laddr: None, id: None, normal: true, default_user: true, skip_me: true }
    }
}

impl<'a> Filter<'a> {
    fn parse(options: &[&'a [u8]]) -> Result<Filter<'a>, Error> {
        let mut filter = Filter::default();
        for option in options.chunks(2) {
            let &[name, value] = option else { return Err(Error::SYNTAX) };
            match name.to_ascii_lowercase().as_slice() {
                b"id" => {
                    let id = integer(value).ok().and_then(|id| u64::try_from(id).ok()).filter(|&id| id > 0);
                    filter.id = Some(id.ok_or(Error::new("ERR client-id should be greater than 0"))?);
                }
                b"addr" => filter.addr = Some(value),
                b"laddr" => filter.laddr = Some(value),
                b"type" => filter.normal = is_normal(value)?,
                b"user" if value == b"default" => filter.default_user = true,
                b"user" => return Err(Error::quoting("ERR No such user '", value, "'")),
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => filter.skip_me = true,
                b"skipme" if value.eq_ignore_ascii_case(b"no") => filter.skip_me = false,
                _ => return Err(Error::SYNTAX),
            }
        }
        Ok(filter)
    }

    fn matches(&self, client: &Client, me: &Arc<Client>) -> bool {
        self.normal
            && self.default_user
            && self.addr.is_none_or(|addr| addr == client.peer.to_string().as_bytes())
            && self.laddr.is_none_or(|addr| addr == client.local.to_string().as_bytes())
            && self.id.is_none_or(|id| id == client.id)
            && !(self.skip_me && client.id == me.id)
    }
}

/// CLIENT LIST [TYPE type] [ID id …]
fn list(args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let all = place.port.clients.all();
    let shown = match &args[2..] {
        [] => all,
        [option, kind] if option.eq_ignore_ascii_case(b"type") => {
            if is_normal(kind)? {
                all
            } else {
                Vec::new()
            }
        }
        [option, ids @ ..] if option.eq_ignore_ascii_case(b"id") && !ids.is_empty() => {
            let invalid = |_| Error::new("ERR Invalid client ID");
            let ids = ids.iter().map(|id| integer(id)).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
            // In the order they were asked for, as often as they were.
            ids.into_iter()
                .filter_map(|id| all.iter().find(|client| u64::try_from(id) == Ok(client.id)).cloned())
                .collect()
        }
        _ => return Err(Error::SYNTAX),
    };
    let now = Instant::now();
    let lines: String = shown.iter().map(|client| client.describe(now) + "\n").collect();
    out.verbatim("txt", lines.as_bytes());
    Ok(())
}

/// CLIENT PAUSE milliseconds [WRITE|ALL]
fn pause(args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let what = match args.get(3) {
        None => Held::Commands,
        Some(_) if args.len() > 4 => return Err(Error::unknown_subcommand_or_arity("client", args[1])),
        Some(mode) if mode.eq_ignore_ascii_case(b"write") => Held::Writes,
        Some(mode) if mode.eq_ignore_ascii_case(b"all") => Held::Commands,
        Some(_) => return Err(Error::new("ERR CLIENT PAUSE mode must be WRITE or ALL")),
    };
    let millis = integer(args[2]).map_err(|_| Error::new("ERR timeout is not an integer or out of range"))?;
    let millis = u64::try_from(millis).map_err(|_| Error::new("ERR timeout is negative"))?;
    // Redis adds it to the time of day, and what does not fit is over at once.
    let now_ms = u64::try_from(wall_time().as_millis()).unwrap_or(u64::MAX);
    if millis <= i64::MAX.unsigned_abs().saturating_sub(now_ms) {
        place.port.gate.close(Holder::Pause, what, Duration::from_millis(millis));
    }
    out.ok();
    Ok(())
}

/// CLIENT UNBLOCK id [TIMEOUT|ERROR]
fn unblock(args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    if args.len() > 4 {
        return Err(Error::unknown_subcommand_or_arity("client", args[1]));
    }
    let how = match args.get(3) {
        None => Unblock::Timeout,
        Some(how) if how.eq_ignore_ascii_case(b"timeout") => Unblock::Timeout,
        Some(how) if how.eq_ignore_ascii_case(b"error") => Unblock::Error,
        Some(_) => return Err(Error::new("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
    };
    let id = integer(args[2])?;
    let client = u64::try_from(id).ok().and_then(|id| place.port.clients.get(id));
    out.int(i64::from(client.is_some_and(|client| client.unblock(how))));
    Ok(())
}

/// Whether clients of this type exist here: all are normal.
fn is_normal(kind: &[u8]) -> Result<bool, Error> {
    match kind.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"master" | b"replica" | b"slave" | b"pubsub" => Ok(false),
        _ => Err(Error::quoting("ERR Unknown client type '", kind, "'")),
    }
}

fn on_or_off(text: &[u8]) -> Result<bool, Error> {
    if text.eq_ignore_ascii_case(b"on") {
        Ok(true)
    } else if text.eq_ignore_ascii_case(b"off") {
        Ok(false)
    } else {
        Err(Error::SYNTAX)
    }
}

/// Names stand in the lines of CLIENT LIST, so they are printable and have no blanks.
pub(super) fn check_name(name: &[u8], what: &str) -> Outcome {
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Ok(());
    }
    Err(Error::owned(format!("ERR {what} cannot contain spaces, newlines or special characters.")))
}

//! Commands about the server and its part in the cluster: TIME, ROLE, WAIT, SHUTDOWN, CONFIG and their kind.

use super::{Next, integer};
use crate::port::{Place, REDIS_VERSION, wall_time};
use crate::resp::RespSink;
use crate::settings::{self, Extent};
use crate::stats::KeyspaceCounts;
use kvorum_cluster::{Mode, Replica as ReplicaSpec, Shard, View};
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink};
use std::time::Duration;
use tracing::info;

const CONFIG_HELP: &[&str] = &[
    "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET <pattern>",
    "    Return parameters matching the glob-like <pattern> and their values.",
    "SET <directive> <value>",
    "    Set the configuration <directive> to <value>.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
    "REWRITE",
    "    Rewrite the configuration file.",
    "HELP",
    "    Prints this help.",
];

/// Seconds and microseconds.
pub(super) fn time(out: &mut RespSink) {
    let now = wall_time();
    out.array(2);
    out.bulk(now.as_secs().to_string().as_bytes());
    out.bulk(now.subsec_micros().to_string().as_bytes());
}

/// The replica's role, and where the others are.
pub(super) fn role(place: Place<'_>, out: &mut RespSink) {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let Some(replica) = place.replica else {
        out.array(3);
        out.bulk(b"master");
        out.int(0);
        out.array(0);
        return;
    };
    let (view, me, standing) = (replica.view(), replica.id(), replica.standing());
    let Some((shard, _)) = view.topology.replica(me) else { return out.null_array() };
    let master = view.master(shard);
    if master.id == me {
        let others = others(&view, shard, master);
        out.array(3);
        out.bulk(b"master");
        out.int(number(standing.committed));
        out.array(others.len());
        for (other, host, port) in others {
            out.array(3);
            out.bulk(host.as_bytes());
            out.bulk(port.to_string().as_bytes());
            let offset = standing.matched.get(&other.id.0).copied().unwrap_or(0);
            out.bulk(offset.to_string().as_bytes());
        }
    } else {
        let (host, port) = view.topology.address(master.id).unwrap_or(("", 0));
        out.array(5);
        out.bulk(b"slave");
        out.bulk(host.as_bytes());
        out.int(i64::from(port));
        out.bulk(if standing.leader == Some(master.id.0) { b"connected" } else { b"connect" });
        out.int(number(standing.applied));
    }
}

/// The replicas of a shard that follow its master and are up, with their addresses.
pub(super) fn others<'a>(
    view: &'a View,
    shard: &'a Shard,
    master: &ReplicaSpec,
) -> Vec<(&'a ReplicaSpec, &'a str, u16)> {
    let followers = shard.replicas.iter().filter(|other| other.id != master.id && view.is_up(other));
    followers
        .filter_map(|other| {
            let (host, port) = view.topology.address(other.id)?;
            Some((other, host, port))
        })
        .collect()
}

/// WAIT numreplicas timeout-ms: waiting itself is the connection's part.
pub(super) fn wait(args: Args<'_>, place: Place<'_>) -> Result<Next, Error> {
    if !place.is_master() {
        return Err(Error::new(
            "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is configured \
             to be writable (which is not the default) writes to replicas are just local and are not propagated.",
        ));
    }
    let replicas = integer(args[1])?;
    let replicas = usize::try_from(replicas).unwrap_or(0);
    Ok(Next::Wait { replicas, patience: patience(args[2])?, on_disk: None })
}

/// WAITAOF numlocal numreplicas timeout-ms
pub(super) fn wait_on_disk(args: Args<'_>, place: Place<'_>) -> Result<Next, Error> {
    let local = match integer(args[1])? {
        local @ (0 | 1) => local == 1,
        _ => return Err(Error::new("ERR value is out of range, value must between 0 and 1")),
    };
    let replicas = integer(args[2]).ok().and_then(|replicas| usize::try_from(replicas).ok());
    let replicas = replicas.ok_or(Error::new("ERR value is out of range, must be positive"))?;
    let patience = patience(args[3])?;
    if !place.is_master() {
        return Err(Error::new(
            "ERR WAITAOF cannot be used with replica instances. Please also note that writes to replicas are just local and \
             are not propagated.",
        ));
    }
    Ok(Next::Wait { replicas, patience, on_disk: Some(local) })
}

/// A time to wait in milliseconds; 0 for as long as it takes.
fn patience(text: &[u8]) -> Result<Option<Duration>, Error> {
    let timeout = integer(text).map_err(|_| Error::new("ERR timeout is not an integer or out of range"))?;
    let timeout = u64::try_from(timeout).map_err(|_| Error::new("ERR timeout is negative"))?;
    Ok((timeout > 0).then(|| Duration::from_millis(timeout)))
}

/// SHUTDOWN [NOSAVE | SAVE] [NOW] [FORCE] [ABORT]: the whole process, in order, as SIGTERM does it. Everything acknowledged is in
/// the log, so the options about saving and waiting change nothing.
pub(super) fn shutdown(args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Result<Next, Error> {
    let (mut save, mut nosave, mut abort) = (false, false, false);
    for option in &args[1..] {
        match option.to_ascii_lowercase().as_slice() {
            b"save" => save = true,
            b"nosave" => nosave = true,
            b"abort" => abort = true,
            b"now" | b"force" => {}
            _ => return Err(Error::SYNTAX),
        }
    }
    if save && nosave || abort && args.len() > 2 {
        return Err(Error::SYNTAX);
    }
    if !abort {
        info!("a client asked for the shutdown");
        place.port.control.ask();
        return Ok(Next::Shutdown);
    }
    if !place.port.control.withdraw() {
        return Err(Error::new("ERR No shutdown in progress."));
    }
    out.ok();
    Ok(Next::Continue)
}

/// REPLICAOF host port | NO ONE: who replicates whom is Raft's business.
pub(super) fn replica_of(args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    if place.mode() == Mode::Cluster {
        return Err(Error::new("ERR REPLICAOF not allowed in cluster mode."));
    }
    if args[1].eq_ignore_ascii_case(b"no") && args[2].eq_ignore_ascii_case(b"one") {
        if !place.is_master() {
            return Err(Error::new("ERR REPLICAOF NO ONE is not supported: replicas elect who leads"));
        }
        // So it is already.
        out.ok();
        return Ok(());
    }
    let port = integer(args[2]).ok().and_then(|port| u16::try_from(port).ok());
    if port.is_none() {
        return Err(Error::new("ERR Invalid master port"));
    }
    Err(Error::new("ERR REPLICAOF is not supported: `kvorum cluster create` says which servers replicate"))
}

/// LOLWUT: Redis 7 has no new one of its own.
pub(super) fn lolwut(args: Args<'_>, out: &mut RespSink) -> Outcome {
    if let [_, option, version, sizes @ ..] = args
        && option.eq_ignore_ascii_case(b"version")
    {
        // What the pictures of these versions are made from.
        let sizes_read = match integer(version)? {
            5 => 3,
            6 => 2,
            _ => 0,
        };
        sizes.iter().take(sizes_read).try_for_each(|size| integer(size).map(drop))?;
    }
    out.verbatim("txt", format!("Redis ver. {REDIS_VERSION}\n").as_bytes());
    Ok(())
}

const MODULE_HELP: &[&str] = &[
    "MODULE <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "LIST",
    "    Return a list of loaded modules.",
    "LOAD <path> [<arg> ...]",
    "    Load a module library from <path>, passing to it any optional arguments.",
    "LOADEX <path> [[CONFIG NAME VALUE] [CONFIG NAME VALUE]] [ARGS ...]",
    "    Load a module library from <path>, while passing it module configurations and optional arguments.",
    "UNLOAD <name>",
    "    Unload a module.",
    "HELP",
    "    Prints this help.",
];

/// MODULE: there are none.
pub(super) fn module(command: &Command, out: &mut RespSink) -> Outcome {
    match command.subname() {
        "list" => out.array(0),
        "help" => out.help(MODULE_HELP),
        _ => {
            return Err(Error::new(
                "ERR MODULE command not allowed. If the enable-module-command option is set to \"local\", you can run it from \
                 a local connection, otherwise you need to set this option in the configuration file, and then restart the \
                 server.",
            ));
        }
    }
    Ok(())
}

pub(super) fn config(command: &Command, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    match command.subname() {
        "get" => settings::get(place, &args[2..], out),
        "set" => {
            settings::set(place, &args[2..])?;
            out.ok();
        }
        "resetstat" => {
            let counts = place.replica.map_or(KeyspaceCounts::default(), |replica| replica.keyspace().counts);
            place.port.stats.reset(counts);
            place.port.limits.reset_counts();
            out.ok();
        }
        "rewrite" => {
            settings::rewrite(place, Extent::Changed)?;
            out.ok();
        }
        "help" => out.help(CONFIG_HELP),
        _ => return Err(Error::SYNTAX),
    }
    Ok(())
}

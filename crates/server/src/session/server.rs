//! Commands about the server: TIME, ROLE, WAIT, CONFIG.

use super::{Next, integer};
use crate::port::{Place, wall_time};
use crate::resp::RespSink;
use crate::settings;
use crate::stats::KeyspaceCounts;
use kvorum_cluster::{Replica as ReplicaSpec, Shard, View};
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink};
use std::time::Duration;

/// A client does not end a server that is a part of a quorum.
pub(super) const NO_SHUTDOWN: Error = Error::new(
    "ERR SHUTDOWN is not supported: stop the server process instead (SIGTERM hands leaderships over)",
);

const CONFIG_HELP: &[&str] = &[
    "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET <pattern>",
    "    Return parameters matching the glob-like <pattern> and their values.",
    "SET <directive> <value>",
    "    Set the configuration <directive> to <value>.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
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
pub(super) fn wait(args: Args<'_>) -> Result<Next, Error> {
    let replicas = integer(args[1])?;
    let timeout =
        integer(args[2]).map_err(|_| Error::new("ERR timeout is not an integer or out of range"))?;
    let timeout = u64::try_from(timeout).map_err(|_| Error::new("ERR timeout is negative"))?;
    Ok(Next::Wait {
        replicas: usize::try_from(replicas).unwrap_or(0),
        patience: (timeout > 0).then(|| Duration::from_millis(timeout)),
    })
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
            return Err(Error::new(
                "ERR CONFIG REWRITE is not supported: change the server's configuration file instead",
            ));
        }
        "help" => out.help(CONFIG_HELP),
        _ => return Err(Error::SYNTAX),
    }
    Ok(())
}

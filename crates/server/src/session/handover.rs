//! FAILOVER and CLUSTER FAILOVER: the lead goes to another replica because a client asks for it.
//!
//! Redis answers when it has begun; here the answer comes when the other replica leads, or with the reason why it does not.
//! Raft does it, so nothing acknowledged is lost, and the words that tell Redis to accept losses (FORCE, TAKEOVER) change nothing.

use super::server::others;
use super::{Next, integer};
use crate::port::Place;
use kvorum_cluster::{Mode, ReplicaId};
use kvorum_keyspace::{Args, Error};
use kvorum_node::HandoverError;

/// Who asked for a handover, which decides about the words of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// FAILOVER.
    ByFailover {
        /// Whether a replica was named.
        named: bool,
    },
    /// CLUSTER FAILOVER.
    ByClusterFailover,
}

impl Asked {
    /// The error reply when the lead did not go over.
    pub(crate) fn refusal(self, why: &HandoverError) -> String {
        let text = match (self, why) {
            (Asked::ByFailover { .. }, HandoverError::InProgress) => "FAILOVER already in progress.",
            (Asked::ByFailover { .. }, HandoverError::NoLeader) => NOT_ON_A_REPLICA,
            (Asked::ByFailover { named: true }, HandoverError::NotReady) => {
                "FAILOVER target replica is not online."
            }
            (Asked::ByFailover { .. }, HandoverError::NoHeir) => NO_REPLICAS,
            (Asked::ByClusterFailover, HandoverError::NoLeader) => MASTER_DOWN,
            (_, why) => return format!("ERR the lead was not handed over: {why}"),
        };
        format!("ERR {text}")
    }
}

const NOT_ON_A_REPLICA: &str = "FAILOVER is not valid when server is a replica.";
const NO_REPLICAS: &str = "FAILOVER requires connected replicas.";
const MASTER_DOWN: &str = "Master is down or failed, its replicas elect another one by themselves";

/// FAILOVER [TO host port [FORCE]] [ABORT] [TIMEOUT ms]
pub(super) fn failover(args: Args<'_>, place: Place<'_>) -> Result<Next, Error> {
    if place.mode() == Mode::Cluster {
        return Err(Error::new(
            "ERR FAILOVER not allowed in cluster mode. Use CLUSTER FAILOVER command instead.",
        ));
    }
    if let [_, abort] = args
        && abort.eq_ignore_ascii_case(b"abort")
    {
        // One that runs takes milliseconds, and Raft does not take it back.
        return Err(Error::new("ERR No failover in progress."));
    }
    let mut options = &args[1..];
    let (mut force, mut timeout, mut target) = (false, None, None);
    while let [option, rest @ ..] = options {
        options = match (option.to_ascii_lowercase().as_slice(), rest) {
            (b"force", rest) if !force => {
                force = true;
                rest
            }
            (b"timeout", [value, rest @ ..]) if timeout.is_none() => {
                timeout = Some(integer(value)?);
                if timeout <= Some(0) {
                    return Err(Error::new("ERR FAILOVER timeout must be greater than 0"));
                }
                rest
            }
            (b"to", [host, port, rest @ ..]) if target.is_none() => {
                target = Some((*host, integer(port)?));
                rest
            }
            _ => return Err(Error::SYNTAX),
        };
    }
    if !place.is_master() {
        return Err(Error::owned(format!("ERR {NOT_ON_A_REPLICA}")));
    }
    let none = || Error::owned(format!("ERR {NO_REPLICAS}"));
    let replica = place.replica.ok_or_else(none)?;
    let (view, me) = (replica.view(), replica.id());
    let (shard, own) = view.topology.replica(me).ok_or_else(none)?;
    if others(&view, shard, own).is_empty() {
        return Err(none());
    }
    if force && (timeout.is_none() || target.is_none()) {
        return Err(Error::new(
            "ERR FAILOVER with force option requires both a timeout and target HOST and IP.",
        ));
    }
    let to = match target {
        None => None,
        Some((host, port)) => {
            let is_there = |id: ReplicaId| {
                view.topology.address(id).is_some_and(|(its_host, its_port)| {
                    its_host.as_bytes() == host && i64::from(its_port) == port
                })
            };
            let found = shard.replicas.iter().find(|other| other.id != me && is_there(other.id));
            Some(found.ok_or(Error::new("ERR FAILOVER target HOST and PORT is not a replica."))?.id)
        }
    };
    Ok(Next::Handover { to, asked: Asked::ByFailover { named: to.is_some() } })
}

/// CLUSTER FAILOVER [FORCE|TAKEOVER], on the replica that shall lead.
pub(super) fn cluster_failover(args: Args<'_>, place: Place<'_>) -> Result<Next, Error> {
    match args {
        [_, _] => {}
        [_, _, how] if how.eq_ignore_ascii_case(b"force") || how.eq_ignore_ascii_case(b"takeover") => {}
        [_, _, _] => return Err(Error::SYNTAX),
        _ => return Err(Error::unknown_subcommand_or_arity("cluster", args[1])),
    }
    if place.is_master() {
        return Err(Error::new("ERR You should send CLUSTER FAILOVER to a replica"));
    }
    let replica = place.replica.ok_or(Error::new("ERR I'm a replica but my master is unknown to me"))?;
    Ok(Next::Handover { to: Some(replica.id()), asked: Asked::ByClusterFailover })
}

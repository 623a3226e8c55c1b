//! CLUSTER: the cluster as this server knows it. What changes a cluster is an error that names the command to
//! use instead: the cluster decides about its slots and members itself.

use super::integer;
use crate::port::{Place, wall_time};
use crate::resp::RespSink;
use kvorum_cluster::{Mode, describe};
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink, Slot, slot_of};

/// What CLUSTER and its kin answer in standalone mode.
pub(super) const DISABLED: Error = Error::new("ERR This instance has cluster support disabled");

const HELP: &[&str] = &[
    "CLUSTER <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "COUNTKEYSINSLOT <slot>",
    "    Return the number of keys in <slot>.",
    "GETKEYSINSLOT <slot> <count>",
    "    Return key names stored by current node in a slot.",
    "INFO",
    "    Return information about the cluster.",
    "KEYSLOT <key>",
    "    Return the hash slot for <key>.",
    "MYID",
    "    Return the node id.",
    "NODES",
    "    Return cluster configuration seen by node. Output format:",
    "    <id> <ip:port> <flags> <master> <pings> <pongs> <epoch> <link> <slot> ...",
    "REPLICAS <node-id>",
    "    Return <node-id> replicas.",
    "SLOTS",
    "    Return information about slots range mappings. Each range is made of:",
    "    start, end, master and replicas IP addresses, ports and ids",
    "SHARDS",
    "    Return information about slot range mappings and the nodes associated with them.",
    "LINKS",
    "    Return information about all network links between this node and its peers.",
    "    Output format is an array where each array element is a map containing attributes of a link",
    "FAILOVER [FORCE|TAKEOVER]",
    "    Promote current replica node to being a master.",
    "HELP",
    "    Prints this help.",
];

pub(super) fn cluster(
    command: &Command,
    args: Args<'_>,
    db: u16,
    place: Place<'_>,
    out: &mut RespSink,
) -> Outcome {
    if place.mode() == Mode::Standalone && command.name != "cluster|help" {
        return Err(DISABLED);
    }
    match command.subname() {
        "keyslot" => out.int(i64::from(slot_of(args[2]).number())),
        "countkeysinslot" => {
            let slot = slot(args[2])?.ok_or(Error::new("ERR Invalid slot"))?;
            let count = place.replica.map_or(0, |replica| replica.count_in_slot(db, slot));
            out.int(i64::try_from(count).unwrap_or(i64::MAX));
        }
        "getkeysinslot" => {
            let (slot, limit) = (slot(args[2])?, integer(args[3])?);
            let (Some(slot), Ok(limit)) = (slot, usize::try_from(limit)) else {
                return Err(Error::new("ERR Invalid slot or number of keys"));
            };
            let keys = place.replica.map_or_else(Vec::new, |replica| replica.keys_in_slot(db, slot, limit));
            out.array(keys.len());
            keys.iter().for_each(|key| out.bulk(key));
        }
        // Servers talk to each other over connections that are not a client's business.
        "links" => out.array(0),
        "help" => out.help(HELP),
        other => match instead(other) {
            Some(instead) => {
                let name = other.to_ascii_uppercase();
                return Err(Error::owned(format!("ERR CLUSTER {name} is not supported: {instead}")));
            }
            None => topology(other, args, place, out)?,
        },
    }
    Ok(())
}

/// The subcommands that show the topology.
fn topology(subcommand: &str, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let Some(replica) = place.replica else { return without_cluster(subcommand, args, place, out) };
    let (view, me) = (replica.view(), replica.id());
    match subcommand {
        "myid" => {
            let (_, replica) =
                view.topology.replica(me).ok_or(Error::new("CLUSTERDOWN The cluster is down"))?;
            out.bulk(replica.node_id.to_string().as_bytes());
        }
        "nodes" => out.verbatim("txt", describe::nodes(&view, me, now_ms()).as_bytes()),
        "info" => out.verbatim("txt", describe::info(&view, me).as_bytes()),
        "slots" => describe::slots(&view, out),
        "shards" => describe::shards(&view, &|_| 0, out),
        "replicas" | "slaves" => describe::replicas(&view, args[2], me, now_ms(), out)?,
        _ => return Err(Error::unknown_subcommand("cluster", args[1])),
    }
    Ok(())
}

/// What an empty node of a Redis Cluster answers.
fn without_cluster(subcommand: &str, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let port = place.port;
    match subcommand {
        "myid" => out.bulk(port.server_hex.as_bytes()),
        "nodes" => {
            let line = format!(
                "{} :{}@{} myself,master - 0 0 0 connected\n",
                port.server_hex, port.number, port.peer_port
            );
            out.verbatim("txt", line.as_bytes());
        }
        "info" => out.verbatim(
            "txt",
            b"cluster_state:fail\r\ncluster_slots_assigned:0\r\ncluster_slots_ok:0\r\n\
              cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:0\r\n\
              cluster_current_epoch:0\r\ncluster_my_epoch:0\r\ncluster_stats_messages_sent:0\r\n\
              cluster_stats_messages_received:0\r\ntotal_cluster_links_buffer_limit_exceeded:0\r\n",
        ),
        "slots" | "shards" => out.array(0),
        "replicas" | "slaves" => {
            return Err(Error::quoting("ERR Unknown node ", args[2], ""));
        }
        _ => return Err(Error::unknown_subcommand("cluster", args[1])),
    }
    Ok(())
}

/// Why a subcommand that changes a cluster is refused, and what to use instead.
fn instead(subcommand: &str) -> Option<&'static str> {
    Some(match subcommand {
        "addslots" | "addslotsrange" => "the cluster owns its slots, use 'kvorum cluster create' to make one",
        "delslots" | "delslotsrange" | "flushslots" => {
            "the cluster owns its slots, use 'kvorum cluster status' to see where they are"
        }
        "setslot" => "slots do not move yet, use 'kvorum cluster status' to see where they are",
        "meet" => "servers are brought together by 'kvorum cluster create'",
        "forget" | "reset" => {
            "servers do not leave a cluster yet, use 'kvorum cluster status' to see which there are"
        }
        "replicate" => "replicas are placed by 'kvorum cluster create'",
        "bumpepoch" | "set-config-epoch" => {
            "epochs are Raft terms and grow by elections, use 'kvorum cluster status' to see them"
        }
        "count-failure-reports" => "failures are found by Raft, use 'kvorum cluster status' to see who is up",
        "saveconfig" => "the topology is saved with every change, use 'kvorum cluster status' to see it",
        _ => return None,
    })
}

/// The slot of that number; `None` when there is none.
fn slot(text: &[u8]) -> Result<Option<Slot>, Error> {
    Ok(u16::try_from(integer(text)?).ok().and_then(Slot::new))
}

fn now_ms() -> u64 {
    u64::try_from(wall_time().as_millis()).unwrap_or(u64::MAX)
}

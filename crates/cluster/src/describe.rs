//! What a cluster shows to its clients: CLUSTER NODES, SLOTS, SHARDS, INFO and REPLICAS of Redis 7.0.
//!
//! Contract: two servers with the same [`View`] show the same, apart from `myself` in NODES and `cluster_my_epoch`
//! in INFO. Each shard has exactly one master, and no address is shown both as a master and as a replica. A node's
//! epoch is the term of its shard's newest leader; `fail` comes from the topology, that is, from the meta group.
//!
//! A replica that joins is shown as Redis shows one that receives its first copy of the data: a disconnected slave in
//! NODES, `loading` in SHARDS, and not in SLOTS, so that clients read elsewhere until it has arrived.
//!
//! Left out: open slots (`[slot->-id]`), host names beside addresses, TLS ports.

use crate::{NodeId, Replica, ReplicaId, Shard, View};
use kvorum_keyspace::{Error, Outcome, SLOTS, Sink};
use std::fmt::Write;

/// CLUSTER NODES as replica `me` answers it: one line per replica, each with its line feed. `pong_recv_ms` is shown as
/// the time of every node's last pong, in milliseconds since the epoch; a constant keeps answers comparable.
pub fn nodes(view: &View, me: ReplicaId, pong_recv_ms: u64) -> String {
    let mut text = String::new();
    for (shard, replica) in view.topology.all_replicas() {
        text.push_str(&node_line(view, shard, replica, me, pong_recv_ms));
        text.push('\n');
    }
    text
}

/// CLUSTER REPLICAS: the lines of CLUSTER NODES for the replicas of the master `of` (as the client sent it).
pub fn replicas(view: &View, of: &[u8], me: ReplicaId, pong_recv_ms: u64, out: &mut dyn Sink) -> Outcome {
    let named = NodeId::parse(of).ok().and_then(|id| view.topology.replica_by_node_id(id));
    let Some((shard, replica)) = named else {
        return Err(Error::quoting("ERR Unknown node ", of, ""));
    };
    if view.master(shard).id != replica.id {
        return Err(Error::new("ERR The specified node is not a master"));
    }
    let slaves: Vec<&Replica> = shard.replicas.iter().filter(|other| other.id != replica.id).collect();
    out.array(slaves.len());
    for slave in slaves {
        out.bulk(node_line(view, shard, slave, me, pong_recv_ms).as_bytes());
    }
    Ok(())
}

fn node_line(view: &View, shard: &Shard, replica: &Replica, me: ReplicaId, pong_recv_ms: u64) -> String {
    let (host, port, peer_port) = address(view, shard, replica);
    let master = view.master(shard);
    let is_master = master.id == replica.id;
    let up = view.is_up(replica);
    let connected = up && (is_master || replica.stage.has_arrived());
    let mut line = format!(
        "{} {host}:{port}@{peer_port} {}{}{} ",
        replica.node_id,
        if replica.id == me { "myself," } else { "" },
        if is_master { "master" } else { "slave" },
        if up { "" } else { ",fail" },
    );
    let written = if is_master { line.write_str("-") } else { write!(line, "{}", master.node_id) }
        .and_then(|()| write!(line, " 0 {pong_recv_ms} {} ", epoch(view, shard)))
        .and_then(|()| line.write_str(if connected { "connected" } else { "disconnected" }));
    written.expect("a String takes everything");
    if is_master && !shard.slots.is_empty() {
        write!(line, " {}", shard.slots).expect("a String takes everything");
    }
    line
}

/// CLUSTER SLOTS: for each range its first and last slot, then the master and the replicas that are up and have the data.
pub fn slots(view: &View, out: &mut dyn Sink) {
    let mut ranges: Vec<_> = view
        .topology
        .shards
        .iter()
        .flat_map(|shard| shard.slots.ranges().map(move |range| (range, shard)))
        .collect();
    ranges.sort_unstable_by_key(|(range, _)| *range.start());
    out.array(ranges.len());
    for (range, shard) in ranges {
        let master = view.master(shard);
        let shown: Vec<&Replica> = master_first(view, shard)
            .filter(|replica| replica.id == master.id || view.is_up(replica) && replica.stage.has_arrived())
            .collect();
        out.array(2 + shown.len());
        out.int(i64::from(range.start().number()));
        out.int(i64::from(range.end().number()));
        for replica in shown {
            let (host, port, _) = address(view, shard, replica);
            out.array(4);
            out.bulk(host.as_bytes());
            out.int(i64::from(port));
            out.bulk(replica.node_id.to_string().as_bytes());
            out.array(0);
        }
    }
}

/// CLUSTER SHARDS. `offset` gives the replication offset to show for a replica, 0 when it is not known.
pub fn shards(view: &View, offset: &dyn Fn(ReplicaId) -> u64, out: &mut dyn Sink) {
    out.array(view.topology.shards.len());
    for shard in &view.topology.shards {
        out.map(2);
        out.bulk(b"slots");
        out.array(2 * shard.slots.ranges().count());
        for range in shard.slots.ranges() {
            out.int(i64::from(range.start().number()));
            out.int(i64::from(range.end().number()));
        }
        out.bulk(b"nodes");
        out.array(shard.replicas.len());
        let master = view.master(shard);
        for replica in master_first(view, shard) {
            let (host, port, _) = address(view, shard, replica);
            out.map(7);
            out.bulk(b"id");
            out.bulk(replica.node_id.to_string().as_bytes());
            out.bulk(b"port");
            out.int(i64::from(port));
            out.bulk(b"ip");
            out.bulk(host.as_bytes());
            out.bulk(b"endpoint");
            out.bulk(host.as_bytes());
            out.bulk(b"role");
            out.bulk(if replica.id == master.id { b"master" } else { b"replica" });
            out.bulk(b"replication-offset");
            out.int(i64::try_from(offset(replica.id)).unwrap_or(i64::MAX));
            out.bulk(b"health");
            out.bulk(match replica.stage {
                _ if !view.is_up(replica) => b"fail".as_slice(),
                stage if replica.id != master.id && !stage.has_arrived() => b"loading",
                _ => b"online",
            });
        }
    }
}

/// CLUSTER INFO as replica `me` answers it.
///
/// A slot is `ok` when its shard has a leader on a server that is up, `fail` when so few of its replicas' servers are
/// up that it can have none, `pfail` between: an election. The cluster's state is `ok` while every slot is served or
/// about to be.
pub fn info(view: &View, me: ReplicaId) -> String {
    let (mut assigned, mut ok, mut pfail, mut fail, mut size) = (0, 0, 0, 0, 0);
    for shard in &view.topology.shards {
        let slots = shard.slots.len();
        assigned += slots;
        size += usize::from(slots > 0);
        let up = shard.replicas.iter().filter(|replica| view.is_up(replica)).count();
        *if up <= shard.replicas.len() / 2 {
            &mut fail
        } else if view.leader(shard).is_some_and(|leader| view.is_up(leader)) {
            &mut ok
        } else {
            &mut pfail
        } += slots;
    }
    let state = if assigned == usize::from(SLOTS) && fail == 0 { "ok" } else { "fail" };
    let known = view.topology.all_replicas().count();
    let current = view.topology.shards.iter().map(|shard| epoch(view, shard)).max().unwrap_or(0);
    let mine = view.topology.replica(me).map_or(0, |(shard, _)| epoch(view, shard));
    format!(
        "cluster_state:{state}\r\n\
         cluster_slots_assigned:{assigned}\r\n\
         cluster_slots_ok:{ok}\r\n\
         cluster_slots_pfail:{pfail}\r\n\
         cluster_slots_fail:{fail}\r\n\
         cluster_known_nodes:{known}\r\n\
         cluster_size:{size}\r\n\
         cluster_current_epoch:{current}\r\n\
         cluster_my_epoch:{mine}\r\n\
         cluster_stats_messages_sent:0\r\n\
         cluster_stats_messages_received:0\r\n\
         total_cluster_links_buffer_limit_exceeded:0\r\n"
    )
}

/// The term of a shard's newest leader.
fn epoch(view: &View, shard: &Shard) -> u64 {
    view.leaders.last(shard.id).map_or(0, |leader| leader.term)
}

/// The replicas of a shard in a fixed order, its master first.
fn master_first<'a>(view: &View, shard: &'a Shard) -> impl Iterator<Item = &'a Replica> {
    let master = view.master(shard);
    std::iter::once(master).chain(shard.replicas.iter().filter(|replica| replica.id != master.id))
}

/// Host, client port and peer port of a replica.
fn address<'a>(view: &'a View, shard: &Shard, replica: &Replica) -> (&'a str, u16, u16) {
    let server = view.topology.server(replica.server).expect("a topology has the servers of its replicas");
    (&server.host, server.client_port(shard.id), server.peer_port())
}

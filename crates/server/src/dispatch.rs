//! Where a command goes, and in which words a client is told when it does not go here.

use kvorum_cluster::{Footing, Intent, Mode, ReplicaId, Route, View, route};
use kvorum_keyspace::{Args, Command, Keyspace, Run, Settings, Sink, Slot, command, slot_of};
use smallvec::SmallVec;
use std::sync::LazyLock;

/// No leader was found within the time that a client is held.
pub(crate) const CLUSTER_DOWN: &str = "CLUSTERDOWN The cluster is down";
/// The slot has no shard.
pub(crate) const NOT_SERVED: &str = "CLUSTERDOWN Hash slot not served";
/// The keys are in different slots.
const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
/// A write that cannot be redirected, on a follower.
pub(crate) const READ_ONLY: &str = "READONLY You can't write against a read only replica.";
/// A read on a follower that has not heard its leader for too long.
pub(crate) const MASTER_DOWN: &str =
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
/// The one indefinite error.
pub(crate) const UNKNOWN: &str = "UNKNOWN the outcome is not known: the leader changed or no majority answered \
                                  in time, the command may or may not have run";

/// Where a command goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Course {
    /// It can run.
    Run(Way),
    /// Nowhere yet: the client is held until there is a leader.
    Hold,
    /// Nowhere: this is its reply.
    Refused(String),
}

/// Who runs a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// This replica, which leads.
    Leads,
    /// This replica, from its own state, though it does not lead.
    Stale,
    /// The leader, in this client's stead.
    Forward,
}

/// Where a command of the keyspace goes that arrived at replica `me`.
pub(crate) fn course(
    view: &View,
    me: ReplicaId,
    command: &Command,
    args: Args<'_>,
    footing: Footing,
) -> Course {
    let mut slots: SmallVec<[Slot; 8]> = SmallVec::new();
    if view.topology.mode == Mode::Cluster {
        command.for_each_key(args, &mut |key| slots.push(slot_of(key)));
    }
    let intent = if command.is_write() { Intent::Write } else { Intent::Read };
    match route(view, me, slots.into_iter(), intent, footing) {
        Route::Local => match refused_in_cluster(view, command, args) {
            Some(error) => Course::Refused(error),
            None => Course::Run(Way::Leads),
        },
        Route::Stale => Course::Run(Way::Stale),
        Route::Hold => Course::Hold,
        Route::Forward => Course::Run(Way::Forward),
        Route::Moved { slot, host, port } => Course::Refused(moved(slot, &host, port)),
        Route::CrossSlot => Course::Refused(CROSS_SLOT.to_owned()),
        Route::NotServed => Course::Refused(NOT_SERVED.to_owned()),
        Route::ReadOnly => Course::Refused(READ_ONLY.to_owned()),
    }
}

/// Clients of a cluster stay in its one database.
fn refused_in_cluster(view: &View, command: &Command, args: Args<'_>) -> Option<String> {
    if view.topology.mode != Mode::Cluster {
        return None;
    }
    let error = command::refused_in_cluster(command, args, view.topology.databases)?;
    // None of these quotes a client.
    Some(String::from_utf8_lossy(error.text()).into_owned())
}

/// The reply for a slot that the shard was found not to own when the command was to run.
pub(crate) fn redirection(view: &View, me: ReplicaId, slot: Slot) -> String {
    let Some(shard) = view.topology.shard_of_slot(slot) else { return NOT_SERVED.to_owned() };
    match view.leader(shard).filter(|leader| leader.id != me) {
        Some(leader) => match view.topology.address(leader.id) {
            Some((host, port)) => moved(slot, host, port),
            None => NOT_SERVED.to_owned(),
        },
        // The topology has not heard yet where the slot went.
        None => CLUSTER_DOWN.to_owned(),
    }
}

fn moved(slot: Slot, host: &str, port: u16) -> String {
    format!("MOVED {slot} {host}:{port}")
}

/// Answers a command of the keyspace on a server without a cluster, as an empty node of a Redis Cluster does.
pub(crate) fn without_cluster(command: &Command, args: Args<'_>, out: &mut dyn Sink) {
    static EMPTY: LazyLock<Keyspace> =
        LazyLock::new(|| Keyspace::new(Settings { databases: 1, hash_seed: [0; 16] }));
    let mut keys = 0;
    command.for_each_key(args, &mut |_| keys += 1);
    match command.run {
        Run::Read(run) if keys == 0 => {
            if let Err(error) = run(&EMPTY.reader(0, 0, 0), args, out) {
                out.error(error.text());
            }
        }
        _ => out.error(NOT_SERVED.as_bytes()),
    }
}

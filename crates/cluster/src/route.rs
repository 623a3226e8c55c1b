//! Where a command goes: the answer of Redis Cluster, as a function of data.

use crate::{Mode, ReplicaId, Shard, View};
use kvorum_keyspace::Slot;

/// What a command does with its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// Reads them.
    Read,
    /// May change them.
    Write,
}

/// What a client takes the replica for that it is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Footing {
    /// Any: it said nothing, and what it had from this replica so far does not matter.
    Any,
    /// A follower: it sent READONLY.
    Follower,
    /// The leader, which this replica was while the client was connected. Only in a standalone cluster does this matter: its clients
    /// follow no redirection, and must not find themselves reading a follower without having asked for one.
    Leader,
}

/// Where a command goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Here: this replica leads the shard.
    Local,
    /// Here, from a follower's state: as old as the bound on staleness allows.
    Stale,
    /// To the leader: `MOVED <slot> <host>:<port>`.
    Moved {
        /// The slot of the keys.
        slot: Slot,
        /// Host of the leader.
        host: String,
        /// Client port of the leader.
        port: u16,
    },
    /// Nowhere: its keys are in different slots.
    CrossSlot,
    /// Not known yet: the shard is electing a leader. Hold the client and ask again.
    Hold,
    /// Nowhere: the slot has no shard.
    NotServed,
    /// Not here, and there is nothing to redirect by: a write on a follower.
    ReadOnly,
    /// To the leader, by way of this server: the client cannot be redirected, and was connected to the leader until a moment ago.
    Forward,
}

/// Where a command goes that arrived at replica `me`. `slots` are those of its keys, in their order.
///
/// Only announcements decide who leads: a server that the meta group takes for dead may still lead, and a client
/// that is sent to a dead one finds out as fast as with Redis.
pub fn route(
    view: &View,
    me: ReplicaId,
    mut slots: impl Iterator<Item = Slot>,
    intent: Intent,
    footing: Footing,
) -> Route {
    let (slot, footing) = match view.topology.mode {
        Mode::Cluster if footing == Footing::Leader => (slots.next(), Footing::Any),
        Mode::Cluster => (slots.next(), footing),
        Mode::Standalone => (None, footing),
    };
    let Some(slot) = slot else { return route_here(view, me, intent, footing) };
    let Some(shard) = view.topology.shard_of_slot(slot) else { return Route::NotServed };
    if slots.any(|other| other != slot) {
        return Route::CrossSlot;
    }
    let leader = view.leader(shard);
    if leader.is_some_and(|leader| leader.id == me) {
        return Route::Local;
    }
    if intent == Intent::Read && footing == Footing::Follower && is_member(shard, me) {
        return Route::Stale;
    }
    match leader.and_then(|leader| view.topology.address(leader.id)) {
        Some((host, port)) => Route::Moved { slot, host: host.to_owned(), port },
        None => Route::Hold,
    }
}

/// A command that cannot be redirected: without keys, or in a standalone cluster.
fn route_here(view: &View, me: ReplicaId, intent: Intent, footing: Footing) -> Route {
    match (view.leader_of(me), intent) {
        (Some(leader), _) if leader.id == me => Route::Local,
        (Some(_), _) if footing == Footing::Leader => Route::Forward,
        (None, _) if footing == Footing::Leader => Route::Hold,
        (_, Intent::Read) => Route::Stale,
        (Some(_), Intent::Write) => Route::ReadOnly,
        (None, Intent::Write) => Route::Hold,
    }
}

fn is_member(shard: &Shard, me: ReplicaId) -> bool {
    shard.replicas.iter().any(|replica| replica.id == me)
}

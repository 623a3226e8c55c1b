//! Compares the replicas of each shard, and takes a wrong one out of service.
//!
//! About once a second a leader whose data changed puts a check into the log ([`Part::Check`](kvorum_cluster::Part)): each
//! replica notes its checksum there. Servers tell each other their replicas' last notes with every announcement, and each
//! judges its own replicas by [`kvorum_cluster::checks`]: one that differs from a majority of the voters serves no more from
//! that moment, hands its leadership over, and stops. Without a majority nothing is stopped: that is for an operator.
//!
//! A leader asks for a check only when every member of the group has said that it knows checks; until then, and in a group
//! of one, there is nothing to compare.

use crate::node::Node;
use crate::shard::Shard;
use kvorum_cluster::checks::{Finding, compare};
use kvorum_cluster::{BASE_LEVEL, CHECK_LEVEL, Note, ReplicaId, ServerId, Topology};
use kvorum_proto::admin as rpc;
use kvorum_raft::Status;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::error;

/// How many notes of each replica an announcement carries: a lost one is made up for by the next.
const ANNOUNCED: usize = 4;

/// A server that is up has been heard after so long.
const HEARD_AFTER: Duration = Duration::from_secs(2);

/// How many notes of each other replica are kept: one that is this many checks behind is not compared.
const KEPT: usize = 64;

/// What this server knows of the others' replicas.
#[derive(Default)]
pub(crate) struct Checks(Mutex<State>);

#[derive(Default)]
struct State {
    /// The feature level of each server that was heard since the start, this one included.
    levels: BTreeMap<ServerId, u16>,
    /// Checksum by index of each replica elsewhere.
    notes: BTreeMap<ReplicaId, BTreeMap<u64, u64>>,
    /// Where a replica's shard was found without a majority last, so that it is said once.
    split: BTreeMap<ReplicaId, u64>,
}

impl Checks {
    /// A server is of this feature level.
    pub(crate) fn hear(&self, server: ServerId, level: u16) {
        self.0.lock().levels.insert(server, level);
    }

    /// Whether a group has replicas to compare, and all its members are known to understand a check.
    pub(crate) fn are_possible(&self, status: &Status) -> bool {
        status.voters.len() > 1 && self.all_know(status, CHECK_LEVEL)
    }

    /// Whether all members of a group are known to have this feature level.
    fn all_know(&self, status: &Status, level: u16) -> bool {
        let levels = &self.0.lock().levels;
        let knows = |server| levels.get(&ServerId(server)).is_some_and(|&known| known >= level);
        status.members.values().all(|member| knows(member.server))
    }

    /// Whether an entry of this level may be proposed to a group; `None` while that is not known. `up` is how long this
    /// server has been running.
    ///
    /// A server that has not been heard in all that time is down, and does not keep the others from using what they know: if it is of
    /// an earlier version, its replicas stop at the entry until it is upgraded.
    pub(crate) fn may_propose(&self, status: &Status, level: u16, up: Duration) -> Option<bool> {
        if level <= BASE_LEVEL {
            return Some(true);
        }
        let levels = &self.0.lock().levels;
        let known = status.members.values().map(|member| levels.get(&ServerId(member.server)));
        let (mut unheard, mut earlier) = (false, false);
        for known in known {
            unheard |= known.is_none();
            earlier |= known.is_some_and(|&known| known < level);
        }
        match (earlier, unheard) {
            (true, _) => Some(false),
            (false, true) if up < HEARD_AFTER => None,
            (false, _) => Some(true),
        }
    }

    /// Why an entry of the meta group that needs this level must not be proposed yet: a server that is known to be of an earlier version
    /// would stop at it, and one that is up has not said of which it is.
    ///
    /// As with entries of shards, a server that is down does not count before it was heard.
    pub(crate) fn too_early_for(&self, topology: &Topology, level: u16) -> Option<String> {
        if level <= BASE_LEVEL {
            return None;
        }
        let levels = &self.0.lock().levels;
        topology.servers.values().find_map(|server| {
            let why = match levels.get(&server.id) {
                Some(known) if *known >= level => return None,
                Some(_) => "is of an earlier version, which would stop at this: upgrade it first",
                None if server.up => "has not said yet of which version it is: try again",
                None => return None,
            };
            Some(format!("server {} at {}:{} {why}", server.id, server.host, server.base_port))
        })
    }

    /// Whether all servers that are up have said of which version they are.
    pub(crate) fn all_told(&self, topology: &Topology) -> bool {
        let levels = &self.0.lock().levels;
        topology.servers.values().all(|server| !server.up || levels.contains_key(&server.id))
    }

    fn learn(&self, replica: ReplicaId, note: Note) {
        let notes = &mut self.0.lock().notes;
        let notes = notes.entry(replica).or_default();
        notes.insert(note.index, note.checksum);
        if notes.len() > KEPT {
            notes.pop_first();
        }
    }

    /// Forgets the replicas that are not there any more.
    fn forget_others(&self, is_there: impl Fn(ReplicaId) -> bool) {
        let mut state = self.0.lock();
        state.notes.retain(|&replica, _| is_there(replica));
        state.split.retain(|&replica, _| is_there(replica));
    }

    /// What is known of these replicas, other than `own`, and what `own` noted.
    fn of(
        &self,
        members: impl Iterator<Item = u64>,
        own: (ReplicaId, Vec<Note>),
    ) -> BTreeMap<ReplicaId, Vec<Note>> {
        let state = self.0.lock();
        let known = members.map(ReplicaId).filter_map(|replica| {
            let notes = state.notes.get(&replica)?.iter();
            Some((replica, notes.map(|(&index, &checksum)| Note { index, checksum }).collect()))
        });
        known.chain([own]).collect()
    }

    /// Whether this is news.
    fn learn_split(&self, replica: ReplicaId, index: u64) -> bool {
        self.0.lock().split.insert(replica, index).is_none_or(|last| last < index)
    }
}

impl Node {
    /// The last notes of the replicas here.
    pub(crate) fn notes(&self) -> Vec<rpc::ReplicaNote> {
        let shards = self.shards().borrow().clone();
        let notes = shards.values().flat_map(|shard| {
            let notes = shard.notes();
            let replica = shard.replica().0;
            let last = notes.len().saturating_sub(ANNOUNCED);
            notes.into_iter().skip(last).map(move |Note { index, checksum }| rpc::ReplicaNote {
                replica,
                index,
                checksum,
            })
        });
        notes.collect()
    }

    /// Another server told what its replicas noted. What is not its to tell is ignored.
    pub(crate) fn learn_notes(&self, from: ServerId, level: u32, notes: &[rpc::ReplicaNote]) {
        let Some(view) = self.view() else { return };
        self.0.checks.hear(from, u16::try_from(level).unwrap_or(u16::MAX));
        for &rpc::ReplicaNote { replica, index, checksum } in notes {
            let replica = ReplicaId(replica);
            if view.topology.server_of(replica).is_some_and(|server| server.id == from) {
                self.0.checks.learn(replica, Note { index, checksum });
            }
        }
    }

    /// Compares the replicas here with the others of their shards, and stops those that are wrong.
    pub(crate) fn judge_replicas(&self) {
        if let Some(view) = self.view() {
            self.0.checks.forget_others(|replica| view.topology.replica(replica).is_some());
        }
        let shards = self.shards().borrow().clone();
        for shard in shards.into_values().filter(|shard| shard.wrong().is_none()) {
            self.judge(shard);
        }
    }

    fn judge(&self, shard: Shard) {
        let (status, me) = (shard.status(), shard.replica());
        let voters: BTreeSet<ReplicaId> = status.voters.iter().copied().map(ReplicaId).collect();
        let notes = self.0.checks.of(status.members.keys().copied(), (me, shard.notes()));
        for at in compare(&voters, &notes) {
            match at.finding {
                Finding::Diverged { checksum, wrong } => {
                    let Some(own) = wrong.get(&me) else { continue };
                    let reason = format!(
                        "its data differ from those of the majority: checksum {own:016x} instead of {checksum:016x} at \
                         index {}",
                        at.index
                    );
                    error!(
                        shard = shard.id().0,
                        replica = me.0,
                        reason,
                        "replica is wrong and serves no more"
                    );
                    shard.condemn(reason.clone());
                    self.request_replacement(&shard, reason);
                    self.spawn(self.clone().take_out(shard));
                    return;
                }
                Finding::Split if self.0.checks.learn_split(me, at.index) => {
                    error!(
                        shard = shard.id().0,
                        index = at.index,
                        "the replicas differ and none has a majority: an operator has to decide which is right"
                    );
                }
                Finding::Split | Finding::Agreed | Finding::Open => {}
            }
        }
    }

    /// Ends the part that a condemned replica has in its group.
    async fn take_out(self, shard: Shard) {
        self.hand_over_shard(&shard).await;
        shard.group().shutdown().await;
    }
}

#[cfg(test)]
mod tests;

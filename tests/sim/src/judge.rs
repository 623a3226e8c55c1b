//! The invariants. Each `invariant_…` is a function of facts that the simulation hands in as they happen; the first one that
//! does not hold ends the run.
//!
//! Facts about replicas come from the node's [`Observer`] (every applied entry) and from samples of every process; facts about
//! clients from their histories. Nothing here looks at a clock.

use kvorum_cluster::{Durability, Entry, ReplicaId, ShardId, ShardMachine, SlotSet};
use kvorum_node::{Observer, Role, Status};
use kvorum_testkit::check::counter::{self, Increment};
use kvorum_testkit::check::register::{self, Verdict};
use kvorum_testkit::history::Operation;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// What a run is judged by.
pub(crate) struct Judge {
    facts: Mutex<Facts>,
    pub(crate) durability: Durability,
}

#[derive(Default)]
struct Facts {
    violation: Option<String>,
    shards: BTreeMap<ShardId, ShardFacts>,
    /// What each shard owns in each version of its configuration.
    owned: BTreeMap<(u64, ShardId), SlotSet>,
}

#[derive(Default)]
struct ShardFacts {
    /// What stands at each index, as whoever applied it first saw it.
    applied: BTreeMap<u64, Applied>,
    /// Who leads in each term.
    leaders: BTreeMap<u64, ReplicaId>,
    /// The clock that each replica had last.
    clocks: BTreeMap<ReplicaId, (u64, u64)>,
}

/// An entry and the state after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Applied {
    term: u64,
    entry: u64,
    state: u64,
    clock_ms: u64,
}

impl Judge {
    pub(crate) fn new(durability: Durability) -> Judge {
        Judge { facts: Mutex::default(), durability }
    }

    /// The first violation.
    pub(crate) fn violation(&self) -> Option<String> {
        self.facts.lock().violation.clone()
    }

    /// Notes the outcome of a check.
    pub(crate) fn hold(&self, outcome: Result<(), String>) {
        if let Err(violation) = outcome {
            self.facts.lock().violation.get_or_insert(violation);
        }
    }

    /// How many entries the shards have applied, for the report.
    pub(crate) fn entries(&self) -> usize {
        self.facts.lock().shards.values().map(|shard| shard.applied.len()).sum()
    }

    /// One look at a replica.
    pub(crate) fn sampled(&self, shard: ShardId, replica: ReplicaId, status: &Status) {
        if status.role == Role::Leader && status.failed.is_none() {
            let mut facts = self.facts.lock();
            let leaders = &mut facts.shards.entry(shard).or_default().leaders;
            let outcome = invariant_one_leader_per_term(leaders, shard, status.term, replica);
            drop(facts);
            self.hold(outcome);
        }
    }
}

impl Observer for Judge {
    fn applied(
        &self,
        (shard, replica): (ShardId, ReplicaId),
        (index, term): (u64, u64),
        entry: Option<&[u8]>,
        machine: &ShardMachine,
    ) {
        let now = Applied {
            term,
            entry: entry.map_or(0, fingerprint),
            state: machine.keyspace().checksum(),
            clock_ms: machine.clock_ms(),
        };
        let mut facts = self.facts.lock();
        let Facts { shards, owned, violation } = &mut *facts;
        let shard_facts = shards.entry(shard).or_default();
        let outcome =
            invariant_committed_prefix_never_changes(&shard_facts.applied, shard, replica, index, now)
                .and_then(|()| {
                    invariant_equal_state_at_equal_index(&shard_facts.applied, shard, replica, index, now)
                })
                .and_then(|()| {
                    invariant_log_clock_never_goes_back(
                        &mut shard_facts.clocks,
                        shard,
                        replica,
                        index,
                        now.clock_ms,
                    )
                });
        shard_facts.applied.entry(index).or_insert(now);
        let outcome = outcome.and_then(|()| match machine.configured() {
            Some(configure) if !owned.contains_key(&(configure.version, shard)) => {
                owned.insert((configure.version, shard), configure.slots.clone());
                invariant_one_owner_per_slot_per_epoch(owned, configure.version, shard)
            }
            _ => Ok(()),
        });
        if let Err(text) = outcome {
            let part = entry.and_then(|entry| Entry::decode(entry).ok()).map(|entry| entry.parts().count());
            violation.get_or_insert(format!("{text} (parts: {part:?})"));
        }
    }
}

/// Raft: a term has at most one leader.
fn invariant_one_leader_per_term(
    leaders: &mut BTreeMap<u64, ReplicaId>,
    shard: ShardId,
    term: u64,
    replica: ReplicaId,
) -> Result<(), String> {
    let first = *leaders.entry(term).or_insert(replica);
    if first == replica {
        return Ok(());
    }
    Err(format!("one leader per term: {shard:?} term {term} is led by {first:?} and by {replica:?}"))
}

/// Raft: what was applied at an index once is what everybody applies there, also after restarts.
fn invariant_committed_prefix_never_changes(
    applied: &BTreeMap<u64, Applied>,
    shard: ShardId,
    replica: ReplicaId,
    index: u64,
    now: Applied,
) -> Result<(), String> {
    match applied.get(&index) {
        Some(first) if (first.term, first.entry) != (now.term, now.entry) => Err(format!(
            "committed prefix never changes: {shard:?} index {index}: {replica:?} has {now:?}, first was {first:?}"
        )),
        _ => Ok(()),
    }
}

/// Determinism: the same log gives the same state, whether replayed, restored or applied live.
fn invariant_equal_state_at_equal_index(
    applied: &BTreeMap<u64, Applied>,
    shard: ShardId,
    replica: ReplicaId,
    index: u64,
    now: Applied,
) -> Result<(), String> {
    match applied.get(&index) {
        Some(first) if (first.state, first.clock_ms) != (now.state, now.clock_ms) => Err(format!(
            "equal state at equal index: {shard:?} index {index}: {replica:?} has {now:?}, first was {first:?}"
        )),
        _ => Ok(()),
    }
}

/// Time of a shard never goes back on a replica that goes forward.
fn invariant_log_clock_never_goes_back(
    clocks: &mut BTreeMap<ReplicaId, (u64, u64)>,
    shard: ShardId,
    replica: ReplicaId,
    index: u64,
    clock_ms: u64,
) -> Result<(), String> {
    let last = clocks.insert(replica, (index, clock_ms));
    match last {
        Some((before, was)) if before < index && clock_ms < was => Err(format!(
            "the log's clock never goes back: {shard:?} {replica:?} index {index}: {clock_ms} after {was}"
        )),
        _ => Ok(()),
    }
}

/// No two shards own a slot in one version of the topology.
fn invariant_one_owner_per_slot_per_epoch(
    owned: &BTreeMap<(u64, ShardId), SlotSet>,
    version: u64,
    shard: ShardId,
) -> Result<(), String> {
    let Some(mine) = owned.get(&(version, shard)) else { return Ok(()) };
    let others = owned.range((version, ShardId(0))..=(version, ShardId(u16::MAX)));
    for ((_, other), theirs) in others.filter(|((_, other), _)| *other != shard) {
        if let Some(slot) = mine.iter().find(|slot| theirs.contains(*slot)) {
            return Err(format!(
                "one owner per slot per epoch: version {version}: {shard:?} and {other:?} own {slot:?}"
            ));
        }
    }
    Ok(())
}

/// At most one replica of a shard may answer reads on its own at any moment.
pub(crate) fn invariant_leases_never_overlap(shard: ShardId, holders: &[ReplicaId]) -> Result<(), String> {
    if holders.len() <= 1 {
        return Ok(());
    }
    Err(format!("leases never overlap: {shard:?}: {holders:?} hold one each"))
}

/// Acknowledged writes are readable, reads are fresh, refused writes never happen: registers are linearizable.
pub(crate) fn invariant_acknowledged_writes_readable(history: &[Operation]) -> Result<(), String> {
    match register::check(history) {
        Verdict::Linearizable => Ok(()),
        Verdict::Violated { key, why } => {
            let mut text = format!("acknowledged writes readable: key {key}: {why}");
            for operation in history.iter().filter(|operation| operation.key == key) {
                text.push_str(&format!(
                    "\n    client {} {:?} {}..{} {:?}",
                    operation.client,
                    operation.action,
                    operation.start_ns,
                    operation.end_ns,
                    operation.ending
                ));
            }
            Err(text)
        }
        Verdict::Undecided { keys } => Err(format!("the linearizability of {keys:?} was not decided")),
    }
}

/// Every acknowledged increment counts once, and an unknown one at most once.
pub(crate) fn invariant_no_effect_twice(
    counter: &str,
    acknowledged: &[Increment],
    unknown: u64,
    last: u64,
) -> Result<(), String> {
    counter::check(acknowledged, unknown, last).map_err(|why| format!("no effect twice: {counter}: {why}"))
}

/// A key with a deadline, as its readers saw it; times are numbers of events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expiring {
    /// When its write was acknowledged.
    pub(crate) written: u64,
    /// Reads that found it or did not: when they began, when they ended, whether the key was there.
    pub(crate) reads: Vec<(u64, u64, bool)>,
}

/// What one linearizable read has seen as expired no later one finds again.
pub(crate) fn invariant_expired_never_returns(key: &str, seen: &Expiring) -> Result<(), String> {
    let gone = seen.reads.iter().filter(|(began, _, there)| !there && *began > seen.written);
    let Some(first_gone) = gone.map(|(_, ended, _)| *ended).min() else { return Ok(()) };
    match seen.reads.iter().find(|(began, _, there)| *there && *began > first_gone) {
        Some(read) => {
            Err(format!("nothing seen as expired returns: {key}: gone at {first_gone}, there at {read:?}"))
        }
        None => Ok(()),
    }
}

fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(term: u64, state: u64) -> Applied {
        Applied { term, entry: 7, state, clock_ms: 1 }
    }

    #[test]
    fn each_invariant_can_fail() {
        let (shard, a, b) = (ShardId(0), ReplicaId(1), ReplicaId(2));
        let mut leaders = BTreeMap::new();
        assert!(invariant_one_leader_per_term(&mut leaders, shard, 3, a).is_ok());
        assert!(invariant_one_leader_per_term(&mut leaders, shard, 3, a).is_ok());
        assert!(invariant_one_leader_per_term(&mut leaders, shard, 3, b).is_err());

        let known = BTreeMap::from([(5, applied(1, 10))]);
        assert!(invariant_committed_prefix_never_changes(&known, shard, b, 5, applied(1, 10)).is_ok());
        assert!(invariant_committed_prefix_never_changes(&known, shard, b, 5, applied(2, 10)).is_err());
        assert!(invariant_equal_state_at_equal_index(&known, shard, b, 5, applied(1, 10)).is_ok());
        assert!(invariant_equal_state_at_equal_index(&known, shard, b, 5, applied(1, 11)).is_err());

        let mut clocks = BTreeMap::new();
        assert!(invariant_log_clock_never_goes_back(&mut clocks, shard, a, 1, 100).is_ok());
        assert!(invariant_log_clock_never_goes_back(&mut clocks, shard, a, 2, 99).is_err());
        // A restarted replica begins again at an earlier index.
        assert!(invariant_log_clock_never_goes_back(&mut clocks, shard, a, 0, 5).is_ok());

        assert!(invariant_leases_never_overlap(shard, &[a]).is_ok());
        assert!(invariant_leases_never_overlap(shard, &[a, b]).is_err());

        let seen = Expiring { written: 1, reads: vec![(2, 3, true), (4, 5, false)] };
        assert!(invariant_expired_never_returns("k", &seen).is_ok());
        let back = Expiring { written: 1, reads: vec![(4, 5, false), (6, 7, true)] };
        assert!(invariant_expired_never_returns("k", &back).is_err());

        let twice =
            [Increment { start_ns: 1, end_ns: 2, value: 1 }, Increment { start_ns: 3, end_ns: 4, value: 3 }];
        assert!(invariant_no_effect_twice("c", &twice, 0, 3).is_err());
    }
}

//! What a log must do, as plainly as possible, and random histories of calls.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use kvorum_raft::wal::{Done, GroupLog, GroupState, Position};
use proptest::prelude::*;

use crate::support::{plain, record};

/// A call. Indexes are relative, so that any sequence of calls makes sense.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// Appends `count` records of `bytes` each, `back` before the end (but behind the purge point).
    Append { back: u64, count: u64, bytes: usize },
    /// Saves a vote.
    Vote,
    /// Leaves a committed position.
    Committed,
    /// Drops all but the first `keep` entries.
    Truncate { keep: u64 },
    /// Drops the first `count` entries; may go beyond the end.
    Purge { count: u64 },
    /// Drops the group.
    Forget,
}

/// A group as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    purged: Option<Position>,
    vote: Option<Bytes>,
    entries: BTreeMap<u64, Entry>,
    /// Calls so far: makes terms and opaque bytes unique.
    pub(crate) calls: u64,
    /// Highest call that left a committed position.
    pub(crate) committed: Option<u64>,
}

type Entry = (u64, u64, u64, Bytes);

impl Model {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn next(&self) -> u64 {
        self.entries.keys().next_back().map_or(self.first(), |last| last + 1)
    }

    fn position(&self, index: u64) -> Position {
        match self.entries.get(&index) {
            Some(&(index, term, leader, _)) => Position { index, term, leader },
            None => Position { index, term: self.calls, leader: self.calls % 3 },
        }
    }

    /// Makes the call on the model and on the log.
    pub(crate) fn call(&mut self, call: &Call, log: &GroupLog, done: Done) {
        self.calls += 1;
        let opaque = Bytes::from(self.calls.to_le_bytes().to_vec());
        match *call {
            Call::Append { back, count, bytes } => {
                let from = self.next().saturating_sub(back).max(self.first());
                let records: Vec<_> =
                    (from..from + count).map(|index| record(index, self.calls, bytes)).collect();
                if count > 0 {
                    self.entries.split_off(&from);
                }
                self.entries.extend(records.iter().map(|record| (record.index, plain(record))));
                log.append(records, done);
            }
            Call::Vote => {
                self.vote = Some(opaque.clone());
                log.save_vote(opaque, done);
            }
            Call::Committed => {
                self.committed = Some(self.calls);
                log.save_committed(opaque);
                done(Ok(()));
            }
            Call::Truncate { keep } => {
                let keep = (self.first() + keep).checked_sub(1);
                match keep {
                    Some(keep) => drop(self.entries.split_off(&(keep + 1))),
                    None => self.entries.clear(),
                }
                log.truncate_after(keep, done);
            }
            Call::Purge { count } => {
                let to = self.position(self.first() + count);
                self.entries = self.entries.split_off(&(to.index + 1));
                self.purged = Some(to);
                log.purge_to(to, done);
            }
            Call::Forget => {
                *self = Model { calls: self.calls, ..Model::default() };
                log.forget();
                done(Ok(()));
            }
        }
    }

    /// Whether the log is in this state, less the committed position; the difference if not.
    pub(crate) fn differs(&self, log: &GroupLog) -> Option<String> {
        let found = log.state();
        let last = self.entries.values().next_back().map(|&(index, term, leader, _)| Position {
            index,
            term,
            leader,
        });
        let (purged, vote) = (self.purged, self.vote.clone());
        let wanted = GroupState { purged, last: last.or(purged), vote, committed: found.committed.clone() };
        if found != wanted {
            return Some(format!("found {found:?}, wanted {wanted:?}"));
        }
        let read = log.read(0..u64::MAX, usize::MAX).expect("entries can be read");
        let read: Vec<_> = read.iter().map(plain).collect();
        let wanted: Vec<_> = self.entries.values().cloned().collect();
        (read != wanted).then(|| format!("read {} entries, wanted {}", read.len(), wanted.len()))
    }

    /// The call that left the committed position the log has.
    pub(crate) fn committed_call(log: &GroupLog) -> Option<u64> {
        let committed = log.state().committed?;
        Some(u64::from_le_bytes(committed[..].try_into().expect("eight bytes were saved")))
    }
}

/// A random call.
pub(crate) fn any_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        10 => (0..3_u64, 0..4_u64, 0..900_usize).prop_map(|(back, count, bytes)| Call::Append { back, count, bytes }),
        3 => (0..1_u64, 1..3_u64, 0..900_usize).prop_map(|(back, count, bytes)| Call::Append { back, count, bytes }),
        2 => Just(Call::Vote),
        2 => Just(Call::Committed),
        1 => (0..6_u64).prop_map(|keep| Call::Truncate { keep }),
        3 => (0..8_u64).prop_map(|count| Call::Purge { count }),
        1 => Just(Call::Forget),
    ]
}

/// A history over `groups` groups; group 0 is idle most of the time, so that it pins segments.
pub(crate) fn any_history(calls: Range<usize>, groups: u64) -> impl Strategy<Value = Vec<(u64, Call)>> {
    let group = prop_oneof![1 => Just(0), 9 => 1..groups];
    prop::collection::vec((group, any_call()), calls)
}

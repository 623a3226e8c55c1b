//! The WAL as openraft's log store.
//!
//! Votes and truncations are awaited; entries are handed over and acknowledged by the WAL's callback. On the way to the disk the lease hears
//! of votes and memberships first (rules 6 and 8 of [`lease`](crate::lease)), and the machine of votes. Any error is fatal to the group,
//! as openraft has it.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use bytes::Bytes;
use futures::Stream;
use kvorum_proto::raft as wire;
use openraft::{
    EntryPayload, LogState, RaftLogReader,
    alias::{EntryOf, LogIdOf, VoteOf},
    storage::{IOFlushed, RaftLogStorage},
};
use prost::Message;
use tokio::sync::oneshot;

use crate::{
    lease::Lease,
    machine::Machine,
    transport::FRAME_BYTES,
    types::{
        Types, ballot, entry_from_record, entry_to_record, log_id_from_wire, log_id_to_wire,
        position_to_log_id, vote_from_wire, vote_to_wire,
    },
    wal::{Done, GroupLog, Position},
};

/// Most bytes of entries that one request to a follower carries, unless a single entry is larger. With positions and lengths of
/// its entries it fits a frame.
const REQUEST_BYTES: usize = FRAME_BYTES - (16 << 10);

/// Bytes read at a time when entries are applied.
const APPLY_BYTES: usize = 1 << 20;

/// One group's part of the WAL.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: GroupLog,
    lease: Arc<Lease>,
    machine: Arc<dyn Machine>,
}

impl LogStore {
    pub(crate) fn new(log: GroupLog, lease: Arc<Lease>, machine: Arc<dyn Machine>) -> LogStore {
        LogStore { log, lease, machine }
    }

    fn entries(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<EntryOf<Types>>> {
        let start = range.start;
        let records = self.log.read(range, max_bytes)?;
        // The log brings what it has; what was purged has to be missed.
        if records.first().is_some_and(|record| record.index != start) {
            return Err(missing(start));
        }
        records.into_iter().map(|record| Ok(entry_from_record(record)?)).collect()
    }

    /// Waits until the log's queue has room, so that an append does not block the runtime's thread.
    async fn room(&self) {
        loop {
            let (sender, woken) = oneshot::channel();
            let wake = Box::new(move || {
                let _ = sender.send(());
            });
            if self.log.when_room(wake) {
                return;
            }
            // An error means that the queue went away, and then there is nothing to wait for.
            let _ = woken.await;
        }
    }

    /// The part of `range` that the log has.
    fn within(&self, range: impl RangeBounds<u64>) -> Range<u64> {
        let state = self.log.state();
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        let end = state.last.map_or(0, |last| last.index + 1);
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        from.max(first)..to.min(end)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<EntryOf<Types>>>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let Range { mut start, end } = self.within(range);
        let mut entries = Vec::new();
        while start < end {
            let more = self.entries(start..end, APPLY_BYTES)?;
            if more.is_empty() {
                return Err(missing(start));
            }
            start += more.len() as u64;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<EntryOf<Types>>> {
        self.entries(start..end, REQUEST_BYTES)
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<EntryOf<Types>>> + Send + use<'_, R>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        /// Entries of one read, and what is still to be read.
        struct Progress {
            store: LogStore,
            read: std::vec::IntoIter<EntryOf<Types>>,
            rest: Range<u64>,
        }
        let rest = self.within(range);
        let progress = Progress { store: self.clone(), read: Vec::new().into_iter(), rest };
        futures::stream::unfold(Some(progress), |progress| async {
            let mut progress = progress?;
            if let Some(entry) = progress.read.next() {
                return Some((Ok(entry), Some(progress)));
            }
            if progress.rest.is_empty() {
                return None;
            }
            match progress.store.entries(progress.rest.clone(), APPLY_BYTES) {
                Ok(entries) => {
                    progress.rest.start += entries.len() as u64;
                    progress.read = entries.into_iter();
                    match progress.read.next() {
                        Some(entry) => Some((Ok(entry), Some(progress))),
                        None => Some((Err(missing(progress.rest.start)), None)),
                    }
                }
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::VoteForgotten) {
            return Ok(None);
        }
        self.log.state().vote.map(decode_vote).transpose()
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(position_to_log_id),
            last_log_id: state.last.map(position_to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        let ballot = ballot(vote);
        self.lease.vote_saved(ballot);
        self.machine.voted(ballot.term);
        if !ballot.committed {
            tracing::info!(group = self.log.id().0, term = ballot.term, candidate = ballot.replica, "voted");
        }
        let bytes = Bytes::from(vote_to_wire(vote).encode_to_vec());
        finish(|done| self.log.save_vote(bytes, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        if let Some(id) = committed {
            self.log.save_committed(Bytes::from(log_id_to_wire(&id).encode_to_vec()));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        let state = self.log.state();
        let Some(bytes) = state.committed else { return Ok(None) };
        let id = wire::LogId::decode(bytes).map_err(|error| undecodable("committed position", error))?;
        Ok(Some(log_id_from_wire(id)))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        for entry in entries {
            if matches!(entry.payload, EntryPayload::Membership(_)) {
                self.lease.membership_appended(entry.log_id.index);
            }
            records.push(entry_to_record(entry));
        }
        self.room().await;
        let log = self.log.clone();
        let done = move |result: io::Result<()>| {
            // Whatever was proposed has to be appended: without room for it the group is at its end, and so are the others
            // soon. The server ends as a whole, to be started again when there is room, instead of living on as a shell.
            if let Err(error) = &result
                && error.kind() == io::ErrorKind::StorageFull
            {
                log.end(error);
            }
            flushed.io_completed(result);
        };
        self.log.append(records, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let keep = last.map(|id| id.index);
        finish(|done| self.log.truncate_after(keep, done)).await?;
        self.lease.log_truncated(keep);
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> io::Result<()> {
        let upto = Position { index: upto.index, term: upto.leader_id.term, leader: 0 };
        // openraft does nothing else while it waits for this, heartbeats included. What comes behind it in the log comes behind it on the
        // disk, and what a loss of power brings back is purged again.
        self.log.purge_to(upto, Box::new(|_| ()));
        Ok(())
    }
}

/// A vote as [`RaftLogStorage::save_vote`] wrote it.
pub(crate) fn decode_vote(bytes: Bytes) -> io::Result<VoteOf<Types>> {
    let vote = wire::Vote::decode(bytes).map_err(|error| undecodable("vote", error))?;
    Ok(vote_from_wire(vote))
}

/// Starts a request of the WAL and waits for its callback.
pub(crate) async fn finish(start: impl FnOnce(Done)) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| {
        // The group may be gone; then nobody waits.
        let _ = sender.send(result);
    }));
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log was closed")))
}

fn missing(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("entry {index} is not in the log"))
}

fn undecodable(what: &str, error: prost::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what} in the log: {error}"))
}
